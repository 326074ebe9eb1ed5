"""Selections by lists of positions along dimensions: the chunks they touch, found chunk by chunk.

zarr's own indexing makes a list of all chunks, with several objects for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.selection import AxisPart


class Positions:
    """Positions along one axis, in any order, and repeated or not.

    Parameters
    ----------
    at
        The positions, from 0.
    length
        The length of a chunk along the axis.

    Attributes
    ----------
    size
        The number of positions.
    count
        The number of chunks.
    inside_by_array, outside_by_array
        Whether an array, and not a slice, selects the positions in some chunk, or in the result.
    """

    def __init__(self, at: NDArray[np.intp], length: int) -> None:
        self.size = at.size
        self._length = length
        # The index in the result of each sorted position; None if they were sorted already.
        self._order: NDArray[np.intp] | None = None
        chunk = at // length
        if np.any(chunk[1:] < chunk[:-1]):
            self._order = np.argsort(chunk, kind="stable")
            at, chunk = at[self._order], chunk[self._order]
        self._at = at
        self._chunk = chunk
        self._steps = np.diff(at)
        first = np.flatnonzero(np.diff(chunk, prepend=-1))
        self._edges = np.append(first, at.size)
        self.count = len(first)
        # In a chunk, positions are a slice if all steps are alike. Those to another chunk, and the
        # second step of three, differ from the one before only where a chunk begins.
        unlike = np.flatnonzero(self._steps[1:] != self._steps[:-1]) + 1
        within = (chunk[unlike - 1] == chunk[unlike]) & (chunk[unlike] == chunk[unlike + 1])
        same = chunk[1:] == chunk[:-1]
        self.inside_by_array = bool(np.any(within) or np.any(self._steps[same] <= 0))
        self.outside_by_array = self._order is not None

    @classmethod
    def of(cls, positions: NDArray[Any], size: int, length: int) -> Self | None:
        """Return ``positions`` along an axis of ``size``, in chunks of ``length``.

        Negative ones count from the end. Returns None if there are none, or if one is outside.
        """
        if positions.ndim != 1 or positions.size == 0 or positions.dtype.kind not in "iu":
            return None
        low, high = int(positions.min()), int(positions.max())
        if low < -size or high >= size:
            return None
        at = positions.astype(np.intp)
        return cls(np.where(at < 0, at + size, at) if low < 0 else at, length)

    def parts(self) -> Iterator[AxisPart]:
        """Yield for each chunk its index, the positions in it, and their places in the result."""
        for number in range(self.count):
            start, stop = int(self._edges[number]), int(self._edges[number + 1])
            index = int(self._chunk[start])
            places = slice(start, stop) if self._order is None else self._order[start:stop]
            yield index, self._inside(start, stop, index * self._length), places

    def _inside(self, start: int, stop: int, begin: int) -> slice | NDArray[np.intp]:
        first, last = int(self._at[start]) - begin, int(self._at[stop - 1]) - begin
        if stop - start == 1:
            return slice(first, first + 1)
        step = int(self._steps[start])
        if step > 0 and np.all(self._steps[start : stop - 1] == step):
            return slice(first, last + 1, step)
        return self._at[start:stop] - begin


def open_mesh(part: slice | NDArray[np.intp], axis: int, ndim: int) -> NDArray[np.intp]:
    """Return the selection along one of ``ndim`` axes as an array, as `numpy.ix_` does."""
    if isinstance(part, slice):
        part = np.arange(part.start, part.stop, part.step or 1)
    return part.reshape([-1 if each == axis else 1 for each in range(ndim)])
