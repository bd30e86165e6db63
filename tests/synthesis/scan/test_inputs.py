"""The files of a scan: how organ and tumors are read from them, and how they are recorded."""

import json
from dataclasses import replace

import numpy as np
import pytest

from difftumor.errors import ConfigError, GridMismatchError, OrganError, SynthesisError, VolumeError
from difftumor.scans.organs import get_organ
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.options import ScanOptions
from tests.nifti import ct_values, write_nifti

SHAPE = (12, 10, 8)


@pytest.fixture
def folder(tmp_path):
    write_nifti(tmp_path / "ct.nii.gz", ct_values(SHAPE))
    return tmp_path


def box(*slices):
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slices)] = 1
    return mask


LEFT, RIGHT = box(slice(1, 4), slice(2, 6), slice(2, 6)), box(slice(7, 11), slice(2, 6), slice(2, 6))


def inputs(folder, *masks, **options):
    paths = []
    for number, mask in enumerate(masks):
        paths.append(write_nifti(folder / f"mask_{number}.nii.gz", mask))
    return ScanInputs(ct=folder / "ct.nii.gz", organ_masks=tuple(paths), **options)


def test_a_mask_is_the_organ_whatever_its_number(folder):
    for number in (1, 7, 255):
        scan = inputs(folder, LEFT * np.uint8(number)).read(organ="kidney")
        np.testing.assert_array_equal(scan.organ_mask, LEFT > 0)
        assert scan.organ_mask.dtype == bool
        assert scan.tumor_mask is None


def test_several_masks_are_one_organ(folder):
    scan = inputs(folder, LEFT, RIGHT).read(organ="kidney")
    np.testing.assert_array_equal(scan.organ_mask, (LEFT + RIGHT) > 0)
    assert scan.organ_source == str(folder / "mask_0.nii.gz")


def test_a_structure_that_a_patient_does_not_have_is_no_reason_to_refuse_the_others(folder):
    """Segmenters that write one file per structure write empty ones for what they have not found."""
    nothing = np.zeros(SHAPE, np.uint8)
    for masks in ((LEFT, nothing), (nothing, LEFT)):
        np.testing.assert_array_equal(inputs(folder, *masks).read(organ="kidney").organ_mask, LEFT > 0)
    with pytest.raises(OrganError, match=r"mask_0\.nii\.gz holds no nonzero voxel for the kidney .*labels found: none"):
        inputs(folder, nothing, nothing).read(organ="kidney")


def test_of_a_hollow_organ_the_wall_is_taken():
    mask = np.zeros((14, 14, 14), np.uint8)
    mask[2:12, 2:12, 2:12] = 1
    ct = np.where(mask > 0, 40, -100).astype(np.int16)
    rules = replace(get_organ("stomach"), wall_mm=4)
    found = Scan(ct, np.diag([2, 2, 2, 1]), mask, organ=rules, accept_hu=True).host_mask
    # Two layers of 2 mm of a cube of 10 voxels.
    inner = np.zeros_like(mask)
    inner[4:10, 4:10, 4:10] = 1
    np.testing.assert_array_equal(found, (mask - inner).astype(bool))
    again = Scan(ct, np.diag([2, 2, 2, 1]), found, organ=rules, accept_hu=True).host_mask
    np.testing.assert_array_equal(again, found)


def test_numbers_choose_from_a_label_map(folder):
    labels = LEFT * np.uint8(2) + RIGHT * np.uint8(3) + box(0) * np.uint8(9)
    for numbers, organ in (((2,), LEFT), ((3,), RIGHT), ((2, 3), LEFT + RIGHT), ((2, 3, 8), LEFT + RIGHT)):
        scan = inputs(folder, labels, organ_labels=numbers).read(organ="kidney")
        np.testing.assert_array_equal(scan.organ_mask, organ > 0)
    with pytest.raises(OrganError, match=r"no voxel with label 5 for the kidney \(labels found: 2, 3, 9\)"):
        inputs(folder, labels, organ_labels=(5,)).read(organ="kidney")
    with pytest.raises(ConfigError, match=r"several labels \(2, 3, 9\): say which is the kidney with organ_labels"):
        inputs(folder, labels).read(organ="kidney")


def test_tumors_that_are_there_are_no_organ(folder):
    tumor = box(slice(2, 3), slice(3, 5), slice(3, 5))
    labels = np.where(tumor > 0, 2, LEFT).astype(np.uint8)
    scan = inputs(folder, labels, organ_labels=(1,), tumor_labels=(2,)).read(organ="liver")
    np.testing.assert_array_equal(scan.tumor_mask, tumor > 0)
    np.testing.assert_array_equal(scan.organ_mask, (LEFT > 0) & (tumor == 0))
    # A file of their own says the same.
    path = write_nifti(folder / "tumor.nii.gz", tumor * np.uint8(4))
    apart = inputs(folder, LEFT, tumor_masks=(path,)).read(organ="liver")
    np.testing.assert_array_equal(apart.tumor_mask, scan.tumor_mask)
    np.testing.assert_array_equal(apart.organ_mask, scan.organ_mask)


def test_no_tumors_are_none(folder):
    empty = write_nifti(folder / "tumor.nii.gz", np.zeros(SHAPE, np.uint8))
    assert inputs(folder, LEFT, tumor_masks=(empty,)).read(organ="liver").tumor_mask is None
    assert inputs(folder, LEFT, organ_labels=(1,), tumor_labels=(2,)).read(organ="liver").tumor_mask is None


def test_an_organ_that_is_all_tumor_is_said_to_be_so(folder):
    path = write_nifti(folder / "tumor.nii.gz", LEFT)
    with pytest.raises(OrganError, match=r"liver of .*mask_0\.nii\.gz is all tumor: give a mask"):
        inputs(folder, LEFT, tumor_masks=(path,)).read(organ="liver")


def test_segments_come_with_their_numbers(folder):
    path = write_nifti(folder / "segments.nii.gz", LEFT * np.uint8(4) + RIGHT * np.uint8(8))
    scan = inputs(folder, LEFT + RIGHT, segments=path).read(organ="liver")
    assert set(np.unique(scan.segments)) == {0, 4, 8}


def test_every_file_lies_on_the_grid_of_the_ct(folder):
    other = write_nifti(folder / "other.nii.gz", LEFT, np.diag([2.0, 1, 1, 1]))
    for case in (
        replace(inputs(folder, LEFT), organ_masks=(other,)),
        inputs(folder, LEFT, tumor_masks=(other,)),
        inputs(folder, LEFT, segments=other),
    ):
        with pytest.raises(GridMismatchError, match=r"other\.nii\.gz"):
            case.read(organ="liver")
    with pytest.raises(VolumeError, match=r"none\.nii\.gz does not exist"):
        inputs(folder, LEFT, segments=folder / "none.nii.gz").read(organ="liver")
    with pytest.raises(OrganError, match="There is no mask of the liver"):
        inputs(folder).read(organ="liver")


def test_a_record_gives_the_inputs_back(folder):
    tumor, segments = (write_nifti(folder / f"{name}.nii.gz", LEFT) for name in ("tumor", "segments"))
    options = {"organ_labels": (1, 2), "tumor_labels": (3,), "tumor_masks": (tumor,), "segments": segments}
    for case in (inputs(folder, LEFT), inputs(folder, LEFT, RIGHT, **options)):
        content = json.loads(json.dumps(case.to_record()))
        assert ScanInputs.from_record(content) == case
        case.check_same(content)
        assert set(content) == {"ct", "organ_masks", "tumor_masks", "segments", "organ_labels", "tumor_labels"}


@pytest.mark.parametrize("role", ["ct", "organ_masks", "tumor_masks", "segments"])
def test_another_file_is_not_taken_for_the_recorded_one(folder, role):
    tumor, segments = (write_nifti(folder / f"{name}.nii.gz", LEFT) for name in ("tumor", "segments"))
    case = inputs(folder, LEFT, RIGHT, tumor_masks=(tumor,), segments=segments)
    content = case.to_record()
    path = case.files[role][-1]
    write_nifti(path, ct_values(SHAPE, seed=1))
    with pytest.raises(SynthesisError, match=rf"{path.name} is not the file that the record was made from"):
        case.check_same(content)


def test_other_files_or_numbers_than_recorded_are_refused(folder):
    tumor = write_nifti(folder / "tumor.nii.gz", LEFT)
    case = inputs(folder, LEFT, RIGHT, organ_labels=(1,), tumor_masks=(tumor,))
    content = case.to_record()
    for changes, words in (
        ({"organ_masks": case.organ_masks[:1]}, "2 files for organ_masks"),
        ({"tumor_masks": ()}, "1 files for tumor_masks"),
        ({"segments": tumor}, "0 files for segments"),
        ({"organ_labels": (2,)}, r"organ_labels \[1\]"),
        ({"tumor_labels": (2,)}, r"tumor_labels \[\], not \[2\]"),
    ):
        with pytest.raises(SynthesisError, match=words):
            replace(case, **changes).check_same(content)


def test_tumors_of_a_label_map_are_not_made_background_without_a_word(folder):
    both = LEFT + 2 * box(slice(2, 3), slice(3, 4), slice(3, 4)) * np.uint8(1)
    both[both > 2] = 2
    path = write_nifti(folder / "labels.nii.gz", both)
    options = {"ct": folder / "ct.nii.gz", "labels": path}
    with pytest.raises(OrganError, match=r"holds labels 1 and 2, and 2 would become background.*--convention standard"):
        ScanOptions(**options, organ_labels=(1,)).inputs("liver").read(organ="liver")
    kept = ScanOptions(**options, convention="standard").inputs("liver").read(organ="liver")
    np.testing.assert_array_equal(kept.tumor_mask, both == 2)
    mask = ScanOptions(ct=options["ct"], organ_mask=path, organ_labels=(1,)).inputs("liver").read(organ="liver")
    assert mask.tumor_mask is None
    record = ScanOptions(**options, organ_labels=(1,)).inputs("liver").to_record()
    assert ScanInputs.from_record(record).read(organ="liver").organ_mask.any()  # as it was made then
