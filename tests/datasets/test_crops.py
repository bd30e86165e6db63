"""Crops for segmentation: their centers, their organ, their augmentation."""

import math

import numpy as np
import pytest
import torch
from monai.transforms import RandCropByLabelClassesd

from difftumor.datasets.crops import OUTSIDE, CenteredCrop, OrganCrop, SegmentationCrop, with_class_centers
from difftumor.datasets.transforms import AIR_HU, with_centers
from difftumor.errors import ConfigError, OrganError

SHAPE = (40, 40, 40)


def item(*, healthy, tumor=True):
    labels = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    labels[:, 4:24, 4:24, 4:24] = 1
    if tumor:
        labels[:, 8:11, 8:11, 8:11] = 2
    ct = torch.arange(labels.numel(), dtype=torch.float32).reshape(labels.shape)
    return with_class_centers({"ct": ct, "labels": labels, "case": "a", "healthy": healthy})


def crop(size=(9, 9, 9), **changes):
    options = {
        "spacing_mm": (1.0, 1.0, 1.0),
        "class_ratios": (0, 0, 1),
        "minimum_organ_mm3": 300.0,
        "healthy_background": 0.0,
        "rotation_probability": 0.0,
        "shift": 0.1,
        "shift_probability": 0.0,
    }
    return SegmentationCrop(size, **{**options, **changes})


def seeded(transform, seed):
    return transform.set_random_state(seed=seed)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_crops_of_tumor_scans_are_centered_on_the_wanted_class(label):
    ratios = [0, 0, 0]
    ratios[label] = 1
    ours = crop(class_ratios=ratios)
    for seed in range(20):
        cut = seeded(ours, seed)(item(healthy=False))
        if label or 0 in cut["labels"]:
            # Centers are moved inward near the border, so background crops only must hold background.
            assert (cut["labels"] == label).any()
        if label == 2:
            assert cut["labels"][0, 4, 4, 4] == 2
        assert cut["ct"].shape == cut["labels"].shape == (1, 9, 9, 9)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_healthy_crops_sees_what_is_far_from_the_organ(share):
    ours = crop(healthy_background=share)
    centers = [int(seeded(ours, seed)(item(healthy=True, tumor=False))["labels"][0, 4, 4, 4]) for seed in range(400)]
    # Centers near the border are moved inward, now and then into the organ.
    assert centers.count(0) / 400 == pytest.approx(share, abs=0.13)
    cut = seeded(ours, 1)(item(healthy=True, tumor=False))
    assert cut["ct"].shape == (1, 9, 9, 9)
    assert "centers" not in cut


def test_ratios_are_met():
    ours = crop(class_ratios=(1, 1, 2))
    centers = [int(seeded(ours, seed)(item(healthy=False))["labels"][0, 4, 4, 4]) for seed in range(400)]
    assert np.bincount(centers, minlength=3)[2] / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("size", [(9, 9, 9), (10, 12, 7)])
def test_centers_are_those_of_monai(size):
    source, ratios = item(healthy=False), [1, 2, 3]
    theirs = RandCropByLabelClassesd(
        ("ct", "labels"), label_key="labels", spatial_size=size, ratios=ratios, num_classes=3, indices_key="centers"
    )
    ours = CenteredCrop(size, ratios)
    for seed in range(20):
        (cut,) = seeded(theirs, seed)(dict(source))
        box = seeded(ours, seed).box(source["centers"], SHAPE)
        assert torch.equal(cut["ct"].as_tensor(), source["ct"][(slice(None), *box.slices)])


def test_a_share_of_all_crops_is_centered_on_organ_or_tumor_whichever_comes():
    ours = crop(positive_share=0.5, minimum_organ_mm3=0.0)
    for healthy in (False, True):
        source = with_centers(item(healthy=healthy))
        centers = [int(seeded(ours, seed)(source)["labels"][0, 4, 4, 4]) for seed in range(400)]
        # Centers of background near the border are moved inward, now and then into the organ.
        assert 0.5 - 0.1 < sum(c > 0 for c in centers) / 400 < 0.5 + 0.13
        # By their number, the 27 tumor voxels beside 7973 of organ are next to never chosen.
        assert centers.count(2) < 5
        assert not {"centers", "foreground", "background"} & set(seeded(ours, 0)(source))


def test_the_margin_surrounds_the_crop_and_marks_what_lies_outside_of_the_scan():
    options = {"class_ratios": (1, 1, 1), "rotation_probability": 0.5, "flip_probability": 0.5}
    plain, wide = crop(**options), crop(**options, margin=(4, 4, 4))
    beyond = 0
    for seed in range(30):
        narrow, around = (seeded(each, seed)(item(healthy=bool(seed % 2))) for each in (plain, wide))
        assert around["ct"].shape == (1, 17, 17, 17)
        inner = (slice(None), *[slice(4, 13)] * 3)
        assert torch.equal(around["ct"][inner], narrow["ct"])
        assert torch.equal(around["labels"][inner], narrow["labels"])
        outside = around["labels"] == OUTSIDE
        assert torch.equal(outside, around["ct"] == AIR_HU)
        beyond += bool(outside.any())
    assert 0 < beyond < 30


def test_a_missing_class_is_no_problem():
    assert crop()(item(healthy=False, tumor=False))["labels"].shape == (1, 9, 9, 9)


def test_healthy_crops_hold_enough_organ():
    ours = OrganCrop((10, 10, 10), minimum_volume_mm3=8 * 999, spacing_mm=(2.0, 2.0, 2.0))
    full = [int((seeded(ours, seed)(item(healthy=True))["labels"] > 0).sum()) >= 999 for seed in range(60)]
    plain = OrganCrop((10, 10, 10), minimum_volume_mm3=1.0, spacing_mm=(2.0, 2.0, 2.0))
    by_chance = [int((seeded(plain, seed)(item(healthy=True))["labels"] > 0).sum()) >= 999 for seed in range(60)]
    assert sum(full) > sum(by_chance) + 15
    assert min(int((seeded(ours, seed)(item(healthy=True))["labels"] > 0).sum()) for seed in range(60)) >= 500


def test_an_impossible_demand_still_gives_a_crop_with_organ():
    ours = OrganCrop((10, 10, 10), minimum_volume_mm3=1e9, spacing_mm=(1.0, 1.0, 1.0))
    for seed in range(10):
        assert (seeded(ours, seed)(item(healthy=True))["labels"] > 0).sum() >= 500


def test_the_seed_decides_everything():
    ours = crop(class_ratios=(1, 1, 1), rotation_probability=0.5, shift_probability=0.5)
    for healthy in (False, True):
        first = seeded(ours, 3)(item(healthy=healthy))
        seeded(ours, 4)(item(healthy=healthy))
        again = seeded(ours, 3)(item(healthy=healthy))
        other = seeded(ours, 5)(item(healthy=healthy))
        assert torch.equal(first["ct"], again["ct"])
        assert (first["shift"], first["tumor_seed"]) == (again["shift"], again["tumor_seed"])
        assert not torch.equal(first["ct"], other["ct"])
        assert first["tumor_seed"] != other["tumor_seed"]
        assert 0 <= first["tumor_seed"] < 2**62


def test_rotation_turns_about_z_by_right_angles_and_never_mirrors():
    plain, turned = crop(), crop(rotation_probability=1.0)
    seen = set()
    for seed in range(30):
        before, after = (seeded(each, seed)(item(healthy=False)) for each in (plain, turned))
        turns = [k for k in range(4) if torch.equal(torch.rot90(before["ct"], k, (1, 2)), after["ct"])]
        assert len(turns) == 1
        assert torch.equal(torch.rot90(before["labels"], turns[0], (1, 2)), after["labels"])
        seen |= set(turns)
    assert seen == {1, 2, 3}


def test_probabilities_of_the_augmentation_are_met():
    ours = crop(
        rotation_probability=0.1, shift_probability=0.2, flip_probability=0.3, scale=0.2, scale_probability=0.15
    )
    plain, count = crop(), 300
    samples = [seeded(ours, seed)(item(healthy=True)) for seed in range(count)]
    turned, flips = 0, np.zeros(3)
    for seed, sample in enumerate(samples):
        before, after = seeded(plain, seed)(item(healthy=True))["ct"], sample["ct"]
        found = [
            (k, axes)
            for k in range(4)
            for axes in ((), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
            if torch.equal(torch.rot90(before, k, (1, 2)).flip(axes), after)
        ]
        turned += all(k for k, _ in found)
        # Two flips in the axial plane are a half turn; whichever comes first has fewer turns.
        flips[[axis - 1 for axis in found[0][1]]] += 1

    def near(share):
        return pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))

    assert turned / count == near(0.1 - 0.1 / 3 * 0.09)
    assert flips[2] / count == near(0.3)
    for name, most, chance in (("shift", 0.1, 0.2), ("scale", 0.2, 0.15)):
        changed = [sample[name] for sample in samples if sample[name]]
        assert len(changed) / count == near(chance)
        assert 0.8 * most < max(map(abs, changed)) <= most
        assert min(changed) < 0 < max(changed)


def test_augmentation_that_is_left_out_leaves_all_else_as_it_was():
    plain, more = crop(shift_probability=0.5), crop(shift_probability=0.5, scale=0.1, scale_probability=1.0)
    for seed in range(5):
        before, after = (seeded(each, seed)(item(healthy=True)) for each in (plain, more))
        assert torch.equal(before["ct"], after["ct"])
        assert (before["shift"], before["tumor_seed"]) == (after["shift"], after["tumor_seed"])
        assert before["scale"] == 0 != after["scale"]


def test_samples_own_their_memory():
    source = item(healthy=True)
    before = source["ct"].clone()
    for healthy in (True, False):
        cut = crop()({**source, "healthy": healthy})
        cut["ct"].zero_()
        assert torch.equal(source["ct"], before)
        assert type(cut["ct"]) is torch.Tensor
        assert "centers" not in cut


def test_centers_are_thinned_evenly():
    thin = with_class_centers(item(healthy=True), limit=10)["centers"]
    assert [len(each) for each in thin] == [10, 10, 10]
    whole = item(healthy=True)["centers"]
    assert len(whole[2]) == 27
    assert (thin[1][0], thin[1][-1]) == (whole[1][0], whole[1][-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_ratios": (1, 1)}, r"class_ratios"),
        ({"class_ratios": (1, -1, 1)}, r"class_ratios"),
        ({"rotation_probability": -0.1}, r"rotation_probability"),
        ({"shift": -0.1}, r"augmentation\.shift is"),
        ({"scale": -0.1}, r"augmentation\.scale is"),
        ({"flip_probability": 2}, r"augmentation\.flip_probability is"),
        ({"positive_share": 1.5}, r"data\.positive_share is"),
        ({"rotation_probability": 0.1, "spacing_mm": (1.0, 2.0, 1.0)}, r"alike along X and Y"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        crop(**change)


def test_a_healthy_case_without_organ_is_named():
    empty = with_class_centers({**item(healthy=True), "labels": torch.zeros(1, *SHAPE, dtype=torch.uint8)})
    with pytest.raises(OrganError, match="Case 'a' holds no organ"):
        seeded(crop(), 0)(empty)
