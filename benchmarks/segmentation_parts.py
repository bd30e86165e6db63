"""Training steps of stage 3, with and without tumors, and prediction, which `benchmarks/segmentation.py` measures."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import parts as common
import torch
from diffusion_parts import random_codec, seeded
from measuring import PeakMemory, ceilings, machine_name, summary, times
from torch import Tensor
from training_steps import measure_steps

from difftumor.models.artifact import Artifact
from difftumor.models.artifact_config import ArtifactConfig
from difftumor.models.denoiser import Denoiser
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.sampling import NoiseSchedule
from difftumor.models.segmenters import build_segmenter
from difftumor.scans.grid import Grid
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import get_organ
from difftumor.seeding import torch_generator
from difftumor.segmentation.inference import predict_volume
from difftumor.segmentation.options import PredictionOptions
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.config.compose import compose_options
from stages.segmentation.module import SegmentationModule
from stages.segmentation.options import SegmentationOptions
from stages.segmentation.tumor_mix import TumorMix
from stages.segmentation.tumors import Stopwatch, TumorsAhead, TumorsOnTheFly, finished

ORGAN = "liver"
# A step without tumors, with those of the published recipe, with these made ahead, and with those of Hu et al.
TRAININGS = ("plain", "published", "ahead", "handcrafted")
PARTS = (*TRAININGS, "prediction")
MIXES: Mapping[str, TumorMix] = {
    "published": TumorMix(
        probability=0.5,
        generators={"diffusion": 1.0},
        sizes={"early": 0.8, "medium": 0.1, "large": 0.1},
        most_early=3,
    ),
    "handcrafted": TumorMix(
        probability=1.0, generators={"handcrafted": 1.0}, sizes={"mix": 1.0}, most_early=1, placement="uniform"
    ),
}
# Published: early tumors in four timesteps, late ones in 50 of 200.
_TIMESTEPS = {"early": 4, "late": 200}
_SAMPLERS = {"early": SamplerConfig(), "late": SamplerConfig(kind="ddim", steps=50)}


def measure(part: str, options: Namespace) -> dict[str, Any]:
    """Measure one part, or the machine's "ceilings", in this process, which should be a fresh one."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if part == "ceilings":
        return {"machine": machine_name(device), **ceilings(device, common.DTYPES[options.precision])}
    return _prediction(options) if part == "prediction" else _training(part, options)


def _training(part: str, options: Namespace) -> dict[str, Any]:
    mix = MIXES.get("published" if part == "ahead" else part)
    tumors = None if mix is None else TumorsOnTheFly(synthesizer=_synthesizer(mix, options), mix=mix)
    waited = Stopwatch() if part == "ahead" else None
    size = [f"backbone.size={options.swin_size}"] if options.backbone == "swinunetr" else []
    overrides = [f"backbone={options.backbone}", *size, "training.epochs=1", "training.warmup_epochs=0"]
    published = compose_options("segmentation", SegmentationOptions, overrides)
    module = SegmentationModule(
        seed=0, backbone=published.backbone, tumors=tumors, loss=published.loss, optimizer=published.optimizer,
        training=published.training, windows=published.validation, organ=ORGAN,
        normalization=published.data.scaling, spacing_mm=published.data.spacing_mm, crop=options.size, waited=waited,
    )  # fmt: skip
    device = torch.device(options.device)
    wrap: dict[str, Callable[..., Any]] = {}
    if waited is not None and tumors is not None:
        tumors.to(device)
        make = partial(finished, tumors=tumors)
        wrap["wrap"] = partial(TumorsAhead, finish=make, device=device, waited=waited)
    return measure_steps(module, partial(_batch, options), options, **wrap)


def _batch(options: Namespace, step: int) -> dict[str, Any]:
    """Return healthy crops, all of which may get tumors: noise with a liver in the middle."""
    ct_hu_B1XYZ = 100 + 20 * torch.randn(options.batch, 1, *options.size, generator=torch_generator(step))
    labels_B1XYZ = torch.zeros(ct_hu_B1XYZ.shape, dtype=torch.uint8)
    x, y, z = (slice(size // 8, size - size // 8) for size in options.size)
    labels_B1XYZ[:, :, x, y, z] = 1
    window = IntensityWindow()

    def each(value: float) -> Tensor:
        return torch.full((options.batch,), value, dtype=torch.float64)

    return {
        "ct": ct_hu_B1XYZ, "labels": labels_B1XYZ, "healthy": torch.ones(options.batch, dtype=torch.bool),
        "tumor_seed": torch.arange(options.batch) + step * options.batch, "shift": each(0.0), "scale": each(0.0),
        "offset_hu": each(window.low_hu), "scale_hu": each(window.width_hu),
    }  # fmt: skip


def _synthesizer(mix: TumorMix, options: Namespace) -> TumorSynthesizer:
    codec = random_codec(torch.device("cpu"))
    textures: dict[str, DiffusionTexture] = {
        stage: DiffusionTexture(
            codec=codec,
            denoiser=seeded(Denoiser),
            schedule=NoiseSchedule(_TIMESTEPS[stage]),
            sampler=_SAMPLERS[stage],
            patch=options.size,
            patches_at_once=options.batch,
        )
        for stage in sorted(mix.groups)
    }
    return TumorSynthesizer(organ=get_organ(ORGAN), diffusion=textures)


def _prediction(options: Namespace) -> dict[str, Any]:
    """Measure the whole prediction of a scan in memory: scaling, windows, carrying back, labels."""
    device = torch.device(options.device)
    network = build_segmenter(**_backbone(options)).to(device).eval().requires_grad_(False)
    config = ArtifactConfig(
        kind="segmenter", architecture=_backbone(options), weights_sha256="",
        preprocessing={"spacing_mm": (1, 1, 1), "window_hu": (-175, 250), "crop": tuple(options.size)},
    )  # fmt: skip
    artifact = Artifact(Path("random"), config, network)
    ct_hu_XYZ = np.random.default_rng(0).normal(60, 20, options.scan).astype(np.float32)
    ct = Volume(np.asfortranarray(ct_hu_XYZ), Grid(ct_hu_XYZ.shape, np.eye(4)), Path("noise"), nib.Nifti1Header())
    memory = PeakMemory(device)
    how = PredictionOptions(overlap=options.overlap)

    def run() -> None:
        with common.autocast(options):
            predict_volume(ct, [artifact], how, windows_per_batch=options.batch)

    # Once is enough for minutes of work, and nothing is warmer the second time.
    figures = summary(times(run, device=device, repeats=1, warmups=0)) | memory.figures()
    return {"mean_s": figures["median_s"]} | figures


def _backbone(options: Namespace) -> dict[str, Any]:
    size = {"size": options.swin_size} if options.backbone == "swinunetr" else {}
    return {"name": options.backbone, **size}
