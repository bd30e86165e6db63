"""Malformed and unusual NIfTI files: refused with the field or reason named, or read as nibabel reads them.

Never silently wrong, never an error of another kind; what is small on disk takes little memory.
"""

import gzip
import json
import struct
import subprocess
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import Case
from difftumor.datasets.validation.case import CaseRules, check_case
from difftumor.errors import VolumeError
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.nifti import read_ct, read_grid, read_labels, same_outside, write_ct, write_labels
from tests.conftest import REPOSITORY
from tests.nifti import ct_values, write_nifti

SHAPE = (6, 5, 8)
AFFINE = np.array([[0.8, 0, 0, -10], [0, 0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
VOXELS = 352
NAN, INF = float("nan"), float("inf")

# Where fields begin, and how they are stored, in NIfTI-1 and NIfTI-2.
ONE = {
    "sizeof_hdr": (0, "i"), "dim": (40, "h"), "intent_code": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"),
    "pixdim": (76, "f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"), "cal_max": (124, "f"), "glmax": (140, "i"), "descrip": (148, "80s"),
    "aux_file": (228, "24s"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "f"),
    "qoffset": (268, "f"), "srow_x": (280, "f"), "srow_y": (296, "f"), "srow_z": (312, "f"), "magic": (344, "4s"),
    "extended": (348, "B"), "voxels": (VOXELS, "h"),
}  # fmt: skip
TWO = {
    "sizeof_hdr": (0, "i"), "magic": (4, "8s"), "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "q"),
    "pixdim": (104, "d"), "vox_offset": (168, "q"), "scl_slope": (176, "d"), "scl_inter": (184, "d"),
    "qform_code": (344, "i"), "sform_code": (348, "i"), "quatern": (352, "d"), "srow_x": (400, "d"),
    "xyzt_units": (500, "i"),
}  # fmt: skip
FINE = None  # read as nibabel reads it
BEHIND = b"\x07" * 20
ONLY_QFORM = {"codes": (0, 1)}
NO_FORM = {"codes": (0, 0)}

# Name: what goes into the fields of a sound NIfTI-1 file, how the file is made, and what is said.
FIELDS = {
    "header of 0 bytes": ({"sizeof_hdr": 0}, {}, "sizeof_hdr"),
    "header of 347 bytes": ({"sizeof_hdr": 347}, {}, "sizeof_hdr"),
    "header of -348 bytes": ({"sizeof_hdr": -348}, {}, "sizeof_hdr"),
    "header of NIfTI-2's size": ({"sizeof_hdr": 540}, {}, "magic"),
    "no magic": ({"magic": b""}, {}, r"Analyze, or damaged \(magic b''\)"),
    "magic of a pair": ({"magic": b"ni1"}, {}, "header of a pair of files"),
    "magic of version 9": ({"magic": b"n+9"}, {}, "magic b'n.9'"),
    "no axes": ({"dim": 0}, {}, r"0 axes \(dim\[0\]\)"),
    "8 axes": ({"dim": 8}, {}, r"8 axes \(dim\[0\]\)"),
    "-3 axes": ({"dim": -3}, {}, r"-3 axes \(dim\[0\]\)"),
    "768 axes, as in the other byte order": ({"dim": 768}, {}, r"768 axes"),
    "1 axis": ({"dim": 1}, {}, r"not 3-D \(shape \(6,\)\)"),
    "2 axes": ({"dim": 2}, {}, "not 3-D"),
    "4 axes, the last of 1": ({"dim": (4, *SHAPE, 1)}, {}, FINE),
    "4 axes, the last of 2": ({"dim": (4, 6, 5, 4, 2)}, {}, "not 3-D"),
    "5 axes of 1 and a vector": ({"dim": (5, 6, 5, 1, 1, 8)}, {}, "not 3-D"),
    "7 axes": ({"dim": (7, *SHAPE, 1, 1, 1, 1)}, {}, "not 3-D"),
    "sizes beyond those that count": ({"dim": (3, *SHAPE, 9, 9, 9, 9)}, {}, FINE),
    "a size of 0": ({"dim": (3, 6, 0, 8)}, {}, "holds no voxels"),
    "a negative size": ({"dim": (3, 6, -5, 8)}, {}, "holds no voxels"),
    "two negative sizes": ({"dim": (3, -6, -5, 8)}, {}, "holds no voxels"),
    "a vector of FreeSurfer": ({"dim": (3, -1, 1, 1)}, {}, "holds no voxels|truncated|damaged"),
    "the largest sizes": ({"dim": (3, 32767, 32767, 32767)}, {}, r"claims 7036"),
    "one slice more than there is": ({"dim": (3, 6, 5, 9)}, {}, "truncated"),
    "one slice fewer than there are": ({"dim": (3, 6, 5, 7)}, {}, r"more voxels than its header states \(dim"),
    "half of the slices": ({"dim": (3, 6, 5, 4)}, {}, "more voxels than its header states"),
    "axes in another order": ({"dim": (3, 5, 6, 8)}, {}, FINE),
    "type 0": ({"datatype": 0}, {}, "datatype 0"),
    "type of bits": ({"datatype": 1}, {}, "datatype 1"),
    "type of all": ({"datatype": 255}, {}, "datatype 255"),
    "type 3": ({"datatype": 3}, {}, r"datatype 3\b"),
    "type -4": ({"datatype": -4}, {}, "datatype -4"),
    "type of another size": ({"datatype": 16, "bitpix": 32}, {}, "truncated"),
    "type of half the size": ({"datatype": 2, "bitpix": 8}, {}, "more voxels than its header states"),
    "complex numbers": ({"datatype": 32, "bitpix": 64}, {}, r"stores complex64 values \(datatype\)"),
    "complex numbers of 256 bits": ({"datatype": 2048, "bitpix": 256}, {}, "datatype"),
    "colors": ({"datatype": 128, "bitpix": 24}, {}, "stores"),
    "colors with opacity": ({"datatype": 2304, "bitpix": 32}, {}, "stores"),
    "floats of 128 bits": ({"datatype": 1536, "bitpix": 128}, {}, "truncated|datatype"),
    "bits per voxel of another type": ({"bitpix": 32}, {}, FINE),
    "no bits per voxel": ({"bitpix": 0}, {}, FINE),
    "unsigned values": ({"datatype": 512}, {}, FINE),
    "voxels at 0": ({"vox_offset": 0.0}, {}, r"at byte 0, in its header \(vox_offset\)"),
    "voxels at 1": ({"vox_offset": 1.0}, {}, "at byte 1, in"),
    "voxels at 348": ({"vox_offset": 348.0}, {}, "at byte 348, in"),
    "voxels at -352": ({"vox_offset": -352.0}, {}, "at byte -352, in"),
    "voxels at a half": ({"vox_offset": 352.5}, {}, r"at byte 352.5 \(vox_offset\)"),
    "voxels at NaN": ({"vox_offset": NAN}, {}, "at byte nan"),
    "voxels at infinity": ({"vox_offset": INF}, {}, "at byte inf"),
    "voxels at minus infinity": ({"vox_offset": -INF}, {}, "at byte -inf"),
    "voxels at 1e30": ({"vox_offset": 1e30}, {}, "begin only at byte 1"),
    "voxels at 20 MB": ({"vox_offset": 2e7}, {}, "begin only at byte 20000000"),
    "voxels at the end": ({"vox_offset": 832.0}, {}, "truncated"),
    "voxels behind the end": ({"vox_offset": 10000.0}, {}, "truncated"),
    "voxels two bytes on": ({"vox_offset": 354.0}, {}, "truncated"),
    "voxels two bytes on, as many behind": ({"vox_offset": 354.0}, {"behind": b"\0\0"}, FINE),
    "an extension that is not there": ({"extended": 1}, {}, FINE),
    "an extension with too little room": ({"extended": 1, "vox_offset": 360.0}, {"behind": bytes(8)}, FINE),
    "no slope": ({"scl_slope": 0.0, "scl_inter": 9.0}, {}, FINE),
    "a slope of NaN": ({"scl_slope": NAN, "scl_inter": 9.0}, {}, FINE),
    "a negative slope": ({"scl_slope": -1.0, "scl_inter": 0.0}, {}, FINE),
    "slope and intercept": ({"scl_slope": 0.5, "scl_inter": -500.0}, {}, FINE),
    "an infinite slope": ({"scl_slope": INF}, {}, r"infinity \(scl_slope"),
    "an infinite intercept": ({"scl_slope": 1.0, "scl_inter": -INF}, {}, "infinity .*scl_inter"),
    "an intercept of NaN": ({"scl_slope": 1.0, "scl_inter": NAN}, {}, "scl_inter"),
    "a slope beyond floats": ({"scl_slope": 3e38, "scl_inter": 0.0}, {}, "infinite values"),
    "a slope of almost nothing": ({"scl_slope": 1e-38, "scl_inter": 0.0}, {}, "windowed or scaled"),
    "meters": ({"xyzt_units": 1}, {}, "spacing of 800 x 800 x 2500 mm"),
    "micrometers": ({"xyzt_units": 3}, {}, r"spacing of 0.0008 x 0.0008 x 0.0025 mm, .*xyzt_units"),
    "no unit": ({"xyzt_units": 0}, {}, FINE),
    "seconds besides": ({"xyzt_units": 10}, {}, FINE),
    "a unit that is none": ({"xyzt_units": 7}, {}, "no unit of length"),
    "an unknown unit of time": ({"xyzt_units": 0xC2}, {}, FINE),
    "sform code -1": ({"sform_code": -1}, {}, "sform_code is -1"),
    "sform code 6": ({"sform_code": 6}, {}, "sform_code is 6"),
    "sform code 512": ({"sform_code": 512}, {}, "sform_code is 512, not 0 to 5"),
    "sform code 4": ({"sform_code": 4}, {}, FINE),
    "qform code 77 beside an sform": ({"qform_code": 77}, {}, FINE),
    "qform code 77 without sform": ({"qform_code": 77}, ONLY_QFORM, "qform_code is 77"),
    "an sform of zeros": ({"srow_x": (0.0,) * 4}, {}, r"singular affine \(sform\)"),
    "an sform of two equal rows": ({"srow_y": (0.8, 0.0, 0.0, 0.0)}, {}, "singular affine"),
    "an sform with NaN": ({"srow_x": NAN}, {}, "singular affine"),
    "an sform with infinity": ({"srow_z": INF}, {}, "singular affine"),
    "an origin that is NaN": ({"srow_x": (0.8, 0.0, 0.0, NAN)}, {}, "singular affine"),
    "an origin 1e30 away": ({"srow_x": (0.8, 0.0, 0.0, 1e30)}, {}, "more than 100 m from the scanner's origin"),
    "an sform of 1e30": ({"srow_z": (0.0, 0.0, 1e30, 0.0)}, {}, "spacing of"),
    "an sform of 1e-30": ({"srow_z": (0.0, 0.0, 1e-30, 0.0)}, {}, "spacing of|singular"),
    "an sform of 3000 mm": ({"srow_z": (0.0, 0.0, 3000.0, 0.0)}, {}, "spacing of 0.8 x 0.8 x 3000 mm"),
    "a sheared sform": ({"srow_y": (0.0, 0.8, 1.0, 0.0)}, {}, "from square to each other"),
    "a mirrored sform": ({"srow_x": (-0.8, 0.0, 0.0, 5.0)}, {}, FINE),
    "a turned sform": ({"srow_x": (0.0, 0.8, 0.0, 0.0), "srow_y": (0.8, 0.0, 0.0, 0.0)}, {}, FINE),
    "a spacing of NaN beside an sform": ({"pixdim": (1.0, NAN, NAN, NAN)}, {}, FINE),
    "no spacing beside an sform": ({"pixdim": (1.0, 0.0, 0.0, 0.0)}, {}, FINE),
    "no spacing": ({"pixdim": (1.0, 0.8, 0.0, 2.5)}, ONLY_QFORM, r"0.8 x 0 x 2.5 \(pixdim\)"),
    "a negative spacing": ({"pixdim": (1.0, 0.8, -0.8, 2.5)}, ONLY_QFORM, r"0.8 x -0.8 x 2.5 \(pixdim\)"),
    "a negative spacing, no forms": ({"pixdim": (1.0, -0.8, 0.8, 2.5)}, NO_FORM, FINE),
    "a spacing of NaN": ({"pixdim": (1.0, 0.8, NAN, 2.5)}, ONLY_QFORM, "pixdim"),
    "an infinite spacing": ({"pixdim": (1.0, 0.8, INF, 2.5)}, NO_FORM, "pixdim"),
    "a spacing of 1e30": ({"pixdim": (1.0, 0.8, 1e30, 2.5)}, ONLY_QFORM, "spacing of|singular"),
    "a spacing of 3000 mm": ({"pixdim": (1.0, 3000.0, 3000.0, 3000.0)}, NO_FORM, "spacing of 3000 x 3000 x 3000 mm"),
    "a spacing alone": ({"pixdim": (1.0, 0.7, 0.8, 0.9)}, NO_FORM, FINE),
    "handedness 0": ({"pixdim": 0.0}, ONLY_QFORM, FINE),
    "handedness -1": ({"pixdim": -1.0}, ONLY_QFORM, FINE),
    "handedness -5": ({"pixdim": -5.0}, ONLY_QFORM, r"handedness is -5 \(pixdim\[0\], qfac\)"),
    "handedness NaN": ({"pixdim": NAN}, ONLY_QFORM, "qfac"),
    "a quaternion that is too long": ({"quatern": (1.0, 1.0, 1.0)}, ONLY_QFORM, "quatern_b"),
    "a quaternion with NaN": ({"quatern": NAN}, ONLY_QFORM, "quatern_b"),
    "a quaternion with infinity": ({"quatern": INF}, ONLY_QFORM, "quatern_b"),
    "half a turn": ({"quatern": (0.0, 0.0, 1.0)}, ONLY_QFORM, FINE),
    "a quaternion beside an sform": ({"quatern": NAN}, {}, FINE),
    "a place of NaN": ({"qoffset": NAN}, ONLY_QFORM, r"singular affine \(qform"),
    "a place 1e20 away": ({"qoffset": 1e20}, ONLY_QFORM, "more than 100 m"),
    "texts of other bytes": ({"descrip": b"\xff" * 80, "aux_file": b"=cmd|' /C calc'!A0"}, {}, FINE),
    "a display range of NaN": ({"cal_max": NAN, "glmax": -1}, {}, FINE),
    "an unknown intent": ({"intent_code": 31000}, {}, FINE),
    "a CT like a label map": ({"intent_code": 1002}, {}, FINE),
    "bytes behind": ({}, {"behind": BEHIND}, FINE),
    "a slice behind": ({}, {"behind": bytes(60)}, "more voxels than its header states"),
    "a megabyte behind": ({}, {"behind": bytes(2**20)}, "more voxels than its header states"),
    "big endian": ({}, {"endianness": ">"}, FINE),
}  # fmt: skip
# The same for NIfTI-2.
FIELDS_2 = {
    "sound": ({}, FINE),
    "no magic": ({"magic": b""}, "magic"),
    "magic of a pair": ({"magic": b"ni2\0\r\n\x1a\n"}, "pair of files"),
    "sizes of 2**32": ({"dim": (3, 2**32, 2**32, 1)}, "truncated"),
    "a size of 2**62": ({"dim": (3, 2**62, 4, 1)}, "truncated"),
    "a size of 2**63 - 1": ({"dim": (3, 2**63 - 1, 2, 1)}, "truncated"),
    "sizes of 10 000": ({"dim": (3, 10**4, 10**4, 10**4)}, "truncated"),
    "a size of -2**63": ({"dim": (3, -(2**63), 5, 8)}, "holds no voxels"),
    "9 axes": ({"dim": 9}, r"9 axes \(dim\[0\]\)"),
    "voxels at 2**62": ({"vox_offset": 2**62}, "begin only at byte"),
    "voxels at -1": ({"vox_offset": -1}, "in its header"),
    "voxels at 352": ({"vox_offset": 352}, "at byte 352, in its header"),
    "an infinite slope": ({"scl_slope": INF}, "scl_slope"),
    "sform code 2**30": ({"sform_code": 2**30}, "sform_code"),
    "an sform of 1e300": ({"srow_x": (1e300, 0.0, 0.0, 0.0)}, "spacing of|singular"),
    "an sform of 1e-300": ({"srow_x": (1e-300, 0.0, 0.0, 0.0)}, "spacing of|singular"),
    "a unit of 2**20": ({"xyzt_units": 2**20}, FINE),
    "type 77": ({"datatype": 77}, "datatype 77"),
}


def sound(path, *, behind=b"", cls=nib.Nifti1Image, **options):
    """Return the bytes of a file that is read."""
    written = write_nifti(path.with_name("sound.nii"), ct_values(SHAPE), AFFINE, cls=cls, **options)
    return bytearray(written.read_bytes() + behind)


def put(content, layout, fields, endianness="<"):
    for name, values in fields.items():
        at, kind = layout[name]
        values = values if isinstance(values, tuple) else (values,)
        packed = b"".join(struct.pack(f"{endianness}{kind}", value) for value in values)
        content[at : at + len(packed)] = packed
    return bytes(content)


def judge(path, content, message):
    """Read a file, and compare with nibabel or with what is to be said."""
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    if message is not None:
        with pytest.raises(VolumeError, match=message) as caught:
            read_ct(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    image = nib.load(path)
    ct = read_ct(path, accept_hu=True)
    np.testing.assert_allclose(ct.data.ravel(), np.asarray(image.dataobj, np.float64).ravel(), rtol=1e-6)
    np.testing.assert_allclose(ct.grid.affine, image.affine, rtol=1e-6)
    assert ct.grid.shape == image.shape[:3]
    assert read_grid(path).matches(ct.grid)
    # What was read can be written, and its labels too.
    unchanged = np.zeros(ct.grid.shape, bool)
    write_ct(path.with_name("again.nii"), ct, ct.data, unchanged)
    assert same_outside(ct, path.with_name("again.nii"), unchanged)
    write_labels(path.with_name("labels.nii.gz"), np.ones(ct.grid.shape, np.uint8), ct)
    assert read_labels(path.with_name("labels.nii.gz")).grid.matches(ct.grid)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::difftumor.scans.hounsfield.ScanWarning")
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_nifti_1(tmp_path, kind, name):
    fields, made, message = FIELDS[kind]
    content = sound(tmp_path / name, **made)
    judge(tmp_path / name, put(content, ONE, fields, made.get("endianness", "<")), message)


def test_signs_of_a_spacing_that_are_not_used_are_told(tmp_path):
    """Without sform and qform; whoever checks the scan is told once."""
    fields = {"pixdim": (1.0, -0.8, 0.8, 2.5)}
    (tmp_path / "ct.nii").write_bytes(put(sound(tmp_path / "ct.nii", **NO_FORM), ONE, fields))
    with pytest.warns(ScanWarning, match=r"ct\.nii states a voxel spacing of -0\.8 x 0\.8 x 2\.5 \(pixdim\)"):
        assert read_grid(tmp_path / "ct.nii").spacing_mm == pytest.approx((0.8, 0.8, 2.5))
    case = Case(id="ct", image=tmp_path / "ct.nii")
    (said,) = check_case(case, CaseRules(label_names={}, source=tmp_path, organs=(), accept_hu=True)).messages(
        "warning"
    )
    assert "the signs are not used" in said


@pytest.mark.parametrize("kind", FIELDS_2)
def test_fields_of_nifti_2(tmp_path, kind):
    fields, message = FIELDS_2[kind]
    content = sound(tmp_path / "ct.nii", cls=nib.Nifti2Image)
    judge(tmp_path / "ct.nii", put(content, TWO, fields), message)


def extended(tmp_path, sizes, *, room=64, content=b"x" * 56):
    """Return a file with header extensions of the sizes that are stated."""
    plain = sound(tmp_path / "ct.nii")
    inside = b"".join(struct.pack("<2i", size, 6) + content for size in sizes)[:room].ljust(room, b"\0")
    return put(plain[:VOXELS], ONE, {"extended": 1, "vox_offset": float(VOXELS + room)}) + inside + plain[VOXELS:]


EXTENSIONS = {
    "sound": ([64], {}, FINE),
    "two": ([32, 32], {"content": b"x" * 24}, FINE),
    "of no multiple of 16": ([60], {}, FINE),
    "of bytes that are no text": ([64], {"content": b"\xff\xfe\x00" * 18 + b"\xff\xff"}, FINE),
    "of 0 bytes": ([0], {}, r"claims 0 bytes \(esize\)"),
    "of 7 bytes": ([7], {}, "claims 7 bytes"),
    "of -16 bytes": ([-16], {}, "claims -16 bytes"),
    "of -2**31 bytes": ([-(2**31)], {}, "claims -2147483648 bytes"),
    "of 2**31 - 1 bytes": ([2**31 - 1], {}, "claims 2147483647 bytes"),
    "of 16 bytes more than there are": ([80], {}, "claims 80 bytes"),
    "with another behind that is too long": ([32, 9999], {"content": b"x" * 24}, "claims 9999 bytes"),
}


@pytest.mark.filterwarnings("ignore:Extension size is not a multiple")
@pytest.mark.parametrize("kind", EXTENSIONS)
def test_extensions(tmp_path, kind):
    sizes, options, message = EXTENSIONS[kind]
    judge(tmp_path / "ct.nii", extended(tmp_path, sizes, **options), message)


def deflated(content, level=1):
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()


# What becomes of the bytes of a gzip file, and of what is in it.
FILES = {
    "empty": (lambda raw: b"", "damaged or not NIfTI"),
    "one byte": (lambda raw: raw[:1], "damaged or not NIfTI"),
    "cut in the header": (lambda raw: deflated(raw[:200]), "damaged or not NIfTI"),
    "cut behind the header": (lambda raw: deflated(raw[:VOXELS]), "truncated"),
    "cut in the voxels": (lambda raw: deflated(raw[:-1]), "truncated"),
    "cut in what is compressed": (lambda raw: deflated(raw)[:-100], "damaged"),
    "without its checksum": (lambda raw: deflated(raw)[:-8], "damaged"),
    "with another checksum": (lambda raw: deflated(raw)[:-8] + bytes(4) + deflated(raw)[-4:], "damaged .*CRC"),
    "with another length": (lambda raw: deflated(raw)[:-4] + bytes(4), "damaged .*[Ll]ength"),
    "with a flipped bit": (lambda raw: _flipped(deflated(raw), 300), "damaged"),
    "with another method": (lambda raw: b"\x1f\x8b\x09" + deflated(raw)[3:], "damaged"),
    "not compressed": (lambda raw: raw, "damaged or not NIfTI"),
    "compressed twice": (lambda raw: deflated(deflated(raw)), "it is compressed by gzip"),
    "by zlib": (lambda raw: zlib.compress(raw), "damaged or not NIfTI"),
    "in two members": (lambda raw: deflated(raw[:400]) + deflated(raw[400:]), FINE),
    "in a member for each byte": (lambda raw: b"".join(deflated(raw[at : at + 1]) for at in range(len(raw))), FINE),
    "with an empty member behind": (lambda raw: deflated(raw) + deflated(b""), FINE),
    "with zeros behind": (lambda raw: deflated(raw) + bytes(512), FINE),
    "with other bytes behind": (lambda raw: deflated(raw) + b"more", "damaged"),
    "with another scan behind": (lambda raw: deflated(raw) * 2, "more voxels than its header states"),
    "with a name and a comment": (lambda raw: _named(raw), FINE),
    "a text": (lambda raw: b"this is no volume", "damaged or not NIfTI"),
    "a web page": (lambda raw: deflated(b"<html>" * 100), "damaged or not NIfTI"),
    "a DICOM file": (lambda raw: deflated(bytes(128) + b"DICM" + bytes(500)), "damaged or not NIfTI"),
    "zeros": (lambda raw: deflated(bytes(1000)), "damaged or not NIfTI"),
}


def _flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 16
    return bytes(changed)


def _named(raw):
    packed = deflated(raw)
    return packed[:3] + b"\x18" + packed[4:10] + b"name\0comment\0" + packed[10:]


@pytest.mark.parametrize("kind", FILES)
def test_compressed_files(tmp_path, kind):
    change, message = FILES[kind]
    path = tmp_path / "ct.nii.gz"
    raw = bytes(sound(tmp_path / "plain.nii"))
    path.write_bytes(change(raw))
    if message is not None:
        with pytest.raises(VolumeError, match=message) as caught:
            read_ct(path)
        assert str(path) in str(caught.value)
    else:
        np.testing.assert_array_equal(read_ct(path).data, ct_values(SHAPE))


def test_a_compressed_file_under_a_plain_name_is_told(tmp_path):
    (tmp_path / "ct.nii").write_bytes(deflated(bytes(sound(tmp_path / "plain.nii"))))
    with pytest.raises(VolumeError, match=r"compressed by gzip; name it \.nii\.gz"):
        read_ct(tmp_path / "ct.nii")


def test_pairs_of_analyze_and_nifti_are_refused_by_name(tmp_path):
    for number, kind in enumerate((nib.Nifti1Pair, nib.Spm99AnalyzeImage)):
        kind(ct_values(SHAPE), AFFINE).to_filename(tmp_path / f"pair{number}.img")
        for suffix in (".hdr", ".img"):
            with pytest.raises(VolumeError, match=r"is not a NIfTI file; convert it to \.nii"):
                read_ct(tmp_path / f"pair{number}{suffix}")
        (tmp_path / "ct.nii").write_bytes((tmp_path / f"pair{number}.hdr").read_bytes())
        with pytest.raises(VolumeError, match="magic"):
            read_ct(tmp_path / "ct.nii")


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<u4", ">i4", "<i8", ">u8", "<f4", ">f4", "<f8", ">f8"])
def test_types_of_values(tmp_path, dtype):
    values = (ct_values(SHAPE, np.int32) % 100).astype(dtype)
    path = write_nifti(
        tmp_path / "labels.nii.gz", abs(values.astype(float)).astype(dtype), endianness=">" if dtype[0] == ">" else "<"
    )
    np.testing.assert_array_equal(read_labels(path).data, np.abs(values.astype(float)))


@pytest.mark.parametrize(
    ("value", "message"), [(NAN, "nan"), (INF, "inf"), (-1, "-1"), (2.0**40, "1.09"), (0.5, "frac")]
)
def test_labels_that_are_none(tmp_path, value, message):
    values = np.zeros(SHAPE)
    values[3, 2, 1] = value
    with pytest.raises(VolumeError, match=f"not a label map.*{message}"):
        read_labels(write_nifti(tmp_path / "labels.nii", values))


BOMBS = """
import json, resource, sys
from pathlib import Path
from difftumor.errors import VolumeError
from difftumor.scans.nifti import read_ct, read_labels
import matplotlib.pyplot, scipy.ndimage  # whatever else might be loaded on the way
folder, said = Path(sys.argv[1]), {}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sorted(folder.glob("*.nii*")):
    for read in (read_ct, read_labels):
        try:
            read(file, beside=[folder / "mask" / "mask.nii.gz"] if "grid" in file.name else [])
        except VolumeError as error:
            said[f"{file.name} {read.__name__}"] = str(error)
print(json.dumps([said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""


def test_bombs_take_no_memory(tmp_path):
    head = sound(tmp_path / "plain.nii")[:VOXELS]
    (tmp_path / "plain.nii").unlink(missing_ok=True)
    (tmp_path / "sound.nii").unlink()
    zeros = deflated(bytes(2**24), 9) * 64  # a gigabyte in a megabyte
    gigabyte = put(bytearray(head), ONE, {"dim": (3, 1024, 1024, 512)})
    bombs = {
        "a_gigabyte_on_another_grid.nii.gz": deflated(gigabyte) + zeros,
        "b_gigabyte_behind.nii.gz": deflated(head + bytes(480)) + zeros,
        "c_gigabyte_before.nii.gz": deflated(put(bytearray(head), ONE, {"vox_offset": 2.0**30})) + zeros,
        "d_extension.nii.gz": deflated(
            put(bytearray(head), ONE, {"extended": 1, "vox_offset": 2.0**24}) + struct.pack("<2i", 2**31 - 1, 6)
        )
        + zeros,
        "e_terabytes.nii": put(bytearray(head), ONE, {"dim": (3, 32767, 32767, 32767)}) + bytes(480),
        "f_cut.nii.gz": deflated(gigabyte) + zeros[: len(zeros) // 16],
        "g_no_header.nii.gz": zeros,
        "h_cap.nii.gz": deflated(put(bytearray(head), ONE, {"dim": (3, 4096, 4096, 1024)})) + zeros * 33,
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "mask").mkdir()
    write_nifti(tmp_path / "mask" / "mask.nii.gz", np.ones(SHAPE, np.uint8), AFFINE)
    command = [sys.executable, "-c", BOMBS, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    said, more_mb = json.loads(done.stdout)
    assert len(said) == 2 * len(bombs)
    assert more_mb < 200
    words = {
        "a_": "differ in shape", "b_": "more voxels", "c_": "only at byte", "d_": "esize", "e_": "claims",
        "f_": "truncated", "g_": "sizeof_hdr", "h_": "more than the 16 GiB",
    }  # fmt: skip
    assert [key for key, text in said.items() if words[key[:2]] not in text] == []


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_4_kb_may_follow_the_voxels_and_no_more(tmp_path, name):
    values = ct_values((60, 60, 3))
    content = write_nifti(tmp_path / "sound.nii", values, AFFINE).read_bytes()
    judge(tmp_path / name, content + bytes(4096), FINE)
    judge(tmp_path / name, content + bytes(4097), "more voxels than its header states")
    # Nor as much as a slice: those of `SHAPE` have 60 bytes.
    judge(tmp_path / name, bytes(sound(tmp_path / name, behind=bytes(59))), FINE)


def test_the_table_is_as_large_as_promised():
    assert 2 * len(FIELDS) + len(FIELDS_2) + len(EXTENSIONS) + len(FILES) >= 250
