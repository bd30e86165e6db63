"""From a CT to a label map on its own grid: sliding-window prediction in model space, slab by slab."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import Artifact
from difftumor.scans.grid import Box
from difftumor.scans.intensity import Normalization, Scale
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import BACKGROUND, ORGAN, TUMOR
from difftumor.segmentation.filters import (
    CLOSING_MM,
    DILATION_MM,
    drop_small_tumors,
    keep_inside_organ,
    predicted_organ,
)
from difftumor.segmentation.windows import blend_windows, blended_slabs, check_overlap, evaluating

# Windows that overlap by three quarters, as published: each voxel is seen 64 times.
OVERLAP = 0.75
OrganFilter = Literal["mask", "predicted", "none"]
# Native slices that are carried back at a time.
_SLAB = 8


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How a scan is predicted, in plain values.

    Args:
        overlap: Part of a window that its neighbor shares, in [0, 1).
        flips: Average what the network says of each window mirrored along all its axes: eight times the work.
        organ_filter: Drop tumor outside of the organ "mask" that is given, outside of the "predicted" organ
            (`difftumor.segmentation.filters.predicted_organ`), or not ("none").
        closing_mm: See `difftumor.segmentation.filters.keep_inside_organ`.
        dilation_mm: See there.
        min_volume_mm3: Smaller tumors are dropped (`difftumor.segmentation.filters.drop_small_tumors`).

    Raises:
        ConfigError: A value is out of range.
    """

    overlap: float = OVERLAP
    flips: bool = False
    organ_filter: OrganFilter = "none"
    closing_mm: float = CLOSING_MM
    dilation_mm: float = DILATION_MM
    min_volume_mm3: float = 0.0

    def __post_init__(self) -> None:
        check_overlap(self.overlap)
        for name in ("closing_mm", "dilation_mm", "min_volume_mm3"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number from 0 up.")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of a scan, on its own grid.

    Args:
        labels: (X, Y, Z) uint8: 0 background, 1 organ, 2 tumor.
        tumor_probability: (X, Y, Z) float16: probability of tumor where it is the likeliest, also where a filter
            dropped it; 0 elsewhere.
        outside_voxels: Tumor voxels that the organ filter dropped.
        small_voxels: Tumor voxels that were dropped with their tumors for being few.
    """

    labels: NDArray[np.uint8]
    tumor_probability: NDArray[np.float16]
    outside_voxels: int = 0
    small_voxels: int = 0


def predict_probabilities(
    network: nn.Module,
    scaled_11XYZ: Tensor,
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
        network: Maps (B, 1, X, Y, Z) to logits (B, classes, X, Y, Z).
        scaled_11XYZ: (1, 1, X, Y, Z), float32, scaled as the network wants it.
        roi: Window (x, y, z) in voxels.
        overlap: Part of a window that its neighbor shares, in [0, 1).
        windows_per_batch: Windows that go through the network together.
        padding: What surrounds a scan smaller than the window: what air becomes, ``Scale.lowest``.

    Returns:
        (1, classes, X, Y, Z), float32, sums to 1 over classes. The network's mode (train or eval) is as before.

    Raises:
        ConfigError: The overlap is out of range.
    """
    with evaluating(network):
        logits = blend_windows(
            network,
            scaled_11XYZ,
            window=roi,
            overlap=overlap,
            windows_per_batch=windows_per_batch,
            device=next(network.parameters()).device,
            padding=padding,
        )
    return torch.softmax(logits, dim=1)


def predict_volume(
    ct: Volume,
    artifacts: Sequence[Artifact],
    options: PredictionOptions = PredictionOptions(),
    *,
    organ_mask: NDArray[Any] | None = None,
    windows_per_batch: int = 1,
    watch: Callable[[Box, NDArray[np.float32]], None] | None = None,
) -> Prediction:
    """Predict organ and tumor in a CT, on the CT's own grid.

    Probabilities are predicted in model space, averaged over the segmenters, and carried back by linear interpolation;
    the likeliest class is taken on the native grid, which gives smoother borders than carrying labels. All this goes
    slab by slab from inferior to superior, so that memory goes with the scan's cross-section, but for the CT, the
    result and the filters.

    Args:
        ct: The scan, in HU.
        artifacts: Loaded segmenters of one organ and spacing; networks run where their weights are.
        options: How.
        organ_mask: (X, Y, Z) on the CT's grid, nonzero in the organ; for the organ filter "mask".
        windows_per_batch: Windows that go through the network together.
        watch: Is given every slab of the native grid, and its probabilities (classes, x, y, z).

    Raises:
        ConfigError: The organ mask is missing, empty or on another grid, or the segmenters don't fit together.
        ArtifactError: A network gives values that are no numbers.
    """
    check_together(artifacts)
    if options.organ_filter == "mask":
        _check_organ_mask(organ_mask, ct)
    labels = np.zeros(ct.grid.shape, np.uint8, order="F")
    # Pages that nothing is written to take no memory.
    tumor_probability = np.zeros(ct.grid.shape, np.float16, order="F")
    for slab, probabilities in _native_slabs(ct, artifacts, options, windows_per_batch):
        likeliest = probabilities.argmax(0)
        tumor = likeliest == TUMOR
        labels[slab.slices] = likeliest
        tumor_probability[slab.slices][tumor] = probabilities[TUMOR][tumor]
        if watch is not None:
            watch(slab, probabilities)
    return _filtered(labels, tumor_probability, ct, organ_mask, options)


def check_together(artifacts: Sequence[Artifact]) -> None:
    """Refuse segmenters whose probabilities must not be averaged: each may scale the CT and cut windows in its own way.

    Raises:
        ConfigError: There are none, or their organs, spacings or numbers of classes differ.
    """
    if not artifacts:
        raise ConfigError("No segmenter is given: give one or more.")
    first = artifacts[0]
    for other in artifacts[1:]:
        for what, a in _shared(first).items():
            if a != (b := _shared(other)[what]):
                raise ConfigError(
                    f"The segmenters {first.path} and {other.path} differ in {what} ({a} and {b}): average those of "
                    "one organ and spacing, such as the folds of one training."
                )


def _shared(artifact: Artifact) -> dict[str, Any]:
    spacing_mm = tuple(artifact.config.preprocessing["spacing_mm"])
    classes = artifact.config.architecture.get("classes", len((BACKGROUND, ORGAN, TUMOR)))
    return {"organ": artifact.config.organ, "spacing_mm": spacing_mm, "classes": classes}


def _native_slabs(
    ct: Volume, artifacts: Sequence[Artifact], options: PredictionOptions, windows_per_batch: int
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """Yield the slabs of the native grid, and their probabilities (classes, x, y, z)."""
    space = ModelSpace(ct.grid, artifacts[0].config.preprocessing["spacing_mm"])
    streams = [_slices(ct, space, artifact, options, windows_per_batch) for artifact in artifacts]
    means = (sum(slices) / len(slices) for slices in zip(*streams, strict=True))
    held: list[NDArray[np.float32]] = []
    bottom = 0
    for slab in space.native_slabs(_SLAB):
        needed = space.model_box(slab)
        held += [next(means) for _ in range(bottom + len(held), needed.stop[2])]
        del held[: needed.start[2] - bottom]
        bottom = needed.start[2]
        part_CXYZ = np.stack(held, axis=-1)
        part = Box((0, 0, bottom), (*space.grid.shape[:2], bottom + len(held)))
        yield slab, np.stack([space.to_native(one, kind="image", box=slab, part=part) for one in part_CXYZ])


def _slices(
    ct: Volume, space: ModelSpace, artifact: Artifact, options: PredictionOptions, windows_per_batch: int
) -> Iterator[NDArray[np.float32]]:
    """Yield one segmenter's probabilities (classes, X, Y) of the slices of model space, from inferior to superior."""
    scale = _scale(ct, space, artifact)

    def read(start: int, stop: int) -> Tensor:
        box = Box((0, 0, start), (*space.grid.shape[:2], stop))
        return torch.from_numpy(scale(space.to_model(ct.data, kind="image", box=box)).astype(np.float32))

    network = artifact.network
    slabs = blended_slabs(
        _mirrored(network) if options.flips else network,
        read,
        shape=space.grid.shape,
        window=artifact.config.preprocessing["crop"],
        overlap=options.overlap,
        windows_per_batch=windows_per_batch,
        device=next(network.parameters()).device,
        padding=scale.lowest,
    )
    while True:
        with evaluating(network):  # not around the yield, where others may use the network
            logits_CXYZ = next(slabs, None)
        if logits_CXYZ is None:
            return
        probabilities_CXYZ = torch.softmax(logits_CXYZ, dim=0)
        # Compared with NaN every class loses, and the scan would silently hold nothing.
        if not torch.isfinite(probabilities_CXYZ).all():
            raise ArtifactError(f"The segmenter {artifact.path} gives no numbers for {ct.path}: train it anew.")
        yield from np.moveaxis(probabilities_CXYZ.cpu().numpy(), -1, 0)


def _scale(ct: Volume, space: ModelSpace, artifact: Artifact) -> Scale:
    normalization = Normalization.of(artifact.config.preprocessing)
    if normalization.kind == "unit":
        return normalization.scale(ct.data[:1, :1, :1])  # the same for all scans
    whole = np.empty(space.grid.shape, np.float32)
    for start in range(0, space.grid.shape[2], _SLAB):
        box = Box((0, 0, start), (*space.grid.shape[:2], start + _SLAB)).clipped(space.grid.shape)
        whole[box.slices] = space.to_model(ct.data, kind="image", box=box)
    return normalization.scale(whole)


def _mirrored(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that averages the logits of windows (B, C, X, Y, Z) over all mirror images."""
    axes = list(chain.from_iterable(combinations((2, 3, 4), count) for count in range(4)))

    def predict(windows: Tensor) -> Tensor:
        total = network(windows)
        for flipped in axes[1:]:
            total += network(windows.flip(flipped)).flip(flipped)
        return total / len(axes)

    return predict


def _filtered(
    labels: NDArray[np.uint8],
    tumor_probability: NDArray[np.float16],
    ct: Volume,
    organ_mask: NDArray[Any] | None,
    options: PredictionOptions,
) -> Prediction:
    counts = [_tumor_voxels(labels)]
    if options.organ_filter != "none":
        organ = organ_mask if options.organ_filter == "mask" else predicted_organ(labels)
        assert organ is not None
        radii = {"closing_mm": options.closing_mm, "dilation_mm": options.dilation_mm}
        labels = keep_inside_organ(labels, organ, spacing_mm=ct.grid.spacing_mm, **radii)
    counts.append(_tumor_voxels(labels))
    if options.min_volume_mm3 > 0:
        labels = drop_small_tumors(labels, least_mm3=options.min_volume_mm3, voxel_mm3=ct.grid.voxel_mm3)
    counts.append(_tumor_voxels(labels))
    return Prediction(labels, tumor_probability, counts[0] - counts[1], counts[1] - counts[2])


def _tumor_voxels(labels: NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(labels == TUMOR))


def _check_organ_mask(organ_mask: NDArray[Any] | None, ct: Volume) -> None:
    if organ_mask is None:
        raise ConfigError(f"The organ filter is 'mask', but {ct.path} has no organ mask: give one or another filter.")
    if organ_mask.shape != ct.grid.shape:
        raise ConfigError(
            f"The organ mask of {ct.path} has shape {organ_mask.shape}, the CT {ct.grid.shape}: give one on its grid."
        )
    if not organ_mask.any():
        raise ConfigError(f"The organ mask of {ct.path} is empty: give one that holds the organ, or none.")
