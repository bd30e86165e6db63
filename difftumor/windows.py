"""Networks over volumes larger than their windows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from difftumor.errors import ConfigError


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

    The volume stays where it is and so does the result: only windows travel.

    Args:
        predict: Maps windows (B, 1, X, Y, Z) on ``device`` to (B, C, X, Y, Z).
        volume_11XYZ: (1, 1, X, Y, Z), float32, of any size; padded evenly where it is smaller than the window.
        window: Window (x, y, z) in voxels.
        overlap: Part of a window that its neighbor shares, in [0, 1).
        windows_per_batch: Windows that are predicted together.
        device: Where ``predict`` runs.
        padding: What surrounds a volume smaller than the window.

    Returns:
        (1, C, X, Y, Z), float32, on the volume's device.

    Raises:
        ConfigError: The overlap is out of range.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap {overlap} is not in [0, 1): use 0.75 for quality, 0.5 or 0.25 for speed.")
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
