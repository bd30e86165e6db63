"""Builds of the stages as tests call them: without a run, or with one that dies."""

from collections.abc import Callable

from omegaconf import DictConfig

from stages.run.run import Stage
from stages.run.settings import Settings, to_plain

Build = Callable[[Settings], Stage]


class Crash(Exception):  # noqa: N818
    """What a process that dies is replaced with."""


def crashing_at(build: Build, step: int) -> Build:
    """Return a build whose module fails at a step, as if the process had died there."""

    def crashing_build(settings: Settings) -> Stage:
        built = build(settings)
        inner = built.module.training_step

        def training_step(batch, batch_idx):
            if built.module.steps_done == step:
                raise Crash
            return inner(batch, batch_idx)

        built.module.training_step = training_step
        return built

    return crashing_build


def built_from(config: DictConfig, build: Build) -> Stage:
    """Return what a build makes of a config."""
    return build(Settings(to_plain(config)))
