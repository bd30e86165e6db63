"""Trainings that are killed while they save, and resumed: ``python -m tests.faults.trainings COHORT FOLDER``.

Each is a copy of this process, which has imported everything and trained nothing: PyTorch cannot go on in a copy of a
process that has. Prints a line of JSON for each kill.
"""

import json
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from stages.autoencoder.train import build
from stages.run.callbacks import KeepLastAndBest
from tests.faults.harm import forked, killed_at_byte, killed_at_call
from tests.stages.builds import composed, run
from tests.stages.conftest import TINY

# (save, call or byte): the first has nothing before it, the second no checkpoint but one, the others both.
_PLACES = (4, 5, 8, 9, 13, 15, 16, 17, 21)
CALLS = (*((1, call) for call in (1, 4, 5, 14)), *((save, call) for save in (2, 3) for call in _PLACES))
BYTES = (20_000, 150_000, 400_000)
KILLS = len(CALLS) + len(BYTES)


def train(cohort: Path, folder: Path, *, save: int = 0, call: int | None = None, byte: int | None = None) -> None:
    """Train; die at a call, or byte, of a save."""
    real, saves = KeepLastAndBest.save, iter(range(1, 100))

    def dying(keep, trainer):
        with ExitStack() as stack:
            if next(saves) == save:
                stack.enter_context(killed_at_byte(byte) if call is None else killed_at_call(call))
            real(keep, trainer)

    KeepLastAndBest.save = dying
    places = (f"data.root={cohort}", f"runs_dir={folder}/runs", f"checkpoints_dir={folder}/checkpoints")
    run(composed("autoencoder", [*TINY, *places]), build)


def files(folder: Path) -> dict[str, bytes]:
    """Return the weights of a finished run, and the names of what is in its folder."""
    weights = {file.parent.name: file.read_bytes() for file in folder.glob("checkpoints/*/model.safetensors")}
    run_folder = folder / "runs/autoencoder/default"
    names = sorted(path.name for path in run_folder.iterdir() if path.name != "tensorboard")
    return {**weights, "names": ",".join(names).encode()}


def main(cohort: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    composed("autoencoder", list(TINY))  # once for all
    assert forked(lambda: train(cohort, folder / "whole")) == 0
    whole = files(folder / "whole")
    kills = [{"save": save, "call": call} for save, call in CALLS] + [{"save": 2, "byte": byte} for byte in BYTES]
    for kill in kills:
        place = folder / "parted"
        shutil.rmtree(place, ignore_errors=True)
        ended = forked(lambda kill=kill, place=place: train(cohort, place, **kill))
        resumed = forked(lambda place=place: train(cohort, place))
        signals = (-signal.SIGKILL, -signal.SIGXFSZ)
        print(json.dumps({**kill, "ended": ended, "killed": ended in signals, "resumed": resumed,
                          "same": resumed == 0 and files(place) == whole}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
