"""Tumors cut from scans and measured."""

import json

import numpy as np
import pytest

from difftumor.datasets.cases import read_cases
from difftumor.errors import GridMismatchError, VolumeError
from difftumor.evaluation.realism import tumor_samples
from difftumor.evaluation.realism.texture import measure_texture
from difftumor.evaluation.realism.tumor_samples import CropSpec, slices_of, tumor_crops, with_synthesis_labels
from difftumor.scans.appearance import measure_appearance
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import get_organ, resolve_labels
from tests.nifti import LPS, write_nifti

SPEC = CropSpec(size=16)
AFFINE = LPS @ np.diag([1.0, 1.0, 2.0, 1.0])


def scan() -> tuple[np.ndarray, np.ndarray]:
    ct = np.full((40, 36, 20), -1000, np.int16)
    ct[2:38, 2:34, :] = np.random.default_rng(0).integers(80, 120, (36, 32, 20))
    labels = np.zeros(ct.shape, np.uint8)
    labels[3:37, 3:33, 1:19] = 1
    labels[10:16, 12:18, 6:9] = 2
    labels[30:34, 6:8, 14:16] = 2
    labels[20, 20, 10] = 2  # one voxel is no tumor
    ct[labels == 2] -= 60
    return ct, labels


def listing(folder, ct, labels, affine=AFFINE, **more):
    write_nifti(folder / "a.nii.gz", ct, affine)
    write_nifti(folder / "a_labels.nii.gz", labels, affine)
    entry = {"image": "a.nii.gz", "label": "a_labels.nii.gz", "patient": "someone", **more}
    content = {"labels": {"background": 0, "liver": 1, "liver_tumor": 2}, "training": [entry]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def crops(folder, spec=SPEC, **more):
    cases = with_synthesis_labels(read_cases(folder))
    labels = resolve_labels(cases.label_names, get_organ("liver"))
    return [each for case in cases.cases for each in tumor_crops(case, cases, labels, spec, **more)]


def test_scans_that_are_not_in_hu_are_measured_only_if_they_are_accepted(tmp_path):
    ct, labels = scan()
    folder = listing(tmp_path, np.clip(ct, 0, None), labels)
    with pytest.raises(VolumeError, match="looks windowed or scaled"):
        crops(folder)
    with pytest.warns(ScanWarning, match="looks windowed or scaled"):
        assert len(crops(folder, accept_hu=True)) == 2


def test_tumors_are_measured_as_stored(tmp_path):
    ct, labels = scan()
    found = crops(listing(tmp_path, ct, labels))
    assert [(each.tumor.case, each.tumor.patient, each.tumor.number) for each in found] == [
        ("a", "someone", 1),
        ("a", "someone", 3),
    ]
    big = found[0].tumor
    mask = np.zeros(labels.shape, bool)
    mask[10:16, 12:18, 6:9] = True
    assert big.diameter_mm == pytest.approx(2 * (3 * 6 * 6 * 3 * 2 / 4 / np.pi) ** (1 / 3))
    assert big.voxel_mm == (1, 1, 2)
    hu = ct[mask]
    counts = np.bincount(hu + 1024, minlength=4096) / hu.size
    assert np.allclose(big.histogram_H, counts)
    appearance = measure_appearance(
        ct.astype(np.float32), mask, labels == 1, spacing_mm=(1, 1, 2), window=IntensityWindow()
    )
    assert np.array_equal(big.appearance.to_row(), appearance.to_row(), equal_nan=True)
    assert big.appearance.contrast_hu == pytest.approx(-60, abs=4)


def test_of_a_large_scan_only_what_counts_is_measured(tmp_path, monkeypatch):
    looked_at = []

    def measured(ct, tumor, organ, **options):
        looked_at.append(ct.shape)
        return measure_appearance(ct, tumor, organ, **options)

    monkeypatch.setattr(tumor_samples, "measure_appearance", measured)
    rng = np.random.default_rng(1)
    ct = rng.integers(80, 120, (90, 80, 40)).astype(np.int16)
    ct[0] = -1000
    labels = np.ones(ct.shape, np.uint8)
    places = (slice(40, 46), slice(30, 38), slice(15, 19)), (slice(60, 66), slice(34, 40), slice(2, 8))
    for place in places:
        labels[place] = 2
        ct[place] -= 50
    for each, place in zip(crops(listing(tmp_path, ct, labels)), places, strict=True):
        mask = np.zeros(ct.shape, bool)
        mask[place] = True
        options = {"spacing_mm": (1, 1, 2), "window": IntensityWindow()}
        whole = measure_appearance(ct.astype(np.float32), mask, labels == 1, **options)
        assert np.array_equal(each.tumor.appearance.to_row(), whole.to_row(), equal_nan=True)
        assert each.tumor.texture == measure_texture(ct[::-1, ::-1], mask[::-1, ::-1], **options)
    assert all(np.prod(shape) < ct.size / 3 for shape in looked_at)


def test_crops_are_centered_in_model_space_and_padded_with_air(tmp_path):
    ct, labels = scan()
    big, small = crops(listing(tmp_path, ct, labels))
    for each in (big, small):
        assert each.ct_hu_XYZ.shape == each.mask_XYZ.shape == (16, 16, 16)
        middle = np.argwhere(each.mask_XYZ).mean(axis=0)
        assert np.abs(middle - 7.5).max() <= 1
    # Between the outer voxel centers, 1 mm: of the three slices of 2 mm four gaps, and five places.
    assert big.extent == (6, 6, 5)
    # LPS became RAS: the file's first voxels lie at the right of the picture's array.
    whole = ct[::-1, ::-1][40 - 16 : 40 - 10, 36 - 18 : 36 - 12, 6:9]
    x, y, _ = (int(index) for index in np.argwhere(big.mask_XYZ).min(axis=0))
    inside = big.ct_hu_XYZ[x : x + 6, y : y + 6]
    # Every other slice of the crop is one of the scan.
    assert all(any(np.array_equal(inside[..., z], whole[..., k]) for z in range(16)) for k in range(3))
    # The small one lies at the border: beyond is air, in and outside of the scan.
    assert small.ct_hu_XYZ.min() == -1000


def test_orientation_does_not_matter(tmp_path):
    ct, labels = scan()
    one = crops(listing(tmp_path / "a", ct, labels))
    turned = np.ascontiguousarray(ct.transpose(2, 0, 1)[:, ::-1]), labels.transpose(2, 0, 1)[:, ::-1]
    affine = np.zeros((4, 4))
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[3, 3] = AFFINE[:3, 2], -AFFINE[:3, 0], AFFINE[:3, 1], 1
    other = crops(listing(tmp_path / "b", turned[0], np.ascontiguousarray(turned[1]), affine))
    assert len(one) == len(other) == 2
    for a in one:
        b = min(other, key=lambda each: abs(each.tumor.diameter_mm - a.tumor.diameter_mm))
        assert np.array_equal(a.ct_hu_XYZ, b.ct_hu_XYZ)
        assert np.array_equal(a.mask_XYZ, b.mask_XYZ)
        assert np.array_equal(a.tumor.histogram_H, b.tumor.histogram_H)
        assert a.tumor.texture == b.tumor.texture
        assert a.tumor.voxel_mm == b.tumor.voxel_mm
        assert np.allclose(a.tumor.appearance.to_row(), b.tumor.appearance.to_row(), equal_nan=True)


def test_crops_have_the_spacing_that_was_asked_for(tmp_path):
    ct, labels = scan()
    big, _ = crops(listing(tmp_path, ct, labels), CropSpec(size=8, spacing_mm=(2.0, 2.0, 2.0)))
    assert np.abs(np.argwhere(big.mask_XYZ).mean(axis=0) - 3.5).max() <= 1
    assert big.mask_XYZ.sum() == pytest.approx(6 * 6 * 3 * 2 / 8, rel=0.4)


def test_of_a_synthesized_scan_only_what_was_made_counts(tmp_path):
    ct, labels = scan()
    folder = tmp_path / "out" / "case"
    write_nifti(folder / "ct.nii.gz", ct, AFFINE)
    write_nifti(folder / "labels.nii.gz", labels, AFFINE)
    assert len(crops(tmp_path / "out")) == 2
    # The small tumor was there before; the large one was made as two that touch.
    lesions = np.zeros(labels.shape, np.uint8)
    lesions[10:13, 12:18, 6:9] = 1
    lesions[13:16, 12:18, 6:9] = 3
    write_nifti(folder / "lesions.nii.gz", lesions, AFFINE)
    found = crops(tmp_path / "out")
    assert [each.tumor.number for each in found] == [1, 3]
    assert all(each.tumor.histogram_H.sum() == pytest.approx(1) for each in found)
    assert found[0].mask_XYZ.sum() < found[0].mask_XYZ.size / 8
    # The other tumor, and what was there before, are no surroundings.
    assert found[0].tumor.appearance.contrast_hu == pytest.approx(-60, abs=5)


def test_scans_without_tumors_give_none_and_other_grids_are_refused(tmp_path):
    ct, labels = scan()
    assert crops(listing(tmp_path / "healthy", ct, np.minimum(labels, 1))) == []
    folder = listing(tmp_path / "moved", ct, labels)
    write_nifti(folder / "a_labels.nii.gz", labels, LPS)
    with pytest.raises(GridMismatchError, match="spacing"):
        crops(folder)


@pytest.mark.parametrize(("extent", "count"), [((6, 4, 9), 3), ((1, 1, 1), 4), ((16, 16, 16), 16), ((5, 16, 2), 5)])
def test_slices_are_distinct_and_spread_over_the_tumor(extent, count):
    places = np.indices((16, 16, 16))
    slices = [slices_of(places[axis].astype(np.float32), extent, count) for axis in range(3)]
    for plane, axis in enumerate((2, 1, 0)):
        along = slices[axis][plane]
        assert along.shape == (count, 16, 16)
        positions = along[:, 0, 0]
        assert (along == positions[:, None, None]).all()
        assert len(set(positions)) == count
        assert positions[-1] - positions[0] == max(extent[axis], count) - 1
        assert abs(positions[0] + positions[-1] - 15) <= 1


def test_slices_are_seen_as_radiologists_see_them():
    right_X, anterior_Y, head_Z = np.indices((16, 16, 16)).astype(np.float32)
    axial, coronal, sagittal = range(3)
    corners = (slice(None), 0, 0)  # upper left
    assert (slices_of(right_X, (1, 1, 1), 1)[axial][corners] == 15).all()
    assert (slices_of(anterior_Y, (1, 1, 1), 1)[axial][corners] == 15).all()
    assert (slices_of(right_X, (1, 1, 1), 1)[coronal][corners] == 15).all()
    assert (slices_of(head_Z, (1, 1, 1), 1)[coronal][corners] == 15).all()
    assert (slices_of(anterior_Y, (1, 1, 1), 1)[sagittal][corners] == 15).all()
    assert (slices_of(head_Z, (1, 1, 1), 1)[sagittal][corners] == 15).all()
    with pytest.raises(ValueError, match="17 slices"):
        slices_of(right_X, (1, 1, 1), 17)
