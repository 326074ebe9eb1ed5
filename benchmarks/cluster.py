"""Benchmark of reading with dask and with a cluster: time, requests in flight, memory, stalls.

The scheduler and the workers run in processes of their own, as on other machines.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore, ObjectServer, StallMonitor
from benchmarks import cluster_saving
from benchmarks.data import Files, quiet
from benchmarks.measuring import Options
from benchmarks.memory import kilobytes
from benchmarks.rows import Row

TITLE = (
    "Dask and a cluster of two workers of two threads (load: dask alone; saving: load is plain "
    "xarray, load_async icechunk's to_icechunk)"
)
TABLE = Row
LATENCY_S = 0.05
CONCURRENCY = 8
WAYS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "dask": xr.Dataset.compute,
    "ours": aioxarray.compute,
}

_CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.readline()
"""


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    yield _without_dask(options)
    folder = files.folder("cluster")
    chunks = options.scaled(512)
    values = xr.Dataset({"v": (("t", "x"), np.arange(100.0 * chunks).reshape(chunks, 100))})
    encoding = {"v": {"chunks": (1, 100)}}
    values.to_zarr(folder / "many.zarr", encoding=encoding, mode="w", consolidated=False)
    with (
        _cluster(folder) as address,
        ObjectServer(LATENCY_S, root=folder, process=True) as server,
    ):
        yield from _with_client(address, server, values)
        size = f"{options.scaled(256)} MB of result"
        shape = str(options.scaled(256))
        kinds = {"plain": "dask", "ours": "aioxarray"}
        peaks = {way: _child("memory", way, address, shape) for way in kinds}
        yield Row(f"peak of memory, {size}", "%", peaks["plain"], None, peaks["ours"], 125)
        stalls = {way: _child("stalls", way, address, shape) for way in kinds}
        what = f"stall, asynchronous client, {size}"
        yield Row(what, "ms", stalls["plain"], None, stalls["ours"], 20)
    yield from cluster_saving.run(options, files)


@contextmanager
def _cluster(folder: Any) -> Iterator[str]:
    """Run a cluster in other processes; return the address of its scheduler."""
    script = folder / "cluster.py"
    script.write_text(_CLUSTER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _without_dask(options: Options) -> Row:
    """Return the row for a dask array that only reads, on this machine alone."""
    chunks = options.scaled(512)
    store = MemoryStore()
    values = xr.Dataset({"v": (("t", "x"), np.arange(100.0 * chunks).reshape(chunks, 100))})
    values.to_zarr(store, encoding={"v": {"chunks": (1, 100)}}, consolidated=False)
    lazy = xr.open_zarr(LatencyStore(store, LATENCY_S), consolidated=False)
    taken = {name: _seconds(way, lazy, values) for name, way in WAYS.items()}
    return Row(f"{chunks} chunks at 50 ms", "s", taken["dask"], None, taken["ours"], 0.73)


def _with_client(address: str, server: ObjectServer, values: xr.Dataset) -> Iterator[Row]:
    from distributed import Client

    url = f"{server.url}/many.zarr"
    with Client(address):
        lazy = xr.open_zarr(url, consolidated=False)
        taken = {name: _seconds(way, lazy, values) for name, way in WAYS.items()}
        what = f"{values.sizes['t']} chunks at 50 ms, HTTP, with a client"
        yield Row(what, "s", taken["dask"], None, taken["ours"], 0.73)
        openers: dict[str, Callable[..., xr.Dataset]] = {
            "plain xarray": xr.open_zarr,
            "aioxarray": aioxarray.open_zarr,
        }
        for name, open_zarr in openers.items():
            twice = open_zarr(url, consolidated=False, chunks={"t": 16}) * 2
            most = {}
            for way in WAYS:
                server.log.clear()
                if way == "dask":
                    twice.compute()
                else:
                    aioxarray.compute(twice, concurrency=CONCURRENCY)
                most[way] = server.log.most_in_flight
            what = f"requests in flight, concurrency={CONCURRENCY}, opened by {name}"
            yield Row(what, "", most["dask"], None, most["ours"], CONCURRENCY)


def _seconds(
    way: Callable[[xr.Dataset], xr.Dataset], lazy: xr.Dataset, expected: xr.Dataset
) -> float:
    """Return the time of ``way``, which connects with its first chunks."""
    way(lazy.isel(t=slice(2)))
    begun = perf_counter()
    got = way(lazy)
    taken = perf_counter() - begun
    np.testing.assert_array_equal(got.v, expected.v)
    return taken


def _child(kind: str, way: str, address: str, megabytes: str) -> float:
    arguments = [kind, way, address, megabytes]
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True
    )
    try:
        return float(done.stdout)
    except ValueError:
        raise RuntimeError(f"{kind} of {way} failed: {done.stderr}") from None


async def _measured(kind: str, way: str, address: str, megabytes: str) -> float:
    """Compute an array on a cluster; return the peak of memory in % of it, or the stall in ms."""
    from distributed import Client

    rows = int(megabytes)
    array = da.ones((rows, 1 << 17), chunks=(max(1, rows // 64), 1 << 17)) + 1
    lazy = xr.Variable(("t", "x"), array)
    async with Client(address, asynchronous=True) as client:
        # A first computation imports everything, here and in the workers.
        small = xr.Variable("x", da.ones(8, chunks=4) + 1)
        await aioxarray.compute_async(small)
        await client.compute(small.data)
        before = kilobytes("VmRSS")
        async with StallMonitor() as stalls:
            if way == "ours":
                got = (await aioxarray.compute_async(lazy)).values
            else:
                got = await client.compute(array)
        peak = kilobytes("VmHWM")
    assert got.shape == array.shape
    assert float(got[::7, ::1001].mean()) == 2
    if kind == "memory":
        share: float = 100 * (peak - before) * 1024 / got.nbytes
        return share
    return stalls.worst_s * 1000


if __name__ == "__main__":
    with quiet():
        print(asyncio.run(_measured(*sys.argv[1:])))
