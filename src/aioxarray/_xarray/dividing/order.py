"""The order of pieces: parts of it, and shuffles that are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from aioxarray._xarray.dividing.divisions import Numbers


@dataclass(frozen=True)
class Shuffle:
    """A shuffle of pieces that keeps those together that share stored chunks; see `shuffled`."""

    seed: int
    epoch: int
    buffer: int


@dataclass(frozen=True)
class Order:
    """Numbers of pieces in the order in which they are taken.

    It is pickled as the steps that lead to it, so that a shuffle of a million pieces is small.

    Attributes
    ----------
    count
        The number of all pieces, which are in their natural order before the first step.
    groups
        Returns, for numbers of pieces, numbers that are equal for those that share stored chunks.
    steps
        Slices of the order, and shuffles of it.
    """

    count: int
    groups: Callable[[Numbers], Numbers]
    steps: tuple[slice | Shuffle, ...] = ()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return int(self.numbers[index])

    @cached_property
    def _length(self) -> int:
        length = self.count
        for step in self.steps:
            if isinstance(step, slice):
                length = len(range(*step.indices(length)))
        return length

    @cached_property
    def numbers(self) -> range | Numbers:
        """The numbers of the pieces, in order."""
        numbers: range | Numbers = range(self.count)
        for step in self.steps:
            if isinstance(step, slice):
                numbers = numbers[step]
            else:
                before = np.asarray(numbers, dtype=np.int64)
                numbers = before[shuffled(self.groups(before), step)]
        return numbers

    def then(self, step: slice | Shuffle) -> Order:
        """Return the order after one more step."""
        return Order(self.count, self.groups, (*self.steps, step))

    def at_epoch(self, epoch: int) -> Order:
        """Return the order with all shuffles as they are in that epoch."""
        steps = [
            step if isinstance(step, slice) else replace(step, epoch=epoch) for step in self.steps
        ]
        return Order(self.count, self.groups, tuple(steps))

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the numbers, which the steps give again.
        return Order, (self.count, self.groups, self.steps)


def shuffled(groups: Numbers, shuffle: Shuffle) -> Numbers:
    """Return a permutation for pieces that belong to ``groups``.

    First the groups are shuffled, with their pieces in order. Then the pieces are shuffled within
    each run of ``buffer`` pieces. So the pieces of a group are less than ``2 * buffer`` places
    further apart than before.

    Only the raw numbers of PCG64 and SeedSequence are used, which numpy promises never to change;
    the methods of its generators may change with any release.
    """
    bits = np.random.PCG64(np.random.SeedSequence([shuffle.seed, shuffle.epoch]))
    _, numbers = np.unique(groups, return_inverse=True)
    count = len(groups)
    group_keys = bits.random_raw(int(numbers.max(initial=-1)) + 1)
    # Sorted by the last key first. Equal keys keep their order.
    order = np.argsort(group_keys[numbers], kind="stable")
    keys = bits.random_raw(count)
    places = np.lexsort((keys, np.arange(count) // shuffle.buffer))
    result: Numbers = order[places]
    return result
