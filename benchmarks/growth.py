"""Benchmark of the cost per call and variable, and of small loads alongside large chunks."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore
from benchmarks.data import Files
from benchmarks.measuring import Options
from benchmarks.rows import Row

TITLE = "Growth: CPU time per call and variable; load_async of small data alongside large chunks"
TABLE = Row
LATENCY_S = 0.02


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    few, many = (100, 300) if options.quick else (1000, 10_000)
    for count in (few, many):
        yield _calls(count)
    variables = 300 if options.quick else 10_000
    yield from _variables(variables, files.folder("growth"))
    yield _beside_large(32 if options.quick else 256)


def _calls(count: int) -> Row:
    """Measure concurrent loads of one chunk each."""
    store = LatencyStore(MemoryStore(), 0)
    zarr.create_array(
        store, name="v", shape=(8 * count,), chunks=(8,), dtype="f8", dimension_names=["x"]
    )
    ds = xr.open_zarr(store, chunks=None, consolidated=False)
    store.latency_s = LATENCY_S

    def cpu_ms(load: Callable[[xr.Dataset], Awaitable[Any]]) -> float:
        parts = [ds.isel(x=slice(8 * i, 8 * i + 8)) for i in range(count)]

        async def main() -> float:
            begun_s = time.process_time()
            await asyncio.gather(*(load(part) for part in parts))
            return time.process_time() - begun_s

        return asyncio.run(main()) / count * 1000

    # Warm up: imports and threads.
    asyncio.run(aioxarray.load_async(ds.isel(x=slice(8))))
    ours = cpu_ms(aioxarray.load_async)
    plain = cpu_ms(lambda part: part.load_async())
    return Row(f"CPU per call, {count} calls of a chunk", "ms", None, plain, ours, plain * 5 / 3)


def _variables(count: int, folder: Path) -> Iterator[Row]:
    """Measure loads of datasets of many variables with eight numbers each."""
    numbers = np.arange(8.0)
    ds = xr.Dataset({f"v{i}": ("x", numbers + i) for i in range(count)})
    ds.to_zarr(LocalStore(folder / "many.zarr"), zarr_format=2, consolidated=True)
    small = ds[[f"v{i}" for i in range(min(count, 2000))]]
    small.to_netcdf(folder / "many.nc", engine="netcdf4")
    openers: dict[str, Callable[[], xr.Dataset]] = {
        "local Zarr": lambda: xr.open_zarr(folder / "many.zarr", chunks=None),
        "netCDF4": lambda: xr.open_dataset(folder / "many.nc", engine="netcdf4"),
    }
    for name, opened in openers.items():
        seconds = []
        loads: list[Callable[[xr.Dataset], object]] = [xr.Dataset.load, aioxarray.load]
        for load in loads:
            with opened() as lazy:
                size = len(lazy.variables)
                begun_s = time.process_time()
                load(lazy)
                seconds.append(time.process_time() - begun_s)
        plain, ours = seconds
        yield Row(f"CPU of {size} variables, {name}", "s", plain, None, ours, plain)


def _beside_large(megabytes: int) -> Row:
    """Measure how many round trips small loads take alongside chunks of ``megabytes``."""
    length = megabytes * 10**6 // 8
    large = LatencyStore(MemoryStore(), 0)
    zarr.create_array(
        large, name="v", shape=(4 * length,), chunks=(length,), dtype="f8", dimension_names=["x"]
    )
    small = LatencyStore(MemoryStore(), 0)
    zarr.create_array(small, name="v", shape=(8,), chunks=(8,), dtype="f8", dimension_names=["x"])
    lazy = xr.open_zarr(large, chunks=None, consolidated=False)
    # As at 500 MB per second.
    large.latency_s = megabytes / 500

    async def main() -> float:
        waited: list[float] = []
        task = asyncio.create_task(aioxarray.load_async(lazy))
        await asyncio.sleep(0.01)
        while not task.done():
            small.latency_s = 0
            one = await aioxarray.open_zarr_async(small, consolidated=False)
            small.latency_s = LATENCY_S
            begun_s = time.perf_counter()
            await aioxarray.load_async(one)
            waited.append((time.perf_counter() - begun_s) / LATENCY_S)
        await task
        return statistics.median(waited)

    with aioxarray.config.set(memory="64MiB"):
        trips = asyncio.run(main())
    return Row(f"round trips of a chunk beside chunks of {megabytes} MB", "", None, None, trips, 3)
