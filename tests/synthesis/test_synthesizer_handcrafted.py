"""Hand-crafted tumors without any model, what tumors do to their surroundings, and tumors of several kinds together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from difftumor.errors import SynthesisError
from difftumor.scans.organs import get_organ
from difftumor.synthesis.effects import reach_voxels
from difftumor.synthesis.records import TextureRecord, TumorRecord
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.synthesis.makers import ball, record, tiny_synthesizer, tiny_texture, wanted

SHAPE = (44, 40, 36)
CENTER = (22, 20, 18)
OUTPUTS = ("ct_hu", "labels", "lesions", "halo", "change_hu")


@pytest.fixture(scope="module")
def alone():
    """A synthesizer without any model."""
    return TumorSynthesizer(organ=get_organ("liver"))


def scan(shape=SHAPE, radius=15, *, noise_hu=10.0, seed=0):
    ct = 100 + noise_hu * torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    organ = torch.from_numpy(ball(shape, radius))[None, None]
    ct[~organ] = -80.0
    ct[..., :2] = 1200.0
    return ct, organ


def crafted(mean_hu=50.0, sd_hu=0.0, **changes):
    """Return a hand-crafted ball of 4 mm with a rim of 0.8 voxels in the middle of the scan."""
    texture = TextureRecord(kind="gaussian", mean_hu=mean_hu, sd_hu=sd_hu, grain=1.2, blur_sigma_mm=0.6)
    values = {"generator": "handcrafted", "center_voxel": CENTER, "blur_sigma_voxels": 0.8, "texture": texture}
    return record(**{**values, **changes})


def draw(synthesizer, ct, organ, size="tiny", count=2, seed=0, **fields):
    spec = wanted(size, count, generator="handcrafted", **fields)
    return synthesizer.draw(organ[0, 0], spec, seed=seed, ct_hu_XYZ=ct[0, 0])


def bits(values):
    return values.contiguous().view(torch.int32) if values.dtype == torch.float32 else values


def same(one, other, names=OUTPUTS):
    return all(bits(getattr(one, name)).equal(bits(getattr(other, name))) for name in names)


# Hand-crafted tumors


def test_hand_crafted_tumors_need_no_model_and_leave_the_rest_as_it_is(alone):
    ct, organ = scan()
    before = ct.clone()
    records = draw(alone, ct, organ)
    made = alone.apply(ct, organ, [records])
    assert ct.equal(before)
    assert 0 < made.halo.sum() < made.halo.numel() / 4
    assert bits(made.ct_hu[~made.halo]).equal(bits(ct[~made.halo]))
    assert (made.change_hu[~made.halo] == 0).all()
    assert ((made.labels == 2) == (made.lesions > 0)).all()
    assert ((made.labels > 0) == organ).all()
    assert made.lesions.unique().tolist() == [0, 1, 2]
    assert made.halo[made.lesions > 0].all()


@pytest.mark.parametrize("kind", ["gaussian", "salt"])
@pytest.mark.parametrize("seed", range(3))
def test_in_its_core_a_tumor_has_the_mean_that_was_drawn_and_noise(alone, kind, seed):
    ct, organ = scan((60, 56, 52), 24)
    (drawn,) = draw(alone, ct, organ, "small", 1, seed=seed, texture=kind)
    made = alone.apply(ct, organ, [[drawn]])
    core = torch.from_numpy(ndimage.distance_transform_edt(made.lesions[0, 0].numpy()) > 4 * drawn.blur_sigma_voxels)
    values = made.ct_hu[0, 0][core]
    assert len(values) > 60
    # About 10 HU of noise in grains of 2 voxels or so.
    assert values.mean() == pytest.approx(drawn.texture.mean_hu, abs=3 * 10 / (len(values) / 8) ** 0.5)
    assert 1 < values.std() < 12


def test_the_rim_is_equation_4():
    """Where the healthy CT is 100 and the texture 50, the CT is 100 - 50 w, w the blurred mask."""
    ct, organ = torch.full((1, 1, *SHAPE), 100.0), torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    made = TumorSynthesizer(organ=get_organ("liver")).apply(ct, organ, [[crafted()]])
    mask = (made.lesions[0, 0] == 1).numpy().astype(np.float32)
    weight = ndimage.gaussian_filter(mask, 0.8, truncate=4.0)
    np.testing.assert_allclose(made.ct_hu[0, 0].numpy(), 100 - 50 * weight, atol=1e-3)
    assert made.ct_hu[0, 0][CENTER] == pytest.approx(50, abs=0.01)


@pytest.mark.parametrize(("organ", "shown_hu"), [("liver", 100), ("lung", -800), ("bone", 900)])
def test_the_window_shows_the_organ(organ, shown_hu):
    window = TumorSynthesizer(organ=get_organ(organ)).window
    assert window.low_hu < shown_hu < window.high_hu
    assert (window.low_hu, window.high_hu) == ((-175, 250) if organ == "liver" else (-1000, 2000))


def test_what_lies_beyond_the_window_of_networks_is_replaced_too(alone):
    ct, organ = scan()
    ct[0, 0, 20, 20, 18] = 3000.0
    made = alone.apply(ct, organ, [[crafted(half_axes_mm=(7.0,) * 3)]])
    assert made.ct_hu[0, 0, 20, 20, 18] == pytest.approx(50, abs=0.1)


def test_replay_from_json_is_bit_identical(alone):
    ct, organ = scan()
    records = draw(alone, ct, organ, preset="reader")
    again = [TumorRecord.from_json(each.to_json()) for each in records]
    assert same(alone.apply(ct, organ, [records]), alone.apply(ct, organ, [again]))


def test_a_batch_equals_its_elements_bit_by_bit(alone):
    cases = [scan(radius=radius, seed=radius) for radius in (12, 13, 15)]
    drawn = [
        draw(alone, ct, organ, count=count, seed=count, preset="reader") if count else ()
        for count, (ct, organ) in zip((2, 0, 1), cases, strict=True)
    ]
    ct, organ = (torch.cat(parts) for parts in zip(*cases, strict=True))
    together = alone.apply(ct, organ, drawn)
    for index, (one_ct, one_organ) in enumerate(cases):
        single = alone.apply(one_ct, one_organ, drawn[index : index + 1])
        for name in OUTPUTS:
            assert bits(getattr(together, name)[index : index + 1]).equal(bits(getattr(single, name)))
    assert bits(together.ct_hu[1]).equal(bits(ct[1]))


@pytest.mark.parametrize("effects", [{}, {"mass_effect": 40.0, "capsule_hu": 120.0}])
def test_the_border_of_a_crop_does_not_change_a_tumor(alone, effects):
    ct, organ = scan((60, 60, 60), 28)
    drawn = crafted(sd_hu=12.0, center_voxel=(30, 30, 30), **effects)
    whole = alone.apply(ct, organ, [[drawn]])
    part = (..., slice(18, 50), slice(12, 60), slice(15, 46))
    cut = alone.apply(ct[part], organ[part], [[drawn.moved((-18, -12, -15))]])
    for name in OUTPUTS:
        assert bits(getattr(cut, name)).equal(bits(getattr(whole, name)[part]))
    # Where the halo is cut, the rest keeps its texture; the blur sees the border three voxels from it.
    plain = replace(drawn, mass_effect=0.0, capsule_hu=0.0)
    part = (..., slice(26, 60), slice(0, 60), slice(0, 60))
    cut, whole = alone.apply(ct[part], organ[part], [[plain.moved((-26, 0, 0))]]), alone.apply(ct, organ, [[plain]])
    assert cut.lesions.equal(whole.lesions[part])
    np.testing.assert_allclose(cut.ct_hu[..., 3:, :, :], whole.ct_hu[part][..., 3:, :, :], atol=1e-3)


def test_tumors_that_may_overlap_lie_over_each_other_whole(alone):
    """The later one on top; without leave, the later one is cut by the one that is there."""
    ct, organ = scan()
    first = crafted(half_axes_mm=(5.0,) * 3)
    second = crafted(center_voxel=(26, 20, 18), half_axes_mm=(5.0,) * 3)
    size = int((alone.apply(ct, organ, [[second]]).lesions == 1).sum())
    over = alone.apply(ct, organ, [[first, replace(second, may_overlap=True)]]).lesions
    assert int((over == 2).sum()) == size
    assert int((over == 1).sum()) < size
    cut = alone.apply(ct, organ, [[first, second]]).lesions
    assert int((cut == 1).sum()) == size
    assert int((cut == 2).sum()) < size


def test_what_may_overlap_is_applied_as_it_is_drawn(alone):
    ct, organ = scan()
    point = {"location": {"point_mm": [22, 20, 18]}}
    records = draw(alone, ct, organ, count=2, may_overlap=True, **point)
    assert len(records) == 2
    made = alone.apply(ct, organ, [records])
    assert (made.lesions == 2).any()


def test_a_record_of_another_generator_says_which_model_is_missing(alone):
    ct, organ = scan()
    with pytest.raises(SynthesisError, match="diffusion tumor of 8 mm needs the early model, which is not given"):
        alone.apply(ct, organ, [[record(center_voxel=CENTER)]])
    late = replace(record(center_voxel=CENTER), radius_mm=10.0)
    early_only = TumorSynthesizer(organ=get_organ("liver"), diffusion={"early": tiny_texture()})
    with pytest.raises(SynthesisError, match="diffusion tumor of 20 mm needs the late model"):
        early_only.apply(ct, organ, [[late]])


# Effects


@pytest.mark.parametrize("generator", ["handcrafted", "diffusion"])
def test_without_intensity_and_brightness_there_are_no_effects_bit_by_bit(alone, generator):
    ct, organ = scan()
    synthesizer = alone if generator == "handcrafted" else tiny_synthesizer()
    plain = crafted(sd_hu=10.0) if generator == "handcrafted" else record(center_voxel=CENTER, blur_sigma_voxels=1.0)
    none = replace(plain, mass_effect=0.0, capsule_hu=0.0)
    # An effect of another tumor far away does not reach it either.
    far = crafted(center_voxel=(22, 20, 31), half_axes_mm=(2.0,) * 3, mass_effect=80.0, capsule_hu=100.0)
    assert same(synthesizer.apply(ct, organ, [[plain]]), synthesizer.apply(ct, organ, [[none]]))
    both = synthesizer.apply(ct, organ, [[plain, far]])
    near = (..., slice(8, 36), slice(6, 34), slice(4, 23))
    assert bits(both.ct_hu[near]).equal(bits(synthesizer.apply(ct, organ, [[plain]]).ct_hu[near]))


@pytest.mark.parametrize(
    "effects", [{"mass_effect": 60.0}, {"capsule_hu": 120.0}, {"mass_effect": 60.0, "capsule_hu": -80.0}]
)
def test_effects_change_nothing_outside_the_halo_nor_beyond_their_reach(alone, effects):
    ct, organ = scan()
    # Where tissue moves, a sharp rim, so that the halo of the texture does not hide how far.
    blur = 0.3 if "mass_effect" in effects else 0.8
    drawn = crafted(sd_hu=10.0, half_axes_mm=(7.0, 6.0, 5.0), blur_sigma_voxels=blur, **effects)
    made = alone.apply(ct, organ, [[drawn]])
    assert bits(made.ct_hu[~made.halo]).equal(bits(ct[~made.halo]))
    assert (made.change_hu[~made.halo] == 0).all()
    assert made.change_hu.add(ct).allclose(made.ct_hu, atol=1e-3)
    plain = alone.apply(ct, organ, [[replace(drawn, mass_effect=0.0, capsule_hu=0.0)]])
    assert made.halo[plain.halo].all()
    voxels = np.argwhere(bits(made.ct_hu)[0, 0].numpy() != bits(plain.ct_hu)[0, 0].numpy()) - CENTER
    assert len(voxels) > 100
    # Tissue moves within 1.3 half-axes, and a capsule blurred by 0.8 mm ends at four times that.
    pushed, beyond = 1.3 if "mass_effect" in effects else 1.0, 3.2 if "capsule_hu" in effects else 0.0
    for axis, half_axis in enumerate(drawn.half_axes_mm):
        # A voxel of slack: the mask's edge lies up to half a voxel beyond the ellipsoid, and the blur takes whole ones.
        farthest = np.abs(voxels[:, axis]).max()
        assert farthest <= pushed * half_axis + beyond + 1.5 < reach_voxels(drawn)[axis]


def test_a_tumor_at_the_surface_bulges_the_organ_and_labels_follow(alone):
    ct, organ = scan(radius=14, noise_hu=0)
    # The surface is 3 mm from the tumor's center and moves by 3 · (1 - 3 / 7.8)² = 1.1 mm.
    drawn = crafted(center_voxel=(22 + 11, 20, 18), half_axes_mm=(6.0,) * 3)
    plain, pushed = (alone.apply(ct, organ, [[replace(drawn, mass_effect=i)]]) for i in (0.0, 100.0))
    assert ((plain.labels > 0) == organ).all()
    organ_now = pushed.labels > 0
    grown = organ_now & ~organ
    assert grown.sum() > 15
    assert not (organ & ~organ_now).any()
    # The bulge lies around the tumor's outermost point, where fat was and liver or tumor is now.
    assert np.argwhere(grown[0, 0].numpy())[:, 0].min() >= 22 + 11
    assert (plain.ct_hu[grown] < 0).float().mean() > 0.8
    assert (pushed.ct_hu[grown] > plain.ct_hu[grown]).float().mean() > 0.95
    # The tumor reached the surface and still does.
    assert (pushed.lesions[grown] == 1).float().mean() > 0.8
    assert (pushed.lesions == 1)[plain.lesions == 1].all()
    assert ((pushed.labels == 2) == (pushed.lesions > 0)).all()


def test_a_tumor_inside_pushes_the_surface_before_it(alone):
    """The surface is at 22 of 26 mm that can move, and moves by 22 · (1 - 22 / 26)² = 0.52 mm: by one voxel."""
    ct, organ = torch.full((1, 1, 60, 56, 56), 100.0), torch.ones(1, 1, 60, 56, 56, dtype=torch.bool)
    organ[:, :, 28 + 22 :], ct[:, :, 28 + 22 :] = False, -80.0
    drawn = crafted(center_voxel=(28, 28, 28), half_axes_mm=(20.0,) * 3, mass_effect=100.0)
    made = alone.apply(ct, organ, [[drawn]])
    grown = (made.labels == 1) & ~organ
    assert grown[0, 0, :, 28, 28].nonzero().flatten().tolist() == [28 + 22]
    # Half liver, half fat: from 0.48 of the way between the two.
    assert made.ct_hu[0, 0, 28 + 22, 28, 28] == pytest.approx(100 - 180 * 0.48, abs=3)
    assert made.labels[0, 0, 28 + 23 :].max() == 0


def test_a_neighbor_is_pushed_along_with_its_label(alone):
    ct, organ = torch.full((1, 1, 64, 56, 56), 100.0), torch.ones(1, 1, 64, 56, 56, dtype=torch.bool)
    # At 21 of 26 mm that can move, by 21 · (1 - 21 / 26)² = 0.8 mm: more than half a voxel.
    pusher = crafted(mean_hu=60.0, center_voxel=(28, 28, 28), half_axes_mm=(20.0,) * 3)
    neighbor = crafted(mean_hu=-20.0, center_voxel=(51, 28, 28), half_axes_mm=(1.6,) * 3, blur_sigma_voxels=0.0)
    plain = alone.apply(ct, organ, [[pusher, neighbor]])
    pushed = alone.apply(ct, organ, [[replace(pusher, mass_effect=100.0), neighbor]])

    def middle(made):
        return np.argwhere((made.lesions[0, 0] == 2).numpy()).mean(axis=0)

    assert middle(pushed)[0] > middle(plain)[0] + 0.3
    np.testing.assert_allclose(middle(pushed)[1:], middle(plain)[1:], atol=0.3)
    # What is dark is where the label is.
    dark = pushed.ct_hu[0, 0] < 20
    assert (pushed.lesions[0, 0][dark] == 2).float().mean() > 0.8


def test_a_capsule_brightens_a_shell_and_neither_core_nor_labels(alone):
    ct, organ = scan(noise_hu=0)
    drawn = crafted(half_axes_mm=(7.0,) * 3)
    plain, capsule = (alone.apply(ct, organ, [[replace(drawn, capsule_hu=hu)]]) for hu in (0.0, 120.0))
    added = (capsule.ct_hu - plain.ct_hu)[0, 0].numpy()
    assert capsule.labels.equal(plain.labels)
    distance = np.linalg.norm(np.indices(SHAPE) - np.array(CENTER)[:, None, None, None], axis=0)
    assert added.min() >= 0
    assert added.max() <= 120
    assert (added[distance < 1.5] == 0).all()
    assert added[distance < 3].max() < 0.01
    assert (added[distance > 7 + 5] == 0).all()
    means = [added[np.abs(distance - radius) < 0.5].mean() for radius in range(4, 11)]
    # The mask of a ball of 7 mm ends half a voxel before the next centers: the capsule's middle is at 6.5.
    assert max(means) < 1.1 * min(means[6 - 4], means[7 - 4])
    assert min(means[6 - 4], means[7 - 4]) > 20


def test_the_capsule_moves_with_the_tumor_that_pushes(alone):
    ct, organ = scan((48, 48, 48), 21, noise_hu=0)
    drawn = crafted(center_voxel=(24, 24, 24), half_axes_mm=(10.0,) * 3, mass_effect=100.0, capsule_hu=120.0)
    with_it, without = (alone.apply(ct, organ, [[replace(drawn, capsule_hu=hu)]]) for hu in (120.0, 0.0))
    added = (with_it.ct_hu - without.ct_hu)[0, 0, 24, 24, 24:].numpy()
    edge = int((with_it.lesions[0, 0, 24, 24, 24:] == 1).sum())
    assert edge > 10.9
    assert abs(int(added.argmax()) - edge) <= 1


# Several kinds together


def test_networks_and_hand_work_go_together():
    synthesizer = tiny_synthesizer()
    ct, organ = scan((60, 56, 52), 24)
    network = record(center_voxel=(22, 28, 26), blur_sigma_voxels=1.0)
    by_hand = crafted(sd_hu=10.0, center_voxel=(42, 28, 26))
    both = synthesizer.apply(ct, organ, [[network, by_hand]], patch_per_tumor=True)
    assert both.lesions.unique().tolist() == [0, 1, 2]
    first, second = (synthesizer.apply(ct, organ, [[one]], patch_per_tumor=True) for one in (network, by_hand))
    assert not (first.halo & second.halo).any()
    assert bits(both.ct_hu).equal(bits(torch.where(first.halo, first.ct_hu, second.ct_hu)))
    assert both.halo.equal(first.halo | second.halo)


def test_where_halos_meet_the_ct_lies_between_tissue_and_textures(alone):
    ct, organ = torch.full((1, 1, *SHAPE), 100.0), torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    pair = [crafted(40.0, center_voxel=(18, 20, 18), blur_sigma_voxels=0.0)]
    pair.append(crafted(60.0, center_voxel=(27, 20, 18), blur_sigma_voxels=3.0))
    made = alone.apply(ct, organ, [pair]).ct_hu
    assert made.min() >= 40 - 1e-3
    assert made.max() <= 100


def test_the_radius_chooses_the_model(monkeypatch):
    textures = {"early": tiny_texture(), "late": tiny_texture()}
    for stage, hu in (("early", 40.0), ("late", 70.0)):
        monkeypatch.setattr(textures[stage], "make", lambda ct, mask, seeds, hu=hu: torch.full_like(ct, hu))
    synthesizer = TumorSynthesizer(organ=get_organ("liver"), diffusion=textures)
    ct, organ = scan((60, 56, 52), 26, noise_hu=0)
    small = record(center_voxel=(20, 28, 26), radius_mm=9.9)
    large = record(center_voxel=(42, 28, 26), radius_mm=10.0)
    made = synthesizer.apply(ct, organ, [[small, large]], patch_per_tumor=True).ct_hu[0, 0]
    assert (made[20, 28, 26], made[42, 28, 26]) == (40, 70)


def test_a_synthesizer_needs_a_spacing_and_takes_one_model_for_both_size_groups():
    with pytest.raises(SynthesisError, match=r"spacing_mm is \(1, 1\): give three positive lengths"):
        TumorSynthesizer(organ=get_organ("liver"), spacing_mm=(1, 1))
    with pytest.raises(SynthesisError, match="give three positive lengths"):
        TumorSynthesizer(organ=get_organ("liver"), spacing_mm=(1, 0, 1))
    texture = tiny_texture()
    assert set(TumorSynthesizer(organ=get_organ("liver"), diffusion=texture).diffusion.values()) == {texture}
    assert set(TumorSynthesizer(organ=get_organ("liver"), diffusion=texture).diffusion) == {"early", "late"}
