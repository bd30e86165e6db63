"""The command robustness, from files to files."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from matplotlib.figure import Figure

from difftumor.datasets.cases import read_cases
from difftumor.evaluation.robustness.run import RESULT_FILES
from difftumor.scans.organs import get_organ
from stages.segmentation.cases import _made_before
from tests.conftest import contents, read_rows, run
from tests.evaluation.robustness.makers import write_scan
from tests.segmentation.makers import make_segmenter

DIMENSIONS = "size: {mean: 10, factor: 1.2}\nintensity: {mean: -60, sd: 30, max: 0}\n"


@pytest.fixture(scope="module", autouse=True)
def small_previews():
    """Previews take longer than everything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("difftumor.synthesis.scan.files.plot_preview", lambda *_, **__: Figure(figsize=(1, 1)))
        yield


def write_inputs(folder):
    """Write two healthy scans, one with a tumor, one that is not a CT; dimensions and a segmenter."""
    entries = []
    for seed, name in enumerate(("a", "b", "ill", "broken")):
        inputs = write_scan(folder / "in", name, tumor=name == "ill", seed=seed)
        entries.append({"image": str(inputs.ct), "label": str(inputs.organ_masks[0]), "patient": f"patient {name}"})
    (folder / "in" / "ct" / "broken.nii.gz").write_bytes(b"nothing")
    names = {"background": 0, "liver": 1, "liver_tumor": 2}
    (folder / "in" / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))
    (folder / "dimensions.yaml").write_text(DIMENSIONS)
    make_segmenter(folder / "segmenter", spacing_mm=2.0, crop=16)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_inputs(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same inputs with results in ``out``; not to be changed."""
    folder = write_inputs(tmp_path_factory.mktemp("finished"))
    before = contents(folder)
    assert robustness(folder, "--worst", 3) == 1  # one scan is broken
    assert before.items() <= contents(folder).items()
    return folder


@pytest.fixture
def resumed(folder, finished):
    """A copy of ``finished``."""
    shutil.copytree(finished / "out", folder / "out")
    return folder


def robustness(folder, *more, out="out"):
    return run(
        "robustness", "--model", folder / "segmenter", "--cases", folder / "in", "--organ", "liver",
        "--out", folder / out, "--dimensions", folder / "dimensions.yaml", "--only", "size,intensity",
        "--overlap", 0.25, "--device", "cpu", *more,
    )  # fmt: skip


def test_from_scans_to_the_worst_of_them(finished):
    out = finished / "out"
    assert {p.name for p in out.iterdir()} == {*RESULT_FILES, "scans", "worst", "pictures", "summary.csv"}
    summary = {row["case"]: row for row in read_rows(out / "summary.csv")}
    assert [summary[name]["status"] for name in ("a", "b", "ill", "broken")] == ["done", "done", "skipped", "failed"]
    assert summary["a"]["tumors"] == "12"  # two levels of intensity are at the limit of 0
    assert "liver tumors of its own" in summary["ill"]["notes"]
    assert "broken.nii.gz" in summary["broken"]["error"]
    rows = read_rows(out / "tumors.csv")
    assert len(rows) == 2 * 14
    assert {row["patient"] for row in rows} == {"patient a", "patient b"}
    assert all((out / row["record"]).is_file() for row in rows)
    cells = {(row["dimension"], row["level"]): row for row in read_rows(out / "cells.csv")}
    assert [cells["intensity", str(level)]["clamped"] for level in (1, 2, 3)] == ["0", "0", "1"]
    check_worst(finished, out)


def test_rerunning_resumes(resumed, capsys):
    out = resumed / "out"
    files = {name: data for name, data in contents(out).items() if name != "summary.csv"}
    assert robustness(resumed, "--worst", 3) == 1
    said = capsys.readouterr()
    assert "1 of 4 scans failed (broken)" in said.err
    assert "done before" in said.out
    again = contents(out)
    differing = {name.rpartition("/")[2] for name in files if again.get(name) != files[name]}
    # These say that scans were done before, or name files that were read, which lie elsewhere here.
    assert differing <= {"report.html", "robustness.json", "robustness.md", "record.json"}
    # With the broken scan fixed, the others stay.
    shutil.copy(resumed / "in" / "ct" / "a.nii.gz", resumed / "in" / "ct" / "broken.nii.gz")
    assert robustness(resumed, "--worst", 0) == 0
    summary = {row["case"]: row["status"] for row in read_rows(out / "summary.csv")}
    assert summary == {"a": "done before", "b": "done before", "ill": "skipped", "broken": "done"}
    assert not (out / "worst").exists()


def check_worst(folder, out):
    worst = json.loads((out / "robustness.json").read_text())["worst"]
    assert {entry["case"] for entry in worst} == {"a", "b"}
    assert len(worst) == 2  # all tumors of a scan share one place
    assert {f"worst/{p.name}" for p in (out / "worst").iterdir()} == {entry["folder"] for entry in worst}
    assert {p.stem for p in (out / "pictures").iterdir()} == {p.name for p in (out / "worst").iterdir()}
    for entry in worst:
        labels = np.asarray(nibabel.load(out / entry["folder"] / "labels.nii.gz").dataobj)
        diameter_mm = 2 * (3 * np.count_nonzero(labels == 2) * 8 / (4 * np.pi)) ** (1 / 3)
        assert diameter_mm == pytest.approx(entry["diameter_mm"])
    # What stage 3 makes of the folder: it knows whose scans these are, and leaves out held-out patients.
    cases = {case.image.resolve(): case for case in read_cases(folder / "in").cases}
    chosen = {case.id for case in _made_before(out / "worst", get_organ("liver"), cases, set())[1]}
    assert chosen == {p.name for p in (out / "worst").iterdir()}
    held_out = {case.id for case in _made_before(out / "worst", get_organ("liver"), cases, {"patient a"})[1]}
    assert held_out == {name for name in chosen if name.startswith("b_")}
    assert len(held_out) == 1


def test_a_record_is_replayed(finished, tmp_path):
    out = finished / "out"
    entry = json.loads((out / "robustness.json").read_text())["worst"][0]
    record = out / "scans" / entry["case"] / entry["record"]
    assert run("synthesize", "--replay", record, "--out", tmp_path / "again", "--device", "cpu") == 0
    for name in ("ct.nii.gz", "labels.nii.gz", "lesions.nii.gz"):
        assert (tmp_path / "again" / name).read_bytes() == (out / entry["folder"] / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--only", "weight"), "--only 'weight' has unknown name 'weight'"),
        (("--organ", "spleen"), "spleen"),
        (("--organ", "pancreas", "--organ-label", "1"), "finds tumors of the liver, not of the pancreas"),
        (("--overlap", 1), "overlap 1.0 is not in"),
        (("--dimensions", "nowhere.yaml"), "--dimensions nowhere.yaml cannot be read"),
        (("--model", "nowhere"), "nowhere"),
        (("--cases", "nowhere"), "nowhere does not exist"),
        (("--organ-label", "x"), "--organ-label 'x' is not understood"),
    ],
)
def test_what_does_not_work_is_said_before_anything_is_made(folder, capsys, more, match):
    assert robustness(folder, *more) == 1
    assert match in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_inputs_are_not_replaced(folder, capsys):
    shutil.copytree(folder / "in", folder / "scans")
    listing = json.loads((folder / "in" / "dataset.json").read_text())
    (folder / "robustness.json").write_text(json.dumps(listing))
    words = (
        "--model",
        folder / "segmenter",
        "--cases",
        folder / "robustness.json",
        "--organ",
        "liver",
        "--device",
        "cpu",
    )
    assert run("robustness", *words, "--out", folder) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert json.loads((folder / "robustness.json").read_text()) == listing


def test_tables_are_of_the_scans_and_the_request_of_the_command(resumed, capsys):
    for name in ("ill", "broken"):
        (resumed / "in" / "ct" / f"{name}.nii.gz").unlink()
    listing = json.loads((resumed / "in" / "dataset.json").read_text())
    listing["training"] = listing["training"][:2]
    (resumed / "in" / "dataset.json").write_text(json.dumps(listing))
    out = resumed / "out"
    (out / "pictures" / "mine.png").write_bytes(b"mine")
    kept = contents(out / "scans")
    before = contents(out)
    capsys.readouterr()
    assert robustness(resumed, "--seed", 1) == 1
    assert "robustness.json holds results of other settings" in " ".join(capsys.readouterr().err.split())
    assert contents(out) == before
    # Tables of before the tumor was stored are of another texture.
    results = json.loads(before["robustness.json"])
    assert results.pop("tumor")["scale_texture"] is True
    (out / "robustness.json").write_text(json.dumps(results))
    assert robustness(resumed) == 1
    assert "robustness.json holds results of other settings" in " ".join(capsys.readouterr().err.split())
    (out / "robustness.json").write_bytes(before["robustness.json"])
    listing["training"] = listing["training"][:1]
    (resumed / "in" / "dataset.json").write_text(json.dumps(listing))
    assert robustness(resumed, "--worst", 1) == 0
    assert {row["case"] for row in read_rows(out / "tumors.csv")} == {"a"}
    (worst,) = json.loads((out / "robustness.json").read_text())["worst"]
    assert {p.name for p in (out / "pictures").iterdir()} == {f"{worst['folder'].split('/')[1]}.png", "mine.png"}
    assert contents(out / "scans") == kept
    assert robustness(resumed, "--seed", 1, "--overwrite") == 0


@pytest.mark.parametrize("place", ["scans/a", "worst/deeper"])
def test_folders_with_inputs_are_not_replaced(folder, capsys, place):
    (folder / "out" / place).mkdir(parents=True)
    shutil.move(folder / "in" / "ct" / "a.nii.gz", folder / "out" / place / "a.nii.gz")
    listing = (folder / "in" / "dataset.json").read_text()
    moved = listing.replace(str(folder / "in" / "ct" / "a.nii.gz"), str(folder / "out" / place / "a.nii.gz"))
    assert moved != listing
    (folder / "in" / "dataset.json").write_text(moved)
    before = contents(folder)
    for more in ((), ("--worst", 0), ("--overwrite",)):
        assert robustness(folder, *more) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert f"would replace the input {folder / 'out' / place / 'a.nii.gz'}" in said
        assert contents(folder) == before


def test_folders_of_others_are_not_replaced(folder, capsys):
    for place in ("scans/a", "worst/mine"):
        (folder / "out" / place).mkdir(parents=True)
        (folder / "out" / place / "notes.txt").write_text("mine")
    before = contents(folder)
    fast = ("--overwrite", "--only", "intensity")
    assert robustness(folder, *fast) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"{folder / 'out' / 'worst'} holds mine/notes.txt, which is not part of an earlier result" in said
    assert contents(folder) == before
    for _ in range(2):  # with results of its own beside them
        assert robustness(folder, *fast, "--worst", 0) == 1
        assert "scans/a holds notes.txt, which is not part of" in " ".join(capsys.readouterr().err.split())
        assert before.items() <= contents(folder).items()
    assert (folder / "out" / "robustness.json").exists()
    assert robustness(folder, *fast) == 1
    assert before.items() <= contents(folder).items()


def test_without_a_healthy_scan_there_is_nothing_to_report(folder, capsys):
    listing = json.loads((folder / "in" / "dataset.json").read_text())
    listing["training"] = [entry for entry in listing["training"] if "ill" in entry["image"]]
    (folder / "in" / "dataset.json").write_text(json.dumps(listing))
    assert robustness(folder) == 1
    assert "No tumor was made in any scan" in capsys.readouterr().err
    assert {path.name for path in (folder / "out").iterdir()} == {"summary.csv"}
