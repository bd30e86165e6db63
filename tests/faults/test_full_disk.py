"""A full disk, or one that a quota has closed: a sentence, no half-written file, and what was there stays."""

import ctypes
import os
import re
import shutil
import signal

import pytest

from difftumor.errors import DiffTumorError
from stages.run.checkpoint import check_checkpoint
from tests.faults.commands import COMMANDS, call
from tests.faults.conftest import config_of
from tests.faults.harm import full_at_byte

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """Return what mounts a file system of so many bytes; skips where that is not allowed."""
    libc, mounted = ctypes.CDLL(None, use_errno=True), []

    def mount(size):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={size}".encode()) != 0:
            pytest.skip(f"no file system can be mounted ({os.strerror(ctypes.get_errno())})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        libc.umount2(os.fsencode(place), 2)


@pytest.fixture(autouse=True)
def _quota_is_no_signal():
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN  # as Python has it


# What it takes for a file to be cut: most files are tiny, and the first is the one that is too long.
BYTES = {"phantom": 900, "evaluate": 300, "split-tumors": 60, "check": 20, "export bundle": 900, "export nnunet": 60}


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("how", ["disk", "quota"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_full_disk_says_so_and_leaves_nothing(
    files, tmp_path, monkeypatch, capsys, small_disk, command, how
):
    monkeypatch.chdir(files)
    place = tmp_path / "place"
    if how == "disk":
        place = small_disk(4096 * (3 if command.startswith("export") else 2))
        (place / "filling").write_bytes(bytes(4096))
        assert call(command, place / "deep/out") == 1
        assert [path.name for path in place.iterdir()] == ["filling"]
    else:
        place.mkdir()
        with full_at_byte(BYTES.get(command, 100)):
            assert call(command, place / "deep/out") == 1
        assert list(place.iterdir()) == []
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("Error: ") == 1
    assert re.search(r"(no space left on device|file too large)", said)
    assert f"{place}/deep/out" in said


@pytest.mark.parametrize("room", [300_000, 700_000])
def test_a_training_on_a_full_disk_keeps_its_last_checkpoint(copied, cohort, small_disk, tmp_path, room):
    from stages.autoencoder.train import build
    from tests.stages.builds import run

    disk = small_disk(3 * MIB)
    shutil.copytree(tmp_path / "runs", disk / "runs")
    last = disk / "runs/autoencoder/default/last.ckpt"
    free = shutil.disk_usage(disk).free
    (disk / "filling").write_bytes(bytes(max(0, free - room)))
    before = last.read_bytes()
    config = config_of(cohort, tmp_path, f"runs_dir={disk}/runs")
    with pytest.raises((DiffTumorError, OSError), match=r"(?i)no space left"):
        run(config, build)
    assert check_checkpoint(last) >= 4
    assert last.read_bytes() == before or check_checkpoint(last) > 4
    assert check_checkpoint(last.with_name("previous.ckpt")) >= 2
    assert [path.name for path in last.parent.iterdir() if path.name.startswith(".")] == []
    (disk / "filling").unlink()
    run(config, build)
