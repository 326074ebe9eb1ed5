"""The limit on the bytes that one load may bring into memory."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from aioxarray._xarray.compat import MemoryCachedArray
from aioxarray._xarray.lazy.variables import Lazies
from aioxarray.errors import TooLargeError

# How many of the largest variables an error names.
_NAMED = 3
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


class Sizing:
    """The bytes that `Lazies` take once they are loaded, in decoded form.

    Attributes
    ----------
    known
        Bytes by the index of the lazy array. Variables that share one, each without a cache of its
        own, get a copy each.
    unknown
        The indexes of arrays whose size only their values tell: objects, strings of any length,
        and dask arrays of unknown shape.
    """

    def __init__(self, lazies: Lazies) -> None:
        self._lazies = lazies
        self.known: dict[int, int] = {}
        self.unknown: list[int] = []

    def counting(self) -> Iterator[None]:
        """Count the bytes, one lazy array or holder per iteration."""
        sizes: list[int | None] = []
        for lazy in self._lazies:
            yield
            if isinstance(lazy.data, np.ndarray):
                # In memory already, and only copied into an array of the caller.
                sizes.append(0)
            else:
                sizes.append(None if is_unknown(lazy.data) else lazy.nbytes)
        caches: set[int] = set()
        for index, _, data in self._lazies.holders():
            yield
            if type(data) is MemoryCachedArray:
                if id(data) in caches:
                    continue
                caches.add(id(data))
            size = sizes[index]
            if size is not None:
                self.known[index] = self.known.get(index, 0) + size
        self.unknown = [index for index, size in enumerate(sizes) if size is None]

    def check(self, limit: int, given: str) -> None:
        """Raise `TooLargeError` if the arrays take more than ``limit`` bytes, ``given`` as text."""
        total = sum(self.known.values())
        if total <= limit:
            return
        largest = heapq.nlargest(_NAMED, self.known, key=self.known.__getitem__)
        named = [f"{self._lazies[each].label} ({size_text(self.known[each])})" for each in largest]
        others = len(self.known) + len(self.unknown) - len(largest)
        more = f" and {others} more" if others else ""
        unknown = f"; not counted: {len(self.unknown)} of unknown size" if len(self.unknown) else ""
        raise TooLargeError(
            f"the data to load has {total} bytes ({size_text(total)}), more than "
            f"max_bytes={given}: {', '.join(named)}{more}{unknown}. No data was requested: "
            "select less, or load in parts"
        )


def is_unknown(data: Any) -> bool:
    """Return whether only the values of ``data`` tell how many bytes it takes."""
    dtype = data.dtype
    if isinstance(dtype, np.dtype) and (dtype.hasobject or dtype.kind == "T"):
        return True
    return any(math.isnan(length) for length in data.shape)


def size_text(count: int) -> str:
    """Return a number of bytes as a text in binary units, such as "1.5 GiB"."""
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.4g} {_UNITS[power - 1]}"
