"""Fingerprints: what leaves a scan the same, what makes it another, and what is suspected."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from difftumor.scans.fingerprint import Fingerprint, fingerprint
from difftumor.scans.nifti import read_ct, volume_of
from tests.nifti import LPS, ct_values, write_nifti


def of(values, affine=None):
    return fingerprint(volume_of(values, np.eye(4) if affine is None else affine))


@pytest.fixture(scope="module")
def body():
    """A scan with structures of one to several centimeters: smooth noise, 120 mm wide at 2 mm."""
    noise = np.random.default_rng(0).normal(0, 1, (60, 56, 64))
    smooth = sum(size**1.5 * ndimage.gaussian_filter(noise, size) for size in (2, 4))
    return np.rint(60 * smooth / smooth.std() - 20).astype(np.int16)


SPACING = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_name_type_compression_and_description_do_not_matter(tmp_path, dtype):
    values = ct_values((9, 8, 7))
    first = write_nifti(tmp_path / "a.nii.gz", values, LPS)
    second = write_nifti(tmp_path / "b.nii", values.astype(dtype), LPS, codes=(1, 1), endianness=">")
    scaled = write_nifti(tmp_path / "c.nii", (values + 1024).astype(np.uint16), LPS, slope=1, inter=-1024)
    prints = [fingerprint(read_ct(file)) for file in (first, second, scaled)]
    assert [prints[0].likeness(other) for other in prints] == ["identical"] * 3
    assert len({str(each) for each in prints}) == 1


def test_the_same_scan_stored_along_other_axes_is_identical():
    values = ct_values((9, 8, 7))
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]))
    for codes in ("LPS", "SAR", "PIL"):
        turned = image.as_reoriented(nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)))  # fmt: skip
        other = of(np.asarray(turned.dataobj), turned.affine)
        assert of(values, image.affine).likeness(other) == "identical"


def test_every_flip_and_permutation_is_the_same_content():
    values = ct_values((6, 6, 5))
    own = of(values)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = values.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
            expected = "identical" if (order, flips) == ((0, 1, 2), (1, 1, 1)) else "flipped"
            assert own.likeness(of(turned)) == expected


def test_another_header_is_the_same_scan():
    values = ct_values((9, 8, 7))
    moved = np.eye(4)
    moved[:3, 3] = 5
    assert of(values).likeness(of(values, moved)) == "other header"
    assert of(values).likeness(of(values, np.diag([1.0, 1.0, 3.0, 1.0]))) == "other header"
    assert of(values).likeness(of(values, LPS)) == "flipped"


def test_symmetric_scans_have_one_fingerprint_whatever_their_turn():
    cross = np.full((5, 5, 5), -1000, np.int16)
    cross[2, 2, :] = cross[2, :, 2] = cross[:, 2, 2] = 40
    assert of(cross).likeness(of(cross[::-1].transpose(2, 0, 1))) == "identical"
    half = cross.copy()
    half[0, 1, 2] = half[4, 3, 2] = 7  # every profile is the same from both ends, the scan is not
    assert of(half).likeness(of(half[::-1])) == "flipped"


def test_trivial_scans_differ():
    # Alike in histogram, then in histogram and all profiles.
    def dots(*places):
        values = np.full((6, 6, 6), -1000, np.int16)
        for place in places:
            values[place] = 40
        return of(values)

    assert dots((1, 1, 1)).likeness(dots((1, 1, 2))) is None
    assert dots((0, 0, 0), (1, 1, 1), (2, 2, 2)).likeness(dots((0, 1, 2), (1, 2, 0), (2, 0, 1))) is None
    assert of(np.zeros((3, 4, 5), np.int16) - 500).likeness(of(np.zeros((3, 4, 5), np.int16) - 501)) is None


def test_one_voxel_makes_another_content_and_a_suspicion(body):
    other = body.copy()
    other[30, 30, 30] += 1
    assert of(body, SPACING).content != of(other, SPACING).content
    assert of(body, SPACING).likeness(of(other, SPACING)) == "suspected"


@pytest.mark.parametrize(
    "change",
    [
        lambda values: (values[6:, 4:, 3:-5], SPACING),
        lambda values: (values.clip(-160, 240), SPACING),
        lambda values: (ndimage.zoom(values, 2 / 3, order=1, mode="nearest", grid_mode=True), np.diag([3.0, 3, 3, 1])),
    ],
    ids=["cropped", "windowed", "resampled"],
)
def test_copies_are_suspected(body, change):
    assert of(body, SPACING).likeness(of(*change(body))) == "suspected"


def test_other_scans_are_not_suspected(body):
    assert of(body, SPACING).likeness(of(np.ascontiguousarray(body[::-1, ::-1, ::-1]) + 1, SPACING)) is None


def test_text_holds_all_of_it(body):
    own = of(body, SPACING)
    read = Fingerprint.from_text(str(own))
    assert str(read) == str(own)
    assert len(str(own)) < 1000
    assert read.alike(own) == len(own.patterns) == 48
    for text in ("", "2" + str(own)[1:], str(own)[:-3], "1:a:b:c"):
        assert Fingerprint.from_text(text) is None


def test_scans_without_landmarks_are_never_suspected():
    flat = np.full((9, 9, 9), -500, np.int16)
    empty = of(flat)
    assert len(empty.patterns) == 0
    assert empty.likeness(of(flat[:-1])) is None
    assert Fingerprint.from_text(str(empty)) is not None
