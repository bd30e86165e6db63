"""Verdicts name what failed, in words, against thresholds that can be changed."""

import dataclasses
import math

import pytest

from difftumor.errors import ConfigError
from difftumor.evaluation.autoencoder.fidelity import Fidelity, StructureError
from difftumor.evaluation.autoencoder.verdict import LIMITS, Thresholds, judge, outcome, spoken

GOOD = Fidelity(
    psnr_db=32.0, ssim=0.9, mae_hu=8.0, bias_hu=-1.0, edge_ratio=0.9, noise_ratio=0.6, codes_used=9,
    structures={"liver": StructureError(5000, 9.0, -2.0), "kidney_right": StructureError(4000, 11.0, 1.0)},
)  # fmt: skip


def verdict(**changes):
    return judge(dataclasses.replace(GOOD, **changes), Thresholds())


def test_what_keeps_to_all_thresholds_is_good_enough():
    assert verdict().good_enough
    assert verdict().sentence == "Good enough for stage 2: yes, because everything measured is within its threshold."
    assert verdict().failures == verdict().unmeasured == ()
    assert len(verdict().checks) == 8 + 2 * 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"psnr_db": 24.13}, "the PSNR is 24.1 dB, below 28 dB"),
        ({"ssim": 0.5}, "the structural similarity is 0.5, below 0.8"),
        ({"mae_hu": 15.1}, "the mean absolute error is 15.1 HU, above 15 HU"),
        ({"bias_hu": 7.0}, "the bias is 7 HU, beyond ±5 HU"),
        ({"bias_hu": -7.0}, "the bias is −7 HU, beyond ±5 HU"),
        ({"psnr_db": 27.96}, "the PSNR is 27.96 dB, below 28 dB"),
        ({"mae_hu": 15.04}, "the mean absolute error is 15.04 HU, above 15 HU"),
        ({"edge_ratio": 0.7}, "the edge ratio is 0.7, below 0.8"),
        ({"edge_ratio": 1.3}, "the edge ratio is 1.3, above 1.2"),
        ({"noise_ratio": 0.1}, "the noise ratio is 0.1, below 0.25"),
        ({"noise_ratio": 2.5}, "the noise ratio is 2.5, above 2"),
        (
            {"structures": {"liver": StructureError(5000, 31.0, 0.0)}},
            "the mean absolute error in the liver is 31 HU, above 15 HU",
        ),
        (
            {"structures": {"kidney_right": StructureError(5000, 3.0, -8.0)}},
            "the bias in the right kidney is −8 HU, beyond ±5 HU",
        ),
        ({"structures": {"label 5": StructureError(5000, 3.0, 6.0)}}, "the bias in label 5 is 6 HU, beyond ±5 HU"),
    ],
)
def test_what_fails_is_named(changes, sentence):
    found = verdict(**changes)
    assert not found.good_enough
    assert found.failures == (sentence,)
    assert found.sentence == f"Good enough for stage 2: no, because {sentence}."


def test_a_threshold_itself_is_good_enough():
    bounds = {"psnr_db": 28.0, "ssim": 0.8, "mae_hu": 15.0, "bias_hu": -5.0, "edge_ratio": 1.2, "noise_ratio": 0.25}
    assert verdict(**bounds).good_enough


def test_a_sentence_stays_short():
    found = verdict(psnr_db=1.0, ssim=0.1, mae_hu=99.0, bias_hu=50.0, edge_ratio=0.1)
    assert len(found.failures) == 5
    assert found.sentence.endswith("the mean absolute error is 99 HU, above 15 HU; and 2 more.")


def test_what_could_not_be_measured_is_named_and_not_judged():
    found = verdict(noise_ratio=math.nan)
    assert found.good_enough
    assert found.unmeasured == ("the noise ratio could not be measured",)
    assert found.sentence.endswith("is within its threshold; the noise ratio could not be measured.")
    assert [outcome([check]) for check in found.checks if check.limit.measure == "noise_ratio"] == [None, None]


def test_small_structures_are_not_judged():
    small = StructureError(499, 80.0, 80.0)
    assert verdict(structures={"tumor": small}).good_enough
    assert not verdict(structures={"tumor": dataclasses.replace(small, voxels=500)}).good_enough


def test_labels_without_names_are_judged_where_none_has_one():
    rib, liver = StructureError(5000, 80.0, 0.0), StructureError(5000, 3.0, 0.0)
    assert verdict(structures={"label 33": rib, "liver": liver}).good_enough
    assert not verdict(structures={"label 33": rib, "label 5": liver}).good_enough


def test_no_error_at_all_is_good_enough():
    assert verdict(psnr_db=math.inf).good_enough


def test_thresholds_change_by_name():
    changed = Thresholds().changed(["psnr_db=20", " structure_mae_hu = 40.5"])
    assert changed == dataclasses.replace(Thresholds(), psnr_db=20.0, structure_mae_hu=40.5)
    assert not judge(dataclasses.replace(GOOD, psnr_db=24.0), Thresholds()).good_enough
    assert judge(dataclasses.replace(GOOD, psnr_db=24.0), changed).good_enough


@pytest.mark.parametrize(
    ("setting", "words"),
    [("psnr=3", "psnr_db, ssim"), ("psnr_db", "no number"), ("psnr_db=high", "no number"), ("psnr_db=nan", "psnr_db"),
     ("mae_hu=-1", "mae_hu"), ("mae_hu=inf", "mae_hu")],
)  # fmt: skip
def test_bad_thresholds_are_refused(setting, words):
    with pytest.raises(ConfigError, match=words):
        Thresholds().changed([setting])


def test_every_threshold_is_judged_for_a_reason():
    assert {limit.threshold for limit in LIMITS} == {
        field.name for field in dataclasses.fields(Thresholds) if field.name != "structure_voxels"
    }
    assert all(len(limit.reason) > 30 for limit in LIMITS)


@pytest.mark.parametrize(
    ("name", "words"),
    [("liver", "the liver"), ("kidney_cyst_left", "the left kidney cyst"), ("label 12", "label 12"),
     ("Left Kidney", "the Left Kidney")],
)  # fmt: skip
def test_names_are_spoken(name, words):
    assert spoken(name) == words
