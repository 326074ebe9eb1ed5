"""Opening of datasets, trees and groups: xarray's functions with concurrent requests."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

import xarray as xr

from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.opening.engine import attempt_of, engine_of
from aioxarray._xarray.opening.explained import noting
from aioxarray._zarr.stores.calls import awaiting, calling
from aioxarray._zarr.stores.printable import printable
from aioxarray.loading import load_async
from aioxarray.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", xr.Dataset, xr.DataArray, xr.DataTree)

_COMMON = """

    The arguments, errors and result are those of `xarray.{name}`.
    {ours}

    Notes
    -----
    *Requests:* the metadata of all variables and groups; then, together, the first and last
    chunk of each time coordinate, which decoding needs, and the coordinates that become indexes
    (none with ``create_default_indexes=False``; those of more than 64 chunks one round trip
    later). All count towards the setting ``concurrency``. Consolidated metadata takes one round
    trip, other metadata two for each level of groups.

    *Order:* variables and groups are in the order that xarray gives, whichever answer comes first.

    *Memory:* {memory}

    *Cancelling:* on an error, a timeout or a cancellation the requests in flight are cancelled
    and awaited, including zarr's own, and nothing stays open. A read by HDF5 or netCDF-C in a
    worker thread is awaited and the file closed; a file of another format that is read in a
    worker thread (GRIB) is closed as soon as the read ends.

    *Event loops:* asyncio or Trio; opening happens in a worker thread.
"""

_TIMEOUT = """\
``timeout`` (not in xarray, keyword only) is the number of seconds after which the call raises
    TimeoutError, including the wait for its turn. The error says what the call was waiting for."""
_OF_LOAD = """\
``concurrency``, ``timeout`` and ``progress`` (not in xarray, keyword only) are those of
    `load_async`; the first two apply to opening and loading together."""
_LAZY = """\
the metadata and the index coordinates. Data stays lazy and reads itself asynchronously:
    xarray's own ``load`` and ``load_async`` on it go through aioxarray."""
_IN_MEMORY = """\
all data, plus what `load_async` holds while it loads."""


def _as(
    function: Callable[P, R],
) -> Callable[
    [Callable[..., Coroutine[Any, Any, R]]],
    Callable[P, Coroutine[Any, Any, R]],
]:
    """Give a coroutine function the signature of xarray's function and the common notes."""

    def decorate(
        coroutine: Callable[..., Coroutine[Any, Any, R]],
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        coroutine.__signature__ = _with_ours(function, coroutine)  # type: ignore[attr-defined]
        loads = function.__name__.startswith("load_")
        coroutine.__doc__ = f"{coroutine.__doc__}" + _COMMON.format(
            name=function.__name__,
            ours=_OF_LOAD if loads else _TIMEOUT,
            memory=_IN_MEMORY if loads else _LAZY,
        )
        return cast("Callable[P, Coroutine[Any, Any, R]]", coroutine)

    return decorate


def _with_ours(theirs: Callable[..., Any], ours: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of xarray's function with our keyword arguments added."""
    signature = inspect.signature(theirs)
    listed = list(signature.parameters.values())
    added = [
        parameter
        for name, parameter in inspect.signature(ours).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in signature.parameters
    ]
    rest = [each for each in listed if each.kind is each.VAR_KEYWORD]
    return signature.replace(parameters=[*listed[: len(listed) - len(rest)], *added, *rest])


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


async def _open(
    function: Callable[..., Any], source: Any, options: dict[str, Any], timeout: float | None
) -> Any:
    """Open ``source`` with one of xarray's functions, as one call."""
    how = Options(timeout=timeout)
    return await as_call("opened", lambda: _opened(function, source, options), how)


async def _opened(function: Callable[..., Any], source: Any, options: dict[str, Any]) -> Any:
    """Call one of xarray's functions with aioxarray's version of the engine it would use."""
    caller = _caller.get() or function.__name__

    def call() -> Any:
        attempt = attempt_of(source, options)
        with attempt.explained():
            attempt.check_names(caller, function)
            indexes = bool(options.get("create_default_indexes", True))
            named: Any = attempt.engine
            engine = engine_of(named, reads_indexes=indexes, said_by=attempt.said_by)
            return function(source, engine=engine, **options)

    with awaiting(f"a worker thread to open {printable(source)}"):
        return await in_worker(call, discard=close)


def close(opened: Any) -> None:
    """Close an xarray object, or a dict of them."""
    for each in opened.values() if isinstance(opened, dict) else [opened]:
        each.close()


@_as(xr.open_dataset)
async def open_dataset_async(
    filename_or_obj: Any,
    *,
    virtual: bool = False,
    timeout: float | None = None,
    **options: Any,
) -> xr.Dataset:
    """Open a dataset from a file or store.

    With ``virtual=True`` (not in xarray, keyword only) a netCDF4 or HDF5 file at a path or URL is
    read as Zarr: HDF5 reads the metadata and the chunk index once, and then chunks are read
    concurrently. The result is that of the h5netcdf engine; ``storage_options`` are then
    obstore's. HDF5 still reads the variables that Zarr cannot: strings, compound types, and
    values encoded by filters other than zlib, shuffle, fletcher32, zstd and blosc.
    """

    async def opened() -> xr.Dataset:
        if virtual:
            call = partial(_open_virtual, filename_or_obj, options)
            with noting(f"while opening {printable(filename_or_obj)!r} with virtual=True"):
                return await in_worker(call, discard=close)
        return cast("xr.Dataset", await _opened(xr.open_dataset, filename_or_obj, options))

    return await as_call("opened", opened, Options(timeout=timeout))


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


@_as(xr.open_dataarray)
async def open_dataarray_async(
    filename_or_obj: Any, *, timeout: float | None = None, **options: Any
) -> xr.DataArray:
    """Open a DataArray from a file or store that holds a single variable."""
    return cast("xr.DataArray", await _open(xr.open_dataarray, filename_or_obj, options, timeout))


@_as(xr.open_datatree)
async def open_datatree_async(
    filename_or_obj: Any, *, timeout: float | None = None, **options: Any
) -> xr.DataTree:
    """Open a tree of groups from a file or store."""
    return cast("xr.DataTree", await _open(xr.open_datatree, filename_or_obj, options, timeout))


@_as(xr.open_groups)
async def open_groups_async(
    filename_or_obj: Any, *, timeout: float | None = None, **options: Any
) -> dict[str, xr.Dataset]:
    """Open all groups of a file or store as a dict of datasets."""
    groups = await _open(xr.open_groups, filename_or_obj, options, timeout)
    return cast("dict[str, xr.Dataset]", groups)


@_as(xr.open_zarr)
async def open_zarr_async(*args: Any, timeout: float | None = None, **options: Any) -> xr.Dataset:
    """Open a dataset from a Zarr store; lazily and without dask, unless ``chunks`` is given."""
    bound = _ZARR.bind(*args, **options)
    chosen = dict(bound.arguments)
    if unknown := chosen.pop("kwargs", None):
        raise TypeError(f"open_zarr() got unexpected keyword arguments {', '.join(unknown)}")
    for_backend = {name: chosen.pop(name) for name in _ZARR_BACKEND_OPTIONS if name in chosen}
    store = chosen.pop("store")
    return cast(
        "xr.Dataset",
        await _open(
            xr.open_dataset,
            store,
            {**chosen, "engine": "zarr", "backend_kwargs": for_backend},
            timeout,
        ),
    )


_ZARR = inspect.signature(xr.open_zarr)
_ZARR_BACKEND_OPTIONS = (
    "consolidated",
    "overwrite_encoded_chunks",
    "storage_options",
    "zarr_format",
)


async def _loaded(
    name: str,
    opening: Callable[..., Coroutine[Any, Any, T]],
    source: Any,
    options: dict[str, Any],
    how: Options,
) -> T:
    """Open, load and close ``source`` as one call."""
    if "cache" in options:
        raise TypeError(f"{name} has no argument 'cache': all data is loaded into memory")

    async def load() -> T:
        with called_by(name):
            opened = await opening(source, **options)
        closes = partial(close, opened)
        async with closing_on_error(closes):
            loaded = await load_async(opened, progress=how.progress)
        await in_worker(closes, discard=lambda _: None)
        return loaded

    return await as_call("loaded", load, how)


@contextlib.asynccontextmanager
async def closing_on_error(function: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``function``, which closes something, in a worker thread if the body fails.

    The wait for it is short: a library cannot close a file while it reads, and an abandoned read
    may be waiting for a server that does not answer.
    """
    try:
        yield
    except BaseException:
        closed = asyncio.ensure_future(in_worker(function, discard=lambda _: None))
        await asyncio.wait([closed], timeout=_CLOSING_S)
        raise


_CLOSING_S = 1.0


@_as(xr.load_dataset)
async def load_dataset_async(
    filename_or_obj: Any,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    **options: Any,
) -> xr.Dataset:
    """Open a dataset, load it into memory and close it."""
    how = Options(concurrency, timeout, progress)
    return await _loaded("load_dataset", open_dataset_async, filename_or_obj, options, how)


@_as(xr.load_dataarray)
async def load_dataarray_async(
    filename_or_obj: Any,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    **options: Any,
) -> xr.DataArray:
    """Open a DataArray, load it into memory and close it."""
    how = Options(concurrency, timeout, progress)
    return await _loaded("load_dataarray", open_dataarray_async, filename_or_obj, options, how)


@_as(xr.load_datatree)
async def load_datatree_async(
    filename_or_obj: Any,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    **options: Any,
) -> xr.DataTree:
    """Open a tree of groups, load it into memory and close it."""
    how = Options(concurrency, timeout, progress)
    return await _loaded("load_datatree", open_datatree_async, filename_or_obj, options, how)


open_dataset = blocking(open_dataset_async)
open_dataarray = blocking(open_dataarray_async)
open_datatree = blocking(open_datatree_async)
open_groups = blocking(open_groups_async)
open_zarr = blocking(open_zarr_async)
load_dataset = blocking(load_dataset_async)
load_dataarray = blocking(load_dataarray_async)
load_datatree = blocking(load_datatree_async)
