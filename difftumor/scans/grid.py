"""Boxes of voxels, and grids of voxels in space."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from difftumor.errors import GridMismatchError

Array = NDArray[Any]
Voxel = tuple[int, int, int]
# Three numbers along x, y and z: a point or a spacing, in mm.
Vector = tuple[float, float, float]

# Two grids are the same if no voxel center moves by more than this.
_SAME_GRID_MM = 1e-2


def triple(values: Any) -> Voxel:
    """Return three integers as a tuple.

    Raises:
        ValueError: There are not three.
    """
    if len(values) != 3:
        raise ValueError(f"expected three numbers, got {values!r}")
    return int(values[0]), int(values[1]), int(values[2])


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels.

    Attributes:
        start: First index per axis.
        stop: One past the last index per axis; the box is empty if ``stop <= start`` on any axis.
    """

    start: Voxel
    stop: Voxel

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", triple(self.start))
        object.__setattr__(self, "stop", triple(self.stop))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Box":
        """Return the box that covers an array of this shape."""
        return cls((0, 0, 0), triple(shape))

    @classmethod
    def around(cls, mask_XYZ: Array) -> "Box":
        """Return the smallest box that holds every nonzero voxel; empty at the origin if there is none."""
        mask = np.asarray(mask_XYZ)
        # Along the axis on which voxels lie furthest apart in memory a mask is reduced at the speed of reading it, and
        # the plane that is left is small.
        order = sorted(range(3), key=lambda axis: -abs(mask.strides[axis]))
        occupied = mask.transpose(order)
        if occupied.dtype != np.bool_:
            occupied = occupied != 0
        first = np.flatnonzero(occupied.any(axis=(1, 2)))
        if first.size == 0:
            return cls((0, 0, 0), (0, 0, 0))
        plane = np.any(occupied[first[0] : first[-1] + 1], axis=0)
        found = (first, np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0)))
        start, stop = [0, 0, 0], [0, 0, 0]
        for axis, indices in zip(order, found, strict=True):
            start[axis], stop[axis] = int(indices[0]), int(indices[-1]) + 1
        return cls(triple(start), triple(stop))

    @classmethod
    def centered(cls, center: Sequence[int], size: Sequence[int], *, within: Sequence[int]) -> "Box":
        """Return a box of ``size`` around a voxel, moved inside an array of the shape ``within``.

        On an axis on which the array is smaller than the box, the box is the whole axis.
        """
        start = [min(max(c - n // 2, 0), max(m - n, 0)) for c, n, m in zip(center, size, within, strict=True)]
        stop = [min(a + n, m) for a, n, m in zip(start, size, within, strict=True)]
        return cls(triple(start), triple(stop))

    @classmethod
    def around_organ(cls, organ_XYZ: Array, spacing_mm: Sequence[float], margin_mm: float | None) -> "Box":
        """Return the box of an organ and a margin, inside the array; the whole array if the margin is None."""
        if margin_mm is None:
            return cls.whole(organ_XYZ.shape)
        margin = [math.ceil(margin_mm / step) for step in spacing_mm]
        return cls.around(organ_XYZ).padded(margin).clipped(organ_XYZ.shape)

    @classmethod
    def joined(cls, boxes: "Sequence[Box]") -> "Box":
        """Return the smallest box that holds some boxes; empty ones do not count, and without any other it is empty."""
        filled = [box for box in boxes if not box.empty]
        if not filled:
            return cls((0, 0, 0), (0, 0, 0))
        start = np.min([box.start for box in filled], axis=0)
        return cls(triple(start), triple(np.max([box.stop for box in filled], axis=0)))

    @property
    def shape(self) -> Voxel:
        """Voxels per axis, never negative."""
        return triple([max(0, stop - start) for start, stop in zip(self.start, self.stop, strict=True)])

    @property
    def empty(self) -> bool:
        """Whether the box holds no voxel."""
        return 0 in self.shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut the box from an array; negative starts are refused, clip the box first."""
        if min(self.start) < 0:
            raise ValueError(f"{self} begins before the array; clip it to the grid's shape first")
        x, y, z = (slice(a, max(a, b)) for a, b in zip(self.start, self.stop, strict=True))
        return x, y, z

    def clipped(self, shape: Sequence[int]) -> "Box":
        """Return the part of the box inside an array of this shape."""
        start = [min(max(0, a), n) for a, n in zip(self.start, shape, strict=True)]
        stop = [min(max(a, b), n) for a, b, n in zip(start, self.stop, shape, strict=True)]
        return Box(triple(start), triple(stop))

    def intersection(self, other: "Box") -> "Box":
        """Return the box that both have in common, perhaps an empty one."""
        start = np.maximum(self.start, other.start)
        return Box(triple(start), triple(np.maximum(start, np.minimum(self.stop, other.stop))))

    def padded(self, margin: int | Sequence[int]) -> "Box":
        """Return the box grown by ``margin`` voxels on every side (one number, or one per axis)."""
        margins = (margin,) * 3 if isinstance(margin, int) else triple(margin)
        start = [a - m for a, m in zip(self.start, margins, strict=True)]
        stop = [b + m for b, m in zip(self.stop, margins, strict=True)]
        return Box(triple(start), triple(stop))

    def shifted(self, offset: Sequence[int]) -> "Box":
        """Return the box moved by some voxels."""
        return Box(triple(np.add(self.start, offset)), triple(np.add(self.stop, offset)))

    def relative_to(self, other: "Box") -> "Box":
        """Return the box in voxels of an array that covers another one."""
        return self.shifted([-start for start in other.start])

    def overlaps(self, other: "Box") -> bool:
        """Whether the two have a voxel in common."""
        inside = zip(self.start, self.stop, other.start, other.stop, strict=True)
        return not self.empty and not other.empty and all(a < d and c < b for a, b, c, d in inside)

    def contains(self, other: "Box") -> bool:
        """Whether every voxel of ``other`` lies in this box."""
        inside = zip(self.start, self.stop, other.start, other.stop, strict=True)
        return other.empty or all(a <= c and d <= b for a, b, c, d in inside)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an array lie in space.

    Attributes:
        shape: Voxels per axis.
        affine: (4, 4) float64, voxel indices to RAS+ millimeters. Kept as a read-only copy.

    Raises:
        ValueError: The shape is not three positive numbers, or the affine cannot be inverted.
    """

    shape: Voxel
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = triple(self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if min(shape) < 1:
            raise ValueError(f"a grid needs at least one voxel per axis, got shape {shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"an affine is a (4, 4) matrix of finite numbers, got\n{affine}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # The determinant of the unit axes is the volume they span: 1 when square to each other, 0 when flat.
        if not (lengths > 0).all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            raise ValueError(f"the affine is singular: two voxel axes coincide or one has no length\n{affine}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centers along each of the array's axes."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel; less than the product of the spacing if the axes are not square to each other."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def skew(self) -> float:
        """How far the axes are from square to each other: the sine of the largest such angle, 0 for square axes.

        A distance measured along the axes is wrong by about half as large a share.
        """
        axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.abs(axes.T @ axes - np.eye(3)).max())

    @property
    def axcodes(self) -> str:
        """Anatomical directions the axes point to, such as ``"RAS"`` or ``"LPS"``."""
        return "".join(nib.aff2axcodes(self.affine))

    def position_mm(self, voxel: Voxel) -> Vector:
        """Return where the center of a voxel lies: right, anterior and superior of the scan's origin."""
        x, y, z = (float(value) for value in self.affine[:3, :3] @ voxel + self.affine[:3, 3])
        return x, y, z

    def matches(self, other: "Grid", tolerance_mm: float = _SAME_GRID_MM) -> bool:
        """Whether both grids have one shape and no voxel center differs by more than ``tolerance_mm``."""
        return self.shape == other.shape and self.displacement_mm(other) <= tolerance_mm

    def displacement_mm(self, other: "Grid") -> float:
        """Return the largest distance between the places of a voxel of this grid under both affines."""
        # An affine difference is largest at a corner.
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1)
        difference = self.affine - other.affine
        return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())

    def __repr__(self) -> str:
        spacing = " x ".join(f"{value:.4g}" for value in self.spacing_mm)
        return f"Grid({' x '.join(map(str, self.shape))} voxels of {spacing} mm, {self.axcodes})"


def compare_grids(a: Grid, b: Grid, path_a: Path, path_b: Path) -> None:
    """Check that two files share a grid: one shape, and no voxel center more than 0.01 mm apart.

    Raises:
        GridMismatchError: They don't; the message names both files and what differs.
    """
    if a.shape != b.shape:
        difference = f"shape {a.shape} against {b.shape}"
    elif a.matches(b):
        return
    elif a.axcodes != b.axcodes:
        difference = f"orientation {a.axcodes} against {b.axcodes}"
    elif not np.allclose(a.spacing_mm, b.spacing_mm, atol=1e-4):
        difference = f"spacing {millimeters(a.spacing_mm)} against {millimeters(b.spacing_mm)} mm"
    else:
        difference = f"affine, which puts voxels up to {a.displacement_mm(b):.3g} mm apart"
    raise GridMismatchError(f"{path_a} and {path_b} differ in {difference}; resample one onto the grid of the other.")


def millimeters(lengths: Vector) -> str:
    """Return three lengths in mm as sentences show them."""
    return " x ".join(f"{value:.4g}" for value in lengths)
