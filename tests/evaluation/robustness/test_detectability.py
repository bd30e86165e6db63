"""Curves find the threshold that made them, and say so where there is none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from difftumor.evaluation.robustness import detectability
from difftumor.evaluation.robustness.detectability import contrast_curve, diameter_curve
from difftumor.evaluation.robustness.dimensions import DEFAULTS
from tests.evaluation.robustness.makers import row

DIAMETERS = 10 * 1.2 ** np.arange(-3.0, 4.0)


def sizes(found, patients=8):
    """One tumor per patient and level, found as a function of diameter and a random number says."""
    generator = np.random.default_rng(0)
    return [
        row(
            case=f"c{p}", patient=f"p{p}", level=level - 3, diameter_mm=d * (1 + 0.02 * (p % 5)),
            found=bool(found(d * (1 + 0.02 * (p % 5)), generator.random())),
            record=f"records/size{level - 3:+d}_0.json",
        )
        for p in range(patients)
        for level, d in enumerate(DIAMETERS)
    ]  # fmt: skip


def test_a_sharp_threshold():
    curve = diameter_curve(sizes(lambda d, _: d > 10.9), seed=0)
    assert curve.half == pytest.approx(10.9, rel=0.05)
    assert curve.half_low == pytest.approx(10.9, rel=0.15)
    assert curve.half_high == pytest.approx(10.9, rel=0.15)
    assert curve.half_low <= curve.half <= curve.half_high
    assert curve.probability[0] < 0.01
    assert curve.probability[-1] > 0.99
    assert f"found at a diameter of {curve.half:.1f} mm (95 % interval: " in curve.sentence


def test_an_interval_is_never_narrower_than_the_gap_it_lies_in():
    rows = [replace(r, diameter_mm=float(DIAMETERS[r.level + 3])) for r in sizes(lambda d, _: d > 9.2)]
    curve = diameter_curve(rows, seed=0)
    assert DIAMETERS[2] < curve.half < DIAMETERS[3]
    assert (curve.half_low, curve.half_high) == pytest.approx((DIAMETERS[2], DIAMETERS[3]))
    assert "(95 % interval: 8.3 mm to 10.0 mm)" in curve.sentence


def test_fitting_stops_when_nothing_changes(monkeypatch):
    rows = sizes(lambda d, chance: chance < 1 / (1 + (d / 9) ** -4), patients=50)
    curve = diameter_curve(rows, seed=0)
    monkeypatch.setattr(detectability, "_LEAST_STEP", 0.0)
    endless = diameter_curve(rows, seed=0)
    assert curve.half == pytest.approx(endless.half, rel=1e-9)
    assert curve.low == pytest.approx(endless.low, rel=1e-9)
    monkeypatch.setattr(detectability, "_LEAST_STEP", 1e-9)
    monkeypatch.setattr(detectability, "_STEPS", 15)
    np.testing.assert_array_equal(diameter_curve(rows, seed=0).low, curve.low)


def test_a_gentle_curve_is_that_of_an_independent_fit():
    rows = sizes(lambda d, chance: chance < 1 / (1 + (d / 9) ** -4), patients=100)
    curve = diameter_curve(rows, seed=0)
    x = np.log([r.diameter_mm for r in rows])
    y = np.array([r.found for r in rows])
    loss = lambda b: np.logaddexp(0, np.where(y, -1, 1) * (b[0] + b[1] * (x - x.mean()))).sum()  # noqa: E731
    intercept, slope = minimize(loss, [0.0, 1.0]).x
    assert curve.half == pytest.approx(np.exp(x.mean() - intercept / slope), rel=0.005)
    assert curve.half == pytest.approx(9, rel=0.1)
    expected = 1 / (1 + np.exp(-(intercept + slope * (np.log(curve.x) - x.mean()))))
    assert curve.probability == pytest.approx(expected, abs=0.005)
    assert (curve.low <= curve.probability + 1e-9).all()
    assert (curve.probability <= curve.high + 1e-9).all()
    assert curve.half_low < 9.2 < curve.half_high


def test_intervals_narrow_with_patients():
    few, many = (diameter_curve(sizes(lambda d, c: c < 1 / (1 + (d / 9) ** -4), patients=n), seed=0) for n in (10, 100))
    assert many.half_high - many.half_low < few.half_high - few.half_low


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (lambda d, c: True, "all were found, down to 5.79 mm"),
        (lambda d, c: False, "none was found, up to 18.7 mm"),
        (lambda d, c: c > 0.3 or d > 8, "more than half are found everywhere between 5.79 and 18.7 mm"),
        (lambda d, c: c > 0.9, "less than half are found everywhere between 5.79 and 18.7 mm"),
        (lambda d, c: d < 12, "detection does not rise with the diameter (1.00 at 5.79 mm, 0.00 at 18.7 mm)"),
        (lambda d, c: d < 8.3, "detection does not rise with the diameter (1.00 at 5.79 mm, 0.00 at 18.7 mm)"),
    ],
)
def test_no_threshold_where_none_was_measured(found, note):
    curve = diameter_curve(sizes(found), seed=0)
    assert curve.half is None
    assert f"not reached, {note}" in curve.sentence


def test_ends_beyond_what_was_measured_are_said():
    rows = sizes(lambda d, c: c < 1 / (1 + (d / 5.9) ** -3), patients=6)
    curve = diameter_curve(rows, seed=0)
    assert curve.half is not None
    assert curve.half_low is None
    assert "(95 % interval: below 5.8 mm to " in curve.sentence


@pytest.mark.parametrize("patients", [1, 3])
def test_few_patients_have_no_interval(patients):
    rows = [replace(r, patient=str(int(r.case[1:]) % patients)) for r in sizes(lambda d, _: d > 10)]
    curve = diameter_curve(rows, seed=0)
    assert not curve.has_interval
    assert curve.low is None
    assert curve.half == pytest.approx(10, rel=0.08)
    assert "interval" not in curve.sentence


def test_order_does_not_matter_and_the_seed_does():
    rows = sizes(lambda d, c: c < 1 / (1 + (d / 9) ** -2))
    first, second = diameter_curve(rows, seed=0), diameter_curve(rows[::-1], seed=0)
    assert first.to_plain() == second.to_plain()
    np.testing.assert_array_equal(first.low, second.low)
    assert not np.array_equal(first.low, diameter_curve(rows, seed=1).low)


def test_contrast_is_absolute_and_of_one_side():
    values = {-60.0: True, -50.0: True, -40.0: True, -30.0: True, -20.0: False, -10.0: False, 15.0: True, 30.0: True}
    rows = [
        row(dimension="intensity", patient=f"p{number % 3}", contrast_hu=hu, value=hu, found=found, record=str(number))
        for number, (hu, found) in enumerate(values.items())
    ]
    # Where the organ happens to be bright; where it happens to be dark; and where nothing could be measured.
    rows.append(row(dimension="intensity", value=15.0, contrast_hu=-2.0, record="8"))
    rows.append(row(dimension="intensity", value=-5.0, contrast_hu=3.0, found=False, record="9"))
    rows.append(row(dimension="intensity", value=-40.0, contrast_hu=None, record="10"))
    curve = contrast_curve(rows, DEFAULTS["intensity"], seed=0)
    assert (curve.tumors, curve.found) == (7, 4)
    assert (curve.smallest, curve.largest) == (1, 60)
    assert 20 < curve.half < 30
    assert f"at a contrast of {curve.half:.0f} HU" in curve.sentence
    mirrored = [replace(r, contrast_hu=-r.contrast_hu, value=-r.value) for r in rows[:-1]]
    bright = contrast_curve(mirrored, replace(DEFAULTS["intensity"], mean=45.0), seed=0)
    assert bright.half == curve.half


def test_levels_at_one_limit_count_once():
    rows = sizes(lambda d, c: c < 1 / (1 + (d / 9) ** -4))
    nearest = [r for r in rows if r.level == 1]
    clamped = [replace(r, level=level, clamped=True) for r in nearest for level in (2, 3)]
    held = [r for r in rows if r.level <= 1]
    assert diameter_curve(held + clamped, seed=0).to_plain() == diameter_curve(held, seed=0).to_plain()
    assert diameter_curve(clamped + held, seed=0).points == diameter_curve(held, seed=0).points


def test_intervals_of_curves_are_those_of_95_in_100():
    rows = sizes(lambda d, c: c < 1 / (1 + (d / 9) ** -4), patients=20)
    curve = diameter_curve(rows, seed=0)
    logs, found = np.log([r.diameter_mm for r in rows]), np.array([r.found for r in rows], float)
    patients = np.array([r.patient for r in rows])
    generator = np.random.default_rng(5)
    shares = []
    for _ in range(400):
        own = np.concatenate([np.flatnonzero(patients == p) for p in generator.choice(np.unique(patients), 20)])
        x, y = logs[own], np.where(found[own], -1, 1)
        fit = minimize(lambda b, x=x, y=y: np.logaddexp(0, y * (b[0] + b[1] * (x - 2.2))).sum(), [0.0, 1.0]).x
        shares.append(np.exp(2.2 - fit[0] / fit[1]))
    expected = np.quantile(shares, [0.025, 0.975])
    width = expected[1] - expected[0]
    assert curve.half_low == pytest.approx(expected[0], abs=0.08 * width)
    assert curve.half_high == pytest.approx(expected[1], abs=0.08 * width)


def test_only_tumors_that_differ_in_it_count():
    rows = sizes(lambda d, _: d > 10)
    others = [replace(r, dimension="shape", found=not r.found) for r in rows]
    assert diameter_curve(rows + others, seed=0).to_plain() == diameter_curve(rows, seed=0).to_plain()
    assert diameter_curve(others, seed=0) is None
    assert diameter_curve(rows[:4], seed=0) is None
