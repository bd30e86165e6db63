"""Tumors that are made and measured before they are accepted."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from difftumor.errors import SynthesisError
from difftumor.scans.appearance import Appearance
from difftumor.scans.grid import Grid
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import get_organ
from difftumor.seeding import derive_seed
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.scan.gate import CONTRAST_SAMPLES, QualityGate, Rejection, RejectionSampler
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.scan.report import appearance_in
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.nifti import write_nifti
from tests.synthesis.makers import ball, draw_in_scan, insert, synthesize_scan, tiny_synthesizer, wanted

SHAPE = (44, 44, 44)
WINDOW = IntensityWindow()
SEEDS = range(4)


@pytest.fixture
def scan():
    organ = ball(SHAPE, 19)
    hu = np.random.default_rng(0).normal(100, 5, SHAPE).astype(np.float32)
    return Scan(Volume(hu, Grid(SHAPE, np.eye(4)), Path("ct.nii.gz"), nib.Nifti1Header()), None, organ, organ="liver")


class Flat:
    """Stands for a network: every texture has one value, which its seed decides."""

    def __init__(self, hu_of_seed):
        self.hu_of_seed, self.made = hu_of_seed, []

    def __call__(self, ct, mask, seeds):
        values = [self.hu_of_seed(seed) for seed in seeds]
        self.made += seeds
        return torch.stack([torch.full_like(one, value) for one, value in zip(ct, values, strict=True)])


@pytest.fixture
def flat(monkeypatch):
    def make(hu_of_seed):
        synthesizer, texture = tiny_synthesizer(), Flat(hu_of_seed)
        monkeypatch.setattr(synthesizer.diffusion["early"], "make", texture)
        return synthesizer, texture

    return make


def run(synthesizer, scan, *, gate=None, attempts=1, seed=0, **fields):
    specs = [wanted("tiny", **{"blur_mm": 1, **fields})]
    model_scan = ModelScan(scan, synthesizer.spacing_mm)
    sampler = RejectionSampler(synthesizer=synthesizer, model_scan=model_scan, gate=gate)
    host = model_scan.host(specs, synthesizer.organ)
    return draw_tumors(host, specs, seed=seed, accept=sampler, attempts=attempts), sampler


class Picky(QualityGate):
    """Lets through what a rule says."""

    def failures(self, record, part, number, appearance):
        self.seen.append((record, part, number, appearance))
        return self.rule(record)


def picky(rule, **options):
    gate = Picky(**options)
    object.__setattr__(gate, "rule", rule)
    object.__setattr__(gate, "seen", [])
    return gate


def spread(seed):
    """Return one of 81 textures from 20 to 180 HU."""
    return 20.0 + 2 * (seed % 81)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_several_textures_the_one_nearest_to_the_contrast_is_kept(flat, scan, seed):
    synthesizer, texture = flat(spread)
    drawn, sampler = run(synthesizer, scan, contrast_hu=-30, seed=seed)
    (kept,) = drawn.records
    contrasts = []
    for tried in texture.made[: kept.attempts]:
        (part,) = insert(synthesizer, scan, [replace(kept, texture_seed=tried)]).parts
        contrasts.append(appearance_in(part, 1, window=WINDOW).contrast_hu)
    distances = np.abs(np.array(contrasts) + 30)
    assert kept.texture_seed == texture.made[int(distances.argmin())]
    # Either one came near enough and ended the search, or all of them were made.
    assert kept.attempts == (CONTRAST_SAMPLES if distances.min() > 2 else len(distances))
    assert (distances[:-1] > 2).all()
    assert sampler.rejections == []


def test_the_first_texture_is_the_tumors_own_and_the_others_follow_from_it(flat, scan):
    synthesizer, texture = flat(lambda seed: 200.0)
    drawn, _ = run(synthesizer, scan, contrast_hu=-30)
    first = texture.made[0]
    assert texture.made == [first, *(derive_seed(first, "sample", index) for index in range(1, CONTRAST_SAMPLES))]
    # All are as far: the first is kept, having made eight.
    assert (drawn.records[0].texture_seed, drawn.records[0].attempts) == (first, CONTRAST_SAMPLES)
    plain = draw_in_scan(synthesizer, scan, [wanted("tiny", blur_mm=1)])
    assert first == plain[0].texture_seed


def test_without_a_contrast_one_texture_is_enough(flat, scan):
    synthesizer, texture = flat(spread)
    drawn, _ = run(synthesizer, scan, count=2)
    assert texture.made == []  # nothing is looked at
    assert [record.attempts for record in drawn.records] == [1, 1]


def test_hand_crafted_tumors_have_their_contrast_by_construction(scan):
    alone = TumorSynthesizer(organ=get_organ("liver"))
    drawn, _ = run(alone, scan, contrast_hu=-30, generator="handcrafted", blur_mm=0)
    (record,) = drawn.records
    assert record.attempts == 1
    (part,) = insert(alone, scan, [record]).parts
    assert appearance_in(part, 1, window=WINDOW).contrast_hu == pytest.approx(-30, abs=4)


def test_rejections_are_recorded_and_attempts_counted(flat, scan):
    synthesizer, _ = flat(spread)
    gate = picky(lambda record: () if record.attempts == 3 else ("noise", "seam"))
    drawn, sampler = run(synthesizer, scan, gate=gate, attempts=5, count=2)
    assert [record.attempts for record in drawn.records] == [3, 3]
    assert sampler.rejections == [Rejection(tumor, ("noise", "seam")) for tumor in (1, 1, 2, 2)]
    assert sampler.rejections[0].to_dict() == {"wanted": 1, "failed": ["noise", "seam"]}
    # Every one is judged by its looks in model space.
    record, part, number, looks = gate.seen[0]
    assert number == 1
    assert isinstance(looks, Appearance)
    assert (part.lesions > 0).sum() == looks.voxels > 50
    assert part.numbers == (1,)
    assert part.lesions[tuple(np.subtract(record.center_voxel, part.region.start))] == 1


def test_the_gate_gives_up_after_its_attempts(flat, scan):
    synthesizer, texture = flat(spread)
    gate = picky(lambda record: ("flat or strip-like",))
    drawn, sampler = run(synthesizer, scan, gate=gate, attempts=4, count=2)
    assert drawn.records == ()
    assert len(texture.made) == 8
    assert [rejection.wanted for rejection in sampler.rejections] == [1] * 4 + [2] * 4
    assert drawn.shortfalls == ("2 of 2 tumors could not be made: all that were tried were rejected.",)


def test_of_the_textures_that_pass_the_gate_the_nearest_is_kept(flat, scan):
    synthesizer, texture = flat(spread)
    bad: list[int] = []

    def rule(record):
        # The second texture, whatever it is, is rejected.
        bad.append(record.texture_seed)
        return ("noise",) if len(bad) == 2 else ()

    gate = picky(rule)
    drawn, sampler = run(synthesizer, scan, gate=gate, contrast_hu=-300, attempts=3)
    (kept,) = drawn.records
    assert sampler.rejections == [Rejection(1, ("noise",))]
    assert kept.attempts == CONTRAST_SAMPLES == len(texture.made)
    others = [seed for seed in texture.made if seed != bad[1]]
    assert kept.texture_seed == min(others, key=spread)


def test_rejected_attempts_count_textures_too(flat, scan):
    """Eight textures of the first attempt fail, and the first of the second passes: nine were made."""
    synthesizer, texture = flat(lambda seed: 70.0)
    gate = picky(lambda record: () if record.attempts == 2 else ("noise",))
    drawn, sampler = run(synthesizer, scan, gate=gate, contrast_hu=-30, attempts=3, blur_mm=0)
    assert len(sampler.rejections) == CONTRAST_SAMPLES
    assert drawn.records[0].attempts == CONTRAST_SAMPLES + 1 == len(texture.made)


def test_a_kept_tumor_is_made_again_as_it_was_looked_at(flat, scan):
    synthesizer, _ = flat(spread)
    gate = picky(lambda record: () if record.attempts > 1 else ("noise",))
    drawn, _ = run(synthesizer, scan, gate=gate, attempts=4)
    (part,) = insert(synthesizer, scan, drawn.records).parts
    seen = gate.seen[-1][1]
    assert part.region == seen.region
    np.testing.assert_array_equal(part.after_hu, seen.after_hu)


# From files to files


@pytest.fixture
def files(tmp_path, scan, no_picture):
    hu = scan.ct.data.copy()
    hu[~scan.organ_mask] = -200
    ct = write_nifti(tmp_path / "ct.nii.gz", hu)
    return ScanInputs(ct=ct, organ_masks=(write_nifti(tmp_path / "organ.nii.gz", scan.organ_mask.astype(np.uint8)),))


def test_what_the_gate_rejected_is_in_the_record(flat, files, tmp_path):
    synthesizer, _ = flat(spread)
    gate = picky(lambda record: () if record.attempts > 2 else ("seam",), attempts=6)
    request = {"tumors": (wanted("tiny", 2, blur_mm=1),), "gate": gate}
    report = synthesize_scan(synthesizer, files, request, out=tmp_path / "out")
    assert report.rejected == 4
    content = read_record(tmp_path / "out" / "record.json").content
    assert content["rejected"] == [{"wanted": wanted, "failed": ["seam"]} for wanted in (1, 1, 2, 2)]
    assert content["request"]["quality_gate"] == gate.to_dict()
    assert [tumor["achieved"]["attempts"] for tumor in content["tumors"]] == [3, 3]


def test_where_none_passes_nothing_is_written(flat, files, tmp_path):
    synthesizer, _ = flat(spread)
    gate = picky(lambda record: ("noise", "seam") if record.attempts == 1 else ("noise",), attempts=2)
    request = {"tumors": (wanted("tiny", 2, blur_mm=1),), "gate": gate}
    message = r"None of 4 tumors passed the quality gate \(failed: noise, seam\): .*omit the gate \(--quality-gate\)"
    with pytest.raises(SynthesisError, match=message):
        synthesize_scan(synthesizer, files, request, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_strict_refuses_what_the_gate_leaves_out(flat, files, tmp_path):
    synthesizer, _ = flat(spread)
    passed = []

    def rule(record):
        passed.append(record)
        return () if len(passed) == 1 else ("noise",)

    request = {"tumors": (wanted("tiny", 2, blur_mm=1),), "gate": picky(rule, attempts=2), "strict": True}
    with pytest.raises(SynthesisError, match=r"1 of 2 tumors could not be made.* Ask for less, or omit strict"):
        synthesize_scan(synthesizer, files, request, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tumor_is_judged_beside_those_that_are_kept(scan):
    """The second lies in the first, which leaves a shell of it."""
    alone = TumorSynthesizer(organ=get_organ("liver"))
    specs = [wanted("tiny", generator="handcrafted", blur_mm=0)]
    (first,) = draw_in_scan(alone, scan, specs)
    around = replace(first, half_axes_mm=(6.0, 6.0, 6.0), deformation_sigma_mm=0.0)
    gate = picky(lambda record: ("sickle-shaped",))
    sampler = RejectionSampler(synthesizer=alone, model_scan=ModelScan(scan, alone.spacing_mm), gate=gate)
    assert sampler(around, [first], 2) is None
    _, part, number, _ = gate.seen[0]
    assert number == 2
    assert 0 < (part.lesions == 2).sum() < 4 / 3 * np.pi * 6**3 - (part.lesions == 1).sum()
    # One that is far away does not matter.
    far = replace(first, center_voxel=(30, 30, 30))
    sampler(replace(around, center_voxel=(12, 12, 14)), [far], 2)
    assert gate.seen[1][2] in (1, 2)
