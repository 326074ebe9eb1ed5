"""Saves xarray objects: `to_zarr`, `to_netcdf` and their coroutines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.saving.netcdf import save_netcdf
from aioxarray._xarray.saving.recorder import ZarrOptions
from aioxarray._xarray.saving.saver import save
from aioxarray.progress import Progress

__all__ = ["to_netcdf", "to_netcdf_async", "to_zarr", "to_zarr_async"]


async def to_zarr_async(
    obj: xr.Dataset | xr.DataArray | xr.DataTree,
    store: Any = None,
    mode: Any = None,
    *,
    group: str | None = None,
    encoding: Mapping[Any, Any] | None = None,
    compute: bool = True,
    consolidated: bool | None = None,
    append_dim: Any = None,
    region: Any = None,
    safe_chunks: bool = True,
    align_chunks: bool = False,
    storage_options: dict[str, Any] | None = None,
    zarr_format: int | None = None,
    write_empty_chunks: bool | None = None,
    write_inherited_coords: bool = False,
    chunkmanager_store_kwargs: Mapping[str, Any] | None = None,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
) -> Any:
    """Save ``obj`` to a Zarr store, as ``obj.to_zarr`` does, concurrently.

    The stored keys and bytes are those of xarray's own ``to_zarr``.

    Parameters
    ----------
    obj
        What is saved. Its data may be in memory, lazy (of any backend: it is read, encoded and
        written block by block, and ``obj`` stays lazy) or chunked (dask): that is computed in a
        worker thread and written as it is computed or, with a distributed client, written by
        the workers.
    store, mode, group, encoding, compute, consolidated, append_dim, region
        As in `xarray.Dataset.to_zarr`; for a DataTree as in `xarray.DataTree.to_zarr`.
    safe_chunks, align_chunks, storage_options, zarr_format, write_empty_chunks
        The same.
    chunkmanager_store_kwargs
        The same.
    write_inherited_coords
        As in `xarray.DataTree.to_zarr`; for a DataTree only.
    concurrency
        Most store requests in flight for this call, reads of lazy data included, instead of the
        setting of that name. Zero or below: no limit.
    timeout
        Seconds after which the call gives up, waiting for its turn included.
    progress
        True for a tqdm bar in bytes, or a callable that gets (done, total): bytes of the arrays
        as they are stored, before compression. See `load_async`.

    Returns
    -------
    xarray.backends.ZarrStore or dask.delayed.Delayed
        What xarray's function returns: with ``compute=False`` the chunked data is still to be
        computed and written, all else is in the store.

    Raises
    ------
    TypeError, ValueError, NotImplementedError, FileExistsError, zarr.errors.ContainsGroupError
        As xarray's function does, for what cannot be saved so: before the first request that
        writes. Names with a slash are refused too: xarray would not find them again; and, with
        mode "w", lazy data of what would be deleted.
    TimeoutError
        If ``timeout`` has passed.
    Exception
        The first error of a store, codec or backend, as it was raised, with notes that name the
        variable and the chunk.

    Notes
    -----
    *Requests:* to a new store a listing, and one for each chunk and each document of metadata,
    in six dependent round trips at most in format 3 and eight in format 2. To an existing one,
    before these, its metadata, and a read of each chunk that is written in part.

    *Order:* all chunk data; arrays; groups; the outermost group with consolidated metadata. A
    save that dies leaves what was there before, or whole arrays; see the page on saving for what
    that means when data is replaced.

    *Memory:* chunks that are encoded or on their way, as many bytes as the setting ``memory``
    allows, and an eighth of it for blocks of lazy or computed data. Lazy data of times, texts
    and objects is loaded as a whole: its encoding depends on all values.

    *Cancelling:* requests in flight are cancelled and awaited. Chunks that were written stay;
    metadata that was being replaced is put back.

    *Event loops:* any, asyncio's or Trio's; encoding, compression and requests happen elsewhere.
    """
    how = Options(concurrency, timeout, progress)
    how.check()
    if consolidated is None and isinstance(obj, xr.DataTree):
        # The default of its method.
        consolidated = True
    options = ZarrOptions(
        mode=mode,
        group=group,
        encoding=encoding,
        write_inherited_coords=write_inherited_coords,
        compute=compute,
        consolidated=consolidated,
        append_dim=append_dim,
        region=region,
        safe_chunks=safe_chunks,
        align_chunks=align_chunks,
        storage_options=storage_options,
        zarr_format=zarr_format,
        write_empty_chunks=write_empty_chunks,
        chunkmanager_store_kwargs=chunkmanager_store_kwargs,
    )
    return await run_on(io_loop(), lambda: save(obj, store, options, how))


async def to_netcdf_async(
    obj: xr.Dataset | xr.DataArray | xr.DataTree,
    path: Any = None,
    mode: str = "w",
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    **options: Any,
) -> Any:
    """Save ``obj`` to a netCDF file, as ``obj.to_netcdf`` does, off the caller's loop.

    Parameters
    ----------
    obj
        What is saved. Lazy data is loaded, concurrently, and stays lazy in ``obj``; chunked
        (dask) data is computed while the file is written.
    path, mode, **options
        As in `xarray.Dataset.to_netcdf`; for a DataTree as in `xarray.DataTree.to_netcdf`.
    concurrency, timeout, progress
        As in `load_async`; progress is that of loading the lazy data.

    Returns
    -------
    memoryview, dask.delayed.Delayed or None
        What xarray's method returns.

    Raises
    ------
    TypeError
        If ``obj`` is something else, or an argument is of a wrong type.
    TimeoutError
        If ``timeout`` has passed.
    Exception
        The errors of xarray's method, and those of loading.

    Notes
    -----
    *Requests:* those of loading what is lazy.

    *Order:* a local file that is written anew appears under its name when it is whole: until
    then, and if the save fails, what was there stays. With mode "a", with ``compute=False``, or
    in a file object, it changes in place; so does a file in a folder that cannot be written to.

    *Memory:* all lazy data of ``obj``, since HDF5 cannot be read while it writes.

    *Cancelling:* returns when the library has returned, which the user's own code may then call
    (netCDF-C bears one thread at a time): what is being written is written to its end, of chunked
    data the blocks that were begun. The new file is removed.

    *Event loops:* any, asyncio's or Trio's. HDF5 and netCDF-C bear one caller at a time: reads
    of such files wait for the save, and the save for them. (Not if ``obj`` has chunked data,
    which may itself be read from such a file; then xarray's own locks do what they can.)
    """
    how = Options(concurrency, timeout, progress)
    how.check()
    return await run_on(io_loop(), lambda: save_netcdf(obj, path, mode, options, how))


to_zarr = blocking(to_zarr_async)
to_netcdf = blocking(to_netcdf_async)
