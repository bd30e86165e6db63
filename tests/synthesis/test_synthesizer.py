from dataclasses import replace

import numpy as np
import pytest
import torch

from difftumor.errors import ArtifactError, ConfigError, SynthesisError
from difftumor.models.artifact_config import read_config
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.scans.organs import get_organ
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.loading import artifact_identities, load_synthesizer
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.synthesis.makers import ball, record, save_tiny_artifacts, tiny_synthesizer, wanted

SHAPE = (44, 40, 36)


@pytest.fixture(scope="module")
def synthesizer():
    return tiny_synthesizer()


def scan(shape=SHAPE, radius=15):
    generator = torch.Generator().manual_seed(0)
    ct = 60 + 15 * torch.randn(1, 1, *shape, generator=generator)
    ct[..., :3] = -900.0
    ct[..., -3:] = 1200.0
    return ct, torch.from_numpy(ball(shape, radius))[None, None]


def draw(synthesizer, organ, count=2, size="tiny", seed=0, **others):
    return synthesizer.draw(organ[0, 0], wanted(size, count), seed=seed, **others)


def test_draw_depends_on_seed_and_keys_alone(synthesizer):
    _, organ = scan()
    first = draw(synthesizer, organ)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - global state must not matter
    assert draw(synthesizer, organ) == first
    assert draw(synthesizer, organ, count=1) == first[:1]
    assert draw(synthesizer, organ, seed=1) != first
    assert draw(synthesizer, organ, keys=("epoch", 1)) != first
    assert draw(synthesizer, organ[0, 0].numpy()[None, None]) == first


def test_drawn_numbers_are_in_their_ranges(synthesizer):
    organ = torch.from_numpy(ball((60, 60, 60), 28))
    records = [r for seed in range(30) for r in synthesizer.draw(organ, wanted("early", 2), seed=seed)]
    assert {drawn.size for drawn in records} == {"tiny", "small"}
    for drawn in records:
        shares = np.array(drawn.half_axes_mm) / drawn.radius_mm
        assert ((shares >= 0.75) & (shares <= 1.25)).all()
        assert 0 <= drawn.blur_sigma_voxels <= 4
        assert organ[drawn.center_voxel]
    assert len({drawn.shape_seed for drawn in records} | {drawn.texture_seed for drawn in records}) == 120


def test_center_in_mm_follows_the_affine(synthesizer):
    affine = np.array([[1, 0, 0, -100], [0, 1, 0, 20], [0, 0, 1, 7], [0, 0, 0, 1.0]])
    (record,) = draw(synthesizer, scan()[1], count=1, affine=affine)
    np.testing.assert_allclose(record.center_mm, np.add(record.center_voxel, (-100, 20, 7)))


def test_apply_changes_the_halo_and_nothing_else(synthesizer):
    ct, organ = scan()
    before = ct.clone()
    records = draw(synthesizer, organ)
    made = synthesizer.apply(ct, organ, [records])
    assert ct.equal(before)
    assert made.halo.any()
    assert not made.halo.all()
    assert made.ct_hu[~made.halo].view(torch.int32).equal(ct[~made.halo].view(torch.int32))
    assert (made.change_hu[~made.halo] == 0).all()
    assert (made.change_hu[made.labels == 2] != 0).float().mean() > 0.9
    assert made.records == (records,)


def test_labels_and_lesions_agree(synthesizer):
    ct, organ = scan()
    made = synthesizer.apply(ct, organ, [draw(synthesizer, organ)])
    assert made.labels.dtype == torch.uint8
    assert made.lesions.unique().tolist() == [0, 1, 2]
    assert ((made.labels == 2) == (made.lesions > 0)).all()
    assert ((made.labels > 0) == organ).all()
    assert made.halo[made.lesions > 0].all()


def test_replaying_a_stored_record_is_bit_identical(synthesizer):
    ct, organ = scan()
    records = draw(synthesizer, organ)
    again = tuple(TumorRecord.from_json(record.to_json()) for record in records)
    first, second = synthesizer.apply(ct, organ, [records]), synthesizer.apply(ct, organ, [again])
    assert first.ct_hu.equal(second.ct_hu)
    assert first.lesions.equal(second.lesions)


@pytest.mark.parametrize("shape", [SHAPE, (32, 32, 32)])
def test_a_batch_equals_its_elements(synthesizer, shape):
    cases = [scan(shape, radius) for radius in (11, 12, 13)]
    drawn = [
        draw(synthesizer, organ, count=n, seed=n) if n else () for n, (_, organ) in zip((2, 0, 1), cases, strict=True)
    ]
    ct, organ = (torch.cat(parts) for parts in zip(*cases, strict=True))
    together = synthesizer.apply(ct, organ, drawn)
    for i, (one_ct, one_organ) in enumerate(cases):
        alone = synthesizer.apply(one_ct, one_organ, drawn[i : i + 1])
        assert together.lesions[i : i + 1].equal(alone.lesions)
        assert together.halo[i : i + 1].equal(alone.halo)
        torch.testing.assert_close(together.ct_hu[i : i + 1], alone.ct_hu, atol=1e-2, rtol=0)
    assert together.ct_hu[1].equal(ct[1])
    assert not together.halo[1].any()


def test_a_crop_of_the_patch_size_is_one_patch_and_larger_arrays_have_one_per_tumor(synthesizer, monkeypatch):
    seen = []
    texture = synthesizer.diffusion["early"]
    make = texture.make

    def spy(ct, mask, seeds):
        seen.append((tuple(ct.shape), mask.flatten(1).sum(1).tolist()))
        return make(ct, mask, seeds)

    monkeypatch.setattr(texture, "make", spy)
    for shape in ((32, 32, 32), SHAPE):
        ct, organ = scan(shape, 13)
        # Little blur, so that tumor and halo fit the patch.
        records = [replace(record, blur_sigma_voxels=0.5) for record in draw(synthesizer, organ)]
        made = synthesizer.apply(ct, organ, [records])
        volumes = [int((made.lesions == n).sum()) for n in (1, 2)]
        batch, masks = seen.pop()
        if shape == SHAPE:
            assert batch == (2, 1, 32, 32, 32)
            assert masks == volumes
        else:
            assert batch == (1, 1, 32, 32, 32)
            assert masks == [sum(volumes)]


def test_a_tumor_larger_than_the_patch_gets_a_larger_one(synthesizer):
    ct, organ = scan((80, 76, 72), 34)
    records = draw(synthesizer, organ, count=1, size="medium")
    made = synthesizer.apply(ct, organ, [records])
    assert (made.lesions == 1).sum() > 5000
    assert (made.change_hu[made.lesions == 1] != 0).float().mean() > 0.9


def test_arrays_smaller_than_the_patch_are_padded(synthesizer):
    ct, organ = scan((21, 23, 17), 8)
    made = synthesizer.apply(ct, organ, [draw(synthesizer, organ, count=1)])
    assert made.ct_hu.shape == ct.shape
    assert (made.lesions == 1).any()


def test_the_place_of_the_array_does_not_matter(synthesizer):
    """A tumor depends on the CT around it, not on how much of the scan is given."""
    ct, organ = scan((100, 96, 80), 15)
    records = draw(synthesizer, organ, count=1)
    whole = synthesizer.apply(ct, organ, [records])
    part = (..., slice(10, 90), slice(8, 88), slice(5, 75))
    moved = [record.moved((-10, -8, -5)) for record in records]
    cut = synthesizer.apply(ct[part], organ[part], [moved])
    assert cut.ct_hu.equal(whole.ct_hu[part])


def test_pancreas_takes_the_decoded_patch(synthesizer):
    pancreas = tiny_synthesizer("pancreas")
    ct, organ = scan((32, 32, 32), 10)
    made = pancreas.apply(ct, organ, [pancreas.draw(organ[0, 0], wanted("tiny", 1), seed=0)])
    assert made.halo.all()
    inside = (ct > -175) & (ct < 250)
    assert made.ct_hu[inside].min() >= -175.01
    # In a scan only tumor and rim are replaced.
    ct, organ = scan(SHAPE, 10)
    made = pancreas.apply(ct, organ, [pancreas.draw(organ[0, 0], wanted("tiny", 1), seed=0)])
    assert 0 < made.halo.sum() < made.halo.numel()


def test_large_pancreas_tumors_are_centered_and_kidney_tumors_may_leave():
    pancreas, kidney = tiny_synthesizer("pancreas"), tiny_synthesizer("kidney")
    organ = ball((50, 50, 50), 9)
    (record,) = pancreas.draw(organ, wanted("large", 1), seed=0)
    assert record.center_voxel == (25, 25, 25)
    drawn = [kidney.draw(ball((60, 60, 60), 14), wanted("medium", 1), seed=seed)[0] for seed in range(30)]
    assert 5 < sum(record.may_leave_organ for record in drawn) < 25
    assert not any(r.may_leave_organ for s in range(10) for r in kidney.draw(organ, wanted("tiny", 1), seed=s))


def test_a_tumor_that_may_leave_is_labeled_outside_the_organ(synthesizer):
    ct, organ = scan(SHAPE, 14)
    kidney = tiny_synthesizer("kidney")
    records = [r for s in range(20) for r in kidney.draw(organ[0, 0], wanted("medium", 1), seed=s) if r.may_leave_organ]
    made = kidney.apply(ct, organ, [records[:1]])
    assert (made.labels[~organ] == 2).any()


def test_little_room_gives_fewer_tumors_or_an_error(synthesizer):
    organ = ball((30, 30, 30), 6)
    records = synthesizer.draw(organ, wanted("tiny", 50), seed=0)
    assert 1 <= len(records) < 50
    voxel = np.zeros((30, 30, 30), bool)
    voxel[3, 3, 3] = True
    with pytest.raises(SynthesisError, match="liver has no room for a tumor of size 'tiny'"):
        synthesizer.draw(voxel, wanted("tiny", 1), seed=0)
    with pytest.raises(SynthesisError, match="no organ voxel"):
        synthesizer.draw(np.zeros((5, 5, 5)), wanted("tiny", 1), seed=0)
    with pytest.raises(ConfigError, match="'giant' is unknown"):
        synthesizer.draw(organ, wanted("giant", 1), seed=0)


def test_records_that_do_not_belong_are_refused(synthesizer):
    ct, organ = scan()
    (record,) = draw(synthesizer, organ, count=1)
    for moved, message in (((900, 0, 0), "outside the CT"), ((-20, -20, -16), "no room|outside")):
        with pytest.raises(SynthesisError, match=message):
            synthesizer.apply(ct, organ, [[record.moved(moved)]])
    with pytest.raises(SynthesisError, match="cannot be applied at"):
        synthesizer.apply(ct, organ, [[replace(record, spacing_mm=(2.0, 2.0, 2.0))]])
    alone = TumorSynthesizer(organ=get_organ("liver"))
    with pytest.raises(SynthesisError, match="needs the early model"):
        alone.apply(ct, organ, [[record]])
    with pytest.raises(SynthesisError, match="belong together"):
        synthesizer.apply(ct, organ, [])
    with pytest.raises(SynthesisError, match="multiple of"):
        tiny_synthesizer(patch=30)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (SHAPE, {"sampler": SamplerConfig("ddim", 2, 0.5)}),
        (SHAPE, {"sampler": SamplerConfig("ddim", 1, spacing="trailing")}),
        ((32, 32, 32), {}),
    ],
)
def test_how_many_patches_go_together_does_not_matter(shape, options):
    cases = [scan(shape, radius) for radius in (11, 13)]
    ct, organ = (torch.cat(parts) for parts in zip(*cases, strict=True))
    drawn = [draw(tiny_synthesizer(), organ, seed=seed) for seed, (_, organ) in enumerate(cases)]
    one, three, every = (
        tiny_synthesizer(**options, patches_at_once=count).apply(ct, organ, drawn) for count in (1, 3, 99)
    )
    assert (one.change_hu != 0).flatten(1).any(1).all()
    for other in (three, every):
        assert other.lesions.equal(one.lesions)
        torch.testing.assert_close(other.ct_hu, one.ct_hu, atol=1e-2, rtol=0)


def small_tumor(precision):
    """Return what takes little time in bf16, which many processors compute slowly: one step of a patch of 16 voxels."""
    synthesizer = tiny_synthesizer(precision=precision, sampler=SamplerConfig("ddim", 1), patch=16)
    ct, organ = scan()
    drawn = [replace(drawn, blur_sigma_voxels=0.5) for drawn in draw(synthesizer, organ, count=1)]
    return synthesizer, ct, organ, [drawn]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_neither_the_callers_autocast_nor_autograd_reaches_the_tumors(precision):
    synthesizer, ct, organ, records = small_tumor(precision=precision)
    expected = synthesizer.apply(ct, organ, records)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        made = synthesizer.apply(ct.clone().requires_grad_(True), organ, records)
    for name in ("ct_hu", "change_hu", "halo", "lesions"):
        ours, theirs = getattr(made, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)
        assert not ours.requires_grad
    assert synthesizer.diffusion["early"].sampling == {
        "kind": "ddim", "steps": 1, "eta": 0.0, "spacing": "leading", "precision": precision,
    }  # fmt: skip


def test_precision_changes_the_texture_and_nothing_else():
    exact_synthesizer, ct, organ, records = small_tumor(precision="fp32")
    rounded_synthesizer, *_ = small_tumor(precision="bf16")
    exact, rounded = (one.apply(ct, organ, records) for one in (exact_synthesizer, rounded_synthesizer))
    assert rounded.lesions.equal(exact.lesions)
    assert rounded.halo.equal(exact.halo)
    assert not rounded.ct_hu.equal(exact.ct_hu)
    assert rounded.ct_hu[~exact.halo].equal(ct[~exact.halo])


def test_the_sampler_of_an_artifact_is_taken_changed_or_replaced(tmp_path):
    path = save_tiny_artifacts(tmp_path)

    def sampling(**options):
        return load_synthesizer(path, organ="liver", **options).diffusion["early"].sampling

    usual = {"kind": "ddpm", "steps": None, "eta": 0.0, "spacing": "leading", "precision": "fp32"}
    assert sampling() == sampling(sampler={}) == sampling(sampler={"kind": None, "eta": None}) == usual
    assert sampling(sampler={"kind": "ddim", "steps": 2}) == {**usual, "kind": "ddim", "steps": 2}
    assert sampling(sampler=SamplerConfig("ddim", 3, 0.5), precision="bf16") == {
        **usual, "kind": "ddim", "steps": 3, "eta": 0.5, "precision": "bf16",
    }  # fmt: skip
    # An option that does not fit is the caller's mistake, not the artifact's.
    for sampler in (SamplerConfig("ddim", 9), {"kind": "ddim", "steps": 9}):
        with pytest.raises(ConfigError, match="steps must be at most 4 of the schedule with 'ddim', not 9"):
            sampling(sampler=sampler)
    with pytest.raises(ConfigError, match=r"eta 0\.5 has no meaning for 'ddpm'"):
        sampling(sampler={"eta": 0.5})
    with pytest.raises(ConfigError, match="precision 'fp64' is unknown"):
        sampling(precision="fp64")


def test_an_artifact_from_before_spacing_leads(tmp_path):
    path = save_tiny_artifacts(tmp_path)  # its sampler has no such key
    assert "spacing" not in read_config(path).settings["sampler"]
    assert load_synthesizer(path, organ="liver").diffusion["early"].sampling["spacing"] == "leading"


def test_artifacts_give_the_same_synthesizer(synthesizer, tmp_path):
    path = save_tiny_artifacts(tmp_path)
    loaded = load_synthesizer(path, organ="liver", device="cpu")
    assert loaded.organ is get_organ("liver")
    ct, organ = scan()
    records = draw(loaded, organ)
    assert records == draw(synthesizer, organ)
    assert loaded.apply(ct, organ, [records]).ct_hu.equal(synthesizer.apply(ct, organ, [records]).ct_hu)
    assert set(artifact_identities(path)) == {"diffusion", "autoencoder"}


def test_wrong_artifacts_are_refused(tmp_path):
    path = save_tiny_artifacts(tmp_path)
    with pytest.raises(ArtifactError, match="not 'diffusion'"):
        load_synthesizer(tmp_path / "autoencoder", organ="liver")
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"timesteps": 4', '"steps": 4'))
    with pytest.raises(ArtifactError, match="timesteps"):
        load_synthesizer(path, organ="liver")
    (path / "config.json").write_text(text.replace('"ddpm"', '"dream"'))
    with pytest.raises(ArtifactError, match="dream"):
        load_synthesizer(path, organ="liver")


@pytest.mark.gpu
def test_gpu_makes_the_same_tumors(synthesizer):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    # The module's own networks stay on the CPU; moving shared ones would change other tests.
    from difftumor.models.latent_codec import LatentCodec
    from tests.synthesis.makers import tiny_autoencoder, tiny_denoiser

    gpu = tiny_synthesizer(codec=LatentCodec(tiny_autoencoder().to("cuda")), denoiser=tiny_denoiser().to("cuda"))
    ct, organ = scan()
    records = draw(synthesizer, organ)
    on_cpu, on_gpu = synthesizer.apply(ct, organ, [records]), gpu.apply(ct.to("cuda"), organ.to("cuda"), [records])
    assert on_gpu.lesions.cpu().equal(on_cpu.lesions)
    assert on_gpu.halo.cpu().equal(on_cpu.halo)
    assert on_gpu.ct_hu.equal(gpu.apply(ct.to("cuda"), organ.to("cuda"), [records]).ct_hu)


def test_values_lie_between_ct_and_texture_where_halos_overlap_and_bone_keeps_its_contrast(monkeypatch):
    synthesizer = tiny_synthesizer()
    texture = synthesizer.diffusion["early"]
    monkeypatch.setattr(texture, "make", lambda ct, mask, seeds: torch.full_like(ct, 40.0))
    ct, organ = torch.full((1, 1, *SHAPE), 100.0), torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    ct[0, 0, 14, 20, 18] = 1200.0
    records = [
        record(center_voxel=(14, 20, 18), blur_sigma_voxels=0.0),
        record(center_voxel=(25, 20, 18), blur_sigma_voxels=4.0),
    ]
    made = synthesizer.apply(ct, organ, [records]).ct_hu[0, 0]
    # The window ends at 250 HU: what bone has beyond stays.
    assert made[14, 20, 18] == 1200 - (250 - 40)
    made[14, 20, 18] = 40.0
    assert made.min() >= 40 - 1e-3
    assert made.max() <= 100
    assert made[13, 20, 18] == pytest.approx(40)


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_blur_is_drawn_from_zero_to_four_mm(spacing_mm):
    synthesizer = tiny_synthesizer(spacing_mm=(spacing_mm,) * 3)
    organ = np.ones((24, 24, 24), bool)
    records = [synthesizer.draw(organ, wanted("tiny", 1), seed=seed)[0] for seed in range(60)]
    sigmas_mm = [record.blur_sigma_voxels * spacing_mm for record in records]
    assert 0 <= min(sigmas_mm) < 0.5
    assert 3.5 < max(sigmas_mm) <= 4


def test_in_a_scan_a_tumor_of_the_pancreas_blends_as_any_other():
    pancreas, liver = tiny_synthesizer("pancreas"), tiny_synthesizer("liver")
    ct = 60 + 15 * torch.randn(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    organ = torch.ones_like(ct, dtype=torch.bool)
    drawn = [[record(center_voxel=(20, 20, 20), blur_sigma_voxels=2.0)]]
    assert pancreas.apply(ct, organ, drawn).ct_hu.equal(liver.apply(ct, organ, drawn).ct_hu)
