"""Tumors made during training: who gets which, and that nothing but a crop's own seed decides."""

import math
import time
from collections import Counter

import pytest
import torch

from difftumor.datasets.crops import OUTSIDE
from difftumor.datasets.transforms import AIR_HU
from difftumor.errors import ConfigError, SynthesisError
from difftumor.scans.organs import get_organ
from difftumor.synthesis.scan.loading import load_synthesizer
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.segmentation.tumor_mix import TumorMix
from stages.segmentation.tumors import Stopwatch, TumorsOnTheFly

PUBLISHED = {"early": 0.8, "medium": 0.1, "large": 0.1}


def mix(**changes) -> TumorMix:
    diffusion = {"diffusion": 1.0, "handcrafted": 0.0}
    return TumorMix(**{"probability": 0.5, "generators": diffusion, "sizes": PUBLISHED, "most_early": 3, **changes})


@pytest.fixture(scope="module")
def synthesizer(untrained):
    return load_synthesizer(
        {stage: untrained / f"diffusion_liver_{stage}" for stage in ("early", "late")}, organ="liver"
    )


@pytest.fixture(params=[{"diffusion": 1.0}, {"diffusion": 1.0, "handcrafted": 1.0}], ids=["diffusion", "both"])
def always(synthesizer, request) -> TumorsOnTheFly:
    sizes = {"tiny": 0.6, "medium": 0.4}
    return TumorsOnTheFly(synthesizer=synthesizer, mix=mix(probability=1.0, sizes=sizes, generators=request.param))


def crops(size):
    ct = 60 + 10 * torch.randn(size, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(ct.shape, dtype=torch.uint8)
    labels[:, :, 2:14, 2:14, 2:14] = 1
    return ct, labels


def test_the_published_mix_is_met():
    draws = [mix().draw(seed) for seed in range(8000)]
    made = [draw for draw in draws if draw is not None]
    assert len(made) / 8000 == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 8000))
    share = {size: count / len(made) for size, count in Counter(map(size_of, made)).items()}
    assert share == pytest.approx(PUBLISHED, abs=0.03)
    assert {count_of(spec) for spec in made if size_of(spec) != "early"} == {1}
    early = Counter(count_of(spec) for spec in made if size_of(spec) == "early")
    assert set(early) == {1, 2, 3}
    assert max(early.values()) / min(early.values()) < 1.2
    assert {(spec.generator, spec.placement) for spec in made} == {("diffusion", "slice")}


def test_generators_come_by_their_weights_and_crafted_tumors_in_the_papers_numbers():
    both = mix(probability=1.0, generators={"diffusion": 1.0, "handcrafted": 3.0}, placement="uniform")
    made = [both.draw(seed) for seed in range(4000)]
    crafted = [spec for spec in made if spec.generator == "handcrafted"]
    assert len(crafted) / 4000 == pytest.approx(0.75, abs=4 * math.sqrt(0.1875 / 4000))
    assert {spec.count for spec in crafted} == {"paper"}
    assert "paper" not in {spec.count for spec in made if spec.generator == "diffusion"}
    assert {spec.placement for spec in made} == {"uniform"}


def test_sizes_without_their_model_are_left_out_of_diffusion_alone_and_named():
    only_early = mix(models=frozenset({"early"}))
    assert only_early.left_out("diffusion") == ["medium", "large"]
    assert only_early.groups == {"early", "late"}
    assert {size_of(spec) for seed in range(200) if (spec := only_early.draw(seed))} == {"early"}
    assert mix().left_out("diffusion") == []
    with pytest.raises(ConfigError, match="no weight above 0"):
        mix(sizes={"early": 1.0}, models=frozenset({"late"}))
    crafted = mix(generators={"handcrafted": 1.0}, models=frozenset())
    assert (crafted.left_out("diffusion"), crafted.groups) == ([], frozenset())
    assert {size_of(spec) for seed in range(200) if (spec := crafted.draw(seed))} == set(PUBLISHED)


def size_of(spec):
    return next(iter(spec.weights))


def count_of(spec):
    return spec.count.limits[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"huge": 1.0}}, r"'huge' is unknown"),
        ({"sizes": {"early": 0.0}}, r"no weight above 0"),
        ({"generators": {"diffusion": 0.0}}, r"synthesis\.generators has no weight"),
        ({"irregularity": -1}, r"synthesis\.irregularity is -1"),
        ({"blur_mm": "soft"}, r"synthesis\.blur_mm is 'soft'"),
    ],
)
def test_a_wrong_mix_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        mix(**change)


def test_a_missing_model_is_refused(untrained):
    early = load_synthesizer({"early": untrained / "diffusion_liver_early"}, organ="liver")
    with pytest.raises(ConfigError, match="late model"):
        TumorsOnTheFly(synthesizer=early, mix=mix())


def test_healthy_crops_get_tumors_in_the_organ_and_others_stay_as_they_are(always):
    ct, labels = crops(4)
    labels[1, 0, 5:7, 5:7, 5:7] = 2  # a real tumor
    before = ct.clone(), labels.clone()
    made = always(ct, labels, seeds=[11, 12, 13, 14], healthy=[True, False, True, True])
    assert torch.equal(ct, before[0])
    assert torch.equal(labels, before[1])
    assert torch.equal(made.ct_hu[1], ct[1])
    assert torch.equal(made.labels[1], labels[1])
    assert made.records[1] == ()
    assert (made.wanted, made.rejected) == (3, 0)
    for element in (0, 2, 3):
        tumor = made.labels[element] == 2
        assert tumor.any()
        assert (labels[element][tumor] == 1).all()
        assert torch.equal(made.labels[element] > 0, labels[element] > 0)
        assert not torch.equal(made.ct_hu[element], ct[element])
    assert made.labels.dtype == torch.uint8
    assert not made.ct_hu.requires_grad


@pytest.fixture(scope="module")
def wide():
    """Four crops of 16³ with a margin of 8 voxels, one of them at the border of its scan."""
    ct = 110 + 15 * torch.randn(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(ct.shape, dtype=torch.uint8)
    labels[..., 6:26, 6:26, 6:26] = 1
    ct[0, :, :8], labels[0, :, :8] = AIR_HU, OUTSIDE
    return ct, labels


def crafted(center, margin):
    synthesizer = TumorSynthesizer(organ=get_organ("liver"))
    only = mix(probability=1.0, generators={"handcrafted": 1.0}, sizes={"tiny": 1.0}, placement="uniform")
    return TumorsOnTheFly(synthesizer=synthesizer, mix=only, center=center, margin=margin)


def test_crops_that_stay_get_the_tumors_of_crops_without_a_margin(wide):
    (ct, labels), seeds = wide, [1, 2, 3, 4]
    inner = (..., *[slice(8, 24)] * 3)
    narrow = crafted(0.0, (0, 0, 0))(ct[inner], labels[inner], seeds=seeds, healthy=[True] * 4)
    ours = crafted(0.0, (8, 8, 8))(ct, labels, seeds=seeds, healthy=[True] * 4)
    assert ours.records == narrow.records
    assert torch.equal(ours.labels, narrow.labels)
    assert torch.equal(ours.ct_hu, narrow.ct_hu)


def test_a_share_of_the_crops_is_moved_to_a_voxel_of_a_tumor_inside_the_scan(wide):
    ct, labels = wide
    always, half, never = (crafted(center, (8, 8, 8)) for center in (1.0, 0.5, 0.0))
    moved = 0
    for seed in range(0, 40, 4):
        seeds = list(range(seed, seed + 4))
        ours, some, still = (each(ct, labels, seeds=seeds, healthy=[True] * 4) for each in (always, half, never))
        assert not (ours.labels == OUTSIDE).any()
        assert (ours.labels[1:, 0, 8, 8, 8] == 2).all()
        for element in range(4):
            assert any(torch.equal(some.ct_hu[element], each.ct_hu[element]) for each in (ours, still))
            moved += torch.equal(some.ct_hu[element], ours.ct_hu[element])
    assert 10 <= moved <= 30
    alone = always(ct[2:3], labels[2:3], seeds=[38], healthy=[True])
    assert torch.equal(alone.ct_hu[0], ours.ct_hu[2])
    untouched = always(ct, labels, seeds=[1, 2, 3, 4], healthy=[False] * 4)
    assert torch.equal(untouched.ct_hu, ct[..., 8:24, 8:24, 8:24])


def test_without_a_draw_the_crop_is_bit_identical(synthesizer):
    ct, labels = crops(3)
    never = TumorsOnTheFly(synthesizer=synthesizer, mix=mix(probability=0.0))
    made = never(ct, labels, seeds=[1, 2, 3], healthy=[True] * 3)
    assert torch.equal(made.ct_hu, ct)
    assert torch.equal(made.labels, labels)
    assert (made.wanted, made.rejected) == (0, 0)


def test_a_batch_equals_its_elements_in_any_order(always):
    ct, labels = crops(5)
    seeds = [21, 22, 23, 24, 25]
    together = always(ct, labels, seeds=seeds, healthy=[True] * 5)
    assert {record.size for records in together.records for record in records} == {"tiny", "medium"}
    for element in (4, 0, 3, 1, 2):
        alone = always(ct[[element]], labels[[element]], seeds=[seeds[element]], healthy=[True])
        assert alone.records[0] == together.records[element]
        assert torch.equal(alone.labels[0], together.labels[element])
        assert torch.allclose(alone.ct_hu[0], together.ct_hu[element], atol=1e-2)
        assert torch.equal(alone.ct_hu[0] == ct[element], together.ct_hu[element] == ct[element])


def test_the_same_seeds_repeat_and_others_differ(always):
    ct, labels = crops(2)
    first, again = (always(ct, labels, seeds=[31, 32], healthy=[True] * 2) for _ in range(2))
    assert torch.equal(first.ct_hu, again.ct_hu)
    assert torch.equal(first.labels, again.labels)
    other = always(ct, labels, seeds=[33, 34], healthy=[True] * 2)
    assert not torch.equal(first.labels, other.labels)


def test_rejected_draws_leave_the_crop_healthy_and_are_counted(always):
    ct, labels = crops(3)
    labels[0] = 0  # no organ at all
    made = always(ct, labels, seeds=[41, 42, 43], healthy=[True] * 3)
    assert (made.wanted, made.rejected) == (3, 1)
    assert torch.equal(made.ct_hu[0], ct[0])
    assert torch.equal(made.labels[0], labels[0])
    assert (made.labels[1] == 2).any()


def test_faint_tumors_are_left_out_and_counted_whatever_else_is_in_the_batch(always):
    ct, labels = crops(4)
    seeds = [61, 62, 63, 64]
    plain = always(ct, labels, seeds=seeds, healthy=[True] * 4)
    changed = [float((plain.ct_hu - ct)[i][plain.labels[i] == 2].mean().abs()) for i in range(4)]
    least = sorted(changed)[1] + 1e-3
    strict = TumorsOnTheFly(synthesizer=always.synthesizer, mix=always.mix, minimum_change_hu=least)
    together = strict(ct, labels, seeds=seeds, healthy=[True] * 4)
    assert (together.wanted, plain.faint) == (4, 0)
    assert 0 < together.rejected < 4
    assert together.faint == sum(map(len, plain.records)) - sum(map(len, together.records))
    for element, records in enumerate(together.records):
        assert ((together.labels[element] == 2).any()) == bool(records)
        if not records:
            assert torch.equal(together.ct_hu[element], ct[element])
            assert torch.equal(together.labels[element], labels[element])
        alone = strict(ct[[element]], labels[[element]], seeds=[seeds[element]], healthy=[True])
        assert alone.records[0] == records


def test_a_broken_model_is_not_taken_for_lack_of_room(always, monkeypatch):
    def broken(*_, **__):
        raise SynthesisError("not finite")

    monkeypatch.setattr(always.synthesizer, "apply", broken)
    with pytest.raises(SynthesisError, match="not finite"):
        always(*crops(1), seeds=[1], healthy=[True])


CPU = torch.device("cpu")


def test_the_clock_adds_up_what_it_measures_and_starts_over():
    watch = Stopwatch()
    for _ in range(2):
        with watch.running(CPU):
            time.sleep(0.02)
    time.sleep(0.05)
    watch.add(1.0)
    assert 1.04 <= watch.take() < 1.09 + 0.5  # a busy machine may sleep longer, but never shorter
    assert watch.take() == 0


def test_a_start_without_an_end_and_an_end_without_a_start_count_nothing():
    watch = Stopwatch()
    watch.stop()
    watch.start(CPU)
    assert watch.take() == 0
    watch.start(CPU)
    watch.stop()
    assert watch.take() < 0.5


def test_a_block_that_fails_is_measured_too():
    watch = Stopwatch()

    def fail():
        time.sleep(0.01)
        raise RuntimeError

    with pytest.raises(RuntimeError), watch.running(CPU):
        fail()
    assert watch.take() >= 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_measures_the_stream():
    device = torch.device("cuda")
    watch = Stopwatch()
    a = torch.randn(4096, 4096, device=device)
    with watch.running(device):
        for _ in range(20):
            a = (a @ a).clamp(-1, 1)
    started = time.perf_counter()
    seconds = watch.take()
    assert 0 < seconds < time.perf_counter() - started + 1
