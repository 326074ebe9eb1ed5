"""Which chunks a selection of single points touches, and which points are in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import ArraySpec
    from aioxarray._zarr.selection import Chunk

# numpy sorts numbers of up to two bytes by their digits: a million in half the time.
_BY_DIGITS = 1 << 16


class Points:
    """The chunks of a regular grid that hold some points.

    Each point is two numbers, that of its chunk and its offset in there, whatever the number of
    axes, and points are sorted by the first one. zarr's own indexer sorts and takes apart the
    coordinates of every axis.

    Parameters
    ----------
    number, offset
        For each point, in the order of the result, its chunk and its place in the chunk.
    shape
        Of the result.
    grid
        How many chunks there are along each axis.
    chunk_shape
        Of each chunk.

    Attributes
    ----------
    shape, chunk_shape
        As they were given.
    count
        How many chunks.
    """

    def __init__(
        self,
        number: NDArray[np.intp],
        offset: NDArray[np.intp],
        shape: tuple[int, ...],
        grid: tuple[int, ...],
        chunk_shape: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self.chunk_shape = chunk_shape
        # Where the points are in the result; None if they are in the order of their chunks.
        self._order: NDArray[np.intp] | None = None
        if np.any(number[1:] < number[:-1]):
            if math.prod(grid) <= _BY_DIGITS:
                self._order = np.argsort(number.astype(np.uint16), kind="stable")
            else:
                self._order = np.argsort(number)
            number, offset = number[self._order], offset[self._order]
        self._offset = offset
        starts = np.flatnonzero(number[1:] != number[:-1]) + 1
        self._edges: list[int] = [0, *starts.tolist(), number.size]
        self._at = [axis.tolist() for axis in np.unravel_index(number[self._edges[:-1]], grid)]
        self.count = len(self._edges) - 1

    @classmethod
    def of(
        cls, coordinates: Sequence[Any], shape: Sequence[int], chunk_shape: Sequence[int]
    ) -> Self | None:
        """Return the chunks of the points with the ``coordinates``, an array for each axis.

        The arrays are broadcast. Returns None where there is no point, or one is outside of
        ``shape``.
        """
        grid = tuple(-(-size // length) for size, length in zip(shape, chunk_shape, strict=True))
        found = np.broadcast_shapes(*(np.shape(axis) for axis in coordinates))
        if not found or 0 in found or math.prod(grid) > np.iinfo(np.intp).max:
            return None
        number: Any = 0
        offset: Any = 0
        for axis, size, length, count in zip(coordinates, shape, chunk_shape, grid, strict=True):
            low = axis.min()
            if low < -size or axis.max() >= size:
                return None
            positive = np.where(axis < 0, axis + size, axis) if low < 0 else axis
            # Unsigned or short coordinates would not hold what is computed of them.
            chunk, inside = np.divmod(positive.astype(np.intp, copy=False), length)
            # Of axes that are not broadcast yet these stay as small as the axes are.
            number, offset = number * count + chunk, offset * length + inside
        number = np.broadcast_to(number, found).reshape(-1)
        offset = np.broadcast_to(offset, found).reshape(-1)
        return cls(number, offset, found, grid, tuple(chunk_shape))

    def chunks(self, key: Callable[[tuple[int, ...]], Any], spec: ArraySpec) -> Iterator[Chunk]:
        """Return the chunks in C order, lazily, with their places in a flat result."""
        edges = zip(self._edges, self._edges[1:], strict=False)
        for at, (start, stop) in zip(zip(*self._at, strict=True), edges, strict=True):
            inside = np.unravel_index(self._offset[start:stop], self.chunk_shape)
            places = slice(start, stop) if self._order is None else self._order[start:stop]
            yield key(at), spec, inside, (places,)
