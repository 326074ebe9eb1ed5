"""Saving of xarray objects: `to_zarr`, `to_netcdf` and their coroutines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import xarray as xr

from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._xarray.dividing.arguments import flag
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.saving.netcdf import save_netcdf
from aioxarray._xarray.saving.recorder import ZarrOptions
from aioxarray._xarray.saving.saver import save
from aioxarray.config import Concurrency
from aioxarray.progress import Progress
from aioxarray.tracing import concluded

if TYPE_CHECKING:
    from aioxarray._xarray.compat import ZarrStore

__all__ = ["to_netcdf", "to_netcdf_async", "to_zarr", "to_zarr_async"]


class ZarrKeywords(TypedDict, total=False):
    """The options of `to_zarr` for type checkers, but for ``compute``, which decides the result."""

    group: str | None
    encoding: Mapping[Any, Any] | None
    consolidated: bool | None
    append_dim: Any
    region: Any
    safe_chunks: bool
    align_chunks: bool
    storage_options: dict[str, Any] | None
    zarr_format: int | None
    write_empty_chunks: bool | None
    write_inherited_coords: bool
    chunkmanager_store_kwargs: Mapping[str, Any] | None
    resume: bool
    concurrency: Concurrency | None
    timeout: float | None
    progress: Progress


_Saved = xr.Dataset | xr.DataArray | xr.DataTree


@overload
async def to_zarr_async(
    obj: _Saved,
    store: Any = ...,
    mode: Any = ...,
    *,
    compute: Literal[True] = ...,
    **options: Unpack[ZarrKeywords],
) -> ZarrStore: ...
@overload
async def to_zarr_async(
    obj: _Saved,
    store: Any = ...,
    mode: Any = ...,
    *,
    compute: bool,
    **options: Unpack[ZarrKeywords],
) -> Any: ...
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
    resume: bool = False,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
) -> Any:
    """Save ``obj`` to a Zarr store as ``obj.to_zarr`` does, with concurrent requests.

    The stored keys and bytes are those of xarray's own ``to_zarr``.

    Parameters
    ----------
    obj
        The object to save. Its data may be in memory, lazy or chunked (dask). Lazy data of any
        backend is read, encoded and written block by block, and ``obj`` stays lazy. Chunked data
        is computed in a worker thread and written as it is computed or, with a distributed
        client, written by the workers.
    store, mode, group, encoding, compute, consolidated, append_dim, region
        As in `xarray.Dataset.to_zarr`; for a DataTree as in `xarray.DataTree.to_zarr`.
    safe_chunks, align_chunks, storage_options, zarr_format, write_empty_chunks
        The same.
    chunkmanager_store_kwargs
        The same.
    write_inherited_coords
        As in `xarray.DataTree.to_zarr`; for a DataTree only.
    resume
        Whether the save can be interrupted, and the same call made again: it then writes only the
        chunks that are not there, and the store ends as it would have. With ``region``, the chunks
        of the region that are there count as written. Not for modes "w" and "a", ``append_dim``,
        icechunk, and stores that write values in place, such as a zip file.
    concurrency
        Maximum number of store requests in flight for this call, including reads of lazy data;
        overrides the setting of the same name. Zero or below: no limit; "auto": as many as each
        server accepts.
    timeout
        Seconds after which the call gives up, including the wait for its turn.
    progress
        True for a tqdm bar in bytes, or a callable that takes (done, total): bytes of the encoded
        arrays, before compression. See `load_async`.

    Returns
    -------
    xarray.backends.ZarrStore or dask.delayed.Delayed
        What xarray's function returns. With ``compute=False`` only the chunked data remains to be
        computed and written; everything else is in the store.

    Raises
    ------
    TypeError, ValueError, NotImplementedError, FileExistsError, zarr.errors.ContainsGroupError
        As xarray's function, if the data cannot be saved as asked; raised before the first write
        request. Two cases are refused in addition: names with a slash, which xarray would not
        find again, and, with mode "w", lazy data from the store contents that would be deleted.
        With ``resume``, a ValueError also if the store has something that the same save would not
        have written, or if the region has parts of chunks or shards.
    ArrayChangedError
        If a NumPy array of ``obj`` was changed while it was being saved, which counts as not saved.
        Lazy and chunked data is not checked.
    TimedOutError
        If ``timeout`` has passed. It is a TimeoutError.
    AioxarrayError
        If a request has failed for good; see `load_async`.
    Exception
        The first error from a codec or backend, as it was raised. All errors have notes that name
        the variable and the chunk.

    Notes
    -----
    *Requests:* for a new store, a listing, and one for each chunk and each metadata document, in
    at most six dependent round trips for format 3 and eight for format 2. For an existing store,
    also, before these, its metadata, and a read of each chunk that is only partly overwritten. With
    ``resume``, also a listing of each array that has been begun (for a region of a large array, one
    for each of its chunks), and a read of its documents and index coordinates.

    *Order:* all chunk data; arrays; groups; the outermost group with consolidated metadata. With
    ``resume``, arrays come first, then index coordinates; nobody finds them without a group. An
    interrupted save leaves either what was there before or whole arrays; see the page on saving
    for what that means when data is replaced.

    *Memory:* chunks being encoded or written, up to the setting ``memory``, plus an eighth of it
    for blocks of lazy or computed data. Lazy times, strings and objects are loaded as a whole,
    because their encoding depends on all values.

    *Cancelling:* requests in flight are cancelled and awaited. Chunks already written stay;
    metadata that was being replaced is put back.

    *Event loops:* asyncio or Trio; encoding, compression and requests happen on other threads.
    """
    how = Options(concurrency, timeout, progress)
    how.check()
    if consolidated is None and isinstance(obj, xr.DataTree):
        # The default of xarray's method.
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
        resume=flag("resume", resume),
    )
    with concluded(progress):
        return await run_on(io_loop(), lambda: save(obj, store, options, how))


async def to_netcdf_async(
    obj: xr.Dataset | xr.DataArray | xr.DataTree,
    path: Any = None,
    mode: str = "w",
    *,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    **options: Any,
) -> Any:
    """Save ``obj`` to a netCDF file as ``obj.to_netcdf`` does, off the caller's event loop.

    Parameters
    ----------
    obj
        The object to save. Lazy data is loaded concurrently, and stays lazy in ``obj``; chunked
        (dask) data is computed while the file is written.
    path, mode, **options
        As in `xarray.Dataset.to_netcdf`; for a DataTree as in `xarray.DataTree.to_netcdf`.
    concurrency, timeout, progress
        As in `load_async`; ``progress`` reports the loading of the lazy data.

    Returns
    -------
    memoryview, dask.delayed.Delayed or None
        What xarray's method returns.

    Raises
    ------
    TypeError
        If ``obj`` is anything else, or an argument has the wrong type.
    ArrayChangedError
        If a NumPy array of ``obj`` was changed while it was being saved. A new local file is then
        removed. Chunked data is not checked.
    TimedOutError
        If ``timeout`` has passed. It is a TimeoutError.
    Exception
        The errors of xarray's method, and those of loading.

    Notes
    -----
    *Requests:* those of loading the lazy data.

    *Order:* a new local file appears under its name only when it is complete: until then, and if
    the save fails, the previous file stays. With mode "a", with ``compute=False``, in a file
    object, or in a folder that cannot be written to, the file changes in place.

    *Memory:* all lazy data of ``obj``, since HDF5 cannot read while it writes.

    *Cancelling:* the call returns only when the library has returned, because the caller's code
    may use it next (netCDF-C is not thread-safe). The write in progress runs to its end; for
    chunked data, the blocks already begun. The new file is then removed.

    *Event loops:* asyncio or Trio. HDF5 and netCDF-C serve one thread at a time, so reads of such
    files wait for the save, and the save for them. The exception is an ``obj`` with chunked data,
    which may itself be read from such a file: then only xarray's own locks apply.
    """
    how = Options(concurrency, timeout, progress)
    how.check()
    with concluded(progress):
        return await run_on(io_loop(), lambda: save_netcdf(obj, path, mode, options, how))


if TYPE_CHECKING:

    @overload
    def to_zarr(
        obj: _Saved,
        store: Any = ...,
        mode: Any = ...,
        *,
        compute: Literal[True] = ...,
        **options: Unpack[ZarrKeywords],
    ) -> ZarrStore: ...
    @overload
    def to_zarr(
        obj: _Saved,
        store: Any = ...,
        mode: Any = ...,
        *,
        compute: bool,
        **options: Unpack[ZarrKeywords],
    ) -> Any: ...
    def to_zarr(*args: Any, **options: Any) -> Any:
        """See `to_zarr_async`."""

else:
    to_zarr = blocking(to_zarr_async)
to_netcdf = blocking(to_netcdf_async)
