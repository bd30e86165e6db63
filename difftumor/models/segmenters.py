"""The segmenters: U-Net, nnU-Net, Swin UNETR and MedNeXt of MONAI, and nnU-Net's residual encoder U-Net.

All map (B, 1, X, Y, Z) in [0, 1] to logits (B, classes, X, Y, Z). State-dict names are those of the packages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from inspect import signature
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from difftumor.errors import ConfigError, DependencyError, ShapeError

SegmenterName = Literal["unet", "nnunet", "swinunetr", "resenc", "mednext"]
# Channels after the patch embedding.
SWIN_FEATURE_SIZES: Mapping[str, int] = MappingProxyType({"tiny": 12, "small": 24, "base": 48})
# Swin UNETR halves the size five times.
SWIN_DIVISOR = 32
# Levels of the residual encoder U-Net. nnU-Net halves a crop while it keeps 4 voxels: 96 down to 6, 128 down to 4. Its
# presets M and L differ in the crop alone, which its planner fits into 10 and 24 GB; the network follows from that.
RESENC_LEVELS: Mapping[str, int] = MappingProxyType({"M": 5, "L": 6})
_RESENC_BLOCKS, _RESENC_MOST_CHANNELS = (1, 3, 4, 6, 6, 6), 320
MEDNEXT_SIZES = ("S", "B", "M", "L")
# MedNeXt halves the size four times.
MEDNEXT_DIVISOR = 16


@dataclass(frozen=True)
class Definition:
    """How a segmenter is built.

    Attributes:
        target: The class by its dotted name, imported only when a network is built: that takes seconds.
        arguments: What it is called with; plain values that JSON can hold.
        divisor: Sizes of the input must be multiples of it.
        in_channels: Channels of the input.
        classes: Channels of the logits.
        layers: Arguments that are classes, by their dotted names.
        packages: Packages that difftumor needs for it alone, by the names of their modules; an extra of the segmenter's
            name brings them.
        idle: Modules whose output nobody uses; frozen, or training on several GPUs would wait for their gradients.
    """

    target: str
    arguments: Mapping[str, Any]
    divisor: int
    in_channels: int
    classes: int
    layers: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    @property
    def class_name(self) -> str:
        """The class's name without its module."""
        return self.target.rpartition(".")[2]


def define_unet(
    *,
    in_channels: int = 1,
    classes: int = 3,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    residual_units: int = 2,
) -> Definition:
    """Define MONAI's residual U-Net.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the logits.
        channels: Channels of every level; each level after the first halves the size.
        residual_units: Convolutions per residual block.

    Raises:
        ConfigError: Fewer than two levels, or a channel count that isn't positive.
    """
    _check_channels("unet", channels)
    arguments = {
        "spatial_dims": 3,
        "in_channels": in_channels,
        "out_channels": classes,
        "channels": list(channels),
        "strides": [2] * (len(channels) - 1),
        "num_res_units": residual_units,
    }
    return Definition("monai.networks.nets.UNet", arguments, 2 ** (len(channels) - 1), in_channels, classes)


def define_nnunet(
    *,
    in_channels: int = 1,
    classes: int = 3,
    channels: Sequence[int] = (32, 64, 128, 256, 320),
    strides: Sequence[int] = (1, 2, 2, 2, 2),
    affine_norm: bool = False,
) -> Definition:
    """Define MONAI's DynUNet with 3³ kernels and instance norm, without deep supervision.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the logits.
        channels: Channels of every level.
        strides: Stride of every level, as many as channels.
        affine_norm: Whether the instance norms have gains and offsets; the published ones have none.

    Raises:
        ConfigError: Fewer than three levels, strides that don't fit the channels, or numbers that aren't positive.
    """
    _check_channels("nnunet", channels, minimum=3)
    if len(strides) != len(channels) or min(strides) < 1:
        raise ConfigError(f"nnunet strides {list(strides)} must be {len(channels)} positive numbers, one per level.")
    arguments = {
        "spatial_dims": 3,
        "in_channels": in_channels,
        "out_channels": classes,
        "kernel_size": [[3] * 3] * len(channels),
        "strides": [[stride] * 3 for stride in strides],
        "upsample_kernel_size": [[stride] * 3 for stride in strides[1:]],
        "filters": list(channels),
        "norm_name": ["INSTANCE", {"affine": affine_norm}],
        "deep_supervision": False,
    }
    return Definition("monai.networks.nets.DynUNet", arguments, prod(strides), in_channels, classes)


def define_swinunetr(
    *,
    in_channels: int = 1,
    classes: int = 3,
    size: Literal["tiny", "small", "base"] = "base",
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    gradient_checkpointing: bool = False,
) -> Definition:
    """Define MONAI's Swin UNETR.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the logits.
        size: "tiny" (4.1 M parameters), "small" (15.7 M) or "base" (62.2 M).
        depths: Transformer blocks of the four levels.
        heads: Attention heads of the four levels; each must divide that level's channels.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.

    Raises:
        ConfigError: An unknown size, or depths and heads that don't fit.
    """
    if size not in SWIN_FEATURE_SIZES:
        raise ConfigError(f"swinunetr size {size!r} is unknown; choose one of {', '.join(SWIN_FEATURE_SIZES)}.")
    width = SWIN_FEATURE_SIZES[size]
    if len(depths) != 4 or len(heads) != 4 or min(*depths, *heads) < 1:
        raise ConfigError(
            f"swinunetr depths {list(depths)} and heads {list(heads)} must be four positive numbers each."
        )
    if any((width * 2**level) % count for level, count in enumerate(heads)):
        raise ConfigError(f"swinunetr heads {list(heads)} don't divide the channels {width}, doubled per level.")
    arguments = {
        "in_channels": in_channels,
        "out_channels": classes,
        "feature_size": width,
        "depths": list(depths),
        "num_heads": list(heads),
        "use_checkpoint": gradient_checkpointing,
    }
    return Definition("monai.networks.nets.SwinUNETR", arguments, SWIN_DIVISOR, in_channels, classes)


def define_resenc(
    *, in_channels: int = 1, classes: int = 3, size: Literal["M", "L"] = "M", width: int = 32
) -> Definition:
    """Define nnU-Net's residual encoder U-Net as its planner lays it out for cubes of 1 mm, without deep supervision.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the logits.
        size: "M", five levels, for crops of 96³ (62.8 M parameters); "L", six, for 128³ and more (102.4 M).
        width: Channels of the first level; they double from level to level, up to 320.

    Raises:
        ConfigError: An unknown size, or a width that isn't positive.
    """
    if size not in RESENC_LEVELS:
        raise ConfigError(f"resenc size {size!r} is unknown; choose one of {', '.join(RESENC_LEVELS)}.")
    if width < 1:
        raise ConfigError(f"resenc width {width} must be positive.")
    levels = RESENC_LEVELS[size]
    arguments = {
        "input_channels": in_channels,
        "num_classes": classes,
        "n_stages": levels,
        "features_per_stage": [min(width * 2**level, _RESENC_MOST_CHANNELS) for level in range(levels)],
        "kernel_sizes": [[3] * 3] * levels,
        "strides": [[1] * 3] + [[2] * 3] * (levels - 1),
        "n_blocks_per_stage": list(_RESENC_BLOCKS[:levels]),
        "n_conv_per_stage_decoder": [1] * (levels - 1),
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }
    layers = {"conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d", "nonlin": "torch.nn.LeakyReLU"}
    target = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    packages = ("dynamic_network_architectures",)
    # Every level of the decoder has logits, for deep supervision, of which the last are the network's.
    idle = tuple(f"decoder.seg_layers.{level}" for level in range(levels - 2))
    return Definition(target, arguments, 2 ** (levels - 1), in_channels, classes, layers, packages, idle)


def define_mednext(
    *, in_channels: int = 1, classes: int = 3, size: Literal["S", "B", "M", "L"] = "B", kernel: Literal[3, 5] = 3
) -> Definition:
    """Define MONAI's MedNeXt, without deep supervision.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the logits.
        size: "S" (5.6 M parameters with kernels of 3³), "B" (10.5 M), "M" (17.5 M) or "L" (61.7 M).
        kernel: Side of the depth-wise convolutions' kernels.

    Raises:
        ConfigError: An unknown size or kernel.
    """
    if size not in MEDNEXT_SIZES or kernel not in (3, 5):
        raise ConfigError(
            f"mednext size {size!r} with kernel {kernel} is unknown; choose one of {', '.join(MEDNEXT_SIZES)} "
            "and kernel 3 or 5."
        )
    arguments = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": classes, "kernel_size": kernel}
    return Definition(f"monai.networks.nets.MedNeXt{size}", arguments, MEDNEXT_DIVISOR, in_channels, classes)


SEGMENTERS: Mapping[SegmenterName, Callable[..., Definition]] = MappingProxyType(
    {
        "unet": define_unet,
        "nnunet": define_nnunet,
        "swinunetr": define_swinunetr,
        "resenc": define_resenc,
        "mednext": define_mednext,
    }
)


def build_segmenter(name: SegmenterName, **options: Any) -> nn.Module:
    """Return the segmenter with the given name; arguments and errors as `define_segmenter`.

    Raises:
        DependencyError: Its package is not installed.
    """
    definition = define_segmenter(name, **options)
    try:
        layers = {argument: _found(layer) for argument, layer in definition.layers.items()}
        network: nn.Module = _found(definition.target)(**definition.arguments, **layers)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in definition.packages:
            raise
        raise DependencyError(
            f"The segmenter {name} needs the package {package}: install it with pip install 'difftumor[{name}]'."
        ) from error
    # nnU-Net draws the first weights of its own networks after they are built.
    if callable(initialize := getattr(network, "initialize", None)):
        network.apply(initialize)
    for module in definition.idle:
        network.get_submodule(module).requires_grad_(False)
    # A hook refuses inputs that the network can't take; a wrapper would rename its weights.
    network.register_forward_pre_hook(
        partial(_check_input, name=name, in_channels=definition.in_channels, divisor=definition.divisor)
    )
    return network


def define_segmenter(name: SegmenterName, **options: Any) -> Definition:
    """Define the segmenter with the given name; the defaults are the published sizes.

    Args:
        name: One of `SEGMENTERS`.
        **options: What that segmenter's function takes.

    Raises:
        ConfigError: The name or an option is unknown, or an option is out of its range.
    """
    if name not in SEGMENTERS:
        raise ConfigError(f"segmenter {name!r} is unknown; choose one of {', '.join(SEGMENTERS)}.")
    known = signature(SEGMENTERS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"segmenter {name} has no option {', '.join(unknown)}; it takes {', '.join(known)}.")
    in_channels, classes = options.get("in_channels", 1), options.get("classes", 3)
    if min(in_channels, classes) < 1:
        raise ConfigError(f"segmenter {name}: in_channels {in_channels} and classes {classes} must be positive.")
    return SEGMENTERS[name](**options)


def _found(dotted: str) -> Any:
    """Import what a dotted name stands for."""
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


def _check_channels(name: str, channels: Sequence[int], minimum: int = 2) -> None:
    if len(channels) < minimum or min(channels) < 1:
        raise ConfigError(
            f"{name} channels {list(channels)} must be at least {minimum} positive numbers, one per level."
        )


def _check_input(_: nn.Module, inputs: tuple[Tensor, ...], *, name: str, in_channels: int, divisor: int) -> None:
    shape = tuple(inputs[0].shape)
    if len(shape) != 5 or shape[1] != in_channels:
        raise ShapeError(f"segmenter {name} takes (B, {in_channels}, X, Y, Z), not {shape}.")
    if any(size < 1 or size % divisor for size in shape[2:]):
        raise ShapeError(f"segmenter {name} takes sizes that are multiples of {divisor}, not {shape[2:]}; crop or pad.")
    # Instance norm has nothing to normalize over in a single voxel.
    if max(shape[2:]) == divisor:
        raise ShapeError(f"segmenter {name} needs more than {divisor} voxels along one axis at least, not {shape[2:]}.")
