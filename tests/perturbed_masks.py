"""Damaged copies of real tumor masks, and what each score must say of each damage.

``python -m tests.perturbed_masks SARCOMA FOLDER`` writes them as predictions/ and labels/ for ``difftumor evaluate``,
and prints the table of expected effects.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from difftumor.evaluation.cohort.cases import CaseResult
from difftumor.reporting.tables import Table
from difftumor.scans.components import find_components
from difftumor.scans.grid import Box, Grid
from difftumor.scans.nifti import read_labels
from difftumor.scans.organs import TUMOR

Mask = np.ndarray
FACES = ndimage.generate_binary_structure(3, 1)
TOLERANCE_MM = 2.0
BLOB = (3, 3, 2)


@dataclass(frozen=True)
class Facts:
    """A result, and what an effect may depend on."""

    result: CaseResult
    grid: Grid
    truth: Mask
    prediction: Mask

    @property
    def diagonal_mm(self) -> float:
        return float(np.linalg.norm(np.multiply(self.grid.shape, self.grid.spacing_mm)))

    @property
    def depth_mm(self) -> float:
        """No point inside the truth is further from its surface, which lies up to a voxel beyond the nearest center."""
        inside = np.pad(self.truth[Box.around(self.truth).slices], 1)
        spacing_mm = self.grid.spacing_mm
        return float(ndimage.distance_transform_edt(inside, sampling=spacing_mm).max() + np.linalg.norm(spacing_mm))

    @property
    def voxel_ml(self) -> float:
        return self.grid.voxel_mm3 / 1000


@dataclass(frozen=True)
class Effect:
    """What a score must be: in words, and as a check."""

    words: str
    holds: Callable[[float, Facts], bool]


def exactly(value: float, words: str | None = None) -> Effect:
    return Effect(words or f"{value:g}", lambda score, _: score == value)


def close(words: str, value: Callable[[Facts], float]) -> Effect:
    return Effect(words, lambda score, facts: abs(score - value(facts)) <= 1e-5)


def between(low: float, high: float, words: str) -> Effect:
    return Effect(words, lambda score, _: low < score < high)


def shifted_by(axis: int, voxels: int) -> dict[str, Effect]:
    """Every patch of a surface has its copy as far away as the mask was moved, so that none is further from it."""

    def within(score: float, facts: Facts) -> bool:
        return 0 < score <= voxels * facts.grid.spacing_mm[axis] + 1e-5

    size = "0.98" if axis == 0 else "3.27"
    moved = f"at most {voxels} × {size} mm"
    agrees = voxels * float(size) <= TOLERANCE_MM
    return {
        "DSC": between(0, 1, "below 1"),
        "NSD": exactly(1.0, "1: moved by less than the tolerance") if agrees else between(0, 1, "below 1"),
        "HD95": Effect(moved, within),
        "ASSD": Effect(moved, within),
        "volume error": exactly(0.0),
        "lesions found": exactly(1),
        "false positives": exactly(0),
    }


# Where one mask holds the other, both scores say the same: DSC = 2S/(S+L) and |volume error| = 2(L−S)/(S+L), S and L
# being the smaller and the larger volume.
def _overlap_of_nested(facts: Facts) -> float:
    return 1 - abs(facts.result.tumor.volume_error) / 2


NESTED = close("1 − ½ of the volume error's size", _overlap_of_nested)
DIAGONAL = close("the scan's diagonal", lambda facts: facts.diagonal_mm)
ONE_VOXEL = Effect(
    "from one column to one slice",
    lambda score, facts: min(facts.grid.spacing_mm) - 1e-5 <= score <= max(facts.grid.spacing_mm) + 1e-5,
)
ABOVE_0 = between(0, np.inf, "above 0")
BELOW_1 = between(0, 1, "below 1")

# One row per damage, one entry per score. Every entry is checked on every mask.
EFFECTS: Mapping[str, Mapping[str, Effect]] = {
    "identical": {
        "DSC": exactly(1.0),
        "NSD": exactly(1.0),
        "HD95": exactly(0.0),
        "ASSD": exactly(0.0),
        "volume error": exactly(0.0),
        "lesions found": exactly(1),
        "false positives": exactly(0),
    },
    "eroded": {
        "DSC": NESTED,
        "NSD": BELOW_1,
        "HD95": ONE_VOXEL,
        "ASSD": ABOVE_0,
        "volume error": between(-2, 0, "below 0"),
        "lesions found": exactly(1),
        "false positives": exactly(0, "0: precision is 1"),
    },
    "dilated": {
        "DSC": NESTED,
        "NSD": BELOW_1,
        "HD95": ONE_VOXEL,
        "ASSD": ABOVE_0,
        "volume error": between(0, 2, "above 0"),
        "lesions found": exactly(1),
        "false positives": exactly(0),
    },
    "moved 2 columns": shifted_by(0, 2),
    "moved 4 columns": shifted_by(0, 4),
    "moved 1 slice": shifted_by(2, 1),
    "moved 2 slices": shifted_by(2, 2),
    "split": {
        "DSC": Effect(
            "1 − ½ of the volume error's size, above 0.95",
            lambda score, facts: score > 0.95 and NESTED.holds(score, facts),
        ),
        "NSD": between(0, 1, "below 1: the cut has surfaces"),
        "HD95": Effect(
            "above one slice, at most the tumor's depth",
            lambda score, facts: facts.grid.spacing_mm[2] < score <= facts.depth_mm,
        ),
        "ASSD": ABOVE_0,
        "volume error": between(-0.1, 0, "a little below 0"),
        "lesions found": exactly(1),
        "false positives": exactly(1, "1, the smaller half"),
    },
    "emptied": {
        "DSC": exactly(0.0, "0, by rule"),
        "NSD": exactly(0.0, "0, by rule"),
        "HD95": DIAGONAL,
        "ASSD": DIAGONAL,
        "volume error": exactly(-2.0, "−2"),
        "lesions found": exactly(0, "0 of 1"),
        "false positives": exactly(0),
    },
    "false blob added": {
        "DSC": NESTED,
        "NSD": between(0.9, 1, "a little below 1"),
        "HD95": exactly(0.0, "0: the blob has less than 5 % of the surface"),
        "ASSD": ABOVE_0,
        "volume error": Effect(
            "above 0: the blob's volume",
            lambda score, facts: (
                score > 0 and abs(facts.result.tumor.volume_error_ml - np.prod(BLOB) * facts.voxel_ml) < 1e-9
            ),
        ),
        "lesions found": exactly(1, "1, as without the blob"),
        "false positives": exactly(1),
    },
    "truth emptied": {
        "DSC": exactly(0.0, "0, by rule"),
        "NSD": exactly(0.0, "0, by rule"),
        "HD95": DIAGONAL,
        "ASSD": DIAGONAL,
        "volume error": exactly(2.0),
        "lesions found": exactly(0, "0 of 0"),
        "false positives": exactly(1),
    },
    "both emptied": {
        "DSC": exactly(1.0, "1, by rule"),
        "NSD": exactly(1.0, "1, by rule"),
        "HD95": exactly(0.0, "0, by rule"),
        "ASSD": exactly(0.0, "0, by rule"),
        "volume error": exactly(0.0, "0, by rule"),
        "lesions found": exactly(0, "0 of 0"),
        "false positives": exactly(0),
    },
}


def scores(facts: Facts) -> dict[str, float]:
    """Return the scores of a result under the names of the table."""
    tumor, detection = facts.result.tumor, facts.result.detection
    return {
        "DSC": tumor.dsc,
        "NSD": tumor.nsd,
        "HD95": tumor.hd95_mm,
        "ASSD": tumor.assd_mm,
        "volume error": tumor.volume_error,
        "lesions found": sum(match.prediction is not None for match in detection.matches),
        "false positives": len(detection.false_positives),
    }


def perturbed(mask: Mask) -> dict[str, tuple[Mask, Mask]]:
    """Return prediction and truth of each damage of a mask of one lesion with room around it."""
    nothing = np.zeros_like(mask)
    blob = mask.copy()
    blob[tuple(slice(2, 2 + size) for size in BLOB)] = True
    return {
        "identical": (mask.copy(), mask),
        "eroded": (ndimage.binary_erosion(mask, FACES), mask),
        "dilated": (ndimage.binary_dilation(mask, FACES), mask),
        "moved 2 columns": (np.roll(mask, 2, 0), mask),
        "moved 4 columns": (np.roll(mask, 4, 0), mask),
        "moved 1 slice": (np.roll(mask, -1, 2), mask),
        "moved 2 slices": (np.roll(mask, -2, 2), mask),
        "split": (_split(mask), mask),
        "emptied": (nothing, mask),
        "false blob added": (blob, mask),
        "truth emptied": (mask.copy(), nothing),
        "both emptied": (nothing, nothing),
    }


def _split(mask: Mask) -> Mask:
    """Remove the sagittal plane nearest to the middle that leaves two pieces."""
    box = Box.around(mask)
    planes = range(box.start[0] + 1, box.stop[0] - 1)
    for plane in sorted(planes, key=lambda x: abs(2 * x - box.start[0] - box.stop[0])):
        halves = mask.copy()
        halves[plane] = False
        if len(find_components(halves).voxels) == 2:
            return halves
    raise AssertionError("no plane leaves two pieces")


def sarcoma_masks(sarcoma: Path) -> Iterator[tuple[str, Mask, Grid]]:
    """Yield patient, mask and grid of each real tumor."""
    for file in sorted(sarcoma.glob("*/tumor.nii.gz")):
        volume = read_labels(file)
        yield file.parent.name, volume.data > 0, volume.grid


def write_perturbed_pairs(folder: Path, sarcoma: Path) -> int:
    """Write predictions/ and labels/ with one pair of label maps per damage and patient; return how many."""
    count = 0
    for patient, mask, grid in sarcoma_masks(sarcoma):
        for damage, pair in perturbed(mask).items():
            for part, array in zip(("predictions", "labels"), pair, strict=True):
                (folder / part).mkdir(parents=True, exist_ok=True)
                labels = array.astype(np.uint8) * np.uint8(TUMOR)
                name = f"{patient}_{damage.replace(' ', '_')}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(labels, grid.affine), folder / part / name)
            count += 1
    return count


def effects_table() -> str:
    """Return the expected effects as a Markdown table."""
    header = ["prediction", *next(iter(EFFECTS.values()))]
    rows = [[damage, *(e.words for e in row.values())] for damage, row in EFFECTS.items()]
    return Table(header, rows).markdown()


if __name__ == "__main__":
    write_perturbed_pairs(Path(sys.argv[2]), Path(sys.argv[1]))
    sys.stdout.write(effects_table() + "\n")
