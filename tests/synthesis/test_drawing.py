"""Which of the tumors that are drawn are kept, and what is said of those that are not."""

from dataclasses import replace

import numpy as np

from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.shapes import tumor_shape
from tests.synthesis.makers import ball, wanted


def host(radius=15):
    return Host(ball((40, 40, 40), radius), organ=get_organ("liver"), spacing_mm=(1.0, 1.0, 1.0), open_border=False)


class Rule:
    """Keeps the first tumor that a rule lets through, and remembers what it was asked."""

    def __init__(self, rule):
        self.rule, self.asked, self.wanted = rule, [], []

    def __call__(self, record, accepted, wanted):
        self.wanted.append(wanted)
        # The number that it would have.
        self.asked.append((record, len(accepted) + 1))
        return self.rule(record)


def test_without_a_choice_every_tumor_is_drawn_once():
    drawn = draw_tumors(host(), [wanted("tiny", 3)], seed=0, attempts=9)
    assert [record.attempts for record in drawn.records] == [1, 1, 1]
    assert drawn.shortfalls == ()


def test_a_choice_that_keeps_all_changes_nothing():
    keep = Rule(lambda record: record)
    specs = [wanted("tiny", 2), wanted("small", 1)]
    assert draw_tumors(host(), specs, seed=0, accept=keep, attempts=5) == draw_tumors(host(), specs, seed=0)
    assert keep.wanted == [1, 2, 3]
    assert [number for _, number in keep.asked] == [1, 2, 3]


def test_every_attempt_is_another_tumor_and_counts():
    third = Rule(lambda record: record if record.attempts == 3 else None)
    drawn = draw_tumors(host(), [wanted("tiny", 2)], seed=0, accept=third, attempts=5)
    assert [record.attempts for record in drawn.records] == [3, 3]
    assert [(record.attempts, number) for record, number in third.asked] == [
        (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2),
    ]  # fmt: skip
    assert len({record.shape_seed for record, _ in third.asked}) == 6
    assert len({record.texture_seed for record, _ in third.asked}) == 6
    # The first attempt is the tumor that is drawn without a choice.
    first = draw_tumors(host(), [wanted("tiny", 1)], seed=0).records
    assert third.asked[0][0] == first[0]


def test_a_tumor_is_given_up_after_its_attempts_and_the_next_keeps_its_number():
    later = Rule(lambda record: record if len(later.asked) > 4 else None)
    drawn = draw_tumors(host(), [wanted("tiny", 3)], seed=0, accept=later, attempts=4)
    assert [number for _, number in later.asked] == [1, 1, 1, 1, 1, 2]
    assert len(drawn.records) == 2
    assert drawn.shortfalls == ("1 of 3 tumors were not made, since none that was tried was good enough.",)


def test_what_the_choice_returns_takes_its_place():
    other = Rule(lambda record: replace(record, texture_seed=7, attempts=4))
    (record,) = draw_tumors(host(), [wanted("tiny", 1)], seed=0, accept=other, attempts=2).records
    assert (record.texture_seed, record.attempts) == (7, 4)


def test_a_full_organ_is_said_to_be_so():
    drawn = draw_tumors(host(radius=6), [wanted("tiny", 9)], seed=0)
    assert 1 <= len(drawn.records) < 9
    assert drawn.shortfalls == (f"The liver had room for {len(drawn.records)} of 9 tumors.",)


def test_both_reasons_are_told_with_their_own_numbers():
    """One of the tumors finds no room for its size, one is not good enough, and two are kept."""
    small = Rule(lambda record: record if record.size == "tiny" else None)
    specs = [wanted("tiny", 2), wanted("small", 1), wanted("large", 1)]
    drawn = draw_tumors(host(radius=13), specs, seed=0, accept=small, attempts=2)
    assert [record.size for record in drawn.records] == ["tiny", "tiny"]
    assert drawn.shortfalls == (
        "The liver had room for 3 of 4 tumors.",
        "1 of 4 tumors were not made, since none that was tried was good enough.",
    )


def test_satellites_count_among_the_tumors_and_fall_with_theirs():
    none = Rule(lambda record: None if record.satellite_of is None else record)
    spec = wanted("tiny", 2, satellites={"count": 3, "diameter_mm": 3, "distance_mm": 2})
    drawn = draw_tumors(host(), [spec], seed=0, accept=none, attempts=1)
    assert drawn.records == ()
    assert drawn.shortfalls == ("2 of 2 tumors were not made, since none that was tried was good enough.",)
    parents = Rule(lambda record: record if record.satellite_of is None else None)
    drawn = draw_tumors(host(), [spec], seed=0, accept=parents, attempts=1)
    assert len(drawn.records) == 2
    assert drawn.shortfalls
    assert all("of 8 tumors" in sentence for sentence in drawn.shortfalls)


def test_tumors_take_their_place():
    """No two are closer than a voxel, also those that a choice brought forth at a later attempt."""
    second = Rule(lambda record: record if record.attempts == 2 else None)
    records = draw_tumors(host(radius=18), [wanted("tiny", 6)], seed=3, accept=second, attempts=2).records
    assert len(records) >= 4
    count = np.zeros((40, 40, 40), int)
    for record in records:
        shape = tumor_shape(record)
        voxels = np.argwhere(shape) - np.array(shape.shape) // 2 + record.center_voxel
        voxels = voxels[((voxels >= 0) & (voxels < 40)).all(axis=1)]
        count[tuple(voxels.T)] += 1
    # Drawn shapes may be cut where they meet, but hardly are.
    assert (count > 1).sum() < 0.05 * (count > 0).sum()
