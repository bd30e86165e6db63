"""Results of a study of transfer: hand-derived numbers of made-up evaluations, what is missing, what is refused."""

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from difftumor.errors import CaseListError, ConfigError
from difftumor.evaluation.cohort.evaluate import evaluate
from difftumor.evaluation.cohort.statistics import bootstrap_ratio
from difftumor.evaluation.transfer.cells import TransferCell, TransferKey, read_grid
from difftumor.evaluation.transfer.results import TRANSFER_FILES, write_transfer_results
from difftumor.evaluation.transfer.tables import fold_table, organs_table, paired_tests, transfer_table
from tests.conftest import contents, read_rows
from tests.evaluation.cohort.methods import GRID, label_map
from tests.nifti import write_nifti

EARLY, LATE = 12.0, 31.0


def write_evaluation(folder: Path, organ: str, scans: dict, **settings: object) -> Path:
    """Write the files of an evaluation that are read.

    Args:
        folder: Where to.
        organ: That was evaluated.
        scans: By case, its patient, DSC, NSD, and per tumor its diameter and whether it was found.
        settings: To change.
    """
    folder.mkdir(parents=True)
    rules = {"organ": organ, "tolerance_mm": 2.0, "matching": "one voxel in common", **settings}
    (folder / "summary.json").write_text(json.dumps({"method": "x", "settings": rules}))
    with (folder / "cases.csv").open("w", newline="") as stream:
        cases = csv.writer(stream)
        cases.writerow(("case", "tumor_dsc", "tumor_nsd", "patient"))
        cases.writerows((case, dsc, nsd, patient) for case, (patient, dsc, nsd, _) in scans.items())
    with (folder / "lesions.csv").open("w", newline="") as stream:
        lesions = csv.writer(stream)
        lesions.writerow(("case", "kind", "diameter_mm"))
        for case, (_, _, _, tumors) in scans.items():
            lesions.writerows((case, "found" if found else "missed", diameter) for diameter, found in tumors)
            lesions.writerow((case, "false", EARLY))  # counts for nothing
    return folder


def cell(tumors="real", fold=0, seed=0, source="liver", target="liver", **more):
    return TransferCell(source=source, target=target, backbone="unet", tumors=tumors, fold=fold, seed=seed, **more)


@pytest.fixture
def study(tmp_path):
    """Livers in two folds of two seeds, real and mixed; and diffusion in the pancreas."""
    found = {
        # Fold 0, seed 0: patient p with 2 early tumors, 1 found; q with one late, found. Seed 1: all found.
        cell(): {"a": ("p", 0.4, 0.5, [(EARLY, 1), (EARLY, 0)]), "b": ("q", 0.8, 0.9, [(LATE, 1)])},
        cell(seed=1): {"a": ("p", 0.6, 0.7, [(EARLY, 1), (EARLY, 1)]), "b": ("q", 0.8, 0.7, [(LATE, 1)])},
        # Fold 1, one seed: r with one early, missed, and a healthy scan of s.
        cell(fold=1): {"c": ("r", 0.0, 0.1, [(EARLY, 0)]), "d": ("s", 1.0, 1.0, [])},
        cell("mixed"): {"a": ("p", 0.9, 0.9, [(EARLY, 1), (EARLY, 1)]), "b": ("q", 0.9, 0.9, [(LATE, 1)])},
        cell("diffusion", target="pancreas"): {"x": ("x", 0.5, 0.5, [(EARLY, 1)]), "y": ("y", 0.3, 0.3, [(EARLY, 0)])},
    }
    cells = {
        key: write_evaluation(tmp_path / str(number), key.target, scans)
        for number, (key, scans) in enumerate(found.items())
    }
    # Not there yet: the second fold of mixed, and real tumors of the liver in the pancreas.
    return {**cells, cell("mixed", fold=1): None, cell(target="pancreas"): tmp_path / "later"}


def test_numbers_are_those_worked_out_by_hand(study):
    grid = read_grid(study)
    real = grid.groups[TransferKey("liver", "liver", "unet", "real")]
    early, late = real.measured("early"), real.measured("all")
    # p: (1 + 2) / 2 of 2; r: 0 of 1.
    assert early.value == pytest.approx(1.5 / 3)
    assert (early.tumors, early.patients, early.seeds) == (3, 2, (1, 2))
    assert late.value == pytest.approx((1.5 + 1 + 0) / 4)
    assert (late.tumors, late.patients) == (4, 3)
    dsc = real.measured("dsc")
    assert dsc.value == pytest.approx((0.5 + 0.8 + 0.0) / 3)  # a healthy scan has no tumor score
    assert dsc.sd == pytest.approx(np.std([0.5, 0.8, 0.0], ddof=1))
    assert real.by_fold("dsc") == {0: pytest.approx(0.65), 1: 0.0}
    assert real.measured("nsd").value == pytest.approx((0.6 + 0.8 + 0.1) / 3)
    assert early.interval == bootstrap_ratio([1.5, 0], [2, 1], ["p", "r"], seed=0)
    assert real.whole
    mixed = grid.groups[TransferKey("liver", "liver", "unet", "mixed")]
    assert not mixed.whole
    assert len(grid.missing) == 2


def test_tables_have_the_layout_of_the_papers(study):
    grid = read_grid(study)
    table = transfer_table(grid, "unet", "early", title="Table 2")
    assert table.header == ("source", "tumors", "liver", "pancreas")
    real, hu, ours = table.rows
    assert real[:2] == ("liver", "real tumors")
    assert real[2].startswith("50.0 (")
    assert real[2].endswith("); 3 / 2 / 1–2")
    assert real[3] == hu[2] == hu[3] == "–"
    assert ours[2] == "100.0 (–); 2 / 1 / 1°"  # one patient has no interval; one fold of two
    assert ours[3].startswith("50.0 (0.0 to 100.0); 2 / 2 / 1")
    assert "beside the real tumors of the organ" in table.note
    assert "2 trainings have no evaluation yet" in table.note
    assert not table.bold  # they are not over as many tumors
    by_fold = fold_table(grid, "liver", {"real": "real tumors", "mixed": "DiffTumor"}, ["unet"], title="Table 4")
    assert by_fold.header[:6] == ("backbone", "tumors", "metric", "fold 0", "fold 1", "average")
    assert by_fold.rows[0][:6] == ("U-Net", "real tumors", "DSC (%)", "65.0", "0.0", "32.5")
    assert by_fold.rows[2][:6] == ("U-Net", "DiffTumor", "DSC (%)", "90.0", "–", "90.0 (of 1 folds)")
    organs = organs_table(grid, "unet", title="Table 7")
    assert organs.header == ("tumors", "liver DSC (%)", "liver NSD (%)", "pancreas DSC (%)", "pancreas NSD (%)")
    assert organs.rows[1][1:] == ("–",) * 4


def test_what_stands_in_for_a_missing_row_is_marked(study):
    only = {key: folder for key, folder in study.items() if key.tumors != "mixed"}
    folder = next(folder for key, folder in study.items() if key.tumors == "mixed" and folder is not None)
    grid = read_grid({**only, cell("diffusion"): folder})
    assert transfer_table(grid, "unet", "early", title="Table 2").rows[2][2].endswith("1†")


def test_methods_are_tested_on_the_patients_that_both_have(study):
    rows = {row["measure"]: row for row in paired_tests(read_grid(study))}
    assert {(row["target"], row["against"], row["tumors"]) for row in rows.values()} == {("liver", "real", "mixed")}
    # Of the scans a and b: patients p and q.
    assert (rows["dsc"]["patients"], rows["early"]["patients"]) == (2, 1)
    assert rows["dsc"]["first"] == pytest.approx(0.65)
    assert rows["dsc"]["difference"] == pytest.approx(0.25)
    assert rows["dsc"]["permutation_p"] == pytest.approx(0.5)  # both signs of two
    assert rows["dsc"]["permutation_holm"] >= rows["dsc"]["permutation_p"]
    assert rows["early"]["difference"] == pytest.approx(0.25)


def test_results_are_written_and_say_what_is_missing(study, tmp_path):
    annotated = {
        cell("diffusion", target="pancreas", annotations=number): write_evaluation(
            tmp_path / f"n{number}", "pancreas", {"x": ("x", number / 10, 0.5, [(EARLY, 1)])}
        )
        for number in (1, 5)
    }
    out = tmp_path / "out"
    page = write_transfer_results({**study, **annotated, cell(annotations=1): None}, out, command="study table")
    assert page == out / "report.html"
    assert set(contents(out)) == set(TRANSFER_FILES)
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    numbers = {(row["target"], row["tumors"], row["annotations"]): row for row in read_rows(out / "numbers.csv")}
    assert float(numbers["liver", "real", "all"]["early"]) == pytest.approx(0.5)
    assert numbers["liver", "real", "all"]["early_tumors"] == "3"
    assert float(numbers["pancreas", "diffusion", "5"]["dsc"]) == pytest.approx(0.5)
    assert numbers["pancreas", "real", "all"]["folds"] == "0"
    assert len(read_rows(out / "missing.csv")) == 3
    assert len(read_rows(out / "tests.csv")) == 4
    text = (out / "tables.md").read_text()
    assert "Reduced annotations" in text
    assert "6 trainings" not in text
    assert r"\toprule" in (out / "tables.tex").read_text()
    # A later state replaces this one; what it does not have goes.
    write_transfer_results(study, out)
    assert not (out / "annotations.png").exists()
    before = contents(out)
    write_transfer_results(study, out)
    assert contents(out) == before
    # Not what somebody else has written.
    (out / "transfer.json").unlink()
    with pytest.raises(ConfigError, match="move the file"):
        write_transfer_results(study, out)
    del before["transfer.json"]
    assert contents(out) == before


def test_hu_et_al_compare_real_synthetic_and_both(tmp_path):
    scans = {"a": ("p", 0.4, 0.5, [(EARLY, 1)])}
    cells = {
        replace(cell(kind), backbone=backbone): write_evaluation(tmp_path / f"{kind}_{backbone}", "liver", scans)
        for kind in ("real", "handcrafted_alone", "handcrafted")
        for backbone in ("swinunetr_tiny", "swinunetr_base")
    }
    write_transfer_results(cells, tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "(Table 5 of Hu et al.)" in text
    for name in ("real", "synthetic", "both"):
        assert f"| Swin UNETR-Tiny | {name} | DSC (%) | 40.0 | 40.0 |" in text


def test_an_evaluation_of_real_files_is_read(tmp_path):
    for folder, tumor in (("predictions", 3), ("labels", 3)):
        write_nifti(tmp_path / folder / "a.nii.gz", label_map(tumor, 9)[: GRID.shape[0]], GRID.affine)
    evaluate(tmp_path / "predictions", tmp_path / "labels", organ="liver").save(tmp_path / "evaluation", worst=0)
    group = read_grid({cell(): tmp_path / "evaluation"}).groups[cell().group]
    assert (group.measured("early").value, group.measured("early").tumors, group.measured("dsc").value) == (1, 2, 1)


def test_evaluations_that_do_not_go_together_are_refused(study, tmp_path):
    scans = {"a": ("p", 0.4, 0.5, [(EARLY, 1)])}
    for number, (key, organ, settings, words) in enumerate((
        (cell("other"), "kidney", {}, "is an evaluation of kidney, not of liver"),
        (cell("other"), "liver", {"tolerance_mm": 1.0}, "another tolerance_mm than the others"),
        (cell(fold=2), "liver", {}, "a of liver was tested in the folds 0 and 2"),
    )):  # fmt: skip
        folder = write_evaluation(tmp_path / f"wrong{number}", organ, scans, **settings)
        with pytest.raises(CaseListError, match=words):
            write_transfer_results({**study, key: folder}, tmp_path / "out")
    broken = write_evaluation(tmp_path / "broken", "liver", scans)
    (broken / "cases.csv").write_text("case\na\n")
    with pytest.raises(CaseListError, match=r"no readable cases\.csv"):
        write_transfer_results({cell(): broken}, tmp_path / "out")
    with pytest.raises(CaseListError, match="no evaluation yet"):
        write_transfer_results({cell(): None}, tmp_path / "out")
    with pytest.raises(ConfigError, match="confidence level"):
        write_transfer_results(study, tmp_path / "out", level=95)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "refused"), [("segmenter", True), ("diffusion", True), ("autoencoder", False)])
def test_models_that_were_trained_on_their_test_are_refused_by_name(study, kind, refused):
    folder = study[cell()]
    summary = json.loads((folder / "summary.json").read_text())
    summary["trained_on_test"] = [
        {"kind": kind, "model": "leaky", "scans": 2},
        {"kind": kind, "model": "b", "scans": 0},
    ]
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(CaseListError, match=r"^leaky was trained on 2 of the scans that") if refused else nullcontext():
        read_grid(study)
