"""Zarr arrays with some chunks already fetched, which are decoded without a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._xarray.compat import ExplicitIndexer, VectorizedIndexer, ZarrArrayWrapper
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.arrays import prefetched_block
from aioxarray._zarr.selection import is_basic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import Buffer


class PrefetchedArray(ZarrArrayWrapper):
    """A Zarr array with some chunks already fetched.

    Parameters
    ----------
    plain
        xarray's own array, which replaces this one once the fetched chunks can be dropped.
    values
        The fetched chunks by their keys in the store; None for chunks that are missing.
    """

    __slots__ = ("_values", "_whole", "plain")

    def __init__(self, plain: ZarrArrayWrapper, values: Mapping[str, Buffer | None]) -> None:
        # Not with the base class's constructor, which would ask the codecs for the dtype again.
        self._array, self.shape, self.dtype = plain._array, plain.shape, plain.dtype
        self.plain = plain
        self._values = values
        self._whole: NDArray[Any] | None = None

    @property
    def is_small(self) -> bool:
        """Whether decoding it takes less time than handing it to a worker thread."""
        return int(math.prod(self.shape)) * int(self.dtype.itemsize) <= tuning.INLINE_BYTES

    def prefetched(self, key: ExplicitIndexer) -> Any:
        """Return the values that ``key`` selects; None if they were not fetched."""
        if isinstance(key, VectorizedIndexer) or not is_basic(key.tuple):
            return None
        # Once, as a whole: xarray reads the first and last time, then all of them.
        if self._whole is None and self.is_small:
            everything = (slice(None),) * len(self.shape)
            self._whole = prefetched_block(self._array, everything, self._values)
        if self._whole is not None:
            return np.array(self._whole[key.tuple])
        return prefetched_block(self._array, key.tuple, self._values)

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        values = self.prefetched(key)
        if values is not None:
            return values
        # xarray's method is untyped.
        return super().__getitem__(key)  # type: ignore[no-untyped-call]
