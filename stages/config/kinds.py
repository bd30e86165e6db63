"""The stages by name, with their options."""

from __future__ import annotations

from collections.abc import Mapping

from stages.autoencoder.options import AutoencoderOptions
from stages.config.options import RunOptions
from stages.diffusion.options import DiffusionOptions
from stages.segmentation.options import SegmentationOptions

STAGES: Mapping[str, type[RunOptions]] = {
    "autoencoder": AutoencoderOptions,
    "diffusion": DiffusionOptions,
    "segmentation": SegmentationOptions,
}
