"""Model space: the one geometry that networks see, and its exact relation to a scan's own grid.

Model space is the scan turned to RAS order (axes permuted and flipped) and resampled along its own axes to an even
spacing, so an oblique scan stays oblique and each axis is resampled alone. The first voxel centers coincide after the
turn. Source positions are computed from the index on the whole grid, never from the box, so a box of the result is
bit-identical to the same box cut from the whole result.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from difftumor.scans.grid import Array, Box, Grid, Voxel, triple

DataKind = Literal["image", "labels"]

# Affines stored in float32 move voxels that should coincide this far apart, in voxels, after some hundred steps.
_SNAP = 1e-4


class ModelSpace:
    """Carry data between a scan's own (native) grid and model space.

    Attributes:
        native: The scan's grid.
        grid: The grid of model space: RAS order, ``spacing_mm``, the native field of view to half a voxel.

    Args:
        native: The scan's grid.
        spacing_mm: Model spacing along R, A and S.
    """

    def __init__(self, native: Grid, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        target = np.asarray(spacing_mm, dtype=np.float64)
        if target.shape != (3,) or not (target > 0).all() or not np.isfinite(target).all():
            raise ValueError(f"model spacing needs three positive lengths in mm, got {spacing_mm!r}")
        orientation = nib.io_orientation(native.affine)
        self.native = native
        # Native axis, and whether it runs backwards, for each of R, A and S.
        self._axes = triple(np.argsort(orientation[:, 0]))
        self._flipped = tuple(bool(orientation[axis, 1] < 0) for axis in self._axes)
        self._turned_shape = triple([native.shape[axis] for axis in self._axes])
        turned_affine = native.affine @ nib.orientations.inv_ornt_aff(orientation, native.shape)
        # Native voxels per model voxel.
        self._step = target / np.array([native.spacing_mm[axis] for axis in self._axes])
        extent = _snapped((np.array(self._turned_shape) - 1) / self._step)
        shape = triple(np.floor(extent + 0.5).astype(int) + 1)
        self.grid = Grid(shape, turned_affine @ np.diag([*self._step, 1.0]))

    @property
    def native_step(self) -> tuple[float, float, float]:
        """Model voxels from one native voxel to the next, along R, A and S."""
        r, a, s = (float(1 / step) for step in self._step)
        return r, a, s

    def to_model(self, data_XYZ: Array, *, kind: DataKind, box: Box | None = None) -> Array:
        """Carry data on the native grid to model space.

        Args:
            data_XYZ: Array on the whole native grid.
            kind: "image": linear, returned as float32. "labels": nearest, dtype kept.
            box: Part of the model grid wanted; the whole by default. Memory is that of the box.

        Returns:
            C-contiguous array of the shape of ``box``.

        Raises:
            ValueError: The data is not on the native grid, or the box leaves the model grid.
        """
        self._check(data_XYZ, self.native.shape, "native grid")
        box = self._within(box, self.grid)
        positions = self._native_positions(box)
        source = self._turned(data_XYZ)
        order = triple(np.argsort(-self._step, kind="stable"))
        return _resample(source, Box.whole(source.shape), triple(source.shape), positions, kind, order)

    def to_native(self, data_XYZ: Array, *, kind: DataKind, box: Box | None = None, part: Box | None = None) -> Array:
        """Carry data in model space to the native grid; arguments, result and errors mirror ``to_model``.

        Args:
            data_XYZ: Array on the whole model grid, or on ``part`` of it.
            kind: See ``to_model``.
            box: Part of the native grid wanted.
            part: Where the data lies in the model grid; it must hold ``model_box(box)``.
        """
        part = self._within(part, self.grid)
        self._check(data_XYZ, part.shape, "model grid")
        box = self._within(box, self.native)
        if not part.contains(self.model_box(box)):
            raise ValueError(f"{part} of the model grid does not hold what {box} of the native grid needs")
        return self._native_part(data_XYZ, part, self._turned_box(box), kind)

    def native_slabs(self, slices: int) -> Iterator[Box]:
        """Cut the native grid into slabs of so many slices, from inferior to superior."""
        count = self._turned_shape[2]
        for start in range(0, count, slices):
            slab = Box((0, 0, start), (*self._turned_shape[:2], min(start + slices, count)))
            yield self._native_order(slab)

    def turned(self, data_XYZ: Array, *, box: Box | None = None) -> Array:
        """View data on the native grid, or on ``box`` of it, in RAS order, in its own spacing (``turned_spacing_mm``).

        Raises:
            ValueError: The data is not of the shape of the grid or the box.
        """
        self._check(data_XYZ, self._within(box, self.native).shape, "native grid" if box is None else "box")
        return self._turned(data_XYZ)

    @property
    def turned_spacing_mm(self) -> tuple[float, float, float]:
        """Native voxel size along R, A and S."""
        r, a, s = (self.native.spacing_mm[axis] for axis in self._axes)
        return r, a, s

    def change_to_native(self, change_hu: Array, *, box: Box) -> tuple[NDArray[np.float32], Box]:
        """Carry a change, zero outside ``box``, to the native grid.

        Args:
            change_hu: Change in HU, of the shape of ``box``.
            box: Where the change lies in the model grid.

        Returns:
            The change as float32 and the native box it lies on. It is exactly zero wherever no changed model voxel
            takes part in the interpolation. The box is empty where the change falls between native voxels.

        Raises:
            ValueError: The shapes differ, or the box leaves the model grid.
        """
        return self._carry(change_hu, box, "image")

    def labels_to_native(self, labels: Array, *, box: Box) -> tuple[Array, Box]:
        """Carry labels, zero outside ``box``, to the native grid; as ``change_to_native``, but nearest, dtype kept."""
        return self._carry(labels, box, "labels")

    def model_box(self, native_box: Box) -> Box:
        """Return the smallest model box whose voxel centers enclose those of ``native_box``, inside the grid."""
        turned = self._turned_box(native_box.clipped(self.native.shape))
        return _enclosing(turned, 1 / self._step, self.grid.shape)

    def _carry(self, data: Array, box: Box, kind: DataKind) -> tuple[Array, Box]:
        self._check(data, box.shape, "box")
        box = self._within(box, self.grid)
        start, stop = [], []
        for axis, position in enumerate(self._model_positions(Box.whole(self._turned_shape))):
            position = np.minimum(position, self.grid.shape[axis] - 1)
            if kind == "labels":
                position = np.floor(position + 0.5)
            reached = np.flatnonzero((position > box.start[axis] - 1) & (position < box.stop[axis]))
            start.append(int(reached[0]) if reached.size else 0)
            stop.append(int(reached[-1]) + 1 if reached.size else 0)
        turned = Box(triple(start), triple(stop))
        return self._native_part(data, box, turned, kind), self._native_order(turned)

    def _native_part(self, data: Array, data_box: Box, turned: Box, kind: DataKind) -> Array:
        order = triple(np.argsort(self._step, kind="stable"))
        result = _resample(data, data_box, self.grid.shape, self._model_positions(turned), kind, order)
        flips = tuple(slice(None, None, -1) if flipped else slice(None) for flipped in self._flipped)
        return np.ascontiguousarray(result[flips].transpose(np.argsort(self._axes)))

    def _native_positions(self, box: Box) -> list[NDArray[np.float64]]:
        return [_snapped(np.arange(a, b) * s) for a, b, s in zip(box.start, box.stop, self._step, strict=True)]

    def _model_positions(self, turned: Box) -> list[NDArray[np.float64]]:
        return [_snapped(np.arange(a, b) / s) for a, b, s in zip(turned.start, turned.stop, self._step, strict=True)]

    def _turned(self, data: Array) -> Array:
        """View native data in RAS order."""
        flips = tuple(slice(None, None, -1) if flipped else slice(None) for flipped in self._flipped)
        return data.transpose(self._axes)[flips]

    def _turned_box(self, native: Box) -> Box:
        start, stop = [], []
        for axis, flipped in zip(self._axes, self._flipped, strict=True):
            a, b, n = native.start[axis], native.stop[axis], self.native.shape[axis]
            start.append(n - b if flipped else a)
            stop.append(n - a if flipped else b)
        return Box(triple(start), triple(stop))

    def _native_order(self, turned: Box) -> Box:
        start, stop = [0, 0, 0], [0, 0, 0]
        for index, (axis, flipped) in enumerate(zip(self._axes, self._flipped, strict=True)):
            a, b, n = turned.start[index], turned.stop[index], self.native.shape[axis]
            start[axis], stop[axis] = (n - b, n - a) if flipped else (a, b)
        return Box(triple(start), triple(stop))

    @staticmethod
    def _check(data: Array, shape: Voxel, name: str) -> None:
        if data.shape != shape:
            raise ValueError(f"expected data of the {name}'s shape {shape}, got {data.shape}")

    @staticmethod
    def _within(box: Box | None, grid: Grid) -> Box:
        if box is None:
            return Box.whole(grid.shape)
        if not Box.whole(grid.shape).contains(box):
            raise ValueError(f"{box} leaves the grid of shape {grid.shape}; clip it first")
        return box


def _snapped(position: NDArray[np.float64]) -> NDArray[np.float64]:
    nearest = np.rint(position)
    return np.where(np.abs(position - nearest) < _SNAP, nearest, position)


def _enclosing(box: Box, scale: NDArray[np.float64], shape: Voxel) -> Box:
    if box.empty:
        return Box((0, 0, 0), (0, 0, 0))
    first = _snapped(np.array(box.start) * scale)
    last = _snapped((np.array(box.stop) - 1) * scale)
    # Positions past the last voxel (by half a voxel at most) take its value, so it must be inside.
    start = np.minimum(np.floor(first), np.array(shape) - 1)
    return Box(triple(start.astype(int)), triple(np.ceil(last).astype(int) + 1)).clipped(shape)


def _resample(
    source: Array,
    source_box: Box,
    source_shape: Voxel,
    positions: Sequence[NDArray[np.float64]],
    kind: DataKind,
    order: Sequence[int],
) -> Array:
    """Sample a source axis by axis.

    Args:
        source: Values on ``source_box``; zero elsewhere on the source's grid.
        source_box: Where the values lie.
        source_shape: Shape of the whole source grid; positions past its last voxel take that voxel's value.
        positions: Where to sample, per axis, in voxels of the source's grid.
        kind: "image" (linear, float32) or "labels" (nearest).
        order: Axes in the order to resample, those that shrink first. It must not depend on the boxes.

    Returns:
        C-contiguous array, as long on each axis as its positions.
    """
    if any(len(position) == 0 for position in positions):
        return np.zeros([len(position) for position in positions], source.dtype if kind == "labels" else np.float32)
    positions = [np.minimum(position, n - 1) for position, n in zip(positions, source_shape, strict=True)]
    if kind == "labels":
        positions = [np.floor(position + 0.5) for position in positions]
    lower = [np.floor(position).astype(np.intp) for position in positions]
    weights = [(position - index).astype(np.float32) for position, index in zip(positions, lower, strict=True)]
    start = triple([index.min() for index in lower])
    stop = triple([np.max(index + (weight > 0)) + 1 for index, weight in zip(lower, weights, strict=True)])
    window = _window(source, source_box, Box(start, stop))
    if kind == "image":
        window = window.astype(np.float32)
    # NIfTI stores the first axis fastest; run along memory, and turn only the result.
    reverse = abs(window.strides[0]) < abs(window.strides[2])
    window = window.T if reverse else window
    for axis in order:
        window = _interpolated(window, 2 - axis if reverse else axis, lower[axis] - start[axis], weights[axis])
    return np.ascontiguousarray(window.T if reverse else window)


def _window(source: Array, source_box: Box, needed: Box) -> Array:
    """Cut the needed box from a source that is zero outside its own."""
    overlap = Box(
        triple(np.maximum(needed.start, source_box.start)),
        triple(np.minimum(needed.stop, source_box.stop)),
    )
    if overlap == needed:
        return source[needed.relative_to(source_box).slices]
    window = np.zeros(needed.shape, source.dtype)
    if not overlap.empty:
        window[overlap.relative_to(needed).slices] = source[overlap.relative_to(source_box).slices]
    return window


def _interpolated(data: Array, axis: int, lower: NDArray[np.intp], weight: NDArray[np.float32]) -> Array:
    """Sample one axis at ``lower + weight``, linearly; where every weight is zero, only pick."""
    below = np.take(data, lower, axis=axis)
    if not weight.any():
        return below
    above = np.take(data, np.minimum(lower + 1, data.shape[axis] - 1), axis=axis)
    # below + w (above - below) keeps constants and exact zeros as they are.
    above -= below
    above *= weight.reshape([-1 if other == axis else 1 for other in range(3)])
    above += below
    return above
