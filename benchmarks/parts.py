"""What the benchmarks of both stages measure parts with."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from measuring import PeakMemory, ceilings, machine_name, summary, times, work

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Parts(Protocol):
    """Networks and inputs, and one function per part."""

    def __getitem__(self, name: str) -> Callable[[], Any]:
        """Return the function of a part."""
        ...

    def compile(self) -> None:
        """Compile the networks."""
        ...


def autocast(options: Namespace) -> torch.autocast:
    """Return the context of ``--precision`` on ``--device``."""
    dtype = DTYPES[options.precision]
    return torch.autocast(options.device, dtype=dtype, enabled=dtype != torch.float32)


def inference(run: Callable[[], Any], options: Namespace) -> Callable[[], Any]:
    """Return the function without autograd and in ``--precision``."""

    def without_autograd() -> Any:
        with torch.no_grad(), autocast(options):
            return run()

    return without_autograd


def measure(
    part: str,
    options: Namespace,
    *,
    make: Callable[[Namespace], Parts],
    trainings: Mapping[str, Callable[[Namespace], dict[str, Any]]],
) -> dict[str, Any]:
    """Measure one part, or the machine's "ceilings", in this process, which should be a fresh one.

    Args:
        part: Its name.
        options: The command line.
        make: Makes the parts.
        trainings: Parts that measure themselves.
    """
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if part == "ceilings":
        return {"machine": machine_name(device), **ceilings(device, DTYPES[options.precision])}
    if part in trainings:
        return trainings[part](options)
    parts = make(options)
    run = parts[part]
    memory = PeakMemory(device)
    if options.compile:
        parts.compile()
    figures = summary(times(run, device=device, repeats=options.repeats, warmups=options.warmups)) | memory.figures()
    # Counted on the plain operations: the compiler's kernels are not seen.
    with torch.compiler.set_stance("force_eager"):
        return figures | work(run)
