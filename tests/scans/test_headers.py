"""Header fields that change geometry or values: honored, or refused with a sentence that names them."""

import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import Case, read_case_labels
from difftumor.errors import OrganError, VolumeError
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.label_maps import check_stated_names, stated_label_names
from difftumor.scans.nifti import read_ct, read_grid, read_labels, write_ct, write_labels
from difftumor.scans.organs import get_convention
from tests.nifti import ct_values, voxels, write_nifti

SPACING = np.diag([0.8, 0.8, 5.0, 1.0])
UNITS = {"mm": 1.0, "meter": 1e-3, "micron": 1e3, "unknown": 1.0}


def patched(path, *edits, cls=nib.Nifti1Image, affine=SPACING, codes=(2, 1)):
    """Write a CT, and other bytes into its header: (offset, format of struct, values)."""
    plain = write_nifti(path.with_name("plain.nii"), ct_values(), affine, cls=cls, codes=codes)
    data = bytearray(plain.read_bytes())
    for offset, layout, *values in edits:
        data[offset : offset + struct.calcsize(layout)] = struct.pack(layout, *values)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)
    return path


REFUSED = {
    "voxels in the header": ([(108, "<f", 0.0)], {}, "voxels begin at byte 0"),
    "voxels in the header's end": ([(108, "<f", 351.0)], {}, "voxels begin at byte 351"),
    "voxels beyond the file": ([(108, "<f", 1e12)], {}, "truncated|damaged"),
    "voxels nowhere": ([(108, "<f", float("inf"))], {}, "damaged"),
    "no spacing": ([(80, "<f", 0.0)], {"codes": (0, 1)}, r"0 x 0\.8 x 5 \(pixdim\)"),
    "no spacing nor codes": ([(88, "<f", 0.0)], {"codes": (0, 0)}, r"0\.8 x 0\.8 x 0 \(pixdim\)"),
    "spacing that is no number": ([(84, "<f", float("nan"))], {"codes": (0, 1)}, "pixdim|damaged"),
    "a unit of time": ([(123, "<B", 5)], {}, "no unit of length"),
    "more than the file": ([(40, "<4h", 3, 32767, 32767, 32767)], {}, "claims 7036"),
    "a negative size": ([(40, "<4h", 3, 5, -6, 4)], {}, "holds no voxels|damaged"),
    "an infinite slope": ([(112, "<f", float("inf"))], {}, "scl_slope"),
    "values beyond floats": ([(112, "<f", 1e38)], {}, "infinite values"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize("kind", REFUSED)
def test_header_fields_that_cannot_be_honored_are_refused(tmp_path, kind, name):
    edits, options, message = REFUSED[kind]
    with pytest.raises(VolumeError, match=message) as caught:
        read_ct(patched(tmp_path / name, *edits, **options))
    assert name in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("sizes", [(2**32, 2**32, 1), (2**62, 4, 1), (2**63 - 1, 2, 1), (10**4, 10**4, 10**4)])
def test_sizes_that_overflow_are_refused(tmp_path, sizes):
    edit = (16, "<8q", 3, *sizes, 1, 1, 1, 1)
    with pytest.raises(VolumeError):
        read_ct(patched(tmp_path / "ct.nii", edit, cls=nib.Nifti2Image))


@pytest.mark.parametrize("unit", UNITS)
def test_units_of_length_are_honored_and_written_back(tmp_path, unit):
    affine = np.diag([*np.array([0.8, 0.8, 5.0]) * UNITS[unit], 1.0])
    plain = nib.load(write_nifti(tmp_path / "plain.nii.gz", ct_values(), affine))
    plain.header.set_xyzt_units(unit)
    nib.save(plain, tmp_path / "ct.nii.gz")
    ct = read_ct(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(ct.grid.spacing_mm, (0.8, 0.8, 5.0), rtol=1e-6)
    write_labels(tmp_path / "labels.nii.gz", np.ones(ct.grid.shape, np.uint8), ct)
    write_ct(tmp_path / "same.nii.gz", ct, ct.data, np.zeros(ct.grid.shape, bool))
    for written in ("labels", "same"):
        assert read_grid(tmp_path / f"{written}.nii.gz").matches(ct.grid, 1e-4)
        assert nib.load(tmp_path / f"{written}.nii.gz").header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(voxels(tmp_path / "same.nii.gz"), voxels(tmp_path / "ct.nii.gz"))


@pytest.mark.parametrize("spacing", [3000.0, 1e30, 1e-6])
def test_spacings_of_no_scan_are_refused(tmp_path, spacing):
    path = write_nifti(tmp_path / "ct.nii", ct_values(), np.diag([spacing, spacing, spacing, 1.0]))
    with pytest.raises(VolumeError, match=r"voxel spacing of .*unit of its spacing|singular|damaged"):
        read_ct(path)


@pytest.mark.parametrize(("degrees", "fine"), [(0, True), (1, True), (12, False), (25, False)])
def test_a_tilted_gantry_is_refused(tmp_path, degrees, fine):
    sheared = SPACING.copy()
    # Slices of 5 mm, each moved along y.
    sheared[1, 2] = 5 * np.tan(np.deg2rad(degrees))
    path = write_nifti(tmp_path / "labels.nii", np.ones((5, 6, 4), np.uint8), sheared, codes=(2, 0))
    if fine:
        read_labels(path)
        return
    with pytest.raises(VolumeError, match=rf"{degrees}\.0° from square to each other, as with a tilted gantry"):
        read_labels(path)


def test_a_pipe_and_a_link_to_itself_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    for name, message in (("pipe", "is no regular file"), ("loop", "does not exist")):
        with pytest.raises(VolumeError, match=message):
            read_grid(tmp_path / f"{name}.nii")


def test_whole_labels_that_a_slope_makes_uneven_are_whole(tmp_path):
    labels = np.random.default_rng(0).integers(0, 118, (6, 5, 4))
    for dtype, fine in (("int16", labels), ("uint8", labels % 3)):
        image = nib.Nifti1Image(fine.astype(np.float64), np.eye(4))
        image.header.set_data_dtype(dtype)
        nib.save(image, tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz").data, fine)
    write_nifti(tmp_path / "halves.nii.gz", labels.astype(np.int16), slope=0.5)
    with pytest.raises(VolumeError, match="fractions"):
        read_labels(tmp_path / "halves.nii.gz")


def named(path, names, numbers):
    """Write a label map with label names in its header, as TotalSegmentator does."""
    table = "".join(f'<Label Key="{key}" Red="1" Alpha="1"><![CDATA[{name}]]></Label>' for name, key in names.items())
    image = nib.Nifti1Image(np.resize(np.array([0, *numbers], np.uint8), (5, 5, 5)), np.eye(4))
    content = f'<?xml version="1.0"?><CaretExtension><LabelTable>{table}</LabelTable></CaretExtension>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, content.encode()))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    nib.save(image, path)
    return path


FIRST = {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 5, "aorta": 7, "pancreas": 10}
SECOND = {**get_convention("totalsegmentator"), "aorta": 52}


def test_names_in_the_header_that_contradict_the_list_name_the_right_convention(tmp_path):
    assert not stated_label_names(read_labels(write_nifti(tmp_path / "plain.nii", np.ones((3, 3, 3), np.uint8))))
    case = Case("a", tmp_path / "ct.nii.gz", named(tmp_path / "labels.nii.gz", FIRST, FIRST.values()))
    assert stated_label_names(read_labels(case.labels)) == FIRST
    with pytest.raises(OrganError, match=r"its label 10 pancreas, .* 7; give the convention 'totalsegmentator_v1'"):
        read_case_labels(case, get_convention("totalsegmentator"))
    with pytest.raises(OrganError, match="give the numbers that the file names"):
        check_stated_names(read_labels(named(tmp_path / "own.nii.gz", {"Liver": 9}, (9,))), {"liver": 1})
    read_case_labels(case, get_convention("totalsegmentator_v1"))
    # Both versions of TotalSegmentator have nearly all numbers.
    few = Case("b", case.image, named(tmp_path / "few.nii.gz", FIRST, (1, 5, 10)))
    with pytest.raises(OrganError, match="'totalsegmentator_v1'"):
        read_case_labels(few, get_convention("totalsegmentator"))
    named(case.labels, SECOND, SECOND.values())
    with pytest.raises(OrganError, match="give the convention 'totalsegmentator' of version 2"):
        read_case_labels(case, get_convention("totalsegmentator_v1"))


def test_a_map_that_was_renumbered_to_another_convention_may_keep_its_header(tmp_path):
    btcv = get_convention("btcv")
    case = Case("a", tmp_path / "ct.nii.gz", named(tmp_path / "btcv.nii.gz", SECOND, range(1, 14)))
    with pytest.warns(ScanWarning, match="allow that"):
        read_case_labels(case, btcv)


def test_names_in_the_header_of_other_numbers_are_no_reason_to_refuse_a_label_map(tmp_path):
    image = nib.load(named(tmp_path / "whole.nii.gz", SECOND, SECOND.values()))
    liver = (np.asarray(image.dataobj) == 5).astype(np.uint8)
    nib.save(nib.Nifti1Image(liver, image.affine, image.header), tmp_path / "liver.nii.gz")
    with pytest.warns(ScanWarning, match=r"its label 5 liver, .* to be 1; the labels in it \(1\) allow that"):
        found = read_case_labels(Case("a", tmp_path / "ct.nii.gz", tmp_path / "liver.nii.gz"), {"liver": 1})
    np.testing.assert_array_equal(found.data, liver)
    check_stated_names(read_labels(named(tmp_path / "tumor.nii.gz", SECOND, (1, 2))), {"spleen": 1})
    with pytest.warns(ScanWarning):
        check_stated_names(read_labels(tmp_path / "tumor.nii.gz"), {"liver": 1}, others=(2,))
    with pytest.raises(OrganError):
        check_stated_names(read_labels(tmp_path / "tumor.nii.gz"), {"liver": 1})


def test_written_labels_do_not_inherit_label_names(tmp_path):
    like = read_labels(named(tmp_path / "like.nii.gz", SECOND, SECOND.values()))
    write_labels(tmp_path / "new.nii.gz", np.ones(like.grid.shape, np.uint8), like)
    new = read_labels(tmp_path / "new.nii.gz")
    assert stated_label_names(like)
    assert not stated_label_names(new)
    assert [each.get_content() for each in new.header.extensions] == [b"kept"]
