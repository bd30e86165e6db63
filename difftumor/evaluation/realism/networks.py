"""Networks whose features are compared.

Of slices: Inception v3, the standard of the Fréchet distance, and the ResNet-50 of RadImageNet. Of crops: the ResNets
of MedicalNet, and the encoder of one of our own autoencoders.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3, resnet50

from difftumor.errors import PublishedFileError
from difftumor.evaluation.realism.weights import WeightsFile, load_weights
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.latent_codec import depth_first
from difftumor.scans.intensity import IntensityWindow

# Input sizes of the training.
_INCEPTION_PIXELS, _RADIMAGENET_PIXELS = 299, 224
_TENSORFLOW_CLASSES = 1008
# ImageNet's statistics, as torchvision's weights expect them.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# RadImageNet's own files name the parts of a ResNet by their place in a sequence.
_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class InceptionFeatures(nn.Module):
    """The 2048 averages before the classifier of torchvision's Inception v3.

    Args:
        weights: As torchvision publishes them (``inception_v3_google``).
        window: HU window.

    Raises:
        PublishedFileError: The weights belong to another network, or to TensorFlow's, which pools differently.
    """

    dimensions = 2048

    def __init__(self, weights: WeightsFile, window: IntensityWindow) -> None:
        super().__init__()
        classes = weights.tensors.get("fc.weight")
        if classes is not None and classes.shape[:1] == (_TENSORFLOW_CLASSES,):
            raise PublishedFileError(
                f"{weights.path} is a copy of TensorFlow's Inception, which pools differently from torchvision's: give "
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

    ImageNet's mean is subtracted from slices in [0, 1], unscaled and in BGR order, as is usual with these weights.

    Args:
        weights: With the names of torchvision's ResNet-50, or with those of RadImageNet's files (``backbone.4.0…``).
        window: HU window.

    Raises:
        PublishedFileError: The weights belong to another network.
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
    """Return three equal channels of a network's input size, antialiased."""
    size = (pixels, pixels)
    resized = F.interpolate(unit_B1HW, size=size, mode="bilinear", align_corners=False, antialias=True)
    return torch.cat([resized] * 3, dim=1)


def _torchvision_name(name: str) -> str:
    match = re.fullmatch(r"backbone\.(\d+)\.(.+)", name)
    return f"{_PLACES[match[1]]}.{match[2]}" if match and match[1] in _PLACES else name


class MedicalNetFeatures(nn.Module):
    """The averages at the end of a 3-D ResNet: 512 up to a depth of 34, else 2048.

    The window is mapped to [-2, 2], about the spread of MedicalNet's training. A crop is not normalized by its own mean
    and standard deviation, since that would hide a shift of the whole crop.

    Args:
        weights: As MedicalNet publishes them.
        depth: 10, 18, 34 or 50.
        window: HU window.

    Raises:
        PublishedFileError: The weights belong to another network.
    """

    def __init__(self, weights: WeightsFile, depth: int, window: IntensityWindow) -> None:
        super().__init__()
        from monai.networks.nets import resnet10, resnet18, resnet34, resnet50
        from monai.networks.nets.resnet import get_medicalnet_pretrained_resnet_args

        make = {10: resnet10, 18: resnet18, 34: resnet34, 50: resnet50}[depth]
        bias_downsample, shortcut_type = get_medicalnet_pretrained_resnet_args(depth)
        self.network = make(
            spatial_dims=3,
            n_input_channels=1,
            feed_forward=False,
            bias_downsample=bias_downsample,
            shortcut_type=shortcut_type,
        )
        self.dimensions = 2048 if depth >= 50 else 512
        self.window = window
        load_weights(self.network, weights, ignored=("fc.", "conv_seg."))

    def forward(self, crops_hu_B1XYZ: Tensor) -> Tensor:
        """Return (B, dimensions) of crops in HU."""
        features: Tensor = self.network(2 * depth_first(self.window.to_signed(crops_hu_B1XYZ)))
        return features


class AutoencoderFeatures(nn.Module):
    """The mean of each latent channel of an autoencoder, before quantization.

    Args:
        autoencoder: A trained autoencoder.
        window: Its HU window.
    """

    def __init__(self, autoencoder: Autoencoder, window: IntensityWindow) -> None:
        super().__init__()
        self.network = autoencoder
        self.dimensions = autoencoder.latent_channels
        self.window = window

    def forward(self, crops_hu_B1XYZ: Tensor) -> Tensor:
        """Return (B, latent channels) of crops in HU."""
        return self.network.encode(depth_first(self.window.to_signed(crops_hu_B1XYZ))).mean(dim=(2, 3, 4))
