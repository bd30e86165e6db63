"""Blending: where and how strongly a tumor's texture replaces the healthy CT.

DiffTumor and Hu et al. 2023, eq. (4): CT' = (1 − w) · CT + w · tumor, with w the tumor mask blurred by a Gaussian.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difftumor.scans.grid import Box

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
    """What the tumors of a batch add to it, in the only part where they add anything.

    Args:
        box: That part, the same for all elements.
        change_hu: (B, 1, X, Y, Z) of the box: sum of the tumors' changes.
        weight: Likewise: sum of their weights.
    """

    box: Box
    change_hu: Tensor
    weight: Tensor

    @classmethod
    def empty(cls, ct_B1XYZ: Tensor, box: Box) -> "Blend":
        """Return one without tumors, in the type and on the device of a batch."""
        part = ct_B1XYZ[(..., *box.slices)]
        return cls(box, torch.zeros_like(part), torch.zeros_like(part))

    def add(self, element: int, box: Box, change_hu: Tensor, weight: Tensor) -> None:
        """Add the change and weight of one tumor, given in a box of the batch."""
        index = (element, 0, *box.relative_to(self.box).slices)
        self.change_hu[index] += change_hu
        self.weight[index] += weight

    def applied_to(self, ct_B1XYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return a changed copy of a batch, and where the weight is over 0."""
        inside, index = self.weight > 0, (..., *self.box.slices)
        made, halo = ct_B1XYZ.clone(), torch.zeros_like(ct_B1XYZ, dtype=torch.bool)
        # Where halos of several tumors overlap, their weights may sum to more than one.
        made[index] = add_change(ct_B1XYZ[index], self.change_hu / self.weight.clamp(min=1.0), inside)
        halo[index] = inside
        return made, halo


def blend_change(healthy: Tensor, tumor: Tensor, weight: Tensor) -> Tensor:
    """Return (1 − w) · healthy + w · tumor − healthy, that is w · (tumor − healthy), the change to be added.

    Args:
        healthy: CT limited to the window in which the texture is made, any unit.
        tumor: Texture in the same unit.
        weight: In [0, 1]; the change is exactly 0 where it is 0.
    """
    return torch.where(weight > 0, weight * (tumor - healthy), torch.zeros_like(healthy))


def add_change(ct: Tensor, change: Tensor, halo: Tensor) -> Tensor:
    """Add a change where the halo is; elsewhere the CT is returned bit by bit.

    The change is added to the CT as it is, not to the CT limited to the window: bone and air keep their contrast.
    """
    return torch.where(halo, ct + change, ct)


def along_axes(values_XYZ: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply every axis with its matrix, (rows, size of the axis).

    In double precision: the order of a product's sums depends on the number of threads, and the result must not.
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
