"""Saving to netCDF with xarray, off the caller's event loop and, where possible, atomically."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xarray as xr

from aioxarray._runtime.threads.cancel_scope import be_awaited
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.arrays.read import in_hdf5
from aioxarray._xarray.compat import is_chunked_array, is_remote_uri
from aioxarray._xarray.dask.chunked import tasks_end_with_the_call
from aioxarray._xarray.dask.names import with_distinct_names
from aioxarray._xarray.lazy.find import find_variables, shallow_copy
from aioxarray._xarray.lazy.loader import Options, read_all
from aioxarray._xarray.lazy.variables import assign, lazy_data
from aioxarray._xarray.opening.error_notes import error_note
from aioxarray._xarray.opening.packages import how_to_install, missing_for_netcdf
from aioxarray._xarray.saving.unchanged import Unchanged
from aioxarray._zarr.stores.calls import Call, calling
from aioxarray._zarr.stores.printable import printable
from aioxarray.errors import did_you_mean


async def save_netcdf(
    obj: Any, path: Any, mode: str, options: Mapping[str, Any], how: Options
) -> Any:
    """Call xarray's ``to_netcdf``; on the I/O loop."""
    if not isinstance(obj, xr.Dataset | xr.DataArray | xr.DataTree):
        raise TypeError(
            f"only a Dataset, DataArray or DataTree can be saved, not {type(obj).__name__}"
        )
    target = "memory" if path is None else repr(printable(path))
    async with calling("saved", how.timeout, how.concurrency) as call:
        with error_note(f"while saving to {target}"):
            return await _write(obj, path, mode, options, how, call)


async def _write(
    obj: Any, path: Any, mode: str, options: Mapping[str, Any], how: Options, call: Call
) -> Any:
    final = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    _check(obj, final, options)
    loaded = shallow_copy(obj)
    found = find_variables(loaded)
    unchanged = Unchanged()
    # Private: the data of a variable, of whatever kind.
    in_memory = [(each.label.removeprefix("variable "), each.variable._data) for each in found]
    lazies = lazy_data(found)
    lazies = lazies.chosen([index for index, each in enumerate(lazies) if not each.chunked])
    if lazies:
        values = await read_all(lazies, Options(how.concurrency, None, how.progress))
        assign(lazies, values, share=False)
    call.progress = lambda: "all data is loaded, and the file is being written"
    # Computing chunked data may need HDF5's lane, so it must not be written from within that lane.
    chunked = [each.variable for each in found if is_chunked_array(each.variable._data)]
    # xarray computes them together, so the same name must mean the same data.
    distinct = await in_worker(lambda: with_distinct_names([each._data for each in chunked]))
    for variable, data in zip(chunked, distinct, strict=True):
        variable._data = data

    def write(target: Any) -> Any:
        for name, values in in_memory:
            unchanged.add(name, values)
        result = loaded.to_netcdf(target, mode, **options)
        try:
            unchanged.check()
        except Exception:
            # The traceback holds this frame: hold no file in memory.
            del result
            raise
        return result

    if final is not None and is_remote_uri(final):
        with error_note(_LOCAL_ONLY):
            return await _call(lambda: write(path), alone=not chunked)
    if final is None or mode != "w" or options.get("compute") is False:
        return await _call(lambda: write(path), alone=not chunked)
    file = _Replaced(final)
    try:
        return await _call(lambda: file.write(write), alone=not chunked)
    except asyncio.CancelledError:
        file.abandon()
        raise


_LOCAL_ONLY = "to_netcdf writes local files: write one and copy it, or save with to_zarr"


def _check(obj: Any, path: str | None, options: Mapping[str, Any]) -> None:
    """Raise early, before loading anything, the errors that xarray would raise at the end."""
    names = inspect.signature(obj.to_netcdf).parameters
    for name in options:
        if name not in names:
            raise TypeError(
                f"to_netcdf() got an unexpected keyword argument {name!r}"
                f"{did_you_mean(name, names)}"
            )
    if options.get("engine") is None and (missing := missing_for_netcdf()):
        raise ValueError(f"cannot write netCDF files: {how_to_install(missing)}")
    if path is not None and is_remote_uri(path) and options.get("engine") == "h5netcdf":
        # h5netcdf would write bytes to a file that xarray opens for text (and HDF5 crash on exit).
        raise TypeError(f"cannot write {printable(path)!r} with h5netcdf: {_LOCAL_ONLY}")


async def _call(function: Callable[[], Any], *, alone: bool) -> Any:
    if alone:
        return await in_hdf5(function)

    def call() -> Any:
        # It calls the library for each block and to close the file.
        be_awaited()
        with tasks_end_with_the_call():
            return function()

    return await in_worker(call)


class _Replaced:
    """A file that is written under a temporary name in its folder and then renamed."""

    def __init__(self, path: str) -> None:
        # Resolved as in xarray.
        self._path = path = os.path.abspath(os.path.expanduser(path))
        folder, name = os.path.split(path)
        # The suffix stays: libraries look at it.
        self._part = os.path.join(folder, f".{uuid.uuid4().hex}.{name}")
        self._lock = threading.Lock()
        self._abandoned = False

    def write(self, write: Callable[[str], Any]) -> Any:
        """Call ``write`` with the temporary name, then rename the file unless it was abandoned.

        If that is not possible, ``write`` gets the final name. Errors then refer to it, and a
        writable file in a read-only folder can still be written.
        """
        if not self._is_replaceable():
            return write(self._path)
        try:
            with self._naming():
                result = write(self._part)
            with self._lock:
                if not self._abandoned:
                    os.replace(self._part, self._path)
            return result
        finally:
            if os.path.exists(self._part):
                os.unlink(self._part)

    def _is_replaceable(self) -> bool:
        if os.path.isdir(self._path):
            return False
        try:
            with open(self._part, "xb"):
                pass
        except OSError:
            return False
        os.unlink(self._part)
        return True

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Make an error raised in the body refer to the file that the user named."""
        try:
            yield
        except OSError as error:
            if error.filename == self._part:
                error.filename = self._path
            raise

    def abandon(self) -> None:
        """Keep the old file, because the save was cancelled while its thread may still write."""
        with self._lock:
            self._abandoned = True
