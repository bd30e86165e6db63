"""Reading and writing NIfTI."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.errors import GridMismatchError, VolumeError
from difftumor.scans.grid import Box
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import (
    as_stored,
    check_same_grid,
    read_ct,
    read_grid,
    read_labels,
    same_outside,
    write_ct,
    write_labels,
)
from difftumor.scans.stored import voxels as module
from tests.nifti import LPS, ct_values, write_nifti

NAMES = ("ct.nii", "ct.nii.gz")


def _bytes(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def _oblique():
    angle = np.deg2rad(12)
    affine = np.diag([0.8, 0.8, 5.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3] @ np.diag([-1, -1, 1])
    affine[:3, 3] = 120.5, 80.25, -900
    return affine


# Reading


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("name", NAMES)
def test_reads_what_nibabel_reads(tmp_path, dtype, endianness, name):
    path = write_nifti(tmp_path / name, ct_values(dtype=dtype), _oblique(), endianness=endianness)
    volume, reference = read_ct(path), nib.load(path)
    assert volume.data.dtype == np.float32
    assert volume.data.dtype.isnative
    np.testing.assert_array_equal(volume.data, reference.get_fdata())
    np.testing.assert_array_equal(volume.grid.affine, reference.affine)
    assert volume.path == path


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"), [("uint16", 1, -1024), ("int16", 2.5, -200), ("uint8", 12.5, -1100)]
)
def test_applies_slope_and_intercept(tmp_path, dtype, slope, inter):
    stored = np.arange(120).reshape(5, 6, 4).astype(dtype)
    path = write_nifti(tmp_path / "ct.nii.gz", stored, slope=slope, inter=inter)
    volume = read_ct(path)
    np.testing.assert_allclose(volume.data, stored.astype(float) * slope + inter)
    np.testing.assert_array_equal(volume.stored.values, stored)


def test_reads_nifti_2_and_a_last_axis_of_one(tmp_path):
    values = ct_values()
    volume = read_ct(write_nifti(tmp_path / "a.nii.gz", values, cls=nib.Nifti2Image))
    np.testing.assert_array_equal(volume.data, values)
    volume = read_ct(write_nifti(tmp_path / "b.nii.gz", values[..., None]))
    assert volume.grid.shape == values.shape
    np.testing.assert_array_equal(volume.data, values)


def test_data_may_be_changed_without_changing_what_is_written(tmp_path):
    path = write_nifti(tmp_path / "ct.nii", ct_values(dtype="float32"))
    volume = read_ct(path)
    volume.data[:] = 7
    write_ct(tmp_path / "out.nii", volume, volume.data, np.zeros(volume.grid.shape, bool))
    assert _bytes(tmp_path / "out.nii") == _bytes(path)


def _text(path):
    path.write_text("this is no volume")


def _truncated(path):
    write_nifti(path, ct_values((30, 30, 30)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _flipped_bit(path):
    write_nifti(path, ct_values((30, 30, 30)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _header_only(path):
    path.write_bytes(b"")


def _infinite(path):
    values = ct_values(dtype="float32")
    values[2, 2, 2] = np.inf
    write_nifti(path, values)


def _nan(path):
    values = ct_values(dtype="float32")
    values[2, 2, 2] = np.nan
    write_nifti(path, values)


def _singular(path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(ct_values(), np.eye(4), header)
    image.header["srow_x"] = 0
    image.header["sform_code"] = 1
    # The image would write its own affine over the header's.
    with path.open("wb") as file:
        image.header.set_data_shape((5, 6, 4))
        image.header["vox_offset"] = 352
        raw = image.header.binaryblock + b"\0" * 4 + ct_values().tobytes(order="F")
        file.write(gzip.compress(raw) if path.name.endswith(".gz") else raw)


def _noise():
    return np.random.default_rng(0).random((4, 4, 4)).astype("float32")


BAD = {
    "text": (_text, "damaged or not NIfTI"),
    "empty": (_header_only, "damaged or not NIfTI"),
    "truncated": (_truncated, "damaged|truncated"),
    "nan": (_nan, "NaN"),
    "infinite": (_infinite, "infinite"),
    "singular": (_singular, "singular affine"),
    "4-D": (lambda p: write_nifti(p, ct_values((3, 3, 3, 2))), "not 3-D"),
    "2-D": (lambda p: write_nifti(p, ct_values((3, 3))), "not 3-D"),
    "unit": (
        lambda p: write_nifti(p, _noise()),
        "windowed or scaled",
    ),
    "signed": (
        lambda p: write_nifti(p, 2 * _noise() - 1),
        "windowed or scaled",
    ),
    "bytes": (lambda p: write_nifti(p, np.arange(256, dtype="uint8").reshape(8, 8, 4)), r"0 to 255.*Hounsfield"),
    "unscaled": (lambda p: write_nifti(p, (ct_values() + 1024).astype("uint16")), "rescale intercept"),
    "color": (lambda p: write_nifti(p, np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "stores"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", BAD)
def test_refuses_what_is_no_ct_in_one_sentence(tmp_path, kind, name):
    make, message = BAD[kind]
    make(tmp_path / name)
    with pytest.raises(VolumeError, match=message) as caught:
        read_ct(tmp_path / name)
    text = str(caught.value)
    assert str(tmp_path / name) in text
    assert "\n" not in text
    assert text.endswith(".")


def test_refuses_a_corrupted_archive_by_its_checksum(tmp_path):
    _flipped_bit(tmp_path / "ct.nii.gz")
    with pytest.raises(VolumeError, match="damaged"):
        read_ct(tmp_path / "ct.nii.gz")


def test_refuses_a_zero_sized_volume(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"] = [3, 4, 0, 4, 1, 1, 1, 1]
    header["vox_offset"] = 352
    (tmp_path / "ct.nii").write_bytes(header.binaryblock + b"\0" * 4)
    with pytest.raises(VolumeError, match=r"holds no voxels|damaged"):
        read_ct(tmp_path / "ct.nii")


def test_refuses_missing_files_folders_and_other_formats(tmp_path):
    for path, message in (
        (tmp_path / "missing.nii.gz", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(VolumeError, match=message):
            read_ct(path)
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    with pytest.raises(VolumeError, match=r"convert it to \.nii"):
        read_ct(tmp_path / "scan.dcm")


def test_crops_without_air_and_windowed_hu_pass(tmp_path):
    """Fat, or the noise of soft tissue, is enough; the networks' own window does not reach the limit either."""
    tissue = np.random.default_rng(0).normal(20, 40, (20, 20, 20)).astype("int16")
    assert tissue.min() < -100
    read_ct(write_nifti(tmp_path / "a.nii.gz", tissue))
    read_ct(write_nifti(tmp_path / "b.nii.gz", ct_values().clip(-175, 250)))


def test_the_header_alone_gives_the_grid(tmp_path):
    path = write_nifti(tmp_path / "ct.nii.gz", ct_values(), _oblique())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:360]))  # the voxels are gone
    assert read_grid(path).shape == (5, 6, 4)
    with pytest.raises(VolumeError, match="truncated"):
        read_ct(path)
    path = write_nifti(tmp_path / "ct.nii", ct_values(), _oblique())
    path.write_bytes(path.read_bytes()[:360])  # its size says so
    with pytest.raises(VolumeError, match="truncated"):
        read_grid(path)


# Labels


@pytest.mark.parametrize(("top", "expected"), [(3, np.uint8), (300, np.uint16), (70000, np.uint32)])
def test_labels_take_the_least_type(tmp_path, top, expected):
    labels = np.zeros((4, 4, 4), "int32")
    labels[1, 2, 3] = top
    volume = read_labels(write_nifti(tmp_path / "l.nii.gz", labels, endianness=">"))
    assert volume.data.dtype == expected
    np.testing.assert_array_equal(volume.data, labels)


def test_labels_stored_as_floats_or_scaled(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (4, 4, 4))
    volume = read_labels(write_nifti(tmp_path / "a.nii.gz", labels.astype("float64")))
    assert volume.data.dtype == np.uint8
    np.testing.assert_array_equal(volume.data, labels)
    volume = read_labels(write_nifti(tmp_path / "b.nii.gz", labels.astype("uint8"), slope=2.0, inter=1.0))
    np.testing.assert_array_equal(volume.data, labels * 2 + 1)


@pytest.mark.parametrize(
    ("value", "message"), [(0.5, "fractions"), (-1, "not a label map"), (np.nan, "not a label map")]
)
def test_refuses_what_is_not_a_label_map(tmp_path, value, message):
    labels = np.ones((4, 4, 4), "float32")
    labels[0, 0, 0] = value
    with pytest.raises(VolumeError, match=message):
        read_labels(write_nifti(tmp_path / "l.nii.gz", labels))


def test_check_same_grid(tmp_path):
    ct = read_ct(write_nifti(tmp_path / "ct.nii.gz", ct_values()))
    labels = np.zeros((5, 6, 4), "uint8")
    check_same_grid(ct, read_labels(write_nifti(tmp_path / "same.nii.gz", labels)))
    other = read_labels(write_nifti(tmp_path / "other.nii.gz", labels, LPS))
    with pytest.raises(GridMismatchError, match=r"ct\.nii\.gz and .*other\.nii\.gz differ in orientation"):
        check_same_grid(ct, other)


# Writing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int16"},
        {"dtype": "int16", "endianness": ">"},
        {"dtype": "uint16", "slope": 1.0, "inter": -1024.0},
        {"dtype": "uint8", "slope": 9.7, "inter": -1100.0},
        {"dtype": "float32", "codes": (0, 1)},
        {"dtype": "float64", "codes": (3, 0), "endianness": ">"},
        {"dtype": "int16", "cls": nib.Nifti2Image},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_only_the_change_changes(tmp_path, name, options):
    """An unchanged CT is the same file byte for byte, and a changed one differs in the changed values alone."""
    options = dict(options)
    dtype = np.dtype(options.pop("dtype"))
    stored = np.random.default_rng(1).integers(0, 255, (5, 6, 4)) if dtype.kind == "u" else ct_values()
    path = write_nifti(tmp_path / name, stored.astype(dtype), _oblique(), **options)
    original = read_ct(path)
    changed = np.zeros(original.grid.shape, bool)
    write_ct(tmp_path / f"same_{name}", original, original.data + 50, changed)
    assert _bytes(tmp_path / f"same_{name}") == _bytes(path)

    changed[1:3, 2:5, 1:3] = True
    write_ct(tmp_path / f"new_{name}", original, original.data + 50, changed)
    before, after = nib.load(path), nib.load(tmp_path / f"new_{name}")
    raw_before, raw_after = before.dataobj.get_unscaled(), after.dataobj.get_unscaled()
    assert raw_after.dtype == raw_before.dtype
    np.testing.assert_array_equal(raw_after[~changed], raw_before[~changed])
    slope, inter = original.stored.slope, original.stored.inter
    step = slope if dtype.kind in "iu" else 1e-4
    top = np.iinfo(dtype).max * slope + inter if dtype.kind in "iu" else np.inf
    expected = np.minimum(original.data[changed].astype(float) + 50, top)
    np.testing.assert_allclose(after.get_fdata()[changed], expected, atol=step / 2 + 1e-4)
    assert _bytes(tmp_path / f"new_{name}").startswith(original.stored.preamble)
    assert len(original.stored.preamble) == before.dataobj.offset


BOX = Box((1, 2, 0), (4, 5, 3))


@pytest.mark.parametrize("name", NAMES)
def test_a_part_is_written_as_the_whole_would_be(tmp_path, name):
    original = read_ct(write_nifti(tmp_path / name, ct_values(), _oblique()))
    changed, hu = np.zeros(original.grid.shape, bool), original.data + 50
    changed[BOX.slices] = np.random.default_rng(0).random(BOX.shape) < 0.5
    write_ct(tmp_path / f"whole_{name}", original, hu, changed)
    write_ct(tmp_path / f"part_{name}", original, hu[BOX.slices], changed[BOX.slices], box=BOX)
    assert _bytes(tmp_path / f"part_{name}") == _bytes(tmp_path / f"whole_{name}")
    assert _bytes(tmp_path / f"part_{name}") != _bytes(tmp_path / name)


def test_a_part_must_lie_in_the_grid_and_have_the_size_of_its_box(tmp_path):
    original = read_ct(write_nifti(tmp_path / "ct.nii", ct_values()))
    out = tmp_path / "out.nii"
    hu, changed = np.zeros(BOX.shape), np.ones(BOX.shape, bool)
    for box in (BOX.shifted((2, 0, 0)), BOX.shifted((0, 0, -1))):
        with pytest.raises(ValueError, match="leaves the original's grid"):
            write_ct(out, original, hu, changed, box=box)
        with pytest.raises(ValueError, match="leaves the original's grid"):
            same_outside(original, original.path, changed, box=box)
    with pytest.raises(ValueError, match="must have the shape"):
        write_ct(out, original, original.data, changed, box=BOX)
    with pytest.raises(ValueError, match="must have the shape"):
        write_ct(out, original, hu, changed)
    with pytest.raises(ValueError, match="boolean"):
        same_outside(original, original.path, changed.astype(np.uint8), box=BOX)
    assert not out.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_what_is_the_same_outside_the_change(tmp_path, name, dtype):
    path = write_nifti(tmp_path / name, ct_values(dtype=dtype), _oblique())
    original = read_ct(path)
    changed = np.zeros(BOX.shape, bool)
    changed[1, 1, 1] = True  # voxel (2, 3, 1)
    whole = np.zeros(original.grid.shape, bool)
    whole[2, 3, 1] = True

    def altered(voxel):
        values = np.array(nib.load(path).dataobj.get_unscaled())
        values[voxel] += 1
        return write_nifti(tmp_path / f"altered_{name}", values, _oblique())

    nothing = np.zeros(original.grid.shape, bool)
    assert same_outside(original, path, nothing)
    inside = altered((2, 3, 1))
    assert same_outside(original, inside, changed, box=BOX)
    assert same_outside(original, inside, whole)
    assert not same_outside(original, inside, nothing)
    # In the box but not in the change, in the change of a box elsewhere, beside the box, below it.
    assert not same_outside(original, inside, changed, box=BOX.shifted((1, 0, 0)))
    for voxel in ((2, 3, 2), (1, 3, 1), (0, 3, 1), (2, 0, 1), (2, 3, 3)):
        assert not same_outside(original, altered(voxel), changed, box=BOX)


def test_bits_and_headers_count(tmp_path):
    """Minus zero is another value than zero, and so is a file of another type or affine."""
    values = ct_values(dtype=np.float32)
    values[0, 0, 0] = 0.0
    original = read_ct(write_nifti(tmp_path / "ct.nii", values))
    nothing = np.zeros(original.grid.shape, bool)
    values[0, 0, 0] = -0.0
    assert not same_outside(original, write_nifti(tmp_path / "minus.nii", values), nothing)
    values[0, 0, 0] = 0.0
    assert same_outside(original, write_nifti(tmp_path / "same.nii", values), nothing)
    assert not same_outside(original, write_nifti(tmp_path / "type.nii", values.astype(np.float64)), nothing)
    assert not same_outside(original, write_nifti(tmp_path / "place.nii", values, LPS), nothing)
    with pytest.raises(VolumeError, match="does not exist"):
        same_outside(original, tmp_path / "none.nii", nothing)


def test_extensions_are_kept(tmp_path):
    image = nib.Nifti1Image(ct_values(), LPS)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept as it is"))
    image.to_filename(tmp_path / "ct.nii.gz")
    original = read_ct(tmp_path / "ct.nii.gz")
    write_ct(tmp_path / "out.nii", original, original.data, np.ones(original.grid.shape, bool))
    assert nib.load(tmp_path / "out.nii").header.extensions[0].get_content() == b"kept as it is"


def test_rounds_and_clips_to_the_stored_type(tmp_path):
    original = read_ct(write_nifti(tmp_path / "ct.nii", np.full((2, 2, 2), 100, "uint8"), slope=2.0, inter=-1000.0))
    hu = np.array([-5000, -995, -994.9, -490, 5000, -998, -1000, -489.1]).reshape(2, 2, 2)
    write_ct(tmp_path / "out.nii", original, hu, np.ones(hu.shape, bool))
    stored = read_ct(tmp_path / "out.nii").stored.values
    assert stored.ravel().tolist() == [0, 2, 3, 255, 255, 1, 0, 255]


def test_the_last_axis_of_one_is_kept(tmp_path):
    original = read_ct(write_nifti(tmp_path / "ct.nii.gz", ct_values()[..., None]))
    changed = np.zeros(original.grid.shape, bool)
    changed[3, 1, 2] = True
    write_ct(tmp_path / "out.nii.gz", original, np.full(original.grid.shape, 42.0), changed)
    after = nib.load(tmp_path / "out.nii.gz")
    assert after.shape == (5, 6, 4, 1)
    expected = original.data.copy()
    expected[3, 1, 2] = 42
    np.testing.assert_array_equal(after.get_fdata()[..., 0], expected)


def test_same_volume_same_bytes(tmp_path):
    original = read_ct(write_nifti(tmp_path / "ct.nii.gz", ct_values()))
    changed = np.ones(original.grid.shape, bool)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_ct(tmp_path / name, original, original.data, changed)
    written = (tmp_path / "a.nii.gz").read_bytes()
    assert written == (tmp_path / "b.nii.gz").read_bytes()
    assert written[3:8] == bytes(5)  # neither name nor time


def test_never_overwrites_its_input(tmp_path):
    path = write_nifti(tmp_path / "ct.nii.gz", ct_values())
    original, before = read_ct(path), path.read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(path)
    for target in (path, tmp_path / "link.nii.gz"):
        with pytest.raises(VolumeError, match="own input"):
            write_ct(target, original, original.data, np.zeros(original.grid.shape, bool))
        with pytest.raises(VolumeError, match="own input"):
            write_labels(target, np.zeros(original.grid.shape, np.uint8), original)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("read", "bytes_of_each"), [(read_ct, 2 + 4), (read_labels, 2 + 1)])
def test_what_reading_makes_of_a_file_must_fit_into_memory_too(tmp_path, monkeypatch, read, bytes_of_each):
    """Beside its 16-bit values: HU of 32 bits, or labels of 8."""
    values = ct_values((8, 8, 8)) if read is read_ct else np.ones((8, 8, 8), np.int16)
    file = write_nifti(tmp_path / "a.nii", values, LPS)
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    monkeypatch.setattr(module, "free_memory_bytes", lambda: values.size * bytes_of_each)
    read(file)
    monkeypatch.setattr(module, "free_memory_bytes", lambda: values.size * bytes_of_each - 1)
    with pytest.raises(VolumeError, match="GiB of memory"):
        read(file)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    original = read_ct(write_nifti(tmp_path / "ct.nii.gz", ct_values()))
    out = tmp_path / "out"
    with pytest.raises(VolumeError, match="NaN"):
        write_ct(out / "a.nii.gz", original, original.data * np.nan, np.ones(original.grid.shape, bool))

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_ct(out / "a.nii.gz", original, original.data, np.ones(original.grid.shape, bool))
    with pytest.raises(OSError, match="no space"):
        write_labels(out / "a.nii.gz", np.zeros(original.grid.shape, np.uint8), original)
    assert not out.exists()


def test_refuses_wrong_arrays_and_names(tmp_path):
    original = read_ct(write_nifti(tmp_path / "ct.nii.gz", ct_values()))
    whole = np.ones(original.grid.shape, bool)
    with pytest.raises(ValueError, match="shape"):
        write_ct(tmp_path / "a.nii.gz", original, original.data[1:], whole)
    with pytest.raises(ValueError, match="boolean"):
        write_ct(tmp_path / "a.nii.gz", original, original.data, whole.astype(int))
    with pytest.raises(VolumeError, match=r"end it in \.nii"):
        write_ct(tmp_path / "a.mha", original, original.data, whole)
    with pytest.raises(ValueError, match="integers"):
        write_labels(tmp_path / "a.nii.gz", original.data, original)
    labels = read_labels(write_nifti(tmp_path / "l.nii.gz", np.zeros((5, 6, 4), "uint8")))
    with pytest.raises(ValueError, match="read as labels"):
        write_ct(tmp_path / "a.nii.gz", labels, original.data, whole)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("uint8", "uint8"), ("uint16", "uint16"), ("bool", "uint8"), ("int64", "uint8")]
)
def test_labels_on_the_grid_of_a_ct(tmp_path, dtype, stored):
    path = write_nifti(tmp_path / "ct.nii.gz", np.full((5, 6, 4), 3, "int16"), _oblique(), slope=2.0, inter=-1024.0)
    ct = read_ct(path)
    labels = np.random.default_rng(0).integers(0, 2, ct.grid.shape).astype(dtype)
    write_labels(tmp_path / "labels.nii.gz", labels, ct)
    image = nib.load(tmp_path / "labels.nii.gz")
    assert image.get_data_dtype() == stored
    np.testing.assert_array_equal(image.get_fdata(), labels)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 1)
    volume = read_labels(tmp_path / "labels.nii.gz")
    check_same_grid(ct, volume)
    np.testing.assert_array_equal(volume.grid.affine, ct.grid.affine)


def test_labels_of_a_big_endian_scan(tmp_path):
    ct = read_ct(write_nifti(tmp_path / "ct.nii.gz", ct_values(), endianness=">"))
    labels = np.arange(120, dtype="uint16").reshape(5, 6, 4) * 500
    write_labels(tmp_path / "labels.nii.gz", labels, ct)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz").data, labels)
    assert nib.load(tmp_path / "labels.nii.gz").header.endianness == ">"


@settings(max_examples=15, deadline=None)
@given(
    signs=st.tuples(*[st.sampled_from((-1, 1))] * 3),
    axes=st.permutations((0, 1, 2)),
    spacing=st.tuples(*[st.floats(0.5, 4)] * 3),
    corner=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_a_tumor_made_in_model_space_touches_nothing_else(tmp_path_factory, signs, axes, spacing, corner):
    """The whole way: read, change a box in model space, carry the change back, write, read."""
    folder = tmp_path_factory.mktemp("way")
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs) @ np.diag(spacing)
    affine[:3, :3] = affine[:3, axes]
    original = read_ct(write_nifti(folder / "ct.nii", ct_values((6, 7, 5)), affine))
    space = ModelSpace(original.grid)
    box = Box(corner, np.array(corner) + 3).clipped(space.grid.shape)
    change, native_box = space.change_to_native(np.full(box.shape, 200, np.float32), box=box)
    hu = original.data.copy()
    hu[native_box.slices] += change
    changed = np.zeros(hu.shape, bool)
    changed[native_box.slices] = change != 0
    write_ct(folder / "out.nii", original, hu, changed)
    result = read_ct(folder / "out.nii")
    np.testing.assert_array_equal(result.stored.values[~changed], original.stored.values[~changed])
    assert np.abs(result.data - hu).max() <= 0.5
    assert (result.data[changed] >= original.data[changed]).all()


# Real scans


def _sarcoma(real_data):
    return real_data / "sarcoma" / "STS_001"


@pytest.mark.data
def test_every_real_scan_is_accepted(real_data):
    pairs = [(real_data / "abdomen" / "ct.nii.gz", real_data / "abdomen" / "organs.nii.gz")]
    pairs += [(f / "ct.nii.gz", f / "tumor.nii.gz") for f in sorted((real_data / "sarcoma").iterdir())]
    for image, labels in pairs:
        check_same_grid(read_ct(image), read_labels(labels))


@pytest.mark.data
def test_round_trip_of_an_lps_scan(real_data, tmp_path):
    ct, tumor = read_ct(_sarcoma(real_data) / "ct.nii.gz"), read_labels(_sarcoma(real_data) / "tumor.nii.gz")
    assert ct.grid.axcodes == "LPS"
    space = ModelSpace(ct.grid)
    assert space.grid.axcodes == "RAS"
    model = space.to_model(tumor.data, kind="labels")
    # The volume in milliliters and the center in millimeters stay.
    assert (model > 0).sum() == pytest.approx((tumor.data > 0).sum() * np.prod(ct.grid.spacing_mm), rel=0.01)
    centers = [
        nib.affines.apply_affine(grid.affine, np.argwhere(labels > 0).mean(axis=0))
        for grid, labels in ((ct.grid, tumor.data), (space.grid, model))
    ]
    np.testing.assert_allclose(*centers, atol=0.3)
    back = space.to_native(model, kind="labels")
    both = ((back > 0) & (tumor.data > 0)).sum()
    assert 2 * both / ((back > 0).sum() + (tumor.data > 0).sum()) > 0.99
    image = space.to_native(space.to_model(ct.data, kind="image"), kind="image")
    assert np.abs(image - ct.data).mean() < 10
    write_ct(tmp_path / "same.nii.gz", ct, image, np.zeros(ct.grid.shape, bool))
    assert _bytes(tmp_path / "same.nii.gz") == _bytes(ct.path)


@pytest.mark.data
def test_round_trip_of_the_abdomen(real_data, tmp_path):
    ct, organs = (read_ct(real_data / "abdomen" / "ct.nii.gz"), read_labels(real_data / "abdomen" / "organs.nii.gz"))
    space = ModelSpace(ct.grid)
    # 3 mm is three whole steps: every native voxel is a model voxel, and comes back as it was.
    np.testing.assert_array_equal(space.to_native(space.to_model(ct.data, kind="image"), kind="image"), ct.data)
    model = space.to_model(organs.data, kind="labels")
    np.testing.assert_array_equal(space.to_native(model, kind="labels"), organs.data)
    write_ct(tmp_path / "same.nii.gz", ct, ct.data, np.zeros(ct.grid.shape, bool))
    assert _bytes(tmp_path / "same.nii.gz") == _bytes(ct.path)


@pytest.mark.parametrize("options", [{}, {"slope": 0.5, "inter": -1024.0}])
def test_as_stored_is_what_comes_back_from_a_file(tmp_path, options):
    values = np.zeros((4, 3, 2), np.int16) if not options else np.full((4, 3, 2), 40, np.int16)
    values[0, 0, 0] = -1000 if not options else 0
    original = read_ct(write_nifti(tmp_path / "a.nii.gz", values, **options))
    hu = original.data + np.linspace(-3.3, 40000, 24, dtype=np.float32).reshape(4, 3, 2)
    write_ct(tmp_path / "b.nii.gz", original, hu, np.ones(hu.shape, bool))
    expected = read_ct(tmp_path / "b.nii.gz").data
    np.testing.assert_array_equal(as_stored(original, hu), expected)
    assert (expected != hu).any()
