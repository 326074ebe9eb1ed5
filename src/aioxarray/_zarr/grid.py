"""Chunk boundaries of an array, and whether a region is aligned with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zarr


def write_edges(array: zarr.Array[Any]) -> list[list[int]]:
    """Return, for each axis, the boundaries of the shards, or of the chunks if there are none."""
    try:
        sizes = array.shards or array.chunks
    except NotImplementedError:
        # Chunks of unequal sizes (zarr 3.2 and later).
        unequal: Any = array
        return [list(itertools.accumulate(axis)) for axis in unequal.write_chunk_sizes]
    return _edges(sizes, array.shape)


def read_edges(array: zarr.Array[Any]) -> list[list[int]]:
    """Return, for each axis, the boundaries of the chunks, which are inside the shards, if any."""
    try:
        sizes = array.chunks
    except NotImplementedError:
        unequal: Any = array
        return [list(itertools.accumulate(axis)) for axis in unequal.read_chunk_sizes]
    return _edges(sizes, array.shape)


def _edges(sizes: Sequence[int], shape: Sequence[int]) -> list[list[int]]:
    return [
        list(range(size, length, max(1, size))) for size, length in zip(sizes, shape, strict=True)
    ]


def is_aligned(region: Any, shape: tuple[int, ...], edges: Sequence[Sequence[int]]) -> bool:
    """Return whether ``region`` contains each chunk either completely or not at all."""
    for part, length, inner in zip(region, shape, edges, strict=True):
        start, stop, _ = part.indices(length)
        ends = {0, length, *inner}
        if start not in ends or stop not in ends:
            return False
    return True
