"""Benchmark of the worst stall of the caller's event loop while data loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import psutil
import xarray as xr

import aioxarray
from aioxarray.testing import StallMonitor
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, measure, noise_ms, plain_load, plain_load_async
from benchmarks.rows import Cell, Row

TITLE = "Worst stall of the caller's loop"
TABLE = Row
GOAL_MS = 20.0


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    # More runs: stalls are far more random than durations.
    options = replace(options, seconds=2 * options.seconds)
    yield Row(
        "nothing: 2 threads busy, the machine's own noise", "ms", None, None, noise_ms(options)
    )
    large = data.opened(files.large_chunks())
    yield from _rows(f"{_size(large)} of local Zarr, chunks of 2 MB", large, options)
    packed = data.opened(files.packed())
    yield from _rows(f"{packed.sizes['t'] * 2} MB of packed int16, decoded", packed, options)
    with xr.open_dataset(files.netcdf(), engine="netcdf4") as netcdf:
        yield from _rows(f"{_size(netcdf)} of netCDF4", netcdf, options)
    dask = data.opened(files.large_chunks(), chunks={})
    yield from _rows(f"{_size(dask)} of dask array, from local Zarr", dask, options)


def _size(obj: xr.Dataset) -> str:
    return f"{obj.nbytes / 1e6:.0f} MB" if obj.nbytes < 1e9 else f"{obj.nbytes / 1e9:.1f} GB"


def _rows(what: str, lazy: xr.Dataset, options: Options) -> Iterator[Row]:
    expected = lazy.copy(deep=False).load()
    undisturbed_ms: list[float] = []

    def stall(way: Callable[[Any], Any]) -> float:
        return measure(way, lazy, expected, options).stall_ms

    async def ours(obj: Any) -> Any:
        before = _stolen_s()
        async with StallMonitor() as stalls:
            await aioxarray.load_async(obj)
        if _stolen_s() == before:
            undisturbed_ms.append(stalls.worst_s * 1000)
        return obj

    plain_async: Cell
    try:
        plain_async = stall(plain_load_async)
    except NotImplementedError:
        plain_async = "raises"
    yield Row(what, "ms", stall(plain_load), plain_async, stall(ours), GOAL_MS)
    if undisturbed_ms:
        name = "    of the loads from which the host took no time"
        yield Row(name, "ms", None, None, median(undisturbed_ms))


def _stolen_s() -> float:
    """Return how long a virtual machine's processors have waited for the host's.

    Meanwhile the thread on such a processor stands still, even if it holds the GIL.
    """
    return float(getattr(psutil.cpu_times(), "steal", 0.0))
