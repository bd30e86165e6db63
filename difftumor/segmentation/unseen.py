"""Whether the models behind predictions were trained on the scans that the predictions are judged by."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from difftumor.datasets.integrity import fingerprints, shared_scans
from difftumor.datasets.sources import case_id
from difftumor.errors import ArtifactError, counted
from difftumor.files.texts import read_json
from difftumor.models.artifact_config import ArtifactConfig, read_config
from difftumor.scans.fingerprint import Fingerprint

# What each kind of model learns from a scan, for readers of tables.
_LEARNED = {"autoencoder": "unlabeled", "diffusion": "with its tumors", "segmenter": "with its labels"}


@dataclass(frozen=True)
class SeenScans:
    """How many test scans a model was trained on.

    Attributes:
        kind: Of the model.
        path: Folder of its artifact.
        tested: Number of test scans.
        seen: How many of them it was trained on; None if it does not say what it was trained on, or none is readable.
        suspected: How many more look like one that it was trained on.
        unread: How many could not be compared, because they are not there any more or cannot be read.
    """

    kind: str
    path: Path
    tested: int
    seen: int | None
    suspected: int = 0
    unread: int = 0

    def __str__(self) -> str:
        """Return it as a sentence."""
        name = f"The {self.kind + ' model' * (self.kind == 'diffusion')} {self.path.name}"
        tests = f"the {counted(self.tested - (0 if self.seen is None else self.unread), 'test scan')}"
        if self.seen is None and self.unread:
            return f"None of {tests} can be read, so whether {name[0].lower()}{name[1:]} has seen any is unknown."
        if self.seen is None:
            return (
                f"{name} does not say which scans it was trained on, so whether it has seen any of {tests} is unknown."
            )
        how = f" ({_LEARNED[self.kind]})" if self.seen else ""
        look = "looks" if self.suspected == 1 else "look"
        alike = f"; {self.suspected} more {look} like one that it was" if self.suspected else ""
        unread = f"; {self.unread} more could not be read and compared" if self.unread else ""
        return f"{name} was trained on {self.seen or 'none'} of {tests}{how}{alike}{unread}."


def seen_by_predictors(predictions: Iterable[Path]) -> tuple[SeenScans, ...]:
    """Return which models behind label maps have seen the scans that they predicted.

    Args:
        predictions: Label maps. Those of ``difftumor predict`` name scan and models in a JSON file beside them; others,
            and models that are not there any more, are left out.
    """
    models: dict[Path, None] = {}
    cts: dict[Path, None] = {}
    for file in predictions:
        try:
            record = read_json(file.parent / f"{case_id(file)}.json")
            named = [Path(model["path"]) for model in record["models"]]
            cts[Path(record["ct"]["path"])] = None
        except (OSError, ValueError, TypeError, KeyError):
            continue
        models |= dict.fromkeys(named)
    return seen_scans(list(models), list(cts))


def seen_scans(models: Collection[Path], cts: Collection[Path], *, workers: int = 1) -> tuple[SeenScans, ...]:
    """Return which of the models, and of those that they were made with, have seen test scans.

    Args:
        models: Folders of artifacts; ones that are not there any more are left out.
        cts: The test scans.
        workers: Threads that read them, if any model says what it was trained on.
    """
    configs = _with_parents(models)
    distinct = set(cts)
    if any(config.trained_on is not None for config in configs.values()):
        present = [file for file in cts if file.is_file()]
        found = fingerprints(present, workers=workers, accept_hu=True, failed=lambda file, error: None)
        scans = {str(file): each for file, each in found.items()}
        return tuple(_seen(path, config, scans, len(distinct)) for path, config in configs.items())
    return tuple(SeenScans(config.kind, path, len(distinct), None) for path, config in configs.items())


def _with_parents(models: Collection[Path]) -> Mapping[Path, ArtifactConfig]:
    configs: dict[Path, ArtifactConfig] = {}
    waiting = [path.resolve() for path in models]
    while waiting:
        path = waiting.pop(0)
        if path in configs:
            continue
        try:
            configs[path] = read_config(path)
        except ArtifactError:
            continue
        waiting += [(path / parent.path).resolve() for parent in configs[path].parents.values()]
    return configs


def _seen(path: Path, config: ArtifactConfig, scans: Mapping[str, Fingerprint], tested: int) -> SeenScans:
    if (trained_on := config.trained_on) is None:
        return SeenScans(config.kind, path, tested, None)
    if not scans:
        return SeenScans(config.kind, path, tested, None, unread=tested)
    pairs = shared_scans(scans, trained_on)
    certain = {pair.one for pair in pairs if pair.certain}
    suspected = {pair.one for pair in pairs} - certain
    return SeenScans(config.kind, path, tested, len(certain), len(suspected), tested - len(scans))
