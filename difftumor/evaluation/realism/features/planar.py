"""Features of slices: Inception v3, the standard of the Fréchet distance, and ResNet-50 as RadImageNet trains it."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3, resnet50

from difftumor.errors import PublishedFileError
from difftumor.evaluation.realism.features.weights import WeightsFile, load_weights
from difftumor.scans.intensity import IntensityWindow

# The sizes that the networks were trained with.
_INCEPTION_PIXELS, _RADIMAGENET_PIXELS = 299, 224
_TENSORFLOW_CLASSES = 1008
# ImageNet's colors, as torchvision's weights want them.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# RadImageNet's own files name the parts of a ResNet by their place in a sequence.
_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class InceptionFeatures(nn.Module):
    """The 2048 averages in front of the classes of torchvision's Inception v3.

    Args:
        weights: As torchvision publishes them (``inception_v3_google``).
        window: HU that count.

    Raises:
        PublishedFileError: The weights are of another network, or of TensorFlow's, which pools differently.
    """

    dimensions = 2048

    def __init__(self, weights: WeightsFile, window: IntensityWindow) -> None:
        super().__init__()
        classes = weights.tensors.get("fc.weight")
        if classes is not None and len(classes) == _TENSORFLOW_CLASSES:
            raise PublishedFileError(
                f"{weights.path} is a copy of TensorFlow's Inception, whose pooling torchvision's has not: give "
                "torchvision's own weights."
            )
        self.network = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        self.network.fc = nn.Identity()
        self.window = window
        load_weights(self.network, weights, ignored=("fc.", "AuxLogits."))

    def forward(self, slices_hu_B1HW: Tensor) -> Tensor:
        """Return (B, 2048) of slices in HU."""
        unit = _resized(self.window.to_unit(slices_hu_B1HW), _INCEPTION_PIXELS)
        mean, deviation = (unit.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        features: Tensor = self.network((unit - mean) / deviation)
        return features


class RadImageNetFeatures(nn.Module):
    """The 2048 averages at the end of a ResNet-50.

    Slices in [0, 1] lose ImageNet's mean and keep their scale, the channels in the order of BGR, as those who use these
    weights do.

    Args:
        weights: With the names of torchvision's ResNet-50, or with those of RadImageNet's files (``backbone.4.0…``).
        window: HU that count.

    Raises:
        PublishedFileError: The weights are of another network.
    """

    dimensions = 2048

    def __init__(self, weights: WeightsFile, window: IntensityWindow) -> None:
        super().__init__()
        self.network = resnet50(weights=None)
        self.network.fc = nn.Identity()
        self.window = window
        named = {_torchvision_name(name): value for name, value in weights.tensors.items()}
        load_weights(self.network, replace(weights, tensors=named), ignored=("fc.",))

    def forward(self, slices_hu_B1HW: Tensor) -> Tensor:
        """Return (B, 2048) of slices in HU."""
        unit = _resized(self.window.to_unit(slices_hu_B1HW), _RADIMAGENET_PIXELS)
        features: Tensor = self.network(unit - unit.new_tensor(_MEAN[::-1]).view(3, 1, 1))
        return features


def _resized(unit_B1HW: Tensor, pixels: int) -> Tensor:
    """Return three equal channels of a network's size; smoothed where that is smaller."""
    size = (pixels, pixels)
    resized = F.interpolate(unit_B1HW, size=size, mode="bilinear", align_corners=False, antialias=True)
    return torch.cat([resized] * 3, dim=1)


def _torchvision_name(name: str) -> str:
    match = re.fullmatch(r"backbone\.(\d+)\.(.+)", name)
    return f"{_PLACES[match[1]]}.{match[2]}" if match and match[1] in _PLACES else name
