"""A segmenter as a MONAI bundle: MONAI's own network, transforms and inferer, so that difftumor need not be installed.

The bundle does what ``difftumor.segmentation.inference.predict_volume`` does: RAS order and even spacing, clipping
and scaling, overlapping windows blended by a Gaussian, probabilities carried back to the scan's own grid, and the most
likely class there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.files.results import MADE_BY, ResultFolder, is_json_with
from difftumor.files.writing import folder_written_whole
from difftumor.models.artifact import Artifact
from difftumor.models.segmenters import Definition, define_segmenter
from difftumor.reporting.tables import write_json
from difftumor.scans.intensity import Normalization
from difftumor.segmentation.options import OVERLAP

METADATA_FILE, INFERENCE_FILE = "configs/metadata.json", "configs/inference.json"
MODEL_FILE, README_FILE = "models/model.pt", "docs/README.md"
BUNDLE_FOLDER = ResultFolder(
    what="export", holds=("configs/**", "models/**", "docs/**"), mark=METADATA_FILE, is_own=is_json_with(MADE_BY)
)
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
# What MONAI's bundle commands need besides MONAI; the lowest versions that work, or those of the tests.
_PACKAGES = {"pytorch-ignite": "0.4.11", "fire": "0.7.1", "jsonschema": "4.26.0"}


@dataclass(frozen=True)
class Rights:
    """Who made and who owns the model; MONAI requires both.

    Attributes:
        authors: Who made it.
        copyright: Who owns it.
    """

    authors: str = "not stated"
    copyright: str = "not stated"


def write_bundle(artifact: Artifact, out: Path, *, rights: Rights | None = None, overwrite: bool = False) -> Path:
    """Write a segmenter as a MONAI bundle; all files or none.

    Args:
        artifact: A loaded segmenter.
        out: Folder to make.
        rights: Who made and who owns the model.
        overwrite: Replace an earlier bundle at ``out``.

    Returns:
        The folder.

    Raises:
        ConfigError: ``out`` cannot be written to, or holds something other than an earlier bundle.
    """
    import torch

    BUNDLE_FOLDER.check(out, option="OUT", inputs=(artifact.path,), overwrite=overwrite)
    definition = define_segmenter(**artifact.config.architecture)
    names = _class_names(artifact.config.organ, definition.classes)
    with folder_written_whole(out) as staging:
        for file in (METADATA_FILE, MODEL_FILE, README_FILE):
            (staging / file).parent.mkdir()
        write_json(staging / METADATA_FILE, _metadata(artifact, definition, names, rights or Rights()))
        write_json(staging / INFERENCE_FILE, _inference(artifact.config.preprocessing, definition))
        # Tensors with several names are stored once.
        weights = {name: value.detach().cpu() for name, value in artifact.network.state_dict().items()}
        torch.save(weights, staging / MODEL_FILE)
        (staging / README_FILE).write_text(_readme(artifact, definition, names), encoding="utf-8")
    return out


def _class_names(organ: str | None, classes: int) -> list[str]:
    known = ["background", organ or "organ", f"{organ or 'organ'} tumor"]
    return known if classes == len(known) else [f"class {number}" for number in range(classes)]


def _inference(preprocessing: Mapping[str, Any], definition: Definition) -> dict[str, Any]:
    normalization = Normalization.of(preprocessing)
    layers = {name: f"${layer}" for name, layer in definition.layers.items()}
    return {
        "imports": ["$import glob", "$import monai", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": definition.target, **definition.arguments, **layers},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": _preprocessing(preprocessing["spacing_mm"], normalization),
        },
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz') + glob.glob(@dataset_dir + '/*.nii'))",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        **_inferer(preprocessing["crop"], normalization),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing()},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": f"$@bundle_root + '/{MODEL_FILE}'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(spacing_mm: Sequence[float], normalization: Normalization) -> list[dict[str, Any]]:
    """Return the transforms from a file to what the network sees."""
    low_hu, high_hu = normalization.window.low_hu, normalization.window.high_hu
    lowest, highest = (0.0, 1.0) if normalization.kind == "unit" else (low_hu, high_hu)
    transforms: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [float(step) for step in spacing_mm], "mode": "bilinear"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low_hu,
            "a_max": high_hu,
            "b_min": lowest,
            "b_max": highest,
            "clip": True,
        },
    ]
    if normalization.kind == "zscore":
        transforms.append({"_target_": "NormalizeIntensityd", "keys": "image"})
    return transforms


def _inferer(crop: Sequence[int], normalization: Normalization) -> dict[str, Any]:
    """Return the inferer, which pads scans smaller than the window by what air becomes."""
    window = {
        "roi_size": [int(size) for size in crop],
        "sw_batch_size": 1,
        "overlap": OVERLAP,
        "mode": "gaussian",
        "padding_mode": "constant",
        "sw_device": "@device",
        "device": "cpu",  # a large scan's probabilities need not fit beside the network
    }
    if normalization.kind == "unit":
        return {"inferer": {"_target_": "SlidingWindowInferer", **window, "cval": 0.0}}
    # What air becomes differs from scan to scan.
    inferer = "monai.inferers.SlidingWindowInferer(cval=float(scan.min()), **@window)(scan, network)"
    return {"window": window, "inferer": f"$lambda scan, network: {inferer}"}


def _postprocessing() -> list[dict[str, Any]]:
    """Return the transforms from logits to a label map on the scan's own grid."""
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "$torch.uint8",
            "resample": False,
            "separate_folder": False,
        },
    ]


def _metadata(artifact: Artifact, definition: Definition, names: Sequence[str], rights: Rights) -> dict[str, Any]:
    config = artifact.config
    organ = config.organ or "organ"
    tensor = {
        "type": "image",
        "spatial_shape": [int(size) for size in config.preprocessing["crop"]],
        "dtype": "float32",
        "is_patch_data": True,
    }
    unit = Normalization.of(config.preprocessing).kind == "unit"
    image = {"format": "hounsfield", "modality": "CT", "num_channels": 1, "value_range": [0, 1] if unit else []}
    labels = {"format": "labels", "modality": "n/a", "num_channels": len(names), "value_range": []}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from the difftumor artifact {config.identity[:12]}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            **{name: version(name) for name in ("nibabel", "einops", *definition.packages)},
            **_PACKAGES,
        },
        "name": f"{organ.capitalize()} tumor segmentation in CT",
        "task": f"Segmentation of the {organ} and its tumors in CT",
        "description": f"{definition.class_name} that finds the {organ} and its tumors; made with difftumor.",
        "authors": rights.authors,
        "copyright": rights.copyright,
        "intended_use": "Research only; not a medical device.",
        "network_data_format": {
            "inputs": {"image": {**tensor, **image, "channel_def": {"0": "CT"}}},
            "outputs": {
                "pred": {**tensor, **labels, "channel_def": {str(number): name for number, name in enumerate(names)}}
            },
        },
        MADE_BY: {
            "version": __version__,
            "identity": config.identity,
            "architecture": dict(config.architecture),
            "preprocessing": dict(config.preprocessing),
            "training": dict(config.training),
            "metrics": dict(config.metrics),
            "complete": config.complete,
        },
    }


def _readme(artifact: Artifact, definition: Definition, names: Sequence[str]) -> str:
    preprocessing = artifact.config.preprocessing
    normalization = Normalization.of(preprocessing)
    low_hu, high_hu = (f"{limit:g}" for limit in preprocessing["window_hu"])
    scaled = "to [0, 1]" if normalization.kind == "unit" else "to zero mean and unit deviation over the whole scan"
    spacing = " x ".join(f"{step:g}" for step in preprocessing["spacing_mm"])
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    packages = " ".join(["monai", "nibabel", "einops", *_PACKAGES, *definition.packages])
    unfinished = "" if artifact.config.complete else "\nIts training has not finished.\n"
    return f"""# {(artifact.config.organ or "organ").capitalize()} tumor segmentation in CT

A segmenter of 3D CT, exported by difftumor {__version__}. Labels: {classes}.
{unfinished}
## Use
```bash
pip install {packages}
python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
  --dataset_dir SCANS --output_dir RESULTS
```
in this folder (elsewhere, add `--bundle_root`, and give the paths of both files). `SCANS` is a folder of CT in
Hounsfield units (.nii.gz or .nii); `RESULTS` gets a label map `NAME_seg.nii.gz` for each, on the scan's own grid.

## How it works
The scan is turned to RAS order and resampled to {spacing} mm; HU are clipped to [{low_hu}, {high_hu}] and scaled
{scaled}. Windows of {" x ".join(map(str, preprocessing["crop"]))} voxels, of which each shares {OVERLAP:.0%} with its
neighbor, are blended by a Gaussian. The probabilities are carried back to the scan's own grid, where the likeliest
class is taken. `configs/metadata.json` holds the training's record under "{MADE_BY}".

For research only; not a medical device. The license of the weights is up to those who trained them.
"""
