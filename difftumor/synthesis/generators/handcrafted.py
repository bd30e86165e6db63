"""Hand-crafted texture: noise of a given grain, without a network.

Hu et al. 2023, section 3.1, eq. (3): Gaussian noise, scaled up by cubic splines and blurred. Its predecessor (Hu et
al., NeurIPS 2022 workshop, section 2) starts from salt noise instead.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy
import torch
from torch import Tensor

from difftumor.seeding import torch_generator
from difftumor.synthesis.blending import along_axes, blur_radius, gaussian_matrix
from difftumor.synthesis.records import TextureRecord

# The paper scales voxels up, and its voxels are about 1 mm: a grain of 1 is noise on a lattice with this step.
_GRAIN_MM = 1.0
# Lattice points beyond the texture's border. The influence of a spline's end falls to 0.27 per point: to 0.0004.
_MARGIN = 6
# The workshop paper gives no numbers for salt; these are ours: one point in five is bright, so that salt is rare but
# the blurred texture isn't flat between, and the limit, in standard deviations, cuts only where grains pile up.
_SALT_SHARE = 0.2
_SALT_LIMIT = 2.0
_ROUNDED_HU = 2.0**-10


def handcrafted_texture(
    texture: TextureRecord, shape: tuple[int, int, int], *, spacing_mm: Sequence[float], seed: int
) -> Tensor:
    """Make the texture of a box.

    The grain has the same size in mm at any spacing. Voxels larger than the grain are independent of their neighbors
    and have the full standard deviation, as the noise of a CT with such voxels.

    Args:
        texture: What to make.
        shape: Size of the box; another size gives another texture.
        spacing_mm: Size of a voxel along each axis.
        seed: With the other arguments, decides every value.

    Returns:
        HU, (X, Y, Z) float32 on the CPU.
    """
    matrices = [
        _scale_and_blur(size, step, grain_mm=texture.grain * _GRAIN_MM, blur_mm=texture.blur_sigma_mm)
        for size, step in zip(shape, spacing_mm, strict=True)
    ]
    lattice = [matrix.shape[1] for matrix in matrices]
    generator = torch_generator(seed, "handcrafted")
    if texture.kind == "gaussian":
        unit = along_axes(torch.randn(lattice, generator=generator), matrices)
        if texture.scaled:
            # Eq. (3) takes 60 % of σp away; the texture is to look like the parenchyma.
            unit /= _gain(matrices)
    else:
        # Blur and scaling are linear and in mm: their order, the other way round in the workshop paper, is immaterial.
        salt = (torch.rand(lattice, generator=generator) < _SALT_SHARE).float() - _SALT_SHARE
        unit = along_axes(salt, matrices) / (math.sqrt(_SALT_SHARE * (1 - _SALT_SHARE)) * _gain(matrices))
        unit = unit.clamp(-_SALT_LIMIT, _SALT_LIMIT)
    # Rounding removes what may still depend on the number of threads.
    return torch.round((texture.mean_hu + texture.sd_hu * unit) / _ROUNDED_HU) * _ROUNDED_HU


def _scale_and_blur(size: int, spacing_mm: float, *, grain_mm: float, blur_mm: float) -> Tensor:
    """Return eq. (3) along one axis, (size, lattice points) float64: interpolate a lattice to voxels and blur them."""
    # Voxels larger than the grain are a lattice of their own, between which nothing needs to be interpolated.
    grain_mm = max(grain_mm, spacing_mm)
    radius = blur_radius(blur_mm / spacing_mm)
    # Voxels beyond the border are made for the blur, so that the border is like everywhere else.
    position = np.arange(-radius, size + radius) * (spacing_mm / grain_mm)
    points = np.arange(math.floor(position[0]) - _MARGIN, math.ceil(position[-1]) + _MARGIN + 1)
    # A spline is linear in its values: interpolating the unit vectors gives the weights of every lattice point.
    scale = torch.from_numpy(scipy.interpolate.CubicSpline(points, np.eye(len(points)))(position))
    blur = gaussian_matrix(len(position), blur_mm / spacing_mm)[radius : radius + size]
    return blur @ scale


def _gain(matrices: Sequence[Tensor]) -> float:
    """Return the standard deviation, root mean square over the voxels, that unit white noise on the lattice gets."""
    return math.sqrt(math.prod(float(matrix.square().sum(dim=1).mean()) for matrix in matrices))
