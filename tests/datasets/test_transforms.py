"""Loading into model space, crops and order: what depends on seed, epoch and index, and on nothing else."""

import warnings
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import (
    AIR_HU,
    RandomCrop,
    SeededDataset,
    load_case,
    pad_to,
    with_centers,
)
from difftumor.errors import GridMismatchError, OrganError, VolumeError
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.organs import OrganLabels, get_organ
from tests.nifti import voxels, write_nifti

LIVER = OrganLabels(organ=(1, 4), tumor=(3,))


def _save(path: Path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


@pytest.fixture
def case(tmp_path) -> Case:
    random = np.random.default_rng(0)
    ct = random.integers(-900, 300, (12, 10, 8)).astype(np.int16)
    labels = np.zeros(ct.shape, np.uint8)
    labels[2:6, 3:7, 2:5] = 1
    labels[3, 4, 3], labels[9, 8, 6], labels[5, 5, 4] = 3, 2, 4
    return Case("a", _save(tmp_path / "ct.nii.gz", ct), _save(tmp_path / "labels.nii.gz", labels))


def test_a_case_in_model_space_already_keeps_its_voxels(case):
    item = load_case(case, LIVER, spacing_mm=(2, 2, 2))
    labels = voxels(case.labels)
    assert item["case"] == "a"
    assert item["ct"].dtype == torch.float32
    assert np.array_equal(item["ct"][0].numpy(), voxels(case.image))
    assert np.array_equal(item["labels"][0].numpy(), np.select([labels == 3, np.isin(labels, (1, 4))], [2, 1], 0))


def test_without_organ_labels_everything_labelled_is_foreground(case):
    assert np.array_equal(load_case(case, None, spacing_mm=(2, 2, 2))["labels"][0].numpy(), voxels(case.labels) > 0)
    bare = load_case(Case("b", case.image), None, spacing_mm=(2, 2, 2))
    assert bare["labels"].shape == bare["ct"].shape
    assert not bare["labels"].any()


def test_orientation_becomes_ras_and_spacing_as_asked(tmp_path, case):
    flipped = _save(tmp_path / "lps.nii.gz", voxels(case.image)[::-1, ::-1], np.diag([-2.0, -2.0, 2.0, 1.0]))
    assert np.array_equal(load_case(Case("l", flipped), None, spacing_mm=(2, 2, 2))["ct"][0], voxels(case.image))
    finer = load_case(case, LIVER, spacing_mm=(1, 1, 4))
    assert finer["labels"].shape == finer["ct"].shape
    assert all(abs(found - exact) <= 1 for found, exact in zip(finer["ct"].shape, (1, 24, 20, 4), strict=True))


def test_bad_cases_are_refused(tmp_path, case):
    other = _save(tmp_path / "other.nii.gz", np.ones((3, 3, 3), np.uint8))
    with pytest.raises(GridMismatchError, match=r"other\.nii\.gz"):
        load_case(Case("x", case.image, other), LIVER)
    with pytest.raises(OrganError, match=r"labels\.nii\.gz"):
        load_case(case, OrganLabels(organ=(77,)))
    assert not load_case(case, OrganLabels(organ=(77,)), require_organ=False)["labels"].any()


def test_padding_adds_air_evenly_and_only_where_missing(case):
    item = load_case(case, LIVER, spacing_mm=(2, 2, 2))
    padded = pad_to(item, (12, 15, 8))
    assert padded["ct"].shape == padded["labels"].shape == (1, 12, 15, 8)
    assert torch.equal(padded["ct"][:, :, 2:12], item["ct"])
    assert (padded["ct"][:, :, :2] == AIR_HU).all()
    assert padded["labels"].sum() == item["labels"].sum()
    assert pad_to(item, (4, 4, 4))["ct"] is item["ct"]


def test_centers_are_labeled_and_unlabeled_voxels():
    labels = torch.zeros(1, 10, 10, 10, dtype=torch.uint8)
    labels[:, 2:8, 2:8, 2:8] = 1
    item = with_centers({"labels": labels}, limit=50)
    flat = labels.numpy().ravel()
    assert len(item["foreground"]) == 50
    assert flat[item["foreground"]].all()
    assert not flat[item["background"]].any()
    assert 0 < len(item["background"]) <= 50


def _crops(ratio, count=300):
    labels = torch.zeros(1, 40, 12, 12, dtype=torch.uint8)
    labels[:, 4:6, 5:7, 5:7] = 1
    item = with_centers({"ct": torch.arange(labels.numel()).reshape(labels.shape).float(), "labels": labels})
    crop = RandomCrop((4, 4, 4), foreground_ratio=ratio)
    for seed in range(count):
        crop.set_random_state(seed=seed)
        yield item, crop(item)


def test_crops_follow_the_ratio_and_keep_image_and_labels_together():
    hits = []
    for item, cut in _crops(ratio=3.0):
        assert cut["ct"].shape == cut["labels"].shape == (1, 4, 4, 4)
        assert type(cut["ct"]) is torch.Tensor
        assert torch.equal(item["labels"].flatten()[cut["ct"].flatten().long()], cut["labels"].flatten())
        hits.append(bool(cut["labels"].any()))
    # Three in four are centered on the organ; of the others few touch it.
    assert 0.72 < np.mean(hits) < 0.88


def test_rotations_are_axial_alike_for_ct_and_labels_and_independent_of_the_center():
    axes = (1, 2)
    labels = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    labels[:, :6] = 1
    ct = torch.arange(labels.numel()).reshape(labels.shape).float()
    item = with_centers({"ct": ct, "labels": labels})
    plain = RandomCrop((4, 4, 4), foreground_ratio=1)
    turning = RandomCrop((4, 4, 4), foreground_ratio=1, rotation_probability=0.3)
    turns, hits = [], []
    for seed in range(600):
        before, after = (crop.set_random_state(seed=seed)(item) for crop in (plain, turning))
        turns += [k for k in range(4) if torch.equal(before["ct"].rot90(k, axes), after["ct"])]
        assert torch.equal(before["labels"].rot90(turns[-1], axes), after["labels"])
        assert type(after["ct"]) is torch.Tensor
        hits.append(plain.set_random_state(seed=seed).around.R.random_sample() < 0.5)
    assert len(turns) == 600
    # 600 crops of which 3 in 10 are rotated, by 90, 180 and 270 degrees alike: 60 of each, the deviation is 7.3.
    assert [turns.count(k) for k in (1, 2, 3)] == pytest.approx([60, 60, 60], abs=25)
    # Crops around the labels are rotated as often as others.
    around = [turn > 0 for turn, hit in zip(turns, hits, strict=True) if hit]
    assert np.mean(around) == pytest.approx(0.3, abs=0.1)


def test_an_unlabelled_case_is_cut_anywhere():
    item = with_centers({"ct": torch.rand(1, 9, 9, 9), "labels": torch.zeros(1, 9, 9, 9, dtype=torch.uint8)})
    crop = RandomCrop((4, 4, 4), foreground_ratio=20)
    seen = {float(crop.set_random_state(seed=seed)(item)["ct"][0, 0, 0, 0]) for seed in range(20)}
    assert len(seen) > 10


@pytest.fixture
def dataset(case):
    def load(case):
        return with_centers(pad_to(load_case(case, LIVER, spacing_mm=(2, 2, 2)), (4, 4, 4)))

    return partial(
        SeededDataset, [case, Case("b", case.image)], load=load, transform=RandomCrop((4, 4, 4), foreground_ratio=1.0)
    )


@pytest.mark.parametrize("cache_rate", [0.0, 0.5, 1.0])
def test_samples_depend_on_their_key_alone(dataset, cache_rate):
    first, second = dataset(seed=1, cache_rate=cache_rate), dataset(seed=1)
    keys = [(epoch, index) for epoch in range(4) for index in range(2)]
    before = {key: first[key]["ct"] for key in keys}
    after = {key: second[key]["ct"] for key in reversed(keys)}
    assert all(torch.equal(before[key], after[key]) for key in keys)
    assert len({before[key].sum().item() for key in keys}) > 4
    assert torch.equal(first[1]["ct"], first[(0, 1)]["ct"])
    assert any(not torch.equal(dataset(seed=2)[key]["ct"], before[key]) for key in keys)


def test_a_sample_is_not_a_view_of_the_cache(dataset):
    data = dataset(seed=0, cache_rate=1.0)
    before = data[(0, 0)]["ct"].clone()
    data[(0, 0)]["ct"].zero_()
    assert torch.equal(data[(0, 0)]["ct"], before)


@pytest.mark.parametrize(("cache_rate", "reads"), [(0.0, 8), (0.5, 5), (1.0, 2)])
def test_cases_that_are_kept_are_read_once(case, cache_rate, reads):
    read = []

    def load(case):
        read.append(case.id)
        return with_centers(pad_to(load_case(case, LIVER, spacing_mm=(2, 2, 2), require_organ=False), (4, 4, 4)))

    crop = RandomCrop((4, 4, 4), foreground_ratio=1.0)
    data = SeededDataset([case, Case("b", case.image)], load=load, transform=crop, seed=0, cache_rate=cache_rate)
    for epoch in range(4):
        for index in range(2):
            data[(epoch, index)]
    assert len(read) == reads


def test_cases_of_no_ct_in_hu_are_refused_or_accepted_with_a_warning(tmp_path):
    hu = np.full((16, 16, 12), -1000, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    hu[2:14, 2:14], labels[4:12, 4:12, 2:10] = 40, 1
    write_nifti(tmp_path / "ct.nii.gz", hu)
    write_nifti(tmp_path / "twice.nii.gz", hu - 1024)
    write_nifti(tmp_path / "labels.nii.gz", labels)
    numbers, liver = OrganLabels((1,), name="liver"), get_organ("liver")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_case(Case("a", tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz"), numbers, organ=liver)
    twice = Case("b", tmp_path / "twice.nii.gz", tmp_path / "labels.nii.gz")
    with pytest.raises(VolumeError, match=r"rescaled twice.*data\.accept_hu=true"):
        load_case(twice, numbers, organ=liver)
    with pytest.warns(ScanWarning, match="the liver has a mean of -984 HU"):
        load_case(twice, numbers, organ=liver, accept_hu=True)
