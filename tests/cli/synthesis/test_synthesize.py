"""``difftumor synthesize`` as a user meets it; what it makes is tested in tests/synthesis."""

import json
import shutil
from dataclasses import fields

import nibabel as nib
import numpy as np
import pytest
import yaml

from difftumor.synthesis.scan.record import FILES, read_record
from difftumor.synthesis.spec import Satellites, TumorSpec
from tests.conftest import REPOSITORY, contents, read_rows, run
from tests.nifti import write_nifti
from tests.synthesis.makers import ball, save_tiny_artifacts

SHAPE = (36, 34, 32)
MADE = ("ct.nii.gz", "labels.nii.gz", "lesions.nii.gz", "preview.png")


@pytest.fixture(autouse=True)
def _quick(request):
    """Skip previews, except where other processes make them too."""
    if request.node.get_closest_marker("slow") is None:
        request.getfixturevalue("no_picture")


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


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def test_mask_label_map_and_convention_give_the_same_tumors(case, tmp_path, capsys):
    assert run(*words(case, tmp_path / "mask", count=2)) == 0
    printed = capsys.readouterr().out
    assert "diffusion tiny" in printed
    assert "diameter" in printed
    assert f"Results are in {tmp_path / 'mask'}." in printed
    assert {path.name for path in (tmp_path / "mask").iterdir()} == set(FILES)
    write_nifti(tmp_path / "labels.nii.gz", (ball(SHAPE, 13) * 5).astype(np.uint8))
    labels = {"organ_mask": None, "labels": tmp_path / "labels.nii.gz", "count": 2}
    assert run(*words(case, tmp_path / "labels", **labels, organ_label=5)) == 0
    assert run(*words(case, tmp_path / "named", **labels, convention="totalsegmentator")) == 0
    for name in MADE:
        first = (tmp_path / "mask" / name).read_bytes()
        assert first == (tmp_path / "labels" / name).read_bytes() == (tmp_path / "named" / name).read_bytes()


def test_several_labels_are_one_organ(case, tmp_path):
    halves = ball(SHAPE, 13).astype(np.uint8) * 2
    halves[18:] += (halves[18:] > 0).astype(np.uint8)
    write_nifti(tmp_path / "halves.nii.gz", halves)
    labels = {"organ_mask": None, "labels": tmp_path / "halves.nii.gz", "organ_label": "2,3"}
    assert run(*words(case, tmp_path / "one")) == 0
    assert run(*words(case, tmp_path / "two", **labels)) == 0
    for name in MADE:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_usual_model_is_found(case, tmp_path, monkeypatch):
    monkeypatch.chdir(case)
    assert run(*words(case, tmp_path / "out", model=None)) == 0
    assert set(record_of(tmp_path / "out")["models"]) == {"early"}


def test_hand_crafted_tumors_need_no_model(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"model": None, "generator": "handcrafted", "preset": "reader", "size": None, "radius_mm": 6}
    assert run(*words(case, tmp_path / "out", **options)) == 0
    record = record_of(tmp_path / "out")
    (tumor,) = record["tumors"]
    assert record["models"] == {}
    assert tumor["requested"]["diameter_mm"] == pytest.approx(12)
    assert (tumor["record"]["mass_effect"], tumor["record"]["capsule_hu"]) == (30, 120)
    assert tumor["record"]["texture"]["kind"] == "gaussian"


def test_real_tumors_are_copied(case, tmp_path, capsys):
    labels = ball(SHAPE, 13).astype(np.uint8)
    labels[ball(SHAPE, 3)] = 2
    ct = np.array([-1000, 60, 20], np.int16)[labels]
    write_nifti(tmp_path / "source" / "p1" / "ct.nii.gz", ct)
    write_nifti(tmp_path / "source" / "p1" / "labels.nii.gz", labels)
    (tmp_path / "source.csv").write_text("id,image,labels\np1,source/p1/ct.nii.gz,source/p1/labels.nii.gz\n")
    options = {"model": None, "generator": "copy_paste", "source": tmp_path / "source.csv"}
    assert run(*words(case, tmp_path / "out", **options)) == 0
    assert "copy_paste tiny" in capsys.readouterr().out
    source = record_of(tmp_path / "out")["tumors"][0]["record"]["source"]
    assert (source["case"], source["tumor"]) == ("p1", 1)
    assert source["shift_hu"] == pytest.approx(0, abs=1)
    assert run(*words(case, tmp_path / "none", **options | {"source": None})) == 1
    assert "give --source CASES" in capsys.readouterr().err


def test_sampler_and_precision_are_chosen_and_recorded(case, tmp_path):
    def sampling(name, **options):
        assert run(*words(case, tmp_path / name, **options)) == 0
        return record_of(tmp_path / name)["models"]["early"]["sampling"]

    usual = {"kind": "ddpm", "steps": None, "eta": 0.0, "spacing": "leading", "precision": "fp32"}
    assert sampling("usual") == usual
    chosen = {"kind": "ddim", "steps": 2, "eta": 0.5, "spacing": "trailing", "precision": "bf16"}
    options = {"sampler": "ddim", "steps": 2, "eta": 0.5, "spacing": "trailing", "precision": "bf16"}
    assert sampling("chosen", **options) == chosen
    # What a replay samples with.
    assert read_record(tmp_path / "chosen" / "record.json").models["early"].options["precision"] == "bf16"
    names = ("ct.nii.gz", "lesions.nii.gz")
    same = [(tmp_path / "usual" / name).read_bytes() == (tmp_path / "chosen" / name).read_bytes() for name in names]
    assert same == [False, True]


def test_replay_gives_the_same_files_from_the_record_alone(case, tmp_path, monkeypatch, capsys):
    assert run(*words(case, tmp_path / "a", count=2, sampler="ddim", steps=2)) == 0
    record = tmp_path / "a" / "record.json"
    assert run("synthesize", "--replay", record, "--device", "cpu", "--out", tmp_path / "b") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    shutil.copy(case / "ct.nii.gz", tmp_path / "copy.nii.gz")
    again = ["synthesize", "--replay", record, "--device", "cpu", "--ct", tmp_path / "copy.nii.gz"]
    again += ["--organ-mask", case / "liver.nii.gz", "--model", case / "checkpoints" / "diffusion_liver_early"]
    assert run(*again, "--out", tmp_path / "c") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    capsys.readouterr()
    for option in (("--size", "tiny"), ("--seed", 1), ("--cases", case), ("--sampler", "ddim"), ("--organ", "liver")):
        assert run("synthesize", "--replay", record, *option, "--out", tmp_path / "d") == 1
        assert f"({option[0]}) does not go with --replay" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_any_organ_hosts_tumors_of_any_model(case, tmp_path, capsys):
    rules = tmp_path / "rules.yaml"
    rules.write_text("tumor_hu: [120, 121]\ntumor_sd_hu: 0\n")
    assert run(*words(case, tmp_path / "model", organ="thymus")) == 0
    said = capsys.readouterr().err
    assert "has learned tumors of the liver, not of the thymus." in said
    assert "There are no rules for the thymus" in said
    record = record_of(tmp_path / "model")
    assert (record["request"]["organ"], record["models"]["early"]["organ"]) == ("thymus", "liver")
    made = words(case, tmp_path / "rules", organ="thymus", organ_rules=rules, generator="handcrafted", model=None)
    assert run(*made) == 0
    assert "no rules" not in capsys.readouterr().err
    tumor = record_of(tmp_path / "rules")["tumors"][0]["record"]
    assert 120 <= tumor["texture"]["mean_hu"] <= 121
    assert tumor["texture"]["sd_hu"] == 0
    # The record holds the rules; their file is not needed again.
    rules.unlink()
    assert run("synthesize", "--replay", tmp_path / "rules" / "record.json", "--out", tmp_path / "again") == 0
    assert contents(tmp_path / "rules") == contents(tmp_path / "again")


def test_a_mask_gives_shape_and_place(case, tmp_path, capsys):
    mask = np.zeros(SHAPE, np.uint8)
    mask[17:23, 15:21, 12:14] = 1
    given = write_nifti(tmp_path / "given.nii.gz", mask)
    asked = {"size": None, "tumor_mask": given}
    assert run(*words(case, tmp_path / "model", **asked)) == 0
    assert "as the mask says" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "model" / "lesions.nii.gz").dataobj), mask)
    assert record_of(tmp_path / "model")["tumors"][0]["achieved"]["label_dice"] == 1
    record = tmp_path / "model" / "record.json"
    assert run("synthesize", "--replay", record, "--device", "cpu", "--out", tmp_path / "b") == 0
    assert contents(tmp_path / "model") == contents(tmp_path / "b")
    plan = tmp_path / "plan.yaml"
    plan.write_text("tumors: [{generator: handcrafted, contrast_hu: -50}]\n")
    assert run(*words(case, tmp_path / "plan", **asked, tumors=plan, model=None)) == 0
    assert record_of(tmp_path / "plan")["tumors"][0]["record"]["contrast_hu"] == -50
    capsys.readouterr()
    for option, value in (("size", "tiny"), ("count", 2), ("radius_mm", 5), ("cases", case)):
        assert run(*words(case, tmp_path / "refused", **{**asked, option: value})) == 1
        assert f"(--{option.replace('_', '-')}) does not go with --tumor-mask" in capsys.readouterr().err
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run(*words(case, tmp_path / "refused", size=None, tumor_mask=empty)) == 1
    assert f"--tumor-mask {empty} has no voxel in" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_file_says_which_tumors(case, tmp_path, capsys):
    plan = tmp_path / "tumors.yaml"
    plan.write_text(
        "seed: 5\ntumors:\n- {generator: diffusion, size: tiny}\n- {generator: handcrafted, diameter_mm: 7, count: 2}\n"
    )
    asked = {"size": None, "tumors": plan}
    assert run(*words(case, tmp_path / "stated", **asked)) == 0
    assert record_of(tmp_path / "stated")["request"]["seed"] == 5
    kinds = [tumor["requested"]["generator"] for tumor in record_of(tmp_path / "stated")["tumors"]]
    assert kinds == ["diffusion", "handcrafted", "handcrafted"]
    assert run(*words(case, tmp_path / "other", **asked, seed=6)) == 0
    assert record_of(tmp_path / "other")["request"]["seed"] == 6
    capsys.readouterr()
    assert run(*words(case, tmp_path / "both", tumors=plan)) == 1
    assert "size (--size) does not go with --tumors" in capsys.readouterr().err


def test_short_options_are_fields_of_a_tumor(case, tmp_path, capsys):
    asked = {"model": None, "generator": "handcrafted", "blur_share": 0.1, "host_noise_mm": 2}
    assert run(*words(case, tmp_path / "out", **asked)) == 0
    (tumor,) = record_of(tmp_path / "out")["tumors"]
    record = tumor["record"]
    assert record["texture"]["host_noise_mm"] == 2
    radius_mm = np.prod(record["half_axes_mm"]) ** (1 / 3)
    assert record["blur_sigma_voxels"] * np.prod(record["spacing_mm"]) ** (1 / 3) == pytest.approx(0.1 * radius_mm)
    assert run(*words(case, tmp_path / "none", **asked, gate_change_hu=5)) == 1
    assert "(--gate-change-hu) does not go with tumors without --quality-gate" in capsys.readouterr().err
    assert run(*words(case, tmp_path / "none", **asked, gate_change_hu=-5), "--quality-gate") == 1
    assert "--gate-change-hu is -5.0: give a number from 0." in capsys.readouterr().err
    assert run(*words(case, tmp_path / "none", **asked, gate_change_hu=900, gate_attempts=2), "--quality-gate") == 1
    assert "failed: faint" in capsys.readouterr().err


def test_the_file_of_the_documentation_uses_every_field(tmp_path, monkeypatch, capsys):
    plan = REPOSITORY / "docs" / "tumors.yaml"
    entries = yaml.safe_load(plan.read_text())["tumors"]
    assert {name for entry in entries for name in entry} == {f.name for f in fields(TumorSpec)} | {"preset"}
    assert set(entries[0]["satellites"]) | {"diameter_mm"} == {f.name for f in fields(Satellites)}

    shape, affine = (48, 48, 48), np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = np.array([105, 150, 130]) - 24 * 2.5
    values = np.random.default_rng(0).normal(100, 10, shape)
    values[:2] = -1000
    for name, data in (("ct", values.astype(np.int16)), ("liver", ball(shape, 21).astype(np.uint8))):
        write_nifti(tmp_path / f"{name}.nii.gz", data, affine)
    options = {"size": None, "model": None, "tumors": plan, "segments": tmp_path / "liver.nii.gz"}
    assert run(*words(tmp_path, tmp_path / "out", **options)) == 0
    tumors = record_of(tmp_path / "out")["tumors"]
    assert "handcrafted medium, central" in capsys.readouterr().out
    assert {tumor["requested"]["location"] for tumor in tumors} == {
        "central", "around tumor 1", "peripheral", "segment 1", "point (105, 150, 130) mm",
    }  # fmt: skip
    np.testing.assert_allclose(tumors[-1]["achieved"]["center_mm"], (105, 150, 130), atol=3)


def test_what_cannot_be_had_is_told_or_refused(case, tmp_path, capsys):
    many = {"model": None, "generator": "handcrafted", "radius_mm": 6, "size": None, "count": 12}
    assert run(*words(case, tmp_path / "out", **many)) == 0
    assert "Warning: The liver had room for" in capsys.readouterr().err
    assert run(*words(case, tmp_path / "strict", **many), "--strict") == 1
    assert "omit strict (--strict)" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


def test_the_gate_says_what_it_cannot_test_and_what_it_rejected(case, tmp_path, capsys):
    code = run(*words(case, tmp_path / "out", gate_attempts=2), "--quality-gate")
    printed = capsys.readouterr()
    assert "does not say what real tumors look like" in printed.err
    if code == 0:
        assert "The quality gate passed 1 tumor" in printed.out
    else:
        assert "None of 2 tumors passed the quality gate (failed:" in printed.err


def test_overwrite(case, tmp_path, capsys):
    assert run(*words(case, tmp_path / "out")) == 0
    assert run(*words(case, tmp_path / "out")) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(*words(case, tmp_path / "out"), "--overwrite") == 0


def cohort(case, folder, names=("one", "two")):
    """Write a list of scans; the last is broken."""
    rows = ["id,image,labels"]
    for name in (*names, "broken"):
        shutil.copy(case / "ct.nii.gz", folder / f"{name}.nii.gz")
        shutil.copy(case / "liver.nii.gz", folder / f"{name}_organ.nii.gz")
        rows.append(f"{name},{name}.nii.gz,{name}_organ.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no gzip")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


def test_many_scans_and_one_that_is_broken(case, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    listed = cohort(case, tmp_path / "in")
    many = {"ct": None, "organ_mask": None, "model": None, "generator": "handcrafted", "cases": listed}
    assert run(*words(case, tmp_path / "out", **many)) == 1
    printed = capsys.readouterr()
    assert "one: 1 tumor" in printed.out
    assert "1 of 3 scans failed (broken)" in printed.err
    rows = {row["case"]: row for row in read_rows(tmp_path / "out" / "summary.csv")}
    assert [row["status"] for row in rows.values()] == ["made", "made", "failed"]
    assert "broken.nii.gz is damaged" in rows["broken"]["error"]
    first = {name: contents(tmp_path / "out" / name) for name in ("one", "two")}
    assert not (tmp_path / "out" / "broken").exists()
    # Each scan has tumors of its own.
    assert first["one"]["lesions.nii.gz"] != first["two"]["lesions.nii.gz"]

    # Run again, what is made stays, and what was mended is made.
    shutil.copy(case / "ct.nii.gz", tmp_path / "in" / "broken.nii.gz")
    assert run(*words(case, tmp_path / "out", **many)) == 0
    assert "one: done before" in capsys.readouterr().out
    # Something else asked for is not taken for it.
    assert run(*words(case, tmp_path / "out", **many, seed=1)) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(*words(case, tmp_path / "out", **many, seed=1), "--overwrite") == 0
    assert contents(tmp_path / "out" / "one")["lesions.nii.gz"] != first["one"]["lesions.nii.gz"]


def test_a_list_is_not_replaced_by_the_summary(case, tmp_path, capsys):
    listed = cohort(case, tmp_path).rename(tmp_path / "summary.csv")
    before = contents(tmp_path)
    many = {"ct": None, "organ_mask": None, "model": None, "generator": "handcrafted", "cases": listed}
    assert run(*words(case, tmp_path, **many)) == 1
    assert "summary.csv: give another folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["organ_mask", "labels"])
def test_a_folder_of_scans_and_one_of_masks_or_label_maps(case, tmp_path, capsys, option):
    for folder in ("ct", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("one", "two"):
        shutil.copy(case / "ct.nii.gz", tmp_path / "ct" / f"{name}.nii.gz")
        value = 255 if option == "organ_mask" else 5
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", ball(SHAPE, 13).astype(np.uint8) * value)
    many = {"ct": None, "organ_mask": None, "model": None, "generator": "handcrafted", "cases": tmp_path / "ct"}
    many |= {option: tmp_path / "labels", "convention": None if option == "organ_mask" else "totalsegmentator"}
    assert run(*words(case, tmp_path / "out", **many)) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two", "summary.csv"}
    (tmp_path / "labels" / "two.nii.gz").unlink()
    assert run(*words(case, tmp_path / "again", **many)) == 1
    assert "two.nii.gz: name the files like their CTs" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_make_what_one_makes(case, tmp_path):
    (tmp_path / "in").mkdir()
    listed = cohort(case, tmp_path / "in")
    shutil.copy(case / "ct.nii.gz", tmp_path / "in" / "broken.nii.gz")
    many = {"ct": None, "organ_mask": None, "cases": listed}
    assert run(*words(case, tmp_path / "one", **many)) == 0
    assert run(*words(case, tmp_path / "three", **many, jobs=3)) == 0
    for name in ("one", "two", "broken"):
        assert contents(tmp_path / "one" / name) == contents(tmp_path / "three" / name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ct": "missing.nii.gz"}, ("missing.nii.gz",)),
        ({"ct": None}, ("--ct", "--cases")),
        ({"organ": "livr"}, ("livr", "did you mean liver?")),
        ({"organ_rules": "liver.nii.gz"}, ("--organ-rules liver.nii.gz", "YAML or JSON")),
        ({"organ_rules": "missing.yaml"}, ("--organ-rules missing.yaml", "No such file")),
        ({"organ": None}, ("--organ is missing", "liver")),
        ({"organ_mask": None}, ("--organ-mask", "--labels")),
        ({"labels": "both.nii.gz"}, ("--organ-mask", "--labels")),
        ({"organ_mask": None, "labels": "organs.nii.gz"}, ("--organ-label", "--convention")),
        ({"organ_mask": "organs.nii.gz"}, ("5, 6", "--organ-label")),
        ({"organ_label": 9}, ("label 9", "labels found: 1")),
        ({"organ_label": "five"}, ("--organ-label", "five")),
        ({"organ_label": 0}, ("--organ-label", "from 1 up")),
        ({"organ_label": 5, "convention": "lits"}, ("--organ-label", "--convention")),
        ({"convention": "mine"}, ("mine", "totalsegmentator")),
        ({"cases": "."}, ("--cases", "--ct")),
        ({"size": "giant"}, ("giant", "early")),
        ({"size": "large"}, ("no room",)),
        ({"radius_mm": 5}, ("--size", "--radius-mm")),
        ({"size": None, "radius_mm": -5}, ("--radius-mm", "above 0")),
        ({"generator": "magic"}, ("magic", "handcrafted")),
        ({"preset": "best"}, ("best", "reader")),
        ({"size": None, "tumors": "nowhere.yaml"}, ("nowhere.yaml", "YAML")),
        ({"segments": "missing.nii.gz"}, ("missing.nii.gz",)),
        ({"model": "checkpoints/autoencoder"}, ("autoencoder", "stages.diffusion")),
        ({"model": "nowhere"}, ("nowhere",)),
        ({"model": None, "size": "large"}, ("diffusion_liver_late", "--model", "the generator handcrafted")),
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
