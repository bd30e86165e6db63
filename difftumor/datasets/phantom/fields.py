"""Smooth random fields in space: what makes no two phantoms alike."""

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float32]
Axes = tuple[Array, Array, Array]

# Control points cover this cube around the origin, so that a field does not depend on the grid that samples it.
EXTENT_MM = 260.0
# Integral of the squared cubic B-spline: the variance of a field with unit-variance control points, per axis.
_SPLINE_POWER = 151.0 / 315.0


class SmoothField:
    """A zero-mean, unit-variance random function of position: a cubic B-spline with Gaussian control points.

    Args:
        wavelength_mm: Distance between control points; bumps are about twice as wide.
        generator: Source of the control points.
    """

    def __init__(self, *, wavelength_mm: float, generator: np.random.Generator) -> None:
        self.wavelength_mm = wavelength_mm
        count = int(np.ceil(2 * EXTENT_MM / wavelength_mm)) + 3
        self._controls = generator.standard_normal((count, count, count), dtype=np.float32)

    def sample(self, axes_mm: Axes) -> Array:
        """Return values (X, Y, Z) on the grid spanned by three coordinate axes in mm."""
        x, y, z = (self._basis(axis) for axis in axes_mm)
        values = np.einsum("ijk,ck->ijc", self._controls, z, optimize=True)
        values = np.einsum("ijc,bj->ibc", values, y, optimize=True)
        return np.einsum("ibc,ai->abc", values, x, optimize=True)

    def _basis(self, axis_mm: Array) -> Array:
        """Return (points, control points): the weight of each control point at each coordinate."""
        position = (np.clip(axis_mm, -EXTENT_MM, EXTENT_MM) + EXTENT_MM) / self.wavelength_mm + 1.0
        u = np.abs(position[:, None] - np.arange(self._controls.shape[0]))
        near = 2.0 / 3.0 - u**2 + 0.5 * u**3
        far = np.clip(2.0 - u, 0.0, None) ** 3 / 6.0
        return (np.where(u < 1.0, near, far) / np.sqrt(_SPLINE_POWER)).astype(np.float32)


def correlated_noise(
    shape: tuple[int, ...], *, sigma_voxels: tuple[float, ...], generator: np.random.Generator
) -> Array:
    """Return Gaussian noise of unit standard deviation whose neighbors are alike, as in reconstructed CT.

    Args:
        shape: Shape of the result.
        sigma_voxels: Width of the smoothing kernel per axis; 0 leaves an axis white.
        generator: Source of the noise.
    """
    noise = scipy.ndimage.gaussian_filter(
        generator.standard_normal(shape, dtype=np.float32), sigma_voxels, mode="wrap", truncate=3.0
    )
    return noise / max(float(noise.std()), 1e-6)
