"""Data sets for nnU-Net: what is in them, on which grid, and who validates."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.datasets.cases import Case, CaseList, read_cases
from difftumor.datasets.tumor_cases import SortedCases, sort_cases
from difftumor.errors import CaseListError, ConfigError
from difftumor.exchange.nnunet import Entry, check_dataset_name, plan_entries, split_entries
from difftumor.scans.organs import get_organ
from tests.conftest import contents, run
from tests.nifti import voxels, write_nifti
from tests.synthesis.makers import ball

SHAPE = (36, 34, 32)
LPS = np.array([[-1.0, 0, 0, 40], [0, -1.0, 0, 30], [0, 0, 1.2, -10], [0, 0, 0, 1]])
TILTED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15), [5, -7, 11]) @ LPS
NAME = "Dataset501_LiverTumor"
SYNTHETIC = ("--generator", "handcrafted", "--size", "tiny", "--device", "cpu")


def save_scan(folder: Path, name: str, seed: int, *, tumor: bool, affine=LPS, suffix=".nii.gz") -> None:
    """Write a CT, and a map of 5 liver, 6 its tumor, 7 something else."""
    values = np.random.default_rng(seed).normal(60, 15, SHAPE)
    values[:2] = -1000
    labels = (ball(SHAPE, 13) * 5).astype(np.uint8)
    labels[:3, :3, :3] = 7
    if tumor:
        labels[15:19, 15:19, 15:19] = 6
    write_nifti(folder / f"{name}{suffix}", values.astype(np.int16), affine)
    # Another program wrote the map: its affine is a little off, and its codes are others.
    write_nifti(
        folder / "maps" / f"{name}.nii.gz",
        labels,
        nib.affines.from_matvec(np.eye(3), [4e-3] * 3) @ affine,
        codes=(1, 3),
    )


def write_list(folder: Path, rows: list[dict], name: str = "cases.json", validation: tuple[str, ...] = ()) -> Path:
    entries = [{"image": f"{row['id']}.nii.gz", "label": f"maps/{row['id']}.nii.gz", **row} for row in rows]
    parts = {
        "training": [entry for entry in entries if entry["id"] not in validation],
        "validation": [entry for entry in entries if entry["id"] in validation],
    }
    labels = {"background": 0, "liver": 5, "liver_tumor": 6, "spleen": 7}
    (folder / name).write_text(json.dumps({"labels": labels, **parts}))
    return folder / name


ROWS = [
    {"id": "a", "patient": "p"},
    {"id": "b", "patient": "q", "image": "b.nii"},
    {"id": "c", "patient": "q"},
    {"id": "d", "patient": "r"},
    {"id": "e", "patient": "s"},
    {"id": "f", "patient": "t"},
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Five patients; b and c are of one, c and d are healthy, b is not compressed, e lies oblique."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed, row in enumerate(ROWS):
        save_scan(
            folder,
            row["id"],
            seed,
            tumor=row["id"] not in "cd",
            affine=TILTED if row["id"] == "e" else LPS,
            suffix=".nii" if row["id"] == "b" else ".nii.gz",
        )
    return write_list(folder, ROWS)


@pytest.fixture(scope="module")
def exported(cohort, tmp_path_factory):
    """The data set of the cohort with four copies, and what the command did to its inputs."""
    out = tmp_path_factory.mktemp("raw") / NAME
    before = contents(cohort.parent)
    assert run("export", "nnunet", out, "--cases", cohort, "--synthetic", 4, *SYNTHETIC) == 0
    assert contents(cohort.parent) == before
    return out


def content(out, name="dataset.json"):
    return json.loads((out / name).read_text())


COPIES = ("c_synthetic1", "c_synthetic2", "d_synthetic1", "d_synthetic2")


def test_files_are_where_nnunet_looks_for_them(exported):
    names = sorted([*"abcdef", *COPIES])
    assert sorted(path.name for path in exported.iterdir()) == [
        "dataset.json", "imagesTr", "labelsTr", "splits_final.json", "synthetic",
    ]  # fmt: skip
    assert sorted(path.name for path in (exported / "imagesTr").iterdir()) == [f"{n}_0000.nii.gz" for n in names]
    assert sorted(path.name for path in (exported / "labelsTr").iterdir()) == [f"{n}.nii.gz" for n in names]
    dataset = content(exported)
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["labels"] == {"background": 0, "liver": 1, "liver_tumor": 2}
    assert (dataset["numTraining"], dataset["file_ending"]) == (10, ".nii.gz")
    for name in COPIES:
        assert sorted(path.name for path in (exported / "synthetic" / name).iterdir()) == ["preview.png", "record.json"]


def test_scans_keep_their_bytes(cohort, exported):
    for name in "acdef":
        image = exported / "imagesTr" / f"{name}_0000.nii.gz"
        assert image.read_bytes() == (cohort.parent / f"{name}.nii.gz").read_bytes()
    assert (
        gzip.decompress((exported / "imagesTr" / "b_0000.nii.gz").read_bytes())
        == (cohort.parent / "b.nii").read_bytes()
    )


def test_labels_are_standard_and_on_the_grid_of_the_scan(cohort, exported):
    for name in "abcdef":
        image, label = (
            nib.load(exported / "imagesTr" / f"{name}_0000.nii.gz"),
            nib.load(exported / "labelsTr" / f"{name}.nii.gz"),
        )
        np.testing.assert_array_equal(label.affine, image.affine)
        for code in ("qform_code", "sform_code"):
            assert label.header[code] == image.header[code]
        given = voxels(cohort.parent / "maps" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.select([given == 5, given == 6], [1, 2], 0))


def test_copies_differ_from_their_sources_where_the_tumor_is(exported):
    made = set()
    for name in COPIES:
        source = name[0]
        before, after = (voxels(exported / "imagesTr" / f"{n}_0000.nii.gz") for n in (source, name))
        labels = voxels(exported / "labelsTr" / f"{name}.nii.gz")
        assert set(np.unique(labels)) == {0, 1, 2}
        assert (before != after).any()
        np.testing.assert_array_equal((labels > 0), voxels(exported / "labelsTr" / f"{source}.nii.gz") > 0)
        far = np.linalg.norm(np.indices(SHAPE) - np.argwhere(labels == 2).mean(0)[:, None, None, None], axis=0) > 14
        np.testing.assert_array_equal(before[far], after[far])
        made.add(labels.tobytes())
    assert len(made) == 4  # no two alike


def test_splits_are_by_patient_and_copies_never_validate(exported):
    splits = content(exported, "splits_final.json")
    assert len(splits) == 5
    stated = content(exported)
    patient = {entry["id"]: entry["patient"] for entry in (*stated["training"], *stated["synthetic_copies"])}
    assert {patient[name] for name in ("c_synthetic1", "d_synthetic2")} == {"q", "r"}
    validated = [name for split in splits for name in split["val"]]
    assert sorted(validated) == list("abcdef")
    for split in splits:
        assert set(split) == {"train", "val"}
        held_out = {patient[name] for name in split["val"]}
        assert set(split["train"]) == {name for name in patient if patient[name] not in held_out}


def test_difftumor_reads_the_data_set_as_one_of_its_own(exported):
    cases = read_cases(exported)
    found = sort_cases(cases, get_organ("liver"))
    assert {case.id for case in found.healthy} == {"c", "d"}
    assert len(found.tumor) == 4  # the copies are no real tumors
    assert {case.patient for case in cases.cases if case.id.startswith("c")} == {"q"}


def test_the_same_seed_gives_the_same_data_set(cohort, exported, tmp_path):
    assert run("export", "nnunet", tmp_path / NAME, "--cases", cohort, "--synthetic", 1, *SYNTHETIC) == 0
    (copy,) = (tmp_path / NAME / "synthetic").iterdir()
    file = Path("imagesTr") / f"{copy.name}_0000.nii.gz"
    assert (tmp_path / NAME / file).read_bytes() == (exported / file).read_bytes()


def test_stated_validation_is_one_split_without_copies_of_its_patients(cohort, tmp_path):
    listed = write_list(cohort.parent, ROWS, "stated.json", validation=("b", "c"))
    assert run("export", "nnunet", tmp_path / NAME, "--cases", listed, "--synthetic", 2, *SYNTHETIC) == 0
    (split,) = content(tmp_path / NAME, "splits_final.json")
    assert split == {"train": ["a", "d", "e", "f", "d_synthetic1", "d_synthetic2"], "val": ["b", "c"]}


def test_the_seed_chooses_which_healthy_scans_are_copied():
    cases = CaseList(tuple(Case(f"c{n}", Path("x.nii")) for n in range(6)), {}, Path("list"))
    found = SortedCases(cases.cases[:2], cases.cases[2:])

    def sources(copies, seed):
        return [e.source for e in plan_entries(cases, found, copies=copies, organ=get_organ("liver"), seed=seed)[1]]

    assert {sources(1, seed)[0] for seed in range(30)} == {"c2", "c3", "c4", "c5"}
    assert sources(3, 0) == sources(10, 0)[:3]
    assert {sources(10, 0).count(f"c{n}") for n in range(2, 6)} == {2, 3}


@given(patients=st.lists(st.integers(0, 7), min_size=2, max_size=14), copies=st.data(), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_no_patient_is_on_both_sides(patients, copies, seed):
    real = [Entry(Case(f"c{n}", Path("x.nii"), None, f"p{p}")) for n, p in enumerate(patients)]
    sources = copies.draw(st.lists(st.sampled_from(real), max_size=5))
    made = [Entry(Case(f"s{n}", Path("x.nii"), None, s.case.patient), s.case.id) for n, s in enumerate(sources)]
    different = len(set(patients))
    if different < 2:
        with pytest.raises(CaseListError, match="one patient"):
            split_entries([*real, *made], validation_ids=(), seed=seed)
        return
    patient = {entry.case.id: entry.case.patient for entry in (*real, *made)}
    splits = split_entries([*real, *made], validation_ids=(), seed=seed)
    assert len(splits) == min(5, different)
    assert sorted(name for split in splits for name in split["val"]) == sorted(entry.case.id for entry in real)
    for split in splits:
        held_out = {patient[name] for name in split["val"]}
        assert sorted(split["train"]) == sorted(name for name in patient if patient[name] not in held_out)


@pytest.mark.parametrize("name", ["Dataset001_A", "Dataset999_Liver-Tumor_2"])
def test_names_that_nnunet_finds(name):
    assert check_dataset_name(Path("raw") / name) == int(name[7:10])


@pytest.mark.parametrize(
    "name", ["Liver", "Dataset1_Liver", "Dataset501", "Dataset501_", "Dataset000_A", "dataset501_A"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="Dataset501_LiverTumor"):
        check_dataset_name(Path("raw") / name)


def changed(rows, index, **values):
    return [{**row, **values} if number == index else row for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "words", "hint"),
    [
        (changed(ROWS, 0, id="b"), (), "'b' more than once"),
        (changed(ROWS, 0, id="x/y", image="a.nii.gz", label="maps/a.nii.gz"), (), "'x/y'"),
        (changed(ROWS, 3, id="A", image="d.nii.gz", label="maps/d.nii.gz"), (), "'A'"),
        (changed(ROWS, 3, label=""), (), "'d' of"),
        (changed(ROWS, 3, label="maps/absent.nii.gz"), (), "absent.nii.gz"),
        (ROWS, ("--organ", "pancreas"), "no pancreas"),
        (ROWS, ("--convention", "nonsense"), "nonsense"),
        (ROWS, ("--convention", "totalsegmentator"), "'a' of"),
        (changed(ROWS, 4, label="maps/a.nii.gz"), (), "e.nii.gz"),
        ([{**row, "patient": "p"} for row in ROWS], (), "All cases are of one patient"),
        (ROWS[:2], ("--synthetic", 1, *SYNTHETIC), "no case without liver tumors"),
        (changed(ROWS, 0, tumor_organs=[]), (), "free of liver tumors"),
        (ROWS, ("--size", "tiny"), "--synthetic"),
        (ROWS, ("--jobs", 2), "--synthetic"),
        (ROWS, ("--synthetic", 1, "--generator", "handcrafted", "--model", "x"), "--model"),
        (ROWS, ("--synthetic", 1, "--model", "absent"), "absent"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(cohort, tmp_path, capsys, rows, words, hint):
    listed = write_list(cohort.parent, rows, "wrong.json")
    assert run("export", "nnunet", tmp_path / "raw" / NAME, "--cases", listed, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert hint in error
    assert list(tmp_path.iterdir()) == []


def test_labels_without_tumors_need_a_word(cohort, tmp_path):
    """A TotalSegmentator map cannot show tumors: cases count as healthy where that is said."""
    words = ("--cases", cohort, "--convention", "totalsegmentator", "--assume-healthy")
    assert run("export", "nnunet", tmp_path / NAME, *words) == 0
    assert all(entry["tumor_organs"] == [] for entry in content(tmp_path / NAME)["training"])
    assert set(np.unique(voxels(tmp_path / NAME / "labelsTr" / "a.nii.gz"))) == {0, 1}


def test_a_fourth_axis_is_refused(cohort, tmp_path, capsys):
    write_nifti(cohort.parent / "four.nii.gz", voxels(cohort.parent / "a.nii.gz")[..., None], LPS)
    listed = write_list(cohort.parent, changed(ROWS, 0, image="four.nii.gz"), "four.json")
    assert run("export", "nnunet", tmp_path / NAME, "--cases", listed) == 1
    assert "four.nii.gz has 4 axes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_copies_that_fail_are_told_and_the_others_stay(cohort, tmp_path, capsys):
    labels = (ball(SHAPE, 13) * 5).astype(np.uint8)
    labels[ball(SHAPE, 13) & ~ball(SHAPE, 2)] = 0  # too small a liver for a tumor of 4 mm
    write_nifti(cohort.parent / "maps" / "small.nii.gz", labels, LPS)
    listed = write_list(cohort.parent, changed(ROWS, 3, label="maps/small.nii.gz"), "small.json")
    assert run("export", "nnunet", tmp_path / NAME, "--cases", listed, "--synthetic", 2, *SYNTHETIC) == 1
    error = capsys.readouterr().err
    assert "Left out d_synthetic1" in error
    assert "1 of 2 synthetic copies could not be made (d_synthetic1)" in error
    assert content(tmp_path / NAME)["numTraining"] == 7
    assert not any("d_synthetic1" in path.name for path in tmp_path.rglob("*"))


def test_only_an_earlier_export_is_replaced(cohort, tmp_path, capsys):
    out = tmp_path / NAME
    words = ("export", "nnunet", out, "--cases", cohort)
    assert run(*words) == 0
    before = contents(out)
    assert run(*words) == 1
    assert "--overwrite" in capsys.readouterr().err
    # A data set must not be replaced by what is read from it.
    assert run("export", "nnunet", out, "--cases", out, "--overwrite") == 1
    assert "holds the input" in capsys.readouterr().err
    assert contents(out) == before
    assert run(*words, "--seed", 1, "--overwrite") == 0
    (out / "mine.txt").write_text("mine")
    assert run(*words, "--overwrite") == 1
    assert "mine.txt" in capsys.readouterr().err
    (out / "mine.txt").unlink()
    (out / "dataset.json").write_text('{"labels": {}}')
    assert run(*words, "--overwrite") == 1
    assert "no dataset.json written by difftumor" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


@pytest.mark.slow
def test_nnunet_plans_and_preprocesses_it(exported, tmp_path):
    pytest.importorskip("nnunetv2")
    raw, preprocessed = exported.parent, tmp_path / "preprocessed"
    places = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed, "nnUNet_results": tmp_path / "results"}
    program = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    done = subprocess.run(
        [program, "-d", "501", "--verify_dataset_integrity", "-npfp", "1", "-np", "1", "-c", "3d_fullres"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(place) for name, place in places.items()}},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "verify_dataset_integrity Done" in said
    for complaint in ("Error", "mismatch", "Unexpected"):
        assert complaint not in said, said
    made = preprocessed / NAME
    assert len(list((made / "nnUNetPlans_3d_fullres").glob("*.pkl"))) == 10
    # It takes our splits along.
    assert (made / "splits_final.json").read_bytes() == (exported / "splits_final.json").read_bytes()


def test_what_is_to_be_ignored_stays_so_in_cases_and_copies(cohort, tmp_path):
    content_ = json.loads(cohort.read_text())
    content_["labels"] = {"background": 0, "liver": 5, "liver_tumor": 6, "ignore": 7}
    (cohort.parent / "ignoring.json").write_text(json.dumps(content_))
    words = ("--cases", cohort.parent / "ignoring.json", "--synthetic", 1, *SYNTHETIC)
    assert run("export", "nnunet", tmp_path / NAME, *words) == 0
    dataset = content(tmp_path / NAME)
    assert dataset["labels"]["ignore"] == 3
    for case in (*"abcdef", dataset["synthetic_copies"][0]["id"]):
        labels = voxels(tmp_path / NAME / "labelsTr" / f"{case}.nii.gz")
        assert (labels[:3, :3, :3] == 3).all()
        assert (labels == 3).sum() == 27
