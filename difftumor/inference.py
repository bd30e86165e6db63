"""From a CT to a label map on its own grid: sliding-window prediction in model space, and the organ filter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from difftumor.artifacts import Artifact
from difftumor.errors import ArtifactError, ConfigError
from difftumor.grids import Box
from difftumor.intensity import IntensityWindow
from difftumor.organs import BACKGROUND, TUMOR
from difftumor.spaces import ModelSpace
from difftumor.volume import Volume
from difftumor.windows import blend_windows, evaluating

# Windows that overlap by three quarters, as published: each voxel is seen 64 times.
OVERLAP = 0.75
# Gaps in organ masks where tumors were left out are filled, and tumors may bulge out of the organ a little.
CLOSING_MM, DILATION_MM = 10.0, 5.0


def predict_probabilities(
    network: nn.Module,
    ct_unit_11XYZ: Tensor,
    *,
    roi: Sequence[int],
    overlap: float = OVERLAP,
    windows_per_batch: int = 1,
    padding: float = 0.0,
) -> Tensor:
    """Predict class probabilities with overlapping windows, weighted by a Gaussian.

    The CT stays where it is and so does the result: keep a large scan on the CPU while the network is on a GPU, and
    only windows travel.

    Args:
        network: Maps (B, 1, X, Y, Z) in [0, 1] to logits (B, classes, X, Y, Z).
        ct_unit_11XYZ: (1, 1, X, Y, Z), float32 in [0, 1].
        roi: Window (x, y, z) in voxels.
        overlap: Part of a window that its neighbor shares, in [0, 1).
        windows_per_batch: Windows that go through the network together.
        padding: What surrounds a scan smaller than the window: what air is scaled to.

    Returns:
        (1, classes, X, Y, Z), float32, sums to 1 over classes. The network's mode (train or eval) is as before.

    Raises:
        ConfigError: The overlap is out of range.
    """
    with evaluating(network):
        logits = blend_windows(
            network,
            ct_unit_11XYZ,
            window=roi,
            overlap=overlap,
            windows_per_batch=windows_per_batch,
            device=next(network.parameters()).device,
            padding=padding,
        )
    return torch.softmax(logits, dim=1)


def predict_volume(
    ct: Volume,
    artifact: Artifact,
    *,
    organ_mask: NDArray[Any] | None = None,
    roi: Sequence[int] | None = None,
    overlap: float = OVERLAP,
    windows_per_batch: int = 1,
    closing_mm: float = CLOSING_MM,
    dilation_mm: float = DILATION_MM,
) -> NDArray[np.uint8]:
    """Predict organ and tumor in a CT, on the CT's own grid.

    Probabilities are predicted in the model space of the artifact, carried back by linear interpolation, and the
    likeliest class is taken on the native grid, which gives smoother borders than carrying labels.

    Args:
        ct: The scan, in HU.
        artifact: A loaded segmenter; the network runs where its weights are.
        organ_mask: (X, Y, Z) on the CT's grid, nonzero in the organ. Tumor far from it is dropped.
        roi: Window in voxels of model space; the crop the network was trained with when None.
        overlap: Part of a window that its neighbor shares, in [0, 1).
        windows_per_batch: Windows that go through the network together.
        closing_mm: See `keep_inside_organ`.
        dilation_mm: See `keep_inside_organ`.

    Returns:
        (X, Y, Z) uint8: 0 background, 1 organ, 2 tumor.

    Raises:
        ConfigError: The organ mask is empty or on another grid, or the overlap is out of range.
        ArtifactError: The network gives values that are no numbers.
    """
    if organ_mask is not None:
        _check_organ_mask(organ_mask, ct)
    preprocessing = artifact.config.preprocessing
    low_hu, high_hu = preprocessing["window_hu"]
    space = ModelSpace(ct.grid, preprocessing["spacing_mm"])
    unit = IntensityWindow(low_hu, high_hu).to_unit(space.to_model(ct.data, kind="image"))
    probabilities = predict_probabilities(
        artifact.network,
        torch.from_numpy(np.ascontiguousarray(unit, np.float32))[None, None],
        roi=roi if roi is not None else preprocessing["crop"],
        overlap=overlap,
        windows_per_batch=windows_per_batch,
    )
    # Compared with NaN every class loses, and the scan would silently hold nothing.
    if not torch.isfinite(probabilities).all():
        raise ArtifactError(f"The segmenter {artifact.path} gives no numbers for {ct.path}: train it anew.")
    labels = _likeliest_on_native(probabilities[0].numpy(), space)
    if organ_mask is None:
        return labels
    return keep_inside_organ(
        labels, organ_mask, spacing_mm=ct.grid.spacing_mm, closing_mm=closing_mm, dilation_mm=dilation_mm
    )


def keep_inside_organ(
    labels: NDArray[np.uint8],
    organ_mask: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    closing_mm: float = CLOSING_MM,
    dilation_mm: float = DILATION_MM,
) -> NDArray[np.uint8]:
    """Drop tumor voxels that lie outside the organ, closed and then dilated by balls.

    Args:
        labels: (X, Y, Z): 0 background, 1 organ, 2 tumor.
        organ_mask: (X, Y, Z), nonzero in the organ; its tumors may be part of it or left out.
        spacing_mm: Voxel size.
        closing_mm: Radius of the closing, which fills gaps such as tumors left out of the mask.
        dilation_mm: How far a tumor may reach out of the closed organ.

    Returns:
        A copy in which dropped voxels are background.

    Raises:
        ValueError: The shapes differ or a radius is negative.
    """
    if labels.shape != organ_mask.shape:
        raise ValueError(f"labels {labels.shape} and organ mask {organ_mask.shape} differ in shape")
    if closing_mm < 0 or dilation_mm < 0:
        raise ValueError(f"closing_mm {closing_mm} and dilation_mm {dilation_mm} must not be negative")
    reach = [int(np.ceil((closing_mm + dilation_mm) / step)) + 1 for step in spacing_mm]
    organ_box = Box.around(organ_mask)
    allowed = np.zeros(labels.shape, bool)
    if not organ_box.empty:
        box = organ_box.padded(reach).clipped(organ_mask.shape)
        organ = organ_mask[box.slices] != 0
        closed = _eroded(_dilated(organ, closing_mm, spacing_mm), closing_mm, spacing_mm)
        # Erosion by rounding must not lose what was there.
        allowed[box.slices] = _dilated(closed | organ, dilation_mm, spacing_mm)
    return np.where((labels == TUMOR) & ~allowed, BACKGROUND, labels).astype(np.uint8)


def _check_organ_mask(organ_mask: NDArray[Any], ct: Volume) -> None:
    if organ_mask.shape != ct.grid.shape:
        raise ConfigError(
            f"The organ mask of {ct.path} has shape {organ_mask.shape}, the CT {ct.grid.shape}: give one on its grid."
        )
    if not organ_mask.any():
        raise ConfigError(f"The organ mask of {ct.path} is empty: give one that holds the organ, or none.")


def _likeliest_on_native(probabilities: NDArray[np.float32], space: ModelSpace) -> NDArray[np.uint8]:
    """Carry one class after the other, so that the native grid holds two of them at a time."""
    best = space.to_native(probabilities[0], kind="image")
    labels = np.zeros(best.shape, np.uint8)
    for value in range(1, len(probabilities)):
        candidate = space.to_native(probabilities[value], kind="image")
        labels[candidate > best] = value
        np.maximum(best, candidate, out=best)
    return labels


def _dilated(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    if radius_mm == 0:
        return mask
    distance_mm: NDArray[np.float64] = distance_transform_edt(~mask, sampling=tuple(spacing_mm))
    return distance_mm <= radius_mm


def _eroded(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """Erode by a ball; what lies beyond the array does not erode, so organs cut by the scan's end stay whole."""
    if radius_mm == 0 or mask.all():
        return mask
    distance_mm: NDArray[np.float64] = distance_transform_edt(mask, sampling=tuple(spacing_mm))
    return distance_mm > radius_mm
