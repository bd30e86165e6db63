"""``difftumor synthesize`` as a user meets it; what it makes is tested in tests/synthesis."""

import json

import numpy as np
import pytest

from difftumor.cli import main
from difftumor.synthesis.scan_files import FILES
from tests.nifti import write_nifti
from tests.synthesis.makers import ball, save_tiny_artifacts

SHAPE = (36, 34, 32)


def run(*words) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return int(exit_info.value.code or 0)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    values = np.random.default_rng(0).normal(60, 15, SHAPE)
    values[:2] = -1000
    write_nifti(folder / "ct.nii.gz", values.astype(np.int16))
    write_nifti(folder / "liver.nii.gz", ball(SHAPE, 13).astype(np.uint8))
    write_nifti(folder / "organs.nii.gz", (ball(SHAPE, 13) * 5 + ball(SHAPE, 2)).astype(np.uint8))
    save_tiny_artifacts(folder / "checkpoints")
    return folder


def words(case, folder, **changes):
    options = {
        "--ct": case / "ct.nii.gz",
        "--organ-mask": case / "liver.nii.gz",
        "--organ": "liver",
        "--size": "tiny",
        "--model": case / "checkpoints" / "diffusion_liver_early",
        "--device": "cpu",
        "--out": folder,
        **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
    }
    return ["synthesize", *(word for pair in options.items() if pair[1] is not None for word in pair)]


def test_mask_and_label_map_give_the_same_tumors(case, tmp_path, capsys):
    assert run(*words(case, tmp_path / "mask", count=2)) == 0
    printed = capsys.readouterr().out
    assert "Tumor 1: tiny, diameter" in printed
    assert "Tumor 2: " in printed
    assert f"Results are in {tmp_path / 'mask'}." in printed
    assert {path.name for path in (tmp_path / "mask").iterdir()} == set(FILES)
    write_nifti(tmp_path / "labels.nii.gz", (ball(SHAPE, 13) * 5).astype(np.uint8))
    options = {"organ_mask": None, "labels": tmp_path / "labels.nii.gz", "organ_label": 5, "count": 2}
    assert run(*words(case, tmp_path / "labels", **options)) == 0
    for name in ("ct.nii.gz", "labels.nii.gz", "lesions.nii.gz", "preview.png"):
        assert (tmp_path / "mask" / name).read_bytes() == (tmp_path / "labels" / name).read_bytes()


def test_the_usual_model_is_found(case, tmp_path, monkeypatch):
    monkeypatch.chdir(case)
    assert run(*words(case, tmp_path / "out", model=None)) == 0


def test_sampler_and_precision_are_chosen_and_recorded(case, tmp_path):
    def sampling(name, **options):
        assert run(*words(case, tmp_path / name, **options)) == 0
        return json.loads((tmp_path / name / "record.json").read_text())["sampling"]

    usual = {"kind": "ddpm", "steps": None, "eta": 0.0, "spacing": "leading", "precision": "fp32"}
    assert sampling("usual") == usual
    chosen = {"kind": "ddim", "steps": 2, "eta": 0.5, "spacing": "trailing", "precision": "bf16"}
    options = {"sampler": "ddim", "steps": 2, "eta": 0.5, "spacing": "trailing", "precision": "bf16"}
    assert sampling("chosen", **options) == chosen
    names = ("ct.nii.gz", "lesions.nii.gz")
    same = [(tmp_path / "usual" / name).read_bytes() == (tmp_path / "chosen" / name).read_bytes() for name in names]
    assert same == [False, True]


def test_overwrite(case, tmp_path, capsys):
    assert run(*words(case, tmp_path / "out")) == 0
    assert run(*words(case, tmp_path / "out")) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(*words(case, tmp_path / "out"), "--overwrite") == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ct": "missing.nii.gz"}, ("missing.nii.gz",)),
        ({"organ": "spleen"}, ("spleen", "liver")),
        ({"organ_mask": None}, ("--organ-mask", "--labels")),
        ({"labels": "both.nii.gz"}, ("--organ-mask", "--labels")),
        ({"organ_mask": None, "labels": "organs.nii.gz"}, ("--organ-label",)),
        ({"organ_mask": "organs.nii.gz"}, ("5, 6", "--organ-label")),
        ({"organ_label": 9}, ("label 9", "labels found: 1")),
        ({"size": "giant"}, ("giant", "early")),
        ({"size": "large"}, ("no room",)),
        ({"model": "checkpoints/autoencoder"}, ("autoencoder", "stages.diffusion")),
        ({"model": "nowhere"}, ("nowhere",)),
        ({"model": None, "size": "large"}, ("diffusion_liver_late", "--model")),
        ({"out": "liver.nii.gz/deep/out"}, ("lies inside the file liver.nii.gz", "give a folder")),
        ({"model": None, "organ": "kidney"}, ("diffusion_kidney_early", "stages.diffusion", "--model")),
        ({"precision": "fp16"}, ("fp16", "bf16")),
        ({"sampler": "euler"}, ("euler", "ddim")),
        ({"steps": 2}, ("steps must be all 4", "'ddpm'")),
        ({"sampler": "ddim", "steps": 5}, ("at most 4", "5")),
        ({"sampler": "ddim", "eta": 2}, ("eta", "[0, 1]")),
        ({"eta": 0.5}, ("eta 0.5", "ddim")),
        ({"sampler": "ddim", "spacing": "even"}, ("even", "trailing")),
        ({"device": "cuda:99"}, ("cuda:99", "cpu")),
        ({"out": "liver.nii.gz"}, ("liver.nii.gz", "folder")),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(case, tmp_path, monkeypatch, capsys, changes, expected):
    monkeypatch.chdir(case)
    before = sorted(case.rglob("*"))
    assert run(*words(case, tmp_path / "out", **changes)) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert all(word in error for word in expected), error
    assert list(tmp_path.iterdir()) == []
    assert sorted(case.rglob("*")) == before


def test_count_below_one_is_wrong_usage(case, tmp_path):
    assert run(*words(case, tmp_path / "out", count=0)) == 2
