"""Hand-crafted texture beside the tissue it replaces, the noise that stays under it, and tumors too faint to keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from difftumor.scans.organs import get_organ
from difftumor.synthesis.blending import blurred_weight, smoothed_tissue
from difftumor.synthesis.records import TextureRecord, TumorRecord
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.synthesis.makers import ball, record, tiny_synthesizer, wanted

SHAPE = (60, 58, 56)
LIVER = TumorSynthesizer(organ=get_organ("liver"))


def scan(sd_hu=15.0, *, grain_mm=0.7, seed=0):
    """Return a liver of 110 HU, whose noise has a grain, in air."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), grain_mm)
    organ = ball(SHAPE, 26)
    ct = np.where(organ, 110 + sd_hu * noise / noise.std(), -1000).astype(np.float32)
    return torch.from_numpy(ct)[None, None], torch.from_numpy(organ)[None, None]


def made_in(ct, organ, size, *, seed=0, **fields):
    """Return a hand-crafted tumor, its record, and its core: where its weight is 1."""
    spec = wanted(size, 1, generator="handcrafted", **fields)
    (drawn,) = LIVER.draw(organ[0, 0], spec, seed=seed, ct_hu_XYZ=ct[0, 0])
    made = LIVER.apply(ct, organ, [[drawn]])
    core = blurred_weight(made.lesions[0, 0] > 0, drawn.blur_sigma_voxels) > 0.999
    return made, drawn, core.numpy()


def lag_1(values, mask):
    """Autocorrelation of neighbors inside a mask, over all axes."""
    pairs = []
    for axis in range(3):
        value, inside = np.moveaxis(values, axis, 0), np.moveaxis(mask, axis, 0)
        both = inside[1:] & inside[:-1]
        pairs.append((value[1:][both], value[:-1][both]))
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize("host_noise_mm", [None, 2.0])
def test_its_core_varies_as_its_host_and_is_as_grainy(host_noise_mm):
    """Published tumors in a liver of 15 HU: a deviation of 15.1 to 15.3 and a lag-1 autocorrelation of 0.54 to 0.61."""
    ct, organ = scan()
    cores = [made_in(ct, organ, "medium", seed=seed, host_noise_mm=host_noise_mm) for seed in range(3)]
    values = [(made.ct_hu[0, 0].numpy(), core) for made, _, core in cores]
    # The core holds hundreds of independent values at least.
    assert np.mean([hu[core].std() for hu, core in values]) == pytest.approx(15, rel=0.06)
    host_lag = lag_1(ct[0, 0].numpy(), ndimage.binary_erosion(organ[0, 0].numpy()))
    lag = np.mean([lag_1(hu, core) for hu, core in values])
    assert 0.5 < lag < 0.72
    assert abs(lag - host_lag) < 0.15
    before = [ct[0, 0].numpy()[core] for _, core in values]
    likeness = np.mean([np.corrcoef(hu[core], host)[0, 1] for (hu, core), host in zip(values, before, strict=True)])
    assert likeness == pytest.approx(0.9 if host_noise_mm else 0, abs=0.1)


def test_equation_3_to_the_letter_loses_sixty_percent():
    ct, organ = scan()
    made, drawn, core = made_in(ct, organ, "medium", scale_texture=False)
    assert not drawn.texture.scaled
    assert 5.5 < made.ct_hu[0, 0].numpy()[core].std() < 7.5


def test_the_noise_that_stays_is_what_the_gaussian_takes_away():
    """Without texture of its own the CT is CT - w (smooth CT - mean); w is 1 in the core."""
    ct, organ = scan()
    texture = TextureRecord(kind="gaussian", mean_hu=50, sd_hu=0, grain=1, blur_sigma_mm=0.6, host_noise_mm=2.0)
    tumor = record(
        generator="handcrafted", texture=texture, center_voxel=(30, 29, 28), half_axes_mm=(8.0,) * 3,
        blur_sigma_voxels=1.0,
    )  # fmt: skip
    made = LIVER.apply(ct, organ, [[tumor]])
    weight = blurred_weight(made.lesions[0, 0] > 0, 1.0)
    smooth = smoothed_tissue(ct[0, 0], organ[0, 0], [2.0] * 3)
    torch.testing.assert_close(made.ct_hu[0, 0], ct[0, 0] - weight * (smooth - 50), atol=1e-3, rtol=0)
    assert torch.equal(made.ct_hu[~made.halo], ct[~made.halo])


def test_at_the_organs_surface_what_lies_beyond_takes_no_part():
    """The air around the liver is 1100 HU darker; none of it comes into a tumor."""
    ct, organ = scan(sd_hu=0.0)
    texture = TextureRecord(kind="gaussian", mean_hu=60, sd_hu=0, grain=1, blur_sigma_mm=0.6, host_noise_mm=3.0)
    tumor = record(generator="handcrafted", texture=texture, center_voxel=(30, 29, 6), half_axes_mm=(6.0,) * 3)
    made = LIVER.apply(ct, organ, [[tumor]])
    assert made.ct_hu[made.lesions > 0].numpy() == pytest.approx(60, abs=1e-3)


def test_old_records_mean_what_they_did_and_new_ones_replay_bit_by_bit():
    ct, organ = scan()
    made, drawn, _ = made_in(ct, organ, "tiny", host_noise_mm=2)
    again = TumorRecord.from_json(drawn.to_json())
    assert again == drawn
    assert torch.equal(LIVER.apply(ct, organ, [[again]]).ct_hu, made.ct_hu)
    stored = drawn.to_dict()
    del stored["texture"]["scaled"], stored["texture"]["host_noise_mm"]
    old = TumorRecord.from_dict(stored)
    assert (old.texture.scaled, old.texture.host_noise_mm) == (False, 0)


# Tumors that are too faint


def crafted(mean_hu, x):
    texture = TextureRecord(kind="gaussian", mean_hu=mean_hu, sd_hu=0, grain=1, blur_sigma_mm=0.6)
    return record(generator="handcrafted", texture=texture, center_voxel=(x, 29, 28), blur_sigma_voxels=0.8)


@pytest.mark.parametrize("faint", [0, 1, 2])
def test_a_faint_tumor_is_left_out_with_its_label_and_record(faint):
    ct, organ = scan(sd_hu=0.0)
    ct, organ = torch.cat([ct, ct]), torch.cat([organ, organ])
    tumors = [crafted(104 if number == faint else 60, x) for number, x in enumerate((16, 30, 44))]
    others = [tumor for tumor in tumors if tumor.texture.mean_hu == 60]
    gated = LIVER.apply(ct, organ, [tumors, others], minimum_change_hu=6.5)
    alone = LIVER.apply(ct, organ, [others, others])
    assert gated.records == (tuple(others), tuple(others))
    for name in ("ct_hu", "labels", "lesions", "halo", "change_hu"):
        assert torch.equal(getattr(gated, name), getattr(alone, name))


def test_what_a_faint_tumor_had_cut_is_made_again_so_that_records_replay():
    ct, organ = scan(sd_hu=0.0)
    near = [crafted(104, 26), crafted(60, 30)]
    gated = LIVER.apply(ct, organ, [near], minimum_change_hu=6.5)
    assert gated.records == ((near[1],),)
    assert (gated.lesions > 0).sum() > (LIVER.apply(ct, organ, [near]).lesions == 2).sum()
    replayed = LIVER.apply(ct, organ, gated.records)
    assert torch.equal(gated.ct_hu, replayed.ct_hu)
    assert torch.equal(gated.lesions, replayed.lesions)


def test_the_mean_change_inside_the_label_decides_up_or_down():
    """Every voxel of a tumor with a sharp rim changes by 8 HU."""
    ct, organ = scan(sd_hu=0.0)
    for mean_hu in (102, 118):
        sharp = replace(crafted(mean_hu, 30), blur_sigma_voxels=0.0)
        assert LIVER.apply(ct, organ, [[sharp]], minimum_change_hu=7.9).records == ((sharp,),)
        left_out = LIVER.apply(ct, organ, [[sharp]], minimum_change_hu=8.1)
        assert left_out.records == ((),)
        assert torch.equal(left_out.ct_hu, ct)
        assert (left_out.labels == organ).all()


@pytest.mark.parametrize("organ_name", ["liver", "pancreas"])
def test_diffusion_tumors_are_left_out_alike(organ_name):
    """Decoded patches of the pancreas are taken as they are, or not at all."""
    networks = tiny_synthesizer(organ_name)
    ct = 60 + 10 * torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    organ = torch.from_numpy(ball((32, 32, 32), 13))[None, None]
    tumors = [record(organ=organ_name, center_voxel=(x, 16, 16), blur_sigma_voxels=1.0) for x in (10, 22)]
    made = networks.apply(ct, organ, [tumors])
    changes = [abs(float(made.change_hu[made.lesions == number].mean())) for number in (1, 2)]
    kept = [tumor for tumor, change in zip(tumors, changes, strict=True) if change == max(changes)]
    gated = networks.apply(ct, organ, [tumors], minimum_change_hu=sum(changes) / 2)
    assert gated.records == (tuple(kept),)
    alone = networks.apply(ct, organ, [kept])
    assert torch.equal(gated.ct_hu, alone.ct_hu)
    assert torch.equal(gated.labels, alone.labels)
    none = networks.apply(ct, organ, [tumors], minimum_change_hu=max(changes) + 1)
    assert torch.equal(none.ct_hu, ct)
    assert (none.labels == organ).all()
