"""Builds of the stages as tests call them: without a run, or with one that dies."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.config.compose import compose_config
from stages.config.kinds import STAGES as KINDS
from stages.config.options import RunOptions
from stages.config.reading import read_options, to_plain
from stages.run.run import Stage, run_stage

Build = Callable[[RunOptions], Stage]


class Crash(Exception):  # noqa: N818
    """What a process that dies is replaced with."""


def crashing_at(build: Build, step: int) -> Build:
    """Return a build whose module fails at a step, as if the process had died there."""

    def crashing_build(options: RunOptions) -> Stage:
        built = build(options)
        inner = built.module.training_step

        def training_step(batch, batch_idx):
            if built.module.steps_done == step:
                raise Crash
            return inner(batch, batch_idx)

        built.module.training_step = training_step
        return built

    return crashing_build


def built_from(config: DictConfig, build: Build) -> Stage:
    """Return what a build makes of a config, checked."""
    stage = build(options_of(config))
    found = stage.check()
    return replace(stage, check=lambda: found)


GROUPS = ("experiment", "ablation", "trainer", "data", "organ", "backbone", "tumor_stage", "+debug")


@cache
def _of_groups(stage: str, choices: tuple[str, ...]) -> DictConfig:
    return compose_config(stage, choices)


def composed(stage: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config as ``compose_config`` does, which takes half a second: once for each choice of groups.

    Other overrides change a copy, as Hydra does; what is not as simple is left to ``compose_config``.
    """
    choices = tuple(each for each in overrides if each.partition("=")[0] in GROUPS)
    simple = [each for each in overrides if each not in choices]
    if any(each.startswith(("+", "~")) or "{" in each for each in simple):
        return compose_config(stage, overrides)
    config = copy.deepcopy(_of_groups(stage, choices))
    try:
        for override in OverridesParser.create().parse_overrides(simple):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException):
        return compose_config(stage, overrides)
    return config


def options_of(config: DictConfig) -> RunOptions:
    """Return a stage's config as its options."""
    return read_options(KINDS[config.stage], to_plain(config))


def run(config: DictConfig, build: Build, *, job: str | None = None) -> Path:
    """Train a stage and return its artifact."""
    return run_stage(config, KINDS[config.stage], build, job=job)
