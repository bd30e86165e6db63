"""The mark of made tumors in headers, in every kind of single file."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from difftumor.scans.nifti import read_ct, same_outside, write_ct, write_labels
from difftumor.scans.stored.header import read_header
from difftumor.scans.stored.mark import is_described, read_marks

CONTENT = {"organ": "liver", "tumors": [{"generator": "handcrafted", "diameter_mm": 8.5}]}
OTHER = b"a comment of somebody else, of odd length"


@pytest.fixture(params=["one", "big-endian", "two", "extended"])
def original(request, tmp_path):
    values = np.random.default_rng(0).integers(-1000, 300, (6, 5, 4)).astype(np.int16)
    header = nib.Nifti1Header(endianness=">") if request.param == "big-endian" else None
    kind = nib.Nifti2Image if request.param == "two" else nib.Nifti1Image
    image = kind(values, np.diag([-2, 1, 3, 1]), header)
    image.header["descrip"] = b"x" * 70
    if request.param == "extended":
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, OTHER))
    nib.save(image, tmp_path / "ct.nii.gz")
    return read_ct(tmp_path / "ct.nii.gz")


def changed(volume):
    mask = np.zeros(volume.grid.shape, bool)
    mask[2, 2, 2] = True
    return mask


def test_a_marked_ct_is_the_same_image_for_every_reader(original, tmp_path):
    path, mask = tmp_path / "made.nii", changed(original)
    write_ct(path, original, original.data + 7, mask, mark=CONTENT)
    before, after = nib.load(original.path), nib.load(path)
    expected = np.asarray(before.dataobj) + 7 * mask.astype(np.int16)
    np.testing.assert_array_equal(np.asarray(after.dataobj), expected)
    if not isinstance(after, nib.Nifti2Image):  # which ITK does not read
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T, expected)
    assert after.header.endianness == before.header.endianness
    for field in before.header:
        if field not in ("vox_offset", "descrip"):
            np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
    assert bytes(after.header["descrip"].item()) == b"x" * 49 + b"; synthetic tumors (difftumor)"
    assert read_marks(read_header(path)[0].header) == [CONTENT]
    kept = [each.get_content() for each in before.header.extensions]
    assert [each.get_content() for each in after.header.extensions][: len(kept)] == kept
    assert same_outside(original, path, mask, mark=CONTENT)
    assert not same_outside(original, path, mask)
    assert not same_outside(original, path, mask, mark={**CONTENT, "organ": "spleen"})


def test_marks_add_up_and_label_maps_have_them(original, tmp_path):
    write_ct(tmp_path / "once.nii.gz", original, original.data, changed(original), mark=CONTENT)
    once = read_ct(tmp_path / "once.nii.gz")
    second = {**CONTENT, "organ": "spleen"}
    write_ct(tmp_path / "twice.nii.gz", once, once.data, changed(once), mark=second)
    assert read_marks(nib.load(tmp_path / "twice.nii.gz").header) == [CONTENT, second]
    write_labels(tmp_path / "labels.nii.gz", changed(once), once, mark=second)
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert read_marks(labels.header) == [CONTENT, second]
    np.testing.assert_array_equal(np.asarray(labels.dataobj), changed(once))


def test_the_sentence_outlives_programs_that_drop_comments(original, tmp_path):
    if isinstance(original.header, nib.Nifti2Header):
        pytest.skip("ITK does not read NIfTI-2")
    write_ct(tmp_path / "made.nii.gz", original, original.data, changed(original), mark=CONTENT)
    SimpleITK.WriteImage(SimpleITK.ReadImage(tmp_path / "made.nii.gz"), tmp_path / "again.nii.gz")
    header = nib.load(tmp_path / "again.nii.gz").header
    assert read_marks(header) == []
    assert is_described(header)
    assert not is_described(original.header)


def test_labels_of_a_marked_ct_are_not_marked(original, tmp_path):
    write_ct(tmp_path / "made.nii.gz", original, original.data, changed(original), mark=CONTENT)
    write_labels(tmp_path / "labels.nii.gz", changed(original), read_ct(tmp_path / "made.nii.gz"))
    header = nib.load(tmp_path / "labels.nii.gz").header
    assert read_marks(header) == []
    assert not is_described(header)
    assert bytes(header["descrip"].item()).rstrip(b"\0") == b"x" * 49
    kept = [each.get_content() for each in original.header.extensions]
    assert [each.get_content() for each in header.extensions] == kept


def test_what_is_no_mark_is_none(tmp_path):
    header = nib.Nifti1Header()
    texts = [b"difftumor_synthetic_tumors", b'{"difftumor_synthetic_tumors": 3}', b"{" * 9999, OTHER]
    header.extensions.extend(nib.nifti1.Nifti1Extension(6, text) for text in texts)
    assert read_marks(header) == []
