"""The lazy data of variables: collecting it, loading it, and assigning the loaded values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import xarray as xr

from aioxarray._runtime.threads.pool import Pool
from aioxarray._xarray.arrays.known_array import KnownArray
from aioxarray._xarray.arrays.plan import Read, plan
from aioxarray._xarray.arrays.read import read
from aioxarray._xarray.compat import (
    ExplicitlyIndexed,
    ImplicitToExplicitIndexingAdapter,
    MemoryCachedArray,
    as_compatible_data,
    as_indexable,
)
from aioxarray._xarray.dask.chunked import is_chunked_array
from aioxarray._xarray.lazy.find import Found
from aioxarray._zarr.stores.grants import Reading, is_long

# Decoding less than this costs less than a hop to a thread and back.
_INLINE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Lazy:
    """Data that is not in memory, and the variables that refer to it.

    Attributes
    ----------
    data
        The lazy array.
    holders
        The variables, each with its ``_data``: ``data`` itself or, in copies of a variable, another
        cache around the same lazy array.
    """

    data: Any
    holders: list[tuple[xr.Variable, Any]]
    label: str
    nbytes: int

    @property
    def chunked(self) -> bool:
        return is_chunked_array(self.data)


def lazy_data(found: Iterable[Found]) -> list[Lazy]:
    """Return the data of ``found`` that is not in memory; shared data appears once."""
    lazies: dict[int, Lazy] = {}
    for _ in collecting(found, lazies):
        pass
    return list(lazies.values())


def collecting(found: Iterable[Found], lazies: dict[int, Lazy]) -> Iterator[None]:
    """Add the data of ``found`` that is not in memory to ``lazies``, one variable per iteration."""
    for each in found:
        yield
        variable = each.variable
        if isinstance(variable, xr.IndexVariable):
            # It holds an index, which is always in memory.
            continue
        data: Any = variable._data
        if not (
            isinstance(data, ExplicitlyIndexed | ImplicitToExplicitIndexingAdapter)
            or is_chunked_array(data)
        ):
            continue
        source = data.array if type(data) is MemoryCachedArray else data
        # Not ``variable.nbytes``, whose first use imports a module. The size of a dask array may be
        # unknown (NaN).
        size = 0 if math.isnan(variable.size) else int(variable.size)
        nbytes = size * variable.dtype.itemsize
        lazy = lazies.setdefault(id(source), Lazy(data, [], each.label, nbytes))
        lazy.holders.append((variable, data))


async def load_data(
    lazy: Lazy, reading: Reading, decoders: Pool, report: Callable[[int, int], None]
) -> Any:
    """Return the values of ``lazy``, which is not chunked; on the I/O loop."""
    parts = plan(lazy.data)
    value = None
    if parts.source is not None:
        value = await read(
            parts.source, reading, report, partial(_load_part, lazy.label, reading, decoders)
        )
    if lazy.nbytes <= _INLINE_BYTES:
        value = parts.finish(value)
    else:
        value = await decoders.run(partial(parts.finish, value), long=is_long(lazy.nbytes))
    report(1, 1)
    return value


async def _load_part(label: str, reading: Reading, decoders: Pool, array: Any) -> Any:
    part = Lazy(array, [], label, array.size * array.dtype.itemsize)
    return await load_data(part, reading, decoders, _unheard)


def _unheard(done: int, total: int) -> None:
    """Ignore the progress of a part: only whole variables are reported."""


def known_data(array: Any) -> Any:
    """Return the values of a small lazy array whose chunks are already fetched; otherwise None."""
    parts = plan(array)
    source = parts.source
    if isinstance(source, Read) and type(source.array) is KnownArray and source.array.is_small:
        known = source.array.known(source.key)
        if known is not None:
            return parts.finish(known)
    return None


def assign(lazies: Sequence[Lazy], values: Sequence[Any], *, share: bool) -> None:
    """Assign ``values`` to the variables of ``lazies``, all at once.

    With ``share``, other variables with the same lazy data get the values, too, as in xarray's own
    ``load``.
    """
    assignment = Assignment()
    for _ in assignment.preparing(lazies, values, share=share):
        pass
    assignment.make()


class Assignment:
    """An assignment of values to variables: prepared step by step, made all at once."""

    def __init__(self) -> None:
        self._values: list[tuple[xr.Variable, Any, Any]] = []
        self._caches: list[tuple[MemoryCachedArray, Any]] = []

    def preparing(
        self, lazies: Sequence[Lazy], values: Sequence[Any], *, share: bool
    ) -> Iterator[None]:
        """Prepare the values of ``lazies``, one per iteration; see `assign`."""
        for lazy, value in zip(lazies, values, strict=True):
            yield
            unused = [as_compatible_data(value) if lazy.chunked else value]
            value = unused[0]
            by_cache: dict[int, Any] = {}
            for variable, data in lazy.holders:
                own = by_cache.get(id(data))
                if own is None:
                    # xarray would read the data once for each cache, and for each variable without
                    # one. Here each of them gets a copy.
                    own = unused.pop() if unused else value.copy()
                    if type(data) is MemoryCachedArray:
                        by_cache[id(data)] = own
                        if share:
                            self._caches.append((data, as_indexable(own)))
                self._values.append((variable, data, own))

    def make(self) -> None:
        """Assign the values."""
        for cache, own in self._caches:
            cache.array = own
        for variable, data, own in self._values:
            # Do not replace data that was assigned during the load.
            if variable._data is data:
                variable._data = own
