"""The order of samples: what it depends on, and what every pass holds."""

import pytest

from difftumor.datasets.sampling import EvenSampler, RatioSampler, SeededSampler


@pytest.mark.parametrize("per_epoch", [2, 5, 13, None])
def test_every_pass_sees_every_case_once(per_epoch):
    sampler = SeededSampler(5, samples_per_epoch=per_epoch, seed=3)
    keys = []
    for epoch in range(30):
        sampler.set_epoch(epoch)
        keys += list(sampler)
    assert len(keys) == 30 * len(sampler)
    assert len(set(keys)) == len(keys)
    for number in range(keys[-1][0]):
        assert sorted(index for pass_, index in keys if pass_ == number) == list(range(5))
    orders = {tuple(index for pass_, index in keys if pass_ == number) for number in range(keys[-1][0])}
    assert len(orders) > 1


def test_ranks_share_what_one_process_sees():
    alone = SeededSampler(7, samples_per_epoch=10, seed=1)
    ranks = [SeededSampler(7, samples_per_epoch=10, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(4)
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == list(alone)


def test_order_depends_on_seed_and_epoch_and_may_be_fixed():
    def order(epoch, **options):
        sampler = SeededSampler(20, **options)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, seed=1) == order(0, seed=1)
    assert order(0, seed=1) != order(1, seed=1)
    assert order(0, seed=1) != order(0, seed=2)
    assert order(3, seed=1, fixed=True) == order(0, seed=1)
    assert order(3, shuffle=False) == list(range(20))
    with pytest.raises(ValueError, match="needs cases"):
        SeededSampler(0)


GROUPS = ([0, 1, 2, 3, 4], [5, 6])


def ratio(share, **options):
    return RatioSampler(GROUPS, second_share=share, **options)


@pytest.mark.parametrize("share", [0.1, 0.5, 2 / 3])
def test_two_groups_keep_their_ratio_and_every_pass_over_each_sees_every_case_once(share):
    sampler = ratio(share, samples_per_epoch=9, seed=3)
    keys = []
    for epoch in range(70):
        sampler.set_epoch(epoch)
        keys += list(sampler)
    assert len(set(keys)) == len(keys) == 630
    second = [key for key in keys if key[1] in GROUPS[1]]
    assert abs(len(second) - share * 630) <= 1
    for group in GROUPS:
        own = [key for key in keys if key[1] in group]
        for number in range(own[-1][0]):
            assert sorted(index for pass_, index in own if pass_ == number) == group
    kinds = [key[1] in GROUPS[1] for key in keys]
    if share == 0.5:  # no rank of two gets one kind alone
        assert 0.3 < sum(kinds[::2]) / len(kinds[::2]) < 0.7


def test_ranks_share_what_one_process_sees_of_two_groups_too():
    alone = ratio(0.4, samples_per_epoch=10, seed=1)
    ranks = [ratio(0.4, samples_per_epoch=10, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(4)
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == list(alone)


def test_a_group_without_cases_is_refused():
    with pytest.raises(ValueError, match="two groups with cases"):
        RatioSampler(([0], []), second_share=0.5)


def test_groups_of_any_size_have_as_many_samples_and_every_pass_sees_every_case_once():
    groups = ([4, 7], [0, 1, 2, 3, 5], [6])
    alone, *ranks = (
        EvenSampler(groups, samples_per_epoch=12, seed=2, rank=rank, world_size=size)
        for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    keys = []
    for epoch in range(5):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        keys += list(alone)
        assert [key for pair in zip(*ranks, strict=True) for key in pair] == keys[-12:]
    assert len(set(keys)) == len(keys) == 60
    kinds = [next(kind for kind, group in enumerate(groups) if index in group) for _, index in keys]
    assert all(sorted(kinds[turn : turn + 3]) == [0, 1, 2] for turn in range(0, 60, 3))
    assert len({tuple(kinds[turn : turn + 3]) for turn in range(0, 60, 3)}) > 2  # not always in the same order
    for group in groups:
        own = [key for key in keys if key[1] in group]
        for number in range(own[-1][0]):
            assert sorted(index for pass_, index in own if pass_ == number) == group
    with pytest.raises(ValueError, match="groups with cases"):
        EvenSampler(([0], []))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_an_epoch_that_was_left_goes_on_where_it_was_and_later_ones_are_whole(rank, world_size, fixed):
    options = {"samples_per_epoch": 11, "seed": 1, "rank": rank, "world_size": world_size, "fixed": fixed}
    never_left, left = SeededSampler(7, **options), SeededSampler(7, **options)
    left.resume_at(3, samples=4)
    for epoch, seen in ((3, 4), (3, 4), (4, 0)):  # a loader may start an epoch twice
        for sampler in (never_left, left):
            sampler.set_epoch(epoch)
        assert list(left) == list(never_left)[seen:]
        assert len(left) == len(never_left)
