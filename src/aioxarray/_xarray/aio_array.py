"""The lazy array that carries its own asynchronous reading, in whatever xarray does with it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# Private: the base class of xarray's lazy adapters, of which this is one more. It is what
# `xarray.backends.BackendArray` is used through; the public class cannot index lazily.
from xarray.core.indexing import ExplicitlyIndexedNDArrayMixin

from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._runtime.threads import Lane
from aioxarray._xarray.lazy import Lazy
from aioxarray._xarray.loader import Options, read_all


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

    __slots__ = ("_file", "_together", "array")

    def __init__(
        self, array: Any, file: OpenFile | None = None, together: ReadTogether | None = None
    ) -> None:
        self.array = array
        self._file = file
        self._together = together

    def __reduce__(self) -> tuple[Any, ...]:
        # What is read together is a matter of opening, in this process.
        return type(self), (self.array,)

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
        return type(self)(self.array.transpose(order), self._file)

    def _oindex_get(self, indexer: Any) -> AioArray:
        return type(self)(self.array.oindex[indexer], self._file)

    def _vindex_get(self, indexer: Any) -> AioArray:
        return type(self)(self.array.vindex[indexer], self._file)

    def __getitem__(self, indexer: Any) -> AioArray:
        self._check_and_raise_if_non_basic_indexer(indexer)
        return type(self)(self.array[indexer], self._file)


class OpenFile:
    """Keeps a file of a serial library open while arrays read from it.

    xarray closes a file when the last reference to its store goes, in whatever thread that
    happens; HDF5 and netCDF-C do not bear that while another thread is in them. So the last
    reference is let go of in the library's lane.
    """

    def __init__(self, store: object, lane: Lane) -> None:
        self._store = store
        self.lane = lane

    def __del__(self) -> None:
        if sys.is_finalizing():
            # No other thread runs any more, and none could be started: waiting for one, as making
            # a new I/O loop does, would never end.
            return
        # The garbage collector may call this in the middle of anything: no locks here, so the
        # I/O loop hands it on. Near the end of the interpreter there may be no loop any more.
        with contextlib.suppress(RuntimeError):
            io_loop().call_soon_threadsafe(self.lane.drop, self._store)


async def read_arrays(arrays: Sequence[AioArray]) -> list[Any]:
    """Return the values of ``arrays``; on the I/O loop."""
    label = "a lazy array"
    lazies = [Lazy(each, [], label, each.size * each.dtype.itemsize) for each in arrays]
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
        self._members: list[AioArray] = []
        self._file: OpenFile | None = None
        self._values: dict[int, Any] = {}

    def add(self, array: Any, file: OpenFile | None) -> AioArray:
        """Return ``array`` as one that is read with the others."""
        self._file = file
        member = AioArray(array, file, self)
        self._members.append(member)
        return member

    def take(self, array: AioArray) -> Any:
        """Return the values of ``array``, reading all that were not read yet."""
        with self._lock:
            if self._members:
                values = self._read(self._members)
                ids = [id(member) for member in self._members]
                self._values = dict(zip(ids, values, strict=True))
                if self._after is not None:
                    for member in self._members:
                        self._after(member.array)
                self._members = []
            if id(array) in self._values:
                return self._values.pop(id(array))
        # Asked a second time: its values were not kept by whoever asked the first time.
        return self._read([array])[0]

    def _read(self, arrays: Sequence[AioArray]) -> list[Any]:
        if self._file is None:
            return run_blocking(lambda: read_arrays(arrays))
        # All of them in the same lane: one visit there, not one for each.
        lane = self._file.lane
        return run_blocking(
            lambda: lane.run(lambda: [each.array.get_duck_array() for each in arrays])
        )
