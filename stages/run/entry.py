"""The command line of a stage: Hydra, with errors and interruptions as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from stages.config.compose import CONFIGS, OptionsT, compose_config, given_by, register_names
from stages.exit_status import reported
from stages.run.run import Stage, run_stage


def command_line(
    stage: str,
    kind: type[OptionsT],
    build: Callable[[OptionsT], Stage],
    *,
    words: Sequence[str] | None = None,
    job: str | None = None,
) -> None:
    """Run a stage; prints one sentence and exits with 1 when something is wrong, or with 143 when told to stop.

    Args:
        stage: Name of the stage and of its file in ``configs/``.
        kind: Its options.
        build: Makes the stage from them.
        words: The command line; None for ``sys.argv``, which may hold Hydra's own flags too.
        job: See ``run_stage``.
    """
    if words is None:
        _end(lambda: _by_hydra(stage, kind, build))
    else:
        _end(lambda: run_stage(compose_config(stage, words), kind, build, given=given_by(stage, words), job=job))


def _by_hydra(stage: str, kind: type[OptionsT], build: Callable[[OptionsT], Stage]) -> None:
    overrides = [item for item in sys.argv[1:] if not item.startswith("-")]
    if len(overrides) == len(sys.argv) - 1:  # --help, --multirun and other flags are Hydra's own
        compose_config(stage, overrides)
    if not any(item.startswith(("--config-dir", "-cd")) for item in sys.argv):
        # Each stage has experiments of its own in configs/<stage>/experiment/.
        sys.argv[1:1] = ["--config-dir", str(CONFIGS / stage)]

    register_names()

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=stage)
    def task(config: DictConfig) -> None:
        # Here too, since Hydra shows the traceback of every error.
        _end(lambda: run_stage(config, kind, build, given=given_by(stage, HydraConfig.get().overrides.task)))

    task()


def _end(work: Callable[[], object]) -> None:
    if status := reported(work):
        sys.exit(status)
