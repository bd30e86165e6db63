import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from difftumor.errors import ArtifactError, ConfigError, GridMismatchError, OrganError, SynthesisError, VolumeError
from difftumor.files.checksums import sha256_of
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.scans.grid import Box, Grid
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct
from difftumor.scans.organs import get_organ
from difftumor.scans.stored.mark import mark_preamble, read_marks
from difftumor.synthesis.scan.files import replay_scan
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.insertion import apply_to_scan
from difftumor.synthesis.scan.loading import load_recorded, load_synthesizer, load_textures, synthesizer_of
from difftumor.synthesis.scan.record import FILES, ModelRecord, read_record
from difftumor.synthesis.scan.report import find_warnings, report_tumors
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.spec import TumorSpec
from tests.conftest import contents
from tests.nifti import write_nifti
from tests.synthesis.makers import (
    ball,
    draw_in_scan,
    host_of,
    insert,
    record,
    save_tiny_artifacts,
    synthesize_scan,
    tiny_synthesizer,
    wanted,
)

SHAPE = (40, 36, 30)
THICK = np.array([[-1.1, 0, 0, 30], [0, -0.9, 0, 12], [0, 0, 2.5, -70], [0, 0, 0, 1.0]])
# In an organ of 6 mm, so that tumors reach its surface.
FINE = np.diag([0.45, 0.45, 0.45, 1.0])
OBLIQUE = np.array([[0, 0, 1.5, 3], [0.995, 0.1, 0, -9], [-0.1, 0.995, 0, 4], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def synthesizer():
    return tiny_synthesizer()


def write_case(folder, affine, *, dtype=np.int16, radius=13, **options):
    values = np.random.default_rng(0).normal(60, 15, SHAPE)
    values[:2], values[-2:] = -1000, 900
    ct = write_nifti(folder / "in" / "scan.nii.gz", values.astype(dtype), affine, **options)
    labels = ball(SHAPE, radius).astype(np.uint8) * 5
    labels[0, 0, 0] = 1
    mask = write_nifti(folder / "in" / "organs.nii.gz", labels, affine)
    return ScanInputs(ct=ct, organ_masks=(mask,), organ_labels=(5,))


def asked(size, count=1, *, seed=0, **fields):
    options = {name: fields.pop(name) for name in ("gate", "strict") if name in fields}
    return {"tumors": (wanted(size, count, **fields),), "seed": seed, **options}


def draw(synthesizer, scan, size, count=1, seed=0):
    specs = [wanted(size, count)]
    return draw_in_scan(synthesizer, scan, specs, seed=seed)


def allowed_to_change(voxels, records, affine, organ):
    """Say which voxels (N, 3) of a scan the tumors may change: the halo ends a blur radius and a voxel from the tumor.

    The blur reaches four standard deviations beyond the tumor, rounded to voxels of model space, along every axis. A
    change in a voxel of model space takes part in whatever lies less than one voxel from it along every axis.
    """
    space = ModelSpace(Grid(organ.shape, affine))
    organ_model = space.to_model(organ.view(np.uint8), kind="labels") != 0
    halo = np.zeros(space.grid.shape, bool)
    for tumor in records:
        shape, blur = tumor_shape(tumor), int(4 * tumor.blur_sigma_voxels + 0.5)
        half = np.array(shape.shape) // 2
        offsets = np.argwhere(shape) - half + tumor.center_voxel
        offsets = offsets[((offsets >= 0) & (offsets < halo.shape)).all(axis=1)]
        offsets = offsets[organ_model[tuple(offsets.T)]]
        box = Box(offsets.min(axis=0), offsets.max(axis=0) + 1).padded(blur).clipped(halo.shape)
        part = np.zeros(box.shape, bool)
        part[tuple((offsets - box.start).T)] = True
        halo[box.slices] |= ndimage.maximum_filter(part, size=2 * blur + 1, mode="constant")
    to_model = np.linalg.inv(space.grid.affine) @ affine
    position = np.round(voxels @ to_model[:3, :3].T + to_model[:3, 3], 6)
    last = np.array(halo.shape) - 1
    ends = [np.clip(end(position), 0, last).astype(int) for end in (np.floor, np.ceil)]
    corners = [[ends[side][:, axis] for axis, side in enumerate(sides)] for sides in np.ndindex(2, 2, 2)]
    return np.any([halo[tuple(corner)] for corner in corners], axis=0)


@pytest.mark.parametrize("affine", [np.eye(4), THICK, OBLIQUE, FINE], ids=["RAS", "LPS thick", "oblique", "fine"])
def test_files_and_what_they_promise(synthesizer, tmp_path, affine, request):
    if affine is not THICK:
        request.getfixturevalue("no_picture")
    # Floats show the faint end of the halo, which integers round away.
    case = write_case(tmp_path, affine, dtype=np.int16 if affine is FINE else np.float32)
    out, count = tmp_path / "out", 1 if affine is FINE else 2
    before = contents(tmp_path / "in")
    report = synthesize_scan(synthesizer, case, asked("tiny", count, seed=1), out=out)
    assert contents(tmp_path / "in") == before
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    old, new = nib.load(case.ct), nib.load(out / "ct.nii.gz")
    labels, lesions = (np.asarray(nib.load(out / f"{name}.nii.gz").dataobj) for name in ("labels", "lesions"))
    organ = np.asarray(nib.load(case.organ_masks[0]).dataobj) == 5
    differing = [name for name in old.header if str(new.header[name]) != str(old.header[name])]
    assert set(differing) <= {"descrip", "vox_offset"}
    (mark,) = read_marks(new.header)
    assert mark["organ"] == "liver"
    assert [tumor["generator"] for tumor in mark["tumors"]] == ["diffusion"] * count
    np.testing.assert_array_equal(new.affine, old.affine)
    changed = np.asarray(old.dataobj) != np.asarray(new.dataobj)
    assert changed[lesions > 0].mean() > 0.8
    records = [tumor.record for tumor in report.tumors]
    assert allowed_to_change(np.argwhere(changed), records, affine, organ).all()
    np.testing.assert_array_equal(labels, np.where(lesions > 0, 2, organ))
    assert set(np.unique(lesions)) == set(range(count + 1))
    assert (labels[organ] > 0).all()
    assert organ[lesions > 0].all()


@pytest.mark.usefixtures("no_picture")
def test_record_states_request_and_result(synthesizer, tmp_path):
    case, out = write_case(tmp_path, THICK), tmp_path / "out"
    model = ModelRecord(tmp_path / "model", {"diffusion": "abc"}, synthesizer.diffusion["early"].sampling)
    report = synthesize_scan(synthesizer, case, asked("tiny", 2, seed=1), out=out, models={"early": model})
    content = json.loads((out / "record.json").read_text())
    request = content["request"]
    assert (request["organ"], request["seed"], request["quality_gate"]) == ("liver", 1, None)
    assert TumorSpec.from_dict(request["tumors"][0], where="request") == wanted("tiny", 2)
    assert content["models"] == {"early": model.to_dict()}
    assert content["inputs"]["ct"] == [{"path": str(case.ct), "sha256": sha256_of(case.ct)}]
    lesions = np.asarray(nib.load(out / "lesions.nii.gz").dataobj)
    for number, (stored, tumor) in enumerate(zip(content["tumors"], report.tumors, strict=True), start=1):
        voxels = np.argwhere(lesions == number)
        achieved = stored["achieved"]
        assert achieved["voxels"] == len(voxels)
        assert achieved["volume_mm3"] == pytest.approx(len(voxels) * 1.1 * 0.9 * 2.5)
        np.testing.assert_allclose(achieved["center_mm"], THICK[:3, :3] @ voxels.mean(0) + THICK[:3, 3], rtol=1e-5)
        np.testing.assert_allclose(achieved["center_mm"], stored["requested"]["center_mm"], atol=3)
        assert stored["requested"]["volume_mm3"] == pytest.approx(4 / 3 * np.pi * np.prod(tumor.record.half_axes_mm))
        assert (achieved["attempts"], achieved["vessel_clearance_mm"]) == (1, None)
    assert read_record(out / "record.json").tumors == tuple(tumor.record for tumor in report.tumors)


@pytest.mark.usefixtures("no_picture")
def test_the_record_says_how_to_sample_again(tmp_path):
    model, sampler = save_tiny_artifacts(tmp_path / "checkpoints"), SamplerConfig("ddim", 2, 0.5, "trailing")
    case = write_case(tmp_path, THICK)
    chosen = load_textures({"early": model}, sampler=sampler)
    made = synthesizer_of(chosen, organ=get_organ("liver"))
    synthesize_scan(made, case, asked("tiny"), out=tmp_path / "a", models={"early": chosen["early"].record})
    record = read_record(tmp_path / "a" / "record.json")
    assert record.content["models"]["early"]["sampling"] == {
        "kind": "ddim", "steps": 2, "eta": 0.5, "spacing": "trailing", "precision": "fp32",
    }  # fmt: skip
    assert record.models["early"].options == {"sampler": sampler, "precision": "fp32"}
    again, usual = load_recorded(record), load_synthesizer(model, organ="liver")
    for name, synthesizer in (("again", again), ("usual", usual)):
        replay_scan(synthesizer, record, record.inputs, out=tmp_path / name)
    assert contents(tmp_path / "again") == contents(tmp_path / "a")
    assert contents(tmp_path / "usual")["ct.nii.gz"] != contents(tmp_path / "a")["ct.nii.gz"]


@pytest.mark.usefixtures("no_picture")
def test_another_model_is_not_taken_for_that_of_the_record(tmp_path):
    case, model = write_case(tmp_path, THICK), save_tiny_artifacts(tmp_path / "checkpoints")
    loaded = load_textures({"early": model})
    made = synthesizer_of(loaded, organ=get_organ("liver"))
    synthesize_scan(made, case, asked("tiny"), out=tmp_path / "a", models={"early": loaded["early"].record})
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"timesteps": 4', '"timesteps": 5'))
    with pytest.raises(ArtifactError, match=r"is no longer the model that made .*record\.json"):
        load_recorded(read_record(tmp_path / "a" / "record.json"))


@pytest.mark.usefixtures("no_picture")
def test_same_seed_and_replay_give_the_same_files(synthesizer, tmp_path):
    case = write_case(tmp_path, THICK)
    synthesize_scan(synthesizer, case, asked("tiny", 2, seed=3), out=tmp_path / "a")
    synthesize_scan(synthesizer, case, asked("tiny", 2, seed=3), out=tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    record = read_record(tmp_path / "a" / "record.json")
    replay_scan(synthesizer, record, record.inputs, out=tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    # The same files elsewhere are the same scan; another file is not.
    shutil.copytree(tmp_path / "in", tmp_path / "moved")
    moved = ScanInputs(
        ct=tmp_path / "moved" / "scan.nii.gz", organ_masks=(tmp_path / "moved" / "organs.nii.gz",), organ_labels=(5,)
    )
    replay_scan(synthesizer, record, moved, out=tmp_path / "d")
    assert contents(tmp_path / "a") == contents(tmp_path / "d")
    write_nifti(moved.ct, np.zeros(SHAPE, np.int16) - 500, THICK)
    with pytest.raises(SynthesisError, match=r"moved.scan\.nii\.gz is not the file that the record was made from"):
        replay_scan(synthesizer, record, moved, out=tmp_path / "e")
    with pytest.raises(SynthesisError, match=r"organ_labels \[5\]"):
        replay_scan(synthesizer, record, dataclasses.replace(case, organ_labels=(1,)), out=tmp_path / "e")
    assert not (tmp_path / "e").exists()
    synthesize_scan(synthesizer, case, asked("tiny", 2, seed=4), out=tmp_path / "f")
    assert contents(tmp_path / "a")["lesions.nii.gz"] != contents(tmp_path / "f")["lesions.nii.gz"]


def test_orientation_does_not_matter(synthesizer, tmp_path):
    case = write_case(tmp_path, np.diag([1.5, 1.5, 2.0, 1.0]))
    turned = []
    for path in (case.ct, *case.organ_masks):
        image = nib.load(path).as_reoriented([[1, -1], [0, -1], [2, 1]])
        turned.append(tmp_path / f"turned_{path.name}")
        image.to_filename(turned[-1])
    results = []
    for inputs in (case, dataclasses.replace(case, ct=turned[0], organ_masks=(turned[1],))):
        scan = inputs.read(organ="liver")
        results.append(insert(synthesizer, scan, draw(synthesizer, scan, "tiny", 2)))
    one, other = results
    # Places in the patient are the same; their last bits depend on the file's affine.
    for mine, theirs in zip(one.records, other.records, strict=True):
        np.testing.assert_allclose(mine.center_mm, theirs.center_mm, atol=1e-9)
        assert dataclasses.replace(mine, center_mm=theirs.center_mm) == theirs

    def back(array):
        return array.transpose(1, 0, 2)[::-1, ::-1]

    np.testing.assert_array_equal(one.whole_lesions(), back(other.whole_lesions()))
    np.testing.assert_array_equal(one.hu(), back(other.hu()))


@pytest.mark.usefixtures("no_picture")
def test_scaled_files_stay_as_stored_outside(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4))
    stored = np.asarray(nib.load(case.ct).dataobj)
    scaled = write_nifti(tmp_path / "scaled.nii", (stored + 1024).astype(">i2"), np.eye(4), slope=1.0, inter=-1024.0)
    synthesize_scan(synthesizer, dataclasses.replace(case, ct=scaled), asked("tiny"), out=tmp_path / "out")
    old, new = read_ct(scaled), read_ct(tmp_path / "out" / "ct.nii.gz")
    assert (new.stored.slope, new.stored.inter) == (1.0, -1024.0)
    assert new.stored.values.dtype == old.stored.values.dtype
    assert 0 < (new.data != old.data).sum() < old.data.size / 4


def test_contrast_is_that_of_the_tumor_against_the_organ_around_it(synthesizer, tmp_path):
    scan = write_case(tmp_path, np.eye(4)).read(organ="liver")
    result = insert(synthesizer, scan, draw(synthesizer, scan, "tiny"))
    (part,) = result.parts
    after = np.select([part.labels == 2, part.labels == 1], [70, 100], -500).astype(np.float32)
    known = dataclasses.replace(result, parts=(dataclasses.replace(part, after_hu=after),))
    host = host_of(synthesizer, scan, [wanted("tiny")])
    (report,) = report_tumors(known, host, window=synthesizer.window)
    assert report.contrast_hu == pytest.approx(-30)
    assert report.sd_hu == 0


@pytest.mark.usefixtures("no_picture")
def test_warnings_name_what_fell_short(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4), radius=6)
    report = synthesize_scan(synthesizer, case, asked("tiny", 9), out=tmp_path / "out")
    assert report.warnings[0] == f"The liver had room for {len(report.tumors)} of 9 tumors."
    assert json.loads((tmp_path / "out" / "record.json").read_text())["warnings"] == list(report.warnings)
    half = dataclasses.replace(report.tumors[0], volume_mm3=report.tumors[0].requested_volume_mm3 * 0.3)
    gone = dataclasses.replace(report.tumors[0], voxels=0, volume_mm3=0.0)
    cut, lost = find_warnings((half, gone))
    assert "Tumor 1 was cut to 30%" in cut
    assert "Tumor 2" in lost
    assert "no voxel of the scan" in lost


def test_tumors_keep_away_from_the_end_of_the_scan(synthesizer, tmp_path):
    values = np.full((30, 28, 26), 60, np.int16)
    values[0, 0, 0] = -1000
    ct = write_nifti(tmp_path / "ct.nii.gz", values)
    organ = write_nifti(tmp_path / "all.nii.gz", np.ones_like(values, np.uint8))
    scan = ScanInputs(ct=ct, organ_masks=(organ,)).read(organ="liver")
    for seed in range(20):
        (drawn,) = draw(synthesizer, scan, "tiny", seed=seed)
        room = np.minimum(drawn.center_voxel, np.array(values.shape) - 1 - drawn.center_voxel)
        assert (room + 1 > max(drawn.half_axes_mm)).all()


@pytest.mark.parametrize("irregularity", [1, 3])
def test_tumors_that_leave_the_organ_are_drawn_with_all_the_room_they_can_reach(tmp_path, irregularity):
    """Else they are cut when drawn, not when applied, and tumors drawn after them find other space."""
    spacing = (4.0, 5.0, 6.0)
    synthesizer = tiny_synthesizer("kidney", spacing_mm=spacing)
    values = np.full((90, 80, 70), 60, np.int16)
    values[0] = -1000
    organ = np.zeros(values.shape, np.uint8)
    organ[43:47, 38:42, 33:37] = 1
    affine = np.diag([*spacing, 1.0])
    ct, mask = (write_nifti(tmp_path / f"{n}.nii.gz", v, affine) for n, v in (("ct", values), ("organ", organ)))
    scan = ScanInputs(ct=ct, organ_masks=(mask,)).read(organ="kidney")
    specs = [wanted("large", irregularity=irregularity)]
    around = np.argwhere(host_of(synthesizer, scan, specs).mask).min(axis=0)
    reach = np.zeros(3, int)
    for seed in range(8):
        sigma_mm = 10.0 * irregularity
        largest = record(half_axes_mm=(64.0,) * 3, deformation_sigma_mm=sigma_mm, shape_seed=seed, spacing_mm=spacing)
        reach = np.maximum(reach, np.array(tumor_shape(largest).shape) // 2)
    assert (around >= reach).all()
    assert reach[0] > 64 / spacing[0]  # the deformation takes its share


def test_bad_input_is_named_and_nothing_is_left(synthesizer, tmp_path):
    case, out = write_case(tmp_path, np.eye(4)), tmp_path / "out"
    other_shape = write_nifti(tmp_path / "shape.nii.gz", np.ones((4, 4, 4), np.uint8))
    other_affine = write_nifti(tmp_path / "affine.nii.gz", ball(SHAPE, 9).astype(np.uint8), np.diag([2.0, 1, 1, 1]))
    unit = write_nifti(tmp_path / "unit.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32))
    missing = tmp_path / "no.nii.gz"
    for changes, error, words in (
        ({"ct": missing}, VolumeError, "no.nii.gz does not exist"),
        ({"organ_masks": (missing,)}, VolumeError, "no.nii.gz does not exist"),
        ({"organ_masks": (other_shape,)}, GridMismatchError, "shape"),
        ({"organ_masks": (other_affine,)}, GridMismatchError, "spacing"),
        ({"segments": other_shape}, GridMismatchError, "shape"),
        ({"ct": unit}, VolumeError, "Hounsfield"),
        ({"organ_labels": (7, 9)}, OrganError, r"no voxel with label 7 or 9 .*labels found: 1, 5"),
        ({"organ_labels": ()}, ConfigError, r"several labels \(1, 5\).*--organ-label"),
    ):
        with pytest.raises(error, match=words):
            synthesize_scan(synthesizer, dataclasses.replace(case, **changes), asked("tiny"), out=out)
    with pytest.raises(SynthesisError, match="no room"):
        synthesize_scan(synthesizer, case, asked("large"), out=out)
    with pytest.raises(SynthesisError, match=r"room for .* of 40 tumors\. Ask for less, or omit strict"):
        synthesize_scan(synthesizer, case, asked("tiny", 40, strict=True), out=out)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("no_picture")
def test_earlier_results_are_kept_unless_told_otherwise(synthesizer, tmp_path):
    case, out = write_case(tmp_path, np.eye(4)), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    synthesize_scan(synthesizer, case, asked("tiny"), out=out)
    first = contents(out)
    with pytest.raises(ConfigError, match=r"already holds.*--overwrite"):
        synthesize_scan(synthesizer, case, asked("tiny", seed=1), out=out)
    assert contents(out) == first
    synthesize_scan(synthesizer, case, asked("tiny", seed=1), out=out, overwrite=True)
    assert contents(out)["lesions.nii.gz"] != first["lesions.nii.gz"]
    assert (out / "notes.txt").read_text() == "mine"


def test_input_is_never_replaced(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4))
    ct = case.ct.rename(tmp_path / "in" / "ct.nii.gz")
    with pytest.raises(ConfigError, match="would replace the input"):
        synthesize_scan(
            synthesizer, dataclasses.replace(case, ct=ct), asked("tiny"), out=tmp_path / "in", overwrite=True
        )


def test_a_failure_while_writing_leaves_nothing(synthesizer, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("difftumor.synthesis.scan.files.write_labels", broken)
    with pytest.raises(OSError, match="disk full"):
        synthesize_scan(synthesizer, write_case(tmp_path, np.eye(4)), asked("tiny"), out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_change_outside_the_halo_is_caught(synthesizer, tmp_path, monkeypatch):
    from difftumor.scans.nifti import write_ct
    from difftumor.synthesis.scan import files as scan_files

    def careless(path, original, hu, changed, *, box, mark):
        write_ct(path, original, original.data + 1, np.ones_like(original.data, bool), mark=mark)

    monkeypatch.setattr(scan_files, "write_ct", careless)
    with pytest.raises(SynthesisError, match="differs from it outside"):
        synthesize_scan(synthesizer, write_case(tmp_path, np.eye(4)), asked("tiny"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_record_files_are_refused(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(SynthesisError, match=r"There is no file at .*record\.json: give the record\.json of"):
        read_record(path)
    for text in ("{", "[]", '{"format_version": 2}', '{"format_version": 2, "models": {"early": {"path": 3}}}'):
        path.write_text(text)
        with pytest.raises(SynthesisError, match=r"not a readable record\.json"):
            read_record(path)
    inputs = {name: [] for name in ("organ_masks", "tumor_masks", "segments", "organ_labels", "tumor_labels")}
    whole = {"format_version": 2, "models": {}, "inputs": {**inputs, "ct": [{"path": "ct.nii.gz"}]}, "device": "cpu"}
    whole["request"] = {"organ": "liver"}
    path.write_text(json.dumps({**whole, "tumors": []}))
    assert read_record(path).tumors == ()
    path.write_text(json.dumps({**whole, "tumors": [{"record": 3}]}))
    with pytest.raises(SynthesisError, match=r"not a readable record\.json"):
        read_record(path)
    path.write_text('{"format_version": 9, "tumors": []}')
    with pytest.raises(SynthesisError, match="format_version 9"):
        read_record(path)


@pytest.mark.data
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "LPS"])
def test_real_liver(real_data, synthesizer, tmp_path, turned):
    ct, organs = (real_data / "abdomen" / f"{name}.nii.gz" for name in ("ct", "organs"))
    if turned:
        for path in (ct, organs):
            image = nib.load(path).as_reoriented([[0, -1], [1, -1], [2, 1]])
            assert "".join(nib.aff2axcodes(image.affine)) == "LPS"
            image.to_filename(tmp_path / path.name)
        ct, organs = (tmp_path / path.name for path in (ct, organs))
    case = ScanInputs(ct=ct, organ_masks=(organs,), organ_labels=(5,))
    report = synthesize_scan(synthesizer, case, asked("early", 2), out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    assert len(report.tumors) == 2
    assert report.warnings == ()
    old, new = read_ct(case.ct), read_ct(tmp_path / "out" / "ct.nii.gz")
    lesions = np.asarray(nib.load(tmp_path / "out" / "lesions.nii.gz").dataobj)
    changed = old.stored.values != new.stored.values
    assert changed[lesions > 0].mean() > 0.9
    organ = np.asarray(nib.load(organs).dataobj) == 5
    drawn = [tumor.record for tumor in report.tumors]
    assert allowed_to_change(np.argwhere(changed), drawn, old.grid.affine, organ).all()
    (mark,) = read_marks(new.header)
    assert new.stored.preamble == mark_preamble(old.stored.preamble, old.header, mark)
    # The same places in the patient, whatever the orientation of the file.
    np.testing.assert_allclose(report.tumors[0].record.center_mm, (58.0437, 170.3190, 164.3018), atol=0.01)
    record = read_record(tmp_path / "out" / "record.json")
    replay_scan(synthesizer, record, record.inputs, out=tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_tumor_cut_by_the_organ_stays_inside_it_on_the_scans_own_grid(synthesizer, tmp_path):
    scan = write_case(tmp_path, FINE).read(organ="liver")
    filling = record(center_voxel=(9, 8, 7), half_axes_mm=(9.0, 9.0, 9.0))
    inside = insert(synthesizer, scan, [filling]).whole_lesions() > 0
    assert inside.sum() > 0.9 * scan.organ_mask.sum()
    assert not (inside & ~scan.organ_mask).any()


@pytest.mark.usefixtures("no_picture")
def test_what_changes_beyond_the_halo_is_caught(synthesizer, tmp_path, monkeypatch):
    """The halo is what the tumors declare, not what happens to change."""
    from difftumor.synthesis.scan import files as scan_files

    def leaking(*arguments):
        result = apply_to_scan(*arguments)
        assert result.halo[result.change_hu != 0].all()
        halo = result.halo.copy()
        halo[tuple(np.argwhere(np.abs(result.change_hu) > 1)[0])] = False
        return dataclasses.replace(result, halo=halo)

    monkeypatch.setattr(scan_files, "apply_to_scan", leaking)
    with pytest.raises(SynthesisError, match="differs from it outside"):
        synthesize_scan(synthesizer, write_case(tmp_path, np.eye(4)), asked("tiny"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_picture")
def test_tumors_in_thick_slices_have_voxels(tmp_path):
    affine = np.diag([2.0, 2.0, 10.0, 1.0])
    case = write_case(tmp_path, affine)
    for seed in range(4):
        request = asked("tiny", 3, seed=seed, generator="handcrafted")
        report = synthesize_scan(tiny_synthesizer(), case, request, out=tmp_path / "out", overwrite=True)
        assert [tumor.voxels > 0 for tumor in report.tumors] == [True] * 3


@pytest.mark.usefixtures("no_picture")
def test_threads_do_not_matter_to_hand_crafted_tumors(tmp_path):
    case = write_case(tmp_path, THICK, dtype=np.float32)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            request = asked("small", generator="handcrafted", mass_effect=30, capsule_hu=120)
            synthesize_scan(tiny_synthesizer(), case, request, out=tmp_path / str(threads))
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_tumors_that_leave_the_organ_keep_off_those_that_are_there(tmp_path):
    shape = (60, 60, 60)
    labels = ball(shape, 14).astype(np.uint8)
    labels[:, 34:50, 20:40] = 2
    values = np.where(labels, 60, -1000).astype(np.int16)
    ct, maps = (write_nifti(tmp_path / f"{name}.nii.gz", data) for name, data in (("ct", values), ("labels", labels)))
    scan = ScanInputs(ct=ct, organ_masks=(maps,), organ_labels=(1,), tumor_labels=(2,)).read(organ="kidney")
    kidney = tiny_synthesizer("kidney")
    left = 0
    for seed in range(10):
        specs = [wanted("medium", generator="handcrafted")]
        records = draw_in_scan(kidney, scan, specs, seed=seed)
        if records:
            result = insert(kidney, scan, records)
            assert not (result.whole_lesions()[labels == 2] > 0).any()
            left += records[0].may_leave_organ
    assert left > 0
