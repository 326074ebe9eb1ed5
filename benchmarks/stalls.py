"""Benchmark of the worst stall of the caller's event loop while data loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import xarray as xr

import aioxarray
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import (
    Host,
    Objects,
    Options,
    Stalls,
    measure,
    noise_ms,
    plain_load,
    plain_load_async,
)
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
    variables = data.opened(files.many_variables())
    yield from _rows(f"{len(variables)} variables of 64 bytes, local Zarr", variables, options)
    groups: Any = files.many_groups()
    tree = xr.open_datatree(groups, engine="zarr")
    count = sum(len(node.data_vars) for node in tree.subtree)
    yield from _rows(f"{len(tree)} groups, {count} variables, local Zarr", tree, options)


def _size(obj: xr.Dataset) -> str:
    return f"{obj.nbytes / 1e6:.0f} MB" if obj.nbytes < 1e9 else f"{obj.nbytes / 1e9:.1f} GB"


def _rows(what: str, lazy: Objects, options: Options) -> Iterator[Row]:
    expected = lazy.copy(deep=False).load()
    worst_ms: list[float] = []
    undisturbed_ms: list[float] = []

    def stall(way: Callable[[Any], Any]) -> float:
        return measure(way, lazy, expected, options).stall_ms

    plain_async: Cell
    if isinstance(lazy, xr.DataTree):
        plain_async = "none"
    else:
        try:
            plain_async = stall(plain_load_async)
        except NotImplementedError:
            plain_async = "raises"
    with Host() as host:

        async def ours(obj: Any) -> Any:
            # Measured here, to exclude the copying of thousands of variables before the load.
            async with Stalls() as stalls:
                await aioxarray.load_async(obj)
            worst_ms.append(stalls.worst_s * 1000)
            undisturbed_ms.append(host.worst_undisturbed_s(stalls.all_s) * 1000)
            return obj

        stall(ours)
    # The first of several runs includes imports.
    ours_ms, calm_ms = (median(each[1:] or each) for each in (worst_ms, undisturbed_ms))
    yield Row(what, "ms", stall(plain_load), plain_async, ours_ms, GOAL_MS)
    name = "    the worst in which the host took no time"
    yield Row(name, "ms", None, None, calm_ms, GOAL_MS)
