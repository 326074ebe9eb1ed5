"""Selections of single points: the chunks they touch, and the points in each chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from aioxarray._zarr.selection import Chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import ArraySpec

# numpy radix-sorts integers of up to two bytes, which takes half the time for a million points.
_BY_DIGITS = 1 << 16
# The number of points that are numbered at once. The temporary arrays then stay in the CPU cache;
# for a million points, the operating system would have to provide new memory.
_AT_ONCE = 1 << 14
# The number of chunks whose places in the grid are computed at once.
_CHUNKS_AT_ONCE = 1 << 12


class Inside:
    """The positions of points in a chunk.

    Parameters
    ----------
    offset
        The flat index of each point in the chunk, in C order.
    chunk_shape
        The shape of the chunk.
    """

    __slots__ = ("_chunk_shape", "_offset")

    def __init__(self, offset: NDArray[np.intp], chunk_shape: tuple[int, ...]) -> None:
        self._offset = offset
        self._chunk_shape = chunk_shape

    def coordinates(self) -> tuple[NDArray[np.intp], ...]:
        """Return the positions as an index for numpy: one array per axis."""
        return np.unravel_index(self._offset, self._chunk_shape)

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the points of ``array``, the chunk."""
        if array.flags.c_contiguous:
            # This takes a quarter of the time of indexing with coordinates.
            return array.reshape(-1).take(self._offset)
        return array[self.coordinates()]


def selection_of(inside: tuple[Any, ...] | Inside) -> tuple[Any, ...]:
    """Return the selection in a chunk as an index for numpy and zarr."""
    return inside.coordinates() if isinstance(inside, Inside) else inside


class Points:
    """The chunks of a regular grid that contain some points.

    For any number of axes, a point is represented by two numbers: the number of its chunk, by which
    points are sorted, and its offset in the chunk. zarr's own indexer sorts and splits the
    coordinates of every axis.

    Parameters
    ----------
    number, offset
        For each point, in the order of the result, its chunk's number and its offset in the chunk.
        The numbers are ``uint16`` if the grid is small enough.
    shape
        The shape of the result.
    grid
        The number of chunks along each axis.
    chunk_shape
        The shape of each chunk.

    Attributes
    ----------
    shape, chunk_shape
        See the parameters.
    count
        The number of chunks.
    """

    def __init__(
        self,
        number: NDArray[np.integer[Any]],
        offset: NDArray[np.intp],
        shape: tuple[int, ...],
        grid: tuple[int, ...],
        chunk_shape: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self.chunk_shape = chunk_shape
        # The index in the result of each sorted point; None if the points were sorted already.
        self._order: NDArray[np.intp] | None = None
        few = number.dtype == np.uint16
        if np.any(number[1:] < number[:-1]):
            self._order = np.argsort(number, kind="stable" if few else None)
            if not few:
                number = number[self._order]
            offset = offset.take(self._order)
        self._offset = offset
        found: NDArray[np.integer[Any]]
        if few:
            # Counting avoids sorting the numbers as well.
            each = np.bincount(number)
            found = np.flatnonzero(each)
            ends = np.cumsum(each[found])
        else:
            ends = np.append(np.flatnonzero(number[1:] != number[:-1]) + 1, number.size)
            found = number[ends - 1]
        # The end of the points of each chunk, and its number; arrays, since a list of a million
        # numbers takes 20 ms to make, in which no other thread runs.
        self._ends = ends
        self._found = found
        self._grid = grid
        self.count = len(found)

    @classmethod
    def of(
        cls, coordinates: Sequence[Any], shape: Sequence[int], chunk_shape: Sequence[int]
    ) -> Self | None:
        """Return the chunks of the points with the given ``coordinates``, one array per axis.

        The arrays are broadcast against each other. Returns None if there are no points, if one is
        outside ``shape``, or if an array is a mask, which has no coordinates.
        """
        if any(axis.dtype.kind == "b" for axis in coordinates):
            return None
        grid = tuple(-(-size // length) for size, length in zip(shape, chunk_shape, strict=True))
        found = np.broadcast_shapes(*(np.shape(axis) for axis in coordinates))
        if not found or 0 in found or math.prod(grid) > np.iinfo(np.intp).max:
            return None
        counted = []
        for axis, size in zip(coordinates, shape, strict=True):
            low = axis.min()
            if low < -size or axis.max() >= size:
                return None
            counted.append(np.where(axis < 0, axis + size, axis) if low < 0 else axis)
        total = math.prod(found)
        number: NDArray[Any] = np.empty(
            total, np.uint16 if math.prod(grid) <= _BY_DIGITS else np.intp
        )
        offset = np.empty(total, np.intp)
        # Cast to intp: computing with unsigned or short integers would overflow.
        parts: Any = np.nditer(
            counted,
            ["external_loop", "buffered"],
            op_dtypes=[np.intp] * len(counted),
            casting="same_kind",
            order="C",
            buffersize=_AT_ONCE,
        )
        done = 0
        for part in parts:
            axes = part if isinstance(part, tuple) else (part,)
            at, inside = np.divmod(axes[0], chunk_shape[0])
            for axis, length, count in zip(axes[1:], chunk_shape[1:], grid[1:], strict=True):
                chunk, within = np.divmod(axis, length)
                at *= count
                at += chunk
                inside *= length
                inside += within
            end = done + at.size
            number[done:end] = at
            offset[done:end] = inside
            done = end
        return cls(number, offset, found, grid, tuple(chunk_shape))

    def chunks(self, key: Callable[[tuple[int, ...]], Any], spec: ArraySpec) -> Iterator[Chunk]:
        """Yield the chunks in C order, with the indices of their points in the flattened result."""
        start = 0
        for first in range(0, self.count, _CHUNKS_AT_ONCE):
            some = slice(first, first + _CHUNKS_AT_ONCE)
            axes = np.unravel_index(self._found[some], self._grid)
            at_each = zip(*(axis.tolist() for axis in axes), strict=True)
            for at, stop in zip(at_each, self._ends[some].tolist(), strict=True):
                # Coordinates are computed later, because this runs on the event loop.
                inside = Inside(self._offset[start:stop], self.chunk_shape)
                places = slice(start, stop) if self._order is None else self._order[start:stop]
                yield Chunk(key(at), spec, inside, (places,))
                start = stop
