"""Pictures of the cases in which a method does worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import DiffTumorError
from difftumor.evaluation.cohort.cases import Rules, ScoredCase, on_one_grid
from difftumor.evaluation.cohort.methods import Method
from difftumor.evaluation.cohort.pairs import read_pair
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import axial_rows, mask_center
from difftumor.scans.components import largest_component
from difftumor.scans.grid import Box, Grid
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct
from difftumor.scans.organs import ORGAN, TUMOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW_HU = (-160.0, 240.0)
# Side of the cube that is shown.
_SIDE_MM = 140
# Gray of organ and background without a CT.
_ORGAN_HU, _OUTSIDE_HU = 40.0, -110.0


def worst_cases(method: Method, count: int) -> list[ScoredCase]:
    """Return the cases that a reader should see first.

    The lowest tumor DSC comes first; healthy scans follow, those with the most false positives first.
    """
    ill = [case for case in method.cases if not case.healthy]
    ill = sorted(ill, key=lambda case: (case.result.tumor.dsc, case.case))
    false = [case for case in method.cases if case.healthy and case.result.detection.false_positives]
    false = sorted(false, key=lambda case: (-len(case.result.detection.false_positives), case.case))
    return [*[case for case in ill if case.result.tumor.dsc < 1], *false][:count]


def worst_cases_figure(cases: Sequence[ScoredCase], method: Method, rules: Rules, cts: Mapping[str, Path]) -> Figure:
    """Show cases below each other, truth on the left and prediction on the right, in the slice that is most wrong.

    Args:
        cases: What `worst_cases` returned, at least one.
        method: Their method.
        rules: How they were evaluated.
        cts: CTs by case; without one, or if it cannot be read, the organ is flat gray.

    Raises:
        VolumeError: A label map can no longer be read.
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
    """Return the CTs of a method's cases: those in a folder named as the case, else those that the list names."""
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
    """Return image, truth and prediction around what is wrong, at 1 mm in RAS, and the voxel to look at."""
    read, labels, ignored = read_pair(case.pair, method.cohort.truth)
    prediction, truth = on_one_grid(read, labels, rules, ignored)
    space = ModelSpace(truth.grid)
    true, predicted = (space.to_model(labels.data, kind="labels") for labels in (truth, prediction))
    middle = _middle(true, predicted)
    # Near a border the box is moved inward; it is never larger than the scan.
    box = Box.centered(middle, (_SIDE_MM,) * 3, within=space.grid.shape)
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


def _image(ct: Path | None, grid: Grid, space: ModelSpace, box: Box, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    if ct is not None:
        try:
            volume = read_ct(ct, accept_hu=True)
            if volume.grid.matches(grid):
                image: NDArray[np.float32] = space.to_model(volume.data, kind="image", box=box)
                return image
        except DiffTumorError:
            pass  # The labels alone are worth showing.
    return np.where(labels >= ORGAN, _ORGAN_HU, _OUTSIDE_HU).astype(np.float32)
