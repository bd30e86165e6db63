"""The command line of a stage: Hydra, with errors as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from difftumor.errors import DiffTumorError, sentence_of
from stages.config.compose import CONFIGS, OptionsT, compose_config, given_by, register_names
from stages.run.run import Stage, run_stage


def command_line(
    stage: str,
    kind: type[OptionsT],
    build: Callable[[OptionsT], Stage],
    *,
    words: Sequence[str] | None = None,
    job: str | None = None,
) -> None:
    """Run a stage; prints one sentence and exits with 1 when something is wrong.

    Args:
        stage: Name of the stage and of its file in ``configs/``.
        kind: Its options.
        build: Makes the stage from them.
        words: The command line; None for ``sys.argv``, which may hold Hydra's own flags too.
        job: See ``run_stage``.
    """
    if words is not None:
        try:
            run_stage(compose_config(stage, words), kind, build, given=given_by(stage, words), job=job)
        except (DiffTumorError, OSError) as error:
            _fail(error)
        return
    overrides = [item for item in sys.argv[1:] if not item.startswith("-")]
    if len(overrides) == len(sys.argv) - 1:  # --help, --multirun and other flags are Hydra's own
        try:
            compose_config(stage, overrides)
        except DiffTumorError as error:
            _fail(error)
    if not any(item.startswith(("--config-dir", "-cd")) for item in sys.argv):
        # Each stage has experiments of its own in configs/<stage>/experiment/.
        sys.argv[1:1] = ["--config-dir", str(CONFIGS / stage)]

    register_names()

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=stage)
    def task(config: DictConfig) -> None:
        try:
            run_stage(config, kind, build, given=given_by(stage, HydraConfig.get().overrides.task))
        except (DiffTumorError, OSError) as error:
            _fail(error)

    task()


def _fail(error: DiffTumorError | OSError) -> None:
    sys.stderr.write(f"Error: {sentence_of(error)}\n")
    sys.exit(1)
