"""The denoiser ε_θ(z_t, z_healthy, m, t) of DiffTumor (CVPR 2024, eq. 6): a 3-D U-Net with factorized attention.

Everything is (B, C, Z, X, Y), in channels-last memory. Convolutions see one axial slice at a time and only X and Y are
down-sampled; slices meet in the depth attentions. State-dict names equal those of the published checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.attention import RelativePositionBias, depth_attention, linear_slice_attention, slice_attention

IN_SLICE = (1, 3, 3)
RESAMPLE: dict[str, Any] = {"kernel_size": (1, 4, 4), "stride": (1, 2, 2), "padding": (0, 1, 1)}


class SliceConv(nn.Conv3d):
    """Convolution of kernel (1, k, k), run as one of 2-D images: faster in channels-last memory, which it returns."""

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z, X / stride, Y / stride)."""
        y_SCXY = F.conv2d(_slices(x_BCZXY), self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        return _volumes(y_SCXY, len(x_BCZXY))


class SliceConvTranspose(nn.ConvTranspose3d):
    """Transposed convolution of kernel (1, k, k), run as one of 2-D images in channels-last memory."""

    def forward(self, x_BCZXY: Tensor, output_size: Any = None) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z, X · stride, Y · stride)."""
        (_, *stride), (_, *padding) = self.stride, cast(tuple[int, ...], self.padding)
        y_SCXY = F.conv_transpose2d(_slices(x_BCZXY), self.weight[:, :, 0], self.bias, stride, padding)
        return _volumes(y_SCXY, len(x_BCZXY))


def _slices(x_BCZXY: Tensor) -> Tensor:
    """Return the axial slices (B · Z, C, X, Y); a view of channels-last memory."""
    return x_BCZXY.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _volumes(x_SCXY: Tensor, batch: int) -> Tensor:
    return x_SCXY.unflatten(0, (batch, -1)).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time step at geometrically spaced frequencies (Attention Is All You Need, 3.5)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, time_B: Tensor) -> Tensor:
        """Return (B, features): the sines, then the cosines."""
        half = self.features // 2
        rates = torch.exp(torch.arange(half, device=time_B.device) * -(math.log(10_000.0) / (half - 1)))
        angles = time_B[:, None].float() * rates[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class ConvBlock(nn.Module):
    """In-slice convolution, group norm, an optional scale and shift, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.proj = SliceConv(in_channels, out_channels, IN_SLICE, padding=(0, 1, 1))
        self.norm = nn.GroupNorm(norm_groups, out_channels)

    def forward(self, x_BCZXY: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return (B, out_channels, Z, X, Y); scale and shift are (B, out_channels, 1, 1, 1)."""
        x_BCZXY = self.norm(self.proj(x_BCZXY))
        if scale_shift is not None:
            scale, shift = scale_shift
            x_BCZXY = x_BCZXY * (scale + 1) + shift
        return F.silu(x_BCZXY)


class ResnetBlock(nn.Module):
    """Two convolution blocks and a shortcut; the time embedding scales and shifts the first.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        time_features: Size of the time embedding; None for a block that doesn't see time.
        norm_groups: Groups of the group norms.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time_features: int | None, norm_groups: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_features, 2 * out_channels)) if time_features else None
        self.block1 = ConvBlock(in_channels, out_channels, norm_groups=norm_groups)
        self.block2 = ConvBlock(out_channels, out_channels, norm_groups=norm_groups)
        same = in_channels == out_channels
        self.res_conv = nn.Identity() if same else SliceConv(in_channels, out_channels, 1)

    def forward(self, x_BCZXY: Tensor, time_BT: Tensor | None = None) -> Tensor:
        """Return (B, out_channels, Z, X, Y)."""
        scale_shift = None
        if self.mlp is not None:
            scale, shift = self.mlp(time_BT)[:, :, None, None, None].chunk(2, dim=1)
            scale_shift = scale, shift
        return self.block2(self.block1(x_BCZXY, scale_shift)) + self.res_conv(x_BCZXY)


class Level(nn.ModuleList):
    """One resolution of the U-Net: two ResNet blocks, attention within slices, attention along depth, resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        resample: nn.Module,
        time_features: int,
        norm_groups: int,
        heads: int,
        head_dim: int,
    ) -> None:
        super().__init__(
            [
                ResnetBlock(in_channels, out_channels, time_features=time_features, norm_groups=norm_groups),
                ResnetBlock(out_channels, out_channels, time_features=time_features, norm_groups=norm_groups),
                linear_slice_attention(out_channels, heads=heads, head_dim=head_dim),
                depth_attention(out_channels, heads=heads, head_dim=head_dim),
                resample,
            ]
        )

    def forward(self, x_BCZXY: Tensor, time_BT: Tensor, bias_HZZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before and after resampling."""
        first, second, within_slices, along_depth, resample = self
        x_BCZXY = second(first(x_BCZXY, time_BT), time_BT)
        x_BCZXY = along_depth(within_slices(x_BCZXY), bias_HZZ)
        return x_BCZXY, resample(x_BCZXY)


class Denoiser(nn.Module):
    """Predict the noise in a noisy latent, given the healthy latent, the tumor mask and the time step.

    Args:
        latent_channels: Channels of the latent, in and out.
        condition_channels: Channels of the condition: the healthy latent and the mask.
        width: Channels of the first level; even, at least 4, and a multiple of ``norm_groups``.
        multipliers: Width of each level in multiples of ``width``; X and Y are halved between levels.
        heads: Heads of every attention.
        head_dim: Features of a head; even.
        norm_groups: Groups of the group norms.
        position_buckets: Buckets of the relative position along depth.
        max_distance: Distance, in latent slices, from which on all keys share a bucket.

    Raises:
        ConfigError: A size is not positive, or the sizes don't divide as stated above.
    """

    def __init__(
        self,
        *,
        latent_channels: int = 8,
        condition_channels: int = 9,
        width: int = 24,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        heads: int = 8,
        head_dim: int = 32,
        norm_groups: int = 8,
        position_buckets: int = 32,
        max_distance: int = 32,
    ) -> None:
        super().__init__()
        _check_sizes(
            latent_channels=latent_channels,
            condition_channels=condition_channels,
            width=width,
            heads=heads,
            head_dim=head_dim,
            norm_groups=norm_groups,
        )
        _check_positions(position_buckets=position_buckets, max_distance=max_distance)
        if not multipliers or min(multipliers) < 1:
            raise ConfigError(f"the denoiser's multipliers must be positive integers, not {list(multipliers)}")
        self.latent_channels = latent_channels
        self.condition_channels = condition_channels
        self.width = width
        self.multipliers = tuple(multipliers)
        self.time_features = 4 * width
        self.attention_sizes = {"heads": heads, "head_dim": head_dim}
        self.norm_groups = norm_groups

        self.time_rel_pos_bias = RelativePositionBias(heads=heads, buckets=position_buckets, max_distance=max_distance)
        self.init_conv = SliceConv(latent_channels + condition_channels, width, (1, 7, 7), padding=(0, 3, 3))
        self.init_temporal_attn = depth_attention(width, **self.attention_sizes)
        self.time_mlp = nn.Sequential(
            TimeEmbedding(width),
            nn.Linear(width, self.time_features),
            nn.GELU(),
            nn.Linear(self.time_features, self.time_features),
        )
        self._build_levels()
        self.final_conv = nn.Sequential(
            ResnetBlock(2 * width, width, time_features=None, norm_groups=norm_groups),
            SliceConv(width, latent_channels, 1),
        )

    @property
    def in_slice_divisor(self) -> int:
        """What X and Y of a latent must be multiples of; Z is free."""
        return 2 ** (len(self.multipliers) - 1)

    def _build_levels(self) -> None:
        sizes = {"time_features": self.time_features, "norm_groups": self.norm_groups}
        widths = [self.width * multiplier for multiplier in self.multipliers]
        steps = list(zip([self.width, *widths[:-1]], widths, strict=True))
        last = len(steps) - 1

        # Registered in the order of the published checkpoints.
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        for index, (outer, inner) in enumerate(steps):
            down = SliceConv(inner, inner, **RESAMPLE) if index < last else nn.Identity()
            self.downs.append(Level(outer, inner, resample=down, **sizes, **self.attention_sizes))

        deepest = widths[-1]
        self.mid_block1 = ResnetBlock(deepest, deepest, **sizes)
        self.mid_spatial_attn = slice_attention(deepest, **self.attention_sizes)
        self.mid_temporal_attn = depth_attention(deepest, **self.attention_sizes)
        self.mid_block2 = ResnetBlock(deepest, deepest, **sizes)

        for index, (outer, inner) in enumerate(reversed(steps)):
            up = SliceConvTranspose(outer, outer, **RESAMPLE) if index < last else nn.Identity()
            self.ups.append(Level(2 * inner, outer, resample=up, **sizes, **self.attention_sizes))

    def forward(self, noisy_BCZXY: Tensor, time_B: Tensor, condition_BCZXY: Tensor) -> Tensor:
        """Predict the noise ε.

        Args:
            noisy_BCZXY: z_t, (B, latent_channels, Z, X, Y); X and Y multiples of ``in_slice_divisor``, any Z.
            time_B: Time steps, (B,) integers from 0.
            condition_BCZXY: (B, condition_channels, Z, X, Y): healthy latent, and mask in {-1, 1}.

        Returns:
            The predicted noise, (B, latent_channels, Z, X, Y).

        Raises:
            ShapeError: The shapes don't fit each other or the network.
        """
        self._check_shapes(noisy_BCZXY, time_B, condition_BCZXY)
        bias_HZZ = self.time_rel_pos_bias(noisy_BCZXY.shape[2])
        time_BT = self.time_mlp(time_B)

        stem_BCZXY = self.init_conv(torch.cat((noisy_BCZXY, condition_BCZXY), dim=1))
        x_BCZXY = self.init_temporal_attn(stem_BCZXY, bias_HZZ)

        skips: list[Tensor] = []
        for level in self.downs:
            skip, x_BCZXY = level(x_BCZXY, time_BT, bias_HZZ)
            skips.append(skip)

        x_BCZXY = self.mid_block1(x_BCZXY, time_BT)
        x_BCZXY = self.mid_temporal_attn(self.mid_spatial_attn(x_BCZXY), bias_HZZ)
        x_BCZXY = self.mid_block2(x_BCZXY, time_BT)

        for level in self.ups:
            _, x_BCZXY = level(torch.cat((x_BCZXY, skips.pop()), dim=1), time_BT, bias_HZZ)

        return self.final_conv(torch.cat((x_BCZXY, stem_BCZXY), dim=1))

    def _check_shapes(self, noisy: Tensor, time: Tensor, condition: Tensor) -> None:
        shape = tuple(noisy.shape)
        if len(shape) != 5 or shape[1] != self.latent_channels:
            raise ShapeError(f"the noisy latent must be (B, {self.latent_channels}, Z, X, Y), not {shape}")
        B, _, _, X, Y = shape
        expected = (B, self.condition_channels, *shape[2:])
        if tuple(condition.shape) != expected:
            raise ShapeError(f"the condition of a latent {shape} must be {expected}, not {tuple(condition.shape)}")
        if tuple(time.shape) != (B,):
            raise ShapeError(f"the time steps of a batch of {B} must be ({B},), not {tuple(time.shape)}")
        if X % self.in_slice_divisor or Y % self.in_slice_divisor:
            raise ShapeError(
                f"the latent's in-slice size {X} x {Y} must be a multiple of {self.in_slice_divisor} in both axes; "
                "choose another crop size or fewer levels (multipliers)"
            )


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"the denoiser's {name} must be at least 1, not {size}")
    width, groups = sizes["width"], sizes["norm_groups"]
    if width % groups or width % 2 or width < 4:
        raise ConfigError(
            f"the denoiser's width {width} must be even, at least 4 and a multiple of norm_groups {groups}"
        )
    if sizes["head_dim"] % 2:
        raise ConfigError(f"the denoiser's head_dim {sizes['head_dim']} must be even, for the rotary embedding")


def _check_positions(*, position_buckets: int, max_distance: int) -> None:
    if position_buckets < 8 or position_buckets % 4:
        raise ConfigError(f"the denoiser's position_buckets {position_buckets} must be a multiple of 4, at least 8")
    if max_distance <= position_buckets // 4:
        raise ConfigError(
            f"the denoiser's max_distance {max_distance} must exceed a quarter of its position_buckets, "
            f"{position_buckets // 4}"
        )
