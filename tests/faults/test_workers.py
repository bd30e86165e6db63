"""Work in several processes: one that is killed takes its own piece alone, and none outlives who asked for it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from difftumor.files.processes import started
from difftumor.files.workers import in_processes
from tests.conftest import REPOSITORY, contents, run
from tests.faults.pieces import crowded, doubled, failing
from tests.nifti import write_nifti
from tests.segmentation.makers import AFFINE, mask, organ, scan


@pytest.mark.parametrize("lethal", [(), (3,), (0, 4)])
def test_only_the_piece_whose_process_is_killed_is_lost(lethal):
    found = dict(in_processes(doubled, [(number, lethal) for number in range(6)], jobs=2))
    expected = {(number, lethal): None if number in lethal else 2 * number for number in range(6)}
    assert found == expected


def test_a_piece_that_can_be_done_alone_is_done(tmp_path):
    found = dict(in_processes(crowded, [(number, tmp_path) for number in range(4)], jobs=2))
    assert sorted(found.values()) == [0, 1, 2, 3]


def test_an_error_ends_everything_and_nothing_further_is_begun(tmp_path):
    with pytest.raises(ValueError, match=r"^\d$"):
        list(in_processes(failing, [(number, tmp_path) for number in range(40)], jobs=2))
    assert len(list(tmp_path.iterdir())) < 6


ASK = """
import sys
from pathlib import Path
from difftumor.files.workers import in_processes
from tests.faults.pieces import waiting
if __name__ == "__main__":
    list(in_processes(waiting, [(Path(sys.argv[1]),)] * 2, jobs=2))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the start of processes is read from /proc")
def test_processes_end_when_who_asked_is_killed(tmp_path):
    (tmp_path / "ask.py").write_text(ASK)
    (tmp_path / "begun").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    asking = subprocess.Popen([sys.executable, tmp_path / "ask.py", tmp_path / "begun"], env=environment)
    while len(begun := [file.name.split() for file in (tmp_path / "begun").iterdir()]) < 2:
        assert asking.poll() is None
        time.sleep(0.05)
    asking.kill()
    asking.wait()
    while any(started(int(pid)) == start for pid, start in begun):
        time.sleep(0.05)


def kill_a_child(killed):
    """Kill a process that this one has started to work, once it works."""
    own = os.getpid()
    while not killed:
        time.sleep(0.05)
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words, state = (place / "cmdline").read_text(), (place / "stat").read_text()
                parent, used = int(state.rpartition(")")[2].split()[1]), int(state.rpartition(")")[2].split()[11])
            except OSError:
                continue
            if parent == own and "spawn_main" in words and used > 100:  # a second: it has imported what it needs
                os.kill(int(place.name), signal.SIGKILL)
                killed.append(place.name)
                return


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="children are looked up in /proc")
@pytest.mark.parametrize("command", ["evaluate", "synthesize --cases"])
def test_a_command_of_which_a_process_is_killed_makes_what_it_would_have(tmp_path, command):
    labels = organ()
    labels[8:11, 8:11, 6:9] = 2
    for seed, case in enumerate("abcd"):
        scan(tmp_path / "cts" / f"{case}.nii.gz", seed)
        mask(tmp_path / "masks" / f"{case}.nii.gz")
        for name in ("labels", "predictions"):
            write_nifti(
                tmp_path / name / f"{case}.nii.gz", np.roll(labels, seed, 0) if name == "labels" else labels, AFFINE
            )
    words = {
        "evaluate": ("evaluate", "--predictions", tmp_path / "predictions", "--labels", tmp_path / "labels",
                     "--organ", "liver", "--worst", 0),
        "synthesize --cases": ("synthesize", "--cases", tmp_path / "cts", "--organ-mask", tmp_path / "masks",
                               "--organ", "liver", "--generator", "handcrafted", "--size", "tiny"),
    }[command]  # fmt: skip
    killed = []
    threading.Thread(target=kill_a_child, args=(killed,), daemon=True).start()
    try:
        assert run(*words, "--jobs", 2, "--out", tmp_path / "several") == 0
        assert killed
    finally:
        killed.append(None)
    assert run(*words, "--out", tmp_path / "one") == 0
    several, one = contents(tmp_path / "several"), contents(tmp_path / "one")
    assert several.keys() == one.keys()
    compared = [name for name in one if name.endswith((".nii.gz", ".csv"))]
    assert compared
    assert {name: several[name] for name in compared} == {name: one[name] for name in compared}
