"""A study as a graph of jobs: what each runs, what it needs, what it leaves, and whether that is there.

A job is known by what decides its results: its resolved options, the content of the lists that it reads, and the same
of the jobs whose results it takes. The first digits of that key are part of its folder's name, so that an option that
changes leads to new folders for the jobs that depend on it, and to the old ones again when it is changed back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact_config import CONFIG_FILE, read_config
from stages.cluster.options import ClusterOptions
from stages.config.comparing import differences
from stages.config.compose import compose_config
from stages.config.kinds import STAGES
from stages.config.reading import read_options, to_plain
from studies.jobs.keys import PICTURES, READ, Contents, digest

# Digits of a key in the names of folders.
DIGITS = 8
# Words that Hydra takes for other values than text.
_MEANING = ("null", "true", "false", "nan", "inf")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A job of a graph.

    Args:
        name: What it makes, in words that are the same whatever its options.
        kind: What it is counted among, such as ``"diffusion"``.
        module: It runs as ``python -m module words``.
        words: Its command line.
        replacing: What is added to it where results of other inputs are in its folder.
        key: Hash of all that decides its results.
        output: Folder that it leaves.
        results: Files in it that are there when the job has ended well; none for an artifact, which says so itself.
        needs: Jobs whose results it takes.
        gpu: Whether it makes use of a GPU.
        lacks: What keeps it from being run by anybody, such as a data set that was not given; empty if nothing does.
        config: Resolved options of a stage; empty for a command.
        spared: Whether nobody needs its results any more, so that it counts as done without them.
    """

    name: str
    kind: str
    module: str
    words: tuple[str, ...]
    replacing: tuple[str, ...] = ()
    key: str
    output: Path
    results: tuple[str, ...] = ()
    needs: tuple[Node, ...] = ()
    gpu: bool = True
    lacks: str = ""
    config: Mapping[str, Any]
    spared: bool = False

    @property
    def id(self) -> str:
        """Name and key, unique in the graph."""
        return identifier(self.name, self.key)

    @property
    def best(self) -> Part:
        """The artifact of a training's best validation, which stays beside that of its end."""
        return Part(self, "best", self.output.with_name(f"{self.output.name}_best"))

    def part(self, name: str) -> Part:
        """Return a file of its folder."""
        return Part(self, name, self.output / name)

    def is_done(self) -> bool:
        """Whether its results are there, and are of what it takes."""
        if self.spared:
            return True
        if self.results:
            # A model that was trained again, or predictions that were made again, may be others. A command that has
            # failed or was stopped leaves some results of the earlier ones.
            written = self._written()
            latest = max((need.finished for need in self.needs), default=0)
            return len(written) == len(self.results) and min(written) >= latest
        try:
            config = read_config(self.output)
            parents = {role: read_config(self.output / parent.path) for role, parent in config.parents.items()}
        except ArtifactError:
            return False
        known = (config.parents[role].identity == parent.identity for role, parent in parents.items())
        return config.complete and all(known)

    @property
    def command(self) -> tuple[str, ...]:
        """Its command line now, with leave to replace what it made of a model that was, or will be, trained again."""
        written = self._written()
        current = all(need.is_done() and need.finished <= min(written, default=0) for need in self.needs)
        return self.words if not written or current else (*self.words, *self.replacing)

    @property
    def finished(self) -> float:
        """When the last of its results was written, as a time stamp; 0 for none."""
        return max(self._written(), default=0)

    def _written(self) -> list[float]:
        """Return when each of its results that are there was written."""
        files = [self.output / name for name in self.results or (CONFIG_FILE,)]
        return [file.stat().st_mtime for file in files if file.is_file()]

    def changes(self) -> str:
        """Say how its options differ from those of an earlier job of this name; empty if there is none."""
        others = (path for path in self.output.parent.glob(f"{self.name}-*") if _is_sibling(path, self.name))
        for other in sorted(others, key=lambda path: -path.stat().st_mtime):
            if other == self.output:
                continue
            stored = _stored_config(other)
            neutral = (*READ, *PICTURES)
            changed = (
                differences(stored, self.config, neutral=neutral, only_whether=("latents.cache",)) if stored else []
            )
            shown = ", ".join(f"{name} {before} → {now}" for name, before, now in changed[:3])
            return f"{other.name}: {shown or 'what it takes has changed'}{', …' if len(changed) > 3 else ''}"
        return ""


@dataclass(frozen=True)
class Part:
    """A part of what a job leaves, for a job that does not take all of it.

    Args:
        node: The job.
        name: Of the part.
        output: Where it is.
    """

    node: Node
    name: str
    output: Path

    @property
    def key(self) -> str:
        """What decides it."""
        return f"{self.node.key}/{self.name}"

    @property
    def id(self) -> str:
        """Unique in the graph."""
        return f"{self.node.id}/{self.name}"


Value = str | int | float | bool | None | Sequence[Any] | Node | Part


class Graph:
    """Jobs of a study, added in an order in which each comes after what it needs.

    Args:
        folder: Folder of the study.
        cluster: Where the jobs are to run; None for here.
    """

    def __init__(self, folder: Path, cluster: ClusterOptions | None = None) -> None:
        self.folder = folder
        # Batches are per GPU, so that the number of these decides results.
        self._gpus: dict[str, Value] = {}
        if cluster is not None and cluster.gpus_per_node * cluster.nodes > 1:
            self._gpus = {"trainer.devices": cluster.gpus_per_node, "trainer.num_nodes": cluster.nodes}
        self.nodes: dict[str, Node] = {}
        self._composed: dict[tuple[str, ...], dict[str, Any]] = {}
        self._trainings: dict[str, Node] = {}
        self._contents = Contents()

    def stage(
        self,
        stage: str,
        name: str,
        options: Sequence[str],
        values: Mapping[str, Value],
        *,
        kind: str | None = None,
        lacks: str = "",
    ) -> Node:
        """Add a training.

        Args:
            stage: ``autoencoder``, ``diffusion`` or ``segmentation``.
            name: What it makes.
            options: Overrides that many jobs have, such as ``experiment=demo``; composed once for all of them.
            values: Options of this job by name, plain; a node stands for its artifact or data, a part for itself.
            kind: What it is counted among; the stage by default.
            lacks: What keeps it from being run.

        Raises:
            ConfigError: An option is unknown, of the wrong type, or out of range.
        """
        given = {option.lstrip("+").partition("=")[0] for option in options}
        values = {**{option: value for option, value in self._gpus.items() if option not in given}, **values}
        # What several jobs take is asked for again by each of them.
        asked = digest(
            [stage, name, options, {option: getattr(value, "id", value) for option, value in values.items()}]
        )
        if asked in self._trainings:
            return self._trainings[asked]
        made = {option: value for option, value in values.items() if isinstance(value, Node | Part)}
        plain = {option: str(made[option].output) if option in made else value for option, value in values.items()}
        config = self._resolve(stage, tuple(options), plain)
        read_options(STAGES[stage], config)
        needs = _jobs(made.values())
        lacks = lacks or _lacking(needs) or _without_data(stage, config)
        decisive = config if lacks else self._contents.decisive(config, made=made)
        key = digest([stage, {**decisive, **{option: each.key for option, each in made.items()}}])
        output = self.folder / "checkpoints" / identifier(name, key)
        own = {**plain, "name": output.name, "artifact": str(output), "runs_dir": str(self.folder / "runs")}
        self._trainings[asked] = self._add(
            Node(
                name=name,
                kind=kind or stage,
                module=f"stages.{stage}",
                words=(*options, *(f"{option}={override_value(value)}" for option, value in own.items())),
                key=key,
                output=output,
                needs=needs,
                lacks=lacks,
                config=config,
            )
        )
        return self._trainings[asked]

    def command(
        self,
        command: str,
        name: str,
        words: Sequence[str | Path | Node | Part],
        *,
        results: Sequence[str],
        module: str = "difftumor",
        out: str = "--out",
        neutral: Sequence[str] = (),
        replacing: Sequence[str] = (),
        gpu: bool = False,
        lacks: str = "",
    ) -> Node:
        """Add a command.

        Args:
            command: Such as ``predict``.
            name: What it makes.
            words: Its options, but for that of its folder. A node stands for its folder, a part for itself, a path for
                a list of cases.
            results: Files that its folder holds in the end.
            module: Whose command it is.
            out: Option of its folder; empty if that is an argument.
            neutral: Further options, which change no result.
            replacing: Options by which it replaces results of other inputs, if it refuses to otherwise.
            gpu: Whether it makes use of a GPU.
            lacks: What keeps it from being run.
        """
        needs = _jobs(word for word in words if isinstance(word, Node | Part))
        lacks = lacks or _lacking(needs)
        known = [word.key if isinstance(word, Node | Part) else word for word in words]
        known = [self._contents.key(word) if isinstance(word, Path) and not lacks else str(word) for word in known]
        key = digest([command, known])
        output = self.folder / command / identifier(name, key)
        plain = [str(word.output if isinstance(word, Node | Part) else word) for word in words]
        return self._add(
            Node(
                name=name,
                kind=command,
                module=module,
                words=(command, *plain, *neutral, *([out] if out else []), str(output)),
                replacing=tuple(replacing),
                key=key,
                output=output,
                results=tuple(results),
                needs=needs,
                gpu=gpu,
                lacks=lacks,
                config={},
            )
        )

    def _add(self, node: Node) -> Node:
        return self.nodes.setdefault(node.id, node)

    def _resolve(self, stage: str, options: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
        """Compose the options that jobs share once, and set those of one job, on which no other option depends."""
        known = (stage, *options)
        if known not in self._composed:
            self._composed[known] = to_plain(compose_config(stage, options))
        config = copy.deepcopy(self._composed[known])
        for option, value in values.items():
            *sections, name = option.split(".")
            section: Any = config
            for each in sections:
                section = section.get(each) if isinstance(section, dict) else None
            if not isinstance(section, dict) or name not in section:
                raise ConfigError(f"Stage '{stage}' has no option '{option}': see python -m stages.{stage} --cfg job.")
            section[name] = value
        return config


def identifier(name: str, key: str) -> str:
    """Return the name of a job's folder."""
    return f"{name}-{key[:DIGITS]}"


def override_value(value: Any) -> str:
    """Return a plain value as Hydra reads it on a command line."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(override_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{override_value(each)}" for name, each in value.items()) + "}"
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z_/.][\w/.@:%+-]*", text, re.ASCII) and text.lower() not in _MEANING
    return text if plain or not isinstance(value, str) else str(QuotedString(text, Quote.single).with_quotes())


def _without_data(stage: str, config: Mapping[str, Any]) -> str:
    """Say that a training has no data; empty if it has."""
    made = stage == "segmentation" and config["tumors"] in ("diffusion", "handcrafted")
    if config["data"]["root"] is not None or (made and config["data"]["healthy_root"] is not None):
        return ""
    return "data.root is not given"


def _jobs(made: Iterable[Node | Part]) -> tuple[Node, ...]:
    """Return the jobs behind results, each once."""
    jobs = (each.node if isinstance(each, Part) else each for each in made)
    return tuple({job.id: job for job in jobs}.values())


def _lacking(needs: Iterable[Node]) -> str:
    return next((need.lacks for need in needs if need.lacks), "")


def _is_sibling(path: Path, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{{DIGITS}}}", path.name) is not None


def _stored_config(artifact: Path) -> Mapping[str, Any]:
    if not (artifact / CONFIG_FILE).is_file():
        return {}
    try:
        config = read_config(artifact).training.get("config", {})
    except ArtifactError:
        return {}
    return config if isinstance(config, Mapping) else {}
