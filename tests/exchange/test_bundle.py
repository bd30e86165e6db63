"""MONAI bundles: MONAI's own commands accept them, and what they predict is what difftumor predicts."""

import json
import os
import re
import subprocess
import sys

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from difftumor.exchange.bundle import INFERENCE_FILE, METADATA_FILE, MODEL_FILE, README_FILE, write_bundle
from difftumor.models.artifact import load_artifact, save_artifact
from difftumor.models.segmenters import build_segmenter
from difftumor.scans.nifti import read_ct
from difftumor.segmentation.inference import predict_volume
from tests.conftest import REPOSITORY, contents, run
from tests.nifti import write_nifti
from tests.synthesis.makers import save_tiny_artifacts

OPTIONS = {
    "unet": {"channels": (4, 8, 16), "residual_units": 1},
    "nnunet": {"channels": (4, 8, 8), "strides": (1, 2, 2), "affine_norm": True},
    "swinunetr": {"size": "tiny", "depths": (1, 1, 1, 1)},
    "resenc": {"size": "M", "width": 2},
    "mednext": {"size": "S"},
}
CROPS = {
    "unet": [24, 24, 24],
    "nnunet": [32, 32, 32],
    "swinunetr": [64, 32, 32],
    "resenc": [32, 32, 32],
    "mednext": [32, 32, 32],
}
SCHEMA = REPOSITORY / "tests" / "data" / "bundle_metadata_schema.json"
WINDOW_HU = (-175.0, 250.0)
LPS = np.array([[-1.2, 0, 0, 40], [0, -1.3, 0, 30], [0, 0, 2.6, -10], [0, 0, 0, 1]])
TILTED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15), [5, -7, 11]) @ LPS
FILES = sorted((METADATA_FILE, INFERENCE_FILE, MODEL_FILE, README_FILE))


def save_segmenter(folder, name="unet", **changes):
    torch.manual_seed(0)
    preprocessing = {"spacing_mm": [1.5, 1.5, 2.0], "window_hu": list(WINDOW_HU), "crop": CROPS[name]}
    values = {"organ": "liver", "metrics": {"dsc": 0.5}, **changes}
    values["preprocessing"] = {**preprocessing, **values.get("preprocessing", {})}
    network = build_segmenter(name, **OPTIONS[name])
    return save_artifact(
        folder, kind="segmenter", architecture={"name": name, **OPTIONS[name]}, network=network, **values
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_monai_rebuilds_the_network_from_the_bundle_alone(tmp_path, name):
    artifact = load_artifact(save_segmenter(tmp_path / "segmenter", name))
    assert write_bundle(artifact, tmp_path / "bundle") == tmp_path / "bundle"
    assert sorted(contents(tmp_path / "bundle")) == FILES
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle" / INFERENCE_FILE)
    parser.read_meta(tmp_path / "bundle" / METADATA_FILE)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(tmp_path / "bundle" / MODEL_FILE, weights_only=True))
    x = torch.rand(1, 1, *CROPS[name], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), artifact.network(x), rtol=0, atol=0)


def test_all_names_in_the_inference_are_of_monai(tmp_path):
    write_bundle(load_artifact(save_segmenter(tmp_path / "segmenter")), tmp_path / "bundle")
    text = (tmp_path / "bundle" / INFERENCE_FILE).read_text()
    assert "difftumor" not in text
    targets = set(re.findall(r'"_target_": "([\w.]+)"', text))
    assert {"monai.networks.nets.UNet", "SlidingWindowInferer", "SupervisedEvaluator", "Invertd"} <= targets
    assert all(ConfigParser({"x": {"_target_": name}}).get_parsed_content("x", instantiate=False) for name in targets)


def test_metadata_says_what_the_model_is(tmp_path):
    path = save_segmenter(tmp_path / "segmenter", complete=False)
    artifact = load_artifact(path, allow_incomplete=True)
    write_bundle(artifact, tmp_path / "bundle")
    metadata = json.loads((tmp_path / "bundle" / METADATA_FILE).read_text())
    tensors = metadata["network_data_format"]
    assert tensors["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "liver tumor"}
    assert tensors["inputs"]["image"]["spatial_shape"] == [24, 24, 24]
    assert tensors["inputs"]["image"]["value_range"] == [0, 1]
    assert metadata["monai_version"] == monai.__version__
    assert metadata["difftumor"]["identity"] == artifact.config.identity
    assert metadata["difftumor"]["metrics"] == {"dsc": 0.5}
    readme = (tmp_path / "bundle" / README_FILE).read_text()
    for fact in ("1 liver, 2 liver tumor", "1.5 x 1.5 x 2 mm", "[-175, 250]", "not finished", "75%"):
        assert fact in readme


def test_command_writes_it_and_replaces_only_its_own(tmp_path, capsys):
    artifact, out = save_segmenter(tmp_path / "segmenter"), tmp_path / "bundle"
    words = ("export", "bundle", artifact, out)
    assert run(*words, "--authors", "A. Nonym", "--copyright", "nobody") == 0
    assert str(out) in capsys.readouterr().out
    metadata = json.loads((out / METADATA_FILE).read_text())
    assert (metadata["authors"], metadata["copyright"]) == ("A. Nonym", "nobody")
    assert run(*words) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0
    assert json.loads((out / METADATA_FILE).read_text())["authors"] == "not stated"
    assert run("export", "bundle", artifact, artifact, "--overwrite") == 1
    assert "not part of an earlier export" in capsys.readouterr().err
    (out / METADATA_FILE).write_text("{}")
    assert run(*words, "--overwrite") == 1
    assert "no configs/metadata.json written by difftumor" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "segmenter"]


def test_other_artifacts_are_refused(tmp_path, capsys):
    save_tiny_artifacts(tmp_path)
    assert run("export", "bundle", tmp_path / "diffusion_liver_early", tmp_path / "out") == 1
    assert "kind 'diffusion', not 'segmenter'" in capsys.readouterr().err
    save_segmenter(tmp_path / "unfinished", complete=False)
    assert run("export", "bundle", tmp_path / "unfinished", tmp_path / "out") == 1
    assert "not finished" in capsys.readouterr().err
    assert run("export", "bundle", tmp_path / "absent", tmp_path / "out") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# MONAI's commands, in a process that cannot import difftumor


# Along each axis a scan of n voxels of size s becomes m of size t. Of an oblique scan, whose affine in float32 is never
# quite square, MONAI moves the first voxel by (n s - m t) / 2: here 0.1 mm for the last scan, nothing for the others.
# Untrained networks are so undecided that even that shows.
SCANS = {"a": (LPS, (50, 45, 30)), "b": (TILTED, (50, 45, 30)), "c": (LPS, (50, 45, 6)), "d": (TILTED, (50, 44, 30))}
LEAST = {"a": 0.9999, "b": 0.9999, "c": 0.9999, "d": 0.95}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans of blobs, two of them oblique; c is thinner than any window."""
    folder = tmp_path_factory.mktemp("scans")
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, (50, 45, 30)), 4, mode="wrap")
    values = (noise / noise.std() * 120 + 40).clip(-1000)
    values[:3] = -1000
    for name, (affine, (x, y, z)) in SCANS.items():
        write_nifti(folder / f"{name}.nii{'' if name == 'b' else '.gz'}", values[:x, :y, :z].astype(np.int16), affine)
    return folder


@pytest.fixture(scope="module")
def monai_bundle(tmp_path_factory):
    """Return a function that runs ``python -m monai.bundle`` where difftumor cannot be imported."""
    for package in ("fire", "ignite", "jsonschema"):
        pytest.importorskip(package)
    blocked = tmp_path_factory.mktemp("blocked")
    (blocked / "difftumor.py").write_text("raise ImportError('the bundle must do without difftumor')\n")

    def command(bundle, *words):
        done = subprocess.run(
            [sys.executable, "-m", "monai.bundle", *map(str, words)], cwd=bundle, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(blocked), "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return command


def predicted(monai_bundle, bundle, scans, out):
    monai_bundle(
        bundle, "run", "--config_file", INFERENCE_FILE, "--meta_file", METADATA_FILE,
        "--dataset_dir", scans, "--output_dir", out,
    )  # fmt: skip
    return {name: nib.load(out / f"{name}_seg.nii.gz") for name in SCANS}


def agreement(image, own, ct):
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, ct.grid.affine, atol=1e-5)
    assert len(np.unique(own)) > 1
    return float((np.asarray(image.dataobj) == own).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_monai_accepts_it_and_predicts_the_same(tmp_path, scans, monai_bundle, name):
    artifact = load_artifact(save_segmenter(tmp_path / "segmenter", name))
    bundle = write_bundle(artifact, tmp_path / "bundle")
    # The schema's own address cannot be reached everywhere; MONAI reads the file where it is there already.
    said = monai_bundle(bundle, "verify_metadata", "--meta_file", METADATA_FILE, "--filepath", SCHEMA)
    assert "metadata is verified with no error" in said
    said = monai_bundle(
        bundle, "verify_net_in_out", "network_def", "--meta_file", METADATA_FILE, "--config_file", INFERENCE_FILE
    )
    assert "data shape of network is verified with no error" in said
    images = predicted(monai_bundle, bundle, scans, tmp_path / "out")
    for scan, image in images.items():
        ct = read_ct(next(scans.glob(f"{scan}.nii*")))
        same = agreement(image, predict_volume(ct, [artifact]).labels, ct)
        assert same >= LEAST[scan], (scan, same)


@pytest.mark.slow
def test_scans_of_zero_mean_and_unit_deviation(tmp_path, scans, monai_bundle):
    path = save_segmenter(tmp_path / "segmenter", preprocessing={"normalization": "zscore"})
    artifact = load_artifact(path)
    bundle = write_bundle(artifact, tmp_path / "bundle")
    images = predicted(monai_bundle, bundle, scans, tmp_path / "out")
    assert json.loads((bundle / METADATA_FILE).read_text())["network_data_format"]["inputs"]["image"][
        "value_range"
    ] == []  # fmt: skip
    for scan in "ac":  # c is padded by what air has become
        ct = read_ct(scans / f"{scan}.nii.gz")
        assert agreement(images[scan], predict_volume(ct, [artifact]).labels, ct) >= 0.9999
