"""The vector-quantized autoencoder: CT at 1 mm to a latent at a quarter of the resolution, and back.

Shapes: B batch, Z, X, Y voxels (depth first), z, x, y latent voxels. Attribute names are those of the published
checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.codebook import Codebook, Learning, Quantized
from difftumor.models.layers import ResidualBlock, SameConv3d, SameConvTranspose3d, group_norm


@dataclass(frozen=True, eq=False)
class AutoencoderOutput:
    """What a forward pass gives.

    Attributes:
        reconstruction: (B, 1, Z, X, Y), about [-1, 1].
        quantized: Codes, their numbers, both losses and perplexity.
        features: (B, C, z, x, y) encoder output before quantization, for `Codebook.update`.
    """

    reconstruction: Tensor
    quantized: Quantized
    features: Tensor


class DownBlock(nn.Module):
    """Halve the size, then one residual block."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int, checkpointed: bool) -> None:
        super().__init__()
        self.down = SameConv3d(in_channels, out_channels, kernel_size=4, stride=2)
        self.res = ResidualBlock(out_channels, norm_groups=norm_groups, checkpointed=checkpointed)

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z/2, X/2, Y/2)."""
        return self.res(self.down(x_BCZXY))


class UpBlock(nn.Module):
    """Double the size, then two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int, checkpointed: bool) -> None:
        super().__init__()
        self.up = SameConvTranspose3d(in_channels, out_channels, kernel_size=4, stride=2)
        self.res1 = ResidualBlock(out_channels, norm_groups=norm_groups, checkpointed=checkpointed)
        self.res2 = ResidualBlock(out_channels, norm_groups=norm_groups, checkpointed=checkpointed)

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, 2Z, 2X, 2Y)."""
        return self.res2(self.res1(self.up(x_BCZXY)))


class Encoder(nn.Module):
    """CT to ``widths[-1]`` channels; ``widths`` lists the stem and then every level."""

    def __init__(self, *, in_channels: int, widths: tuple[int, ...], norm_groups: int, checkpointed: bool) -> None:
        super().__init__()
        self.conv_blocks = nn.ModuleList(
            DownBlock(widths[i], widths[i + 1], norm_groups=norm_groups, checkpointed=checkpointed)
            for i in range(len(widths) - 1)
        )
        self.conv_first = SameConv3d(in_channels, widths[0], kernel_size=3)
        self.final_block = nn.Sequential(group_norm(norm_groups, widths[-1]), nn.SiLU())

    def forward(self, ct_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, widths[-1], z, x, y)."""
        hidden = self.conv_first(ct_BCZXY)
        for block in self.conv_blocks:
            hidden = block(hidden)
        return self.final_block(hidden)


class Decoder(nn.Module):
    """``widths[0]`` channels to CT; ``widths`` lists what enters and then what every level gives."""

    def __init__(self, *, out_channels: int, widths: tuple[int, ...], norm_groups: int, checkpointed: bool) -> None:
        super().__init__()
        self.final_block = nn.Sequential(group_norm(norm_groups, widths[0]), nn.SiLU())
        self.conv_blocks = nn.ModuleList(
            UpBlock(widths[i], widths[i + 1], norm_groups=norm_groups, checkpointed=checkpointed)
            for i in range(len(widths) - 1)
        )
        self.conv_last = SameConv3d(widths[-1], out_channels, kernel_size=3)

    def forward(self, hidden_BCZXY: Tensor) -> Tensor:
        """Map (B, widths[0], z, x, y) to (B, out, Z, X, Y)."""
        hidden = self.final_block(hidden_BCZXY)
        for block in self.conv_blocks:
            hidden = block(hidden)
        return self.conv_last(hidden)


class Autoencoder(nn.Module):
    """Encoder, codebook, decoder. The defaults are the published sizes.

    Args:
        base_channels: Channels of the stem; every level doubles them.
        levels: Halvings of the size; the latent has 1 / 2^levels of the resolution.
        latent_channels: Numbers per latent voxel and per code.
        codes: Number of codes.
        norm_groups: Groups of every GroupNorm; must divide ``2 · base_channels``.
        codebook_update: How the codes learn, see `Codebook`; a trained network computes the same either way.
        codebook_decay: Decay of the codebook's moving averages.
        restart_below: Average count under which a code restarts.
        search_chunk: Latent voxels compared with all codes at once; bounds the memory of the search. None chooses what
            is fast.
        gradient_checkpointing: Keep no activations inside residual blocks but compute them again for the backward
            pass: less memory for more time, the same gradients.

    Raises:
        ConfigError: A size is out of range, or the groups don't divide the channels.
    """

    def __init__(
        self,
        *,
        base_channels: int = 16,
        levels: int = 2,
        latent_channels: int = 8,
        codes: int = 16384,
        norm_groups: int = 32,
        codebook_update: Learning = "ema",
        codebook_decay: float = 0.99,
        restart_below: float = 1.0,
        search_chunk: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if min(base_channels, levels, latent_channels) < 1:
            raise ConfigError(
                f"base_channels {base_channels}, levels {levels} and latent_channels {latent_channels} must all be "
                "positive."
            )
        widths = tuple(base_channels * 2**level for level in range(levels + 1))
        # The decoder's first level keeps the widest; the others mirror the encoder's.
        up_widths = (widths[-1], *reversed(widths[1:]))
        self.levels = levels
        self.latent_channels = latent_channels
        self.encoder = Encoder(
            in_channels=1, widths=widths, norm_groups=norm_groups, checkpointed=gradient_checkpointing
        )
        self.decoder = Decoder(
            out_channels=1, widths=up_widths, norm_groups=norm_groups, checkpointed=gradient_checkpointing
        )
        self.pre_vq_conv = SameConv3d(widths[-1], latent_channels, kernel_size=1)
        self.post_vq_conv = SameConv3d(latent_channels, widths[-1], kernel_size=1)
        self.codebook = Codebook(
            codes=codes,
            dimensions=latent_channels,
            learning=codebook_update,
            decay=codebook_decay,
            restart_below=restart_below,
            search_chunk=search_chunk,
        )
        # Weights in channels-last make convolutions compute so, which is faster.
        self.to(memory_format=torch.channels_last_3d)

    @property
    def downsampling(self) -> int:
        """Voxels per latent voxel along each axis; 4 in the published network."""
        return 2**self.levels

    def encode(self, ct_BCZXY: Tensor) -> Tensor:
        """Return features (B, latent_channels, z, x, y), not quantized, of a CT (B, 1, Z, X, Y) in [-1, 1].

        Raises:
            ShapeError: The shape is another, or a size is not a multiple of `downsampling`.
        """
        shape = tuple(ct_BCZXY.shape)
        if len(shape) != 5 or shape[1] != 1:
            raise ShapeError(f"the autoencoder takes a CT of shape (B, 1, Z, X, Y), not {shape}.")
        if any(size < 1 or size % self.downsampling for size in shape[2:]):
            raise ShapeError(
                f"the CT's size {shape[2:]} must be a multiple of {self.downsampling} along every axis; "
                "crop or pad it first."
            )
        return self.pre_vq_conv(self.encoder(ct_BCZXY))

    def decode(self, embeddings_BCZXY: Tensor) -> Tensor:
        """Return the CT (B, 1, Z, X, Y), about [-1, 1], of codes (B, latent_channels, z, x, y).

        Raises:
            ShapeError: The shape is another.
        """
        shape = tuple(embeddings_BCZXY.shape)
        if len(shape) != 5 or shape[1] != self.latent_channels:
            raise ShapeError(f"the decoder takes codes of shape (B, {self.latent_channels}, z, x, y), not {shape}.")
        return self.decoder(self.post_vq_conv(embeddings_BCZXY))

    def forward(self, ct_BCZXY: Tensor) -> AutoencoderOutput:
        """Encode, quantize and decode a CT (B, 1, Z, X, Y) in [-1, 1]."""
        features = self.encode(ct_BCZXY)
        quantized = self.codebook(features)
        return AutoencoderOutput(self.decode(quantized.embeddings), quantized, features)
