"""How long the caller's event loop is held up, at worst, while data loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import xarray as xr

import aioxarray
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, measure, noise_ms, plain_load, plain_load_async
from benchmarks.rows import Cell, Row

TITLE = "Worst stall of the caller's loop"
TABLE = Row
GOAL_MS = 20.0


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    # More runs: a stall depends on chance far more than a duration does.
    options = replace(options, seconds=2 * options.seconds)
    yield Row(
        "nothing: 2 threads busy, the machine's own noise", "ms", None, None, noise_ms(options)
    )
    large = data.opened(files.large_chunks())
    yield _row(f"{_size(large)} of local Zarr, chunks of 2 MB", large, options)
    packed = data.opened(files.packed())
    yield _row(f"{packed.sizes['t'] * 2} MB of packed int16, decoded", packed, options)
    with xr.open_dataset(files.netcdf(), engine="netcdf4") as netcdf:
        yield _row(f"{_size(netcdf)} of netCDF4", netcdf, options)
    dask = data.opened(files.large_chunks(), chunks={})[["v0"]]
    yield _row(f"{_size(dask)} of dask array, from local Zarr", dask, options)


def _size(obj: xr.Dataset) -> str:
    return f"{obj.nbytes / 1e6:.0f} MB" if obj.nbytes < 1e9 else f"{obj.nbytes / 1e9:.1f} GB"


def _row(what: str, lazy: xr.Dataset, options: Options) -> Row:
    expected = lazy.copy(deep=False).load()

    def stall(way: Callable[[Any], Any]) -> float:
        return measure(way, lazy, expected, options).stall_ms

    plain_async: Cell
    try:
        plain_async = stall(plain_load_async)
    except NotImplementedError:
        plain_async = "raises"
    return Row(what, "ms", stall(plain_load), plain_async, stall(aioxarray.load_async), GOAL_MS)
