"""Which true and predicted lesions have voxels in common, and how they are matched one to one."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from difftumor.components import Components

Indices = NDArray[np.int64]


def common_voxels(truth: Components, prediction: Components) -> tuple[Indices, Indices, Indices]:
    """Return true lesion, predicted lesion and number of common voxels of each pair that has any; lesions from 0."""
    box = truth.box.intersection(prediction.box)
    places = np.flatnonzero((truth.indices[box.slices] > 0) & (prediction.indices[box.slices] > 0))
    rows, columns = (found.indices[box.slices].ravel()[places].astype(np.int64) - 1 for found in (truth, prediction))
    pairs, voxels = np.unique(rows * len(prediction.voxels) + columns, return_counts=True)
    return *np.divmod(pairs, max(1, len(prediction.voxels))), voxels


def center_hits(truth: Components, prediction: Components) -> tuple[Indices, Indices]:
    """Return the pairs whose predicted center of mass lies in the true lesion; lesions from 0."""
    nearest = np.floor(prediction.centroids + 0.5).astype(np.int64)
    hit = truth.indices[tuple(nearest.T)].astype(np.int64) - 1
    columns = np.flatnonzero(hit >= 0)
    return hit[columns], columns


def one_to_one(rows: Indices, columns: Indices, voxels: Indices, shape: tuple[int, int]) -> Indices:
    """Return which pairs of a one-to-one matching have the most voxels, and of those the most pairs."""
    degree = np.bincount(rows, minlength=shape[0])[rows] + np.bincount(columns, minlength=shape[1])[columns]
    alone = degree == 2  # in no other pair: most are, and what is left is small
    contested = np.flatnonzero(~alone)
    if not contested.size:
        return np.flatnonzero(alone)
    lesions, row = np.unique(rows[contested], return_inverse=True)
    predictions, column = np.unique(columns[contested], return_inverse=True)
    # Every lesion has a partner of its own to fall back on, which stands for being missed and adds nothing but the
    # constant that keeps entries from being zero, and with that from being no entries.
    weights = 1 + voxels[contested] * (1 + min(len(lesions), len(predictions))) + 1
    numbers = np.arange(len(lesions))
    table = sparse.coo_array(
        (
            np.concatenate([weights, np.ones(len(lesions), np.int64)]).astype(np.float64),
            (np.concatenate([row, numbers]), np.concatenate([column, len(predictions) + numbers])),
        )
    ).tocsr()
    matched_row, matched_column = min_weight_full_bipartite_matching(table, maximize=True)
    partner = np.full(len(lesions), -1)
    partner[matched_row] = matched_column
    return np.concatenate([np.flatnonzero(alone), contested[partner[row] == column]])
