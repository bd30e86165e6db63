"""Nothing is sent anywhere: commands and trainings open no connection, and look no name up."""

import socket

import pytest

from stages.autoencoder.train import build
from tests.faults.commands import COMMANDS, call
from tests.stages.builds import run


@pytest.fixture
def reached(monkeypatch):
    """Return what was tried to be reached, which fails as without a network."""
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("there is no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reaches_for_nothing(files, tmp_path, monkeypatch, reached, command):
    monkeypatch.chdir(files)
    assert call(command, tmp_path / "out") == 0
    assert reached == []


def test_a_training_reaches_for_nothing(tiny_config, reached):
    run(tiny_config("training.steps=2"), build)
    assert reached == []
