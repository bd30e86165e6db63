"""The command select-healthy: from predicted label maps to a list that stage 3 reads."""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from difftumor.cli.data.select_healthy import select_healthy
from difftumor.datasets.cases import read_cases
from difftumor.datasets.healthy import HealthyRule, usual_rule
from difftumor.datasets.integrity import fingerprints
from difftumor.models.artifact import save_artifact
from difftumor.models.segmenters import build_segmenter
from difftumor.scans.organs import get_organ
from tests.conftest import contents, read_rows, run
from tests.nifti import write_nifti

AFFINE = np.diag([-10.0, -10.0, 10.0, 1.0])  # voxels of 1 ml
SHAPE = (30, 28, 26)
ORGAN = ((3, 3, 3), (10, 9, 8))
TUMOR = ((5, 5, 5), (2, 2, 2))


def boxes(*parts, dtype=np.uint8):
    data = np.zeros(SHAPE, dtype)
    for (start, size), value in parts:
        data[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    return data


CT = np.where(boxes((ORGAN, 1)) > 0, 60, -1000).astype(np.int16)


def write(folder, case, data, affine=AFFINE, *, ct=True):
    if ct:
        write_nifti(folder / "cts" / f"{case}_0000.nii.gz", CT, AFFINE)
    return write_nifti(folder / "maps" / f"{case}.nii.gz", data, affine)


@pytest.fixture
def scans(tmp_path):
    """CTs, and label maps of a healthy liver, one with a tumor, none, and one that lacks its CT."""
    write(tmp_path, "a", boxes((ORGAN, 1)))
    write(tmp_path, "b", boxes((ORGAN, 1), (TUMOR, 2)))
    write(tmp_path, "c", boxes())
    write(tmp_path, "d", boxes((ORGAN, 1)), ct=False)
    return tmp_path


def words(folder, *more):
    given = ("--cts", folder / "cts", "--organ", "liver", "--out", folder / "list.json")
    return ("select-healthy", folder / "maps", *given, *more)


def table(file):
    return {row["case"]: row for row in read_rows(file)}


def test_a_list_and_a_table(scans, capsys):
    before = contents(scans)
    assert run(*words(scans)) == 0
    after = contents(scans)
    assert set(after) - set(before) == {"list.json", "list.csv"}
    assert before.items() <= after.items()
    said = capsys.readouterr().out
    assert "1 is taken for liver, 2 for its tumors" in said
    assert f"1 scan with a healthy liver: {scans / 'list.json'}" in said
    lines = [line.split() for line in said.splitlines()]
    for line in (["healthy", "1"], ["no", "CT", "1"], ["no", "liver", "1"], ["liver", "tumor", "1"], ["all", "4"]):
        assert line in lines
    assert {case: row["status"] for case, row in table(scans / "list.csv").items()} == {
        "a": "healthy", "b": "tumor", "c": "no_organ", "d": "no_ct",
    }  # fmt: skip
    row = table(scans / "list.csv")["b"]
    assert [float(row[name]) for name in ("volume_ml", "pieces", "main_share", "tumor_mm3")] == [720, 1, 1, 8000]
    assert row["reason"] == "has 8000 mm³ of liver tumor"
    (case,) = read_cases(scans / "list.json").cases
    assert (case.id, case.image) == ("a", scans / "cts" / "a_0000.nii.gz")
    assert read_cases(scans / "list.json").label_names == {"background": 0, "liver": 1, "liver_tumor": 2}
    moved = shutil.move(scans, scans.with_name(f"{scans.name}_moved"))
    assert read_cases(moved / "list.json").cases[0].image == moved / "cts" / "a_0000.nii.gz"


def test_fingerprints_are_stated_on_request(scans):
    assert run(*words(scans, "--fingerprints")) == 0
    (case,) = read_cases(scans / "list.json").cases
    assert case.fingerprint == str(fingerprints([case.image])[case.image])


def test_one_bad_map_does_not_stop_the_others(scans, capsys):
    write(scans, "e", boxes((ORGAN, 0.5), dtype=np.float32))
    write(scans, "f", boxes((ORGAN, 1)), affine=np.diag([-10.0, -10.0, 9.0, 1.0]))
    write(scans, "g", boxes((ORGAN, 1))).write_bytes(b"no NIfTI")
    write(scans, "h", boxes((ORGAN, 5)))  # a number that nobody explains
    assert run(*words(scans, "--jobs", 3)) == 1
    said = capsys.readouterr()
    error = said.err.splitlines()[-1]
    assert error.startswith("Error: 4 of 8 scans cannot be used (e, f, g, h): see ")
    assert [line.split()[2] for line in said.err.splitlines()[:-1]] == ["e", "f", "g", "h"]
    assert [case.id for case in read_cases(scans / "list.json").cases] == ["a"]
    content = json.loads((scans / "list.json").read_text())
    assert {each["id"] for each in content["left_out"]} == set("bcdefgh")
    assert table(scans / "list.csv")["h"]["reason"].startswith("cannot be used: ")


def test_no_healthy_scan(scans, capsys):
    (scans / "maps" / "a.nii.gz").unlink()
    (scans / "list.json").write_text("earlier")
    assert run(*words(scans, "--overwrite")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "None of the 4 scans" in error
    assert "(no label map: 1, no CT: 1, no liver: 1, liver tumor: 1)" in error
    assert not (scans / "list.json").exists()  # it would contradict the table
    assert table(scans / "list.csv")["a"]["status"] == "no_labels"
    write(scans, "a", boxes((ORGAN, 1)))
    assert run(*words(scans)) == 0  # the table of the run that found none is no result to keep
    (scans / "list.json").unlink()
    (scans / "list.csv").write_text("name,phone\n")
    assert run(*words(scans)) == 1
    assert "already holds list.csv" in capsys.readouterr().err


def test_what_makes_all_scans_useless_is_said(scans, capsys):
    for case in "abc":
        write(scans, case, boxes((ORGAN, 5)))
    assert run(*words(scans)) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 4
    assert "holds labels 0, 5 and no label names come with it" in error[0]
    assert "None of the 4 scans" in error[-1]


def test_options_reach_the_rule(scans, capsys):
    assert run(*words(scans, "--max-tumor-mm3", 8000)) == 0
    assert [case.id for case in read_cases(scans / "list.json").cases] == ["a", "b"]
    assert (scans / "list_labels" / "b.nii.gz").is_file()
    options = ("--min-volume-ml", 100, "--max-volume-ml", 719, "--pieces", 1, "--min-share", 0.5, "--allow-cut")
    assert run(*words(scans, "--overwrite", *options)) == 1
    assert "liver too large: 1" in capsys.readouterr().err
    assert run(*words(scans, "--overwrite", *options[:3], 720, *options[4:])) == 0
    rule = json.loads((scans / "list.json").read_text())["rule"]
    given = {name: rule[name] for name in ("min_volume_ml", "max_volume_ml", "pieces", "min_share", "allow_cut")}
    assert given == dict(zip(given, (100, 720, 1, 0.5, True), strict=True))


def test_defaults_are_those_of_the_library():
    defaults = {name: each.default for name, each in inspect.signature(select_healthy).parameters.items()}
    for source in (usual_rule, HealthyRule):
        for name, parameter in inspect.signature(source).parameters.items():
            if name in defaults and parameter.default is not inspect.Parameter.empty and name != "pieces":
                assert defaults[name] == parameter.default


@pytest.mark.parametrize(
    ("name", "write_table"),
    [
        ("names.json", lambda names: json.dumps(names, indent="\t")),
        ("names.yaml", yaml.safe_dump),
        ("numbers.yaml", lambda names: yaml.safe_dump({number: name for name, number in names.items()})),
        ("dataset.json", lambda names: json.dumps({"labels": names, "numTraining": 4})),
    ],
)
def test_a_table_says_what_the_numbers_mean(scans, tmp_path, name, write_table):
    names = {"background": 0, "spleen": 1, "liver": 6, "liver tumor": 27}
    for case, parts in {"a": [(ORGAN, 6)], "b": [(ORGAN, 6), (TUMOR, 27)], "c": [(ORGAN, 1)]}.items():
        write(scans, case, boxes(*parts))
    (scans / name).write_text(write_table(names))
    assert run(*words(scans, "--labels", scans / name)) == 0
    assert {case: row["status"] for case, row in table(scans / "list.csv").items()} == {
        "a": "healthy", "b": "tumor", "c": "no_organ", "d": "no_ct",
    }  # fmt: skip
    assert read_cases(scans / "list.json").label_names == {"background": 0, "liver": 6, "liver tumor": 27}
    assert run(*words(scans, "--labels", "universal_model", "--overwrite")) == 0
    assert [case.id for case in read_cases(scans / "list.json").cases] == ["a"]
    if name == "dataset.json":  # beside the folder of label maps, or in it, as nnU-Net leaves it there
        for _ in range(2):
            assert run(*words(scans, "--overwrite")) == 0
            assert read_cases(scans / "list.json").label_names["liver"] == 6
            if (scans / name).exists():
                shutil.move(scans / name, scans / "maps" / name)


def test_predictions_of_another_organ_are_refused(scans, capsys):
    record = {"case": "a", "difftumor_version": "0.1.0", "organ": "kidney"}
    (scans / "maps" / "a.json").write_text(json.dumps(record))
    assert run(*words(scans)) == 1
    error = capsys.readouterr().err
    assert "a.nii.gz is a prediction of kidney, as a.json says, not of liver: give --organ kidney" in error
    assert not (scans / "list.json").exists()
    (scans / "maps" / "a.json").write_text(json.dumps(record | {"organ": "liver"}))
    assert run(*words(scans)) == 0


@pytest.mark.parametrize("inside", ["", "segmentations"])
def test_folders_of_structures(tmp_path, inside, capsys):
    for case, tumor in (("a", 0), ("b", 1)):
        write_nifti(tmp_path / "cts" / f"{case}.nii.gz", CT, AFFINE)
        parts = {"spleen": boxes((((20, 20, 20), (3, 3, 3)), 1)), "liver": boxes((ORGAN, 1))}
        parts["liver_tumor"] = boxes((TUMOR, tumor))
        for name, data in parts.items():
            write_nifti(tmp_path / "maps" / case / inside / f"{name}.nii.gz", data, AFFINE)
    assert run(*words(tmp_path)) == 0
    (case,) = read_cases(tmp_path / "list.json").cases
    assert (case.id, case.labels) == ("a", tmp_path / "maps" / "a" / inside)
    for case in "ab":
        (tmp_path / "maps" / case / inside / "liver_tumor.nii.gz").unlink()
    assert run(*words(tmp_path, "--overwrite")) == 1
    assert "name no liver tumor" in capsys.readouterr().err
    assert run(*words(tmp_path, "--overwrite", "--assume-healthy")) == 0
    assert len(read_cases(tmp_path / "list.json").cases) == 2


def test_case_folders_and_lists_name_their_cts(tmp_path):
    for case, tumor in (("a", 0), ("b", 1)):
        write_nifti(tmp_path / "atlas" / case / "ct.nii.gz", CT, AFFINE)
        for name, data in (("liver", boxes((ORGAN, 1))), ("liver_tumor", boxes((TUMOR, tumor)))):
            write_nifti(tmp_path / "atlas" / case / "segmentations" / f"{name}.nii.gz", data, AFFINE)
    out = tmp_path / "list.json"
    assert run("select-healthy", tmp_path / "atlas", "--organ", "liver", "--out", out) == 0
    (case,) = read_cases(out).cases
    assert case.labels == tmp_path / "atlas" / "a" / "segmentations"
    # What it has written is a list like any other.
    assert run("select-healthy", out, "--organ", "liver", "--out", tmp_path / "again.json") == 0
    assert read_cases(tmp_path / "again.json").cases == (case,)


def test_a_list_of_cts_keeps_its_patients_and_validation_cases(scans):
    entries = {case: {"image": f"cts/{case}_0000.nii.gz", "patient": f"p{case}"} for case in "abc"}
    listing = {"training": [entries["b"], entries["c"]], "validation": [entries["a"]]}
    (scans / "cts.json").write_text(json.dumps(listing))
    assert run(*words(scans, "--cts", scans / "cts.json")) == 0
    found = read_cases(scans / "list.json")
    assert [(case.id, case.patient) for case in found.cases] == [("a", "pa")]
    assert found.validation_ids == ("a",)


def test_inputs_are_never_replaced(scans, capsys):
    assert run(*words(scans)) == 0
    before = contents(scans)
    assert run(*words(scans)) == 1
    assert "already holds list.json" in capsys.readouterr().err
    lists = ("select-healthy", scans / "list.json", "--organ", "liver", "--overwrite", "--out")
    assert run(*lists, scans / "list.json") == 1
    assert f"would replace the input {scans / 'list.json'}" in capsys.readouterr().err
    (scans / "maps.csv").write_text("image,label\ncts/a_0000.nii.gz,maps/a.nii.gz\n")
    assert run("select-healthy", scans / "maps.csv", *lists[2:], scans / "maps.json") == 1
    assert f"would replace the input {scans / 'maps.csv'}" in capsys.readouterr().err
    (scans / "list_labels").mkdir()
    shutil.copy(scans / "maps" / "a.nii.gz", scans / "list_labels" / "a.nii.gz")
    given = ("--cts", scans / "cts", *lists[2:], scans / "list.json", "--max-tumor-mm3", 9000)
    assert run("select-healthy", scans / "list_labels", *given) == 1
    assert f"would replace the input {scans / 'list_labels'}" in capsys.readouterr().err
    (scans / "mine.csv").write_text("image,label\ncts/a_0000.nii.gz,list_labels/a.nii.gz\n")
    assert run("select-healthy", scans / "mine.csv", *lists[2:], scans / "list.json") == 1
    assert f"would replace the input {scans / 'list_labels'}" in capsys.readouterr().err
    assert before.items() <= contents(scans).items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "list.txt"), "--out list.txt does not end in .json: give a name such as list.txt.json"),
        (("--labels", "mine"), "--labels mine is neither a file nor a convention"),
        (("--labels", "totalsegmentator"), "name no liver tumor"),
        (("--organ", "livr"), "Organ 'livr' is not known: did you mean liver?"),
        (("--organ", "toe"), "No usual volume of toe is known: give --min-volume-ml and --max-volume-ml"),
        (("--min-volume-ml", 5000), "give a minimum below the maximum"),
    ],
)
def test_wrong_options_are_one_sentence(scans, capsys, options, message):
    before = contents(scans)
    assert run(*words(scans, *options)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert contents(scans) == before


def test_cts_that_are_missing_or_elsewhere(scans, capsys):
    without = ("--organ", "liver", "--out", scans / "x.json")
    assert run("select-healthy", scans / "maps", *without) == 1
    assert "give their CTs with --cts" in capsys.readouterr().err
    write_nifti(scans / "others" / "z.nii.gz", CT, AFFINE)
    assert run("select-healthy", scans / "maps", "--cts", scans / "others", *without) == 1
    assert "(z and a are the first): name the label maps like their CTs" in capsys.readouterr().err
    assert run("select-healthy", scans / "no", *without) == 1
    assert f"{scans / 'no'} does not exist" in capsys.readouterr().err
    assert run("select-healthy", scans / "maps" / "a.nii.gz", "--cts", scans / "cts", *without) == 1
    assert "with --cts, give a folder of label maps" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "labels: {}\n", "{liver: big}\n", "a: [1\n"])
def test_tables_that_are_none(scans, capsys, text):
    (scans / "names.yaml").write_text(text)
    assert run(*words(scans, "--labels", scans / "names.yaml")) == 1
    error = capsys.readouterr().err
    assert "names.yaml" in error
    assert error.count("\n") == 1


def test_what_predict_writes(tmp_path):
    """Volumes are those that predict states itself."""
    torch.manual_seed(0)
    arguments = {"channels": [4, 8], "residual_units": 1}
    model = save_artifact(
        tmp_path / "segmenter",
        kind="segmenter",
        architecture={"name": "unet", **arguments},
        network=build_segmenter("unet", **arguments),
        preprocessing={"spacing_mm": [4.0, 4.0, 4.0], "window_hu": [-175, 250], "crop": [16, 16, 16]},
        organ="liver",
    )
    for case in ("a", "b"):
        noise = np.random.default_rng(ord(case)).normal(40, 90, (12, 14, 13))
        noise[0] = -1000
        write_nifti(tmp_path / "cts" / f"{case}.nii.gz", noise.astype(np.int16), np.diag([-4.0, -4.0, 4.0, 1.0]))
    common = ("--model", model, "--overlap", 0.25, "--device", "cpu")
    assert run("predict", "--ct", tmp_path / "cts", "--out", tmp_path / "maps", *common) == 0
    limits = ("--min-volume-ml", 0, "--allow-cut", "--max-tumor-mm3", 1e9, "--min-share", 0.01)
    assert run(*words(tmp_path, *limits)) == 0
    found = table(tmp_path / "list.csv")
    for case in ("a", "b"):
        record = json.loads((tmp_path / "maps" / f"{case}.json").read_text())
        assert record["tumor_mm3"] > 0
        assert float(found[case]["tumor_mm3"]) == pytest.approx(record["tumor_mm3"])
        assert float(found[case]["volume_ml"]) == pytest.approx(record["organ_mm3"] / 1000)
    assert get_organ("liver").name in read_cases(tmp_path / "list.json").label_names
