"""``difftumor info`` on a hand-written artifact folder."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from difftumor.models.artifact_config import CONFIG_FILE, ArtifactConfig, ParentReference
from difftumor.scans.appearance import AppearanceRanges
from difftumor.scans.fingerprint import fingerprint
from difftumor.scans.nifti import read_ct, volume_of, write_ct
from tests.conftest import run
from tests.nifti import ct_values


@pytest.fixture
def artifact(tmp_path):
    config = ArtifactConfig(
        kind="diffusion",
        architecture={"name": "factorized_unet", "width": 24},
        preprocessing={"spacing_mm": [1.0, 1.0, 1.0]},
        weights_sha256="0" * 64,
        organ="liver",
        parents={"autoencoder": ParentReference("../autoencoder", "a" * 64)},
        settings={"sampler": {"kind": "ddim"}},
        training={"steps": 123},
        metrics={"loss": 0.123456},
        complete=False,
    )
    folder = tmp_path / "diffusion"
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(config.to_json())
    return folder, config


def test_table_tells_what_it_is(artifact, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, config = artifact
    assert run("info", folder) == 0
    text = capsys.readouterr().out
    for fact in ("diffusion", "factorized_unet", "width: 24", "liver", "[1.0, 1.0, 1.0]", "sampler.kind: ddim"):
        assert fact in text
    for fact in ("../autoencoder (aaaaaaaaaaaa)", "steps: 123", "loss: 0.1235", "has not finished", config.identity):
        assert fact in text


def test_table_counts_fingerprints(artifact, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, config = artifact
    assert run("info", folder) == 0
    assert "none, so which scans it was trained on is unknown" in capsys.readouterr().out
    text = str(fingerprint(volume_of(ct_values(), np.eye(4))))
    training = {"steps": 1, "fingerprints": {"training": [["a", text], ["b", text]], "validation": []}}
    (folder / CONFIG_FILE).write_text(replace(config, training=training).to_json())
    assert run("info", folder) == 0
    said = capsys.readouterr().out
    assert "of 2 scans that it was trained on" in said
    assert text[:20] not in said


def test_table_says_in_one_line_how_real_tumors_look(artifact, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, config = artifact
    assert run("info", folder) == 0
    assert "real tumors" not in capsys.readouterr().out
    rising = (1.0, 2.0, 3.0, 4.25, 5.0, 6.0, 7.0)
    ranges = AppearanceRanges(
        tumors=12, contrast_hu=tuple(value - 50 for value in rising), sd_hu=rising, edge_step_hu=None
    )
    for measured, text in (
        (ranges, "12 measured, median contrast -45.75 HU, median SD 4.25 HU"),
        (replace(ranges, edge_step_hu=(30.0,) * 7), "median SD 4.25 HU, median edge step 30 HU"),
        (AppearanceRanges.of([]), "0 measured"),
    ):
        (folder / CONFIG_FILE).write_text(replace(config, real_tumors=measured.to_dict()).to_json())
        assert run("info", folder) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "real tumors" in line]
        assert line.strip(" │").endswith(text)
        assert run("info", folder, "--json") == 0
        assert json.loads(capsys.readouterr().out)["real_tumors"]["tumors"] == measured.tumors
    (folder / CONFIG_FILE).write_text(replace(config, real_tumors={"tumors": 3}).to_json())
    assert run("info", folder) == 1
    assert "does not say readably how real tumors look" in capsys.readouterr().err


def test_json_is_the_config(artifact, capsys):
    folder, config = artifact
    assert run("info", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(config.to_json())


def test_missing_artifact_is_one_sentence(tmp_path, capsys):
    assert run("info", tmp_path / "none") == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_an_image_says_which_tumors_were_made(tmp_path, capsys):
    plain = tmp_path / "plain.nii.gz"
    nib.save(nib.Nifti1Image(np.full((4, 5, 6), -1000, np.int16), np.diag([-2, 1, 3, 1])), plain)
    original = read_ct(plain, accept_hu=True)
    content = {"organ": "liver", "tumors": [{"generator": "diffusion", "diameter_mm": 8.5, "center_mm": [1, 2, 3]}]}
    write_ct(tmp_path / "ct.nii.gz", original, original.data, np.zeros((4, 5, 6), bool), mark=content)
    assert run("info", tmp_path / "ct.nii.gz") == 0
    printed = capsys.readouterr().out
    assert "1 tumor" in printed
    assert "diffusion in the liver, 8.5 mm, centered at [1, 2, 3] mm" in printed
    assert run("info", tmp_path / "ct.nii.gz", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["spacing_mm"], found["axes"]) == ([4, 5, 6], [2, 1, 3], "LAS")
    assert found["synthetic_tumors"] == [content]
    assert found["synthetic"]
    odd = {"organ": "liver", "tumors": 5}
    write_ct(tmp_path / "odd.nii.gz", original, original.data, np.zeros((4, 5, 6), bool), mark=odd)
    assert run("info", tmp_path / "odd.nii.gz") == 0
    assert "tumors; which is lost" in capsys.readouterr().out
    assert run("info", plain) == 0
    assert "nothing says so" in capsys.readouterr().out
    (tmp_path / "broken.nii.gz").write_bytes(b"x")
    assert run("info", tmp_path / "broken.nii.gz") == 1
    assert "broken.nii.gz" in capsys.readouterr().err
