"""The values of dask arrays, put into place block by block as the blocks are computed.

dask itself keeps all blocks until the last one is there, copies them into the result, and lets go
of them at once: memory for the result twice and, as a gigabyte goes back to the operating system,
tens of milliseconds in which no other Python code runs.
"""

from __future__ import annotations

import itertools
import math
import threading
import uuid
from typing import Any

import numpy as np

# dask's own way costs less for less than this, and lets go of it within a millisecond.
_LARGE_BYTES = 4 << 20


class Gathered:
    """The values of a dask array that is computed in this process.

    Parameters
    ----------
    array
        An array that `helps` says yes to.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._name = f"gather-{uuid.uuid4().hex}"
        self._ends = [[0, *itertools.accumulate(sizes)] for sizes in array.chunks]
        self._lock = threading.Lock()
        self._values: np.ndarray[Any, Any] | None = None
        # Blocks that are not what the array says of them.
        self._odd: dict[tuple[int, ...], Any] = {}

    def __dask_tokenize__(self) -> str:
        # Two are never the same.
        return self._name

    @staticmethod
    def helps(array: Any) -> bool:
        """Say whether ``array`` has many blocks, much data, and a numpy array of known shape."""
        sizes = itertools.chain.from_iterable(array.chunks)
        return (
            type(getattr(array, "_meta", None)) is np.ndarray
            and math.prod(array.numblocks) > 1
            and not any(math.isnan(size) for size in sizes)
            and math.prod(array.shape) * array.dtype.itemsize >= _LARGE_BYTES
        )

    def pending(self) -> Any:
        """Return a dask array of nothing, with which the values are computed."""
        dtype, meta = self._array.dtype, self._array._meta
        return self._array.map_blocks(self._put, name=self._name, dtype=dtype, meta=meta)

    def values(self) -> Any:
        """Return the values, as dask would, when `pending` has been computed."""
        if not self._odd:
            return self._values
        finalize, arguments = self._array.__dask_postcompute__()
        return finalize(self._nested(()), *arguments)

    def _put(self, block: Any, block_id: tuple[int, ...]) -> None:
        place = self._place(block_id)
        if type(block) is np.ndarray and block.shape == tuple(p.stop - p.start for p in place):
            values = self._values_for(block.dtype)
            if values is not None:
                values[place] = block
                return
        self._odd[block_id] = block

    def _values_for(self, dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
        """Return the result, if it is of the type of a block."""
        with self._lock:
            if self._values is None:
                # Of the blocks' own type: what an array says of it need not be true.
                self._values = np.empty([ends[-1] for ends in self._ends], dtype)
            same = self._values.dtype == dtype and self._values.dtype.metadata == dtype.metadata
            return self._values if same else None

    def _place(self, block_id: tuple[int, ...]) -> tuple[slice, ...]:
        pairs = zip(self._ends, block_id, strict=True)
        return tuple(slice(ends[at], ends[at + 1]) for ends, at in pairs)

    def _nested(self, block_id: tuple[int, ...]) -> Any:
        """Return the blocks in nested lists, as dask has them."""
        if len(block_id) < len(self._ends):
            count = len(self._ends[len(block_id)]) - 1
            return [self._nested((*block_id, at)) for at in range(count)]
        if block_id in self._odd:
            return self._odd[block_id]
        assert self._values is not None, "a block was neither put into place nor kept"
        return self._values[self._place(block_id)]
