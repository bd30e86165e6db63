"""What a job is, and what its command line is on the nodes and GPUs that it gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftumor.errors import ConfigError

# Modules that train: on several GPUs or nodes they run once per GPU, all others run once.
STAGES = ("stages.autoencoder", "stages.diffusion", "stages.segmentation")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process, or with several GPUs or nodes one per rank: ``python -m module words``.

    Args:
        name: Unique in a submission, and SLURM's name of the job.
        module: ``stages.diffusion``, ``difftumor``, ``studies.transfer`` and so on.
        words: Its command line.
        needs: Names of the jobs that must have ended well before.
        gpu: False for what runs without GPUs, such as tables.
    """

    name: str
    module: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    gpu: bool = True

    @property
    def trains(self) -> bool:
        """Whether this is a stage."""
        return self.module in STAGES

    def placed(self, *, nodes: int, gpus: int) -> tuple[str, ...]:
        """Return the command line with what a stage needs on so many nodes of so many GPUs.

        What the user says about the trainer stays.
        """
        if not self.trains or nodes * gpus <= 1:
            return self.words
        options = {"trainer.devices": str(gpus), "trainer.num_nodes": str(nodes)}
        given = {word.lstrip("+").partition("=")[0] for word in self.words}
        return (*self.words, *(f"{name}={value}" for name, value in options.items() if name not in given))


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job as the scheduler knows it.

    Args:
        name: Of the job.
        id: The scheduler's.
        log: What it prints.
        errors: What it prints to the error stream.
    """

    name: str
    id: str
    log: Path
    errors: Path


def check_order(jobs: Sequence[Job], queued: Collection[str]) -> None:
    """Refuse jobs whose names are not unique, or that come before what they need.

    Raises:
        ConfigError: Names the job.
    """
    known = set(queued)
    for job in jobs:
        if missing := [name for name in job.needs if name not in known]:
            raise ConfigError(f"Job {job.name} needs {missing[0]}: submit that job before it, or with it and ahead.")
        if job.name in known - set(queued):
            raise ConfigError(f"Two jobs are called {job.name}: give each a name of its own.")
        known.add(job.name)


def needed_ids(job: Job, ids: Mapping[str, str]) -> tuple[str, ...]:
    """Return the scheduler's ids of what a job needs, each once."""
    return tuple(dict.fromkeys(ids[name] for name in job.needs))
