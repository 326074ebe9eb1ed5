"""The lazy array that carries its own asynchronous reading, in whatever xarray does with it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# Private: the base class of xarray's lazy adapters, of which this is one more. It is what
# `xarray.backends.BackendArray` is used through; the public class cannot index lazily.
from xarray.backends.common import BackendArray
from xarray.core.indexing import ExplicitlyIndexed, ExplicitlyIndexedNDArrayMixin

from aioxarray._runtime.lanes import Lane
from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._xarray.lazy import Lazy, known_data
from aioxarray._xarray.loader import Options, read_all
from aioxarray._xarray.read import in_hdf5, lane_of_hdf5, reads_hdf5


class AioArray(ExplicitlyIndexedNDArrayMixin):
    """A chain of xarray's lazy adapters whose data is read by aioxarray.

    It stands on top of the chain, so that fetching as well as decoding happen off the caller's
    loop and under the process's limits, also when xarray's own ``load`` or ``load_async`` asks.

    Parameters
    ----------
    array
        The chain.
    file
        What keeps the file open that the data is in, if it needs keeping.
    together
        Arrays that are read with this one, when xarray asks for the values of one of them.
    """

    # Python clears them in the order of their names, so the file is let go of after its readers.
    __slots__ = ("_together", "array", "file")

    def __init__(
        self, array: Any, file: OpenFile | None = None, together: ReadTogether | None = None
    ) -> None:
        self.array = array
        self.file = file
        self._together = together

    def __reduce__(self) -> tuple[Any, ...]:
        # What is read together is a matter of opening, in this process. A copy whose parts are
        # copied, too, reads a file that is opened anew, in another process maybe.
        return _rebuilt, (self.array, self.file is not None)

    def __copy__(self) -> AioArray:
        return type(self)(self.array, self.file)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.array!r})"

    @property
    def aioxarray_chain(self) -> Any:
        """The chain, for those who read it: see `aioxarray._xarray.plan.plan`."""
        return self.array

    def get_duck_array(self) -> Any:
        """Read it, blocking."""
        if self._together is not None:
            return self._together.take(self)
        return run_blocking(lambda: read_arrays([self]))[0]

    async def async_get_duck_array(self) -> Any:
        """Read it on the I/O loop."""
        return (await run_on(io_loop(), lambda: read_arrays([self])))[0]

    def transpose(self, order: Any) -> AioArray:
        """Return it with other axes, as lazily."""
        return type(self)(self.array.transpose(order), self.file)

    def _oindex_get(self, indexer: Any) -> AioArray:
        return type(self)(self.array.oindex[indexer], self.file)

    def _vindex_get(self, indexer: Any) -> AioArray:
        return type(self)(self.array.vindex[indexer], self.file)

    def __getitem__(self, indexer: Any) -> AioArray:
        self._check_and_raise_if_non_basic_indexer(indexer)
        return type(self)(self.array[indexer], self.file)


class OpenFile:
    """Keeps a file of HDF5 or netCDF-C open while arrays read from it.

    xarray closes a file when the last reference to its store goes, in whatever thread that
    happens, as the garbage collector may have it. In the user's thread that is left so, at once:
    who opens the same file again may rely on it. Elsewhere, or while a thread is in the library,
    closing waits for its turn there.

    Python discards what a signal's handler raises in a finalizer: this one only adds some lines to
    that of xarray's file manager, which closes the file.
    """

    __slots__ = ("_key", "_lane")

    def __init__(self, store: Any, lane: Lane) -> None:
        self._lane = lane
        self._key = lane.keep(store)

    def __del__(self) -> None:
        # Near the end of the interpreter other threads hold their locks for ever.
        if not sys.is_finalizing():
            self._lane.drop(self._key)


def keep_open(array: Any) -> OpenFile | None:
    """Return what keeps the file open that a chain of adapters reads by HDF5, if it does."""
    while isinstance(array, ExplicitlyIndexed) and not isinstance(array, BackendArray):
        array = getattr(array, "array", None)
    return OpenFile(array.datastore, lane_of_hdf5()) if reads_hdf5(array) else None


def _rebuilt(array: Any, has_file: bool) -> AioArray:
    return AioArray(array, keep_open(array) if has_file else None)


async def read_arrays(arrays: Sequence[AioArray]) -> list[Any]:
    """Return the values of ``arrays``; on the I/O loop."""
    label = "a lazy array"
    lazies = [Lazy(each, label, each.size * each.dtype.itemsize) for each in arrays]
    return await read_all(lazies, Options())


class ReadTogether:
    """Index coordinates of a dataset or tree, read side by side when xarray wants the first.

    xarray makes its indexes one after the other, each with a read of its own
    (pydata/xarray#10579).

    Parameters
    ----------
    after
        Called with each array's chain when it was read for the first time.
    """

    def __init__(self, after: Callable[[Any], None] | None = None) -> None:
        self._after = after
        self._lock = threading.Lock()
        # Not the arrays, which hold this: a dataset that is dropped closes its file then and there,
        # without a garbage collector.
        self._chains: list[Any] = []
        self._file: OpenFile | None = None
        self._values: dict[int, Any] = {}

    def add(self, array: Any, file: OpenFile | None) -> AioArray:
        """Return ``array`` as one that is read with the others."""
        self._file = file
        self._chains.append(array)
        return AioArray(array, file, self)

    def take(self, array: AioArray) -> Any:
        """Return the values of ``array``, reading all that were not read yet."""
        chain = array.array
        with self._lock:
            if self._chains:
                values = self._read(self._chains)
                ids = [id(each) for each in self._chains]
                self._values = dict(zip(ids, values, strict=True))
                if self._after is not None:
                    for each in self._chains:
                        self._after(each)
                self._chains = []
            if id(chain) in self._values:
                return self._values.pop(id(chain))
        # Asked a second time: its values were not kept by whoever asked the first time.
        return self._read([chain])[0]

    def _read(self, chains: Sequence[Any]) -> list[Any]:
        if self._file is not None:
            # All of them in the same lane: one visit there, not one for each.
            return run_blocking(lambda: in_hdf5(lambda: [each.get_duck_array() for each in chains]))
        values = [known_data(each) for each in chains]
        unknown = [index for index, value in enumerate(values) if value is None]
        if unknown:
            arrays = [AioArray(chains[index]) for index in unknown]
            read = run_blocking(lambda: read_arrays(arrays))
            for index, value in zip(unknown, read, strict=True):
                values[index] = value
        return values
