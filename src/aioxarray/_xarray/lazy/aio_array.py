"""A lazy array for xarray that is read asynchronously, even by xarray's own methods."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from aioxarray._runtime.lanes import Lane
from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._xarray.arrays.plan import base_of, lazy_inside
from aioxarray._xarray.arrays.read import in_hdf5, lane_of_hdf5, reads_hdf5
from aioxarray._xarray.compat import CopyOnWriteArray, ExplicitlyIndexedNDArrayMixin
from aioxarray._xarray.dask.carried import Carried, carried_from_here
from aioxarray._xarray.dask.carrying import carry_with
from aioxarray._xarray.lazy.loader import Options, read_all
from aioxarray._xarray.lazy.variables import Lazy, prefetched_data


class AioArray(ExplicitlyIndexedNDArrayMixin):
    """A wrapper around a chain of xarray's lazy adapters that aioxarray reads.

    It is the outermost adapter, so that fetching and decoding both happen off the caller's event
    loop and within the process-wide limits, even in xarray's own ``load`` or ``load_async``.

    Parameters
    ----------
    array
        The chain.
    file
        Keeps the file of the data open, for HDF5 and netCDF-C; None for other backends.
    together
        Arrays that are read with this one as soon as xarray needs the values of one of them.
    label
        Names it in notes of errors; by default "a lazy array".
    settings
        Those of the process that a worker of a cluster reads it for; None in that process itself.
    """

    # Python clears slots in alphabetical order, so the file is released after its readers.
    __slots__ = ("_together", "array", "file", "label", "settings")

    def __init__(
        self,
        array: Any,
        file: OpenFile | None = None,
        together: ReadTogether | None = None,
        label: str = "a lazy array",
        settings: Carried | None = None,
    ) -> None:
        self.settings = settings
        self.array = array
        self.file = file
        self.label = label
        self._together = together

    def __reduce__(self) -> tuple[Any, ...]:
        # Without ``together``, which only matters while opening. A deep or unpickled copy opens the
        # file again, perhaps in another process, and so needs its own `OpenFile`.
        settings = self.settings or carried_from_here()
        return _rebuilt, (self.array, self.file is not None, self.label, settings)

    def __copy__(self) -> AioArray:
        return self._of(self.array)

    def _of(self, array: Any) -> AioArray:
        return type(self)(array, self.file, label=self.label, settings=self.settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.array!r})"

    @property
    def aioxarray_chain(self) -> Any:
        """The chain, used by `aioxarray._xarray.arrays.plan.plan`."""
        return self.array

    def get_duck_array(self) -> Any:
        """Return the values, blocking this thread."""
        if self._together is not None:
            return self._together.take(self)
        return run_blocking(lambda: read_arrays([self]))[0]

    async def async_get_duck_array(self) -> Any:
        """Return the values, reading them on the I/O loop."""
        return (await run_on(io_loop(), lambda: read_arrays([self])))[0]

    def transpose(self, order: Any) -> AioArray:
        """Return the array with its axes permuted, still lazy."""
        return self._of(self.array.transpose(order))

    def _oindex_get(self, indexer: Any) -> AioArray:
        return self._of(self.array.oindex[indexer])

    def _vindex_get(self, indexer: Any) -> AioArray:
        return self._of(self.array.vindex[indexer])

    def __getitem__(self, indexer: Any) -> AioArray:
        self._check_and_raise_if_non_basic_indexer(indexer)
        return self._of(self.array[indexer])


class OpenFile:
    """Keeps a file of HDF5 or netCDF-C open while arrays read from it.

    xarray closes a file with the last reference to its store, in whichever thread drops it; with
    the garbage collector, that can be any thread. In the user's thread it still happens at once,
    since code that opens the file again may rely on it. In other threads, or while a thread is in
    the library, closing waits for its turn in the lane.

    Python discards an exception that a signal handler raises in a finalizer, so this one does
    little more than that of xarray's file manager, which closes the file.
    """

    __slots__ = ("_key", "_lane")

    def __init__(self, store: Any, lane: Lane) -> None:
        self._lane = lane
        self._key = lane.keep(store)

    def __del__(self) -> None:
        # While the interpreter finalizes, other threads hold their locks forever.
        if not sys.is_finalizing():
            self._lane.drop(self._key)


def keep_open(array: Any) -> OpenFile | None:
    """Return an `OpenFile` if HDF5 or netCDF-C reads the chain of adapters; otherwise None."""
    base: Any = base_of(array)
    return OpenFile(base.datastore, lane_of_hdf5()) if reads_hdf5(base) else None


def _rebuilt(array: Any, has_file: bool, label: str, settings: Carried | None = None) -> AioArray:
    return AioArray(array, keep_open(array) if has_file else None, label=label, settings=settings)


def _carrying(adapter: Any, settings: Carried) -> Any:
    """Return the lazy data of a dask array, with ``settings`` for the workers that read it."""
    lazy = lazy_inside(adapter)
    if isinstance(lazy, AioArray):
        lazy = AioArray(lazy.array, lazy.file, label=lazy.label, settings=settings)
    else:
        lazy = AioArray(lazy, keep_open(lazy), settings=settings)
    new = copy.copy(adapter)
    protected: Any = lazy
    new.array = CopyOnWriteArray(protected)
    return new


carry_with(_carrying)


async def read_arrays(arrays: Sequence[AioArray]) -> list[Any]:
    """Return the values of ``arrays``; on the I/O loop."""
    lazies = [Lazy(each, each.label, each.size * each.dtype.itemsize) for each in arrays]
    return await read_all(lazies, Options())


class ReadTogether:
    """Index coordinates of a dataset or tree, all read together when xarray needs the first.

    xarray itself makes indexes sequentially, each with its own read (pydata/xarray#10579).

    Parameters
    ----------
    after
        Called with the chain of each array after all have been read.
    """

    def __init__(self, after: Callable[[Any], None] | None = None) -> None:
        self._after = after
        self._lock = threading.Lock()
        # The chains, not the arrays, which refer to this object: without reference cycles, a
        # dataset closes its file as soon as it is dropped.
        self._chains: list[Any] = []
        self._labels: list[str] = []
        self._file: OpenFile | None = None
        self._values: dict[int, Any] = {}

    def add(self, array: Any, file: OpenFile | None, label: str) -> AioArray:
        """Wrap ``array`` in an `AioArray` that is read together with the others."""
        self._file = file
        self._chains.append(array)
        self._labels.append(label)
        return AioArray(array, file, self, label)

    def take(self, array: AioArray) -> Any:
        """Return the values of ``array``; the first call reads all arrays."""
        chain = array.array
        with self._lock:
            if self._chains:
                values = self._read(self._chains, self._labels)
                ids = [id(each) for each in self._chains]
                self._values = dict(zip(ids, values, strict=True))
                if self._after is not None:
                    for each in self._chains:
                        self._after(each)
                self._chains = []
            if id(chain) in self._values:
                return self._values.pop(id(chain))
        # The values were handed out before, but the receiver did not keep them.
        return self._read([chain], [array.label])[0]

    def _read(self, chains: Sequence[Any], labels: Sequence[str]) -> list[Any]:
        if self._file is not None:
            # All arrays are in the same lane: read them in one call there.
            return run_blocking(lambda: in_hdf5(lambda: [each.get_duck_array() for each in chains]))
        values = [prefetched_data(each) for each in chains]
        unknown = [index for index, value in enumerate(values) if value is None]
        if unknown:
            arrays = [AioArray(chains[index], label=labels[index]) for index in unknown]
            read = run_blocking(lambda: read_arrays(arrays))
            for index, value in zip(unknown, read, strict=True):
                values[index] = value
        return values
