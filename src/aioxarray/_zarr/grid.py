"""Where the chunks of an array end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zarr


def write_edges(array: zarr.Array[Any]) -> list[list[int]]:
    """Return, for each axis, where what a write replaces as a whole ends: shards, or chunks."""
    try:
        sizes = array.shards or array.chunks
    except NotImplementedError:
        # Chunks of unequal sizes, from zarr 3.2 on.
        unequal: Any = array
        return [list(itertools.accumulate(axis)) for axis in unequal.write_chunk_sizes]
    return [
        list(range(size, length, max(1, size)))
        for size, length in zip(sizes, array.shape, strict=True)
    ]


def is_aligned(region: Any, shape: tuple[int, ...], edges: Sequence[Sequence[int]]) -> bool:
    """Return whether each chunk of an array is in ``region`` as a whole or not at all."""
    for part, length, inner in zip(region, shape, edges, strict=True):
        start, stop, _ = part.indices(length)
        ends = {0, length, *inner}
        if start not in ends or stop not in ends:
            return False
    return True
