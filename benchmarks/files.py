"""Benchmark of many netCDF files of one time step each, behind an HTTP server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from time import perf_counter, process_time
from typing import Any, ClassVar

import numpy as np
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, check_same
from benchmarks.rows import Row

TITLE = "Time to open many netCDF files, 10 ms per request"
LATENCY_S = 0.01
# Goal: 10 times as fast as plain xarray.
MANY = 10


class FilesRow(Row):
    """Times or processor times of plain xarray, alone and with dask, and of aioxarray."""

    HEADER: ClassVar = ("", "plain", "parallel", "aioxarray", "ratio", "goal", "")


TABLE = FilesRow


def run(options: Options, files: Files) -> Iterator[FilesRow]:
    """Yield the rows."""
    folder = files.folder("steps")
    count = 10 if options.quick else 200
    for step in range(count):
        _step(step).to_netcdf(
            folder / f"{step:03}.nc",
            engine="netcdf4",
            encoding={f"v{index}": {"zlib": True, "complevel": 1} for index in range(4)},
            unlimited_dims=["time"],
        )
    with ObjectServer(LATENCY_S, folder, process=True) as server:
        urls = [f"{server.url}/{path.name}" for path in sorted(folder.glob("*.nc"))]
        how: dict[str, Any] = {"engine": "h5netcdf", "data_vars": "minimal", "coords": "minimal"}
        how |= {"compat": "override", "join": "override"}

        async def ours() -> None:
            opened.append(await aioxarray.open_mfdataset_async(urls, **how))

        opened: list[xr.Dataset] = []
        ways: list[Callable[[], object]] = [
            lambda: opened.append(xr.open_mfdataset(urls, **how)),
            lambda: opened.append(xr.open_mfdataset(urls, parallel=True, **how)),
            lambda: asyncio.run(ours()),
        ]
        taken: list[list[tuple[float, float]]] = [[] for _ in ways]
        samples: list[xr.Dataset] = []
        # The first of ours also imports; plain xarray takes too long to run often.
        for way, times, runs in zip(ways, taken, (1, 1, 1 if options.quick else 4), strict=True):
            for run in range(runs):
                gc.collect()
                start, used = perf_counter(), process_time()
                way()
                times.append((perf_counter() - start, process_time() - used))
                if run == 0:
                    samples.append(opened[-1].isel(time=slice(None, None, 50)).compute())
                opened.pop().close()
        for sample in samples[1:]:
            check_same(sample, samples[0])
    plain, parallel, own = (
        tuple(min(each) for each in zip(*times, strict=True)) for times in taken
    )
    what = f"open_mfdataset of {count} netCDF files"
    yield FilesRow(what, "s", plain[0], parallel[0], own[0], plain[0] / MANY)
    yield FilesRow(f"{what}: processor time", "s", plain[1], parallel[1], own[1])


def _step(step: int) -> xr.Dataset:
    time = np.datetime64("2001-01-01", "ns") + step * np.timedelta64(6, "h")
    field = data.smooth(90, 180, dtype="float32") + np.float32(step % 7)
    names = {f"v{index}": f"field {index}" for index in range(4)}
    return xr.Dataset(
        {
            name: (("time", "lat", "lon"), field[None], {"long_name": said, "units": "K"})
            for name, said in names.items()
        },
        {
            "time": ("time", [time], {"standard_name": "time"}),
            "lat": ("lat", np.linspace(-89.0, 89.0, 90), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0.0, 360.0, 2.0), {"units": "degrees_east"}),
        },
        {"title": "steps", "history": f"step {step}"},
    )
