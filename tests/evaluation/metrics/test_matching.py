"""Which lesion is found: rules by hand, and random scans against a search through all matchings."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from difftumor.errors import ConfigError
from difftumor.evaluation.metrics.detection import Matching, assign, match_lesions, one_to_one
from difftumor.scans.components import find_components
from difftumor.scans.grid import Grid
from difftumor.scans.lesions import find_lesions

RULES = [
    Matching(),
    Matching(rule="iou", minimum_iou=0.1),
    Matching(rule="iou", minimum_iou=0.4),
    Matching(rule="iou", minimum_iou=1.0),
    Matching(rule="center"),
]
SHAPE = (20, 12, 6)
GRID = Grid(SHAPE, np.diag([-0.8, 1.0, 3.0, 1.0]))


def found(truth: np.ndarray, prediction: np.ndarray, matching: Matching) -> list[tuple[int, int, int]]:
    """Return true lesion, predicted lesion and common voxels of each match, numbered from 0."""
    result = assign(find_components(truth), find_components(prediction), matching)
    columns = (result.truth, result.prediction, result.overlap_voxels)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def mask(*parts: tuple[slice, slice, slice]) -> np.ndarray:
    result = np.zeros(SHAPE, bool)
    for part in parts:
        result[part] = True
    return result


def bar(start: int, stop: int, y: int = 4, thick: int = 1) -> tuple[slice, slice, slice]:
    return slice(start, stop), slice(y, y + thick), slice(2, 3)


def all_allowed(truth: np.ndarray, prediction: np.ndarray, matching: Matching) -> dict[tuple[int, int], int]:
    """Return the common voxels of each pair that may match, from SciPy's components."""
    everywhere = np.ones((3, 3, 3))
    (t, rows), (p, columns) = (ndimage.label(part, everywhere) for part in (truth, prediction))
    allowed = {}
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            common, union = ((t == row) & (p == column)).sum(), ((t == row) | (p == column)).sum()
            center = np.floor(np.add(ndimage.center_of_mass(p == column), 0.5)).astype(int)
            fits = {
                "overlap": common > 0,
                "iou": common > 0 and common / union >= matching.minimum_iou,
                "center": t[tuple(center)] == row,
            }
            if fits[matching.rule]:
                allowed[row - 1, column - 1] = int(common)
    return allowed


def best(allowed: dict[tuple[int, int], int], rows: int, columns: int) -> tuple[int, int]:
    """Return the most common voxels of any one-to-one matching, and the most pairs of those, by trying all."""
    places = [*range(columns), *[-1] * rows]
    results = set()
    for partners in set(permutations(places, rows)):
        pairs = [allowed[pair] for pair in enumerate(partners) if pair in allowed]
        results.add((sum(pairs), len(pairs)))
    return max(results)


def scan(generator: np.random.Generator) -> np.ndarray:
    """Return a mask of a few random boxes, of which some touch."""
    result = np.zeros(SHAPE, bool)
    for _ in range(generator.integers(0, 5)):
        start = generator.integers(0, np.subtract(SHAPE, 2))
        stop = start + generator.integers(1, (7, 5, 3))
        result[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return result


@pytest.mark.parametrize("matching", RULES, ids=lambda matching: f"{matching.rule}{matching.minimum_iou:g}")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_search_through_all_matchings_finds_no_better(matching, seed):
    generator = np.random.default_rng(seed)
    truth, prediction = scan(generator), scan(generator)
    allowed = all_allowed(truth, prediction, matching)
    everywhere = np.ones((3, 3, 3))
    rows, columns = (ndimage.label(part, everywhere)[1] for part in (truth, prediction))
    pairs = found(truth, prediction, matching)
    assert pairs == sorted(pairs)
    assert all(allowed[row, column] == voxels for row, column, voxels in pairs)
    assert len({row for row, _, _ in pairs}) == len({column for _, column, _ in pairs}) == len(pairs)
    assert (sum(voxels for _, _, voxels in pairs), len(pairs)) == best(allowed, rows, columns)
    detection = match_lesions("case", find_lesions(truth, GRID), find_lesions(prediction, GRID), matching=matching)
    assert len(detection.matches) == rows
    assert sum(match.prediction is not None for match in detection.matches) == len(pairs)
    assert len(detection.false_positives) == columns - len(pairs)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_one_to_one_on_tables(rows, columns, data):
    """Contested tables are rare in small scans; here all pairs are, with ties and pairs without a voxel in common."""
    table = {
        (row, column): data.draw(st.integers(0, 6))
        for row in range(rows)
        for column in range(columns)
        if data.draw(st.booleans())
    }
    row, column = (np.array([pair[i] for pair in table], np.int64) for i in (0, 1))
    voxels = np.array([*table.values()], np.int64)
    chosen = one_to_one(row, column, voxels, (rows, columns))
    assert len(set(row[chosen])) == len(set(column[chosen])) == len(chosen)
    assert (voxels[chosen].sum(), len(chosen)) == best(table, rows, columns)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_lesions_are_those_of_scipy(seed):
    mask = scan(np.random.default_rng(seed))
    lesions = find_lesions(mask, GRID).lesions
    numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(lesions) == count
    expected = set()
    for index in range(1, count + 1):
        center = GRID.affine[:3, :3] @ ndimage.center_of_mass(numbered == index)
        expected.add(((numbered == index).sum(), *np.round(center, 6)))
    assert {(lesion.voxels, *np.round(lesion.center_mm, 6)) for lesion in lesions} == expected
    assert sum(lesion.volume_mm3 for lesion in lesions) == pytest.approx(mask.sum() * 0.8 * 3)


def test_noise_with_many_lesions_is_matched_one_to_one():
    generator = np.random.default_rng(0)
    truth, prediction = (find_components(generator.random((64, 64, 32)) < 0.06) for _ in range(2))
    assert min(len(truth.voxels), len(prediction.voxels)) > 1000
    result = assign(truth, prediction, Matching())
    assert len(set(result.truth)) == len(set(result.prediction)) == len(result.truth) > 100
    both = (truth.indices > 0) & (prediction.indices > 0)
    pairs = set(zip(truth.indices[both] - 1, prediction.indices[both] - 1, strict=True))
    assert pairs.issuperset(zip(result.truth, result.prediction, strict=True))
    # It cannot be made larger by a pair of which both are free.
    assert not [(t, p) for t, p in pairs if t not in set(result.truth) and p not in set(result.prediction)]


def test_of_matchings_with_as_many_voxels_the_one_with_more_lesions_is_taken():
    # 4 voxels with the first lesion alone, or 2 with each of both.
    row, column, voxels = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([4, 2, 2])
    chosen = one_to_one(row, column, voxels, (2, 2))
    assert sorted(zip(row[chosen], column[chosen], strict=True)) == [(0, 1), (1, 0)]


def test_iou_counts_from_its_limit_on():
    truth, prediction = mask(bar(0, 6)), mask(bar(3, 9))  # 3 of 9 voxels in common
    assert found(truth, prediction, Matching(rule="iou", minimum_iou=1 / 3)) == [(0, 0, 3)]
    assert found(truth, prediction, Matching(rule="iou", minimum_iou=0.34)) == []


def test_a_center_must_lie_in_the_lesion():
    truth = mask(bar(0, 6))
    center = Matching(rule="center")
    assert found(truth, mask(bar(5, 6)), center) == [(0, 0, 1)]
    assert found(truth, mask(bar(4, 8)), center) == []  # its center is 5.5, and of 5 and 6 the higher is taken
    assert found(truth, mask(bar(3, 8)), center) == [(0, 0, 3)]  # 5
    assert found(truth, mask(bar(5, 15)), center) == []


def test_a_center_may_hit_without_a_voxel_in_common():
    """A ring has its center in the lesion that it surrounds, and points a reader to it."""
    ring = mask((slice(2, 7), slice(2, 7), slice(2, 3))) & ~mask((slice(3, 6), slice(3, 6), slice(2, 3)))
    assert found(mask(bar(4, 5)), ring, Matching(rule="center")) == [(0, 0, 0)]
    assert found(mask(bar(4, 5)), ring, Matching()) == []


def test_of_two_centers_in_a_lesion_the_one_with_more_voxels_finds_it():
    truth, prediction = mask(bar(0, 12)), mask(bar(0, 2), bar(5, 9))
    assert found(truth, prediction, Matching(rule="center")) == [(0, 1, 4)]


@pytest.mark.parametrize("matching", RULES)
def test_a_rule_is_stated_in_one_sentence(matching):
    sentence = str(matching)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    if matching.rule == "iou":
        assert f"at least {matching.minimum_iou:g}" in sentence
    assert len({str(rule) for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "touch"},
        {"rule": "iou"},
        {"rule": "iou", "minimum_iou": 1.5},
        {"rule": "iou", "minimum_iou": float("nan")},
        {"minimum_iou": 0.5},
        {"rule": "center", "minimum_iou": 0.5},
        {"minimum_iou": float("nan")},
    ],
)
def test_rules_that_are_none_are_refused(options):
    with pytest.raises(ConfigError, match=r"minimum_iou|matching rule"):
        Matching(**options)


def test_rules_are_written_as_in_stored_results():
    """Tables and benchmarks compare these sentences with those of earlier runs."""
    words = {
        Matching(): "they have a voxel in common",
        Matching(rule="iou", minimum_iou=0.1): "their intersection over union is at least 0.1",
        Matching(rule="center"): "its center of mass lies in the true one",
    }
    for matching, condition in words.items():
        assert str(matching) == (
            f"A predicted lesion can find a true one where {condition}; they are matched one to one, with the most "
            "voxels in common."
        )
