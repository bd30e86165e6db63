"""Segmenters as a function from CT to labels, for evaluations that know nothing of networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from difftumor.models.artifact import Artifact
from difftumor.scans.intensity import Normalization
from difftumor.scans.nifti import Volume
from difftumor.segmentation.inference import check_together, predict_volume
from difftumor.segmentation.options import PredictionOptions

# For the output of windows; one of 96³ voxels takes 10 MiB.
MEMORY_BYTES = 4 * 2**30


class LabelPredictor:
    """Predicts the labels of CTs on their own grids: 0 background, 1 organ, 2 tumor.

    The first prediction of a file is remembered, window by window, until another file comes: a CT of which only a part
    has changed since then takes the time of the windows that see that part.

    Args:
        artifacts: Loaded segmenters of one organ and spacing, whose probabilities are averaged.
        options: Windows and filters.
        windows_per_batch: Number of windows that go through the network together.
        memory_bytes: Limit of what is remembered.

    Raises:
        ConfigError: The segmenters do not fit together.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        options: PredictionOptions,
        *,
        windows_per_batch: int = 1,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        check_together(artifacts)
        self._options, self._windows_per_batch = options, windows_per_batch
        self._networks = [_Remembering(artifact.network, memory_bytes // len(artifacts)) for artifact in artifacts]
        pairs = zip(artifacts, self._networks, strict=True)
        self._artifacts = [replace(artifact, network=network) for artifact, network in pairs]
        self._file: Path | None = None

    def __call__(self, ct: Volume) -> NDArray[np.uint8]:
        """Return the labels of a CT; not modified."""
        first = ct.path != self._file
        for network in self._networks:
            network.learn(first)
        self._file = None  # an error may leave windows half remembered
        labels = predict_volume(ct, self._artifacts, self._options, windows_per_batch=self._windows_per_batch).labels
        self._file = ct.path
        return labels


def seen_around_mm(artifacts: Sequence[Artifact]) -> float | None:
    """Return how far from a voxel segmenters can see, one window; None if they scale a scan by all of its voxels."""
    preprocessings = [artifact.config.preprocessing for artifact in artifacts]
    if any(Normalization.of(preprocessing).kind != "unit" for preprocessing in preprocessings):
        return None
    return max(
        float(step) * int(size)
        for preprocessing in preprocessings
        for step, size in zip(preprocessing["spacing_mm"], preprocessing["crop"], strict=True)
    )


class _Remembering(nn.Module):
    """A network that remembers the output of windows it has seen."""

    def __init__(self, network: nn.Module, memory_bytes: int) -> None:
        super().__init__()
        self.network = network
        self._most, self._left, self._learning = memory_bytes, memory_bytes, False
        self._known: dict[bytes, Tensor] = {}

    def learn(self, learning: bool) -> None:
        """Choose between remembering the next windows instead of the earlier ones, and only looking them up."""
        self._learning = learning
        if learning:
            self._known, self._left = {}, self._most

    def forward(self, windows: Tensor) -> Tensor:
        """Map windows (B, 1, X, Y, Z) to logits (B, C, X, Y, Z)."""
        keys = [hashlib.sha256(window.cpu().numpy().tobytes()).digest() for window in windows]
        missing = [index for index, key in enumerate(keys) if key not in self._known]
        if not missing:
            return torch.stack([self._known[key].to(windows.device) for key in keys])
        new: Tensor = self.network(windows[missing])
        computed = dict(zip(missing, new, strict=True))
        logits = [computed[i] if i in computed else self._known[key].to(windows.device) for i, key in enumerate(keys)]
        for index in missing if self._learning else ():
            size = computed[index].numel() * computed[index].element_size()
            if size <= self._left:
                self._known[keys[index]] = computed[index].detach().cpu().clone()
                self._left -= size
        return torch.stack(logits)
