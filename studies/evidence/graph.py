"""The jobs of all entries as one graph: data, trainings, predictions, and the records in which they end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from difftumor.cli.many import SUMMARY_FILE
from stages.cluster.options import ClusterOptions
from studies.evidence.queue import Queue
from studies.evidence.records import FORMAT, CellRecord, cell_name, key_of, read_record
from studies.jobs.graph import Graph, Node, Part, Value
from studies.jobs.keys import digest

Size = Literal["small", "full", "trial"]
# Words of all trainings here, where nobody watches.
QUIET = ("trainer.progress_bar=false",)
# Share of the training used for warm-up, as published: 100 of 2000 epochs.
WARM_UP = 0.05


@dataclass(frozen=True, kw_only=True)
class RecordNode(Node):
    """A job that scores a cell; it is done when the repository has the record, whatever became of the models."""

    def is_done(self) -> bool:
        """Whether the record is there, and is of these options."""
        return key_of(self.output / self.results[0]) == self.key


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """An entry of the queue.

    Args:
        name: Of its folder of records.
        question: That it answers.
        declare: Adds its jobs to a graph.
        titles: What its table calls the values of ``trained_on``, in its order.
        groups: Fields of a cell whose values a row of the table has.
        comparisons: Pairs of ``trained_on`` that are tested: whether the first finds more than the second.
        further: Writes further tables of its records into a folder.
    """

    name: str
    question: str
    declare: Callable[[EvidenceGraph], None]
    titles: Mapping[str, str]
    groups: tuple[str, ...] = ("trained_on",)
    comparisons: tuple[tuple[str, str], ...]
    further: Callable[[Sequence[CellRecord], Path], object] | None = None


def values_of(words: Sequence[str]) -> dict[str, Value]:
    """Return ``name=value`` words as values, which take less time than options of their own for every job."""
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}


class EvidenceGraph(Graph):
    """The jobs of entries, one entry after the other; what entries share is there once.

    Args:
        entries: In the order in which they run.
        folder: Of the study.
        records: Folder of the records of a size.
        size: How large all is.
        sarcoma: Folder of the sarcoma patients; None if they are not at hand.
        cluster: Where the jobs are to run; None for here.
    """

    def __init__(
        self,
        entries: Sequence[QueueEntry],
        folder: Path,
        *,
        records: Path,
        size: Size,
        sarcoma: Path | None = None,
        cluster: ClusterOptions | None = None,
    ) -> None:
        super().__init__(folder, cluster)
        self.cluster = cluster
        self.records = records
        self.size: Size = size
        self.sarcoma = sarcoma
        self.queue = Queue(folder)
        self.entry_of: dict[str, str] = {}
        for self._entry in entries:
            self._entry.declare(self)
            self.entry_of |= {name: self._entry.name for name in self.nodes if name not in self.entry_of}
        self._spare()

    def cells(self, entry: str) -> list[RecordNode]:
        """Return the jobs that write the records of an entry."""
        nodes = [node for name, node in self.nodes.items() if self.entry_of[name] == entry]
        return [node for node in nodes if isinstance(node, RecordNode)]

    def recorded(self, entry: str) -> list[CellRecord]:
        """Return the records of an entry that are of the options of now; unknown for a cell whose data are not given.

        Raises:
            CaseListError: One is damaged.
        """
        cells = {node.output / node.results[0]: node for node in self.cells(entry)}
        found = {file: read_record(file) for file in cells if file.is_file()}
        return [record for file, record in found.items() if record.key == cells[file].key or cells[file].lacks]

    @property
    def device(self) -> str:
        """Where tumors are made and predicted."""
        return "auto" if self.size == "full" else "cpu"

    def phantoms(
        self,
        name: str,
        *,
        cases: int,
        seed: int,
        organs: str,
        shape: str,
        radius_mm: str,
        healthy: float = 0.0,
        more: Sequence[str] = (),
    ) -> Node:
        """Add a cohort of phantoms; see ``difftumor phantom``."""
        words = [
            "--cases", str(cases), "--seed", str(seed), "--organs", organs, "--shape", shape, "--healthy", str(healthy),
            "--tumor-radius", radius_mm, *more,
        ]  # fmt: skip
        return self.command("phantom", name, words, results=("dataset.json",), out="")

    def segmenter(
        self,
        name: str,
        options: Sequence[str],
        values: Mapping[str, Value],
        *,
        seed: int,
        steps: int,
        cases: int,
        batch_size: int = 2,
        lacks: str = "",
    ) -> Node:
        """Add a segmenter that is trained for so many steps on all its cases, without validation.

        Args:
            name: What it makes.
            options: Of stage 3, that several segmenters have.
            values: Of stage 3, its own.
            seed: Of the training.
            steps: Approximate length; an epoch sees every case once.
            cases: That it is trained on.
            batch_size: As the options say.
            lacks: What keeps it from being run.
        """
        epochs = max(1, round(steps / math.ceil(cases / batch_size)))
        length = {"training.epochs": epochs, "training.warmup_epochs": round(WARM_UP * epochs)}
        return self.stage(
            "segmentation", name, options, {"fold": None, "seed": seed, **length, **values}, lacks=lacks
        )  # fmt: skip

    def predicted(self, model: Node, test: Node | Part, cases: Sequence[str], *, overlap: float) -> Node:
        """Add the predictions of a segmenter, with the probabilities that free-response curves need.

        Args:
            model: The segmenter.
            test: Scans to predict.
            cases: Their ids.
            overlap: Share of a window that overlaps its neighbor.
        """
        words = [
            "--ct", test, "--model", model, "--overlap", str(overlap), "--organ-filter", "predicted", "--probabilities",
        ]  # fmt: skip
        files = [SUMMARY_FILE, *(f"{case}.nii.gz" for case in cases)]
        neutral = ["--device", self.device]
        return self.command(
            "predict", f"predict_{model.name}", words,
            results=files, neutral=neutral, replacing=["--overwrite"], gpu=True,
        )  # fmt: skip

    def record(
        self,
        cell: Mapping[str, str | int],
        *,
        model: Node,
        predictions: Node,
        labels: Node | Part | Path,
        organ: str | None = None,
    ) -> RecordNode:
        """Add the job that scores a cell and writes its record.

        Args:
            cell: What tells it from the others of its entry.
            model: The segmenter.
            predictions: Its predictions, with probabilities.
            labels: List of the test scans.
            organ: Where tumors are looked for, if it is not the segmenter's organ.
        """
        entry, name = self._entry.name, cell_name(cell)
        key = digest([FORMAT, entry, dict(cell), predictions.key, organ])
        folder = self.records / entry
        behind = self._behind(predictions)
        truth = labels if isinstance(labels, Path) else labels.output
        words = [
            "--entry", entry, "--size", self.size, "--cell", json.dumps(cell), "--key", key,
            "--model", str(model.output), "--predictions", str(predictions.output), "--labels", str(truth),
            *(["--organ", organ] if organ else []), "--device", self.device, "--queue", str(self.folder),
            "--out", str(folder / f"{name}.json"), "--jobs", *behind,
        ]  # fmt: skip
        node = RecordNode(
            name=f"{entry}_{name}",
            kind="record",
            module="studies.evidence.score",
            words=tuple(words),
            key=key,
            output=folder,
            results=(f"{name}.json",),
            needs=(predictions,),
            gpu=False,
            lacks=predictions.lacks,
            config={},
        )
        self._add(node)
        return node

    def merge(self, other: Graph, *, without: str) -> None:
        """Add the jobs of another study's graph.

        Args:
            other: The graph.
            without: Kind of its jobs that is left out.
        """
        for node in other.nodes.values():
            if node.kind != without:
                self._add(node)

    @staticmethod
    def _behind(node: Node) -> list[str]:
        """Return the ids of a job and of all that it needs, each once."""
        found: dict[str, None] = {}
        waiting = [node]
        while waiting:
            each = waiting.pop()
            found[each.id] = None
            waiting += [need for need in each.needs if need.id not in found]
        return list(found)

    def _spare(self) -> None:
        """Take for done what only records need that are there: their models may be gone."""
        needed = set(self.nodes) - {need.id for node in self.nodes.values() for need in node.needs}
        for node in reversed(self.nodes.values()):  # each comes after what it needs
            if node.id in needed and not (isinstance(node, RecordNode) and node.is_done()):
                needed |= {need.id for need in node.needs}
        self.nodes = {name: node if name in needed else replace(node, spared=True) for name, node in self.nodes.items()}
