"""Scores say of damaged real masks what they must: every entry of the table of effects, on every mask."""

import numpy as np
import pytest

from difftumor.evaluation.cohort.cases import Rules, evaluate_case
from difftumor.evaluation.metrics.detection import summarize_detection
from difftumor.scans.grid import Grid
from difftumor.scans.nifti import read_labels
from difftumor.scans.organs import TUMOR
from tests.perturbed_masks import (
    EFFECTS,
    TOLERANCE_MM,
    Facts,
    effects_table,
    perturbed,
    sarcoma_masks,
    scores,
    write_perturbed_pairs,
)

LPS = np.diag([-0.9766, -0.9766, 3.27, 1.0])


def evaluate(case: str, mask: np.ndarray, grid: Grid) -> dict[str, Facts]:
    """Evaluate all damages of a mask."""
    facts = {}
    for damage, (prediction, truth) in perturbed(mask).items():
        maps = (part * np.uint8(TUMOR) for part in (prediction, truth))
        result = evaluate_case(case, *maps, grid, rules=Rules(tolerance_mm=TOLERANCE_MM))
        facts[damage] = Facts(result, grid, truth, prediction)
    return facts


@pytest.fixture(scope="module")
def results(real_data) -> dict[str, list[Facts]]:
    """Results of all patients by damage."""
    patients = [evaluate(*patient) for patient in sarcoma_masks(real_data / "sarcoma")]
    return {damage: [facts[damage] for facts in patients] for damage in EFFECTS}


@pytest.mark.data
@pytest.mark.slow
def test_there_are_enough_pairs(results):
    assert sum(map(len, results.values())) >= 48
    assert {len(facts) for facts in results.values()} == {16}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("damage", "score"), [(damage, score) for damage, row in EFFECTS.items() for score in row])
def test_effect(results, damage, score):
    effect = EFFECTS[damage][score]
    wrong = {
        facts.result.case: scores(facts)[score]
        for facts in results[damage]
        if not effect.holds(scores(facts)[score], facts)
    }
    assert not wrong, f"{score} of {damage} is not {effect.words}"


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("damage", EFFECTS)
def test_scores_are_finite_and_say_which_mask_is_empty(results, damage):
    empty = {"emptied": "prediction", "truth emptied": "truth", "both emptied": "both"}.get(damage, "neither")
    for facts in results[damage]:
        assert all(np.isfinite(value) for value in scores(facts).values())
        assert facts.result.tumor.empty == empty
        assert facts.result.organ is None
        difference = int(facts.prediction.sum()) - int(facts.truth.sum())
        assert facts.result.tumor.volume_error_ml == pytest.approx(difference * facts.voxel_ml)


@pytest.mark.data
@pytest.mark.slow
def test_detection_over_the_cohort(results):
    """Sixteen patients each: with a tumor, all but "emptied" are found; "split" and the blob halve precision."""
    for damage, facts in results.items():
        summary = summarize_detection([one.result.detection for one in facts])
        ill = 0 if damage in ("truth emptied", "both emptied") else 16
        hits = 0 if damage == "emptied" else ill
        false = 16 if damage in ("split", "false blob added", "truth emptied") else 0
        assert (summary.sensitivity.hits, summary.sensitivity.total) == (hits, ill)
        assert (summary.precision.hits, summary.precision.total) == (hits, hits + false)
        assert summary.false_positives_per_scan == false / 16
        assert (summary.patient_sensitivity.hits, summary.patient_sensitivity.total) == (hits, ill)
        assert summary.patient_specificity.total == 16 - ill


@pytest.mark.data
@pytest.mark.slow
def test_pairs_are_written_as_label_maps(real_data, tmp_path):
    assert write_perturbed_pairs(tmp_path, real_data / "sarcoma") == 16 * len(EFFECTS)
    names = [{path.name for path in (tmp_path / part).iterdir()} for part in ("predictions", "labels")]
    assert names[0] == names[1]
    prediction = read_labels(tmp_path / "predictions" / "STS_012_moved_1_slice.nii.gz")
    truth = read_labels(tmp_path / "labels" / "STS_012_moved_1_slice.nii.gz")
    np.testing.assert_array_equal(prediction.data[..., :-1], truth.data[..., 1:])
    assert set(np.unique(truth.data)) == {0, TUMOR}
    assert prediction.grid.matches(truth.grid)


def test_the_effects_on_an_ellipsoid():
    """The same without real data: an ellipsoid of 24 x 30 x 46 mm."""
    shape = (60, 64, 34)
    away = [(np.arange(n) - n / 2) / radius for n, radius in zip(shape, (12.3, 15.2, 7.1), strict=True)]
    mask = sum(np.meshgrid(*(axis**2 for axis in away), indexing="ij")) <= 1
    for damage, facts in evaluate("ellipsoid", mask, Grid(shape, LPS)).items():
        for score, value in scores(facts).items():
            effect = EFFECTS[damage][score]
            assert effect.holds(value, facts), f"{score} of {damage} is {value}, not {effect.words}"


def test_the_table_has_an_entry_for_every_score():
    assert len({tuple(row) for row in EFFECTS.values()}) == 1
    assert len(effects_table().splitlines()) == 2 + len(EFFECTS)
