"""Builds of the stages as tests call them: without a run, or with one that dies."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from stages.autoencoder.options import AutoencoderOptions
from stages.diffusion.options import DiffusionOptions
from stages.run.options import RunOptions
from stages.run.reading import read_options, to_plain
from stages.run.run import Stage, run_stage
from stages.segmentation.options import SegmentationOptions

Build = Callable[[RunOptions], Stage]
KINDS = {"autoencoder": AutoencoderOptions, "diffusion": DiffusionOptions, "segmentation": SegmentationOptions}


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
    """Return what a build makes of a config."""
    return build(options_of(config))


def options_of(config: DictConfig) -> RunOptions:
    """Return a stage's config as its options."""
    return read_options(KINDS[config.stage], to_plain(config))


def run(config: DictConfig, build: Build) -> Path:
    """Train a stage and return its artifact."""
    return run_stage(config, KINDS[config.stage], build)
