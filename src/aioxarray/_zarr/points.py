"""Selections of single points: the chunks they touch, and the points in each chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import ArraySpec
    from aioxarray._zarr.selection import Chunk

# numpy radix-sorts integers of up to two bytes, which takes half the time for a million points.
_BY_DIGITS = 1 << 16


class Points:
    """The chunks of a regular grid that contain some points.

    Whatever the number of axes, each point has two numbers: the number of its chunk, by which the
    points are sorted, and its offset in the chunk. zarr's own indexer sorts and splits the
    coordinates of every axis.

    Parameters
    ----------
    number, offset
        For each point, in the order of the result, its chunk's number and its offset in the chunk.
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
        number: NDArray[np.intp],
        offset: NDArray[np.intp],
        shape: tuple[int, ...],
        grid: tuple[int, ...],
        chunk_shape: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self.chunk_shape = chunk_shape
        # The index in the result of each sorted point; None if the points were sorted already.
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
        """Return the chunks of the points with the given ``coordinates``, one array per axis.

        The arrays are broadcast against each other. Returns None if there are no points, or if one
        is outside ``shape``.
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
            # As intp, because numbers and offsets could overflow unsigned or small integers.
            chunk, inside = np.divmod(positive.astype(np.intp, copy=False), length)
            # Not broadcast before the last axis, so that intermediate arrays stay small.
            number, offset = number * count + chunk, offset * length + inside
        number = np.broadcast_to(number, found).reshape(-1)
        offset = np.broadcast_to(offset, found).reshape(-1)
        return cls(number, offset, found, grid, tuple(chunk_shape))

    def chunks(self, key: Callable[[tuple[int, ...]], Any], spec: ArraySpec) -> Iterator[Chunk]:
        """Yield the chunks in C order, with the indices of their points in the flattened result."""
        edges = zip(self._edges, self._edges[1:], strict=False)
        for at, (start, stop) in zip(zip(*self._at, strict=True), edges, strict=True):
            inside = np.unravel_index(self._offset[start:stop], self.chunk_shape)
            places = slice(start, stop) if self._order is None else self._order[start:stop]
            yield key(at), spec, inside, (places,)
