"""The clock that says which share of a step tumors take."""

import time

import pytest
import torch

from stages.segmentation.tumors import Stopwatch

CPU = torch.device("cpu")


def test_it_adds_up_what_it_measures_and_begins_anew():
    watch = Stopwatch()
    for _ in range(2):
        with watch.running(CPU):
            time.sleep(0.02)
    time.sleep(0.05)
    watch.add(1.0)
    assert 1.04 <= watch.take() < 1.09 + 0.5  # a busy machine may sleep longer, but never shorter
    assert watch.take() == 0


def test_a_start_without_an_end_and_an_end_without_a_start_count_nothing():
    watch = Stopwatch()
    watch.stop()
    watch.start(CPU)
    assert watch.take() == 0
    watch.start(CPU)
    watch.stop()
    assert watch.take() < 0.5


def test_a_block_that_fails_is_measured_too():
    watch = Stopwatch()

    def fail():
        time.sleep(0.01)
        raise RuntimeError

    with pytest.raises(RuntimeError), watch.running(CPU):
        fail()
    assert watch.take() >= 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_measures_the_stream():
    device = torch.device("cuda")
    watch = Stopwatch()
    a = torch.randn(4096, 4096, device=device)
    with watch.running(device):
        for _ in range(20):
            a = (a @ a).clamp(-1, 1)
    started = time.perf_counter()
    seconds = watch.take()
    assert 0 < seconds < time.perf_counter() - started + 1
