"""The command predict, from files to files."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from difftumor.files.lock import locked
from difftumor.models.artifact import load_artifact, save_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.scans.nifti import read_ct
from difftumor.segmentation.inference import predict_volume
from difftumor.segmentation.options import PredictionOptions
from tests.conftest import contents, read_rows, run
from tests.nifti import voxels, write_nifti
from tests.segmentation.makers import SHAPE, make_segmenter, mask, organ, scan


def predict(ct: Path, model: Path, out: Path, *more: object) -> int:
    words = ("--ct", ct, "--model", model, "--out", out, "--overlap", 0.25, "--device", "cpu")
    return run("predict", *words, *more)


@pytest.fixture
def segmenter(tmp_path):
    return make_segmenter(tmp_path / "segmenter")


@pytest.fixture
def folder(tmp_path):
    """Two scans."""
    for seed, case in enumerate("ab"):
        scan(tmp_path / "in" / f"{case}.nii.gz", seed)
    return tmp_path / "in"


def table(out: Path) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in read_rows(out / "summary.csv")}


def test_the_header_is_kept_and_lesions_are_described(tmp_path, segmenter):
    ct = scan(tmp_path / "in" / "scan_0000.nii.gz", codes=(3, 4), endianness=">")
    before = ct.read_bytes()
    out = tmp_path / "out"
    assert predict(ct, segmenter, out) == 0
    assert set(contents(out)) == {"scan.nii.gz", "scan.json", "scan.png"}
    written, given = nibabel.load(out / "scan.nii.gz"), nibabel.load(ct)
    np.testing.assert_array_equal(written.affine, given.affine)
    assert written.header.endianness == ">"
    assert written.get_data_dtype() == np.uint8
    for field in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b", "descrip", "xyzt_units"):
        np.testing.assert_array_equal(written.header[field], given.header[field])
    labels = voxels(out / "scan.nii.gz")
    assert set(np.unique(labels)) <= {0, 1, 2}
    record = json.loads((out / "scan.json").read_text())
    assert record["ct"]["path"] == str(ct)
    assert record["models"] == [{"path": str(segmenter), "identity": load_artifact(segmenter).config.identity}]
    assert record["options"]["organ_filter"] == "none"
    assert record["organ"] == "liver"
    assert sum(lesion["voxels"] for lesion in record["lesions"]) == np.count_nonzero(labels == 2) > 0
    prediction = predict_volume(read_ct(ct), [load_artifact(segmenter)], PredictionOptions(overlap=0.25))
    weighted = sum(lesion["voxels"] * lesion["mean_tumor_probability"] for lesion in record["lesions"])
    tumor = prediction.labels == 2
    assert weighted == pytest.approx(prediction.tumor_probability[tumor].sum(dtype=float), rel=1e-6)
    assert ct.read_bytes() == before


def test_scans_of_two_processes_share_a_folder_and_one_scan_is_not_predicted_twice(tmp_path, segmenter, capsys):
    one, two = (scan(tmp_path / "in" / f"{case}.nii.gz", seed) for seed, case in enumerate("ab"))
    out = tmp_path / "out"
    with locked(out / "a"):
        assert predict(one, segmenter, out) == 1
        assert f"{out}/a is in use by process" in capsys.readouterr().err
        assert predict(two, segmenter, out) == 0
    with locked(out):
        assert predict(tmp_path / "in", segmenter, out) == 1
        assert f"{out} is in use by process" in capsys.readouterr().err
        assert predict(one, segmenter, out) == 0


def test_probabilities_are_those_of_the_labels(tmp_path, folder, segmenter):
    assert predict(folder, segmenter, tmp_path / "out", "--probabilities") == 0
    for case in "ab":
        written = nibabel.load(tmp_path / "out" / "probabilities" / f"{case}.nii.gz")
        given = nibabel.load(folder / f"{case}.nii.gz")
        assert written.shape == (*SHAPE, 3)
        np.testing.assert_array_equal(written.affine, given.affine)
        for field in ("sform_code", "qform_code"):
            assert written.header[field] == given.header[field]
        values = written.get_fdata()
        np.testing.assert_allclose(values.sum(-1), 1, atol=5e-5)
        first, second = np.sort(values, axis=-1)[..., :-3:-1].transpose(3, 0, 1, 2)
        sure = first - second > 1e-4
        np.testing.assert_array_equal(values.argmax(-1)[sure], voxels(tmp_path / "out" / f"{case}.nii.gz")[sure])
    # What is no label map is out of the way of those who read the folder as label maps.
    words = ("--predictions", tmp_path / "out", "--labels", tmp_path / "out", "--organ", "liver")
    assert run("evaluate", *words, "--out", tmp_path / "scores") == 0


def test_several_models_are_averaged(tmp_path, segmenter):
    ct = scan(tmp_path / "a.nii.gz")
    other = make_segmenter(tmp_path / "other", seed=1)
    for name, words in (("both", ("--model", other)), ("one", ())):
        assert predict(ct, segmenter, tmp_path / name, "--probabilities", *words) == 0
    assert predict(ct, other, tmp_path / "two", "--probabilities") == 0
    one, two, both = (
        nibabel.load(tmp_path / name / "probabilities" / "a.nii.gz").get_fdata() for name in ("one", "two", "both")
    )
    np.testing.assert_allclose(both, (one + two) / 2, atol=3e-5)
    assert np.abs(one - two).max() > 0.1
    assert len(json.loads((tmp_path / "both" / "a.json").read_text())["models"]) == 2


def test_models_of_other_organs_or_spacings_are_refused(tmp_path, segmenter, capsys):
    ct = scan(tmp_path / "a.nii.gz")
    for name, options in (("organ", {"organ": "kidney"}), ("spacing_mm", {"spacing_mm": 1.0})):
        other = make_segmenter(tmp_path / name, **options)
        assert predict(ct, segmenter, tmp_path / "out", "--model", other) == 1
        error = capsys.readouterr().err
        assert f"{segmenter} and {other} differ in {name}" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_flips_are_recorded_and_change_the_result(tmp_path, segmenter):
    ct = scan(tmp_path / "a.nii.gz")
    assert predict(ct, segmenter, tmp_path / "plain") == predict(ct, segmenter, tmp_path / "flips", "--flips") == 0
    assert json.loads((tmp_path / "flips" / "a.json").read_text())["options"]["flips"]
    assert (voxels(tmp_path / "plain" / "a.nii.gz") != voxels(tmp_path / "flips" / "a.nii.gz")).any()


def test_a_folder_with_masks(tmp_path, folder, segmenter, capsys):
    part = np.zeros(SHAPE, np.uint8)
    part[:4] = 1
    for case in "ab":
        mask(tmp_path / "masks" / f"{case}.nii.gz", part)
    words = (folder, segmenter, tmp_path / "out", "--organ-mask", tmp_path / "masks")
    assert predict(*words) == 1
    assert "a.nii.gz lies in air: in " in capsys.readouterr().err  # the first rows of these scans
    assert predict(*words, "--accept-hu") == 0
    assert "Warning: a: " in capsys.readouterr().err
    for case in "ab":
        # The mask ends at 4 mm, and 5 mm beyond it are allowed.
        assert not (voxels(tmp_path / "out" / f"{case}.nii.gz") == 2)[4 + 5 :].any()
        record = json.loads((tmp_path / "out" / f"{case}.json").read_text())
        assert record["options"]["organ_filter"] == "mask"
        assert record["dropped_mm3"]["outside_organ"] > 0
    (tmp_path / "masks" / "b.nii.gz").unlink()
    capsys.readouterr()
    for given, words in (
        (tmp_path / "masks", "b.nii.gz"),
        (tmp_path / "masks" / "a.nii.gz", "one file for 2"),
        (tmp_path / "typo.nii.gz", "typo.nii.gz does not exist"),
    ):
        assert predict(folder, segmenter, tmp_path / "new", "--organ-mask", given) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_masks_may_be_named_like_their_cts(tmp_path, segmenter):
    scan(tmp_path / "in" / "a_0000.nii.gz")
    mask(tmp_path / "masks" / "a_0000.nii.gz", organ() * np.uint8(2))
    assert predict(tmp_path / "in", segmenter, tmp_path / "out", "--organ-mask", tmp_path / "masks") == 0
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_the_organ_filter_goes_with_the_mask(tmp_path, segmenter, capsys):
    ct, given = scan(tmp_path / "a.nii.gz"), mask(tmp_path / "mask.nii.gz")
    assert predict(ct, segmenter, tmp_path / "out", "--organ-filter", "mask") == 1
    assert "organ filter 'mask' needs an organ mask" in capsys.readouterr().err
    for chosen in ("none", "predicted"):
        assert predict(ct, segmenter, tmp_path / "out", "--organ-mask", given, "--organ-filter", chosen) == 1
        assert f"organ filter '{chosen}' does not use the organ mask" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert predict(ct, segmenter, tmp_path / "out", "--organ-filter", "predicted", "--min-volume-mm3", 50) == 0
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["options"]["organ_filter"] == "predicted"
    assert all(lesion["volume_mm3"] >= 50 for lesion in record["lesions"])
    assert record["dropped_mm3"]["small"] > 0


@pytest.mark.parametrize("kind", ["dataset", "csv", "txt"])
def test_lists_of_scans(tmp_path, folder, segmenter, kind):
    lists = {
        "dataset": ("dataset.json", json.dumps({"training": [{"image": "in/a.nii.gz"}, {"image": "in/b.nii.gz"}]})),
        "csv": ("cases.csv", "id,image\nx,in/a.nii.gz\ny,in/b.nii.gz\n"),
        "txt": ("cases.txt", "in/a.nii.gz\nin/b.nii.gz\n"),
    }
    name, text = lists[kind]
    (tmp_path / name).write_text(text)
    assert predict(tmp_path / name, segmenter, tmp_path / "out") == 0
    assert list(table(tmp_path / "out")) == (["x", "y"] if kind == "csv" else ["a", "b"])


def test_the_same_command_resumes(tmp_path, folder, segmenter, capsys):
    out = tmp_path / "out"
    assert predict(folder, segmenter, out) == 0
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("[ab].*")}
    (out / "b.json").unlink()
    for name in ("b.nii.gz", "b.png"):
        (out / name).unlink()
    moved = folder.rename(tmp_path / "moved")  # what counts is what the files hold
    capsys.readouterr()
    assert predict(moved, segmenter, out) == 0
    said = capsys.readouterr().out
    assert "largest" in said
    assert said.count("done before") == 1
    after = contents(out)
    assert {name: after[name] for name in ("a.nii.gz", "a.png", "a.json", "b.nii.gz")} == {
        name: before[name] for name in ("a.nii.gz", "a.png", "a.json", "b.nii.gz")
    }
    assert all(path.stat().st_mtime_ns == times[path] for path in out.glob("a.*"))
    assert [row["status"] for row in table(out).values()] == ["done before", "predicted"]
    assert table(out)["a"]["lesions"] == str(len(json.loads(before["a.json"])["lesions"]))


@pytest.mark.parametrize("change", ["model", "option", "ct", "mask", "probabilities", "record", "label map alone"])
def test_other_results_are_replaced_only_on_request(tmp_path, folder, segmenter, capsys, change):
    out, ct, more = tmp_path / "out", folder / "a.nii.gz", []
    assert predict(ct, segmenter, out) == 0
    if change == "model":
        segmenter = make_segmenter(tmp_path / "other", seed=1)
    elif change == "option":
        more = ["--min-volume-mm3", 10]
    elif change == "ct":
        scan(ct, seed=5)
    elif change == "mask":
        more = ["--organ-mask", mask(tmp_path / "mask.nii.gz")]
    elif change == "probabilities":
        more = ["--probabilities"]
    elif change == "record":
        (out / "a.json").write_text("{}")
    else:
        (out / "a.json").unlink()
    before = contents(out)
    capsys.readouterr()
    assert predict(ct, segmenter, out, *more) == 1
    error = capsys.readouterr().err
    assert "already holds a.nii.gz" in error
    assert "--overwrite" in error
    assert contents(out) == before
    assert predict(ct, segmenter, out, *more, "--overwrite") == 0
    assert contents(out) != before
    assert predict(ct, segmenter, out, *more) == 0
    assert "done before" in capsys.readouterr().out


def test_old_probabilities_do_not_stay_with_new_labels(tmp_path, segmenter):
    ct, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    assert predict(ct, segmenter, out, "--probabilities") == 0
    assert predict(ct, segmenter, out, "--overwrite") == 0
    assert set(contents(out)) == {"a.nii.gz", "a.json", "a.png"}


def test_one_bad_scan_does_not_stop_the_others(tmp_path, folder, segmenter, capsys):
    (folder / "damaged.nii.gz").write_bytes(b"no NIfTI")
    shutil.copy(folder / "a.nii.gz", folder / "empty.nii.gz")
    shutil.copy(folder / "a.nii.gz", folder / "shifted.nii.gz")
    for case in ("a", "b", "damaged", "empty", "shifted"):
        mask(tmp_path / "masks" / f"{case}.nii.gz", organ() * np.uint8(case != "empty"))
    write_nifti(tmp_path / "masks" / "shifted.nii.gz", organ(), np.eye(4))
    assert predict(folder, segmenter, tmp_path / "out", "--organ-mask", tmp_path / "masks") == 1
    streams = capsys.readouterr()
    assert streams.err.splitlines()[-1].startswith("Error: 3 of 5 scans failed (damaged, empty, shifted): see ")
    rows = table(tmp_path / "out")
    assert {case: row["status"] for case, row in rows.items()} == {
        "a": "predicted", "b": "predicted", "damaged": "failed", "empty": "failed", "shifted": "failed",
    }  # fmt: skip
    assert "damaged.nii.gz is damaged" in rows["damaged"]["error"]
    assert "is empty" in rows["empty"]["error"]
    assert "differ in orientation" in rows["shifted"]["error"]
    assert {name.split(".")[0] for name in contents(tmp_path / "out")} == {"a", "b", "summary"}


def test_a_network_without_numbers_fails_and_leaves_nothing(tmp_path, folder, segmenter, capsys, monkeypatch):
    monkeypatch.setattr("torch.softmax", lambda logits, dim: logits * float("nan"))
    assert predict(folder / "a.nii.gz", segmenter, tmp_path / "one", "--probabilities") == 1
    assert "gives no finite values for" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
    assert predict(folder, segmenter, tmp_path / "all", "--probabilities") == 1
    assert all("gives no finite values" in row["error"] for row in table(tmp_path / "all").values())
    assert set(contents(tmp_path / "all")) == {"summary.csv"}
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["summary.csv"]


def test_what_nobody_foresaw_fails_one_scan_only(tmp_path, folder, segmenter, capsys, monkeypatch):
    from difftumor.segmentation import cases

    def fails_once(volume, *words, **options):
        if volume.path.name == "a.nii.gz":
            raise RuntimeError("out of memory")
        return predict_volume(volume, *words, **options)

    monkeypatch.setattr(cases, "predict_volume", fails_once)
    assert predict(folder, segmenter, tmp_path / "out") == 1
    assert table(tmp_path / "out")["a"]["error"] == "RuntimeError: out of memory"
    assert table(tmp_path / "out")["b"]["status"] == "predicted"


def test_an_interruption_leaves_whole_results_alone(tmp_path, folder, segmenter, monkeypatch):
    from difftumor.segmentation import prediction

    def interrupted(path, labels, like):
        if like.path.name == "b.nii.gz":
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write_labels(path, labels, like)

    write_labels = prediction.write_labels
    monkeypatch.setattr(prediction, "write_labels", interrupted)
    assert predict(folder, segmenter, tmp_path / "out") == 130
    assert set(contents(tmp_path / "out")) == {"a.nii.gz", "a.json", "a.png", "summary.csv"}
    monkeypatch.setattr(prediction, "write_labels", write_labels)
    assert predict(folder, segmenter, tmp_path / "out") == 0
    assert [row["status"] for row in table(tmp_path / "out").values()] == ["done before", "predicted"]


def test_masks_of_several_structures_are_refused(tmp_path, segmenter, capsys):
    structures = organ() * np.uint8(5)
    structures[0] = 1
    given = mask(tmp_path / "mask.nii.gz", structures)
    assert predict(scan(tmp_path / "in" / "a.nii.gz"), segmenter, tmp_path / "out", "--organ-mask", given) == 1
    assert "several labels (1, 5)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inputs_are_never_replaced(tmp_path, segmenter, capsys):
    ct, given = scan(tmp_path / "in" / "a.nii.gz"), mask(tmp_path / "masks" / "a.nii.gz")
    before = contents(tmp_path)
    for out in (ct.parent, given.parent):
        assert predict(ct, segmenter, out, "--organ-mask", given.parent, "--overwrite") == 1
        assert "a.nii.gz: give another folder" in capsys.readouterr().err
    assert predict(ct, segmenter, ct) == 1
    assert "is a file" in capsys.readouterr().err
    (tmp_path / "in" / "summary.csv").write_text("image\na.nii.gz\n")
    before["in/summary.csv"] = b"image\na.nii.gz\n"
    scans = tmp_path / "in" / "summary.csv"
    assert predict(scans, segmenter, ct.parent) == 1
    (tmp_path / "list.csv").write_text("id,image\n../masks/a,in/a.nii.gz\n")
    before["list.csv"] = (tmp_path / "list.csv").read_bytes()
    capsys.readouterr()
    assert predict(tmp_path / "list.csv", segmenter, tmp_path / "out") == 1
    assert "cannot name a result" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_other_networks_are_refused(tmp_path, capsys):
    sizes = {"base_channels": 4, "norm_groups": 4, "codes": 4}
    other = save_artifact(
        tmp_path / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", **sizes},
        network=Autoencoder(**sizes),
        preprocessing={"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175, 250], "crop": [16, 16, 16]},
    )
    assert predict(scan(tmp_path / "a.nii.gz"), other, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "'autoencoder', not 'segmenter'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_single_scan_is_refused_with_its_error_alone(tmp_path, segmenter, capsys):
    ct = scan(tmp_path / "in" / "a.nii.gz")
    given = write_nifti(tmp_path / "mask.nii.gz", organ(), np.eye(4))
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"no NIfTI")
    for words, said in (
        ((ct, segmenter, tmp_path / "out", "--organ-mask", given), "mask.nii.gz"),
        ((ct, segmenter, tmp_path / "out", "--device", "cuda:99"), "cuda:99"),
        ((ct, segmenter, tmp_path / "out", "--overlap", 1.5), "overlap"),
        ((damaged, segmenter, tmp_path / "out"), "damaged.nii.gz"),
        ((tmp_path / "no.nii.gz", segmenter, tmp_path / "out"), "no.nii.gz does not exist: give a CT"),
    ):
        assert predict(*words) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.data
@pytest.mark.parametrize("name", ["abdomen", "sarcoma/STS_001"])
def test_real_scans_keep_their_headers_in_any_orientation(tmp_path, real_data, name):
    """The abdomen is stored as RAS, and has no tumor; the sarcoma is stored as LPS, in float32, without an sform."""
    given = real_data / name / "ct.nii.gz"
    model = make_segmenter(tmp_path / "model", spacing_mm=3.0, crop=32)
    original = nibabel.load(given)
    for axcodes in ("RAS", "LPS"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(original.affine), nibabel.orientations.axcodes2ornt(axcodes)
        )
        (tmp_path / "in").mkdir(exist_ok=True)
        nibabel.save(original.as_reoriented(turn), tmp_path / "in" / f"{axcodes}.nii.gz")
    shutil.copy(given, tmp_path / "in" / "original.nii.gz")
    assert predict(tmp_path / "in", model, tmp_path / "out") == 0
    world = {}
    for case in ("original", "RAS", "LPS"):
        ct, labels = nibabel.load(tmp_path / "in" / f"{case}.nii.gz"), nibabel.load(tmp_path / "out" / f"{case}.nii.gz")
        assert labels.shape == ct.shape
        assert nibabel.aff2axcodes(labels.affine) == nibabel.aff2axcodes(ct.affine)
        for field in ("sform_code", "qform_code", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
            np.testing.assert_array_equal(labels.header[field], ct.header[field])
        world[case] = np.asarray(nibabel.as_closest_canonical(labels).dataobj)
    assert set(np.unique(world["original"])) == {0, 1, 2}  # else this tests little
    np.testing.assert_array_equal(world["RAS"], world["original"])
    np.testing.assert_array_equal(world["LPS"], world["original"])
    centers = [json.loads((tmp_path / "out" / f"{case}.json").read_text())["lesions"][0]["center_mm"] for case in world]
    np.testing.assert_allclose(centers[1:], [centers[0]] * 2, atol=1e-3)


def labeled_list(folder: Path, case: str) -> Path:
    """A data set of one scan whose label map numbers spleen, pancreas and its tumor 1, 3, 7."""
    scan(folder / "imagesTr" / f"{case}.nii.gz")
    numbered = organ() * np.uint8(3)
    numbered[4:8, 4:8, 4:8] = 7
    numbered[20:22, :4, :4] = 1
    write_nifti(
        folder / "labelsTr" / f"{case}.nii.gz", numbered, nibabel.load(folder / f"imagesTr/{case}.nii.gz").affine
    )
    names = {"background": 0, "spleen": 1, "pancreas": 3, "pancreas_tumor": 7}
    entries = [{"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))
    return folder


def test_a_segmenter_of_another_organ_finds_tumors_inside_the_organ_alone(tmp_path, segmenter, capsys):
    data = labeled_list(tmp_path / "data", "a")
    where = ("--organ", "pancreas", "--organ-mask", data, "--closing-mm", 0, "--dilation-mm", 0)
    assert predict(data / "imagesTr", segmenter, tmp_path / "out", *where) == 0
    assert predict(data / "imagesTr", segmenter, tmp_path / "liver") == 0
    alone, both = (voxels(tmp_path / name / "a.nii.gz") for name in ("out", "liver"))
    # The organ includes its tumor, and nothing beyond: the published product.
    np.testing.assert_array_equal(alone, np.where((both == 2) & (organ() > 0), 2, 0))
    assert 0 < np.count_nonzero(alone) < np.count_nonzero(both == 2)
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (record["organ"], record["trained_on"], record["tumor_only"]) == ("pancreas", "liver", True)
    assert record["organ_mm3"] is None
    assert record["organ_mask"]["labels"] == [3, 7]
    assert table(tmp_path / "out")["a"]["organ_mm3"] == ""
    # A folder of label maps says what its numbers mean in the dataset.json beside it; resuming knows them.
    capsys.readouterr()
    again = ("--organ", "pancreas", "--organ-mask", data / "labelsTr", "--closing-mm", 0, "--dilation-mm", 0)
    assert predict(data / "imagesTr", segmenter, tmp_path / "out", *again) == 0
    assert "done before" in capsys.readouterr().out
    words = ("--predictions", tmp_path / "out", "--labels", data, "--organ", "pancreas", "--worst", 1)
    assert run("evaluate", *words, "--out", tmp_path / "scores") == 0
    (row,) = read_rows(tmp_path / "scores" / "cases.csv")
    assert row["organ_dsc"] == ""
    assert float(row["tumor_dsc"]) >= 0
    assert "tumors alone are predicted" in row["note"]


def test_what_a_segmenter_of_another_organ_needs(tmp_path, segmenter, capsys):
    data = labeled_list(tmp_path / "data", "a")
    ct = data / "imagesTr" / "a.nii.gz"
    for words, expected in (
        (("--organ", "pancreas"), "give organ_mask (--organ-mask)"),
        (("--organ", "pancreas", "--organ-filter", "predicted"), "give organ_mask (--organ-mask)"),
        (("--organ", "spline"), "spline"),
        (("--organ-mask", data), "hold no liver"),
        (("--organ-mask", data / "labelsTr"), "give a mask of the organ alone, or a list"),
    ):
        assert predict(ct, segmenter, tmp_path / "out", *words) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert predict(ct, segmenter, tmp_path / "anywhere", "--organ", "pancreas", "--organ-filter", "none") == 0
    assert predict(ct, segmenter, tmp_path / "liver") == 0
    alone, both = (voxels(tmp_path / name / "a.nii.gz") for name in ("anywhere", "liver"))
    np.testing.assert_array_equal(alone, np.where(both == 2, 2, 0))
    assert predict(ct, segmenter, tmp_path / "same", "--organ", "liver") == 0
    np.testing.assert_array_equal(voxels(tmp_path / "same" / "a.nii.gz"), both)


def test_a_folder_with_one_file_per_structure_is_an_organ_mask(tmp_path, segmenter):
    for name, part in (("liver", slice(4, 10)), ("liver_tumor", slice(10, 12)), ("spleen", slice(12, 20))):
        data = np.zeros(SHAPE, np.uint8)
        data[part, 4:16, 4:12] = 1
        mask(tmp_path / "atlas" / "a" / "segmentations" / f"{name}.nii.gz", data)
    scan(tmp_path / "atlas" / "a" / "ct.nii.gz")
    given = ("--organ-mask", tmp_path / "atlas", "--closing-mm", 0, "--dilation-mm", 0)
    assert predict(tmp_path / "atlas", segmenter, tmp_path / "out", *given) == 0
    assert predict(tmp_path / "atlas", segmenter, tmp_path / "all") == 0
    kept, every = (voxels(tmp_path / name / "a.nii.gz") == 2 for name in ("out", "all"))
    inside = np.zeros(SHAPE, bool)
    inside[4:12, 4:16, 4:12] = True
    np.testing.assert_array_equal(kept, every & inside)
    first = json.loads((tmp_path / "out" / "a.json").read_text())["organ_mask"]
    mask(tmp_path / "atlas" / "a" / "segmentations" / "spleen.nii.gz")  # another structure does not matter
    assert predict(tmp_path / "atlas", segmenter, tmp_path / "out", *given) == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["organ_mask"] == first
