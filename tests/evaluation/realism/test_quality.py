"""Distances between sets of tumors with their scale, intervals and warnings."""

import json
from dataclasses import replace

import numpy as np
import pytest

from difftumor.evaluation.realism.distances import DistanceName
from difftumor.evaluation.realism.quality import (
    DistanceScale,
    Measurement,
    Quality,
    QualitySettings,
    Spread,
    measure_quality,
)
from difftumor.evaluation.realism.record import (
    EXPLANATION,
    list_record,
    quality_markdown,
    quality_record,
    shown,
    write_quality,
)
from difftumor.evaluation.realism.report import verdict
from tests.evaluation.realism.tumors import Network, sample

NETWORKS = (Network("slices"), Network("crops"))
SETTINGS = QualitySettings(repeats=20, resamples=60)


def tumors(count: int, *, prefix: str = "p", each: int = 1, **more):
    return [sample(f"{prefix}{n:02d}", number, **more) for n in range(count) for number in range(1, each + 1)]


def by_key(quality: Quality):
    return {measurement.name.key: measurement for measurement in quality.measurements}


def measured(real, synthetic, settings=SETTINGS, networks=NETWORKS):
    return measure_quality(real, synthetic, networks, settings)


def test_equal_sets_are_no_distance_apart():
    real = tumors(30)
    for key, measurement in by_key(measured(real, real)).items():
        if "kernel" in key:
            # Unbiased: tumors that are in both sets are compared with themselves in one of three terms alone.
            assert measurement.value < 0, key
        else:
            assert measurement.value == pytest.approx(0, abs=1e-6), key
            assert measurement.interval is None or measurement.interval == pytest.approx((0, 0), abs=1e-6), key


def test_tumors_of_one_kind_cannot_be_told_from_real_ones():
    quality = measured(tumors(40), tumors(40, prefix="s"))
    # About half of the splits, for chance in what was drawn.
    shares = [m.scale.farther for m in quality.measurements]
    assert 0.25 < np.mean(shares) < 0.8
    assert quality.warnings == ()


def test_a_shift_moves_what_it_must_and_nothing_else():
    real = tumors(40)
    shifted = [replace_histogram(each, 20) for each in tumors(40)]
    found = by_key(measured(real, shifted))
    assert found["hu_wasserstein"].value == pytest.approx(20, abs=1e-3)
    assert found["hu_wasserstein"].interval == pytest.approx((20, 20), abs=1e-3)
    assert found["hu_wasserstein"].scale.farther == 1
    assert found["texture_contrast"].value == found["sd"].value == 0


def replace_histogram(each, shift):
    return replace(each, tumor=replace(each.tumor, histogram_H=np.roll(each.tumor.histogram_H, shift)))


def test_distances_grow_with_the_difference():
    real = tumors(40)
    near, far = (
        by_key(measured(real, tumors(40, prefix="s", mean=40 + change, sd=12 + change))) for change in (10, 30)
    )
    for key in ("hu_wasserstein", "hu_jensen_shannon", "contrast", "sd", "edge", "texture_contrast", "texture_entropy"):
        assert near[key].value < far[key].value, key
        assert far[key].scale.farther == 1, key
        low, high = far[key].interval
        assert low < far[key].value < high + 3, key
    for key in ("fid_of_slices", "kernel_of_slices", "fid_of_slices_coronal", "fid_of_crops", "kernel_of_crops"):
        assert near[key].value < far[key].value, key


def test_order_does_not_matter_and_the_seed_does():
    real, synthetic = tumors(12, each=2), tumors(9, prefix="s", each=3)
    one = measured(real, synthetic)
    assert measured(real[::-1], synthetic[::-1]) == one
    assert measured(real, synthetic, replace(SETTINGS, seed=1)) != one
    # Values do not depend on it.
    again = by_key(measured(real, synthetic, replace(SETTINGS, seed=1)))
    assert all(m.value == again[key].value for key, m in by_key(one).items())


def test_the_scale_compares_sets_of_one_size():
    # Of 12 patients with 2 tumors halves have 12; of synthetic tumors there are only 5.
    found = by_key(measured(tumors(12, each=2), tumors(5, prefix="s")))
    assert {m.scale.tumors for m in found.values()} == {5}
    found = by_key(measured(tumors(12, each=2), tumors(30, prefix="s")))
    assert {m.scale.tumors for m in found.values()} == {12}


def test_a_half_is_not_held_against_its_own_patients():
    # Synthetic tumors that are copies: each half would be at no distance from its own copies.
    real = tumors(12)
    found = by_key(measured(real, real))
    scale = found["diameter"].scale
    assert scale.tumors == 6
    assert scale.real_synthetic.median == scale.real_real.median > 0
    assert scale.farther == 0.5


def test_patients_are_never_split():
    # Tumors of a patient are equal, patients differ: halves by tumors would be alike.
    real = [replace(each, tumor=replace(each.tumor, diameter_mm=float(index // 10))) for index, each in
            enumerate(tumors(4, each=10))]  # fmt: skip
    found = by_key(measured(real, tumors(8, prefix="s")))
    assert found["diameter"].scale.real_real.low >= 1.0


def test_the_frechet_distance_has_no_interval_and_others_have():
    for key, measurement in by_key(measured(tumors(20), tumors(20, prefix="s"))).items():
        assert (measurement.interval is None) == key.startswith("fid"), key


def test_a_resample_without_a_number_does_not_take_the_interval():
    def small(each):
        texture = replace(each.tumor.texture, entropy=float("nan"))
        return replace(each, tumor=replace(each.tumor, texture=texture))

    real, synthetic = tumors(8), tumors(8, prefix="s")
    several = by_key(measured([*real[:3], *map(small, real[3:])], synthetic))["texture_entropy"]
    assert several.interval is not None
    assert np.isfinite(several.interval).all()


def test_few_tumors_and_patients_are_said():
    quality = measured(tumors(6), tumors(3, prefix="s"))
    assert "Only 6 real and 3 synthetic tumors" in quality.warnings[0]
    assert any("Only 6 real patients: intervals are too narrow" in text for text in quality.warnings)
    assert any("Only 3 synthetic patients: there are no intervals" in text for text in quality.warnings)
    assert all(measurement.interval is None for measurement in quality.measurements)
    assert all(measurement.scale for measurement in quality.measurements)
    alone = measured(tumors(3), tumors(30, prefix="s"))
    assert any("no scale and no intervals" in text for text in alone.warnings)
    assert all(measurement.scale is None for measurement in alone.measurements)
    assert "No distance has a scale" in verdict(alone)


class Wide(Network):
    dimensions = 100


@pytest.mark.parametrize(
    ("kind", "count", "warned"),
    [("slices", 26, False), ("slices", 25, True), ("crops", 100, True), ("crops", 101, False)],
)
def test_the_frechet_distance_warns_below_its_dimensions(kind, count, warned):
    # Four slices of each tumor in each plane.
    settings = QualitySettings(repeats=2, resamples=1)
    quality = measured(tumors(120), tumors(count, prefix="s"), settings, networks=(Wide(kind),))
    for key, measurement in by_key(quality).items():
        assert bool(measurement.warnings) == (warned and key.startswith("fid")), key
    assert any("100 feature dimensions" in text for text in quality.all_warnings) == warned


def test_other_voxels_are_said():
    quality = measured(tumors(20), tumors(20, prefix="s", voxel_mm=(0.8, 0.8, 1.0)))
    assert any("0.8 × 0.8 × 3 mm real, 0.8 × 0.8 × 1 mm synthetic" in text for text in quality.warnings)


def test_what_cannot_be_compared_is_unknown_and_said(tmp_path):
    def without_organ(each):
        appearance = replace(each.tumor.appearance, contrast_hu=float("nan"))
        return replace(each, tumor=replace(each.tumor, appearance=appearance))

    real, synthetic = tumors(20), [without_organ(each) for each in tumors(20, prefix="s")]
    quality = measured(real, synthetic)
    found = by_key(quality)["contrast"]
    assert np.isnan(found.value)
    assert found.interval is None
    assert found.scale is None
    assert "Contrast to the surroundings cannot be computed" in found.warnings[0]
    sets = {"real": real, "synthetic": synthetic}
    lists = {side: list_record(tmp_path / side, each, 20, {}) for side, each in sets.items()}
    record = quality_record(quality, {"organ": "liver", **lists})
    write_quality(tmp_path, quality, record, sets)
    stored = {each["distance"]: each for each in json.loads((tmp_path / "quality.json").read_text())["distances"]}
    assert stored["contrast"]["value"] is None
    rows = (tmp_path / "quality.csv").read_text().splitlines()
    assert len(rows) == len(quality.measurements) + 1
    assert next(row for row in rows if row.startswith("contrast,")).split(",")[3] == ""
    assert len((tmp_path / "tumors.csv").read_text().splitlines()) == 41
    text = quality_markdown(quality, record)
    assert "| ⚠ Contrast to the surroundings (HU) | – | – | – | – | – |" in text
    assert "- ⚠ Contrast to the surroundings cannot be computed" in text


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="both sets"):
        measured([], tumors(3))


def test_the_verdict_counts_no_single_planes():
    quality = measured(tumors(40), tumors(40, prefix="s", mean=120))
    text = verdict(quality)
    assert "FID, of_slices, mean of planes" in text
    assert "axial" not in text
    assert f"of {len([m for m in quality.measurements if not m.name.plane])} distances" in text


def shares(*farther: float) -> Quality:
    """Return a result whose distances are farther in these shares of the splits."""
    spread = Spread(median=1.0, low=0.5, high=2.0)
    scales = [DistanceScale(tumors=6, real_real=spread, real_synthetic=spread, farther=share) for share in farther]
    names = [DistanceName(f"d{place}", f"Distance {place}") for place in range(len(farther))]
    found = [Measurement(name=n, value=1.0, interval=None, scale=s) for n, s in zip(names, scales, strict=True)]
    return Quality(measurements=tuple(found), warnings=())


def test_the_verdict_says_what_chance_does():
    none, one, two = (verdict(shares(*farther)) for farther in ((0.94, 0.5), (0.95, 0.9), (1.0, 0.95)))
    assert none.startswith("None of 2 distances points to a difference")
    assert "Small differences are not ruled out" in none
    assert one.startswith("1 of 2 distances points to a difference between synthetic and real tumors")
    assert one.endswith("One alone may be chance.")
    assert "Distance 0; Distance 1." in two
    assert "One alone" not in two
    assert all("10 to 90 % is usual" in text and "1 to 3 of 100" in text for text in (none, one, two, EXPLANATION))


def test_of_like_tumors_few_distances_are_far_by_chance():
    settings = QualitySettings(repeats=20, resamples=0)
    found = [
        [m.scale.farther for m in measured(tumors(12, seed=n), tumors(12, prefix="s", seed=n), settings).measurements]
        for n in range(12)
    ]
    assert 0.1 < np.std(found) < 0.3
    assert np.mean((np.array(found) >= 0.1) & (np.array(found) <= 0.9)) > 0.9
    assert np.mean(np.array(found) >= 0.95) < 0.08


def test_few_splits_are_said():
    quality = measured(tumors(20), tumors(20, prefix="s"), replace(SETTINGS, repeats=19))
    assert [text for text in quality.warnings if text.startswith("Only 19 splits: even if nothing differs")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.23456, "1.23"), (-12.0, "−12"), (12345.6, "12346"), (0.00001234, "1.23e−05"), (float("nan"), "–")],
)
def test_numbers_are_shown_short(value, text):
    assert shown(value) == text
