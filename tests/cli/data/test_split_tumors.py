"""The command split-tumors: early and late label maps that stage 2 can be trained from."""

import hashlib
import inspect
import json

import nibabel as nib
import numpy as np
import pytest

from difftumor.cli.data.split_tumors import split_tumors
from difftumor.datasets.cases import read_cases
from difftumor.datasets.integrity import fingerprints
from difftumor.datasets.tumor_cases import sort_cases
from difftumor.scans.lesions import EARLY_DIAMETER_MM, MINIMUM_VOXELS
from difftumor.scans.organs import get_organ
from stages.config.compose import compose_config
from tests.conftest import contents, read_rows, run
from tests.nifti import ct_values, voxels, write_nifti

# Axes to the left, up and to the front, voxels of 2 x 3 x 1.5 mm: 9 mm³.
AFFINE = np.array([[-2.0, 0, 0, 100], [0, 0, 1.5, -40], [0, 3.0, 0, 7], [0, 0, 0, 1]])
SHAPE = (30, 24, 28)


def organ_with(*boxes, number=2):
    """An organ with boxes of tumor, each (start, size) in voxels."""
    data = np.zeros(SHAPE, np.uint8)
    data[1:29, 1:23, 1:27] = 1
    for start, size in boxes:
        data[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = number
    return data


# 27 voxels, 243 mm³: 3.9 mm. 1000 voxels, 9000 mm³: 12.9 mm. 7 voxels: no tumor.
FILES = ["early/a.nii.gz", "early/b.nii.gz", "late/a.nii.gz", "late/b.nii.gz", "lesions.csv"]
EARLY, LATE, STRAY = ((3, 3, 3), (3, 3, 3)), ((10, 10, 10), (10, 10, 10)), ((25, 3, 3), (1, 1, 7))


@pytest.fixture
def maps(tmp_path):
    """A folder of label maps: both stages and a stray component, a late tumor, and a healthy organ."""
    write_nifti(tmp_path / "maps" / "a.nii.gz", organ_with(EARLY, LATE, STRAY), AFFINE)
    write_nifti(tmp_path / "maps" / "b.nii.gz", organ_with(LATE), AFFINE)
    write_nifti(tmp_path / "maps" / "c.nii.gz", organ_with(), AFFINE)
    return tmp_path / "maps"


def rows(out):
    return read_rows(out / "lesions.csv")


def test_maps_and_table_of_hand_made_tumors(maps, tmp_path, capsys):
    out, before = tmp_path / "out", contents(maps)
    assert run("split-tumors", maps, out, "--organ", "liver", "--labels", "msd_liver") == 0
    assert contents(maps) == before
    assert sorted(contents(out)) == [
        "early/a.nii.gz",
        "early/b.nii.gz",
        "late/a.nii.gz",
        "late/b.nii.gz",
        "lesions.csv",
    ]
    for stage, case, boxes in (
        ("early", "a", [EARLY]), ("late", "a", [LATE]), ("early", "b", []), ("late", "b", [LATE]),
    ):  # fmt: skip
        file = out / stage / f"{case}.nii.gz"
        assert np.array_equal(voxels(file), organ_with(*boxes))
        assert np.array_equal(nib.load(file).affine, AFFINE)
    table = rows(out)
    assert [(r["case"], r["number"], r["stage"], r["voxels"]) for r in table] == [
        ("a", "1", "early", "27"), ("a", "2", "late", "1000"), ("a", "3", "too_small", "7"), ("b", "1", "late", "1000"),
    ]  # fmt: skip
    early = {name: float(value) for name, value in table[0].items() if name.endswith(("mm", "mm3"))}
    assert early == pytest.approx(
        # The middle voxel is (4, 4, 4): 100 - 2 * 4, -40 + 1.5 * 4, 7 + 3 * 4.
        {"volume_mm3": 243, "radius_mm": 3.8711, "right_mm": 92, "anterior_mm": -34, "superior_mm": 19},
        rel=1e-4,
    )
    said = capsys.readouterr().out
    assert "a: 1 early, 1 late, 1 too small\n" in said
    assert "c: left out, it has no liver tumor\n" in said
    assert "1 early and 2 late liver tumors in 2 cases" in said


@pytest.mark.parametrize("seed", range(5))
def test_every_tumor_voxel_is_of_one_stage_or_too_small(tmp_path, seed):
    random = np.random.default_rng(seed)
    noise = (random.random(SHAPE) > 0.955).astype(np.uint8) * 2
    labels = np.maximum(noise, (random.random(SHAPE) > 0.5).astype(np.uint8))
    labels[5:12, 5:12, 5:12] = 2
    file = write_nifti(tmp_path / "map.nii", labels, AFFINE)
    limits = ("--early-radius-mm", 5.0, "--minimum-voxels", 3)
    assert run("split-tumors", file, tmp_path / "out", "--organ", "kidney", *limits) == 0
    early, late = (voxels(tmp_path / "out" / stage / "map.nii.gz") for stage in ("early", "late"))
    table = rows(tmp_path / "out")
    of = {s: sum(int(r["voxels"]) for r in table if r["stage"] == s) for s in ("early", "late", "too_small")}
    assert min(of.values()) > 0
    assert ((early == 2).sum(), (late == 2).sum()) == (of["early"], of["late"])
    assert sum(of.values()) == (labels == 2).sum()
    assert not ((early == 2) & (late == 2)).any()
    for stage in (early, late):
        assert np.array_equal(stage > 0, labels > 0)
        assert not ((stage == 2) & (labels != 2)).any()
    for row in table:
        assert float(row["volume_mm3"]) == pytest.approx(9 * int(row["voxels"]))
        assert float(row["radius_mm"]) == pytest.approx((float(row["volume_mm3"]) * 3 / (4 * np.pi)) ** (1 / 3))
        assert (row["stage"] == "too_small") == (int(row["voxels"]) < 3)
        if row["stage"] != "too_small":
            assert (row["stage"] == "early") == (float(row["radius_mm"]) <= 5.0)


def test_scans_of_a_tilted_gantry_are_left_out(tmp_path, capsys):
    # Slices go up and to the front, 5 mm long, of which 4 mm are up.
    tilted = np.array([[2.0, 0, 0, 0], [0, 2.0, 3.0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1]])
    file = write_nifti(tmp_path / "map.nii.gz", organ_with(EARLY), tilted)
    assert run("split-tumors", file, tmp_path / "out", "--organ", "liver") == 1
    assert "36.9° from square to each other, as with a tilted gantry" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cysts_of_kits_count_as_kidney(tmp_path, capsys):
    data = organ_with(EARLY)
    data[20:25, 10:15, 10:15] = 3
    file = write_nifti(tmp_path / "case_00000.nii.gz", data, AFFINE)
    assert run("split-tumors", file, tmp_path / "out", "--organ", "kidney") == 1
    assert "--labels in commands" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("split-tumors", file, tmp_path / "out", "--labels", "kits") == 0
    assert np.array_equal(voxels(tmp_path / "out" / "early" / "case_00000.nii.gz"), organ_with(EARLY))
    assert "1 early and 0 late kidney tumors in 1 case:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("convention", "organ"), [("lits", "liver"), ("msd_liver", "liver"), ("msd_pancreas", "pancreas")]
)
def test_a_convention_of_one_organ_names_it(maps, tmp_path, capsys, convention, organ):
    assert run("split-tumors", maps / "a.nii.gz", tmp_path / "out", "--labels", convention) == 0
    assert f"1 early and 1 late {organ} tumors" in capsys.readouterr().out


def test_names_in_or_beside_the_folder_are_read(tmp_path, monkeypatch):
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", np.array([0, 5, 6], np.uint8)[organ_with(LATE)], AFFINE)
    names = {"background": 0, "spleen": 1, "liver": 5, "liver_tumor": 6}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names, "training": []}))
    monkeypatch.chdir(tmp_path / "labelsTr")
    for place, out in ((tmp_path / "labelsTr", "x"), (tmp_path / "labelsTr" / "a.nii.gz", "y"), (".", "z")):
        assert run("split-tumors", place, tmp_path / out) == 0
        assert np.array_equal(voxels(tmp_path / out / "late" / "a.nii.gz"), organ_with(LATE))
    (tmp_path / "dataset.json").rename("dataset.json")
    for place, out in ((tmp_path / "labelsTr" / "a.nii.gz", "v"), ("a.nii.gz", "w")):
        assert run("split-tumors", place, tmp_path / out) == 0
        assert np.array_equal(voxels(tmp_path / out / "late" / "a.nii.gz"), organ_with(LATE))


def test_a_bad_file_is_named_and_does_not_stop_the_others(maps, tmp_path, capsys):
    (maps / "aa.nii.gz").write_bytes((maps / "a.nii.gz").read_bytes()[:200])
    write_nifti(maps / "ab.nii.gz", np.full(SHAPE, 0.5, np.float32), AFFINE)
    out = tmp_path / "out"
    assert run("split-tumors", maps, out, "--organ", "liver") == 1
    error = capsys.readouterr().err
    assert "Left out aa: " in error
    assert "Left out ab: " in error
    assert f"2 of 5 cases could not be split (aa, ab): fix or remove them; {out} holds the others." in error
    assert sorted(contents(out)) == [
        "early/a.nii.gz",
        "early/b.nii.gz",
        "late/a.nii.gz",
        "late/b.nii.gz",
        "lesions.csv",
    ]
    assert {row["case"] for row in rows(out)} == {"a", "b"}


def test_nothing_is_written_where_nothing_could_be_split(maps, tmp_path, capsys):
    assert run("split-tumors", maps / "c.nii.gz", tmp_path / "deep" / "out", "--organ", "liver") == 1
    assert "has liver tumors" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


@pytest.fixture
def listed(tmp_path):
    """A list with CTs: six patients with two scans each, all but one scan with tumors."""

    def write(*validation):
        parts = {"training": [], "validation": []}
        for number in range(12):
            boxes = ([EARLY, LATE], [EARLY], [LATE])[number % 3] if number else []
            write_nifti(tmp_path / f"labels/{number}.nii.gz", organ_with(*boxes), AFFINE)
            write_nifti(tmp_path / f"ct/{number}.nii.gz", organ_with(*boxes).astype(np.int16) - 1000, AFFINE)
            entry = {"image": f"ct/{number}.nii.gz", "label": f"labels/{number}.nii.gz", "patient": f"p{number // 2}"}
            parts["validation" if number in validation else "training"].append(entry)
        names = {"0": "background", "1": "liver", "2": "cancer"}
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": names, **parts}))
        return tmp_path

    return write


def test_lists_for_stage_2_have_the_tumors_of_a_stage_and_the_folds_of_the_whole(listed, tmp_path):
    source, organ = listed(), get_organ("liver")
    assert run("split-tumors", source, tmp_path / "out") == 0
    whole = sort_cases(read_cases(source / "dataset.json"), organ)
    for stage in ("early", "late"):
        cases = read_cases(tmp_path / "out" / stage)
        ours = sort_cases(cases, organ)
        assert [case.id for case in ours.tumor] == [case.id for case in whole.tumor]
        assert ours.healthy == ()  # a case with the other stage's tumors must not host synthetic ones
        without = {"1", "4", "7", "10"} if stage == "late" else {"2", "5", "8", "11"}
        assert {case.id for case in ours.tumor if not (voxels(case.labels) == 2).any()} == without
        for case, original in zip(ours.tumor, whole.tumor, strict=True):
            assert case.image.resolve() == original.image.resolve()
            assert case.patient == original.patient
        for fold in range(3):
            parts = [each.split(fold=fold, count=3, seed=0) for each in (ours, whole)]
            assert [case.id for case in parts[0][1]] == [case.id for case in parts[1][1]]


def test_lists_lead_to_cts_that_are_links_and_from_everywhere(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(listed())
    (tmp_path / "blobs").mkdir()
    for file in (tmp_path / "ct").iterdir():
        blob = file.rename(tmp_path / "blobs" / hashlib.sha256(file.name.encode()).hexdigest())
        file.symlink_to(blob)
    assert run("split-tumors", "dataset.json", "out") == 0
    monkeypatch.chdir("/")
    images = [case.image for case in read_cases(tmp_path / "out" / "late").cases]
    assert images == [tmp_path / "ct" / f"{number}.nii.gz" for number in range(1, 12)]


def test_stated_validation_cases_stay_so(listed, tmp_path):
    assert run("split-tumors", listed(4, 5), tmp_path / "out") == 0
    assert read_cases(tmp_path / "out" / "early").validation_ids == ("4", "5")


def test_an_id_cannot_lead_out_of_the_folder(listed, tmp_path, capsys):
    source = listed()
    listing = json.loads((source / "dataset.json").read_text())
    listing["training"][1]["id"] = "../../escaped"
    (source / "dataset.json").write_text(json.dumps(listing))
    assert run("split-tumors", source, tmp_path / "out") == 1
    assert "Case id '../../escaped'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*escaped*"))


def test_an_earlier_result_is_replaced_only_when_asked(maps, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("split-tumors", maps / "a.nii.gz", out, "--organ", "liver")
    out.mkdir()
    assert run(*words) == 0
    before = contents(out)
    assert run(*words) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert contents(out) == before
    assert run("split-tumors", maps / "b.nii.gz", out, "--organ", "liver", "--overwrite") == 0
    assert sorted(contents(out)) == ["early/b.nii.gz", "late/b.nii.gz", "lesions.csv"]
    before = contents(out)
    assert run("split-tumors", out / "late", out, "--organ", "liver", "--overwrite") == 1
    assert "which would be replaced" in capsys.readouterr().err
    for mine in ("mine.txt", "early/mine.txt"):
        (out / mine).write_text("mine")
        assert run(*words, "--overwrite") == 1
        assert f"holds {mine}, which is not part of an earlier result" in capsys.readouterr().err
        (out / mine).unlink()
    assert contents(out) == before
    (out / "lesions.csv").unlink()
    assert run(*words, "--overwrite") == 1
    assert "it has no lesions.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--early-radius-mm", "0"), "--early-radius-mm is 0.0: give a number above 0."),
        (("--early-radius-mm", "nan"), "--early-radius-mm is nan"),
        ((), "--organ is not given"),
        (("--labels", "totalsegmentator"), "--organ is not given"),
        (("--labels", "msd_liver", "--organ", "kidney"), "hold no kidney"),
        (("--labels", "brats"), "Label convention 'brats' is not known"),
        (("--organ", "livr"), "Organ 'livr' is not known: did you mean liver?"),
    ],
)
def test_bad_options_are_named_and_leave_nothing(maps, tmp_path, capsys, words, sentence):
    assert run("split-tumors", maps, tmp_path / "out", *words) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_input_is_named(tmp_path, capsys):
    assert run("split-tumors", tmp_path / "nothing", tmp_path / "out", "--organ", "liver") == 1
    assert "nothing does not exist" in capsys.readouterr().err
    assert run("split-tumors", tmp_path / "nothing.nii.gz", tmp_path / "out", "--organ", "liver") == 1
    assert "nothing.nii.gz does not exist" in capsys.readouterr().err


def test_the_limits_are_those_of_stage_2():
    defaults = {name: it.default for name, it in inspect.signature(split_tumors).parameters.items()}
    lesions = compose_config("diffusion", ["organ=liver"]).lesions
    assert defaults["early_radius_mm"] == EARLY_DIAMETER_MM / 2 == lesions.early_radius_mm
    assert defaults["minimum_voxels"] == MINIMUM_VOXELS == lesions.minimum_voxels


def test_the_same_label_maps_give_the_same_bytes_at_any_time(maps, tmp_path, monkeypatch):
    for name, time in (("x", 1e9), ("y", 1.5e9)):
        monkeypatch.setattr("time.time", lambda time=time: time)
        assert run("split-tumors", maps, tmp_path / name, "--organ", "liver") == 0
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_fingerprints_are_stated_on_request(tmp_path):
    values = ct_values((12, 12, 12))
    labels = np.zeros(values.shape, np.uint8)
    labels[2:10, 2:10, 2:10] = 1
    labels[4:8, 4:8, 4:8] = 2
    write_nifti(tmp_path / "ct.nii.gz", values)
    write_nifti(tmp_path / "labels.nii.gz", labels)
    (tmp_path / "list.csv").write_text("image,labels\nct.nii.gz,labels.nii.gz\n")
    assert run("split-tumors", tmp_path / "list.csv", tmp_path / "out", "--organ", "liver", "--fingerprints") == 0
    (case,) = read_cases(tmp_path / "out" / "early").cases
    assert case.fingerprint == str(fingerprints([tmp_path / "ct.nii.gz"])[tmp_path / "ct.nii.gz"])


def test_fingerprints_need_cts(tmp_path, capsys):
    write_nifti(tmp_path / "maps" / "labels.nii.gz", np.full((4, 4, 4), 2, np.uint8))
    assert run("split-tumors", tmp_path / "maps", tmp_path / "out", "--organ", "liver", "--fingerprints") == 1
    assert "--fingerprints needs CTs" in capsys.readouterr().err
