"""How far two sets of feature vectors are apart: Fréchet distance and kernel distance."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def frechet_distance(one_NF: Tensor, other_MF: Tensor) -> float:
    """Return the Fréchet distance (FID) of two sets, as if each were normally distributed.

    It is |m - n|² + tr(S) + tr(T) - 2 tr((S T)^½), of the means and covariances. With centered rows A and B, so that
    S = AᵀA and T = BᵀB, the last trace is the sum of the singular values of A Bᵀ. That is exact for any number of rows.
    For few it is some hundred times faster than a matrix root, which is uncertain there, as S T is singular.

    Args:
        one_NF: (N, F), at least two rows.
        other_MF: (M, F), at least two rows.
    """
    one, other = one_NF.double(), other_MF.double()
    difference = one.mean(dim=0) - other.mean(dim=0)
    roots = [(each - each.mean(dim=0)) / (len(each) - 1) ** 0.5 for each in (one, other)]
    # With more rows than columns, a triangle of as many rows as columns has the same products.
    triangles = [torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in roots]
    traces = sum(float(root.square().sum()) for root in roots)
    cross = float(torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum())
    return max(0.0, float(difference @ difference) + traces - 2 * cross)


def kernel_matrix(groups_GKF: Tensor) -> NDArray[np.float64]:
    """Return the mean kernel, (x·y / F + 1)³, between all vectors of two groups, for each two groups.

    Args:
        groups_GKF: K vectors of each group, such as the slices of a tumor.

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

    A group is never compared with itself, so that the vectors of a group need not be independent. The result may fall
    below 0, and does in half of the cases where nothing differs.

    Args:
        kernel_GG: What ``kernel_matrix`` gave.
        one: Indices of groups; some may come again.
        other: The same.

    Returns:
        NaN where a set has no two groups.
    """
    return _within(kernel_GG, one) + _within(kernel_GG, other) - 2 * float(kernel_GG[np.ix_(one, other)].mean())


def _within(kernel_GG: NDArray[np.float64], groups: NDArray[np.intp]) -> float:
    different = groups[:, None] != groups[None]
    count = np.count_nonzero(different)
    return float((kernel_GG[np.ix_(groups, groups)] * different).sum() / count) if count else float("nan")
