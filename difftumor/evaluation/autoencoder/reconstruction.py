"""Whole scans reconstructed by an autoencoder, window by window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import Artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.latent_codec import depth_first, depth_last
from difftumor.scans.grid import triple
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume
from difftumor.segmentation.windows import blend_windows, evaluating

# A quarter hides the seams; more costs time and smooths the noise by averaging more windows.
OVERLAP = 0.25
# Small windows are batched, in as much memory as one of the published size: on a CPU, PyTorch is several times slower
# with single ones.
_VOXELS_TOGETHER, _MOST_TOGETHER = 96**3, 8
_AIR = -1.0


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A CT as an autoencoder reconstructs it.

    Attributes:
        ct_signed_XYZ: (X, Y, Z) float32 in [-1, 1], on the device of the CT.
        code_counts_K: (codes,) int64: how many latent vectors took each code, over all windows.
    """

    ct_signed_XYZ: Tensor
    code_counts_K: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanReconstruction:
    """A scan and its reconstruction, both in the model space of the artifact.

    Attributes:
        space: Maps the scan's own grid to model space.
        window: HU window of the network.
        ct_hu_XYZ: (X, Y, Z) float32 HU, not clipped.
        reconstruction_hu_XYZ: (X, Y, Z) float32 HU, inside the window.
        code_counts_K: (codes,) int64: how many latent vectors took each code, over all windows.
    """

    space: ModelSpace
    window: IntensityWindow
    ct_hu_XYZ: Tensor
    reconstruction_hu_XYZ: Tensor
    code_counts_K: Tensor


def reconstruct(
    autoencoder: Autoencoder,
    ct_signed_XYZ: Tensor,
    *,
    window: Sequence[int],
    overlap: float = OVERLAP,
    windows_per_batch: int | None = None,
) -> Reconstruction:
    """Encode, quantize and decode a whole scan with overlapping windows, weighted by a Gaussian.

    Scan and result stay on the scan's device: keep a large scan on the CPU while the network is on a GPU, and only
    windows are moved. A scan smaller than the window is padded with air. The network's mode is restored.

    Args:
        autoencoder: A trained autoencoder.
        ct_signed_XYZ: (X, Y, Z), float32 in [-1, 1], of any size.
        window: Window (x, y, z) in voxels, a multiple of the autoencoder's downsampling; the crop it was trained with.
        overlap: Overlap of neighboring windows, in [0, 1).
        windows_per_batch: Windows per batch; `windows_together` when None.

    Raises:
        ConfigError: The overlap is out of range, or the window is not a multiple of the downsampling.
    """
    step = autoencoder.downsampling
    if len(window) != 3 or any(size < 1 or size % step for size in window):
        raise ConfigError(f"window {tuple(window)} is not three multiples of {step}: give for instance (96, 96, 96).")
    device = next(autoencoder.parameters()).device
    codes = autoencoder.codebook.codes
    counts_K = torch.zeros(codes, dtype=torch.int64, device=device)

    def predict(ct_B1XYZ: Tensor) -> Tensor:
        output = autoencoder(depth_first(ct_B1XYZ))
        counts_K.add_(torch.bincount(output.quantized.indices.flatten(), minlength=codes))
        return depth_last(output.reconstruction.float())

    with evaluating(autoencoder):
        blended_11XYZ = blend_windows(
            predict,
            ct_signed_XYZ[None, None],
            window=triple(window),
            overlap=overlap,
            windows_per_batch=windows_per_batch or windows_together(window),
            device=device,
            padding=_AIR,
        )
    return Reconstruction(blended_11XYZ[0, 0].clip_(-1, 1), counts_K.to(ct_signed_XYZ.device))


def windows_together(window: Sequence[int]) -> int:
    """Return the default number of windows per batch for a window size."""
    return min(max(_VOXELS_TOGETHER // math.prod(window), 1), _MOST_TOGETHER)


def reconstruct_scan(
    ct: Volume,
    artifact: Artifact,
    *,
    window: Sequence[int] | None = None,
    overlap: float = OVERLAP,
    windows_per_batch: int | None = None,
) -> ScanReconstruction:
    """Resample a scan to the model space of an autoencoder and reconstruct it there.

    Args:
        ct: The scan, in HU.
        artifact: A loaded autoencoder; it runs where its weights are.
        window: Window in voxels of model space; the crop the autoencoder was trained with when None.
        overlap: Overlap of neighboring windows, in [0, 1).
        windows_per_batch: Windows per batch; `windows_together` when None.

    Raises:
        ConfigError: The overlap or the window is out of range.
        ArtifactError: The network returns NaN or infinity.
    """
    preprocessing = artifact.config.preprocessing
    hu_window = IntensityWindow(*preprocessing["window_hu"])
    space = ModelSpace(ct.grid, preprocessing["spacing_mm"])
    ct_hu_XYZ = torch.from_numpy(np.ascontiguousarray(space.to_model(ct.data, kind="image")))
    result = reconstruct(
        cast(Autoencoder, artifact.network),
        hu_window.to_signed(ct_hu_XYZ),
        window=window if window is not None else preprocessing["crop"],
        overlap=overlap,
        windows_per_batch=windows_per_batch,
    )
    if not torch.isfinite(result.ct_signed_XYZ).all():
        raise ArtifactError(f"The autoencoder {artifact.path} returns NaN or infinity for {ct.path}: retrain it.")
    return ScanReconstruction(
        space=space,
        window=hu_window,
        ct_hu_XYZ=ct_hu_XYZ,
        reconstruction_hu_XYZ=hu_window.from_signed(result.ct_signed_XYZ),
        code_counts_K=result.code_counts_K,
    )
