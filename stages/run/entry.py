"""The command line of a stage: Hydra, with errors as one sentence."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from difftumor.errors import ConfigError, DiffTumorError
from stages.run.folder import flatten
from stages.run.given import Given
from stages.run.reading import read_options, to_plain
from stages.run.run import OptionsT, Stage, run_stage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def compose_config(stage: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a stage's config as its command line does.

    Args:
        stage: ``autoencoder``, ``diffusion`` or ``segmentation``.
        overrides: What the user types, such as ``experiment=demo``.

    Raises:
        ConfigError: An override names an unknown option or group, or cannot be parsed.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=stage):
        try:
            # A search path of the user's own replaces ours, as on the command line.
            mine = [] if any(item.startswith("hydra.searchpath=") for item in overrides) else [_own_groups(stage)]
            return compose(stage, overrides=[*mine, *overrides])
        except (HydraException, ValueError) as error:  # Hydra refuses some group choices with the latter
            raise ConfigError(_explain(error, stage)) from error


def compose_options(stage: str, kind: type[OptionsT], overrides: Sequence[str] = ()) -> OptionsT:
    """Compose a stage's config and read it as its options.

    Args:
        stage: Name of the stage.
        kind: Its options.
        overrides: What the user types.

    Raises:
        ConfigError: As ``compose_config``, or an option is of the wrong type or out of range.
    """
    return read_options(kind, to_plain(compose_config(stage, overrides)))


def command_line(stage: str, kind: type[OptionsT], build: Callable[[OptionsT], Stage]) -> None:
    """Run a stage from ``sys.argv``; prints one sentence and exits with 1 when something is wrong.

    Args:
        stage: Name of the stage and of its file in ``configs/``.
        kind: Its options.
        build: Makes the stage from them.
    """
    overrides = [item for item in sys.argv[1:] if not item.startswith("-")]
    if len(overrides) == len(sys.argv) - 1:  # --help, --multirun and other flags are Hydra's own
        try:
            compose_config(stage, overrides)
        except DiffTumorError as error:
            _fail(error)
    if not any(item.startswith(("--config-dir", "-cd")) for item in sys.argv):
        # Each stage has experiments of its own in configs/<stage>/experiment/.
        sys.argv[1:1] = ["--config-dir", str(CONFIGS / stage)]

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=stage)
    def task(config: DictConfig) -> None:
        try:
            run_stage(config, kind, build, given=given_by(stage, HydraConfig.get().overrides.task))
        except DiffTumorError as error:
            _fail(error)

    task()


def given_by(stage: str, overrides: Sequence[str]) -> Given:
    """Return what a stage's command line gives by ``overrides``."""
    return Given.of(overrides, (CONFIGS / stage, CONFIGS))


def _own_groups(stage: str) -> str:
    """Return the override that lets a stage's config find the groups that it does not share."""
    return f"hydra.searchpath=[file://{CONFIGS / stage}]"


def _fail(error: DiffTumorError) -> None:
    sys.stderr.write(f"Error: {error}\n")
    sys.exit(1)


def _explain(error: Exception, stage: str) -> str:
    """One sentence from Hydra's several lines."""
    text = str(error)
    listing = f"`python -m stages.{stage} --cfg job` lists the options"
    if match := re.search(r"Could not (?:override|append to config\.|delete from config\.) ?'?([\w./@]+)'?", text):
        close = difflib.get_close_matches(match[1], _option_names(stage), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"Unknown option '{match[1]}': {hint}{listing}."
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        available = re.search(r"Available options in '[^']*':\n((?:\t\S+\n)+)", text)
        choices = f"choose from {', '.join(available[1].split())}" if available else f"add configs/{match[1]}.yaml"
        return f"There is no {group} '{option}': {choices}."
    reason = text.splitlines()[0].rstrip(".")
    return f"The options cannot be composed ({reason}): {listing}."


def _option_names(stage: str) -> list[str]:
    values = OmegaConf.to_container(compose(stage, overrides=[_own_groups(stage)]))
    leaves = list(flatten({str(k): v for k, v in values.items()})) if isinstance(values, dict) else []
    return leaves + sorted({name.rpartition(".")[0] for name in leaves} - {""})
