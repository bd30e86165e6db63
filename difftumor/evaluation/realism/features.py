"""Feature networks by name, ``inception_v3=weights.pth``, with weights from a file; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from difftumor.errors import ConfigError
from difftumor.scans.intensity import IntensityWindow

AUTOENCODER = "autoencoder"
NETWORKS: Mapping[str, str] = {
    "inception_v3": "slices: torchvision's Inception v3",
    "radimagenet_resnet50": "slices: RadImageNet's ResNet-50",
    **{f"medicalnet_resnet{depth}": f"crops: MedicalNet's ResNet-{depth}" for depth in (10, 18, 34, 50)},
    AUTOENCODER: "crops: the encoder of an autoencoder artifact",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureNetwork:
    """A feature network with its weights.

    Attributes:
        name: One of ``NETWORKS``.
        kind: Whether it takes slices (B, 1, H, W) or crops (B, 1, X, Y, Z).
        dimensions: Numbers per slice or crop.
        extract: From a batch in HU to features (B, dimensions), float32 on the CPU.
        origin: Path and SHA-256 of its weights.
    """

    name: str
    kind: Literal["slices", "crops"]
    dimensions: int
    extract: Callable[[Tensor], Tensor]
    origin: Mapping[str, str]


def load_features(
    name: str,
    path: Path,
    *,
    window: IntensityWindow,
    spacing_mm: Sequence[float],
    crop: int,
    device: torch.device | str = "cpu",
) -> FeatureNetwork:
    """Load a feature network.

    Args:
        name: One of ``NETWORKS``.
        path: File of its weights, or folder of the artifact.
        window: HU window; an autoencoder uses the one of its training.
        spacing_mm: Voxel size of the crops.
        crop: Side of the crops in voxels.
        device: Where the network runs.

    Raises:
        ConfigError: The name is unknown, or the crops do not suit the autoencoder.
        PublishedFileError: The weights cannot be used.
        ArtifactError: The artifact cannot be used.
    """
    if name not in NETWORKS:
        raise ConfigError(f"--features {name}={path} names no feature network: give one of {', '.join(NETWORKS)}.")
    if name == AUTOENCODER:
        network, origin = _autoencoder(path, spacing_mm, crop)
    else:
        network, origin = _published(name, path, window)
    network = network.to(device).eval().requires_grad_(False)
    return FeatureNetwork(
        name=name,
        kind="slices" if NETWORKS[name].startswith("slices") else "crops",
        dimensions=cast(int, network.dimensions),
        extract=partial(_extract, network, torch.device(device)),
        origin=origin,
    )


def _published(name: str, path: Path, window: IntensityWindow) -> tuple[nn.Module, dict[str, str]]:
    from difftumor.evaluation.realism.networks import InceptionFeatures, MedicalNetFeatures, RadImageNetFeatures
    from difftumor.evaluation.realism.weights import read_weights

    weights = read_weights(path)
    origin = {"path": str(path.resolve()), "sha256": weights.sha256}
    if name == "inception_v3":
        return InceptionFeatures(weights, window), origin
    if name == "radimagenet_resnet50":
        return RadImageNetFeatures(weights, window), origin
    return MedicalNetFeatures(weights, int(name.removeprefix("medicalnet_resnet")), window), origin


def _autoencoder(path: Path, spacing_mm: Sequence[float], crop: int) -> tuple[nn.Module, dict[str, str]]:
    from difftumor.evaluation.realism.networks import AutoencoderFeatures
    from difftumor.files.checksums import provenance
    from difftumor.models.artifact import WEIGHTS_FILE, load_artifact

    artifact = load_artifact(path, kind="autoencoder")
    preprocessing: Mapping[str, Any] = artifact.config.preprocessing
    network: Any = artifact.network
    if list(map(float, preprocessing["spacing_mm"])) != list(map(float, spacing_mm)):
        spacing = ",".join(f"{step:g}" for step in preprocessing["spacing_mm"])
        raise ConfigError(f"{path} was trained at another voxel size: give --spacing-mm {spacing}.")
    if crop % network.downsampling:
        raise ConfigError(f"--crop {crop} is not a multiple of {network.downsampling}, as {path} needs: give one.")
    window = IntensityWindow(*map(float, preprocessing["window_hu"]))
    return AutoencoderFeatures(network, window), provenance(path / WEIGHTS_FILE)


@torch.no_grad()
def _extract(network: nn.Module, device: torch.device, batch_hu: Tensor) -> Tensor:
    features: Tensor = network(batch_hu.to(device, torch.float32))
    return features.float().cpu()
