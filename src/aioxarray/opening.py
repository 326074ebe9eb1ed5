"""Opening of datasets, trees and groups: xarray's functions with concurrent requests."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

import xarray as xr

from aioxarray._runtime.loops import blocking
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.opening.calls import (
    as_call,
    called_by,
    close,
    closing_on_error,
    open_virtual,
    open_with,
)
from aioxarray._xarray.opening.many import Combining, open_and_combine, preprocessed
from aioxarray._xarray.opening.signatures import like
from aioxarray.config import Concurrency
from aioxarray.loading import load_async
from aioxarray.progress import Progress
from aioxarray.tracing import concluded

T = TypeVar("T", xr.Dataset, xr.DataArray, xr.DataTree)


@like(xr.open_dataset)
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
            return await open_virtual(filename_or_obj, options)
        return cast("xr.Dataset", await open_with(xr.open_dataset, filename_or_obj, options))

    return await as_call("opened", opened, Options(timeout=timeout))


async def _open(
    function: Callable[..., Any], source: Any, options: dict[str, Any], timeout: float | None
) -> Any:
    """Open ``source`` with one of xarray's functions, as one call."""
    opened = partial(open_with, function, source, options)
    return await as_call("opened", opened, Options(timeout=timeout))


@like(xr.open_dataarray)
async def open_dataarray_async(
    filename_or_obj: Any, *, timeout: float | None = None, **options: Any
) -> xr.DataArray:
    """Open a DataArray from a file or store that holds a single variable."""
    return cast("xr.DataArray", await _open(xr.open_dataarray, filename_or_obj, options, timeout))


@like(xr.open_datatree)
async def open_datatree_async(
    filename_or_obj: Any,
    *,
    group_filter: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> xr.DataTree:
    """Open a tree of groups from a file or store.

    ``group_filter`` (not in xarray, keyword only) is a pattern such as ``"/*/sweep_0"``: only the
    groups of a Zarr store whose paths below ``group`` match it are opened, and the groups above
    them, whose coordinates they inherit. Of other groups at most their own metadata documents are
    requested. ``*``, ``?`` and ``[...]`` stand for characters of one name, and ``**`` for any
    number of names. ValueError if no group matches.
    """
    options |= _if_given(group_filter)
    return cast("xr.DataTree", await _open(xr.open_datatree, filename_or_obj, options, timeout))


def _if_given(group_filter: str | None) -> dict[str, Any]:
    return {} if group_filter is None else {"group_filter": group_filter}


@like(xr.open_groups)
async def open_groups_async(
    filename_or_obj: Any,
    *,
    group_filter: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> dict[str, xr.Dataset]:
    """Open all groups of a file or store as a dict of datasets.

    ``group_filter`` (not in xarray, keyword only) is that of `open_datatree_async`.
    """
    options |= _if_given(group_filter)
    groups = await _open(xr.open_groups, filename_or_obj, options, timeout)
    return cast("dict[str, xr.Dataset]", groups)


@like(xr.open_zarr)
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


# xarray's own default objects: by them it detects missing arguments, and warns of future changes.
_DEFAULT = {
    name: each.default for name, each in inspect.signature(xr.open_mfdataset).parameters.items()
}


async def open_mfdataset_async(
    paths: Any,
    chunks: Any = "engine",
    concat_dim: Any = None,
    compat: Any = _DEFAULT["compat"],
    preprocess: Callable[[xr.Dataset], Any] | None = None,
    engine: Any = None,
    data_vars: Any = _DEFAULT["data_vars"],
    coords: Any = _DEFAULT["coords"],
    combine: str = "by_coords",
    parallel: bool = False,
    join: Any = _DEFAULT["join"],
    attrs_file: str | os.PathLike[str] | None = None,
    combine_attrs: Any = "override",
    errors: str = "raise",
    *,
    timeout: float | None = None,
    **options: Any,
) -> xr.Dataset:
    """Open many files or stores concurrently as a single dataset.

    Parameters
    ----------
    paths, concat_dim, compat, engine, data_vars, coords, combine, join, attrs_file, \
    combine_attrs, errors
        As in `xarray.open_mfdataset`. ``paths`` may also be a (nested) list of Zarr stores.
    chunks
        As in xarray: by default, dask arrays with the chunks of the files. None: lazy arrays
        without dask. Variables joined along a dimension become one lazy array, and loading reads
        only the selected parts, concurrently. Differing indexes are aligned lazily too.
    preprocess
        Called with each dataset before they are combined, for many files at once: a plain
        function, called in a worker thread, or a coroutine function, awaited on the I/O loop.
    parallel
        Ignored: files are opened concurrently anyway, and not by dask.
    timeout
        Seconds after which the call gives up, including the wait for its turn.
    **options
        Passed to `open_dataset_async`.

    Returns
    -------
    xarray.Dataset
        What `xarray.open_mfdataset` would return. Closing it closes all files.

    Raises
    ------
    OSError
        If there is nothing to open.
    ValueError
        If the datasets do not combine; with ``chunks=None`` also if combining them needs values
        that are not loaded. The message says what to do.
    TimedOutError
        If ``timeout`` has passed. The message says what the call was waiting for. It is a
        TimeoutError.
    Exception
        The error from opening a file, with a note that names the file, if ``errors="raise"``.

    Notes
    -----
    *Requests:* those of `open_dataset_async` for each file, for up to 32 files at once.

    *Order:* files are combined in the order of ``paths``, whichever is opened first.

    *Memory:* the metadata and the index coordinates of all files; with ``chunks=None`` also the
    scalar variables that become an index along ``concat_dim``.

    *Cancelling:* requests in flight are cancelled, and all files that were opened are closed.
    """
    if errors not in ("raise", "warn", "ignore"):
        raise ValueError(f"'errors' must be 'raise', 'warn' or 'ignore', got {errors!r}")
    if combine not in ("by_coords", "nested"):
        raise ValueError(f"{combine} is an invalid option for the keyword argument ``combine``")
    if combine == "by_coords" and concat_dim is not None:
        raise ValueError(
            "When combine='by_coords', passing a value for `concat_dim` has no effect. To "
            "manually combine along a specific dimension you should instead specify "
            "combine='nested' along with a value for `concat_dim`."
        )
    combining = {
        "compat": compat,
        "data_vars": data_vars,
        "coords": coords,
        "join": join,
        "combine_attrs": combine_attrs,
    }
    options |= {"engine": engine, "chunks": {} if chunks == "engine" else chunks}
    how = Combining(combine, concat_dim, combining, lazy=chunks is None)

    async def prepare(dataset: xr.Dataset) -> xr.Dataset:
        prepared = await preprocessed(dataset, preprocess)
        await load_async(how.needed(prepared))
        return prepared

    opened = partial(
        open_and_combine, paths, options, open_dataset_async, prepare, how, errors, attrs_file
    )
    return await as_call("opened", opened, Options(timeout=timeout))


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

    # One verdict, on the open as well.
    shown = True if how.progress == "verdict" else how.progress

    async def load() -> T:
        with called_by(name):
            opened = await opening(source, **options)
        closes = partial(close, opened)
        async with closing_on_error(closes):
            loaded = await load_async(opened, progress=shown, max_bytes=how.max_bytes)
        await in_worker(closes)
        return loaded

    with concluded(how.progress):
        return await as_call("loaded", load, how)


@like(xr.load_dataset)
async def load_dataset_async(
    filename_or_obj: Any,
    *,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    max_bytes: int | str | None = None,
    **options: Any,
) -> xr.Dataset:
    """Open a dataset, load it into memory and close it."""
    how = Options(concurrency, timeout, progress, max_bytes)
    return await _loaded("load_dataset", open_dataset_async, filename_or_obj, options, how)


@like(xr.load_dataarray)
async def load_dataarray_async(
    filename_or_obj: Any,
    *,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    max_bytes: int | str | None = None,
    **options: Any,
) -> xr.DataArray:
    """Open a DataArray, load it into memory and close it."""
    how = Options(concurrency, timeout, progress, max_bytes)
    return await _loaded("load_dataarray", open_dataarray_async, filename_or_obj, options, how)


@like(xr.load_datatree)
async def load_datatree_async(
    filename_or_obj: Any,
    *,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    max_bytes: int | str | None = None,
    **options: Any,
) -> xr.DataTree:
    """Open a tree of groups, load it into memory and close it."""
    how = Options(concurrency, timeout, progress, max_bytes)
    return await _loaded("load_datatree", open_datatree_async, filename_or_obj, options, how)


open_dataset = blocking(open_dataset_async)
open_dataarray = blocking(open_dataarray_async)
open_datatree = blocking(open_datatree_async)
open_groups = blocking(open_groups_async)
open_zarr = blocking(open_zarr_async)
open_mfdataset = blocking(open_mfdataset_async)
load_dataset = blocking(load_dataset_async)
load_dataarray = blocking(load_dataarray_async)
load_datatree = blocking(load_datatree_async)
