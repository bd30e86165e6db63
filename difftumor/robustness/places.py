"""Places in an organ where a shape lies wholly inside, and how deep they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from difftumor.grids import Box
from difftumor.synthesis.clearance import Distance, Mask, distance_mm
from difftumor.synthesis.records import Voxel
from difftumor.synthesis.site import Site


class Places:
    """The voxels of an organ as centers of tumors.

    Args:
        site: The organ; not modified.
    """

    def __init__(self, site: Site) -> None:
        self._spacing_mm = site.spacing_mm
        self._box = Box.around(site.mask)
        self._organ = np.ascontiguousarray(site.mask[self._box.slices])

    def fitting(self, shape: Mask) -> NDArray[np.intp]:
        """Return (N, 3) the voxels on which the middle of a shape, of odd sizes, can lie so that all of it is organ."""
        return np.argwhere(self._fits(shape)) + self._box.start

    def by_depth(self, shape: Mask, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the same from the least to the most deep; the order of those of one depth is random."""
        fits = np.argwhere(self._fits(shape))
        fits = fits[generator.permutation(len(fits))]
        order = np.argsort(self._depth_mm[tuple(fits.T)], kind="stable")
        return fits[order] + self._box.start

    def depth_at(self, center: Voxel) -> float:
        """Return how far an organ voxel is from the organ's surface, in mm; the end of the scan is one."""
        return float(self._depth_mm[tuple(np.subtract(center, self._box.start))])

    @cached_property
    def _depth_mm(self) -> Distance:
        return distance_mm(self._organ, self._spacing_mm, closed=True)

    def _fits(self, shape: Mask) -> NDArray[np.bool_]:
        if any(n > m for n, m in zip(Box.around(shape).shape, self._organ.shape, strict=True)):
            return np.zeros_like(self._organ)
        # Voxels of the shape that lie in the organ, for every place at once; beyond the box there is none.
        turned = shape[::-1, ::-1, ::-1].astype(np.float32)
        inside = fftconvolve(self._organ.astype(np.float32), turned, mode="same")
        fits: NDArray[np.bool_] = inside > np.count_nonzero(shape) - 0.5
        return fits


def joined(shapes: Sequence[Mask]) -> Mask:
    """Return what any of some shapes of odd sizes covers, with their middles on each other."""
    size = np.max([shape.shape for shape in shapes], axis=0)
    whole: Mask = np.zeros(size, bool)
    for shape in shapes:
        start = (size - shape.shape) // 2
        whole[tuple(slice(a, a + n) for a, n in zip(start, shape.shape, strict=True))] |= shape
    return whole
