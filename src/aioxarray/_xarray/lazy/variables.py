"""The lazy data of variables: collecting it, loading it, and assigning the loaded values."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import xarray as xr

from aioxarray._runtime.threads.lent import Lent
from aioxarray._xarray.arrays.plan import Read, plan
from aioxarray._xarray.arrays.prefetched_array import PrefetchedArray
from aioxarray._xarray.arrays.read import read
from aioxarray._xarray.compat import (
    ExplicitlyIndexed,
    ImplicitToExplicitIndexingAdapter,
    MemoryCachedArray,
    as_compatible_data,
    as_indexable,
    is_chunked_array,
)
from aioxarray._xarray.lazy.destinations import Destinations, is_same_memory, put_into
from aioxarray._xarray.lazy.find import Found
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Destination
from aioxarray._zarr.stores.grants import Grants, is_long

if TYPE_CHECKING:
    import numpy as np


Allocate = Callable[[tuple[int, ...], "np.dtype[Any]"], "np.ndarray[Any, Any] | None"]
"""Returns an array of a shape and dtype to read values into; None to leave that to xarray."""


class Lazy(NamedTuple):
    """Data that is not in memory, or not where the caller wants it.

    Attributes
    ----------
    data
        The lazy data.
    label
        Its name in errors.
    nbytes
        Its size once it is loaded.
    into
        The caller's arrays for its values: one for each variable that has such an array.
    """

    data: Any
    label: str
    nbytes: int
    into: Sequence[Destination] = ()

    @property
    def chunked(self) -> bool:
        return is_chunked_array(self.data)


class Lazies(Sequence[Lazy]):
    """Lazy arrays that are loaded together, and the variables that hold them.

    They are stored in columns. Objects for each of ten thousand variables, alive during the load,
    would trigger full garbage collections, each of which stops all threads.

    Data that several variables share appears once. Each of these variables is a *holder*, either of
    the data itself or, like copies of a variable, of a separate cache around the same lazy array.
    """

    def __init__(self) -> None:
        self._data: list[Any] = []
        self._labels: list[str] = []
        self._sizes: list[int] = []
        # For each holder: the variable, its data, and the index of the lazy array.
        self._variables: list[xr.Variable] = []
        self._held: list[Any] = []
        self._indexes: list[int] = []
        # Indexes by the id of the lazy array.
        self._seen: dict[int, int] = {}
        # The caller's arrays: by index, and by the number of the holder.
        self._into: dict[int, list[Destination]] = {}
        self._placed: dict[int, np.ndarray[Any, Any]] = {}

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> Lazy: ...
    @overload
    def __getitem__(self, index: slice) -> list[Lazy]: ...
    def __getitem__(self, index: int | slice) -> Lazy | list[Lazy]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        into = self._into.get(index, ())
        return Lazy(self._data[index], self._labels[index], self._sizes[index], into)

    def holders(self) -> Iterator[tuple[int, xr.Variable, Any]]:
        """Yield, for each holder, the index of its lazy array, the variable, and its data."""
        return zip(self._indexes, self._variables, self._held, strict=True)

    def place_of(self, holder: int) -> np.ndarray[Any, Any] | None:
        """Return the caller's array for the holder with that number, if there is one."""
        return self._placed.get(holder)

    def direct(self, holder: int, into: Destination) -> None:
        """Have the values of the holder with that number put into an array of the caller."""
        self._placed[holder] = into.array
        self._into.setdefault(self._indexes[holder], []).append(into)

    def allocate(self, allocate: Allocate, lent: Lent) -> None:
        """Have ``allocate`` make the arrays for the values, where it does; in a worker thread."""
        for holder, variable in enumerate(self._variables):
            array = allocate(variable.shape, variable.dtype)
            if array is not None:
                self.direct(holder, Destination(array, lent))

    def collecting(
        self, found: Iterable[Found], destinations: Destinations | None = None
    ) -> Iterator[None]:
        """Add the variables of ``found`` that are not in memory, one per iteration.

        Also those in memory for whose values the caller has brought other arrays: ``destinations``.
        """
        for each in found:
            yield
            variable = each.variable
            if isinstance(variable, xr.IndexVariable):
                # It holds an index, which is always in memory.
                continue
            data: Any = variable._data
            into = None if destinations is None else destinations.of(variable)
            is_lazy = isinstance(
                data, ExplicitlyIndexed | ImplicitToExplicitIndexingAdapter
            ) or is_chunked_array(data)
            if not is_lazy and (into is None or is_same_memory(data, into.array)):
                continue
            source = data.array if type(data) is MemoryCachedArray else data
            index = self._seen.setdefault(id(source), len(self))
            if index == len(self):
                # Not ``variable.nbytes``, which imports a module on first use. A dask array may
                # not know its size.
                size = 0 if math.isnan(variable.size) else int(variable.size)
                self._data.append(data)
                self._labels.append(each.label)
                self._sizes.append(size * variable.dtype.itemsize)
            self._indexes.append(index)
            self._variables.append(variable)
            self._held.append(data)
            if into is not None:
                self.direct(len(self._variables) - 1, into)

    def chosen(self, indexes: Collection[int]) -> Lazies:
        """Return the lazy arrays at ``indexes`` (in ascending order), with their holders."""
        new = Lazies()
        places = {index: place for place, index in enumerate(indexes)}
        for index in places:
            new._data.append(self._data[index])
            new._labels.append(self._labels[index])
            new._sizes.append(self._sizes[index])
        for holder, (index, variable, data) in enumerate(self.holders()):
            if index in places:
                if holder in self._placed:
                    new._placed[len(new._variables)] = self._placed[holder]
                new._indexes.append(places[index])
                new._variables.append(variable)
                new._held.append(data)
        new._into = {places[index]: self._into[index] for index in places if index in self._into}
        return new

    def releasing(self) -> Iterator[None]:
        """Drop all lazy arrays, one per iteration: dropping each may free many objects."""
        for column in (self._data, self._held):
            while column:
                del column[-1]
                yield


def lazy_data(found: Iterable[Found]) -> Lazies:
    """Return the lazy arrays of the variables in ``found``."""
    lazies = Lazies()
    for _ in lazies.collecting(found):
        pass
    return lazies


def _unheard(done: int, total: int) -> None:
    """Ignore the progress of a part: only whole variables are reported."""


async def load_data(
    lazy: Lazy, grants: Grants, report: Callable[[int, int], None] = _unheard
) -> Any:
    """Return the values of ``lazy``, which is not chunked; on the I/O loop."""
    parts = plan(lazy.data)
    value = None
    if parts.source is not None:
        load_part = partial(_load_part, lazy.label, grants)
        into = lazy.into[0] if lazy.into and not parts.decodes else None
        value = await read(parts.source, grants, report, load_part, into)
    if lazy.into:
        return await put_data(lazy, value, parts.finish, grants, report)
    if lazy.nbytes <= tuning.INLINE_BYTES:
        value = parts.finish(value)
    else:
        finish = partial(parts.finish, value)
        value = await grants.decoders.run(finish, long=is_long(lazy.nbytes))
    report(1, 1)
    return value


async def put_data(
    lazy: Lazy,
    value: Any,
    finish: Callable[[Any], Any],
    grants: Grants,
    report: Callable[[int, int], None] = _unheard,
) -> Any:
    """Put ``finish(value)`` into the caller's arrays; return the first of these.

    On the I/O loop. Cancelling waits for what a thread is doing at that moment.
    """
    stop = threading.Event()
    put = partial(put_into, lazy.into, value, finish, lazy.label, stop)
    if lazy.nbytes <= tuning.INLINE_BYTES:
        first = put()
    else:
        first = await grants.decoders.run_to_end(put, stop.set, long=is_long(lazy.nbytes))
    report(1, 1)
    return first


async def _load_part(label: str, grants: Grants, array: Any) -> Any:
    return await load_data(Lazy(array, label, array.size * array.dtype.itemsize), grants)


def prefetched_data(array: Any) -> Any:
    """Return the values of a small lazy array whose chunks are already fetched; otherwise None."""
    parts = plan(array)
    source = parts.source
    if isinstance(source, Read) and type(source.array) is PrefetchedArray and source.array.is_small:
        value = source.array.prefetched(source.key)
        if value is not None:
            return parts.finish(value)
    return None


def assign(lazies: Lazies, values: Sequence[Any], *, share: bool) -> None:
    """Put ``values`` into the variables that hold ``lazies``, all at once; see `Assignment`."""
    assignment = Assignment(lazies, values, share=share)
    for _ in assignment.preparing():
        pass
    assignment.make()


class Assignment:
    """The values of lazy arrays for their variables: prepared one by one, assigned at once.

    With ``share``, the values also go into caches that other variables may share, as with xarray's
    own ``load``.
    """

    def __init__(self, lazies: Lazies, values: Sequence[Any], *, share: bool) -> None:
        self._lazies = lazies
        self._values = list(values)
        self._share = share
        # The values of each holder.
        self._own: list[Any] = []
        # The shared caches, and their new and old contents. The old ones are kept, because freeing
        # all of them during the assignment would take long.
        self._caches: list[MemoryCachedArray] = []
        self._cached: list[Any] = []
        self._before: list[Any] = []

    def preparing(self) -> Iterator[None]:
        """Prepare the values, one lazy array or holder per iteration."""
        values = self._values
        for index, lazy in enumerate(self._lazies):
            yield
            if lazy.chunked:
                values[index] = as_compatible_data(values[index])
        # Values in an array of the caller are only for the variable that was to have them: the
        # caller may use that array for other values next.
        used = bytearray(bool(lazy.into) for lazy in self._lazies)
        by_cache: dict[int, Any] = {}
        for holder, (index, _, data) in enumerate(self._lazies.holders()):
            yield
            placed = self._lazies.place_of(holder)
            if placed is not None:
                self._own.append(placed)
                continue
            own = by_cache.get(id(data))
            if own is None:
                # xarray would read the data once per cache, and once per variable without a cache.
                # Here, each of them after the first gets a copy.
                own = values[index].copy() if used[index] else values[index]
                used[index] = True
                if type(data) is MemoryCachedArray:
                    by_cache[id(data)] = own
                    if self._share:
                        self._caches.append(data)
                        self._cached.append(as_indexable(own))
                        self._before.append(data.array)
            self._own.append(own)

    def make(self) -> None:
        """Assign the values. Frees nothing; see `releasing`."""
        for cache, cached in zip(self._caches, self._cached, strict=True):
            cache.array = cached
        for (_, variable, data), own in zip(self._lazies.holders(), self._own, strict=True):
            # Data that was assigned during the load is kept.
            if variable._data is data:
                variable._data = own

    def releasing(self) -> Iterator[None]:
        """Drop the lazy data that was replaced, a little per iteration."""
        yield from self._lazies.releasing()
        for column in (self._before, self._cached, self._caches):
            while column:
                del column[-1]
                yield
