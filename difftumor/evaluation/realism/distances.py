"""All distances between two sets of tumors, each computed from indices into one list of tumors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from statistics import fmean
from typing import Literal, Protocol

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from difftumor.evaluation.realism.texture import Texture
from difftumor.evaluation.realism.tumor_samples import Tumor, TumorCrop, hu_jensen_shannon, hu_wasserstein, slices_of
from difftumor.scans.appearance import appearance_distance


def frechet_distance(one_NF: Tensor, other_MF: Tensor) -> float:
    """Return the Fréchet distance (FID) of two sets, as if each were normally distributed.

    It is |m - n|² + tr(S) + tr(T) - 2 tr((S T)^½) of the means and covariances. With centered rows A and B, so that
    S = AᵀA and T = BᵀB, the last trace is the sum of the singular values of A Bᵀ. That is exact for any number of rows,
    and for few rows hundreds of times faster than a matrix root, which is inaccurate there because S T is singular.

    Args:
        one_NF: (N, F), at least two rows.
        other_MF: (M, F), at least two rows.
    """
    one, other = one_NF.double(), other_MF.double()
    difference = one.mean(dim=0) - other.mean(dim=0)
    roots = [(each - each.mean(dim=0)) / (len(each) - 1) ** 0.5 for each in (one, other)]
    # With more rows than columns, the square triangle of a QR decomposition has the same products.
    triangles = [torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in roots]
    traces = sum(float(root.square().sum()) for root in roots)
    cross = float(torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum())
    return max(0.0, float(difference @ difference) + traces - 2 * cross)


def kernel_matrix(groups_GKF: Tensor) -> NDArray[np.float64]:
    """Return the mean kernel (x·y / F + 1)³ over all pairs of vectors of two groups, for every pair of groups.

    Args:
        groups_GKF: (G, K, F): K vectors per group, such as the slices of a tumor.

    Returns:
        (G, G), symmetric.
    """
    groups = groups_GKF.double()
    count, size, dimensions = groups.shape
    rows = groups.reshape(-1, dimensions)
    blocks = [((group @ rows.T) / dimensions + 1).pow(3).view(size, count, size).mean(dim=(0, 2)) for group in groups]
    matrix = torch.stack(blocks).numpy()
    return (matrix + matrix.T) / 2


def kernel_distance(kernel_GG: NDArray[np.float64], one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    """Return the squared kernel distance (KID) of two sets of groups: the squared maximum mean discrepancy, unbiased.

    A group is never compared with itself, so the vectors of a group need not be independent. The result may be
    negative: if nothing differs, it is in half of the cases.

    Args:
        kernel_GG: Result of ``kernel_matrix``.
        one: Indices of groups; may repeat.
        other: Indices of groups; may repeat.

    Returns:
        The distance; NaN if a set has fewer than two groups.
    """
    return _within(kernel_GG, one) + _within(kernel_GG, other) - 2 * float(kernel_GG[np.ix_(one, other)].mean())


def _within(kernel_GG: NDArray[np.float64], groups: NDArray[np.intp]) -> float:
    different = groups[:, None] != groups[None]
    count = np.count_nonzero(different)
    return float((kernel_GG[np.ix_(groups, groups)] * different).sum() / count) if count else float("nan")


Indices = NDArray[np.intp]
PLANES = ("axial", "coronal", "sagittal")
# Crops or slices per batch of a network.
_BATCH = 16


class FeatureExtractor(Protocol):
    """Anything that maps slices or crops to features.

    Attributes:
        name: Short, without spaces.
        kind: Whether it takes slices (B, 1, H, W) or crops (B, 1, X, Y, Z), in HU.
        dimensions: Numbers per slice or crop.
        extract: From a batch to features (B, dimensions), float32 on the CPU.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> Literal["slices", "crops"]: ...  # noqa: D102

    @property
    def dimensions(self) -> int: ...  # noqa: D102

    @property
    def extract(self) -> Callable[[Tensor], Tensor]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Sample:
    """A tumor as distances need it.

    Args:
        tumor: Its measurements.
        features: By name of the network: (planes, slices, F), or (1, 1, F) of a crop.
    """

    tumor: Tumor
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class DistanceName:
    """What a distance is called.

    Args:
        key: Name in files.
        label: Name on pages.
        unit: Empty for a plain number.
        network: Network whose features it compares; empty for measurements without one.
        plane: Plane, if it is of a single one; empty for the mean of all.
    """

    key: str
    label: str
    unit: str = ""
    network: str = ""
    plane: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Distances:
    """Distances that are computed together.

    Args:
        names: What they are called.
        between: Maps the indices of two sets (a tumor may repeat) to one number per name; NaN if nothing can be
            compared.
        resampled: Whether an interval over resampled patients makes sense.
        vectors: Feature vectors per tumor.
        dimensions: Number of feature vectors that a set must exceed; 0 for no minimum.
    """

    names: tuple[DistanceName, ...]
    between: Callable[[Indices, Indices], tuple[float, ...]]
    resampled: bool = True
    vectors: int = 1
    dimensions: int = 0


def take_features(crop: TumorCrop, networks: Sequence[FeatureExtractor], *, slices: int) -> Sample:
    """Return a tumor with the features of its crop and slices, without the crop.

    Args:
        crop: The tumor.
        networks: Feature networks.
        slices: Slices per plane, as for ``slices_of``.
    """
    features = {}
    for network in networks:
        if network.kind == "crops":
            batch, planes = torch.from_numpy(crop.ct_hu_XYZ)[None, None], 1
        else:
            batch = torch.from_numpy(slices_of(crop.ct_hu_XYZ, crop.extent, slices)).flatten(0, 1)[:, None]
            planes = len(PLANES)
        extracted = torch.cat([network.extract(part) for part in batch.split(_BATCH)])
        features[network.name] = extracted.view(planes, -1, extracted.shape[1])
    return Sample(crop.tumor, features)


def all_distances(samples: Sequence[Sample], networks: Sequence[FeatureExtractor]) -> list[Distances]:
    """Return all distances between sets of these tumors."""
    tumors = [sample.tumor for sample in samples]
    found = [_of_hu(tumors), _of_appearance(tumors), _of_texture(tumors), _of_size(tumors)]
    for network in networks:
        features = torch.stack([sample.features[network.name] for sample in samples])
        found += [_frechet(features, network), _kernel(features, network)]
    return found


def _of_hu(tumors: Sequence[Tumor]) -> Distances:
    histograms = np.stack([tumor.histogram_H for tumor in tumors])
    names = (
        DistanceName("hu_wasserstein", "HU inside, Wasserstein", "HU"),
        DistanceName("hu_jensen_shannon", "HU inside, Jensen–Shannon"),
    )

    def between(one: Indices, other: Indices) -> tuple[float, ...]:
        sets = histograms[one], histograms[other]
        return hu_wasserstein(*sets), hu_jensen_shannon(*sets)

    return Distances(names=names, between=between)


def _of_appearance(tumors: Sequence[Tumor]) -> Distances:
    names = (
        DistanceName("contrast", "Contrast to the surroundings", "HU"),
        DistanceName("sd", "Standard deviation inside", "HU"),
        DistanceName("edge", "Mean edge profile", "HU"),
    )

    def between(one: Indices, other: Indices) -> tuple[float, ...]:
        found = appearance_distance(*([tumors[index].appearance for index in indices] for indices in (one, other)))
        return found.contrast_hu, found.sd_hu, found.edge_hu

    return Distances(names=names, between=between)


def _of_texture(tumors: Sequence[Tumor]) -> Distances:
    units = {"contrast": "levels²", "entropy": "bit"}
    properties = [field.name for field in fields(Texture)]
    names = [DistanceName(f"texture_{name}", f"Texture, {name}", units.get(name, "")) for name in properties]
    values = {name: [getattr(tumor.texture, name) for tumor in tumors] for name in properties}
    return Distances(names=tuple(names), between=_of_values(values))


def _of_size(tumors: Sequence[Tumor]) -> Distances:
    values = {"diameter": [tumor.diameter_mm for tumor in tumors]}
    return Distances(names=(DistanceName("diameter", "Diameter", "mm"),), between=_of_values(values))


def _of_values(values: Mapping[str, Sequence[float]]) -> Callable[[Indices, Indices], tuple[float, ...]]:
    """Return Wasserstein-1 distances of numbers per tumor; tumors without a number are left out."""
    columns = [np.array(column, np.float64) for column in values.values()]

    def distance(column: NDArray[np.float64], one: Indices, other: Indices) -> float:
        sets = [column[indices][np.isfinite(column[indices])] for indices in (one, other)]
        return float(scipy.stats.wasserstein_distance(*sets)) if all(map(len, sets)) else float("nan")

    return lambda one, other: tuple(distance(column, one, other) for column in columns)


def _frechet(features_GPKF: Tensor, network: FeatureExtractor) -> Distances:
    def of_plane(plane: int, one: Indices, other: Indices) -> float:
        sets = [features_GPKF[torch.from_numpy(each), plane].flatten(0, 1) for each in (one, other)]
        return frechet_distance(*sets) if min(map(len, sets)) > 1 else float("nan")

    return Distances(
        names=_feature_names("fid", "FID", network),
        between=partial(_planes_and_mean, of_plane, features_GPKF.shape[1]),
        resampled=False,  # repeated samples narrow the covariance
        vectors=features_GPKF.shape[2],
        dimensions=network.dimensions,
    )


def _kernel(features_GPKF: Tensor, network: FeatureExtractor) -> Distances:
    kernels = [kernel_matrix(features_GPKF[:, plane]) for plane in range(features_GPKF.shape[1])]

    def of_plane(plane: int, one: Indices, other: Indices) -> float:
        return kernel_distance(kernels[plane], one, other)

    return Distances(
        names=_feature_names("kernel", "Kernel distance", network),
        between=partial(_planes_and_mean, of_plane, len(kernels)),
    )


def _planes_and_mean(
    of_plane: Callable[[int, Indices, Indices], float], planes: int, one: Indices, other: Indices
) -> tuple[float, ...]:
    found = [of_plane(plane, one, other) for plane in range(planes)]
    return (*found, fmean(found)) if planes > 1 else tuple(found)


def _feature_names(key: str, label: str, network: FeatureExtractor) -> tuple[DistanceName, ...]:
    name = network.name
    if network.kind == "crops":
        return (DistanceName(f"{key}_{name}", f"{label}, {name}", network=name),)
    planes = (
        DistanceName(f"{key}_{name}_{plane}", f"{label}, {name}, {plane}", network=name, plane=plane)
        for plane in PLANES
    )
    return (*planes, DistanceName(f"{key}_{name}", f"{label}, {name}, mean of planes", network=name))
