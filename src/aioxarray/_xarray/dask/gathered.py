"""Gathering the result of a dask array: each block is copied into place as soon as it is computed.

dask itself keeps all blocks until the last one is done, copies them into the result, and frees
them all at once. That takes the memory of the result twice. Returning a gigabyte to the operating
system also keeps other Python code from running for tens of milliseconds.
"""

from __future__ import annotations

import itertools
import math
import threading
import uuid
from typing import Any

import numpy as np

from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Destination


class Gathered:
    """The result of a dask array whose blocks arrive in this process one by one.

    Parameters
    ----------
    array
        An array for which `helps` returns True.
    into
        The array that the values should be put into, if they have its dtype.
    """

    def __init__(self, array: Any, into: Destination | None = None) -> None:
        self._array = array
        self._into = into
        self._name = f"gather-{uuid.uuid4().hex}"
        self._ends = [[0, *itertools.accumulate(sizes)] for sizes in array.chunks]
        self._lock = threading.Lock()
        self._values: np.ndarray[Any, Any] | None = None
        # Blocks of an unexpected type, shape or dtype.
        self._odd: dict[tuple[int, ...], Any] = {}

    def __dask_tokenize__(self) -> str:
        # Every instance is unique.
        return self._name

    @staticmethod
    def helps(array: Any) -> bool:
        """Return whether ``array`` is a large one of several numpy blocks, all of known shape."""
        sizes = itertools.chain.from_iterable(array.chunks)
        return (
            type(getattr(array, "_meta", None)) is np.ndarray
            and math.prod(array.numblocks) > 1
            and not any(math.isnan(size) for size in sizes)
            and math.prod(array.shape) * array.dtype.itemsize >= tuning.GATHERED_BYTES
        )

    def pending(self) -> Any:
        """Return a dask array to compute instead, whose tasks put the blocks in place."""
        dtype, meta = self._array.dtype, self._array._meta
        return self._array.map_blocks(self.put, name=self._name, dtype=dtype, meta=meta)

    def values(self) -> Any:
        """Return the values, as dask would, once `pending` has been computed."""
        if not self._odd:
            return self._values
        finalize, arguments = self._array.__dask_postcompute__()
        return finalize(self._nested(()), *arguments)

    def nbytes_of(self, block_id: tuple[int, ...]) -> int:
        """Return the bytes that a block should have."""
        lengths = (place.stop - place.start for place in self._place(block_id))
        count: int = math.prod(lengths) * self._array.dtype.itemsize
        return count

    def put(self, block: Any, block_id: tuple[int, ...]) -> None:
        """Put a block into place."""
        place = self._place(block_id)
        if type(block) is np.ndarray and block.shape == tuple(p.stop - p.start for p in place):
            values = self._values_for(block.dtype)
            if values is not None:
                if self._into is None or values is not self._into.array:
                    values[place] = block
                    return
                with self._into.lent.writing() as may_write:
                    if may_write:
                        values[place] = block
                return
        self._odd[block_id] = block

    def _values_for(self, dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
        """Return the result array; None if it does not have the dtype of a block."""
        with self._lock:
            if self._values is None and self._into is not None and self._into.array.dtype == dtype:
                self._values = self._into.array
            if self._values is None:
                # The dtype of a block, since the dtype that the array declares may be wrong.
                self._values = np.empty([ends[-1] for ends in self._ends], dtype)
            same = self._values.dtype == dtype and self._values.dtype.metadata == dtype.metadata
            return self._values if same else None

    def _place(self, block_id: tuple[int, ...]) -> tuple[slice, ...]:
        pairs = zip(self._ends, block_id, strict=True)
        return tuple(slice(ends[at], ends[at + 1]) for ends, at in pairs)

    def _nested(self, block_id: tuple[int, ...]) -> Any:
        """Return the blocks as nested lists, which is how dask has them."""
        if len(block_id) < len(self._ends):
            count = len(self._ends[len(block_id)]) - 1
            return [self._nested((*block_id, at)) for at in range(count)]
        if block_id in self._odd:
            return self._odd[block_id]
        assert self._values is not None, "a block was neither put into place nor kept"
        return self._values[self._place(block_id)]
