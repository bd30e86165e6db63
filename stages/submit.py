"""Submit trainings of a stage: ``python -m stages.submit segmentation fold=0,1 cluster=slurm``.

Options with several values (``fold=0,1``, ``fold=range(0,5)``, ``backbone=choice(unet,nnunet)``, ``backbone=glob(*)``)
make a training of each, as Hydra's ``--multirun`` does. ``python -m stages.submit status`` says what became of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from rich.console import Console
from rich.live import Live
from rich.table import Table

from difftumor.errors import ConfigError, counted
from stages.cluster.checkout import Checkout
from stages.cluster.jobs import Job, Submitted
from stages.cluster.options import read_cluster
from stages.cluster.status import JobState, job_states
from stages.cluster.submission import latest, read_submissions, submit
from stages.config.compose import CONFIGS, compose_config
from stages.config.kinds import STAGES
from stages.config.reading import read_options, to_plain
from stages.exit_status import reported

USAGE = """Usage: python -m stages.submit STAGE [OPTION=VALUE ...] [cluster=NAME] [cluster.OPTION=VALUE ...]
       python -m stages.submit status [runs_dir=runs] [--watch]

STAGE is autoencoder, diffusion or segmentation. Options are those of python -m stages.STAGE; one with several values,
such as fold=0,1,2 or fold=range(0,5) or backbone=choice(unet,nnunet), makes a training of each. Clusters are the files
of configs/cluster, or the path of one; docs/cluster.md explains them."""


def main() -> None:
    """Run the command line; prints one sentence and exits with 1 when something is wrong."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if words else 1)
    work = partial(show_status, words[1:]) if words[0] == "status" else partial(submit_stage, words[0], words[1:])
    if status := reported(work):
        sys.exit(status)


def submit_stage(stage: str, words: Sequence[str]) -> tuple[Submitted, ...]:
    """Submit the trainings that a command line stands for, all checked before the first.

    Args:
        stage: Name of the stage.
        words: Its options, and those of the cluster.

    Raises:
        ConfigError: An option is wrong, two trainings would write to one place, or one of them is under way.
    """
    if stage not in STAGES:
        raise ConfigError(f"There is no stage '{stage}': choose from {', '.join(STAGES)}.")
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"{flags[0]} is not an option of stages.submit: give OPTION=VALUE.")
    cluster, options = read_cluster(words)
    jobs, folders = [], set()
    places: dict[str, Sequence[str]] = {}
    for each in expand(stage, options):
        values = checked(stage, each)
        _check_places(values, each, places)
        folders.add(_folder(values["runs_dir"]))
        jobs.append(Job(name=f"{stage}_{values['name']}", module=f"stages.{stage}", words=each))
    if len(folders) > 1:
        raise ConfigError("runs_dir has several values: give one, which also holds what is submitted.")
    folder = folders.pop()
    _check_idle(jobs, folder)
    submitted = submit(jobs, cluster, folder=folder)
    if note := Checkout.now().note:
        print(note)
    print(f"Submitted {counted(len(jobs), 'job')}; python -m stages.submit status{_said(folder)} shows how they do:")
    for job in submitted:
        print(f"  {job.id}  {job.name}  {job.log}")
    return submitted


def expand(stage: str, words: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the command lines that one with several values stands for, in the order of Hydra's ``--multirun``.

    Raises:
        ConfigError: It cannot be read.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=stage):
        loader = GlobalHydra.instance().config_loader()
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
            choices = [_values(override, word) for override, word in zip(parsed, words, strict=True)]
        except HydraException as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(f"The options cannot be read ({reason}): see python -m stages.submit --help.") from error
    return list(product(*choices))


def _values(override: Override, word: str) -> list[str]:
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{word} has no end of values: give those that are meant, as in range(0,5).")
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"{word} stands for nothing: give values, as in {override.key_or_group}=0,1.")
    return values


def checked(stage: str, words: Sequence[str]) -> Mapping[str, Any]:
    """Compose a training's config, read it as the stage's options, and return its values.

    Raises:
        ConfigError: An option is unknown, of the wrong type or out of range.
    """
    values = to_plain(compose_config(stage, words))
    read_options(STAGES[stage], values)
    return values


def _check_places(values: Mapping[str, Any], words: Sequence[str], places: dict[str, Sequence[str]]) -> None:
    """Refuse trainings that would write to one artifact or run folder."""
    for what, place in (("artifact", values["artifact"]), ("name", f"{values['runs_dir']}/{values['name']}")):
        if (other := places.setdefault(f"{what} {place}", words)) is not words:
            raise ConfigError(
                f"'{' '.join(other)}' and '{' '.join(words)}' have the same {what} ({values[what]}): give "
                "name=… and artifact=… that hold the options that differ."
            )


def _check_idle(jobs: Sequence[Job], folder: Path) -> None:
    """Refuse to submit again what is under way."""
    before = latest(read_submissions(folder))
    states = job_states([before[job.name] for job in jobs if job.name in before])
    for name, state in states.items():
        if state.queued:
            raise ConfigError(f"{name} is {state.state} as job {state.id}: wait for it, or cancel that job first.")


def _folder(runs_dir: Any) -> Path:
    return Path(str(runs_dir)) / "cluster"


def _said(folder: Path) -> str:
    return "" if folder.parent == Path("runs") else f" runs_dir={folder.parent}"


def show_status(words: Sequence[str]) -> None:
    """Print what became of all that was submitted, again and again with ``--watch``.

    Raises:
        ConfigError: A word is unknown, or nothing was submitted.
    """
    options = dict(word.partition("=")[::2] for word in words if word.startswith("runs_dir="))
    if unknown := [word for word in words if word != "--watch" and not word.startswith("runs_dir=")]:
        raise ConfigError(f"status takes runs_dir=DIR and --watch, not '{unknown[0]}'.")
    folder = _folder(options.get("runs_dir", "runs"))
    states = _states(folder)
    if "--watch" in words:
        with Live(status_table(states), refresh_per_second=1) as live:
            while any(state.queued for state in states):
                time.sleep(5)
                states = _states(folder)
                live.update(status_table(states))
    else:
        Console().print(status_table(states))
    for state in states:
        if state.state not in ("pending", "completed"):
            print(*(f"{state.name}: {text}" for text in (state.error, state.log) if text), sep="\n")


def _states(folder: Path) -> list[JobState]:
    if not (submissions := read_submissions(folder)):
        raise ConfigError(f"{folder} holds no submission: give the runs_dir=DIR of what was submitted.")
    return list(job_states(list(latest(submissions).values())).values())


def status_table(states: Sequence[JobState]) -> Table:
    """Return states as a table."""
    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "id", "node", "time", "waits for"):
        table.add_column(name, no_wrap=name != "job", overflow="fold")
    for state in states:
        ran = "" if state.seconds is None else str(timedelta(seconds=state.seconds))
        reason = state.error if state.state in ("pending", "requeued") else ""
        identity = state.id.partition("-")[0]  # of processes here the rest says nothing
        table.add_row(state.name, state.state, identity, state.node, ran, reason)
    return table


if __name__ == "__main__":
    main()
