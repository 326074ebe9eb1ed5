"""Opens datasets, trees and groups: xarray's functions, concurrent inside."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

import xarray as xr

from aioxarray._runtime.loops import blocking
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.engine import engine_of, inner_engine
from aioxarray._zarr.virtual import virtual_store
from aioxarray.loading import load_async

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", xr.Dataset, xr.DataArray, xr.DataTree)

_COMMON = """

    The arguments are those of `xarray.{name}`; so are the errors, and the result is identical.

    Notes
    -----
    *Requests:* the metadata of all variables and groups; then, together, the first and last
    chunk of each time coordinate, which decoding needs, and the coordinates that become indexes
    (none with ``create_default_indexes=False``; those of more than 64 chunks one round trip
    later). All count towards the setting ``concurrency``. Consolidated metadata takes one round
    trip, other metadata two for each level of groups.

    *Order:* of variables and groups, that of xarray's function, whichever answer comes first.

    *Memory:* {memory}

    *Cancelling:* requests in flight are cancelled, and nothing stays open. What a worker thread
    reads by HDF5 or netCDF-C is waited for, and closed; another format that reads in a worker
    thread (GRIB) is closed as soon as that read ends.

    *Event loops:* any, asyncio's or Trio's; opening happens in a worker thread.
"""

_LAZY = """\
the metadata and the index coordinates. Data stays lazy, and carries asynchronous
    reading in itself: xarray's own ``load`` and ``load_async`` on it go through aioxarray."""
_IN_MEMORY = """\
all data, and what `load_async` holds on the way."""


def _as(
    function: Callable[P, R],
) -> Callable[
    [Callable[..., Coroutine[Any, Any, R]]],
    Callable[P, Coroutine[Any, Any, R]],
]:
    """Give a coroutine function the signature of xarray's function, and the common notes."""

    def decorate(
        coroutine: Callable[..., Coroutine[Any, Any, R]],
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        coroutine.__signature__ = _with_ours(function, coroutine)  # type: ignore[attr-defined]
        loads = function.__name__.startswith("load_")
        coroutine.__doc__ = f"{coroutine.__doc__}" + _COMMON.format(
            name=function.__name__, memory=_IN_MEMORY if loads else _LAZY
        )
        return cast("Callable[P, Coroutine[Any, Any, R]]", coroutine)

    return decorate


def _with_ours(theirs: Callable[..., Any], ours: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of xarray's function with what ours adds to it."""
    signature = inspect.signature(theirs)
    listed = list(signature.parameters.values())
    added = [
        parameter
        for name, parameter in inspect.signature(ours).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in signature.parameters
    ]
    rest = [each for each in listed if each.kind is each.VAR_KEYWORD]
    return signature.replace(parameters=[*listed[: len(listed) - len(rest)], *added, *rest])


async def _open(function: Callable[..., Any], source: Any, options: dict[str, Any]) -> Any:
    """Call one of xarray's functions with the aioxarray form of the engine it would use."""

    def call() -> Any:
        engine = options.pop("engine", None)
        if engine is None:
            engine = inner_engine(source, default=None)
        indexes = bool(options.get("create_default_indexes", True))
        return function(source, engine=engine_of(engine, reads_indexes=indexes), **options)

    return await in_worker(call, discard=close)


def close(opened: Any) -> None:
    """Close what was opened: an object of xarray, or a dict of them."""
    for each in opened.values() if isinstance(opened, dict) else [opened]:
        each.close()


@_as(xr.open_dataset)
async def open_dataset_async(
    filename_or_obj: Any, *, virtual: bool = False, **options: Any
) -> xr.Dataset:
    """Open a dataset from a file or store.

    With ``virtual=True`` (ours, keyword only) a netCDF4 or HDF5 file at a path or URL is read as
    Zarr: the index of its chunks once, by VirtualiZarr, and then the chunks concurrently. The
    values are those of the h5netcdf engine; ``storage_options`` are then obstore's.
    """
    if virtual:
        filename_or_obj, options = await in_worker(
            lambda: _as_zarr(filename_or_obj, options), lambda _: None
        )
    return cast("xr.Dataset", await _open(xr.open_dataset, filename_or_obj, options))


def _as_zarr(source: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a store of the chunks of a netCDF4 file, and the options that open it."""
    options = {**options, **(options.pop("backend_kwargs", None) or {})}
    engine = options.pop("engine", "h5netcdf")
    if engine not in ("h5netcdf", "netcdf4"):
        raise ValueError(f"virtual=True reads netCDF4 and HDF5 files; got engine={engine!r}")
    store = virtual_store(
        source,
        group=options.pop("group", None),
        drop_variables=options.get("drop_variables"),
        storage_options=options.pop("storage_options", None),
    )
    return store, {**options, "engine": "zarr", "consolidated": False, "zarr_format": 3}


@_as(xr.open_dataarray)
async def open_dataarray_async(filename_or_obj: Any, **options: Any) -> xr.DataArray:
    """Open a DataArray from a file or store that holds a single variable."""
    return cast("xr.DataArray", await _open(xr.open_dataarray, filename_or_obj, options))


@_as(xr.open_datatree)
async def open_datatree_async(filename_or_obj: Any, **options: Any) -> xr.DataTree:
    """Open a tree of groups from a file or store."""
    return cast("xr.DataTree", await _open(xr.open_datatree, filename_or_obj, options))


@_as(xr.open_groups)
async def open_groups_async(filename_or_obj: Any, **options: Any) -> dict[str, xr.Dataset]:
    """Open all groups of a file or store as a dict of datasets."""
    groups = await _open(xr.open_groups, filename_or_obj, options)
    return cast("dict[str, xr.Dataset]", groups)


@_as(xr.open_zarr)
async def open_zarr_async(*args: Any, **options: Any) -> xr.Dataset:
    """Open a dataset from a Zarr store; lazy, not dask, unless ``chunks`` is given."""
    bound = _ZARR.bind(*args, **options)
    chosen = dict(bound.arguments)
    if unknown := chosen.pop("kwargs", None):
        raise TypeError(f"open_zarr() got unexpected keyword arguments {', '.join(unknown)}")
    for_backend = {name: chosen.pop(name) for name in _ZARR_BACKEND_OPTIONS if name in chosen}
    store = chosen.pop("store")
    return cast(
        "xr.Dataset",
        await _open(
            xr.open_dataset, store, {**chosen, "engine": "zarr", "backend_kwargs": for_backend}
        ),
    )


_ZARR = inspect.signature(xr.open_zarr)
_ZARR_BACKEND_OPTIONS = (
    "consolidated",
    "overwrite_encoded_chunks",
    "storage_options",
    "zarr_format",
)


async def _loaded(name: str, opening: Callable[..., Coroutine[Any, Any, T]], options: Any) -> T:
    if "cache" in options:
        raise TypeError(f"{name} has no argument 'cache': all is loaded into memory")
    opened = await opening(**options)
    try:
        return await load_async(opened)
    finally:
        await in_worker(functools.partial(close, opened), discard=lambda _: None)


@_as(xr.load_dataset)
async def load_dataset_async(filename_or_obj: Any, **options: Any) -> xr.Dataset:
    """Open a dataset, load it into memory and close it."""
    options["filename_or_obj"] = filename_or_obj
    return await _loaded("load_dataset", open_dataset_async, options)


@_as(xr.load_dataarray)
async def load_dataarray_async(filename_or_obj: Any, **options: Any) -> xr.DataArray:
    """Open a DataArray, load it into memory and close it."""
    options["filename_or_obj"] = filename_or_obj
    return await _loaded("load_dataarray", open_dataarray_async, options)


@_as(xr.load_datatree)
async def load_datatree_async(filename_or_obj: Any, **options: Any) -> xr.DataTree:
    """Open a tree of groups, load it into memory and close it."""
    options["filename_or_obj"] = filename_or_obj
    return await _loaded("load_datatree", open_datatree_async, options)


open_dataset = blocking(open_dataset_async)
open_dataarray = blocking(open_dataarray_async)
open_datatree = blocking(open_datatree_async)
open_groups = blocking(open_groups_async)
open_zarr = blocking(open_zarr_async)
load_dataset = blocking(load_dataset_async)
load_dataarray = blocking(load_dataarray_async)
load_datatree = blocking(load_datatree_async)
