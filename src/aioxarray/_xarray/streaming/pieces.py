"""The pieces of a stream: what each holds, and how it is opened and loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import xarray as xr

from aioxarray._runtime.tasks import after_return, in_steps
from aioxarray._runtime.threads.lent import Lent
from aioxarray._runtime.window import Part
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.arrays.plan import Read, plan
from aioxarray._xarray.arrays.read import Means, each_plan, is_zarr, means_of
from aioxarray._xarray.arrays.sources import is_read_by_chunks, sources
from aioxarray._xarray.lazy.find import find_variables, shallow_copy
from aioxarray._xarray.lazy.loader import Options, read_with
from aioxarray._xarray.lazy.sizes import Sizing
from aioxarray._xarray.lazy.variables import Allocate, Assignment, Lazies, Lazy, lazy_data
from aioxarray._xarray.streaming.source import Number
from aioxarray._zarr.chunks.plan import ReadPlan
from aioxarray._zarr.stores.calls import calling
from aioxarray._zarr.stores.grants import Grants

# Objects of Python for a piece and for each of its variables, besides their values.
_PIECE_BYTES = 16 << 10
_VARIABLE_BYTES = 4 << 10
_OPTIONS = Options()


class Piece:
    """A new object with the data of one of the stream's objects, lazy until it is loaded.

    Parameters
    ----------
    obj
        The object, which stays as lazy as it is.
    opened
        The object that was opened for the stream, which is closed once its data is loaded; None if
        it belongs to the user.
    allocates
        Whether the values will go into arrays that are made for them, by a copy if need be.

    Attributes
    ----------
    obj
        The new object.
    nbytes
        The bytes of its values in memory.
    beside
        The most bytes that loading it holds besides these.
    parts
        The parts of Zarr stores that it needs.
    present
        The bytes of the values that are in memory before it is loaded.
    """

    def __init__(self, obj: Any, opened: Any = None, *, allocates: bool = False) -> None:
        find_variables(obj)
        self.obj = shallow_copy(obj)
        self._opened = opened
        found = find_variables(self.obj)
        self._lazies: Lazies | None = lazy_data(found)
        sizing = Sizing(self._lazies)
        for _ in sizing.counting():
            pass
        lazy = {id(variable) for _, variable, _ in self._lazies.holders()}
        in_memory = [each.variable for each in found if id(each.variable) not in lazy]
        self.present = sum(map(_bytes_of, in_memory))
        self.nbytes = (
            _PIECE_BYTES + _VARIABLE_BYTES * len(found) + sum(sizing.known.values()) + self.present
        )
        self.beside = sum(_beside(each, allocates=allocates) for each in self._lazies)
        self.parts = list(_parts_of(self._lazies))

    async def load(self, grants: Grants, allocate: Allocate | None = None) -> None:
        """Load the data, into arrays that ``allocate`` makes; on the I/O loop."""
        lazies, self._lazies = self._lazies, None
        assert lazies is not None
        if not lazies:
            return
        lent = Lent()
        if allocate is not None:
            # It may take milliseconds.
            await in_worker(partial(lazies.allocate, allocate, lent))
        try:
            async with calling("loaded") as call:
                values = await read_with(lazies, grants, _OPTIONS, call)
        finally:
            await lent.end()
        assignment = Assignment(lazies, values, share=False)
        await in_steps(assignment.preparing())
        assignment.make()
        after_return(assignment.releasing())

    @property
    def is_open(self) -> bool:
        """Whether there is an object to close."""
        return self._opened is not None

    def close(self) -> None:
        """Close the object that was opened for the stream, if any; in a worker thread."""
        opened, self._opened = self._opened, None
        for each in _leaves(opened):
            each.close()


def _parts_of(lazies: Lazies) -> Iterator[Part]:
    """Yield the parts of Zarr stores that loading ``lazies`` needs; makes no request."""
    for lazy in lazies:
        if lazy.chunked:
            continue
        for source, _ in sources(lazy.data):
            if is_read_by_chunks(source):
                plans: list[ReadPlan] = []
                each_plan(source, plans.append, shares=True)
                for each in plans:
                    yield from each.parts()


def opened_piece(function: Callable[[], Any], *, allocates: bool = False) -> Piece:
    """Return the piece with the object that ``function`` opens; in a worker thread.

    Raises
    ------
    TypeError
        If ``function`` returns something else than objects of xarray.
    """
    opened = call_of_user(function)
    if inspect.iscoroutine(opened):
        opened.close()
        raise TypeError(
            f"{function!r} returned a coroutine: pass a function that opens by itself, such as "
            "aioxarray.open_dataset instead of open_dataset_async"
        )
    try:
        return Piece(opened, opened, allocates=allocates)
    except BaseException:
        for each in _leaves(opened):
            each.close()
        raise


class RaisedByUser(Exception):
    """The carrier of an error that no coroutine can raise: SystemExit would end the I/O loop."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def call_of_user(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``, a call of the user's code; in a worker thread.

    Raises
    ------
    RaisedByUser
        For an error of the function that no coroutine can raise.
    """
    try:
        return function(*args)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise RaisedByUser(error) from error


def noted(error: BaseException, number: Number) -> BaseException:
    """Return the user's ``error`` with a note that names the piece that it belongs to."""
    if isinstance(error, RaisedByUser):
        error = error.error
    if isinstance(error, StopIteration | StopAsyncIteration):
        # It would end the consumer's loop in silence.
        stopped = RuntimeError(f"the code of {number} raised {type(error).__name__}")
        stopped.__cause__ = error
        error = stopped
    error.add_note(f"in {number} of the stream")
    return error


def size_of(result: Any) -> int | None:
    """Return the bytes of the values in ``result``; None if it is nothing that has a size."""
    try:
        return _PIECE_BYTES + sum(_bytes_of(each.variable) for each in find_variables(result))
    except TypeError:
        nbytes = getattr(result, "nbytes", None)
        return nbytes if isinstance(nbytes, int) else None


def _beside(lazy: Lazy, *, allocates: bool) -> int:
    """Return the most bytes that loading an array holds besides its values.

    ``allocates`` tells whether the values are in arrays that were made for them.
    """
    if lazy.chunked:
        return lazy.nbytes if allocates else 0
    parts = plan(lazy.data)
    source = parts.source
    if isinstance(source, Read) and means_of(source) is Means.JOINED:
        # The parts are read, and decoded or put in order, and then copied into the values.
        return 2 * lazy.nbytes
    is_straight = isinstance(source, Read) and is_zarr(source.array)
    return lazy.nbytes if parts.decodes or (allocates and not is_straight) else 0


def _bytes_of(variable: xr.Variable) -> int:
    size = variable.size
    return 0 if math.isnan(size) else int(size) * variable.dtype.itemsize


def _leaves(obj: Any) -> Iterator[Any]:
    if isinstance(obj, xr.Dataset | xr.DataArray | xr.DataTree):
        yield obj
    elif isinstance(obj, list | tuple | dict):
        for each in obj.values() if isinstance(obj, dict) else obj:
            yield from _leaves(each)
