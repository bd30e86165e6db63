"""Tumors whose shape and place a mask gives."""

import json

import nibabel as nib
import numpy as np
import pytest

from difftumor.errors import SynthesisError
from difftumor.scans.nifti import read_ct
from difftumor.synthesis.scan.files import ScanSynthesizer, replay_scan
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.scan.options import size_of_given
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.spec import TumorSpec
from tests.nifti import write_nifti
from tests.synthesis.makers import ball, tiny_synthesizer

SHAPE = (40, 36, 30)
THICK = np.array([[-1.1, 0, 0, 30], [0, -0.9, 0, 12], [0, 0, 2.5, -70], [0, 0, 0, 1.0]])
OBLIQUE = np.array([[0, 0, 1.5, 3], [0.995, 0.1, 0, -9], [-0.1, 0.995, 0, 4], [0, 0, 0, 1.0]])
# Hardly blurred, so that the shape is seen in the change.
HAND = TumorSpec(generator="handcrafted", contrast_hu=-80, blur_mm=0.4)


@pytest.fixture(scope="module")
def synthesizer():
    return tiny_synthesizer()


def letter() -> np.ndarray:
    """An L that reaches out of the organ, and a small block: no drawn tumor looks so."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[14:18, 10:32, 12:16] = mask[14:28, 10:13, 12:16] = 1
    mask[22:26, 20:24, 18:20] = 3
    return mask


def write_case(folder, affine, mask, mask_affine=None):
    values = np.random.default_rng(0).normal(60, 15, SHAPE)
    values[:2] = -1000
    ct = write_nifti(folder / "scan.nii.gz", values.astype(np.int16), affine)
    organ = write_nifti(folder / "organ.nii.gz", ball(SHAPE, 13).astype(np.uint8), affine)
    given = write_nifti(folder / "given.nii.gz", mask, affine if mask_affine is None else mask_affine)
    return ScanInputs(ct=ct, organ_masks=(organ,), given_mask=given)


def read(file):
    return np.asarray(nib.load(file).dataobj)


@pytest.mark.parametrize("affine", [np.eye(4), THICK, OBLIQUE], ids=["RAS", "LPS thick", "oblique"])
@pytest.mark.parametrize("spec", [HAND, TumorSpec(size="mix", blur_mm=0.4)], ids=["handcrafted", "diffusion"])
def test_tumors_have_exactly_the_shape_and_place_of_the_mask(synthesizer, tmp_path, affine, spec, no_picture):
    mask = letter()
    case = write_case(tmp_path, affine, mask)
    report = ScanSynthesizer(synthesizer=synthesizer, tumors=(spec,), seed=3).make_files(case, out=tmp_path / "out")
    lesions = read(tmp_path / "out" / "lesions.nii.gz")
    np.testing.assert_array_equal(lesions > 0, mask > 0)
    assert len(np.unique(lesions[mask == 1])) == len(np.unique(lesions[mask == 3])) == 1
    assert set(np.unique(lesions)) == {0, 1, 2}
    np.testing.assert_array_equal(read(tmp_path / "out" / "labels.nii.gz") == 2, mask > 0)
    assert [tumor.label_dice for tumor in report.tumors] == [1, 1]
    change = read(tmp_path / "out" / "ct.nii.gz").astype(int) - read(case.ct)
    assert (change[mask > 0] != 0).mean() > 0.8
    far = ball(SHAPE, 60).astype(bool)  # everything but the tumors and a few voxels around them
    far[8:34, 4:38, 4:28] = False
    assert not change[far].any()
    if spec is HAND:
        assert change[(mask == 1) & (ball(SHAPE, 10) > 0)].mean() < -40
        assert all(tumor.change_dice > 0.7 for tumor in report.tumors)
    record = read_record(tmp_path / "out" / "record.json")
    replay_scan(synthesizer, record, record.inputs, out=tmp_path / "again")
    for name in ("ct.nii.gz", "lesions.nii.gz", "record.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_mask_on_another_grid_is_carried_to_that_of_the_scan(synthesizer, tmp_path, no_picture):
    fine, mask = np.diag([0.5, 0.5, 0.5, 1]), letter()
    fine[:3, 3] = -0.25  # eight voxels inside each of the scan's
    doubled = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    case = write_case(tmp_path, np.eye(4), doubled, fine)
    ScanSynthesizer(synthesizer=synthesizer, tumors=(HAND,)).make_files(case, out=tmp_path / "out")
    np.testing.assert_array_equal(read(tmp_path / "out" / "lesions.nii.gz") > 0, mask > 0)


def test_what_of_a_mask_lies_outside_the_scan_is_said(synthesizer, tmp_path):
    moved = np.eye(4)
    moved[1, 3] = 14
    scan = write_case(tmp_path, np.eye(4), letter(), moved).read(organ="liver")
    assert any("given.nii.gz lies outside" in doubt for doubt in scan.doubts)


def test_another_mask_is_not_taken_for_the_recorded_one(synthesizer, tmp_path, no_picture):
    case = write_case(tmp_path, np.eye(4), letter())
    ScanSynthesizer(synthesizer=synthesizer, tumors=(HAND,)).make_files(case, out=tmp_path / "out")
    record = read_record(tmp_path / "out" / "record.json")
    write_nifti(case.given_mask, np.roll(letter(), 1, axis=0), np.eye(4))
    with pytest.raises(SynthesisError, match=r"given\.nii\.gz is not the file that the record was made from"):
        replay_scan(synthesizer, record, record.inputs, out=tmp_path / "again")
    tumors = json.loads((tmp_path / "out" / "record.json").read_text())["tumors"]
    assert [tumor["record"]["mask"]["component"] for tumor in tumors] == [1, 2]


def test_requests_that_a_mask_leaves_no_room_for_are_refused(synthesizer, tmp_path):
    scan = write_case(tmp_path, np.eye(4), letter()).read(organ="liver")
    for made in (
        ScanSynthesizer(synthesizer=synthesizer, tumors=(HAND, HAND)),
        ScanSynthesizer(synthesizer=synthesizer, tumors=(TumorSpec(generator="copy_paste"),)),
    ):
        with pytest.raises(SynthesisError, match="ask for one kind"):
            made.make(scan)
    with pytest.raises(SynthesisError, match="holds no voxel"):
        Scan(read_ct(tmp_path / "scan.nii.gz"), None, ball(SHAPE, 13), organ="liver", given_mask=np.zeros(SHAPE))


def test_a_mask_far_from_the_organ_is_refused(synthesizer, tmp_path):
    long = np.zeros((120, 20, 20), np.uint8)
    organ, far = long.copy(), long.copy()
    organ[100:115, 5:15, 5:15], far[5:9, 5:9, 5:9] = 1, 1
    hu = np.where(organ, 60, 20).astype(np.int16)
    hu[0] = -1000
    scan = Scan(hu, np.eye(4), organ, organ="liver", given_mask=far)
    with pytest.raises(SynthesisError, match="Component 1 of the tumor mask lies more than 50 mm from the liver"):
        ScanSynthesizer(synthesizer=synthesizer, tumors=(HAND,)).make(scan)


@pytest.mark.parametrize("radius_mm", [9.7, 9.9, 10.0, 10.1, 10.3])
def test_models_are_asked_for_by_the_sizes_that_tumors_get(synthesizer, tmp_path, radius_mm):
    """Around 2 cm another grid may make an early tumor a late one."""
    fine = np.diag([-0.5, -0.5, 0.5, 1])
    fine[:3, 3] = THICK[:3, 3] + (-8, -6, 20)
    mask = (np.indices((60, 56, 60)).T - (30, 28, 30)) @ np.diag([0.5] * 3)
    case = write_case(tmp_path, THICK, ((mask**2).sum(-1) < radius_mm**2).astype(np.uint8).T, fine)
    scan = ModelScan(case.read(organ="liver"), synthesizer.spacing_mm)
    records = scan.given.draw(scan.host((HAND,), synthesizer.organ), HAND, seed=0)
    assert [record.size_group for record in records] == [size_of_given(case.given_mask, case.ct)]


def test_the_rim_goes_by_the_radius_of_the_mask(synthesizer, tmp_path):
    scan = write_case(tmp_path, np.eye(4), letter()).read(organ="liver")
    model_scan = ModelScan(scan, synthesizer.spacing_mm)
    host = model_scan.host((HAND,), synthesizer.organ)
    spec = TumorSpec(generator="handcrafted", blur_share=0.2)
    for record, tumor in zip(model_scan.given.draw(host, spec, seed=1), model_scan.given.tumors, strict=True):
        assert record.blur_sigma_voxels == pytest.approx(0.2 * tumor.radius_mm)
        voxels = np.count_nonzero(letter() == (1 if record.mask.component == 1 else 3))
        assert 4 / 3 * np.pi * tumor.radius_mm**3 == pytest.approx(voxels)
