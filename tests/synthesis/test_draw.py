"""All that is random about a tumor: its shape, its texture, and the place it takes."""

import dataclasses
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from difftumor.errors import SynthesisError
from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import draw_tumors, draw_unplaced, wanted_tumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.sizes import SIZES, nearest_size
from tests.synthesis.makers import ball, wanted

EVEN = (1.0, 1.0, 1.0)
SHAPE = (48, 44, 40)


def host(mask=None, *, organ="liver", spacing_mm=EVEN, mean_hu=100.0, **options):
    """Return a ball of 18 voxels in a CT of one value with a little noise."""
    mask = ball(SHAPE, 18) if mask is None else mask
    hu = np.random.default_rng(0).normal(mean_hu, 5, mask.shape).astype(np.float32)
    options = {"ct_hu_XYZ": hu, "open_border": False, **options}
    return Host(mask, organ=get_organ(organ), spacing_mm=spacing_mm, **options)


def draw(liver, size="tiny", count=1, *, seed=0, **fields):
    return draw_tumors(liver, [wanted(size, count, **fields)], seed=seed).records


def many(liver, size="tiny", seeds=40, **fields):
    return [record for seed in range(seeds) for record in draw(liver, size, seed=seed, **fields)]


def unplaced(liver, size="tiny", seeds=40, **fields):
    """Draw tumors without looking for their centers."""
    specs = [wanted(size, **fields)]
    return [draw_unplaced(liver, wanted_tumors(specs, seed=seed)[0], seed=seed) for seed in range(seeds)]


# Shape


@pytest.mark.parametrize("generator", ["diffusion", "handcrafted"])
@pytest.mark.parametrize("diameter_mm", [6, 11.5, 25])
def test_a_diameter_gives_the_ellipsoid_of_exactly_that_volume(generator, diameter_mm):
    for record in unplaced(host(), "early", 10, diameter_mm=diameter_mm, generator=generator):
        assert np.prod(record.half_axes_mm) == pytest.approx((diameter_mm / 2) ** 3, rel=1e-12)
        assert (record.size, record.radius_mm) == ("custom", diameter_mm / 2)
        assert len(set(record.half_axes_mm)) == 3


@pytest.mark.parametrize("spacing_mm", [EVEN, (0.8, 0.8, 2.0)])
def test_the_shape_has_the_volume_of_the_diameter(spacing_mm):
    for record in unplaced(host(spacing_mm=spacing_mm), seeds=6, diameter_mm=12):
        voxels = np.count_nonzero(tumor_shape(record)) * np.prod(spacing_mm)
        assert voxels == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.03)


@pytest.mark.parametrize("diameter_mm", [8, 16, 32, 64])
def test_a_tumor_of_chosen_diameter_is_as_irregular_as_the_class_of_that_size(diameter_mm):
    """Whatever class the size, which does not count beside a diameter, names."""
    size = nearest_size(diameter_mm / 2)
    low, high = min(size.deformation_mm), max(size.deformation_mm)
    liver = host(np.ones((20, 20, 20), bool), spacing_mm=(8.0, 8.0, 8.0))
    for record in unplaced(liver, "early", 12, diameter_mm=diameter_mm):
        assert low <= record.deformation_sigma_mm <= high
    # In proportion to the radius between the classes.
    for record in unplaced(liver, "early", 12, diameter_mm=diameter_mm * 1.2):
        assert 1.2 * low <= record.deformation_sigma_mm <= 1.2 * high + 1e-9


def test_without_irregularity_there_is_no_deformation():
    liver = host()
    for record in unplaced(liver, "small", 10, irregularity=0):
        assert record.deformation_sigma_mm == 0
    usual, double = (unplaced(liver, "small", 10, irregularity=factor) for factor in (1, 2))
    for one, two in zip(usual, double, strict=True):
        assert two.deformation_sigma_mm == 2 * one.deformation_sigma_mm > 0
        assert two.half_axes_mm == one.half_axes_mm


def test_hand_crafted_large_tumors_are_no_longer_than_the_paper_says():
    liver = host(np.ones((20, 20, 20), bool), spacing_mm=(8.0, 8.0, 8.0))
    networks, by_hand = (unplaced(liver, "large", 40, generator=name) for name in ("diffusion", "handcrafted"))
    longest = [max(max(r.half_axes_mm) for r in records) / 32 for records in (networks, by_hand)]
    assert 1.25 < longest[0] <= 2
    assert 1.2 < longest[1] <= 1.25
    assert all(r.deformation_sigma_mm.is_integer() for r in networks)
    assert not any(r.deformation_sigma_mm.is_integer() for r in by_hand)


def test_size_weights_are_chances():
    liver = host(np.ones((20, 20, 20), bool), spacing_mm=(8.0, 8.0, 8.0))
    drawn = [record.size for record in unplaced(liver, {"tiny": 3, "late": 1, "small": 0}, 400)]
    shares = {name: drawn.count(name) / 400 for name in SIZES}
    # Standard deviations of the shares: at most 0.022.
    assert shares["small"] == 0
    assert shares["tiny"] == pytest.approx(0.75, abs=0.07)
    assert shares["medium"] == pytest.approx(0.125, abs=0.06)
    assert shares["large"] == pytest.approx(0.125, abs=0.06)


@pytest.mark.parametrize("size", SIZES)
def test_paper_counts_are_those_of_table_6(size):
    expected = {"tiny": range(3, 11), "small": range(3, 11), "medium": range(2, 6), "large": range(1, 4)}[size]
    specs = [wanted(size, "paper")]
    counts = {len(wanted_tumors(specs, seed=seed)) for seed in range(120)}
    assert counts == set(expected)


def test_the_mixed_mode_of_table_6_has_tumors_of_every_size_in_their_numbers():
    for seed in range(40):
        sizes = Counter(next(iter(each.spec.weights)) for each in wanted_tumors([wanted("mix", "paper")], seed=seed))
        assert list(sizes) == list(SIZES)
        for size, (fewest, most) in {"tiny": (3, 10), "small": (3, 10), "medium": (2, 5), "large": (1, 3)}.items():
            assert fewest <= sizes[size] <= most


def test_with_the_papers_count_all_tumors_of_a_scan_have_the_size_that_was_drawn():
    modes = Counter()
    for seed in range(500):
        tumors = wanted_tumors([wanted({"tiny": 1, "large": 1, "mix": 2}, "paper")], seed=seed)
        sizes = {next(iter(each.spec.weights)) for each in tumors}
        modes["mix" if len(sizes) == 4 else sizes.pop()] += 1
    for mode, share in {"tiny": 0.25, "large": 0.25, "mix": 0.5}.items():
        assert modes[mode] / 500 == pytest.approx(share, abs=4 * (share * (1 - share) / 500) ** 0.5)


def test_counts_are_drawn_as_asked():
    counts = {len(wanted_tumors([wanted("tiny", {"choice": [1, 4]})], seed=seed)) for seed in range(20)}
    assert counts == {1, 4}


# Texture


def test_hand_crafted_tumors_are_darker_than_the_organ_by_ten_hu_or_more_but_no_darker_than_thirty():
    """Table 1: μt is U(30, μp - 10), and the noise is the organ's."""
    liver = host(mean_hu=100)
    textures = [record.texture for record in unplaced(liver, seeds=200, generator="handcrafted")]
    means = np.array([texture.mean_hu for texture in textures])
    assert 30 <= means.min() < 33
    assert 87 < means.max() <= liver.parenchyma.mean_hu - 10
    assert {texture.sd_hu for texture in textures} == {liver.tissue_sd_hu}
    assert {(texture.kind, texture.blur_sigma_mm) for texture in textures} == {("gaussian", 0.6)}
    grains = [texture.grain for texture in textures]
    assert 1.1 <= min(grains) < 1.12
    assert 1.48 < max(grains) <= 1.5


def test_in_lung_and_bone_tumors_are_as_their_rules_say():
    lung = host(mean_hu=-800, organ="lung")
    textures = [record.texture for record in unplaced(lung, seeds=100, generator="handcrafted")]
    means = [texture.mean_hu for texture in textures]
    assert -20 <= min(means) < -15
    assert 55 < max(means) <= 60
    assert {texture.sd_hu for texture in textures} == {20}


def test_tumors_of_a_wall_leave_it():
    wall = host(mean_hu=40, organ="stomach_wall")
    assert all(record.may_leave_organ for record in unplaced(wall, seeds=50))


def test_texture_and_noise_together_vary_as_the_parenchyma():
    liver = host()
    noise_hu = liver.noise_sd_hu(2.0)
    assert 0 < noise_hu < liver.tissue_sd_hu
    (kept,) = draw(liver, generator="handcrafted", host_noise_mm=2)
    assert kept.texture.host_noise_mm == 2
    assert np.hypot(kept.texture.sd_hu, noise_hu) == pytest.approx(liver.tissue_sd_hu, rel=1e-12)
    # All else is as without.
    (replaced,) = draw(liver, generator="handcrafted")
    assert (replaced.texture.host_noise_mm, replaced.texture.scaled) == (0, True)
    texture = replace(kept.texture, sd_hu=replaced.texture.sd_hu, host_noise_mm=0.0)
    assert replace(kept, texture=texture) == replaced
    (letter,) = draw(liver, generator="handcrafted", scale_texture=False)
    plain = replace(replaced.texture, scaled=False, sd_hu=liver.parenchyma.sd_hu)
    assert letter == replace(replaced, texture=plain)


def test_in_a_dark_organ_they_are_darker_by_ten_to_thirty_hu():
    liver = host(mean_hu=25)
    mean_hu = liver.parenchyma.mean_hu
    means = np.array([r.texture.mean_hu for r in unplaced(liver, seeds=100, generator="handcrafted")])
    assert mean_hu - 30 <= means.min() < mean_hu - 28
    assert mean_hu - 12 < means.max() <= mean_hu - 10


def test_a_contrast_is_taken_from_the_mean_of_the_organ_without_vessels():
    liver = host()
    (record,) = draw(liver, generator="handcrafted", contrast_hu=-42, texture="salt", grain=3)
    assert record.contrast_hu == -42
    assert record.texture.mean_hu == liver.parenchyma.mean_hu - 42
    assert (record.texture.kind, record.texture.grain) == ("salt", 3)
    (network,) = draw(liver, contrast_hu=-42)
    assert (network.contrast_hu, network.texture) == (-42, None)


def test_the_rim_is_as_soft_as_the_generator_has_it_or_as_asked():
    liver = host(spacing_mm=(1.0, 1.0, 2.0))
    millimeters = 2 ** (1 / 3)
    by_hand = [r.blur_sigma_voxels * millimeters for r in unplaced(liver, generator="handcrafted")]
    assert 0.6 <= min(by_hand) < 0.65
    assert 1.15 < max(by_hand) <= 1.2
    networks = [r.blur_sigma_voxels * millimeters for r in unplaced(liver)]
    assert min(networks) < 0.5
    assert 3.5 < max(networks) <= 4
    assert draw(liver, blur_mm=2)[0].blur_sigma_voxels == pytest.approx(2 / millimeters)


@pytest.mark.parametrize("size", ["tiny", "medium"])
def test_the_rim_may_be_a_share_of_the_radius_of_a_ball_of_the_tumors_volume(size):
    share = {"uniform": [0, 0.25]}
    drawn = unplaced(host(spacing_mm=(1.0, 1.0, 2.0)), size, 200, blur_share=share)
    shares = [r.blur_sigma_voxels * 2 ** (1 / 3) / np.prod(r.half_axes_mm) ** (1 / 3) for r in drawn]
    assert 0 <= min(shares) < 0.01
    assert 0.24 < max(shares) <= 0.25


def test_effects_are_drawn_as_asked():
    (record,) = draw(host(), preset="reader")
    assert (record.mass_effect, record.capsule_hu, record.vessel_clearance_mm) == (30, 120, 0)
    effects = [r.mass_effect for r in unplaced(host(), mass_effect={"uniform": [10, 20]})]
    assert 10 <= min(effects) < 11
    assert 19 < max(effects) <= 20


def test_what_the_ct_is_needed_for_is_said_where_there_is_none():
    liver = host(ct_hu_XYZ=None)
    assert len(draw(liver)) == 1
    for fields in ({"generator": "handcrafted"}, {"vessel_clearance_mm": 1}):
        with pytest.raises(SynthesisError, match="need the CT to be drawn: give ct_hu_XYZ"):
            draw(liver, **fields)


# Place


def test_central_is_deeper_than_half_of_the_organ_and_peripheral_is_not():
    liver = host()
    depth_mm, box = liver.depth_mm, liver.box
    middle = np.median(depth_mm[liver.mask[box.slices]])
    for region in ("central", "peripheral"):
        centers = [record.center_voxel for record in many(liver, seeds=25, location=region)]
        depths = np.array([depth_mm[tuple(np.subtract(center, box.start))] for center in centers])
        assert ((depths >= middle) == (region == "central")).all()
        assert len(set(centers)) > 5
        assert {record.location for record in many(liver, seeds=2, location=region)} == {region}


# First and second axis swapped, third mirrored, and a little oblique.
AFFINE = np.array([[0, 1.5, 0.2, -30], [2.0, 0, 0, 12], [0, 0.1, -1, 55], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [None, AFFINE])
def test_a_point_in_mm_is_the_voxel_there(affine):
    spacing_mm = (2.0, 1.5, 1.0)
    liver = host(spacing_mm=spacing_mm, affine=affine)
    to_mm = np.diag([*spacing_mm, 1.0]) if affine is None else affine
    wanted_voxel = (21, 25, 19)
    # A point within the voxel, not at its center.
    point = (to_mm @ [21.3, 24.6, 19.2, 1.0])[:3].tolist()
    (record,) = draw(liver, location={"point_mm": point})
    assert record.center_voxel == wanted_voxel
    np.testing.assert_allclose(record.center_mm, (to_mm @ [*wanted_voxel, 1.0])[:3])
    assert record.location.startswith("point (")


@pytest.mark.parametrize(("spacing_mm", "distance"), [(EVEN, "12.0"), ((2.0, 1.0, 1.0), "24.0")])
def test_a_point_outside_is_named_with_its_distance(spacing_mm, distance):
    liver = host(spacing_mm=spacing_mm)
    # The ball is 18 voxels large around (24, 22, 20): 30 voxels along x are 12 outside.
    point = [54 * spacing_mm[0], 22, 20]
    with pytest.raises(SynthesisError, match=rf"lies {distance} mm from the liver: give a point inside it, in RAS"):
        draw(liver, location={"point_mm": point})


def test_two_tumors_cannot_be_at_one_point_but_may_where_they_may_overlap():
    spec = {"location": {"point_mm": [24, 22, 20]}}
    drawn = draw_tumors(host(), [wanted("tiny", 2, **spec)], seed=0)
    assert len(drawn.records) == 1
    assert drawn.shortfalls == ("The liver had room for 1 of 2 tumors.",)
    records = draw(host(), count=2, may_overlap=True, **spec)
    assert [record.center_voxel for record in records] == [(24, 22, 20)] * 2


def test_segments_hold_their_tumors():
    segments = np.zeros(SHAPE, np.uint8)
    segments[:24], segments[24:] = 3, 8
    liver = host(segments_XYZ=segments)
    for record in many(liver, seeds=15, location={"segment": 8}):
        assert segments[record.center_voxel] == 8
        assert liver.mask[record.center_voxel]
        assert record.location == "segment 8"
    with pytest.raises(SynthesisError, match="liver has no voxel in segment 5: choose another"):
        draw(liver, location={"segment": 5})
    with pytest.raises(SynthesisError, match="without a label map of segments: give segments"):
        draw(host(), location={"segment": 3})


@pytest.mark.parametrize("spacing_mm", [EVEN, (0.8, 1.2, 2.0)])
@pytest.mark.parametrize("clearance_mm", [0, 3])
def test_the_drawn_shape_keeps_away_from_vessels(spacing_mm, clearance_mm):
    mask = np.ones((40, 40, 30), bool)
    hu = np.full(mask.shape, 100, np.float32)
    hu[19:22, 19:22, :] = 220
    liver = host(mask, spacing_mm=spacing_mm, ct_hu_XYZ=hu)
    vessels_mm = np.argwhere(liver.vessels) * spacing_mm
    assert 0 < len(vessels_mm) < 2000
    records = many(liver, seeds=12, vessel_clearance_mm=clearance_mm, irregularity=2)
    assert len(records) > 8
    for record in records:
        shape = tumor_shape(record)
        voxels_mm = (np.argwhere(shape) - np.array(shape.shape) // 2 + record.center_voxel) * spacing_mm
        nearest_mm = np.linalg.norm(voxels_mm[:, None] - vessels_mm, axis=2).min()
        assert nearest_mm > clearance_mm
        assert record.vessel_clearance_mm == clearance_mm


def test_an_organ_full_of_vessels_is_said_to_be_so():
    liver = host(np.ones((24, 24, 24), bool))
    liver.vessels = np.zeros((24, 24, 24), bool)
    liver.vessels[3::6] = True
    drawn = draw_tumors(liver, [wanted("tiny", 3, vessel_clearance_mm=2)], seed=0)
    assert drawn.shortfalls[0] == f"The liver had room away from its vessels for {len(drawn.records)} of 3 tumors."


def test_kidney_tumors_leave_half_of_the_time_and_only_medium_and_large_ones():
    liver = host(organ="kidney")
    medium = [record.may_leave_organ for record in unplaced(liver, "medium", 100)]
    assert 35 <= sum(medium) <= 65
    assert not any(record.may_leave_organ for record in unplaced(liver, "early", 20))
    # Of a chosen diameter, the class of that size counts.
    assert not any(record.may_leave_organ for record in unplaced(liver, seeds=20, diameter_mm=15))
    assert any(record.may_leave_organ for record in unplaced(liver, seeds=20, diameter_mm=30))


def test_large_tumors_of_the_pancreas_are_centered_unless_a_place_is_asked_for():
    liver = host(ball(SHAPE, 18), organ="pancreas", spacing_mm=(2.0, 2.0, 2.0))
    assert draw(liver, "large")[0].center_voxel == (24, 22, 20)
    assert {r.center_voxel for r in many(liver, "large", 5, location={"point_mm": [60, 44, 40]})} == {(30, 22, 20)}
    assert (24, 22, 20) not in {r.center_voxel for r in many(liver, "large", 5, location="peripheral")}


# Satellites


@pytest.mark.parametrize("spacing_mm", [EVEN, (0.8, 1.0, 1.6)])
def test_satellites_lie_around_their_tumor_at_the_drawn_gap(spacing_mm):
    liver = host(np.ones((60, 60, 44), bool), spacing_mm=spacing_mm)
    spec = {"diameter_mm": 14, "satellites": {"count": 3, "distance_mm": {"uniform": [4, 8]}, "diameter_mm": 5}}
    found, slack_mm = 0, 2 * max(spacing_mm)
    for seed in range(6):
        records = draw(liver, count=2, seed=seed, mass_effect=20, capsule_hu=50, **spec)
        for number, record in enumerate(records, start=1):
            if record.satellite_of is None:
                assert (record.radius_mm, record.mass_effect, record.capsule_hu) == (7, 20, 50)
                continue
            parent = records[record.satellite_of - 1]
            assert parent.satellite_of is None
            assert record.satellite_of < number
            assert record.location == f"around tumor {record.satellite_of}"
            assert (record.radius_mm, record.mass_effect, record.capsule_hu) == (2.5, 0, 0)
            offset = np.subtract(record.center_voxel, parent.center_voxel) * spacing_mm
            gap_mm = float(np.linalg.norm(offset)) - 7 - 2.5
            assert 4 - slack_mm <= gap_mm <= 8 + slack_mm
            found += 1
    assert found > 20


def test_satellites_follow_their_tumor():
    liver = host(np.ones((70, 60, 44), bool))
    records = draw(liver, count=2, satellites={"count": 2, "size": "tiny", "distance_mm": 3})
    assert [record.satellite_of for record in records] == [None, 1, 1, None, 4, 4]


# What decides


def test_the_first_tumors_do_not_depend_on_how_many_follow():
    liver = host()
    fields = {"generator": "handcrafted", "preset": "reader", "satellites": {"count": 1, "distance_mm": 2}}
    three, one = (draw(liver, count=count, **fields) for count in (3, 1))
    assert len(one) >= 1
    assert three[: len(one)] == one
    assert len(three) > len(one)
    specs = [wanted("tiny", 1), wanted("small", 1, generator="handcrafted")]
    alone, followed = (draw_tumors(liver, part, seed=4).records for part in (specs[:1], specs))
    assert followed[:1] == alone


def test_the_same_seed_gives_the_same_records_and_another_seed_others():
    fields = {"count": 2, "generator": "handcrafted", "size": "mix", "contrast_hu": {"uniform": [-40, -10]}}
    first, again, other = (draw(host(), seed=seed, **fields) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    keyed = draw_tumors(host(), [wanted("tiny", 1)], seed=5, keys=("epoch", 1)).records
    assert keyed != draw_tumors(host(), [wanted("tiny", 1)], seed=5, keys=("epoch", 2)).records


def test_one_decision_does_not_shift_another():
    liver = host()
    (plain,) = draw(liver, "small", generator="handcrafted")
    fields = {"contrast_hu": {"uniform": [-30, -20]}, "mass_effect": {"uniform": [1, 9]}, "grain": 3, "blur_mm": 2}
    (other,) = draw(liver, "small", generator="handcrafted", capsule_hu=9, vessel_clearance_mm=0, **fields)
    for name in ("half_axes_mm", "shape_seed", "texture_seed", "deformation_sigma_mm", "radius_mm"):
        assert getattr(other, name) == getattr(plain, name)


def test_records_survive_json_with_their_texture():
    fields = {"generator": "handcrafted", "preset": "reader", "satellites": {"count": 2}, "contrast_hu": -30}
    records = draw(host(), "small", count=2, **fields)
    assert any(record.satellite_of for record in records)
    for record in records:
        again = TumorRecord.from_json(record.to_json())
        assert again == record
        assert again.texture == record.texture
        assert dataclasses.asdict(again) == dataclasses.asdict(record)


def test_a_segment_goes_before_the_rule_that_centers_large_tumors():
    organ = ball((80, 80, 80), 38)
    segments = np.zeros(organ.shape, np.uint8)
    segments[:34] = 1
    place = Host(organ, organ=get_organ("pancreas"), spacing_mm=(1.0, 1.0, 1.0), segments_XYZ=segments)
    specs = [wanted("large", location={"segment": 1})]
    records = [record for seed in range(6) for record in draw_tumors(place, specs, seed=seed).records]
    assert records
    assert all(segments[record.center_voxel] == 1 for record in records)


# Which tumors are accepted, and what is said of those that are not


def empty_liver(radius=15):
    return Host(ball((40, 40, 40), radius), organ=get_organ("liver"), spacing_mm=(1.0, 1.0, 1.0), open_border=False)


class Rule:
    """Accepts tumors by a function, and remembers what it was asked."""

    def __init__(self, rule):
        self.rule, self.asked, self.wanted = rule, [], []

    def __call__(self, record, accepted, wanted):
        self.wanted.append(wanted)
        # The number that it would have.
        self.asked.append((record, len(accepted) + 1))
        return self.rule(record)


def test_every_tumor_is_drawn_once_if_all_are_accepted():
    drawn = draw_tumors(empty_liver(), [wanted("tiny", 3)], seed=0, attempts=9)
    assert [record.attempts for record in drawn.records] == [1, 1, 1]
    assert drawn.shortfalls == ()


def test_accepting_all_changes_nothing():
    keep = Rule(lambda record: record)
    specs = [wanted("tiny", 2), wanted("small", 1)]
    assert draw_tumors(empty_liver(), specs, seed=0, accept=keep, attempts=5) == draw_tumors(
        empty_liver(), specs, seed=0
    )
    assert keep.wanted == [1, 2, 3]
    assert [number for _, number in keep.asked] == [1, 2, 3]


def test_every_attempt_is_another_tumor_and_counts():
    third = Rule(lambda record: record if record.attempts == 3 else None)
    drawn = draw_tumors(empty_liver(), [wanted("tiny", 2)], seed=0, accept=third, attempts=5)
    assert [record.attempts for record in drawn.records] == [3, 3]
    assert [(record.attempts, number) for record, number in third.asked] == [
        (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2),
    ]  # fmt: skip
    assert len({record.shape_seed for record, _ in third.asked}) == 6
    assert len({record.texture_seed for record, _ in third.asked}) == 6
    # The first attempt is the tumor that is drawn if all are accepted.
    first = draw_tumors(empty_liver(), [wanted("tiny", 1)], seed=0).records
    assert third.asked[0][0] == first[0]


def test_a_tumor_is_given_up_after_its_attempts_and_the_next_keeps_its_number():
    later = Rule(lambda record: record if len(later.asked) > 4 else None)
    drawn = draw_tumors(empty_liver(), [wanted("tiny", 3)], seed=0, accept=later, attempts=4)
    assert [number for _, number in later.asked] == [1, 1, 1, 1, 1, 2]
    assert len(drawn.records) == 2
    assert drawn.shortfalls == ("1 of 3 tumors could not be made: all that were tried were rejected.",)


def test_what_is_returned_in_its_place_is_kept():
    other = Rule(lambda record: replace(record, texture_seed=7, attempts=4))
    (record,) = draw_tumors(empty_liver(), [wanted("tiny", 1)], seed=0, accept=other, attempts=2).records
    assert (record.texture_seed, record.attempts) == (7, 4)


def test_a_full_organ_is_said_to_be_so():
    drawn = draw_tumors(empty_liver(radius=6), [wanted("tiny", 9)], seed=0)
    assert 1 <= len(drawn.records) < 9
    assert drawn.shortfalls == (f"The liver had room for {len(drawn.records)} of 9 tumors.",)


def test_both_reasons_are_told_with_their_own_numbers():
    """One of the tumors finds no room for its size, one is rejected, and two are kept."""
    small = Rule(lambda record: record if record.size == "tiny" else None)
    specs = [wanted("tiny", 2), wanted("small", 1), wanted("large", 1)]
    drawn = draw_tumors(empty_liver(radius=13), specs, seed=0, accept=small, attempts=2)
    assert [record.size for record in drawn.records] == ["tiny", "tiny"]
    assert drawn.shortfalls == (
        "The liver had room for 3 of 4 tumors.",
        "1 of 4 tumors could not be made: all that were tried were rejected.",
    )


def test_satellites_count_among_the_tumors_and_fall_with_theirs():
    none = Rule(lambda record: None if record.satellite_of is None else record)
    spec = wanted("tiny", 2, satellites={"count": 3, "diameter_mm": 3, "distance_mm": 2})
    drawn = draw_tumors(empty_liver(), [spec], seed=0, accept=none, attempts=1)
    assert drawn.records == ()
    assert drawn.shortfalls == ("2 of 2 tumors could not be made: all that were tried were rejected.",)
    parents = Rule(lambda record: record if record.satellite_of is None else None)
    drawn = draw_tumors(empty_liver(), [spec], seed=0, accept=parents, attempts=1)
    assert len(drawn.records) == 2
    assert drawn.shortfalls
    assert all("of 8 tumors" in sentence for sentence in drawn.shortfalls)


def test_tumors_take_their_place():
    """No two are closer than a voxel, even those accepted at a later attempt."""
    second = Rule(lambda record: record if record.attempts == 2 else None)
    records = draw_tumors(empty_liver(radius=18), [wanted("tiny", 6)], seed=3, accept=second, attempts=2).records
    assert len(records) >= 4
    count = np.zeros((40, 40, 40), int)
    for record in records:
        shape = tumor_shape(record)
        voxels = np.argwhere(shape) - np.array(shape.shape) // 2 + record.center_voxel
        voxels = voxels[((voxels >= 0) & (voxels < 40)).all(axis=1)]
        count[tuple(voxels.T)] += 1
    # Drawn shapes may be cut where they meet, but hardly are.
    assert (count > 1).sum() < 0.05 * (count > 0).sum()
