"""Whether a CT can be in Hounsfield units, and a mask of its organ, by what is known of bodies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import VolumeError
from difftumor.scans.grid import Box
from difftumor.scans.organs import Organ

# Fat begins here; a CT of a body holds fat or air, in a crop of soft tissue at least its noise.
HIGHEST_MINIMUM_HU = -100.0
# Enough to know shares of a scan to a tenth of a percent.
_SAMPLE = 2**19
# Fewer say nothing of a body.
_TOO_FEW = 1000
# Air is -1000 HU and, where a scanner cuts it off, -1024; lower values, but for noise, are padding.
_PADDING_HU = -1100.0
_AIR_HU = (-1045.0, -900.0)
# Fat, muscle, blood and organs, with contrast or without.
_TISSUE_HU = (-250.0, 350.0)
# Compact bone, and what only metal and teeth reach.
_BONE_HU, _METAL_HU = 700.0, 2500.0
# In 17 scans of 16 trunks and limbs and an abdomen: tissue 37 to 87 %, bone at most 1.9 %, metal none.
_LITTLE_TISSUE, _NO_TISSUE = 0.02, 0.002
_MUCH_BONE, _NOTHING_BUT_BONE = 0.08, 0.5
_MUCH_METAL = 0.003
# Values below air, but for one of padding; none in these scans.
_BELOW_AIR = 0.05
# A window leaves much at its lower end; scanners do so only at air.
_CLIPPED_HU, _CLIPPED = -700.0, 0.05
# Where an organ is nothing that is in its usual range by so much, its mask or the CT is wrong for certain.
_BEYOND_HU = 250.0
# Of organs without a range of their own.
_ANY_ORGAN_HU = (-150.0, 350.0)
_LOWEST_TISSUE_HU = -500.0
_FILLED = 0.95
_GO_ON = "or go on with accept_hu (--accept-hu; data.accept_hu=true in training)"

HU = NDArray[np.floating[Any]]
Rescale = Callable[[HU], HU]

# What converters get wrong, how to undo it, and the words for both.
_MISTAKES: tuple[tuple[str, str, Rescale], ...] = (
    ("stored without its rescale intercept", "subtract 1024", lambda values: values - 1024),
    ("rescaled twice, with the intercept applied again", "add 1024", lambda values: values + 1024),
    ("inverted", "multiply it by -1", lambda values: -values),
    ("multiplied by 10", "divide it by 10", lambda values: values / 10),
)


class ScanWarning(UserWarning):
    """A scan that is used although something speaks against it."""


@dataclass(frozen=True)
class Doubt:
    """What speaks against a scan or a mask.

    Attributes:
        sentence: For the user: what was found, the likely cause and the remedy.
        impossible: Whether no CT, or no mask of the organ, can be like this.
    """

    sentence: str
    impossible: bool


def _doubt(sentence: str, impossible: bool) -> Doubt:
    return Doubt(f"{sentence}, {_GO_ON}." if impossible else f"{sentence}.", impossible)


def settle(doubts: Iterable[Doubt], *, accept: bool) -> tuple[str, ...]:
    """Return doubts as sentences for the user.

    Args:
        doubts: What was found.
        accept: Whether the user knows that the scan is right.

    Raises:
        VolumeError: One is certain and not accepted.
    """
    found = tuple(doubts)
    for doubt in found:
        if doubt.impossible and not accept:
            raise VolumeError(doubt.sentence)
    return tuple(doubt.sentence for doubt in found)


def warn(sentences: Iterable[str]) -> None:
    """Tell the caller's caller what speaks against a scan that is used all the same."""
    for sentence in sentences:
        warnings.warn(sentence, ScanWarning, stacklevel=3)


def ct_doubts(hu_XYZ: HU, name: str, *, ends: tuple[float, float] | None = None) -> tuple[Doubt, ...]:
    """Judge a CT by itself: what it holds of tissue, bone and air, and whether a window cut it.

    Args:
        hu_XYZ: Finite values that should be HU; not modified.
        name: Its file, or what errors call it.
        ends: Its minimum and maximum, if they are known.
    """
    low, high = (float(hu_XYZ.min()), float(hu_XYZ.max())) if ends is None else ends
    said = f"(values {low:g} to {high:g}); give the CT in Hounsfield units"
    if low >= HIGHEST_MINIMUM_HU:
        cause = "stored without its rescale intercept" if high > (255 if low >= 0 else 1000) else "windowed or scaled"
        return (_doubt(f"{name} looks {cause} {said}", True),)
    if hu_XYZ.size < _TOO_FEW:
        return ()
    if low == high:
        return (_doubt(f"{name} is constant {said}", True),)
    values = _sample(hu_XYZ)
    shares = _shares(values)
    if not shares.usual:
        what = (
            f"{shares.tissue:.1%} of its values are of soft tissue, {shares.bone:.1%} of bone and {shares.metal:.1%} "
            "of metal"
        )
        impossible = shares.tissue < _NO_TISSUE or shares.bone > _NOTHING_BUT_BONE
        return (_doubt(f"{name} looks {_cause(values)}: {what} {said}", impossible),)
    below_air = float(((values < _PADDING_HU) & (values != values.min())).mean())
    if below_air > _BELOW_AIR:
        return (_doubt(f"{name} looks {_cause(values)}: {below_air:.0%} of its values are below air {said}", False),)
    if low > _CLIPPED_HU and float((values == low).mean()) > _CLIPPED:
        return (_doubt(f"{name} looks windowed, without air {said}", False),)
    return ()


def organ_doubts(
    hu_XYZ: HU, mask_XYZ: NDArray[Any], organ: Organ, *, ct: str, mask: str, box: Box | None = None
) -> tuple[Doubt, ...]:
    """Judge a CT and a mask by each other: the organ's mean HU, and how much of the scan it fills.

    Args:
        hu_XYZ: HU; not modified.
        mask_XYZ: Nonzero in the organ; not empty.
        organ: Whose mean is known in part.
        ct: What errors call the CT.
        mask: What errors call the mask.
        box: Part of the CT that the mask covers; the whole by default.
    """
    around = Box.around(mask_XYZ)
    inside = mask_XYZ[around.slices]
    part = hu_XYZ[(around if box is None else around.shifted(box.start)).slices]
    filled = inside.size / hu_XYZ.size
    if filled > _FILLED and (filled := float(np.count_nonzero(inside)) / hu_XYZ.size) > _FILLED:
        return (_doubt(f"{mask} fills {filled:.0%} of the scan: give a mask of the {organ.name} alone", False),)
    if organ.holds_air or hu_XYZ.size < _TOO_FEW:
        return ()
    organ_hu = _inside(part, inside)
    mean_hu, known = float(organ_hu.mean(dtype=np.float64)), organ.mean_hu is not None
    usual_hu = organ.mean_hu or _ANY_ORGAN_HU
    if usual_hu[0] <= mean_hu <= usual_hu[1]:
        return ()
    impossible = known and not usual_hu[0] - _BEYOND_HU <= mean_hu <= usual_hu[1] + _BEYOND_HU
    found = f"the {organ.name} has a mean of {mean_hu:.0f} HU (usual: {usual_hu[0]:g} to {usual_hu[1]:g})"
    if cause := _mistake(_sample(hu_XYZ), lambda undo: usual_hu[0] <= undo(np.array([mean_hu]))[0] <= usual_hu[1]):
        sentence = f"{ct} looks {cause}: {found}; give the CT in Hounsfield units"
    else:
        where = "lies in air" if float(np.median(organ_hu)) < _LOWEST_TISSUE_HU else f"does not look like {organ.name}"
        sentence = (
            f"{mask} {where}: in {ct} {found}; check that the mask belongs to this scan and is neither shifted nor "
            "mirrored, and that the CT is in Hounsfield units"
        )
    return (_doubt(sentence, impossible),)


class _Shares(NamedTuple):
    """Shares of the values above padding."""

    tissue: float
    bone: float
    metal: float

    @property
    def usual(self) -> bool:
        """Whether a CT of any part of a body can have them."""
        return self.tissue >= _LITTLE_TISSUE and self.bone <= _MUCH_BONE and self.metal <= _MUCH_METAL


def _shares(values: HU) -> _Shares:
    rest = values[values >= _PADDING_HU]
    if not rest.size:
        return _Shares(0.0, 0.0, 0.0)
    tissue = float(((rest >= _TISSUE_HU[0]) & (rest <= _TISSUE_HU[1])).mean())
    return _Shares(tissue, float((rest >= _BONE_HU).mean()), float((rest >= _METAL_HU).mean()))


def _cause(values: HU) -> str:
    return _mistake(values, lambda undo: True) or "scaled, or of another kind than CT"


def _mistake(values: HU, possible: Callable[[Rescale], bool]) -> str:
    """Say which mistake explains values best, and how to undo it; nothing if they look best as they are."""
    best, words = _known_share(values), ""
    for name, remedy, undo in _MISTAKES:
        undone = undo(values)
        if _shares(undone).usual and possible(undo) and (share := _known_share(undone)) > best:
            best, words = share, f"{name} ({remedy})"
    return words


def _known_share(values: HU) -> float:
    """Return how much of a scan is air or tissue, and 1 more if there is air, which all but crops have."""
    air = float(((values >= _AIR_HU[0]) & (values <= _AIR_HU[1])).mean())
    tissue = float(((values >= _TISSUE_HU[0]) & (values <= _TISSUE_HU[1])).mean())
    return air + tissue + (air > 0.005)


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Return about half a million values of an array, evenly spread."""
    step = max(1, int(np.ceil((array.size / _SAMPLE) ** (1 / array.ndim))))
    return array[(slice(None, None, step),) * array.ndim].ravel(order="K")


def _inside(hu: HU, inside: NDArray[Any]) -> HU:
    """Return about half a million values of an organ; all of one that is small or thin."""
    step = max(1, int(np.ceil((inside.size / _SAMPLE) ** (1 / 3))))
    some = (slice(step // 2, None, step),) * 3
    values: HU = hu[some][inside[some] != 0]
    return values if values.size >= 1000 else hu[inside != 0]
