"""Tumor shapes: ellipsoids with elastic deformation, made in the tumor's own small box.

Hu et al. 2023, section 3.1: half-axes U(0.75 r, 1.25 r) and an elastic deformation controlled by σe, after Simard et
al. 2003: random displacements on a coarse lattice, interpolated smoothly. Everything is computed on the CPU, in mm, so
that labels are the same on every machine.
"""

import math

import numpy as np
import torch

from difftumor.components import largest_component
from difftumor.seeding import torch_generator
from difftumor.synthesis.records import TumorRecord

# Lattice points per axis: the middle and both ends of the box, and one more on each side for the cubic.
_LATTICE = 5
# Normal displacements stay within this many σe; the box leaves that much room around the ellipsoid.
_REACH = 3.0


def reach_mm(half_axis_mm: float, deformation_sigma_mm: float) -> float:
    """Return how far from its center a tumor may extend along an axis, deformation included."""
    return half_axis_mm + _REACH * deformation_sigma_mm


def tumor_shape(record: TumorRecord) -> np.ndarray:
    """Make the mask of one tumor.

    The deformed ellipsoid is {x : |(x + u(x)) / a|² ≤ c}. The displacement u is zero at the center, and c is chosen so
    that the mask has the ellipsoid's volume: the deformation changes the shape, neither place nor size.

    Args:
        record: Half-axes, deformation and spacing are read, nothing else.

    Returns:
        Boolean array with odd sizes, whose middle voxel is the tumor's center: one 26-connected component, never
        empty, without empty slices at its faces except where symmetry about the center needs them.
    """
    spacing = record.spacing_mm
    halves = [
        max(1, math.ceil(reach_mm(axis, record.deformation_sigma_mm) / step))
        for axis, step in zip(record.half_axes_mm, spacing, strict=True)
    ]
    positions_mm = [torch.arange(-n, n + 1) * step for n, step in zip(halves, spacing, strict=True)]
    level = torch.zeros([2 * n + 1 for n in halves])
    displacement = _displacement_mm(record, positions_mm)
    for axis in range(3):
        shape = [-1 if i == axis else 1 for i in range(3)]
        point_mm = positions_mm[axis].view(shape) + (0.0 if displacement is None else displacement[axis])
        level += (point_mm / record.half_axes_mm[axis]) ** 2
    voxels = round(4 / 3 * math.pi * math.prod(record.half_axes_mm) / math.prod(spacing))
    voxels = min(max(voxels, 1), level.numel())
    # The c that gives the ellipsoid's volume is the volume-th smallest value; 1 without deformation and rounding.
    threshold = level.flatten().kthvalue(voxels).values
    without, mask = level < threshold, level <= threshold
    # Without deformation many voxels share a value, by symmetry: take them all or none, whichever is closer.
    if without.any() and voxels - int(without.sum()) < int(mask.sum()) - voxels:
        mask = without
    return _cropped_about_middle(largest_component(mask.numpy()))


def _displacement_mm(record: TumorRecord, positions_mm: list[torch.Tensor]) -> torch.Tensor | None:
    """Interpolate N(0, σe) lattice displacements to all voxels, (3, X, Y, Z), zero at the middle voxel."""
    if record.deformation_sigma_mm == 0:
        return None
    generator = torch_generator(record.shape_seed, "elastic")
    lattice = record.deformation_sigma_mm * torch.randn(3, _LATTICE, _LATTICE, _LATTICE, generator=generator)
    # Lattice points lie at the box's middle and ends, so that the longest wave of the deformation is the tumor's size.
    weights = [_catmull_rom(p / p.abs().max()) for p in positions_mm]
    field = torch.einsum("cijk,xi,yj,zk->cxyz", lattice, *weights)
    middle = [(len(p) - 1) // 2 for p in positions_mm]
    return field - field[:, middle[0], middle[1], middle[2]].view(3, 1, 1, 1)


def _catmull_rom(position: torch.Tensor) -> torch.Tensor:
    """Return (points, _LATTICE) interpolation weights for positions in [-1, 1]; lattice points at -2, -1, 0, 1, 2."""
    cell = position.floor().clamp(-1, 0)
    t = position - cell
    # The cubic through two points with the slopes of their neighbors (Catmull and Rom 1974); rows sum to one.
    cubic = torch.stack([-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2], dim=1)
    weights = torch.zeros(len(position), _LATTICE)
    columns = cell.long().unsqueeze(1) + 1 + torch.arange(4)
    return weights.scatter_(1, columns, 0.5 * cubic)


def _cropped_about_middle(mask: np.ndarray) -> np.ndarray:
    """Cut empty margins off, by the same amount on both sides of each axis, so that the middle stays the middle."""
    slices = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        margin = min(filled[0], mask.shape[axis] - 1 - filled[-1])
        slices.append(slice(margin, mask.shape[axis] - margin))
    return np.ascontiguousarray(mask[tuple(slices)])
