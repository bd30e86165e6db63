"""How scans are predicted; needs no network, so that wrong options are refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from difftumor.errors import ConfigError

# Windows that overlap by three quarters, as published: each voxel is seen 64 times.
OVERLAP = 0.75
# Gaps in organ masks where tumors were left out are filled, and tumors may bulge out of the organ a little.
CLOSING_MM, DILATION_MM = 10.0, 5.0
OrganFilter = Literal["mask", "predicted", "none"]


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How a scan is predicted.

    Args:
        overlap: Share of a window that overlaps its neighbor, in [0, 1).
        flips: Average the logits of all eight mirror images of each window, in eight times the time.
        organ_filter: Drop tumor outside the given organ "mask", outside the "predicted" organ
            (`difftumor.segmentation.filters.predicted_organ`), or nothing ("none").
        closing_mm: Radius by which the organ is closed before the filter.
        dilation_mm: How far tumors may reach out of the closed organ.
        min_volume_mm3: Smaller tumors are dropped (`difftumor.segmentation.filters.drop_small_tumors`).

    Raises:
        ConfigError: A value is out of range.
    """

    overlap: float = OVERLAP
    flips: bool = False
    organ_filter: OrganFilter = "none"
    closing_mm: float = CLOSING_MM
    dilation_mm: float = DILATION_MM
    min_volume_mm3: float = 0.0

    def __post_init__(self) -> None:
        check_overlap(self.overlap)
        for name in ("closing_mm", "dilation_mm", "min_volume_mm3"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number from 0 up.")


def check_overlap(overlap: float) -> None:
    """Refuse windows that overlap completely.

    Raises:
        ConfigError: The overlap is out of range.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap {overlap} is not in [0, 1): use 0.75 for quality, 0.5 or 0.25 for speed.")


def choose_organ_filter(chosen: OrganFilter | None, *, has_mask: bool) -> OrganFilter:
    """Return the organ filter: as asked, else "mask" if there is an organ mask, else "none".

    Raises:
        ConfigError: The filter "mask" has no mask, or a mask has another filter.
    """
    if chosen is None:
        return "mask" if has_mask else "none"
    if chosen == "mask" and not has_mask:
        raise ConfigError("The organ filter 'mask' needs an organ mask: give one, or choose another filter.")
    if chosen != "mask" and has_mask:
        raise ConfigError(f"The organ filter {chosen!r} does not use the organ mask: give one of the two.")
    return chosen


def finds_tumors_only(trained_on: str | None, organ: str | None) -> bool:
    """Return whether a segmenter finds tumors alone in scans of an organ, because the organ it knows is another."""
    return None not in (trained_on, organ) and trained_on != organ


def check_target(trained_on: str | None, organ: str | None, chosen: OrganFilter | None, *, has_mask: bool) -> None:
    """Check that segmenters of one organ look for tumors inside another, and not around their own.

    Args:
        trained_on: Organ that the segmenters were trained on; None if they do not state it.
        organ: Organ in which tumors are looked for; None for theirs.
        chosen: The organ filter that was asked for; None for none.
        has_mask: Whether there is an organ mask.

    Raises:
        ConfigError: The filter is the predicted organ, or there is neither a mask nor the filter "none".
    """
    if finds_tumors_only(trained_on, organ) and not has_mask and chosen != "none":
        raise ConfigError(
            f"The segmenters were trained on the {trained_on}, so that their tumors count inside a mask of the "
            f"{organ}: give organ_mask (--organ-mask), or organ_filter none (--organ-filter) to count them anywhere."
        )
