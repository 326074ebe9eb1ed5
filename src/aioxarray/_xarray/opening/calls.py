"""The steps that the functions of `aioxarray.opening` share, each of them run as one call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import xarray as xr

from aioxarray._runtime.loops import io_loop, run_on
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.opening.engine import attempt_of, engine_of, makes_indexes, own_options
from aioxarray._xarray.opening.error_notes import error_note
from aioxarray._zarr.stores.calls import awaiting, calling
from aioxarray._zarr.stores.printable import printable

R = TypeVar("R")

# The public function that the user called, named in errors about arguments.
_caller: ContextVar[str | None] = ContextVar("aioxarray_caller", default=None)


@contextlib.contextmanager
def called_by(name: str) -> Iterator[None]:
    """Make errors about arguments, raised in the body, name the public function ``name``."""
    token = _caller.set(name)
    try:
        yield
    finally:
        _caller.reset(token)


async def as_call(what: str, function: Callable[[], Awaitable[R]], how: Options) -> R:
    """Await ``function()`` on the I/O loop as one call, within the limits of ``how``.

    ``what`` is the participle for the timeout error: "not opened within the timeout".
    """
    how.check()

    async def run() -> R:
        async with calling(what, how.timeout, how.concurrency):
            return await function()

    return await run_on(io_loop(), run)


async def open_with(function: Callable[..., Any], source: Any, options: dict[str, Any]) -> Any:
    """Call one of xarray's functions with aioxarray's version of the engine it would use."""
    caller = _caller.get() or function.__name__

    def call() -> Any:
        attempt = attempt_of(source, options)
        with attempt.error_notes():
            method = _METHODS.get(function.__name__, "open_dataset")
            own = (*_parameters(function), *own_options(method))
            attempt.check_names(caller, method, own)
            indexes = bool(options.get("create_default_indexes", True))
            named: Any = attempt.engine
            engine = engine_of(named, reads_indexes=indexes, said_by=attempt.said_by)
            if makes_indexes(engine, attempt.options):
                # To add them to a tree, xarray would copy each group, even if there are none.
                options["create_default_indexes"] = False
            return function(source, engine=engine, **options)

    with awaiting(f"a worker thread to open {printable(source)}"):
        return await in_worker(call, discard=close)


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the parameters of one of xarray's functions."""
    return tuple(inspect.signature(function).parameters)


_METHODS = {"open_datatree": "open_datatree", "open_groups": "open_groups_as_dict"}


def close(opened: Any) -> None:
    """Close an xarray object, or a dict of them."""
    for each in opened.values() if isinstance(opened, dict) else [opened]:
        each.close()


async def open_virtual(source: Any, options: dict[str, Any]) -> xr.Dataset:
    """Open a netCDF4 or HDF5 file so that its chunks are read as Zarr chunks."""
    with error_note(f"while opening {printable(source)!r} with virtual=True"):
        return await in_worker(partial(_open_virtual, source, options), discard=close)


def _open_virtual(source: Any, options: dict[str, Any]) -> xr.Dataset:
    engine = options.pop("engine", None) or "h5netcdf"
    if engine not in ("h5netcdf", "netcdf4"):
        raise ValueError(f"virtual=True reads netCDF4 and HDF5 files; got engine={engine!r}")
    try:
        from aioxarray._xarray.opening.virtual import VirtualEntrypoint
    except ImportError as error:
        raise ImportError(
            f"virtual=True needs h5netcdf, h5py and obstore, one of which is missing ({error}): "
            "pip install 'aioxarray[virtual]'"
        ) from error
    return xr.open_dataset(source, engine=VirtualEntrypoint, **options)


@contextlib.asynccontextmanager
async def closing_on_error(function: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``function``, which closes something, in a worker thread if the body fails.

    The wait for it is short: a library cannot close a file while it reads, and an abandoned read
    may be waiting for a server that does not answer.
    """
    try:
        yield
    except BaseException:
        closed = asyncio.ensure_future(in_worker(function))
        await asyncio.wait([closed], timeout=_CLOSING_S)
        raise


_CLOSING_S = 1.0
