"""The grid of an object's pieces: the division of each dimension, and the windows of pieces."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aioxarray._xarray.dividing.divisions import Division, Numbers

Window = Mapping[Hashable, tuple[int, int]]
"""The first position of a piece along each dimension, and the one after its last."""


@dataclass(frozen=True)
class Axis:
    """A dimension that is divided.

    Attributes
    ----------
    dim
        The dimension.
    division
        Its pieces.
    cuts
        The positions at which stored chunks end; None if that is unknown.
    is_whole
        Whether each piece has all of the dimension.
    """

    dim: Hashable
    division: Division
    cuts: tuple[int, ...] | None
    is_whole: bool

    def groups(self) -> Numbers:
        """Return, for each piece, the number of the stored chunk in which it begins."""
        starts, _ = self.division.all_bounds()
        if self.cuts is None:
            return np.arange(len(starts), dtype=np.int64)
        return np.searchsorted(np.array(self.cuts, dtype=np.int64), starts, side="right")


@dataclass(frozen=True)
class Grid:
    """The pieces of an object, numbered so that the last dimension changes fastest.

    Attributes
    ----------
    axes
        The dimensions that are divided.
    """

    axes: tuple[Axis, ...]

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return tuple(len(axis.division) for axis in self.axes)

    @property
    def count(self) -> int:
        """The number of pieces."""
        return math.prod(self._shape)

    @property
    def split(self) -> frozenset[Hashable]:
        """The dimensions along which pieces may differ; at least one."""
        split = frozenset(axis.dim for axis in self.axes if not axis.is_whole)
        return split or frozenset(axis.dim for axis in self.axes)

    def window(self, number: int) -> Window:
        """Return the window of a piece."""
        places = np.unravel_index(number, self._shape)
        return {
            axis.dim: axis.division.bounds(int(place))
            for axis, place in zip(self.axes, places, strict=True)
        }

    def groups(self, numbers: Numbers) -> Numbers:
        """Return, for pieces, numbers that are equal if they begin in the same stored chunks."""
        total = np.zeros(len(numbers), dtype=np.int64)
        for axis, places in zip(self.axes, np.unravel_index(numbers, self._shape), strict=True):
            groups = axis.groups()
            total = total * (int(groups.max(initial=0)) + 1) + groups[places]
        return total

    def lengths(self, numbers: range | Numbers) -> dict[Hashable, tuple[int, int]]:
        """Return the shortest and the longest length of pieces along each dimension."""
        if len(numbers) == 0:
            return {}
        found: dict[Hashable, tuple[int, int]] = {}
        places: tuple[Numbers, ...] | None = None
        for at, axis in enumerate(self.axes):
            starts, ends = axis.division.all_bounds()
            lengths = ends - starts
            if (lengths != lengths[0]).any():
                if places is None:
                    places = np.unravel_index(np.asarray(numbers, dtype=np.int64), self._shape)
                lengths = lengths[places[at]]
            found[axis.dim] = int(lengths.min()), int(lengths.max())
        return found
