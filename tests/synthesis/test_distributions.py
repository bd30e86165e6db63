"""Numbers that a user gives, and what may come of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.errors import ConfigError
from difftumor.synthesis.distributions import Distribution, fixed, uniform

NUMBERS = st.integers(-1000, 1000)
ANY = st.one_of(
    st.builds(fixed, NUMBERS),
    st.builds(lambda a, b: uniform(min(a, b), max(a, b)), NUMBERS, NUMBERS),
    st.builds(lambda mean, sd: Distribution("normal", (mean, abs(sd))), NUMBERS, NUMBERS),
    st.builds(lambda a, b: Distribution("integers", (float(min(a, b)), float(max(a, b)))), NUMBERS, NUMBERS),
    st.builds(lambda values: Distribution("choice", tuple(values)), st.lists(NUMBERS, min_size=1, max_size=5)),
)


def drawn(distribution, count=400):
    return np.array([distribution.draw(seed, "test") for seed in range(count)])


def test_a_number_is_itself():
    assert Distribution.of(7, field="f") == fixed(7)
    assert set(drawn(fixed(7), 20)) == {7.0}


def test_uniform_covers_its_range_evenly():
    values = drawn(uniform(2, 6))
    assert (values.min() >= 2, values.max() <= 6) == (True, True)
    # Of 400 draws each quarter gets 100, give or take 3 standard deviations of 8.7.
    counts, _ = np.histogram(values, bins=4, range=(2, 6))
    assert counts.min() > 74
    assert counts.max() < 126


def test_normal_has_its_mean_and_deviation_and_ends_at_three_of_them():
    values = drawn(Distribution("normal", (10.0, 2.0)), 3000)
    assert values.mean() == pytest.approx(10, abs=3 * 2 / math.sqrt(3000))
    assert values.std() == pytest.approx(2, abs=0.1)
    assert values.min() >= 4
    assert values.max() <= 16
    # Of 3000 numbers about eight lie beyond three deviations: they lie at the end, none beyond it.
    assert {4.0, 16.0} & set(values)


def test_integers_include_both_ends():
    assert set(drawn(Distribution("integers", (2.0, 5.0)))) == {2, 3, 4, 5}


def test_choice_gives_every_value_an_equal_chance():
    values = drawn(Distribution("choice", (1.5, -2.0, 9.0)), 900)
    counts = [int((values == value).sum()) for value in (1.5, -2.0, 9.0)]
    assert sum(counts) == 900
    assert min(counts) > 300 - 3 * 14.2


def test_seed_and_keys_decide_alone():
    distribution = uniform(0, 1)
    assert distribution.draw(3, "a", 1) == distribution.draw(3, "a", 1)
    assert len({distribution.draw(3, "a", 1), distribution.draw(4, "a", 1), distribution.draw(3, "b", 1)}) == 3


@settings(max_examples=80, deadline=None)
@given(ANY, st.integers(0, 2**32))
def test_what_comes_lies_within_the_limits_and_is_whole_where_it_says_so(distribution, seed):
    low, high = distribution.limits
    value = distribution.draw(seed, "test")
    assert low <= value <= high
    if distribution.whole:
        assert value.is_integer()


@given(ANY)
def test_plain_values_give_it_back(distribution):
    assert Distribution.of(distribution.to_plain(), field="f") == distribution


@pytest.mark.parametrize(
    ("kind", "values", "limits", "whole"),
    [
        ("fixed", (2.5,), (2.5, 2.5), False),
        ("fixed", (2.0,), (2, 2), True),
        ("uniform", (1.0, 3.0), (1, 3), False),
        ("uniform", (3.0, 3.0), (3, 3), True),
        ("normal", (0.0, 2.0), (-6, 6), False),
        ("normal", (4.0, 0.0), (4, 4), True),
        ("integers", (1.0, 3.0), (1, 3), True),
        ("choice", (5.0, 1.0, 3.0), (1, 5), True),
        ("choice", (5.0, 1.5), (1.5, 5), False),
    ],
)
def test_limits_and_wholeness(kind, values, limits, whole):
    distribution = Distribution(kind, values)
    assert (distribution.limits, distribution.whole) == (limits, whole)


@pytest.mark.parametrize(
    "value",
    [
        "two",
        None,
        True,
        math.nan,
        math.inf,
        [1, 2],
        {},
        {"uniform": [1, 2], "normal": [1, 2]},
        {"fixed": [1]},
        {"gamma": [1, 2]},
        {"uniform": 3},
        {"uniform": [1]},
        {"uniform": [2, 1]},
        {"uniform": ["a", "b"]},
        {"uniform": "ab"},
        {"uniform": [0, math.inf]},
        {"normal": [1, -1]},
        {"normal": [1, 2, 3]},
        {"integers": [1, 2.5]},
        {"integers": [3, 1]},
        {"choice": []},
        {"choice": [1, None]},
        {"choice": [True]},
    ],
)
def test_what_is_no_distribution_is_named_in_one_sentence(value):
    with pytest.raises(ConfigError) as caught:
        Distribution.of(value, field="contrast_hu")
    message = str(caught.value)
    assert message.startswith(f"contrast_hu is {value!r}: give a number, ")
    assert "\n" not in message
