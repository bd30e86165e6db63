"""What killed commands leave: finished or removed by the next one, never a mixture, and never what a living one has."""

import os
import signal
import subprocess
import sys
import time

import pytest

from difftumor.files.processes import mark
from difftumor.files.recovery import recover
from difftumor.files.results import ResultFolder
from difftumor.files.writing import written_whole
from tests.conftest import REPOSITORY

WRITE = """
import os, signal, sys, time
from pathlib import Path
from difftumor.files.writing import folder_written_whole
from difftumor.files.processes import ended_cleanly
folder, keep, at = Path(sys.argv[1]), sys.argv[2] == "keep", int(sys.argv[3])
moves = 0
def dying(real):
    def move(*places):
        global moves
        real(*places)
        moves += 1
        if moves == at:
            os.kill(os.getpid(), signal.SIGKILL)
    return move
os.replace, os.rename = dying(os.replace), dying(os.rename)
with ended_cleanly(), folder_written_whole(folder, keep_others=keep, last="record.json" if keep else None) as staging:
    (staging / "deep").mkdir()
    for name in ("a", "deep/b", "record.json"):
        (staging / name).write_text("new")
    if at == 0:
        print("writing", flush=True)
        time.sleep(60)
"""


def writing(folder, how, at):
    words = [sys.executable, "-c", WRITE, str(folder), how, str(at)]
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def old_result(folder):
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b", "record.json", "mine"):
        (folder / name).write_text("old")
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD = {"a": "old", "deep/b": "old", "record.json": "old", "mine": "old"}
NEW = {"a": "new", "deep/b": "new", "record.json": "new"}


@pytest.mark.parametrize("name", ["out", "o" * 200])
@pytest.mark.parametrize(
    ("how", "at", "expected"),
    [*(("keep", at, {**OLD, **NEW}) for at in range(1, 5)), ("whole", 1, OLD), ("whole", 2, NEW)],
)
def test_a_kill_between_moves_leaves_no_mixture_once_the_next_command_begins(tmp_path, name, how, at, expected):
    out = old_result(tmp_path / name)
    assert writing(out, how, at).wait() == -signal.SIGKILL
    assert any(path.name.startswith(".") for path in tmp_path.rglob("*"))
    ResultFolder(what="result").check(out)  # as commands begin with
    assert files(tmp_path) == {f"{name}/{file}": text for file, text in expected.items()}
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def test_what_was_half_written_is_removed_and_what_is_being_written_is_not(tmp_path):
    out = old_result(tmp_path / "out")
    process = writing(out, "keep", 0)
    try:
        assert process.stdout.readline() == "writing\n"
        left = [path for path in out.iterdir() if path.name.startswith(".")]
        recover(out)
        assert left[0].is_dir()
        process.kill()
        process.wait()
        recover(out)
    finally:
        process.kill()
    assert files(out) == OLD


def test_a_terminated_command_cleans_up(tmp_path):
    process = writing(tmp_path / "deep/out", "keep", 0)
    assert process.stdout.readline() == "writing\n"
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("age_s", "stays"), [(3600, True), (3 * 24 * 3600, False)])
def test_what_another_machine_has_left_goes_after_a_day(tmp_path, age_s, stays):
    out = tmp_path / "out"
    left = tmp_path / f".out.{mark().replace(mark()[:8], 'ffffffff')}"
    left.mkdir()
    os.utime(left, (time.time() - age_s,) * 2)
    recover(out)
    assert left.exists() == stays


def test_hidden_files_of_others_stay(tmp_path):
    names = [".cache", ".out.old.x", ".git", ".71.0123abcd.a"]
    for name in names:
        (tmp_path / name).mkdir()
    recover(tmp_path)
    recover(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with written_whole(tmp_path / "a") as temporary:
        temporary.touch()
        recover(tmp_path)
        assert temporary.exists()
