"""``difftumor ablation``: a study that runs as a process of its own."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from difftumor.cli import main
from studies.ablation import command_line


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["ablation", *words])
    return ended.value.code


@pytest.fixture
def started(monkeypatch):
    """Command lines that were started, by a process that ends with status 3."""
    lines = []

    def process(line, **_):
        lines.append(line)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", process)
    return lines


def test_all_words_and_the_status_are_passed_through(started):
    words = ["--test", "t", "--out", "o", "--seeds", "2", "--steps", "9", "--overlap", "0.25", "--device", "cpu"]
    options = ["organ=liver", "+data.x=1", "experiment=[label_free,demo]", "data.root=a b"]
    assert run(options[0], *words, *options[1:]) == 3
    ((python, flag, module, *passed),) = started
    assert (python, flag, module) == (sys.executable, "-m", "studies.ablation")
    assert passed == [*words, *options]


def test_it_has_the_options_and_defaults_of_the_study(started):
    assert run("--test", "t", "organ=liver") == 3
    study = command_line()
    assert study.parse_args(started[0][3:]) == study.parse_args(["--test", "t", "organ=liver"])
    known = {action.dest for action in study._actions} - {"help"}
    assert {word.removeprefix("--") for word in started[0][3:] if word.startswith("--")} | {"options"} == known


def test_help_says_what_to_type(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "Example: difftumor ablation --test data/test organ=liver data.healthy_root=data/healthy" in text
    assert "'experiment=[label_free,demo]'" in text
    assert "a checkout of the project" in text


def test_it_reaches_the_study(tmp_path, capfd):
    assert run("--test", str(tmp_path), "--out", str(tmp_path / "out"), "organ=liver", "data.bogus=1") == 1
    error = capfd.readouterr().err
    assert error.startswith("Error: Unknown option 'data.bogus'")
    assert not (tmp_path / "out").exists()


def test_without_a_checkout_it_says_so_in_a_sentence(monkeypatch, capsys, started):
    monkeypatch.setattr("difftumor.cli.ablation.STUDIES", "no_such_package")
    assert run("--test", "t", "organ=liver") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install -e ." in error
    assert not started
