"""Features of crops: the ResNets of MedicalNet, and the encoder of one of our own autoencoders."""

from __future__ import annotations

from torch import Tensor, nn

from difftumor.evaluation.realism.features.weights import WeightsFile, load_weights
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.latent_codec import depth_first
from difftumor.scans.intensity import IntensityWindow


class MedicalNetFeatures(nn.Module):
    """The averages at the end of a 3-D ResNet: 512 up to a depth of 34, else 2048.

    The window becomes [-2, 2], about the spread that MedicalNet was trained with. A crop is not scaled by its own mean
    and deviation, which would hide a shift of all of it.

    Args:
        weights: As MedicalNet publishes them.
        depth: 10, 18, 34 or 50.
        window: HU that count.

    Raises:
        PublishedFileError: The weights are of another network.
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
        autoencoder: Trained.
        window: HU that it sees.
    """

    def __init__(self, autoencoder: Autoencoder, window: IntensityWindow) -> None:
        super().__init__()
        self.network = autoencoder
        self.dimensions = autoencoder.latent_channels
        self.window = window

    def forward(self, crops_hu_B1XYZ: Tensor) -> Tensor:
        """Return (B, latent channels) of crops in HU."""
        return self.network.encode(depth_first(self.window.to_signed(crops_hu_B1XYZ))).mean(dim=(2, 3, 4))
