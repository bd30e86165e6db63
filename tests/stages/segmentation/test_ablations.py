"""The ablations of Hu et al. 2023, Table 4: each takes away what it says, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from difftumor.scans.organs import ORGANS
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.config.comparing import flatten
from stages.config.reading import to_plain
from studies.ablation import ABLATIONS
from tests.stages.segmentation.test_train import built

SIZE = 48
DRAWS = 12


@pytest.fixture
def drawn(tiny_segmentation):
    """Return the records that an ablation draws for the same seeds in a large organ, by seed."""
    organ = np.zeros((SIZE,) * 3, np.uint8)
    organ[2:-2, 2:-2, 2:-2] = 1
    ct = np.random.default_rng(0).normal(100, 15, organ.shape).astype(np.float32)

    def draw(name, *options):
        stage = built(tiny_segmentation("experiment=label_free", f"ablation={name}", "training.epochs=100", *options))
        mix = stage.module.tumors.mix
        synthesizer = TumorSynthesizer(organ=ORGANS["liver"], spacing_mm=(2.0, 2.0, 2.0))
        specs = {seed: replace(mix.draw(seed), count=2) for seed in range(DRAWS)}
        records = {seed: synthesizer.draw(organ, spec, seed=seed, ct_hu_XYZ=ct) for seed, spec in specs.items()}
        return synthesizer, ct, organ, records

    return draw


EARLY = ("synthesis.sizes.medium=0", "synthesis.sizes.large=0")


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_configs_differ_in_what_they_say_alone(tiny_segmentation, name):
    tiny, elastic, blurred = ABLATIONS[name]
    for experiment in ("label_free", "demo", "[label_free,demo]"):
        full, other = (
            flatten(to_plain(tiny_segmentation(f"experiment={experiment}", f"ablation={ablation}")))
            for ablation in ("full", name)
        )
        differ = {key: other[key] for key in full if other[key] != full[key]}
        expected = {} if tiny else {"synthesis.sizes.tiny": 0}
        expected |= {} if elastic else {"synthesis.irregularity": 0}
        expected |= {} if blurred else {"synthesis.blur_mm": 0}
        named = {key: differ.pop(key, None) for key in ("name", "artifact")}
        assert differ == expected
        assert (name == "full") == (set(named.values()) == {None})
        assert (full["tumors"], full["synthesis.irregularity"], full["synthesis.blur_mm"]) == ("handcrafted", 1, None)
        sizes = {key.rpartition(".")[2]: full[key] for key in full if key.startswith("synthesis.sizes.") and full[key]}
        assert sizes == {"tiny": 1, "small": 1, "medium": 1, "large": 1}


def test_without_tiny_ones_all_tumors_are_larger(drawn):
    sizes = {name: {record.size for records in drawn(name)[3].values() for record in records}
             for name in ("full", "no_tiny")}  # fmt: skip
    assert sizes["full"] >= {"tiny", "small", "medium"}
    assert sizes["no_tiny"] == sizes["full"] - {"tiny"}
    smallest = min(r.equivalent_radius_mm for records in drawn("no_tiny")[3].values() for r in records)
    assert smallest > 0.75 * 8  # the least half-axis of a small tumor


def test_without_deformation_tumors_are_ellipsoids_and_otherwise_the_same(drawn):
    *_, full = drawn("full", *EARLY)
    *_, plain = drawn("no_elastic", *EARLY)
    for seed, records in full.items():
        for before, after in zip(records, plain[seed], strict=True):
            assert before.deformation_sigma_mm > 0
            # Another shape has other places.
            moved = {"center_voxel": after.center_voxel, "center_mm": after.center_mm}
            assert replace(before, deformation_sigma_mm=0.0, **moved) == after


def test_without_blur_nothing_changes_outside_a_tumor_and_records_are_otherwise_the_same(drawn):
    synthesizer, ct, organ, full = drawn("full", *EARLY)
    *_, sharp = drawn("no_blur", *EARLY)
    *_, neither = drawn("no_elastic_no_blur", *EARLY)
    made = {}
    for name, records in (("full", full[0]), ("sharp", sharp[0])):
        synthesis = synthesizer.apply(*(torch.as_tensor(volume)[None, None] for volume in (ct, organ)), [records])
        made[name] = [volume[0, 0].numpy() for volume in (synthesis.change_hu != 0, synthesis.labels == 2)]
    changed, tumor = made["sharp"]
    assert not (changed & ~tumor).any()
    changed, tumor = made["full"]
    assert (changed & ~tumor).any()
    assert not (changed & ~ndimage.binary_dilation(tumor, iterations=6)).any()
    for seed, records in full.items():
        assert all(record.blur_sigma_voxels > 0 for record in records)
        assert tuple(replace(record, blur_sigma_voxels=0.0) for record in records) == sharp[seed]
        assert {(r.blur_sigma_voxels, r.deformation_sigma_mm) for r in neither[seed]} == {(0.0, 0.0)}


def test_healthy_scans_alone_are_enough(tiny_segmentation, tumor_cohort):
    stage = built(tiny_segmentation("ablation=full", "data.root=null", f"data.healthy_root={tumor_cohort}"))
    assert {case.id for case in stage.data.train} == {"healthy0", "healthy1", "silent_healthy"}
    assert stage.data.validation == ()
