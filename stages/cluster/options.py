"""The options of a cluster: a file of ``configs/cluster/`` or of the user's own, and ``cluster.X=…``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from difftumor.errors import ConfigError
from stages.config.compose import read_file
from stages.config.reading import Count, ReadBy, WholeNumber

CLUSTERS = Path(__file__).resolve().parents[2] / "configs" / "cluster"
_OF_SLURM = (
    "partition", "cpu_partition", "account", "qos", "constraint", "cpus", "memory", "time", "warning_s", "max_requeues",
    "more",
)  # fmt: skip
_UNITS = {"d": 24 * 60, "h": 60, "m": 1}


def read_minutes(value: Any, *, field: str) -> int:
    """Return a time in minutes, rounded up, from ``48h``, ``1d12h``, ``90m``, ``[D-]HH:MM:SS`` or a number of minutes.

    Raises:
        ConfigError: Names the option.
    """
    text = str(value)
    if not isinstance(value, bool) and re.fullmatch(r"[1-9]\d*", text):
        return int(text)
    if re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?", text) and text:
        minutes = sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([dhm])", text))
    elif match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, within, seconds = (int(part or 0) for part in match.groups())
        minutes = days * 24 * 60 + hours * 60 + within + (seconds > 0)
    else:
        minutes = 0
    if minutes == 0:
        raise ConfigError(f"{field} is {value!r}: give a time such as 48h, 1d12h, 90m or 2-00:00:00.")
    return minutes


def _read_mapping(value: Any, *, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{field} is {value!r}: give a mapping such as {{NAME: value}}, or {{}}.")
    return {str(key): each for key, each in value.items()}


def _read_text(value: Any, *, field: str) -> str | None:
    if isinstance(value, Mapping | list | tuple | bool):
        raise ConfigError(f"{field} is {value!r}: give a word, or null.")
    return None if value is None else str(value)


Text = Annotated[str | None, ReadBy(_read_text)]


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """A cluster, or this machine, and what a job gets there.

    Args:
        kind: ``slurm``, or ``local`` for processes of this machine.
        partition: SLURM's partition; None for its default, as for the options that follow.
        cpu_partition: That of jobs without GPUs; None for ``partition``.
        account: What is charged.
        qos: Quality of service.
        constraint: Features of the nodes.
        nodes: Of a training.
        gpus_per_node: Of a training, which runs one process per GPU.
        cpus: Per process.
        memory: Of a node, as SLURM takes it (``32G``).
        time: Limit of a job in minutes.
        warning_s: Seconds before the limit at which a training saves and is requeued.
        max_requeues: How often a job that has reached its limit, was preempted or lost its node starts again.
        at_once: Most jobs of a submission that run at the same time; None for as many as there is room for.
        python: Command of Python on the nodes, for containers; None for the one that submits.
        setup: Lines of shell before the job, which ends if one fails, such as ``module load cuda``.
        environment: Variables of the job's environment.
        more: Any other options of sbatch by name, which replace ours (``{gres: "gpu:a100:1"}``). Numbers of GPUs are
            those of trainings; other jobs on GPUs get one.

    Raises:
        ConfigError: The options do not go together.
    """

    kind: Literal["slurm", "local"]
    partition: Text = None
    cpu_partition: Text = None
    account: Text = None
    qos: Text = None
    constraint: Text = None
    nodes: Count = 1
    gpus_per_node: WholeNumber = 1
    cpus: Count = 1
    memory: Text = None
    time: Annotated[int, ReadBy(read_minutes)] = 24 * 60
    warning_s: Count = 120
    max_requeues: WholeNumber = 20
    at_once: Count | None = None
    python: str | None = None
    setup: tuple[str, ...] = ()
    environment: Annotated[Mapping[str, Any], ReadBy(_read_mapping)] = field(default_factory=dict)
    more: Annotated[Mapping[str, Any], ReadBy(_read_mapping)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "local" and self.nodes > 1:
            raise ConfigError(f"cluster.nodes is {self.nodes}: this machine is one; set cluster.nodes=1.")
        if self.nodes > 1 and self.gpus_per_node == 0:
            raise ConfigError(
                f"cluster.nodes is {self.nodes} and cluster.gpus_per_node is 0: trainings on several nodes run one "
                "process per GPU; set cluster.nodes=1, or cluster.gpus_per_node."
            )
        if bad := [name for name in self.environment if not re.fullmatch(r"[A-Za-z_]\w*", name)]:
            raise ConfigError(f"cluster.environment has {bad[0]!r}: names of variables have letters, digits and '_'.")
        if empty := [name for name, value in self.environment.items() if value is None]:
            raise ConfigError(
                f"cluster.environment.{empty[0]} is null: give a value, which may be '', or leave it out."
            )

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a job's environment."""
        return {name: str(value) for name, value in self.environment.items()}


def read_cluster(words: Sequence[str]) -> tuple[ClusterOptions, tuple[str, ...]]:
    """Read what a command line says of the cluster: ``cluster=NAME``, a file of ``configs/cluster/`` or a path.

    Args:
        words: A command line; without ``cluster=…`` jobs are processes of this machine.

    Returns:
        The cluster, and the words that are not about it.

    Raises:
        ConfigError: There is no such cluster, or an option is unknown or wrong.
    """
    mine = [word for word in words if re.match(r"\+{0,2}cluster[.=]", word)]
    chosen, values = "local", []
    for word in mine:
        name, _, text = word.lstrip("+").partition("=")
        if name == "cluster":
            chosen = text
        else:
            values.append(word.lstrip("+").removeprefix("cluster."))
    own = chosen.endswith((".yaml", ".yml"))
    file = Path(chosen).expanduser() if own else CLUSTERS / f"{chosen}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(file.stem for file in CLUSTERS.glob("*.yaml")))
        raise ConfigError(f"There is no cluster '{chosen}': choose from {names}, or give the path of a YAML file.")
    options = read_file(file, ClusterOptions, values, "cluster")
    given = [re.split(r"[.=]", value)[0] for value in values]
    if options.kind == "local" and (useless := [name for name in given if name in _OF_SLURM]):
        raise ConfigError(
            f"cluster.{useless[0]} means nothing to jobs on this machine: leave it out, or say cluster=slurm."
        )
    return options, tuple(word for word in words if word not in mine)
