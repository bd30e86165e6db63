"""Time, memory, arithmetic and traffic of a function on the CPU or a GPU, and what the machine can do at most."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import machine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30


def summary(seconds: list[float]) -> dict[str, Any]:
    """Return median, quartiles and number of wall times."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return {"median_s": float(median), "quartiles_s": [float(low), float(high)], "repeats": len(seconds)}


def wait(device: torch.device) -> None:
    """Let the GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times(run: Callable[[], Any], *, device: torch.device, repeats: int, warmups: int) -> list[float]:
    """Return wall times in seconds, after runs that don't count."""
    seconds = []
    for i in range(warmups + repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        if i >= warmups:
            seconds.append(time.perf_counter() - start)
    return seconds


class PeakMemory:
    """Peak memory from here on, in GiB.

    On a GPU it is what PyTorch has allocated there, networks and inputs included. On the CPU it is the largest
    resident set of the process, which must be a fresh one: ``growth`` is what came on top of libraries, networks and
    inputs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / GIB
        else:
            self.before = _largest_resident_gib()

    def figures(self) -> dict[str, float]:
        """Return ``peak_gib`` and ``growth_gib``."""
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / GIB if on_gpu else _largest_resident_gib()
        return {"peak_gib": peak, "growth_gib": peak - self.before}


def forget_peak() -> None:
    """Reset the largest resident set of this process to its present size."""
    Path("/proc/self/clear_refs").write_text("5")


def _largest_resident_gib() -> float:
    # Unlike getrusage, which begins with what the parent had when it started this process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / GIB


class Traffic(TorchDispatchMode):
    """Sums up the bytes that operations read and write, as if nothing stayed in caches; an estimate."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its tensors, unless it only gives a view."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def work(run: Callable[[], Any]) -> dict[str, float]:
    """Return floating point operations (of convolutions and products) and bytes of one run."""
    with FlopCounterMode(display=False) as operations, Traffic() as traffic:
        run()
    return {"tflop": operations.get_total_flops() / 1e12, "traffic_gb": traffic.bytes / 1e9}


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return what this machine reaches in a large product of matrices and in a large copy."""
    on_gpu = device.type == "cuda"
    size, elements = (8192, 2**28) if on_gpu else (3072, 2**26)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = min(times(lambda: a @ b, device=device, repeats=10, warmups=3))
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    copy = min(times(lambda: target.copy_(source), device=device, repeats=10, warmups=3))
    return {"matmul_tflops": 2 * size**3 / product / 1e12, "copy_gbs": 2 * 4 * elements / copy / 1e9}


def machine_name(device: torch.device) -> str:
    """Return the processor's, or the card's, name and sizes."""
    if device.type != "cuda":
        return machine()
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory / GIB:.0f} GiB; {machine()}"
