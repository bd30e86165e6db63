"""Two jobs never write one folder, of a run or of results, and one that died keeps nobody out."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from difftumor.errors import ConfigError, TrainingError
from difftumor.files.lock import LAPSE_S, RENEW_S, FolderLock, Holder, holder_of, locked
from difftumor.files.processes import is_alive, marks_of
from difftumor.files.results import ResultFolder
from difftumor.files.writing import folder_written_whole
from stages.autoencoder.train import build
from tests.conftest import REPOSITORY
from tests.conftest import run as command
from tests.stages.builds import run

HOLD = """
import sys, time
from pathlib import Path
from difftumor.errors import ConfigError
from difftumor.files.lock import locked
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except ConfigError as error:
    print(error, flush=True)
"""
HERE = Holder.here()
ELSEWHERE = {"host": "other", "machine": "other boot"}


def holding(folder, seconds, **environment):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True,
                            cwd=REPOSITORY, env={**os.environ, **environment})  # fmt: skip


@contextmanager
def held_by_process(folder, **environment):
    process = holding(folder, 100, **environment)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs/diffusion/it"


@pytest.fixture
def left(folder):
    """Leave the lock of another holder, renewed so many seconds ago."""

    def leave(age_s=0.0, **changes):
        lock = FolderLock(folder)
        lock.file.parent.mkdir(parents=True, exist_ok=True)
        lock.file.write_text(json.dumps(asdict(replace(HERE, token="theirs", **changes))))
        os.utime(lock.file, (time.time() - age_s,) * 2)
        return lock

    return leave


def refused(folder, **options):
    try:
        with locked(folder, **options):
            return False
    except ConfigError:
        return True


def test_a_second_process_is_refused_until_the_first_has_ended(folder):
    with held_by_process(folder) as process:
        place = f"{folder} is in use by process {process.pid} on {HERE.host}: wait .*, or give another folder"
        with pytest.raises(ConfigError, match=place), locked(folder):
            pass
        process.terminate()
        process.wait()
        assert (folder.parent / ".it.lock").exists()
        with locked(folder):
            pass
    assert list(folder.parent.iterdir()) == []


def test_a_killed_process_keeps_nobody_out_even_before_it_was_waited_for(folder):
    with held_by_process(folder) as process:
        process.send_signal(signal.SIGKILL)
        while Holder(**json.loads((folder.parent / ".it.lock").read_text())).is_alive:
            time.sleep(0.01)
        assert not refused(folder)


def test_a_number_that_another_process_has_now_keeps_nobody_out(left, folder):
    left(started="before")
    assert not refused(folder)


@pytest.mark.parametrize(("age_s", "expected"), [(0, True), (LAPSE_S - 60, True), (LAPSE_S + 60, False)])
def test_the_lock_of_another_machine_lapses(left, folder, age_s, expected):
    left(age_s, **ELSEWHERE)
    assert refused(folder) == expected


def test_the_lock_of_this_machine_does_not_lapse_while_its_process_lives(left, folder):
    left(10 * LAPSE_S)
    assert refused(folder)


@pytest.mark.parametrize(
    ("changes", "by_job", "expected"),
    [
        ({**ELSEWHERE, "restarts": 0}, False, False),  # requeued on another node
        ({**ELSEWHERE, "restarts": 1}, False, True),  # two steps at once
        ({**ELSEWHERE, "restarts": 1}, True, False),  # a later step of a training
        ({**ELSEWHERE, "restarts": 2}, False, True),  # this is the old one
        ({"restarts": 0}, False, False),  # requeued on this node, where the old process is just being ended
        ({"restarts": 1}, True, True),  # two steps at once
        ({**ELSEWHERE, "job": "8"}, True, True),
        ({**ELSEWHERE, "cluster": "other"}, True, True),
    ],
)
def test_requeues_of_a_job_share_the_lock_and_steps_that_of_a_run(left, folder, monkeypatch, changes, by_job, expected):
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "1", "CLUSTER_NAME": "c"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", "")  # nobody to ask
    left(**{"job": "7", "cluster": "c", **changes})
    assert refused(folder, by_job=by_job) == expected


@pytest.mark.parametrize(("restarts", "recovered"), [("1", True), ("0", False)])
def test_a_requeued_job_finishes_at_once_what_it_left_on_another_node(left, folder, monkeypatch, restarts, recovered):
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": restarts}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    left(job="7", **ELSEWHERE)
    ready = folder / f".{marks_of(ELSEWHERE['machine'], HERE.pid, HERE.started)}01234567.ready"
    ready.mkdir(parents=True)
    (ready / "summary.json").touch()
    with locked(folder, by_job=True):
        assert [path.name for path in folder.iterdir()] == ["summary.json" if recovered else ready.name]


def test_a_command_that_stood_still_does_not_write_over_the_other_one(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    now = time.time() + 3 * RENEW_S

    def taken_over(lock, take=FolderLock.take):
        take(lock)
        lock.file.write_text(json.dumps(asdict(replace(HERE, token="theirs", **ELSEWHERE))))
        monkeypatch.setattr("difftumor.files.lock.time.time", lambda: now)

    monkeypatch.setattr(FolderLock, "take", taken_over)
    assert command("phantom", out, "--cases", 1) == 1
    assert "out is now in use by process" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo RUNNING", True),
        ("echo COMPLETING", True),
        ("true", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", True),
    ],
)
def test_a_job_that_slurm_says_is_over_keeps_nobody_out(left, folder, tmp_path, monkeypatch, answer, expected):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    left(job="7", **ELSEWHERE)
    assert refused(folder) == expected


def test_of_many_that_find_a_lock_left_behind_one_takes_it(left, folder):
    left(2 * LAPSE_S, **ELSEWHERE)
    processes = [holding(folder, 3) for _ in range(6)]
    said = [process.communicate()[0] for process in processes]
    assert sum(text == "held\n" for text in said) == 1, said
    assert list(folder.parent.iterdir()) == []


def test_who_stood_still_for_too_long_finds_out_before_writing(left, folder, monkeypatch):
    with locked(folder) as lock:
        lock.check()
        left(**ELSEWHERE)
        lock.check()  # renewed just now: not looked at
        now = time.time() + 3 * RENEW_S
        monkeypatch.setattr("difftumor.files.lock.time.time", lambda: now)
        with pytest.raises(TrainingError, match=rf"{folder} is now in use by process {HERE.pid} on other"):
            lock.check()
    assert lock.file.exists()  # theirs


def test_the_lock_is_renewed_while_it_is_held(folder, monkeypatch):
    monkeypatch.setattr("difftumor.files.lock.RENEW_S", 0.01)
    with locked(folder) as lock:
        os.utime(lock.file, (0, 0))
        while lock.file.stat().st_mtime == 0:
            time.sleep(0.01)
    assert not lock.file.exists()


def test_a_file_system_without_links_will_do(folder, monkeypatch):
    def link(source, target):
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    with locked(folder):
        assert refused(folder)
    assert not refused(folder)


def test_a_damaged_lock_is_replaced(left, folder):
    left().file.write_text("{")
    assert not refused(folder)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigError, match=r"runs/it cannot be written \(not a directory\): give another folder"):
        FolderLock(tmp_path / "runs" / "it").take()


def test_a_run_in_use_is_left_alone(tiny_config, tmp_path):
    folder = tmp_path / "runs/autoencoder/default"
    with held_by_process(folder), pytest.raises(ConfigError, match=f"{folder} is in use by .* another name="):
        run(tiny_config(), lambda options: pytest.fail("read data"))
    run(tiny_config("training.steps=2"), build)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["default"]


def test_a_task_of_an_array_is_a_job_of_its_own(monkeypatch):
    """One task has the array's own number: squeue would list all tasks of it, and the lock would outlive its holder."""
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(name, value)
    assert Holder.here().job == "7_2"
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name)
    assert Holder.here().job == "7"


COMMANDS = [
    ["phantom", "OUT"],
    ["synthesize", "--ct", "x", "--organ", "liver", "--out", "OUT"],
    ["synthesize", "--cases", "x", "--organ", "liver", "--out", "OUT"],
    ["evaluate", "--predictions", "x", "--labels", "x", "--organ", "liver", "--out", "OUT"],
    ["export", "nnunet", "OUT", "--cases", "x"],
    ["import-published", "segmenter", "unet", "x", "OUT", "--organ", "liver"],
    ["check", "x", "--out", "OUT"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_a_command_leaves_alone_where_another_writes(left, folder, capsys, words):
    lock = left()
    assert command(*(str(folder) if word == "OUT" else word for word in words)) == 1
    assert f"{folder} is in use by process {HERE.pid}" in capsys.readouterr().err
    assert list(folder.parent.iterdir()) == [lock.file]


def test_a_command_gives_its_lock_up(tmp_path, capsys):
    out = tmp_path / "deep/out"
    assert command("phantom", out, "--cases", 1, "--shape", 3) == 1  # too small
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_of_another_user_is_alive_even_if_nothing_is_told_of_it(monkeypatch):
    def kill(pid, signum):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert is_alive(2**30, "5")  # of which there is no /proc, as with hidepid
    assert not is_alive(os.getpid(), "before")


@pytest.mark.parametrize("first", ["beside", "inside"])
def test_users_who_may_not_write_the_same_places_keep_each_other_out(tmp_path, monkeypatch, first):
    access = os.access
    inside_only = lambda place, mode: place != tmp_path.parent  # noqa: E731
    monkeypatch.setattr(os, "access", access if first == "beside" else inside_only)
    with locked(tmp_path) as lock:
        monkeypatch.setattr(os, "access", inside_only if first == "beside" else access)
        assert refused(tmp_path)
        assert holder_of(tmp_path) == lock.holder
    assert list(tmp_path.iterdir()) == []
    assert not refused(tmp_path)


def test_a_folder_whose_surroundings_cannot_be_written_holds_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path.parent)
    with locked(tmp_path) as lock:
        assert lock.file == tmp_path / ".lock"
        ResultFolder(what="export", holds=("none",)).check(tmp_path)
        with folder_written_whole(tmp_path) as staging:
            (staging / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
