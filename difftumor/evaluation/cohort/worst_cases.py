"""Pictures of the cases in which a method does worst."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from difftumor.errors import DiffTumorError
from difftumor.evaluation.cohort.methods import Method, Rules, ScoredCase, on_one_grid
from difftumor.evaluation.cohort.pairs import read_pair
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import axial_rows, mask_center
from difftumor.scans.components import largest_component
from difftumor.scans.grid import Box, Grid
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct
from difftumor.scans.organs import ORGAN, TUMOR

WINDOW_HU = (-160.0, 240.0)
# Side of what is shown around the tumor in question.
_SIDE_MM = 140
# Gray of organ and background where no CT is at hand.
_ORGAN_HU, _OUTSIDE_HU = 40.0, -110.0


def worst_cases(method: Method, count: int) -> list[ScoredCase]:
    """Return the cases that a reader should look at first.

    The lowest tumor DSC comes first; healthy scans follow, those with most false positives first.
    """
    ill = [case for case in method.cases if not case.healthy]
    ill = sorted(ill, key=lambda case: (case.result.tumor.dsc, case.case))
    false = [case for case in method.cases if case.healthy and case.result.detection.false_positives]
    false = sorted(false, key=lambda case: (-len(case.result.detection.false_positives), case.case))
    return [*[case for case in ill if case.result.tumor.dsc < 1], *false][:count]


def worst_cases_figure(cases: Sequence[ScoredCase], method: Method, rules: Rules, cts: Mapping[str, Path]) -> Figure:
    """Draw cases below each other: truth at the left, prediction at the right, through what is wrong.

    Args:
        cases: What `worst_cases` returned, at least one.
        method: Theirs.
        rules: How they were evaluated.
        cts: CTs by case; the organ is drawn in flat gray where there is none, or where it cannot be read.

    Raises:
        VolumeError: A label map cannot be read any more.
    """
    rows, centers = {}, []
    for case in cases:
        image, truth, prediction, center = _cut(case, method, rules, cts.get(case.case))
        rows[_name(case)] = [
            Panel(title="Truth", image=image, labels=truth),
            Panel(title="Prediction", image=image, labels=prediction),
        ]
        centers.append(center)
    return axial_rows(rows, centers=centers, spacing_mm=(1.0, 1.0, 1.0), window_hu=WINDOW_HU, column_inches=3.0)


def cts_of(method: Method, folder: Path | None) -> dict[str, Path]:
    """Return the CTs of a method's cases: those that the list of labels names, or files of their names in a folder."""
    found: dict[str, Path] = {}
    for case in method.cases:
        truth = case.pair.truth
        if truth is not None and truth.image != truth.labels and truth.image.is_file():
            found[case.case] = truth.image
        places = [] if folder is None else [folder / f"{case.case}{end}" for end in (".nii.gz", ".nii", "_0000.nii.gz")]
        if there := [place for place in places if place.is_file()]:
            found[case.case] = there[0]
    return found


def _name(case: ScoredCase) -> str:
    false = len(case.result.detection.false_positives)
    if case.healthy:
        return f"{false} FP, {case.case}"
    return f"DSC {100 * case.result.tumor.dsc:.0f} %, {case.case}"


def _cut(
    case: ScoredCase, method: Method, rules: Rules, ct: Path | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8], tuple[int, ...]]:
    """Cut image, truth and prediction around what is wrong, at 1 mm in RAS, and return the voxel to look at."""
    prediction, truth = on_one_grid(*read_pair(case.pair, method.cohort), rules)
    space = ModelSpace(truth.grid)
    true, predicted = (space.to_model(labels.data, kind="labels") for labels in (truth, prediction))
    middle = _middle(true, predicted)
    box = _around(middle, space.grid)
    image = _image(ct, truth.grid, space, box, true[box.slices])
    center = tuple(int(index - start) for index, start in zip(middle, box.start, strict=True))
    return image, true[box.slices], predicted[box.slices], center


def _middle(true: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> tuple[int, ...]:
    """Return a voxel of the largest missed or false piece of tumor, else of any tumor, else the middle."""
    wrong = (true == TUMOR) != (predicted == TUMOR)
    for mask in (wrong, true == TUMOR, predicted == TUMOR):
        if mask.any():
            return mask_center(largest_component(mask))
    return tuple(size // 2 for size in true.shape)


def _around(middle: Sequence[int], grid: Grid) -> Box:
    """Return a box of one size around a voxel, moved inward near the border, smaller where the scan is."""
    start, stop = [], []
    for index, size in zip(middle, grid.shape, strict=True):
        side = min(_SIDE_MM, size)
        first = min(max(index - side // 2, 0), size - side)
        start.append(first)
        stop.append(first + side)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _image(ct: Path | None, grid: Grid, space: ModelSpace, box: Box, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    if ct is not None:
        try:
            volume = read_ct(ct)
            if volume.grid.matches(grid):
                image: NDArray[np.float32] = space.to_model(volume.data, kind="image", box=box)
                return image
        except DiffTumorError:
            pass  # The picture is worth having without it.
    return np.where(labels >= ORGAN, _ORGAN_HU, _OUTSIDE_HU).astype(np.float32)
