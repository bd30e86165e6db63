"""Fingerprints of CT: what tells that two files hold the same scan, whatever their names and headers say.

A fingerprint has two parts. The *content* is a hash of all HU in an order that the content itself decides: flips and
permutations of the array, other headers, types and compressions do not change it, and equal ones are the same scan.
The *landmarks* are the most salient blobs of the scan at 4 mm, each with a pattern of bits of its surroundings. A crop,
another sampling or another window keeps many of them, and how they lie to each other: a suspicion of the same scan.
"""

from __future__ import annotations

import base64
import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, Literal

import nibabel as nib
import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.scans.grid import Array
from difftumor.scans.nifti import Volume

# Same voxels at the same place, at another place, or mirrored; or landmarks that lie alike.
Likeness = Literal["identical", "other header", "flipped", "suspected"]

# Raised when the same scan would get another fingerprint.
_VERSION = "1"
# Step of the landmarks' grid and σ of its smoothing, and the σ that it is compared with: blobs of about a centimeter.
_STEP_MM, _COARSE_MM = 4.0, 7.0
# HU that every usual window of soft tissue holds, so that a windowed copy keeps what landmarks are found in.
_LOW_HU, _HIGH_HU = -100.0, 200.0
# Landmarks kept, steps between them, and HU by which one differs at least from its surroundings.
_MOST, _APART, _LEAST_HU = 48, 2, 5.0
# The pattern of a landmark is 4³ points so far apart, each a bit: whether it is brighter than their median.
_PATTERN_POINTS, _PATTERN_MM = 4, 12.0
# Landmarks are alike up to so many different bits; scans are suspected with so many of them displaced alike, to so many
# mm. benchmarks/fingerprints.py measures what these numbers miss and what they suspect wrongly.
_BITS, _ALIKE, _TOLERANCE_MM = 12, 7, 4.0
# Scans whose landmarks are compared at once: as many as a cache holds.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What identifies the voxels of a CT.

    Attributes:
        content: SHA-256 of the HU, cut to 32 digits.
        turn: How the content lies in the patient: the directions of its axes, as ``"-z+x+y"`` (right, forward, up).
        place: SHA-256 of shape and affine, to 0.01 mm, cut to 8 digits.
        points_mm: (N, 3) uint16, landmarks from the scan's left, posterior, inferior corner.
        patterns: (N,) uint64, the bits around each.
    """

    content: str
    turn: str
    place: str
    points_mm: NDArray[np.uint16]
    patterns: NDArray[np.uint64]

    def __str__(self) -> str:
        """Return it as text, about 950 characters, which ``from_text`` reads."""
        landmarks = self.points_mm.astype("<u2").tobytes() + self.patterns.astype("<u8").tobytes()
        return ":".join((_VERSION, self.content, self.turn, self.place, base64.b64encode(landmarks).decode()))

    @classmethod
    def from_text(cls, text: str) -> Fingerprint | None:
        """Read what ``str`` returned; None if it is of another version, or no fingerprint."""
        parts = str(text).split(":")
        if len(parts) != 5 or parts[0] != _VERSION:
            return None
        try:
            landmarks = base64.b64decode(parts[4], validate=True)
            count = len(landmarks) // 14
            points_mm = np.frombuffer(landmarks, "<u2", 3 * count).reshape(count, 3).astype(np.uint16)
            patterns = np.frombuffer(landmarks, "<u8", count, offset=6 * count).astype(np.uint64)
        except ValueError:
            return None
        return cls(parts[1], parts[2], parts[3], points_mm, patterns)

    def likeness(self, other: Fingerprint) -> Likeness | None:
        """Say how another scan is the same as this one; None if it does not look like it.

        Landmarks of two parts of one patient, or of two scans at different times, may lie alike as well.
        """
        if self.content == other.content:
            if self.turn != other.turn:
                return "flipped"
            return "identical" if self.place == other.place else "other header"
        return "suspected" if self.alike(other) >= _ALIKE else None

    def alike(self, other: Fingerprint) -> int:
        """Return how many landmarks of two scans are alike and displaced alike; 0 if too few for a suspicion."""
        different = np.bitwise_count(self.patterns[:, None] ^ other.patterns[None])
        if not different.size:
            return 0
        partners = different.argmin(axis=1)  # the most similar one
        own = np.flatnonzero(different[np.arange(len(different)), partners] <= _BITS)
        theirs = partners[own]
        moved_mm = self.points_mm[own].astype(np.float32) - other.points_mm[theirs]
        together = np.all(np.abs(moved_mm[:, None] - moved_mm[None]) <= _TOLERANCE_MM, axis=-1)
        together = together[together.sum(axis=1) >= _ALIKE]  # for speed: the others cannot reach it
        return max((len(set(theirs[group])) for group in list(together)), default=0)


class LandmarkIndex:
    """The landmarks of many scans side by side, to find those that a scan may look like without asking each.

    Args:
        fingerprints: Those of the scans.
    """

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self._scans = [number for number, each in enumerate(fingerprints) if len(each.patterns) >= _ALIKE]
        kept = [fingerprints[number].patterns for number in self._scans]
        self._starts = np.cumsum([0, *map(len, kept)])
        self._patterns = np.concatenate([np.empty(0, np.uint64), *kept])

    def candidates(self, own: Fingerprint, *, first: int = 0) -> list[int]:
        """Return, by their numbers from ``first`` on, all scans that may be suspected to be the same, and few others.

        A suspicion needs landmarks with alike bits, wherever they lie: this compares nothing else.
        """
        found: list[int] = []
        for begin in range(bisect_left(self._scans, first), len(self._scans), _BLOCK):
            starts = self._starts[begin : begin + _BLOCK + 1]
            bits = self._patterns[starts[0] : starts[-1]]
            alike = np.bitwise_count(own.patterns[:, None] ^ bits) <= _BITS
            counts = np.logical_or.reduceat(alike, starts[:-1] - starts[0], axis=1).sum(axis=0)
            found += [self._scans[begin + number] for number in np.flatnonzero(counts >= _ALIKE)]
        return found


def fingerprint(ct: Volume) -> Fingerprint:
    """Return the fingerprint of a CT.

    Args:
        ct: HU, as ``read_ct`` returns it, in any orientation.
    """
    turns = nib.io_orientation(ct.grid.affine)  # of each axis: which of RAS it is, and its sign
    affine = ct.grid.affine @ nib.orientations.inv_ornt_aff(turns, ct.grid.shape)
    values, smooth = _whole_and_smooth(ct, turns[:, 1])
    values_XYZ = nib.apply_orientation(values, turns)  # a view
    rounded = (np.round(affine, 2) + 0.0).tobytes()  # no -0
    place = hashlib.sha256(rounded + repr(values_XYZ.shape).encode()).hexdigest()[:8]
    content, turn = _content(values_XYZ)
    return Fingerprint(content, turn, place, *_landmarks(smooth.transpose(np.argsort(turns[:, 0]))))


def _whole_and_smooth(ct: Volume, signs: Array) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return the HU as whole numbers, and what ``_landmarks`` takes, the latter with all axes along those of RAS.

    Plane by plane, for memory: the whole numbers, whose sums do not depend on their order; and the HU clipped, smoothed
    by a Gaussian, at steps of 4 mm.
    """
    along = [_gaussians(*axis) for axis in zip(ct.grid.shape, ct.grid.spacing_mm, signs, strict=True)]
    values = np.empty(ct.grid.shape, np.int16, order="F")
    planes = np.empty((along[0].shape[0], along[1].shape[0], values.shape[2]), np.float32)
    for z in range(values.shape[2]):
        values[..., z] = np.rint(ct.data[..., z]).clip(-32768, 32767)
        soft = ct.data[..., z].clip(_LOW_HU, _HIGH_HU)
        planes[..., z] = (along[1] @ (along[0] @ soft).T).T
    return values, planes @ along[2].toarray().T


def _gaussians(size: int, step_mm: float, sign: float) -> Any:
    """Return the weights of an axis' voxels at steps of 4 mm, a sparse (steps, size), each row of sum 1."""
    steps_mm = (np.arange(max(1, math.ceil(size * step_mm / _STEP_MM))) + 0.5) * _STEP_MM
    voxels_mm = (np.arange(size)[:: int(sign)] + 0.5) * step_mm
    sigmas = (steps_mm[:, None] - voxels_mm) / max(_STEP_MM, 0.5 * step_mm)
    weights = np.where(np.abs(sigmas) < 3, np.exp(-0.5 * sigmas**2), 0)
    return scipy.sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _content(values_XYZ: NDArray[np.int16]) -> tuple[str, str]:
    """Return the hash of the values, and the directions of the axes in whose order they were hashed.

    Axes are sorted by length, then by their profile, the sums of the planes across; each begins at the end where its
    profile is lower. Where profiles leave a choice, as in a symmetric scan, the lowest hash decides.
    """
    plane_XY = values_XYZ.sum(axis=2, dtype=np.int64)
    profiles = [plane_XY.sum(axis=1), plane_XY.sum(axis=0), values_XYZ.sum(axis=(0, 1), dtype=np.int64)]
    forward = [tuple(profile.tolist()) for profile in profiles]
    signs = ["+-" if line == line[::-1] else "+" if line < line[::-1] else "-" for line in forward]
    keys = [(len(line), min(line, line[::-1])) for line in forward]
    orders = [order for order in permutations(range(3)) if [keys[axis] for axis in order] == sorted(keys)]
    found = []
    for order, chosen in product(orders, product(*signs)):
        flipped = values_XYZ[tuple(slice(None, None, 1 if sign == "+" else -1) for sign in chosen)]
        turn = "".join(f"{chosen[axis]}{'xyz'[axis]}" for axis in order)
        found.append((_hash(flipped.transpose(order)), turn))
    return min(found)


def _hash(values: NDArray[np.int16]) -> str:
    digest = hashlib.sha256(repr(values.shape).encode())
    for plane in values:
        digest.update(np.ascontiguousarray(plane, "<i2").data)
    return digest.hexdigest()[:32]


def _landmarks(fine: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """Return points and patterns of the blobs that differ most from their surroundings."""
    coarse = scipy.ndimage.gaussian_filter(fine, math.sqrt(_COARSE_MM**2 - _STEP_MM**2) / _STEP_MM, mode="nearest")
    blobs = np.abs(fine - coarse)  # difference of Gaussians
    peaks = (blobs == scipy.ndimage.maximum_filter(blobs, 2 * _APART + 1)) & (blobs > _LEAST_HU)
    voxels = np.argwhere(peaks)
    voxels = voxels[np.argsort(-blobs[peaks], kind="stable")][:_MOST]
    points = voxels + _beyond_voxels(blobs, voxels)
    steps = (np.arange(_PATTERN_POINTS) - (_PATTERN_POINTS - 1) / 2) * _PATTERN_MM / _STEP_MM
    around = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    sampled = scipy.ndimage.map_coordinates(fine, (points[:, None] + around).reshape(-1, 3).T, order=1, mode="nearest")
    values = sampled.reshape(len(points), len(around))
    bits = values > np.median(values, axis=1, keepdims=True)
    patterns = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return np.rint(points * _STEP_MM).clip(0, 65535).astype(np.uint16), patterns


def _beyond_voxels(blobs: NDArray[np.float32], voxels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return how far the summits of peaks lie from their voxels: (N, 3), from -0.5 to 0.5, by parabolas."""
    offsets = np.zeros(voxels.shape)
    for axis, length in enumerate(blobs.shape):
        below, above = voxels.copy(), voxels.copy()
        below[:, axis] = np.maximum(below[:, axis] - 1, 0)
        above[:, axis] = np.minimum(above[:, axis] + 1, length - 1)
        low, middle, high = (blobs[tuple(at.T)].astype(np.float64) for at in (below, voxels, above))
        bend = 2 * middle - low - high
        offsets[:, axis] = np.divide(0.5 * (high - low), bend, out=np.zeros(len(voxels)), where=bend > 0)
    return offsets.clip(-0.5, 0.5)
