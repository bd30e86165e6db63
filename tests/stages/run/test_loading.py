"""Processes that load: signals, and what is said when one is lost."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from functools import partial
from multiprocessing import sharedctypes

import pytest

from difftumor.datasets.cases import Case
from difftumor.errors import TrainingError
from stages.autoencoder.train import build
from stages.run.loading import LoadingProcess, Noting, _kill_if_stuck, _state, lost_loading_process
from tests.stages.builds import run


def test_a_process_that_loads_is_ended_by_the_training_alone():
    inherited = {signum: signal.signal(signum, lambda *_: os._exit(3)) for signum in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        processes = [LoadingProcess(target=time.sleep, args=(100,), daemon=True) for _ in range(3)]
        for process in processes:
            process.start()
            subprocess.run(["kill", "-s", "USR2", str(process.pid)], check=True)
            subprocess.run(["kill", str(process.pid)], check=True)
        processes[0].join(0.2)
        assert [process.exitcode for process in processes] == [None] * 3
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for signum, handler in inherited.items():
            signal.signal(signum, handler)
    assert [process.exitcode for process in processes] == [0] * 3


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="states of processes are read from /proc")
def test_a_process_that_stands_still_is_killed_and_one_that_waits_is_not():
    processes = [multiprocessing.Process(target=time.sleep, args=(100,), daemon=True) for _ in range(3)]
    for process, since in zip(processes, (0.0, time.monotonic() - 50, time.monotonic() - 5), strict=True):
        process.start()
        reads = sharedctypes.RawValue("d", since)
        watch = partial(_kill_if_stuck, process.pid, reads, look_s=0.05, stopped_s=0.2, read_s=40)
        threading.Thread(target=watch, daemon=True).start()
    os.kill(processes[0].pid, signal.SIGSTOP)
    for process in processes[:2]:
        process.join(30)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, -signal.SIGKILL, None]
    processes[2].kill()
    processes[2].join()
    assert _state(processes[2].pid) == ""


def test_a_process_that_has_the_number_of_one_that_ended_is_left_alone(monkeypatch):
    process = multiprocessing.Process(target=time.sleep, args=(100,), daemon=True)
    process.start()
    os.kill(process.pid, signal.SIGSTOP)
    starts = itertools.chain(["1"], itertools.repeat("2"))
    monkeypatch.setattr("stages.run.loading.started", lambda pid: next(starts))
    _kill_if_stuck(process.pid, sharedctypes.RawValue("d", 0.0), look_s=0.01, stopped_s=0.02)
    assert process.is_alive()
    process.kill()
    process.join()


class Ending:
    """Reads the first cases, and then ends its process as the system does when memory runs out."""

    def __init__(self, load):
        self.load = load

    def __call__(self, case):
        if isinstance(multiprocessing.current_process(), LoadingProcess) and case.id == "case1":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.load(case)


def test_a_training_whose_loading_process_is_killed_names_what_it_read(tiny_config, tmp_path, cohort):
    def ending(options):
        stage = build(options)
        stage.data.load = Ending(stage.data.load)
        return stage

    with pytest.raises(TrainingError) as caught:
        run(tiny_config("data.num_workers=1", "data.cache_rate=0", "trainer.validate_every_n_epochs=1000"), ending)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/runs/autoencoder/default stopped at step ")
    ended = "by signal Killed, often because memory has run out or a file server does not answer; it last read"
    assert f"{ended} {cohort}/imagesTr/case1.nii.gz: " in message
    assert message.endswith("data.num_workers, and rerun the same command to go on from the last checkpoint.")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "the loading process 7 was "
         "ended by signal Bus error, often because shared memory has run out"),
        ("DataLoader worker (pid 7) is killed by signal: Terminated. ", "the loading process 7 was ended by signal "
         "Terminated"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "the loading process 7, 8 was ended"),
        ("CUDA out of memory", None),
    ],
)  # fmt: skip
def test_only_errors_of_loading_processes_are_taken_for_such(error, said, monkeypatch):
    monkeypatch.setattr(LoadingProcess, "made", set())
    assert lost_loading_process(RuntimeError(error)) == said


def test_reading_is_the_same_with_a_note():
    assert Noting(lambda case: {"id": case.id})(Case(id="a", image="a.nii.gz")) == {"id": "a"}
