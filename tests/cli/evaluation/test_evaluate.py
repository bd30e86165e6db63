"""The commands evaluate and tables, from files to files."""

import json
from pathlib import Path

import numpy as np
import pytest

from difftumor.datasets.integrity import fingerprints
from difftumor.models.artifact_config import ArtifactConfig
from tests.conftest import contents, read_rows, run
from tests.nifti import ct_values, write_nifti

SHAPE = (24, 20, 16)
AFFINE = np.array([[-1.0, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def labels(*, tumor: bool) -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[4:20, 4:16, 4:12] = 1
    if tumor:
        data[8:12, 8:12, 6:9] = 2
    return data


@pytest.fixture
def cohort(tmp_path):
    """Predictions and labels of one case with tumor, found exactly, and a healthy one."""
    for case, tumor in (("a", True), ("b", False)):
        write_nifti(tmp_path / "predictions" / f"{case}.nii.gz", labels(tumor=tumor), AFFINE)
        write_nifti(tmp_path / "labels" / f"{case}.nii.gz", labels(tumor=tumor), AFFINE)
    return tmp_path


def evaluate(folder: Path, *more: object) -> int:
    words = ("--predictions", folder / "predictions", "--labels", folder / "labels", "--organ", "liver")
    return run("evaluate", *words, "--out", folder / "out", *more)


def rows(cohort: Path, folder: str = "out") -> list[dict[str, str]]:
    return read_rows(cohort / folder / "cases.csv")


def test_evaluate_writes_tables_figures_and_a_page(cohort, capsys):
    assert evaluate(cohort) == 0
    assert [(row["case"], row["organ_dsc"], row["tumor_dsc"], row["tumor_hd95_mm"]) for row in rows(cohort)] == [
        ("a", "1.0", "1.0", "0.0"), ("b", "1.0", "1.0", "0.0"),
    ]  # fmt: skip
    summary = json.loads((cohort / "out" / "summary.json").read_text())
    assert summary["detection"]["sensitivity"]["hits"] == summary["detection"]["sensitivity"]["total"] == 1
    assert summary["detection"]["patient_specificity"]["value"] == 1.0
    assert "Tumor-wise sensitivity" in capsys.readouterr().out
    page = (cohort / "out" / "report.html").read_text()
    assert "http" not in page.replace("Content-Security-Policy", "").replace("http-equiv", "")
    assert "difftumor" in page
    listed = cohort / "cases.csv"
    listed.write_text("image,labels,patient\nlabels/a.nii.gz,labels/a.nii.gz,p\nlabels/b.nii.gz,labels/b.nii.gz,p\n")
    before = listed.read_bytes()
    assert evaluate(cohort, "--labels", listed, "--out", cohort) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert listed.read_bytes() == before
    assert evaluate(cohort) == 0  # results of the same request are replaced
    assert evaluate(cohort, "--labels", listed) == 1
    assert "already holds cases.csv: give another folder, or overwrite" in capsys.readouterr().err
    assert evaluate(cohort, "--labels", listed, "--overwrite") == 0
    assert json.loads((cohort / "out" / "summary.json").read_text())["patients"] == 1


def test_models_that_saw_test_scans_are_named_above_the_tables(cohort, capsys):
    ct = write_nifti(cohort / "a_ct.nii.gz", ct_values(SHAPE), AFFINE)
    model = write_segmenter(cohort / "unet", trained_on=ct)
    record = {"ct": {"path": str(ct)}, "models": [{"path": str(model)}]}
    (cohort / "predictions" / "a.json").write_text(json.dumps(record))
    assert evaluate(cohort) == 0
    sentence = "The segmenter unet was trained on 1 of the 1 test scan (with its labels)."
    assert sentence in capsys.readouterr().out
    assert sentence in (cohort / "out" / "report.html").read_text()
    (found,) = json.loads((cohort / "out" / "summary.json").read_text())["trained_on_test"]
    assert found == {"kind": "segmenter", "model": str(model), "scans": 1}


def write_segmenter(folder: Path, *, trained_on: Path) -> Path:
    """Write what an artifact says about itself."""
    stored = [["a", str(fingerprints([trained_on])[trained_on])]]
    config = ArtifactConfig(
        kind="segmenter", architecture={"name": "unet"}, preprocessing={}, weights_sha256="",
        training={"fingerprints": {"training": stored, "validation": []}},
    )  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    return folder


def test_evaluate_names_missing_partners(cohort, capsys):
    (cohort / "predictions" / "b.nii.gz").unlink()
    assert evaluate(cohort) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no prediction of b (1 of 2 cases)" in error
    assert [row["case"] for row in rows(cohort)] == ["a"]  # the others are done
    assert evaluate(cohort, "--allow-missing") == 0
    assert "b: there is no prediction" in capsys.readouterr().out


def test_bad_cases_do_not_stop_the_others(cohort, capsys):
    """Another grid, a label that nothing names, and fractions: each is named, and the last case is done."""
    for case in ("c", "d", "e"):
        write_nifti(cohort / "predictions" / f"{case}.nii.gz", labels(tumor=True), AFFINE)
        write_nifti(cohort / "labels" / f"{case}.nii.gz", labels(tumor=True), AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    write_nifti(cohort / "predictions" / "a.nii.gz", labels(tumor=True), shifted)
    write_nifti(cohort / "predictions" / "c.nii.gz", labels(tumor=True) * 2, AFFINE)
    write_nifti(cohort / "labels" / "d.nii.gz", labels(tumor=True) * np.float32(0.7), AFFINE)
    assert evaluate(cohort) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "3 of 5 cases of predictions could not be evaluated (a, c, d)" in error
    assert "predictions/a.nii.gz" in error
    assert [row["case"] for row in rows(cohort)] == ["b", "e"]
    assert set(json.loads((cohort / "out" / "summary.json").read_text())["problems"]) == {"a", "c", "d"}


def test_evaluate_compares_methods_with_healthy_scans_folds_and_curves(cohort, capsys):
    write_nifti(cohort / "theirs" / "a.nii.gz", labels(tumor=False), AFFINE)
    write_nifti(cohort / "theirs" / "b.nii.gz", labels(tumor=False), AFFINE)
    for folder, tumor in (("healthy", False), ("healthy_theirs", True)):
        write_nifti(cohort / folder / "h.nii.gz", labels(tumor=tumor), AFFINE)
    (cohort / "folds.csv").write_text("case,fold\na,0\nb,1\n")
    probabilities = np.zeros((*SHAPE, 3), np.float32)
    probabilities[..., 2] = 0.6 * (labels(tumor=True) == 2)  # b and h have no such tumor
    for case in ("predictions/probabilities/a", "predictions/probabilities/b", "healthy/probabilities/h"):
        write_nifti(cohort / f"{case}.nii.gz", probabilities, AFFINE)
    more = ("--compare", f"old={cohort / 'theirs'}", "--name", "new", "--healthy", cohort / "healthy", "--froc",
            "--healthy", f"old={cohort / 'healthy_theirs'}", "--folds", cohort / "folds.csv")  # fmt: skip
    assert evaluate(cohort, *more) == 0
    summary = json.loads((cohort / "out" / "summary.json").read_text())
    assert summary["method"] == "new"
    assert summary["detection"]["patient_specificity"]["total"] == 2
    assert summary["compared"]["old"]["detection"]["patient_specificity"]["hits"] == 1
    assert summary["compared"]["old"]["tests"]["tumor_dsc"]["difference"] == -1
    assert [row["fold"] for row in rows(cohort)] == ["0", "1", ""]
    assert [row["case"] for row in rows(cohort, "out/compared/old")] == ["a", "b", "h"]
    columns = (summary["froc"][name] for name in ("thresholds", "sensitivity", "false_positives_per_scan"))
    points = list(zip(*columns, strict=True))
    assert (0.7, 0, 0) in points
    assert (0.5, 1, 2 / 3) in points
    assert (cohort / "out" / "froc.png").is_file()
    assert "froc" not in summary["compared"]["old"]
    capsys.readouterr()
    assert run("tables", cohort / "out", f"again={cohort / 'out'}", "--out", cohort / "tables") == 1
    assert "another evaluation of old" in capsys.readouterr().err
    assert run("tables", cohort / "out", "--out", cohort / "tables") == 0
    assert "| new | **100.0** |" in (cohort / "tables" / "tables.md").read_text()
    assert r"\begin{table}" in (cohort / "tables" / "tables.tex").read_text()
    assert run("tables", cohort / "out", "--out", cohort / "tables") == 0  # an earlier result is replaced, others not
    (cohort / "tables" / "tables.md").write_text("mine")
    assert run("tables", cohort / "out", "--out", cohort / "tables") == 1
    assert run("tables", cohort / "out", "--out", cohort / "out") == 1  # with tables of evaluate
    assert (cohort / "tables" / "tables.md").read_text() == "mine"
    assert run("tables", cohort / "out", "--out", cohort / "tables", "--overwrite") == 0
    capsys.readouterr()
    strict = cohort / "strict" / "summary.json"
    strict.parent.mkdir()
    summary["settings"]["tolerance_mm"] = 1.0
    strict.write_text(json.dumps(summary))
    assert run("tables", cohort / "out", f"strict={cohort / 'strict'}", "--out", cohort / "tables") == 1
    assert "another tolerance_mm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--compare", "predictions"), "the name 'predictions' of another method"),
        (("--compare", "a/b=labels"), "a name with slashes"),
        (("--compare", "no"), "no folder no"),
        (("--ct", "no"), "There is no folder no"),
        (("--out", "labels"), "holds what is evaluated"),
        (("--healthy", "other=labels"), "names other, which is not one of predictions"),
        (("--folds", "no.csv"), "no.csv cannot be read"),
        (("--level", "95"), "confidence level is 95"),
        (("--minimum-iou", "0.5"), "minimum_iou does not go with"),
        (("--matching", "iou", "--minimum-iou", "0"), "minimum_iou 0"),
    ],
)
def test_wrong_options_are_refused(cohort, capsys, monkeypatch, words, message):
    monkeypatch.chdir(cohort)
    assert evaluate(cohort, *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (cohort / "out").exists()


def test_evaluate_takes_folders_with_signs_of_equality(cohort):
    for case in ("a", "b"):
        write_nifti(cohort / "lr=0.1" / f"{case}.nii.gz", labels(tumor=False), AFFINE)
    assert evaluate(cohort, "--compare", cohort / "lr=0.1", "--level", "0.5", "--seed", "1") == 0
    summary = json.loads((cohort / "out" / "summary.json").read_text())
    assert list(summary["compared"]) == ["lr=0.1"]
    assert summary["compared"]["lr=0.1"]["settings"]["predictions"].endswith("lr=0.1")
    assert (summary["settings"]["level"], summary["settings"]["seed"]) == (0.5, 1)


@pytest.mark.parametrize("option", ["--tolerance-mm", "--minimum-iou", "--level"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_numbers_out_of_range_are_refused(cohort, capsys, option, value):
    assert evaluate(cohort, "--matching", "iou", option, value) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (cohort / "out").exists()


@pytest.mark.parametrize(("out", "words"), [("file", "is a file"), ("file/a/b", "lies inside the file")])
def test_evaluate_refuses_an_output_in_a_file_before_it_reads_anything(cohort, capsys, monkeypatch, out, words):
    (cohort / "file").write_text("mine")
    monkeypatch.setattr("difftumor.evaluation.cohort.pairs.read_labels", lambda path: pytest.fail(f"{path} was read"))
    assert evaluate(cohort, "--out", cohort / out) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert (cohort / "file").read_text() == "mine"


def test_evaluate_refuses_missing_folders_and_unknown_organs(cohort, capsys):
    assert run("evaluate", "--predictions", cohort / "no", "--labels", cohort / "labels", "--organ", "liver",
               "--out", cohort / "out") == 1  # fmt: skip
    assert "no folder" in capsys.readouterr().err
    assert run("evaluate", "--predictions", cohort / "predictions", "--labels", cohort / "labels", "--organ", "livr",
               "--out", cohort / "out") == 1  # fmt: skip
    assert "livr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("--compare", "other=theirs"), ()),
        (("--healthy", "scans"), ()),
        (("--folds", "folds.csv"), ()),
        ((), ("--worst", 0)),
    ],
)
def test_results_that_were_not_asked_for_again_are_kept(cohort, capsys, monkeypatch, before, after):
    monkeypatch.chdir(cohort)
    for case in ("a", "b"):
        write_nifti(cohort / "theirs" / f"{case}.nii.gz", labels(tumor=False), AFFINE)
    write_nifti(cohort / "scans" / "h.nii.gz", labels(tumor=False), AFFINE)
    (cohort / "folds.csv").write_text("case,fold\na,0\nb,1\n")
    assert evaluate(cohort, *before) == 0
    written = contents(cohort / "out")
    assert evaluate(cohort, *after) == 1
    assert "already holds cases.csv: give another folder, or overwrite" in capsys.readouterr().err
    assert contents(cohort / "out") == written


@pytest.mark.parametrize("name", ["report.html", "summary.json", "tables.tex"])
def test_a_users_file_is_kept_unless_asked(cohort, capsys, name):
    (cohort / "out").mkdir()
    (cohort / "out" / name).write_text("mine")
    assert evaluate(cohort) == 1
    assert f"already holds {name}: give another folder, or overwrite (--overwrite) it." in capsys.readouterr().err
    assert [path.name for path in (cohort / "out").iterdir()] == [name]


def test_a_failure_while_writing_leaves_an_earlier_evaluation_whole(cohort, monkeypatch):
    assert evaluate(cohort) == 0
    before = contents(cohort / "out")

    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difftumor.reporting.report.Report.write", full)
    assert evaluate(cohort) == 1
    assert contents(cohort / "out") == before
