"""Blending: which patches of a CT the networks see, and how strongly a tumor's texture replaces the healthy CT.

DiffTumor and Hu et al. 2023, eq. (4): CT' = (1 − w) · CT + w · tumor, with w the tumor mask blurred by a Gaussian.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difftumor.scans.grid import Box, Voxel, triple
from difftumor.synthesis.records import TumorRecord

# The Gaussian ends here, in standard deviations: beyond, the weight is exactly 0 and the CT stays as it is.
TRUNCATE = 4.0


def blur_radius(sigma_voxels: float) -> int:
    """Return how many voxels beyond the mask the blurred weight reaches."""
    return int(TRUNCATE * sigma_voxels + 0.5)


def blurred_weight(mask_XYZ: Tensor, sigma_voxels: float | Sequence[float]) -> Tensor:
    """Blur a mask with a Gaussian of ``sigma_voxels``, cut at ``TRUNCATE`` standard deviations.

    At the border the mask is continued by reflection, so that a tumor cut by the border keeps its full weight there.

    Args:
        mask_XYZ: Boolean or 0/1 mask.
        sigma_voxels: Standard deviation, one number or one per axis; 0 returns the mask itself.

    Returns:
        Weights in [0, 1], float32, same shape and device; exactly 0 beyond ``blur_radius`` of the mask.
    """
    weight = mask_XYZ.float()
    occupied = mask_XYZ.nonzero()
    sigmas = [sigma_voxels] * 3 if isinstance(sigma_voxels, (int, float)) else list(sigma_voxels)
    reach = [blur_radius(sigma) for sigma in sigmas]
    if max(reach) == 0 or len(occupied) == 0:
        return weight
    first, last = occupied.min(dim=0).values.tolist(), occupied.max(dim=0).values.tolist()
    source = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    target = tuple(
        slice(max(0, a - radius), min(size, b + radius + 1))
        for a, b, radius, size in zip(first, last, reach, weight.shape, strict=True)
    )
    matrices = [
        gaussian_matrix(size, sigma)[rows, columns]
        for size, sigma, rows, columns in zip(weight.shape, sigmas, target, source, strict=True)
    ]
    result = torch.zeros_like(weight)
    result[target] = along_axes(weight[source], matrices).clamp(0.0, 1.0)
    return result


@dataclass(frozen=True, eq=False)
class Blend:
    """What the tumors of a batch add to it, in the part that they change.

    Args:
        box: That part, the same for all elements.
        change_hu: Sum of the tumors' changes in the box, (B, 1, X, Y, Z).
        weight: Sum of their weights, of the same shape.
        lesions: Numbers of the tumors in the whole batch.
        minimum_change_hu: A tumor that changes the mean inside its label by less is faint.
        faint: Those that are.
    """

    box: Box
    change_hu: Tensor
    weight: Tensor
    lesions: Tensor
    minimum_change_hu: float
    faint: "list[PlacedTumor]" = field(default_factory=list)

    @classmethod
    def empty(cls, ct_B1XYZ: Tensor, box: Box, lesions_B1XYZ: Tensor, minimum_change_hu: float = 0.0) -> "Blend":
        """Return a blend without tumors, of the type and on the device of a batch."""
        part = ct_B1XYZ[(..., *box.slices)]
        return cls(box, torch.zeros_like(part), torch.zeros_like(part), lesions_B1XYZ, minimum_change_hu)

    def add(self, tumor: "PlacedTumor", box: Box, change_hu: Tensor, weight: Tensor) -> None:
        """Add the change and weight of one tumor, given in a box of the batch."""
        self.judge(tumor, box, change_hu)
        index = (tumor.element, 0, *box.relative_to(self.box).slices)
        self.change_hu[index] += change_hu
        self.weight[index] += weight

    def judge(self, tumor: "PlacedTumor", box: Box, change_hu: Tensor) -> None:
        """Note a tumor that is faint; its change is given in a box of the batch."""
        if self.minimum_change_hu > 0:
            inside = self.lesions[(tumor.element, 0, *box.slices)] == tumor.instance
            # In double precision, so that the order of the sum does not decide. One that others cover has no label.
            if not inside.any() or abs(float(change_hu[inside].double().mean())) < self.minimum_change_hu:
                self.faint.append(tumor)

    def applied_to(self, ct_B1XYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return a changed copy of a batch, and the mask of weights above 0."""
        inside, index = self.weight > 0, (..., *self.box.slices)
        made, halo = ct_B1XYZ.clone(), torch.zeros_like(ct_B1XYZ, dtype=torch.bool)
        # The weights of overlapping halos may sum to more than one.
        made[index] = add_change(ct_B1XYZ[index], self.change_hu / self.weight.clamp(min=1.0), inside)
        halo[index] = inside
        return made, halo


def smoothed_tissue(ct_XYZ: Tensor, organ_XYZ: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    """Smooth an organ with a Gaussian that sees no voxel outside of it; what this takes away is the CT's noise.

    Args:
        ct_XYZ: CT, any unit.
        organ_XYZ: Boolean mask.
        sigma_voxels: Standard deviation per axis; cut at ``TRUNCATE`` of them, and reflected at the border.

    Returns:
        Same shape and type; outside the organ the CT as it is.
    """
    matrices = [gaussian_matrix(size, sigma) for size, sigma in zip(ct_XYZ.shape, sigma_voxels, strict=True)]
    inside = organ_XYZ.double()
    total, weight = along_axes(ct_XYZ * inside, matrices), along_axes(inside, matrices)
    return torch.where(organ_XYZ, (total / weight).to(ct_XYZ.dtype), ct_XYZ)


def blend_change(healthy: Tensor, tumor: Tensor, weight: Tensor) -> Tensor:
    """Return the change to add: (1 − w) · healthy + w · tumor − healthy = w · (tumor − healthy).

    Args:
        healthy: CT limited to the window in which the texture is made, any unit.
        tumor: Texture in the same unit.
        weight: In [0, 1]; the change is exactly 0 where it is 0.
    """
    return torch.where(weight > 0, weight * (tumor - healthy), torch.zeros_like(healthy))


def add_change(ct: Tensor, change: Tensor, halo: Tensor) -> Tensor:
    """Add a change inside the halo; elsewhere the CT stays bit-identical.

    The change is added to the original CT, not to the CT limited to the window, so bone and air keep their contrast.
    """
    return torch.where(halo, ct + change, ct)


def along_axes(values_XYZ: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply every axis with its matrix, (rows, size of the axis).

    In double precision, since the order of a product's sums depends on the number of threads, and the result must not.
    """
    result = values_XYZ.double()
    with torch.autocast(values_XYZ.device.type, enabled=False):
        for matrix in matrices:
            # The new axis comes last: a cyclic shift.
            result = torch.tensordot(result, matrix.to(result), dims=([0], [1]))
    return result.to(values_XYZ.dtype)


def gaussian_matrix(size: int, sigma_voxels: float) -> Tensor:
    """Return the (size, size) matrix, float64, that blurs one axis as ``blurred_weight`` does.

    The border is reflected (d c b a | a b c d | d c b a); ``blur_radius`` or more from it, rows are the kernel itself.
    """
    radius = blur_radius(sigma_voxels)
    if radius == 0:
        return torch.eye(size, dtype=torch.float64)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma_voxels) ** 2)
    kernel /= kernel.sum()
    rows = torch.arange(size).unsqueeze(1)
    period = (rows + offsets) % (2 * size)
    columns = torch.where(period < size, period, 2 * size - 1 - period)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, columns, kernel.expand(size, -1).contiguous())


@dataclass(frozen=True)
class PlacedTumor:
    """A tumor in one element of a batch.

    Args:
        element: Index in the batch.
        instance: Its number in the lesion map, from 1.
        record: The tumor.
        box: Box of its voxels.
        size: Size of its whole mask, before organ and neighbors cut it.
    """

    element: int
    instance: int
    record: TumorRecord
    box: Box
    size: Voxel

    @property
    def whole_halo_box(self) -> Box:
        """Box outside of which the blurred mask is zero; it may reach beyond the array."""
        return self.box.padded(blur_radius(self.record.blur_sigma_voxels))

    def halo_box(self, shape: Voxel) -> Box:
        """Return the part of that box inside the array."""
        return self.whole_halo_box.clipped(shape)


@dataclass(frozen=True)
class Patch:
    """Part of one element that goes through the networks at once, for some of its tumors.

    Args:
        element: Index in the batch.
        box: Its box in the array, beyond which it reaches if the array is smaller.
        tumors: Tumors that get their texture from it.
        whole: Whether it is a whole training crop.
    """

    element: int
    box: Box
    tumors: tuple[PlacedTumor, ...]
    whole: bool = False

    @property
    def seed(self) -> int:
        """Seed of the noise: that of the first tumor."""
        return self.tumors[0].record.texture_seed


def plan_patches(
    tumors: list[PlacedTumor], array: Voxel, patch: Voxel, multiple: Voxel, *, together: bool
) -> list[Patch]:
    """Decide which patches are needed.

    A training crop is one patch, with all its tumors together, as in the published recipe. Otherwise every tumor gets a
    patch of its own, centered on it but kept inside the array if that is large enough, and larger than ``patch`` if
    tumor and halo need it.

    Args:
        tumors: All tumors of the batch, in order.
        array: Size of the arrays.
        patch: Smallest size of a patch.
        multiple: Sizes are multiples of this, as the networks need.
        together: Whether each array, which then has the patch's size, is one patch.
    """
    if together:
        elements = dict.fromkeys(tumor.element for tumor in tumors)
        own = {element: tuple(tumor for tumor in tumors if tumor.element == element) for element in elements}
        return [Patch(element, Box.whole(array), members, whole=True) for element, members in own.items()]
    return [Patch(tumor.element, _patch_box(tumor, array, patch, multiple), (tumor,)) for tumor in tumors]


def take_patch(array_XYZ: Tensor, box: Box) -> Tensor:
    """Cut a box from an array; beyond the border the border voxels are repeated."""
    result = array_XYZ
    for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
        index = torch.arange(start, stop, device=array_XYZ.device).clamp(0, array_XYZ.shape[axis] - 1)
        result = result.index_select(axis, index)
    return result


def _patch_box(tumor: PlacedTumor, array: Voxel, patch: Voxel, multiple: Voxel) -> Box:
    halo = tumor.halo_box(array)
    starts, stops = [], []
    for axis in range(3):
        extent = halo.stop[axis] - halo.start[axis]
        size = max(patch[axis], math.ceil(extent / multiple[axis]) * multiple[axis])
        if size >= array[axis]:
            start = -((size - array[axis]) // 2)
        else:
            middle = (halo.start[axis] + halo.stop[axis]) // 2
            start = min(max(0, middle - size // 2), array[axis] - size)
        starts.append(start)
        stops.append(start + size)
    return Box(triple(starts), triple(stops))
