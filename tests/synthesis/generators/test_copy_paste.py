"""Copies of real tumors: their voxels, shifted by one number, in a healthy organ."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from difftumor.errors import ConfigError, SynthesisError
from difftumor.scans.grid import Box
from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import LEAVING_CHANCE
from difftumor.synthesis.generators.copy_paste import NO_SOURCES, SourceTumor, SourceTumors
from difftumor.synthesis.records import SourceRecord, TumorRecord
from difftumor.synthesis.sizes import size_of
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.synthesis.makers import ball, record

SHAPE, CENTER = (44, 40, 36), (22, 20, 18)


def source(radius=4, *, case="case", number=1, spacing_mm=(1.0, 1.0, 1.0), parenchyma_hu=100.0):
    """A ball without one octant, so that no turn or reflection leaves it as it is, with HU that name its voxels."""
    side = 2 * radius + 1
    mask = ball((side, side, side), radius)
    mask[:radius, : radius - 1, : radius - 2] = False
    hu = np.arange(side**3, dtype=np.float32).reshape(mask.shape) / 10
    return SourceTumor(
        case=case, number=number, sha256=case, mask=mask, hu=hu, parenchyma_hu=parenchyma_hu, spacing_mm=spacing_mm
    )


def copied(tumor, *, turned=False, flipped=(False, False, False), shift_hu=0.0, **changes):
    how = SourceRecord(
        case=tumor.case, tumor=tumor.number, sha256=tumor.sha256, turned=turned, flipped=flipped, shift_hu=shift_hu
    )
    values = {"generator": "copy_paste", "center_voxel": CENTER, "half_axes_mm": tumor.half_axes_mm, "source": how}
    return record(**{**values, **changes})


def scan(mean_hu=60.0):
    ct = mean_hu + 10 * torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return ct, torch.from_numpy(ball(SHAPE, 16))[None, None]


def synthesizer(*tumors):
    return TumorSynthesizer(organ=get_organ("liver"), sources=SourceTumors(tumors))


def draw(made_by, ct, organ, *, size="tiny", seed=0, **fields):
    spec = TumorSpec(generator="copy_paste", size=size, **fields)
    return made_by.draw(organ[0, 0], spec, seed=seed, ct_hu_XYZ=ct[0, 0])


def test_a_copy_without_a_rim_has_the_tumors_voxels_and_the_scan_keeps_all_others():
    tumor, (ct, organ) = source(), scan()
    made = synthesizer(tumor).apply(ct, organ, [[copied(tumor, shift_hu=-7.5)]])
    pasted = made.labels[0, 0].numpy() == 2
    expected = np.zeros(SHAPE, bool)
    box = Box(CENTER, tuple(c + 1 for c in CENTER)).padded(4).slices
    expected[box] = tumor.mask
    assert np.array_equal(pasted, expected)
    assert np.allclose(made.ct_hu[0, 0].numpy()[pasted], tumor.hu[tumor.mask] - 7.5, atol=1e-4)
    assert np.array_equal(made.ct_hu[0, 0].numpy()[~pasted], ct[0, 0].numpy()[~pasted])
    assert np.array_equal(made.labels[0, 0].numpy() > 0, organ[0, 0].numpy())


def test_a_rim_mixes_host_and_tumor_alone_by_the_blurred_mask():
    tumor, (ct, organ) = source(), scan()
    # What lies around the original must not come along.
    tumor.hu[~tumor.mask] = -5000
    made = synthesizer(tumor).apply(ct, organ, [[copied(tumor, blur_sigma_voxels=1.0)]])
    after, before, halo = made.ct_hu[0, 0].numpy(), ct[0, 0].numpy(), made.halo[0, 0].numpy()
    low = np.minimum(before, tumor.hu[tumor.mask].min())
    high = np.maximum(before, tumor.hu[tumor.mask].max())
    assert ((after >= low - 1e-3) & (after <= high + 1e-3)).all()
    assert halo.sum() > tumor.mask.sum()
    assert np.array_equal(after[~halo], before[~halo])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_turns_and_reflections_take_mask_and_hu_along(turned, axis):
    tumor, (ct, organ) = source(), scan()
    flipped = tuple(other == axis for other in range(3))
    made = synthesizer(tumor).apply(ct, organ, [[copied(tumor, turned=turned, flipped=flipped)]])
    expected = np.where(tumor.mask, tumor.hu, np.nan)
    # By hand: a quarter turn in the axial plane swaps x and y and reverses one of them.
    expected = expected.transpose(1, 0, 2)[::-1] if turned else expected
    expected = expected if axis is None else np.flip(expected, axis)
    box = Box(CENTER, tuple(c + 1 for c in CENTER)).padded(4).slices
    found = np.where(made.labels[0, 0].numpy()[box] == 2, made.ct_hu[0, 0].numpy()[box], np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_copy_keeps_the_contrast_to_its_parenchyma():
    tumor, (ct, organ) = source(parenchyma_hu=100.0), scan(mean_hu=60.0)
    (drawn,) = draw(synthesizer(tumor), ct, organ)
    assert drawn.source.shift_hu == pytest.approx(-40.0, abs=1.0)


def test_drawing_repeats_shows_every_tumor_in_every_orientation_and_ignores_the_order_of_cases():
    tumors = [source(case=name) for name in "abc"]
    ct, organ = scan()
    drawn = [draw(synthesizer(*tumors), ct, organ, seed=seed)[0] for seed in range(300)]
    assert drawn[:50] == [draw(synthesizer(*tumors[::-1]), ct, organ, seed=seed)[0] for seed in range(50)]
    counts = np.unique([made.source.case for made in drawn], return_counts=True)[1]
    assert len(counts) == 3
    assert counts.min() > 70
    assert len({(made.source.turned, *made.source.flipped) for made in drawn}) == 16
    assert {made.size for made in drawn} == {"tiny"}
    assert all(TumorRecord.from_json(made.to_json()) == made for made in drawn[:20])


def test_tumors_in_voxels_that_are_not_square_are_not_turned():
    tumor, (ct, organ) = source(2, spacing_mm=(1.0, 2.0, 1.0)), scan()
    made_by = TumorSynthesizer(organ=get_organ("liver"), spacing_mm=(1.0, 2.0, 1.0), sources=SourceTumors([tumor]))
    assert not any(draw(made_by, ct, organ, seed=seed)[0].source.turned for seed in range(20))


def test_a_size_takes_the_tumors_of_its_class_and_early_ones_are_below_2_cm():
    assert [size_of(radius).name for radius in (1, 5.6, 5.7, 9.99, 10, 22, 23, 90)] == [
        "tiny", "tiny", "small", "small", "medium", "medium", "large", "large",
    ]  # fmt: skip
    tiny, small = source(4), source(7, number=2)
    both = SourceTumors([tiny, small], origin="LiTS")
    assert both.of_size("tiny") == (tiny,)
    assert both.of_size("early") == both.of_size("mix") == (tiny, small)
    assert both.sizes == {"tiny", "small"}
    both.check([TumorSpec(generator="copy_paste"), TumorSpec(size="large")])
    with pytest.raises(ConfigError, match=r"None of the 2 tumors of LiTS is late: they are tiny, small; ask for"):
        both.check([TumorSpec(generator="copy_paste", size={"early": 1, "late": 1})])
    # The paper's mix has tumors of every size; a mix of one tumor has any.
    both.check([TumorSpec(generator="copy_paste", size="mix"), TumorSpec(generator="copy_paste", count="paper")])
    with pytest.raises(ConfigError, match="is large"):
        both.check([TumorSpec(generator="copy_paste", size="mix", count="paper")])
    both.check([TumorSpec(generator="copy_paste", satellites={"size": {"tiny": 1, "large": 0}})])
    with pytest.raises(ConfigError, match="is large"):
        both.check([TumorSpec(generator="copy_paste", satellites={"size": {"tiny": 1, "large": 1}})])


def test_identity_is_that_of_what_can_be_copied_in_any_order():
    tiny, small = source(4), source(7, number=2)
    known = SourceTumors([tiny, small]).identity
    assert SourceTumors([small, tiny], origin="elsewhere").identity == known
    annotated = replace(small, mask=np.flip(small.mask, 0))
    for others in ([tiny], [tiny, annotated], [tiny, replace(small, sha256="another")]):
        assert SourceTumors(others).identity != known


def test_half_axes_have_the_volume_of_the_tumor():
    tumor = source(7)
    x, y, z = tumor.half_axes_mm
    assert 4 / 3 * np.pi * x * y * z == pytest.approx(tumor.mask.sum())
    assert x == y == z


def test_copies_large_enough_may_leave_a_kidney():
    tumor, (ct, organ) = source(11), scan()
    made_by = TumorSynthesizer(organ=get_organ("kidney"), sources=SourceTumors([tumor]))
    leaving = [draw(made_by, ct, organ, size="medium", seed=seed)[0].may_leave_organ for seed in range(60)]
    assert sum(leaving) / 60 == pytest.approx(LEAVING_CHANCE, abs=0.2)


def test_another_tumor_than_the_recorded_one_is_refused():
    tumor, (ct, organ) = source(), scan()
    with pytest.raises(SynthesisError, match="tumor 1 of case 'case', which is not among the source tumors"):
        synthesizer(source(case="other")).apply(ct, organ, [[copied(tumor)]])
    changed = SourceTumor(**{**vars(source()), "sha256": "another"})
    with pytest.raises(SynthesisError, match="which has another CT now"):
        synthesizer(changed).apply(ct, organ, [[copied(tumor)]])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"diameter_mm": 12}, "diameter_mm"),
        ({"contrast_hu": -20}, "contrast_hu"),
        ({"irregularity": 0.5}, "irregularity"),
        ({"satellites": {"diameter_mm": 5}}, "satellites.diameter_mm"),
    ],
)
def test_what_would_change_a_copy_is_refused(fields, name):
    with pytest.raises(ConfigError, match=f"^{name} does not go with generator copy_paste"):
        TumorSpec(generator="copy_paste", **fields)


@pytest.mark.parametrize("change", [{"source": None}, {"generator": "diffusion"}])
def test_a_record_has_a_source_if_and_only_if_it_is_a_copy(change):
    with pytest.raises(SynthesisError, match="copy_paste with its source"):
        copied(source(), **change)


def test_sources_go_to_other_processes():
    assert pickle.loads(pickle.dumps(NO_SOURCES)).tumors == ()
