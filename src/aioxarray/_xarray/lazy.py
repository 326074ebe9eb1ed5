"""The lazy data of variables: which there is, how it is loaded, how it is put in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import xarray as xr

# Private: what a variable holds (``_data``) before anything is loaded, the adapter that keeps
# what was loaded for all variables that share it, and how xarray takes in computed arrays. Plain
# `Variable.load` does the same; upstream has no other way in.
from xarray.core.indexing import (
    ExplicitlyIndexed,
    ImplicitToExplicitIndexingAdapter,
    MemoryCachedArray,
    as_indexable,
)
from xarray.core.variable import as_compatible_data

from aioxarray._runtime.threads import Pool
from aioxarray._xarray.chunked import is_chunked_array
from aioxarray._xarray.find import Found
from aioxarray._xarray.known import KnownArray
from aioxarray._xarray.plan import Read, plan
from aioxarray._xarray.read import read
from aioxarray._zarr.reading import Reading, is_long

# Decoding less than this costs less than a hop to a thread and back.
_INLINE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Lazy:
    """Data that is not in memory, and the variables that hold it.

    Attributes
    ----------
    data
        What is read.
    holders
        The variables, each with its data: ``data`` itself, or a cache of its own around the
        same lazy array, as copies of a variable have it.
    """

    data: Any
    holders: list[tuple[xr.Variable, Any]]
    label: str
    nbytes: int

    @property
    def chunked(self) -> bool:
        return is_chunked_array(self.data)


def lazy_data(found: Iterable[Found]) -> list[Lazy]:
    """Return what of ``found`` is not in memory; data that variables share appears once."""
    lazies: dict[int, Lazy] = {}
    for _ in collecting(found, lazies):
        pass
    return list(lazies.values())


def collecting(found: Iterable[Found], lazies: dict[int, Lazy]) -> Iterator[None]:
    """Put what of ``found`` is not in memory into ``lazies``, one variable a step."""
    for each in found:
        yield
        variable = each.variable
        if isinstance(variable, xr.IndexVariable):
            # Holds an index: always in memory.
            continue
        data: Any = variable._data
        if not (
            isinstance(data, ExplicitlyIndexed | ImplicitToExplicitIndexingAdapter)
            or is_chunked_array(data)
        ):
            continue
        source = data.array if type(data) is MemoryCachedArray else data
        # Not ``variable.nbytes``, which imports a module when it is first asked. Nor does a dask
        # array always know its size.
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
    """Report nothing: a part of a variable is no variable."""


def known_data(array: Any) -> Any:
    """Return the values of a small lazy array, decoded here; None if its chunks are not known."""
    parts = plan(array)
    source = parts.source
    if isinstance(source, Read) and type(source.array) is KnownArray and source.array.is_small:
        known = source.array.known(source.key)
        if known is not None:
            return parts.finish(known)
    return None


def assign(lazies: Sequence[Lazy], values: Sequence[Any], *, share: bool) -> None:
    """Put ``values`` into the variables of ``lazies``, all at once.

    With ``share``, other variables that hold the same lazy data get it too, as with xarray's
    own ``load``.
    """
    assignment = Assignment()
    for _ in assignment.preparing(lazies, values, share=share):
        pass
    assignment.make()


class Assignment:
    """Values for variables: prepared one by one, put in place all at once."""

    def __init__(self) -> None:
        self._values: list[tuple[xr.Variable, Any, Any]] = []
        self._caches: list[tuple[MemoryCachedArray, Any]] = []

    def preparing(
        self, lazies: Sequence[Lazy], values: Sequence[Any], *, share: bool
    ) -> Iterator[None]:
        """Prepare the values of ``lazies``, one a step; see `assign`."""
        for lazy, value in zip(lazies, values, strict=True):
            yield
            unused = [as_compatible_data(value) if lazy.chunked else value]
            value = unused[0]
            by_cache: dict[int, Any] = {}
            for variable, data in lazy.holders:
                own = by_cache.get(id(data))
                if own is None:
                    # xarray would have read the data once for each cache, and for each variable
                    # that has none; here each gets a copy.
                    own = unused.pop() if unused else value.copy()
                    if type(data) is MemoryCachedArray:
                        by_cache[id(data)] = own
                        if share:
                            self._caches.append((data, as_indexable(own)))
                self._values.append((variable, data, own))

    def make(self) -> None:
        """Put the values in place."""
        for cache, own in self._caches:
            cache.array = own
        for variable, data, own in self._values:
            # Whoever assigned other data while this was loaded meant it.
            if variable._data is data:
                variable._data = own
