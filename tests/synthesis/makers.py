"""Small things that the synthesis tests share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from difftumor.models.artifact import Parent, save_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from difftumor.synthesis.host import Host
from difftumor.synthesis.placement import Placement
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.files import ScanReport, ScanSynthesizer
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.insertion import ScanSynthesis, apply_to_scan
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer


def record(**changes: Any) -> TumorRecord:
    """Return a ball of 4 mm without deformation or blur, except for the changes."""
    values: dict[str, Any] = {
        "generator": "diffusion",
        "organ": "liver",
        "size": "tiny",
        "radius_mm": 4.0,
        "half_axes_mm": (4.0, 4.0, 4.0),
        "deformation_sigma_mm": 0.0,
        "shape_seed": 1,
        "center_voxel": (0, 0, 0),
        "center_mm": (0.0, 0.0, 0.0),
        "may_leave_organ": False,
        "texture_seed": 2,
        "blur_sigma_voxels": 0.0,
    }
    return TumorRecord(**{**values, **changes})


def ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    """Return a ball in the middle of an array."""
    offsets = [np.arange(n) - n // 2 for n in shape]
    x, y, z = np.meshgrid(*offsets, indexing="ij")
    mask: np.ndarray = x**2 + y**2 + z**2 <= radius**2
    return mask


def rough_organ(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return a lump with dents and a hole."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2, mode="wrap")
    offsets = [(np.arange(n) - (n - 1) / 2) / (0.45 * n) for n in shape]
    radius = np.sqrt(sum(o**2 for o in np.meshgrid(*offsets, indexing="ij")))
    mask: np.ndarray = radius + 1.5 * noise < 0.9
    return mask


def distances_mm(voxels: np.ndarray, others: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Return the distance of each voxel to the nearest of the others, by comparing all with all."""
    apart = (voxels[:, None] - others) * np.array(spacing_mm)
    nearest: np.ndarray = np.sqrt((apart**2).sum(axis=2)).min(axis=1)
    return nearest


def placement(
    organ_XYZ: np.ndarray,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    erosion_voxels: int = 0,
    vessels_XYZ: np.ndarray | None = None,
    **options: Any,
) -> Placement:
    """Return a placement without tumors in a host with given vessels."""
    organ = replace(get_organ("liver"), erosion_voxels=erosion_voxels)
    host = Host(organ_XYZ, organ=organ, spacing_mm=spacing_mm, **options)
    host.vessels = np.zeros(organ_XYZ.shape, bool) if vessels_XYZ is None else vessels_XYZ
    return Placement(host)


def host_of(synthesizer: TumorSynthesizer, scan: Scan, specs: Sequence[TumorSpec]) -> Host:
    """Return the organ of a scan as the host of some tumors."""
    return ModelScan(scan, synthesizer.spacing_mm).host(specs, synthesizer.organ)


def draw_in_scan(
    synthesizer: TumorSynthesizer, scan: Scan, specs: Sequence[TumorSpec], *, seed: int = 0
) -> tuple[TumorRecord, ...]:
    """Draw tumors for a scan."""
    return draw_tumors(host_of(synthesizer, scan, specs), specs, seed=seed).records


def insert(synthesizer: TumorSynthesizer, scan: Scan, records: Sequence[TumorRecord]) -> ScanSynthesis:
    """Apply records to a scan."""
    return apply_to_scan(synthesizer, ModelScan(scan, synthesizer.spacing_mm), records)


def tiny_autoencoder() -> Autoencoder:
    """Return an untrained autoencoder with random codes; the same each time."""
    torch.manual_seed(0)
    network = Autoencoder(base_channels=4, latent_channels=4, codes=32, norm_groups=4)
    # Untrained features are small; codes of their size make textures differ from place to place.
    network.codebook.embeddings.copy_(0.3 * torch.randn(32, 4))
    return network.eval().requires_grad_(False)


def tiny_denoiser() -> Denoiser:
    """Return an untrained denoiser that fits ``tiny_autoencoder``."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"latent_channels": 4, "condition_channels": 5, "width": 8, "multipliers": (1, 2)}
    return Denoiser(**sizes, heads=2, head_dim=8, norm_groups=4).eval().requires_grad_(False)


def tiny_texture(**changes: Any) -> DiffusionTexture:
    """Return a diffusion texture of untrained networks, T = 4, patches of 32 voxels."""
    values: dict[str, Any] = {
        "codec": LatentCodec(tiny_autoencoder()),
        "denoiser": tiny_denoiser(),
        "schedule": NoiseSchedule(4),
        "patch": 32,
    }
    return DiffusionTexture(**{**values, **changes})


def tiny_synthesizer(
    organ: str = "liver", *, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), **changes: Any
) -> TumorSynthesizer:
    """Return a synthesizer with ``tiny_texture`` and its changes."""
    return TumorSynthesizer(organ=get_organ(organ), diffusion=tiny_texture(**changes), spacing_mm=spacing_mm)


def wanted(size: str | dict[str, float], count: int = 1, **fields: Any) -> TumorSpec:
    """Return a wish for some tumors, of a size or of the diameter among the fields."""
    chosen = {} if "diameter_mm" in fields else {"size": size}
    return TumorSpec.from_dict({"count": count, **chosen, **fields}, where="test")


def synthesize_scan(
    synthesizer: TumorSynthesizer,
    inputs: ScanInputs,
    request: dict[str, Any],
    *,
    out: Path,
    models: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> ScanReport:
    """Make the tumors of a request (``tumors``, ``seed``, ``gate``, ``strict``) in the scan of some files."""
    loaded = ScanSynthesizer(synthesizer=synthesizer, models=models or {}, **request)
    return loaded.make_files(inputs, out=out, overwrite=overwrite)


def save_tiny_artifacts(folder: Path, *, crop: int = 32, organ: str = "liver") -> Path:
    """Save both networks as artifacts and return the diffusion model's folder."""
    preprocessing = {"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175.0, 250.0], "crop": [crop] * 3}
    autoencoder = save_artifact(
        folder / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", "base_channels": 4, "latent_channels": 4, "codes": 32, "norm_groups": 4},
        network=tiny_autoencoder(),
        preprocessing=preprocessing,
    )
    sizes = {"latent_channels": 4, "condition_channels": 5, "width": 8, "multipliers": [1, 2]}
    return save_artifact(
        folder / f"diffusion_{organ}_early",
        kind="diffusion",
        architecture={"name": "factorized_unet", **sizes, "heads": 2, "head_dim": 8, "norm_groups": 4},
        network=tiny_denoiser(),
        preprocessing=preprocessing,
        organ=organ,
        parents={"autoencoder": Parent.at(autoencoder)},
        settings={"timesteps": 4, "sampler": {"kind": "ddpm", "steps": None, "eta": 0.0}},
    )
