"""The options of cross-organ transfer: its own, and those that it hands to the stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from difftumor.errors import ConfigError
from stages.config.compose import CONFIGS, read_file
from stages.config.kinds import STAGES
from stages.config.reading import Count, Hint, ShareBelowOne, WholeNumber

Tumors = Literal["real", "handcrafted", "handcrafted_alone", "diffusion", "mixed"]
Size = Literal["early", "late"]
OrganName = Literal["liver", "pancreas", "kidney"]
ORGANS: tuple[OrganName, ...] = get_args(OrganName)
Annotations = Annotated[Count | Literal["all"], Hint("whole numbers from 1, or all")]


@dataclass(frozen=True, kw_only=True)
class PathsByOrgan:
    """The sections ``data`` and ``healthy``: a list of cases for each organ."""

    liver: Path | None
    pancreas: Path | None
    kidney: Path | None

    def of(self, organ: str) -> Path | None:
        """Return that of an organ."""
        return {"liver": self.liver, "pancreas": self.pancreas, "kidney": self.kidney}[organ]


@dataclass(frozen=True, kw_only=True)
class TransferPrediction:
    """The section ``prediction``.

    Args:
        overlap: Share of a window that overlaps its neighbor.
        probabilities: Whether probabilities are written too, which free-response curves need.
    """

    overlap: ShareBelowOne
    probabilities: bool


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """The options of the study; ``configs/transfer.yaml`` holds their defaults and says what they are.

    Raises:
        ConfigError: A source, target or backbone is unknown, or a fold beyond those that there are.
    """

    sources: tuple[str, ...]
    targets: tuple[OrganName, ...]
    backbones: tuple[str, ...]
    tumors: tuple[Tumors, ...]
    folds: tuple[WholeNumber, ...]
    fold_count: Count
    fold_seed: int
    seeds: tuple[int, ...]
    annotations: tuple[Annotations, ...]
    sizes: tuple[Size, ...]
    autoencoder: Path | None
    data: PathsByOrgan
    healthy: PathsByOrgan
    prediction: TransferPrediction

    def __post_init__(self) -> None:
        for name in ("sources", "targets", "backbones", "tumors", "folds", "seeds", "annotations", "sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} is {list(values)}: give one or more, each once.")
        for organ in (organ for source in self.sources for organ in source.split("+")):
            if organ not in ORGANS:
                raise ConfigError(f"sources has {organ!r}: choose from {', '.join(ORGANS)}, joined by + for one model.")
        if beyond := [fold for fold in self.folds if fold >= self.fold_count]:
            raise ConfigError(f"folds has {beyond[0]}, but fold_count is {self.fold_count}: give folds below it.")


# Options of the stages that make the jobs what they are.
OF_STUDY = (
    "organ", "backbone", "tumors", "fold", "seed", "name", "artifact", "runs_dir", "tumor_stage", "more_organs",
    "data.root", "data.healthy_root", "data.max_tumors", "autoencoder.artifact", "autoencoder.on_overlap",
    "synthesis.early_model", "synthesis.late_model",
)  # fmt: skip


@dataclass(frozen=True)
class StageOption:
    """An option of a stage: ``segmentation.liver.training.epochs=500`` without its first words.

    Args:
        stage: Whose it is.
        organ: The organ that it is for; empty for all.
        word: What is given to the stage.
    """

    stage: str
    organ: str
    word: str


def read_words(words: Sequence[str]) -> tuple[TransferOptions, tuple[StageOption, ...]]:
    """Read the options of the study, and those for its stages.

    Raises:
        ConfigError: An option is unknown or wrong.
    """
    pattern = re.compile(rf"(\+{{0,2}}|~)({'|'.join(STAGES)})\.(?:({'|'.join(ORGANS)})\.)?(.+)")
    matches = [pattern.fullmatch(word) for word in words]
    mine = [word for word, match in zip(words, matches, strict=True) if match is None]
    theirs = tuple(StageOption(match[2], match[3] or "", match[1] + match[4]) for match in matches if match is not None)
    for each in theirs:
        name = each.word.lstrip("+~").partition("=")[0]
        if name in OF_STUDY:
            raise ConfigError(f"The study sets {name} of stage '{each.stage}' itself: leave it out.")
        if each.stage == "autoencoder" and each.organ:
            raise ConfigError(f"One autoencoder serves all organs: give autoencoder.{each.word} without {each.organ}.")
    return read_file(CONFIGS / "transfer.yaml", TransferOptions, mine), theirs
