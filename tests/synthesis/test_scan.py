import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import ndimage

from difftumor.diffusion.samplers import SamplerConfig
from difftumor.errors import ConfigError, GridMismatchError, OrganError, SynthesisError, VolumeError
from difftumor.grids import Box, Grid
from difftumor.spaces import ModelSpace
from difftumor.synthesis.loading import load_synthesizer
from difftumor.synthesis.scan import apply_to_scan, draw_in_scan, read_scan
from difftumor.synthesis.scan_files import FILES, read_records, read_sampling, synthesize_scan
from difftumor.synthesis.scan_report import find_warnings, report_tumors
from difftumor.synthesis.shapes import tumor_shape
from difftumor.volume import read_ct
from tests.nifti import write_nifti
from tests.synthesis.makers import ball, record, save_tiny_artifacts, tiny_synthesizer

SHAPE = (40, 36, 30)
THICK = np.array([[-1.1, 0, 0, 30], [0, -0.9, 0, 12], [0, 0, 2.5, -70], [0, 0, 0, 1.0]])
# In an organ of 6 mm, so that tumors reach its surface.
FINE = np.diag([0.45, 0.45, 0.45, 1.0])
OBLIQUE = np.array([[0, 0, 1.5, 3], [0.995, 0.1, 0, -9], [-0.1, 0.995, 0, 4], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def synthesizer():
    return tiny_synthesizer()


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("difftumor.synthesis.scan_files.draw_preview", lambda *_, **__: Figure(figsize=(1, 1)))


def write_case(folder, affine, *, dtype=np.int16, radius=13, **options):
    values = np.random.default_rng(0).normal(60, 15, SHAPE)
    values[:2], values[-2:] = -1000, 900
    ct = write_nifti(folder / "in" / "scan.nii.gz", values.astype(dtype), affine, **options)
    labels = ball(SHAPE, radius).astype(np.uint8) * 5
    labels[0, 0, 0] = 1
    return {"ct": ct, "organ_mask": write_nifti(folder / "in" / "organs.nii.gz", labels, affine)}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    position = np.round(voxels @ to_model[:3, :3].T + to_model[:3, 3], 3)
    last = np.array(halo.shape) - 1
    ends = [np.clip(end(position), 0, last).astype(int) for end in (np.floor, np.ceil)]
    corners = [[ends[side][:, axis] for axis, side in enumerate(sides)] for sides in np.ndindex(2, 2, 2)]
    return np.any([halo[tuple(corner)] for corner in corners], axis=0)


@pytest.mark.parametrize("affine", [np.eye(4), THICK, OBLIQUE, FINE], ids=["RAS", "LPS thick", "oblique", "fine"])
def test_files_and_what_they_promise(synthesizer, tmp_path, affine):
    # Floats show the faint end of the halo, which integers round away.
    case = write_case(tmp_path, affine, dtype=np.int16 if affine is FINE else np.float32)
    out, count = tmp_path / "out", 1 if affine is FINE else 2
    before = files_of(tmp_path / "in")
    report = synthesize_scan(synthesizer, **case, organ_label=5, count=count, seed=1, size="tiny", out=out)
    assert files_of(tmp_path / "in") == before
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    old, new = nib.load(case["ct"]), nib.load(out / "ct.nii.gz")
    labels, lesions = (np.asarray(nib.load(out / f"{name}.nii.gz").dataobj) for name in ("labels", "lesions"))
    organ = np.asarray(nib.load(case["organ_mask"]).dataobj) == 5
    assert new.header == old.header
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
    report = synthesize_scan(
        synthesizer, **case, organ_label=5, count=2, seed=1, size="tiny", out=out, models={"diffusion": "abc"}
    )
    content = json.loads((out / "record.json").read_text())
    assert content["request"] == {"organ": "liver", "organ_label": 5, "size": "tiny", "count": 2, "seed": 1}
    assert content["models"] == {"diffusion": "abc"}
    lesions = np.asarray(nib.load(out / "lesions.nii.gz").dataobj)
    for number, (stored, tumor) in enumerate(zip(content["tumors"], report.tumors, strict=True), start=1):
        voxels = np.argwhere(lesions == number)
        achieved = stored["achieved"]
        assert achieved["voxels"] == len(voxels)
        assert achieved["volume_mm3"] == pytest.approx(len(voxels) * 1.1 * 0.9 * 2.5)
        np.testing.assert_allclose(achieved["center_mm"], THICK[:3, :3] @ voxels.mean(0) + THICK[:3, 3], rtol=1e-5)
        np.testing.assert_allclose(achieved["center_mm"], stored["requested"]["center_mm"], atol=3)
        assert stored["requested"]["volume_mm3"] == pytest.approx(4 / 3 * np.pi * np.prod(tumor.record.half_axes_mm))
    assert read_records(out / "record.json") == tuple(tumor.record for tumor in report.tumors)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_record_says_how_to_sample_again(tmp_path, precision):
    model, sampler = save_tiny_artifacts(tmp_path / "checkpoints"), SamplerConfig("ddim", 2, 0.5, "trailing")
    rules = {**write_case(tmp_path, THICK), "organ_label": 5, "size": "tiny"}
    chosen = load_synthesizer(model, organ="liver", sampler=sampler, precision=precision)
    synthesize_scan(chosen, **rules, out=tmp_path / "a")
    stored = json.loads((tmp_path / "a" / "record.json").read_text())["sampling"]
    assert stored == {"kind": "ddim", "steps": 2, "eta": 0.5, "spacing": "trailing", "precision": precision}

    sampling = read_sampling(tmp_path / "a" / "record.json")
    assert sampling == {"sampler": sampler, "precision": precision}
    again, usual = load_synthesizer(model, organ="liver", **sampling), load_synthesizer(model, organ="liver")
    records = read_records(tmp_path / "a" / "record.json")
    for name, synthesizer in (("again", again), ("usual", usual)):
        synthesize_scan(synthesizer, **rules, out=tmp_path / name, records=records)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "a")
    assert files_of(tmp_path / "usual")["ct.nii.gz"] != files_of(tmp_path / "a")["ct.nii.gz"]


def test_a_record_without_sampling_was_sampled_as_the_model_says(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"format_version": 1, "tumors": []}')
    assert read_sampling(path) == {"sampler": None, "precision": "fp32"}
    for broken in ('{"kind": "dream"}', '{"pace": 3}', '"fast"', "[1]"):
        path.write_text(f'{{"format_version": 1, "tumors": [], "sampling": {broken}}}')
        with pytest.raises(SynthesisError, match=r"not a readable record\.json"):
            read_sampling(path)


@pytest.mark.usefixtures("no_picture")
def test_same_seed_and_replay_give_the_same_files(synthesizer, tmp_path):
    case = write_case(tmp_path, THICK)
    rules = {**case, "organ_label": 5, "count": 2, "size": "tiny"}
    synthesize_scan(synthesizer, **rules, seed=3, out=tmp_path / "a")
    synthesize_scan(synthesizer, **rules, seed=3, out=tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    records = read_records(tmp_path / "a" / "record.json")
    synthesize_scan(synthesizer, **rules, seed=3, out=tmp_path / "c", records=records)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")
    synthesize_scan(synthesizer, **rules, seed=4, out=tmp_path / "d")
    assert files_of(tmp_path / "a")["lesions.nii.gz"] != files_of(tmp_path / "d")["lesions.nii.gz"]


def test_orientation_does_not_matter(synthesizer, tmp_path):
    case = write_case(tmp_path, np.diag([1.5, 1.5, 2.0, 1.0]))
    turned = {}
    for name, path in case.items():
        image = nib.load(path).as_reoriented([[1, -1], [0, -1], [2, 1]])
        turned[name] = tmp_path / f"turned_{path.name}"
        image.to_filename(turned[name])
    results = []
    for files in (case, turned):
        scan = read_scan(files["ct"], files["organ_mask"], organ="liver", organ_label=5)
        records = draw_in_scan(synthesizer, scan, size="tiny", count=2, seed=0)
        results.append(apply_to_scan(synthesizer, scan, records))
    one, other = results
    assert one.records == other.records

    def back(array):
        return array.transpose(1, 0, 2)[::-1, ::-1]

    np.testing.assert_array_equal(one.lesions, back(other.lesions))
    np.testing.assert_array_equal(one.hu(), back(other.hu()))


@pytest.mark.usefixtures("no_picture")
def test_scaled_files_stay_as_stored_outside(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4))
    stored = np.asarray(nib.load(case["ct"]).dataobj)
    scaled = write_nifti(tmp_path / "scaled.nii", (stored + 1024).astype(">i2"), np.eye(4), slope=1.0, inter=-1024.0)
    synthesize_scan(
        synthesizer, ct=scaled, organ_mask=case["organ_mask"], organ_label=5, size="tiny", out=tmp_path / "out"
    )
    old, new = read_ct(scaled), read_ct(tmp_path / "out" / "ct.nii.gz")
    assert (new.stored.slope, new.stored.inter) == (1.0, -1024.0)
    assert new.stored.values.dtype == old.stored.values.dtype
    assert 0 < (new.data != old.data).sum() < old.data.size / 4


def test_contrast_is_that_of_the_tumor_against_the_organ_around_it(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4))
    scan = read_scan(case["ct"], case["organ_mask"], organ="liver", organ_label=5)
    result = apply_to_scan(synthesizer, scan, draw_in_scan(synthesizer, scan, size="tiny", count=1, seed=0))
    known = dataclasses.replace(
        result,
        before_hu=np.where(result.model_labels > 0, 100, -500).astype(np.float32),
        after_hu=np.where(result.model_labels == 2, 70, 1000).astype(np.float32),
    )
    assert report_tumors(known)[0].contrast_hu == pytest.approx(-30)


@pytest.mark.usefixtures("no_picture")
def test_warnings_name_what_fell_short(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4), radius=6)
    report = synthesize_scan(synthesizer, **case, organ_label=5, size="tiny", count=9, out=tmp_path / "out")
    assert report.warnings[0] == f"The liver had room for {len(report.tumors)} of 9 tumors."
    assert json.loads((tmp_path / "out" / "record.json").read_text())["warnings"] == list(report.warnings)
    half = dataclasses.replace(report.tumors[0], volume_mm3=report.tumors[0].requested_volume_mm3 * 0.3)
    gone = dataclasses.replace(report.tumors[0], voxels=0, volume_mm3=0.0)
    cut, lost = find_warnings((half, gone), wanted=2, organ="liver")
    assert "Tumor 1 was cut to 30%" in cut
    assert "Tumor 2" in lost
    assert "no label" in lost


def test_tumors_keep_away_from_the_end_of_the_scan(synthesizer, tmp_path):
    values = np.full((30, 28, 26), 60, np.int16)
    values[0, 0, 0] = -1000
    ct = write_nifti(tmp_path / "ct.nii.gz", values)
    scan = read_scan(ct, write_nifti(tmp_path / "all.nii.gz", np.ones_like(values, np.uint8)), organ="liver")
    for seed in range(20):
        (drawn,) = draw_in_scan(synthesizer, scan, size="tiny", count=1, seed=seed)
        room = np.minimum(drawn.center_voxel, np.array(values.shape) - 1 - drawn.center_voxel)
        assert (room + 1 > max(drawn.half_axes_mm)).all()


def test_tumors_that_leave_the_organ_are_drawn_with_all_the_room_they_can_reach(tmp_path, monkeypatch):
    """Else they are cut when drawn, not when applied, and tumors drawn after them meet other room."""
    spacing = (4.0, 5.0, 6.0)
    synthesizer = tiny_synthesizer("kidney", spacing_mm=spacing)
    values = np.full((60, 50, 40), 60, np.int16)
    values[0] = -1000
    organ = np.zeros(values.shape, np.uint8)
    organ[28:32, 23:27, 18:22] = 1
    affine = np.diag([*spacing, 1.0])
    ct, mask = (write_nifti(tmp_path / f"{n}.nii.gz", v, affine) for n, v in (("ct", values), ("organ", organ)))
    seen = []
    monkeypatch.setattr(synthesizer, "draw", lambda organ_XYZ, **_: seen.append(organ_XYZ) or ())
    draw_in_scan(synthesizer, read_scan(ct, mask, organ="kidney"), size="large", count=2, seed=0)
    around = np.argwhere(seen[0]).min(axis=0)
    reach = np.zeros(3, int)
    for seed in range(8):
        largest = record(half_axes_mm=(64.0,) * 3, deformation_sigma_mm=10.0, shape_seed=seed, spacing_mm=spacing)
        reach = np.maximum(reach, np.array(tumor_shape(largest).shape) // 2)
    assert (around >= reach).all()
    assert reach[0] > 64 / spacing[0]  # the deformation takes its share


def test_bad_input_is_named_and_nothing_is_left(synthesizer, tmp_path):
    case, out = write_case(tmp_path, np.eye(4)), tmp_path / "out"
    other_shape = write_nifti(tmp_path / "shape.nii.gz", np.ones((4, 4, 4), np.uint8))
    other_affine = write_nifti(tmp_path / "affine.nii.gz", ball(SHAPE, 9).astype(np.uint8), np.diag([2.0, 1, 1, 1]))
    unit = write_nifti(tmp_path / "unit.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32))
    for changes, error, words in (
        ({"ct": tmp_path / "no.nii.gz"}, VolumeError, "no.nii.gz does not exist"),
        ({"organ_mask": tmp_path / "no.nii.gz"}, VolumeError, "no.nii.gz does not exist"),
        ({"organ_mask": other_shape}, GridMismatchError, "shape"),
        ({"organ_mask": other_affine}, GridMismatchError, "spacing"),
        ({"ct": unit}, VolumeError, "Hounsfield"),
        ({"organ_label": 7}, OrganError, r"no voxel with label 7 .*labels found: 1, 5"),
        ({"organ_label": None}, ConfigError, r"several labels \(1, 5\).*--organ-label"),
        ({"size": "giant"}, ConfigError, "'giant'"),
        ({"size": "large"}, SynthesisError, "no room"),
        ({"count": 0}, ConfigError, "--count"),
    ):
        with pytest.raises(error, match=words):
            synthesize_scan(synthesizer, **{**case, "organ_label": 5, "size": "tiny", "out": out, **changes})
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("no_picture")
def test_earlier_results_are_kept_unless_told_otherwise(synthesizer, tmp_path):
    case, out = write_case(tmp_path, np.eye(4)), tmp_path / "out"
    rules = {**case, "organ_label": 5, "size": "tiny", "out": out}
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    synthesize_scan(synthesizer, **rules)
    first = files_of(out)
    with pytest.raises(ConfigError, match=r"already holds.*--overwrite"):
        synthesize_scan(synthesizer, **rules, seed=1)
    assert files_of(out) == first
    synthesize_scan(synthesizer, **rules, seed=1, overwrite=True)
    assert files_of(out)["lesions.nii.gz"] != first["lesions.nii.gz"]
    assert (out / "notes.txt").read_text() == "mine"


def test_input_is_never_replaced(synthesizer, tmp_path):
    case = write_case(tmp_path, np.eye(4))
    ct = case["ct"].rename(tmp_path / "in" / "ct.nii.gz")
    with pytest.raises(ConfigError, match="would replace the input"):
        synthesize_scan(
            synthesizer, ct=ct, organ_mask=case["organ_mask"], organ_label=5, out=tmp_path / "in", overwrite=True
        )


def test_a_failure_while_writing_leaves_nothing(synthesizer, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("difftumor.synthesis.scan_files.write_labels", broken)
    with pytest.raises(OSError, match="disk full"):
        synthesize_scan(
            synthesizer, **write_case(tmp_path, np.eye(4)), organ_label=5, size="tiny", out=tmp_path / "out"
        )
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_change_outside_the_halo_is_caught(synthesizer, tmp_path, monkeypatch):
    from difftumor.synthesis import scan_files
    from difftumor.volume import write_ct

    def careless(path, original, hu, changed):
        write_ct(path, original, hu + 1, np.ones_like(changed))

    monkeypatch.setattr(scan_files, "write_ct", careless)
    with pytest.raises(SynthesisError, match="differs from it outside"):
        synthesize_scan(
            synthesizer, **write_case(tmp_path, np.eye(4)), organ_label=5, size="tiny", out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_broken_record_files_are_refused(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(SynthesisError, match=r"not a readable record\.json"):
        read_records(path)
    for text in ("{", "[]", '{"format_version": 1}'):
        path.write_text(text)
        with pytest.raises(SynthesisError, match=r"not a readable record\.json"):
            read_records(path)
    path.write_text('{"format_version": 9, "tumors": []}')
    with pytest.raises(SynthesisError, match="format_version 9"):
        read_records(path)


@pytest.mark.data
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "LPS"])
def test_real_liver(real_data, synthesizer, tmp_path, turned):
    case = {"ct": real_data / "abdomen" / "ct.nii.gz", "organ_mask": real_data / "abdomen" / "organs.nii.gz"}
    if turned:
        for name, path in list(case.items()):
            image = nib.load(path).as_reoriented([[0, -1], [1, -1], [2, 1]])
            assert "".join(nib.aff2axcodes(image.affine)) == "LPS"
            case[name] = tmp_path / path.name
            image.to_filename(case[name])
    rules = {**case, "organ_label": 5, "count": 2, "size": "early", "seed": 0}
    report = synthesize_scan(synthesizer, **rules, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    assert len(report.tumors) == 2
    assert report.warnings == ()
    old, new = read_ct(case["ct"]), read_ct(tmp_path / "out" / "ct.nii.gz")
    lesions = np.asarray(nib.load(tmp_path / "out" / "lesions.nii.gz").dataobj)
    changed = old.stored.values != new.stored.values
    assert changed[lesions > 0].mean() > 0.9
    organ = np.asarray(nib.load(case["organ_mask"]).dataobj) == 5
    drawn = [tumor.record for tumor in report.tumors]
    assert allowed_to_change(np.argwhere(changed), drawn, old.grid.affine, organ).all()
    assert new.stored.preamble == old.stored.preamble
    # The same places in the patient, whatever the orientation of the file.
    np.testing.assert_allclose(report.tumors[0].record.center_mm, (119.0437, 138.3190, 168.3018), atol=0.01)
    records = read_records(tmp_path / "out" / "record.json")
    synthesize_scan(synthesizer, **rules, out=tmp_path / "again", records=records)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


def test_a_tumor_cut_by_the_organ_stays_inside_it_on_the_scans_own_grid(synthesizer, tmp_path):
    case = write_case(tmp_path, FINE)
    scan = read_scan(case["ct"], case["organ_mask"], organ="liver", organ_label=5)
    filling = record(center_voxel=(9, 8, 7), half_axes_mm=(9.0, 9.0, 9.0))
    inside = apply_to_scan(synthesizer, scan, [filling]).lesions > 0
    assert inside.sum() > 0.9 * scan.organ.sum()
    assert not (inside & ~scan.organ).any()
