"""From a CT to a label map on its own grid: sliding-window prediction in model space, slab by slab."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import Any

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
from difftumor.segmentation.filters import drop_small_tumors, keep_inside_organ, predicted_organ
from difftumor.segmentation.options import OVERLAP, PredictionOptions, finds_tumors_only
from difftumor.segmentation.prediction import Prediction
from difftumor.segmentation.windows import blend_windows, blended_slabs, evaluating

# Native slices that are carried back at a time.
_SLAB = 8


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

    The result is on the device of the CT: a large scan can stay on the CPU while the network is on a GPU, and only
    windows are moved.

    Args:
        network: Maps (B, 1, X, Y, Z) to logits (B, classes, X, Y, Z).
        scaled_11XYZ: (1, 1, X, Y, Z), float32, scaled as the network expects.
        roi: Window (x, y, z) in voxels.
        overlap: Part of a window that its neighbor shares, in [0, 1).
        windows_per_batch: Number of windows that go through the network together.
        padding: Value around a scan smaller than the window: that of air, ``Scale.lowest``.

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
    options: PredictionOptions | None = None,
    *,
    organ: str | None = None,
    organ_mask: NDArray[Any] | None = None,
    windows_per_batch: int = 1,
    watch: Callable[[Box, NDArray[np.float32]], None] | None = None,
) -> Prediction:
    """Predict organ and tumor in a CT, on the CT's own grid.

    Probabilities are predicted in model space, averaged over the segmenters, and carried back by linear interpolation;
    the likeliest class is taken on the native grid, which gives smoother borders than carrying labels back. This runs
    slab by slab from inferior to superior: apart from the CT, the result and the filters, memory grows with the scan's
    cross-section only.

    Args:
        ct: The scan, in HU.
        artifacts: Loaded segmenters of one organ and spacing; networks run where their weights are.
        options: Windows and filters; by default `PredictionOptions()`.
        organ: Organ in which tumors are looked for. If the segmenters were trained on another one, the organ that they
            find is not this one: only tumors are kept, and every other voxel is background.
        organ_mask: (X, Y, Z) on the CT's grid, nonzero in the organ; for the organ filter "mask".
        windows_per_batch: Number of windows that go through the network together.
        watch: Called with every slab of the native grid and its probabilities (classes, x, y, z).

    Raises:
        ConfigError: The organ mask is missing, empty or on another grid, or the segmenters do not fit together.
        ArtifactError: A network's output is not finite.
    """
    options = options or PredictionOptions()
    check_together(artifacts)
    if options.organ_filter == "mask":
        check_organ_mask(organ_mask, ct)
    labels = np.zeros(ct.grid.shape, np.uint8, order="F")
    # Untouched pages of an array of zeros take no memory.
    tumor_probability = np.zeros(ct.grid.shape, np.float16, order="F")
    for slab, probabilities in _native_slabs(ct, artifacts, options, windows_per_batch):
        likeliest = probabilities.argmax(0)
        tumor = likeliest == TUMOR
        labels[slab.slices] = likeliest
        tumor_probability[slab.slices][tumor] = probabilities[TUMOR][tumor]
        if watch is not None:
            watch(slab, probabilities)
    labels, outside, small = _kept(labels, ct, organ_mask, options)
    config = artifacts[0].config
    tumor_only = finds_tumors_only(config.organ, organ)
    if tumor_only:
        labels[labels == ORGAN] = BACKGROUND
    low_hu, high_hu = config.preprocessing["window_hu"]
    return Prediction(
        ct=ct,
        labels=labels,
        tumor_probability=tumor_probability,
        organ=organ or config.organ,
        trained_on=config.organ,
        tumor_only=tumor_only,
        window_hu=(low_hu, high_hu),
        outside_voxels=outside,
        small_voxels=small,
    )


def check_together(artifacts: Sequence[Artifact]) -> None:
    """Refuse segmenters whose probabilities cannot be averaged; scaling of the CT and windows may differ.

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
        # With NaN every comparison is false, and the scan would silently be all background.
        if not torch.isfinite(probabilities_CXYZ).all():
            raise ArtifactError(f"The segmenter {artifact.path} gives no finite values for {ct.path}: train it again.")
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


def _kept(
    labels: NDArray[np.uint8], ct: Volume, organ_mask: NDArray[Any] | None, options: PredictionOptions
) -> tuple[NDArray[np.uint8], int, int]:
    """Filter the tumors; return labels, and how many tumor voxels the organ filter and the volume filter dropped."""
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
    return labels, counts[0] - counts[1], counts[1] - counts[2]


def _tumor_voxels(labels: NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(labels == TUMOR))


def check_organ_mask(organ_mask: NDArray[Any] | None, ct: Volume) -> None:
    """Refuse an organ mask that says nothing about a scan.

    Raises:
        ConfigError: It is missing, empty, or on another grid.
    """
    if organ_mask is None:
        raise ConfigError(f"The organ filter is 'mask', but {ct.path} has no organ mask: give one or another filter.")
    if organ_mask.shape != ct.grid.shape:
        raise ConfigError(
            f"The organ mask of {ct.path} has shape {organ_mask.shape}, the CT {ct.grid.shape}: give one on its grid."
        )
    if not organ_mask.any():
        raise ConfigError(f"The organ mask of {ct.path} is empty: give one that holds the organ, or none.")
