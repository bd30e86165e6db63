"""Networks over volumes larger than their windows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from difftumor.segmentation.options import check_overlap


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, without autograd; afterwards every module has the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def blend_windows(
    predict: Callable[[Tensor], Tensor],
    volume_11XYZ: Tensor,
    *,
    window: Sequence[int],
    overlap: float,
    windows_per_batch: int,
    device: torch.device,
    padding: float,
) -> Tensor:
    """Predict window by window, and blend the windows with a Gaussian that favors their middles.

    The result is on the volume's device; only windows are moved to the network's.

    Args:
        predict: Maps windows (B, 1, X, Y, Z) on ``device`` to (B, C, X, Y, Z).
        volume_11XYZ: (1, 1, X, Y, Z), float32, of any size; padded evenly if it is smaller than the window.
        window: Window (x, y, z) in voxels.
        overlap: Share of a window that overlaps its neighbor, in [0, 1).
        windows_per_batch: Number of windows that are predicted together.
        device: Where ``predict`` runs.
        padding: Value around a volume smaller than the window.

    Returns:
        (1, C, X, Y, Z), float32, on the volume's device.

    Raises:
        ConfigError: The overlap is out of range.
    """
    check_overlap(overlap)
    inferer = SlidingWindowInferer(
        roi_size=tuple(window),
        sw_batch_size=windows_per_batch,
        overlap=overlap,
        mode="gaussian",
        padding_mode="constant",
        cval=padding,
        sw_device=device,
        device=volume_11XYZ.device,
    )
    # One output, so a tensor and no tuple of them.
    return cast(Tensor, inferer(volume_11XYZ, predict))


def blended_slabs(
    predict: Callable[[Tensor], Tensor],
    read: Callable[[int, int], Tensor],
    *,
    shape: Sequence[int],
    window: Sequence[int],
    overlap: float,
    windows_per_batch: int,
    device: torch.device,
    padding: float,
) -> Iterator[Tensor]:
    """Blend windows as `blend_windows` does, but from bottom to top, with memory for one layer of windows.

    Args:
        predict: Maps windows (B, 1, X, Y, Z) on ``device`` to (B, C, X, Y, Z).
        read: Returns slices (X, Y, stop - start) of the volume, float32, for ``start`` and ``stop`` along Z. It is
            called for every slice once, in order.
        shape: (X, Y, Z) of the volume.
        window: Window (x, y, z) in voxels.
        overlap: Share of a window that overlaps its neighbor, in [0, 1).
        windows_per_batch: Number of windows that are predicted together.
        device: Where ``predict`` runs; the layer is kept there too.
        padding: Value around a volume smaller than the window.

    Yields:
        (C, X, Y, n), float32, on ``device``: the next n slices.

    Raises:
        ConfigError: The overlap is out of range.
    """
    check_overlap(overlap)
    margins = [_margins(size, w) for size, w in zip(shape, window, strict=True)]
    inside_x, inside_y, inside_z = (slice(m[0], m[0] + size) for m, size in zip(margins, shape, strict=True))
    starts_x, starts_y, starts_z = (_starts(size, w, overlap) for size, w in zip(shape, window, strict=True))
    places = [(slice(x, x + window[0]), slice(y, y + window[1])) for x, y in product(starts_x, starts_y)]
    importance_XYZ = compute_importance_map(tuple(window), mode="gaussian", device=device)

    def read_padded(start: int, stop: int) -> Tensor:
        slices = read(start, min(stop, shape[2])).to(device)
        return F.pad(slices, [side for margin in reversed(margins) for side in margin], value=padding)

    layer_XYZ = read_padded(0, window[2])
    weights_XYZ = torch.zeros_like(layer_XYZ)
    sums_CXYZ: Tensor | None = None
    for start, following in zip(starts_z, [*starts_z[1:], starts_z[-1] + window[2]], strict=True):
        for first in range(0, len(places), windows_per_batch):
            batch = places[first : first + windows_per_batch]
            predicted = predict(torch.stack([layer_XYZ[place][None] for place in batch])).float()
            if sums_CXYZ is None:
                sums_CXYZ = predicted.new_zeros(predicted.shape[1], *layer_XYZ.shape)
            for place, values_CXYZ in zip(batch, predicted, strict=True):
                sums_CXYZ[(slice(None), *place)] += importance_XYZ * values_CXYZ
                weights_XYZ[place] += importance_XYZ
        assert sums_CXYZ is not None
        done = following - start
        finished_CXYZ = sums_CXYZ[..., :done] / weights_XYZ[..., :done]
        yield finished_CXYZ[:, inside_x, inside_y, inside_z if len(starts_z) == 1 else slice(None)]
        if following in starts_z:
            # The part that later windows overlap moves down to the bottom of the next layer.
            sums_CXYZ, weights_XYZ = (F.pad(part[..., done:], (0, done)) for part in (sums_CXYZ, weights_XYZ))
            layer_XYZ = torch.cat([layer_XYZ[..., done:], read_padded(start + window[2], following + window[2])], -1)


def _margins(size: int, window: int) -> tuple[int, int]:
    """Return by how much an axis is padded below and above to hold a window, as MONAI's inferer pads it."""
    missing = max(window - size, 0)
    return missing // 2, missing - missing // 2


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along an axis, padded to at least a window, as MONAI's inferer places them."""
    size = max(size, window)
    step = max(1, int(window * (1 - overlap))) if size > window else window
    return [part.start for (part,) in dense_patch_slices((size,), (window,), (step,))]
