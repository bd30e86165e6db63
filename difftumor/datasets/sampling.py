"""The order of samples: seeded, endless, the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from difftumor.seeding import Key, torch_generator


class SeededSampler(Sampler[tuple[int, int]]):
    """An endless series of shuffled passes over the data set, of which an epoch is a window.

    An epoch may thus be longer or shorter than the data set; every pass sees every case once. Ranks take turns.

    Args:
        size: Number of cases.
        samples_per_epoch: Length of the window, over all ranks; None means one pass.
        seed: The order derives from it.
        rank: This process.
        world_size: Number of processes.
        shuffle: False keeps the order of the cases.
        fixed: True yields the first epoch again and again, for validation.
    """

    def __init__(
        self,
        size: int,
        *,
        samples_per_epoch: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        fixed: bool = False,
    ) -> None:
        if size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"a sampler needs cases and a rank below the world size, got {size}, {rank}, {world_size}")
        self.size = size
        self.samples_per_epoch = size if samples_per_epoch is None else samples_per_epoch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.fixed = fixed
        self.epoch = 0
        self._called = 0  # the epoch as Lightning counts it
        self._resumed: tuple[int, int] | None = None
        self._orders: dict[tuple[Key, ...], Tensor] = {}

    def set_epoch(self, epoch: int) -> None:
        """Move the window; called by Lightning."""
        self._called = epoch
        if not self.fixed:
            self.epoch = epoch

    def resume_at(self, epoch: int, samples: int) -> None:
        """Leave out the first samples of this rank in one epoch, which were seen before."""
        self._resumed = (epoch, samples)

    def __len__(self) -> int:
        """Samples of this rank per epoch."""
        return len(range(self.rank, self.samples_per_epoch, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (pass over the data set, index of the case)."""
        start = self.epoch * self.samples_per_epoch
        seen = self._resumed[1] if self._resumed is not None and self._resumed[0] == self._called else 0
        first = start + self.rank + seen * self.world_size
        for position in range(first, start + self.samples_per_epoch, self.world_size):
            yield self._sample(position)

    def _sample(self, position: int) -> tuple[int, int]:
        """Return the sample at a position of the endless series."""
        number, place = divmod(position, self.size)
        return number, int(self._order(self.size, "order", "pass", number)[place])

    def _order(self, size: int, *keys: Key) -> Tensor:
        """Return the order of one pass; the latest of every kind is kept."""
        if not self.shuffle:
            return torch.arange(size)
        if keys not in self._orders:
            self._orders = {kept: order for kept, order in self._orders.items() if kept[:-1] != keys[:-1]}
            self._orders[keys] = torch.randperm(size, generator=torch_generator(self.seed, *keys))
        return self._orders[keys]


class RatioSampler(SeededSampler):
    """Two groups of cases in a stated ratio, each in an endless series of shuffled passes of its own.

    Every stretch of as many samples as there are cases has this ratio, up to rounding, in shuffled order.

    Args:
        groups: Indices of the cases of the first and of the second group, neither empty.
        second_share: Share of the samples that are of the second group, in (0, 1).
        options: Arguments of ``SeededSampler`` except ``size``.

    Raises:
        ValueError: A group is empty, or the share is out of range.
    """

    def __init__(self, groups: tuple[Sequence[int], Sequence[int]], *, second_share: float, **options: Any) -> None:
        if not all(groups) or not 0 < second_share < 1:
            raise ValueError(f"two groups with cases and a share in (0, 1) are needed, got {groups}, {second_share}")
        super().__init__(sum(map(len, groups)), **options)
        self.groups = groups
        self.second_share = second_share

    def _sample(self, position: int) -> tuple[int, int]:
        stretch, place = divmod(position, self.size)
        before, after = self._seconds(stretch), self._seconds(stretch + 1)
        # Places of a stretch in shuffled order: the first ones of that order belong to the second group.
        of_second = self._order(self.size, "groups", "stretch", stretch) < after - before
        group = int(of_second[place])
        earlier = int(of_second[:place].sum())
        number = before + earlier if group else stretch * self.size - before + place - earlier
        cases = self.groups[group]
        number, place = divmod(number, len(cases))
        return number, cases[int(self._order(len(cases), "order", group, "pass", number)[place])]

    def _seconds(self, stretches: int) -> int:
        """Return the number of samples of the second group in a number of stretches."""
        return math.floor(stretches * self.size * self.second_share + 0.5)


class EvenSampler(SeededSampler):
    """Groups of cases that have the same number of samples, each in an endless series of shuffled passes of its own.

    Of as many samples in a row as there are groups, one is of each group, in shuffled order.

    Args:
        groups: Indices of the cases of each group, none empty.
        options: Arguments of ``SeededSampler`` except ``size``.

    Raises:
        ValueError: A group is empty.
    """

    def __init__(self, groups: Sequence[Sequence[int]], **options: Any) -> None:
        if not all(groups):
            raise ValueError(f"groups with cases are needed, got {groups}")
        super().__init__(sum(map(len, groups)), **options)
        self.groups = groups

    def _sample(self, position: int) -> tuple[int, int]:
        turn, place = divmod(position, len(self.groups))
        group = int(self._order(len(self.groups), "groups", "turn", turn)[place])
        cases = self.groups[group]
        number, place = divmod(turn, len(cases))
        return number, cases[int(self._order(len(cases), "order", group, "pass", number)[place])]
