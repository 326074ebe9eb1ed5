"""Writes netCDF files with xarray, off the caller's loop, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from aioxarray._runtime.loops import be_awaited
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.chunked import is_chunked_array, tasks_end_with_the_call
from aioxarray._xarray.find import find_variables, shallow_copy
from aioxarray._xarray.lazy import assign, lazy_data
from aioxarray._xarray.loader import Options, read_all
from aioxarray._xarray.read import in_hdf5


async def save_netcdf(
    obj: Any, path: Any, mode: str, options: Mapping[str, Any], how: Options
) -> Any:
    """Call xarray's ``to_netcdf``; on the I/O loop."""
    try:
        async with asyncio.timeout(how.timeout) as limit:
            return await _save(obj, path, mode, options, how)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(f"not saved within the timeout of {how.timeout} s") from error


async def _save(obj: Any, path: Any, mode: str, options: Mapping[str, Any], how: Options) -> Any:
    if not isinstance(obj, xr.Dataset | xr.DataArray | xr.DataTree):
        raise TypeError(
            f"only a Dataset, DataArray or DataTree can be saved, not {type(obj).__name__}"
        )
    loaded = shallow_copy(obj)
    found = find_variables(loaded)
    lazies = [each for each in lazy_data(found) if not each.chunked]
    if lazies:
        values = await read_all(lazies, Options(how.concurrency, None, how.progress))
        assign(lazies, values, share=False)
    # Its data may itself be read in the library's lane, for which it would wait in that lane.
    chunked = any(is_chunked_array(each.variable._data) for each in found)
    final = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if final is None or "://" in final or mode != "w" or options.get("compute", True) is False:
        return await _call(lambda: loaded.to_netcdf(path, mode, **options), alone=not chunked)
    file = _Replaced(final)
    try:
        return await _call(
            lambda: file.write(lambda part: loaded.to_netcdf(part, mode, **options)),
            alone=not chunked,
        )
    except asyncio.CancelledError:
        file.abandon()
        raise


async def _call(function: Callable[[], Any], *, alone: bool) -> Any:
    if alone:
        return await in_hdf5(function)

    def call() -> Any:
        # It goes into the library for each block, and in the end to close the file.
        be_awaited()
        with tasks_end_with_the_call():
            return function()

    return await in_worker(call, lambda _: None)


class _Replaced:
    """A file that is written under another name beside its own, and then takes its place."""

    def __init__(self, path: str) -> None:
        # As xarray takes a path.
        self._path = path = os.path.abspath(os.path.expanduser(path))
        folder, name = os.path.split(path)
        # The end of the name says something to libraries.
        self._part = os.path.join(folder, f".{uuid.uuid4().hex}.{name}")
        self._lock = threading.Lock()
        self._abandoned = False

    def write(self, write: Callable[[str], Any]) -> Any:
        """Call ``write`` with the other name; then the file takes its place, unless abandoned."""
        try:
            result = write(self._part)
            with self._lock:
                if not self._abandoned:
                    os.replace(self._part, self._path)
            return result
        finally:
            if os.path.exists(self._part):
                os.unlink(self._part)

    def abandon(self) -> None:
        """Leave the file as it is: nobody waits any more for the thread that writes."""
        with self._lock:
            self._abandoned = True
