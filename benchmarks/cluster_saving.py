"""Benchmark of saves by many processes: regions by rank, kills and resumes, and a cluster.

``python -m benchmarks.cluster_saving WAY TARGET GB RANK SIZE`` writes the part of a rank, as the
processes of this benchmark do, and prints the seconds of processor time and the peak of memory in
MB. With the rank "template", it writes the template. So 20 GB take ``template`` and then each rank.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import xarray as xr

import aioxarray
from benchmarks.rows import Row

if TYPE_CHECKING:
    from benchmarks.data import Files
    from benchmarks.measuring import Options

TITLE = "Saving by many processes (load: plain xarray; load_async: icechunk's to_icechunk)"
TABLE = Row

# A shard has 128 MB.
_STEPS, _SIDE = 32, 1024
_ENCODING = {"v": {"chunks": (4, 512, 512), "shards": (_STEPS, _SIDE, _SIDE)}}
_MOST_MB = 1536
_PROCESSES = 2
_KILLS = 10


def _values(block_info: Any = None) -> Any:
    """Return values that compress about as well as measured fields, without reading any."""
    (start, stop), *_ = block_info[None]["array-location"]
    steps = np.random.default_rng(0).normal(size=(_SIDE, _SIDE))
    field = np.round(steps.cumsum(axis=0).cumsum(axis=1), 2).astype("f4")
    return field + np.arange(start, stop, dtype="f4")[:, None, None]


def _dataset(gb: float) -> xr.Dataset:
    count = max(2, round(gb * 1e9 / (_STEPS * _SIDE * _SIDE * 4)))
    chunks = ((_STEPS,) * count, (_SIDE,), (_SIDE,))
    values = dask.array.map_blocks(_values, chunks=chunks, dtype="f4", meta=np.zeros((0, 0, 0)))
    return xr.Dataset({"v": (("t", "y", "x"), values)})


def _write(way: str, target: str, gb: float, rank: str, size: int) -> None:
    ds = _dataset(gb)
    if rank == "template":
        aioxarray.to_zarr(ds, target, encoding=_ENCODING, compute=False, resume=True)
        return
    pieces = aioxarray.blocks(aioxarray.open_zarr(target), "shards")
    for region in pieces.shard(int(rank), size).regions():
        part = ds.isel(region)
        if way == "ours":
            aioxarray.to_zarr(part, target, region=region, resume=True)
        else:
            part.to_zarr(target, region={str(dim): each for dim, each in region.items()})


class _Job:
    """A save by the processes of an array job."""

    def __init__(self, way: str, target: Path, gb: float) -> None:
        self._way = way
        self.target = target
        self._gb = gb
        self._start("template").communicate()

    def _start(self, rank: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cluster_saving", self._way]
        command += [str(self.target), str(self._gb), rank, str(_PROCESSES)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def run(self) -> tuple[float, float, float]:
        """Return the seconds, the seconds of processors, and the highest peak in MB."""
        begun = perf_counter()
        processes = [self._start(str(rank)) for rank in range(_PROCESSES)]
        told = [json.loads(each.communicate()[0]) for each in processes]
        return (
            perf_counter() - begun,
            sum(each["cpu_s"] for each in told),
            max(each["peak_mb"] for each in told),
        )

    def files(self) -> dict[Path, int]:
        """Return the shards that are there, and when they were written."""
        return {
            path: path.stat().st_mtime_ns
            for path in (self.target / "v" / "c").rglob("*")
            if path.is_file() and path.suffix != ".partial"
        }

    def killed(self, seconds: float, kills: int) -> int:
        """Run it with kills at random moments; return how many shards were written twice."""
        rng = random.Random(5)
        again = 0
        before: dict[Path, int] = {}
        for _ in range(kills):
            processes = [self._start(str(rank)) for rank in range(_PROCESSES)]
            sleep(rng.uniform(0.5, 1.5) * seconds / kills)
            for each in processes:
                each.kill()
                each.communicate()
            now = self.files()
            again += sum(now[path] != written for path, written in before.items())
            before = now
        self.run()
        now = self.files()
        return again + sum(now[path] != written for path, written in before.items())


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    gb = 0.3 if options.quick else 4.0
    taken = {}
    for way in ("plain", "ours"):
        job = _Job(way, files.root / f"{way}-ranks.zarr", gb)
        taken[way] = job.run()
        shutil.rmtree(job.target)
    what = f"{gb:g} GB in shards by {_PROCESSES} processes"
    for name, unit, at, goal in (
        ("", "s", 0, None),
        (": processor time", "s", 1, None),
        (": peak of one", "MB", 2, _MOST_MB),
    ):
        yield Row(f"{what}{name}", unit, taken["plain"][at], None, taken["ours"][at], goal)
    kills = 2 if options.quick else _KILLS
    job = _Job("ours", files.root / "killed-ranks.zarr", gb / 2)
    again = job.killed(taken["ours"][0] / 2, kills)
    count = len(job.files())
    assert count == _dataset(gb / 2).v.data.npartitions
    left = [path for path in job.target.rglob("*") if path.suffix == ".partial"]
    shutil.rmtree(job.target)
    what = f"killed {kills} times, resumed: of {count} shards,"
    yield Row(f"{what} twice", "", None, None, again, 0)
    yield Row(f"{what} remains beside", "", None, None, len(left), 0)
    yield from _on_a_cluster(options, files.root)


def _on_a_cluster(options: Options, folder: Path) -> Iterator[Row]:
    from distributed import Client, LocalCluster

    side = 8 if options.quick else 32
    values = dask.array.ones((side * 64, side * 64), chunks=(64, 64)).cumsum(axis=0)
    ds = xr.Dataset({"v": (("y", "x"), values)})
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):

        def best(save: Callable[[Path], object]) -> float:
            seconds = []
            for _ in range(1 if options.quick else 3):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    begun = perf_counter()
                    save(Path(place))
                    seconds.append(perf_counter() - begun)
            return min(seconds)

        what = f"{side**2} chunks by a cluster of 2 workers"
        plain = best(lambda place: ds.to_zarr(place / "a.zarr"))
        ours = best(lambda place: aioxarray.to_zarr(ds, place / "a.zarr"))
        yield Row(what, "s", plain, None, ours, 1.2 * plain)
        resumed = best(lambda place: aioxarray.to_zarr(ds, place / "a.zarr", resume=True))
        yield Row(f"{what}, resume=True", "s", plain, None, resumed, 1.2 * plain)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            target = Path(place) / "a.zarr"
            aioxarray.to_zarr(ds, target, resume=True)
            again = partial(aioxarray.to_zarr, ds, target, resume=True)
            begun = perf_counter()
            again()
            yield Row(f"{what}, all there", "s", None, None, perf_counter() - begun, ours / 4)
        yield from _icechunk(ds, what, best)


def _icechunk(
    ds: xr.Dataset, what: str, best: Callable[[Callable[[Path], object]], float]
) -> Iterator[Row]:
    try:
        import icechunk
        from icechunk.xarray import to_icechunk
    except ImportError:
        yield Row(f"{what}, icechunk", "s", "not installed", None, 0.0)
        return

    def session(place: Path) -> Any:
        storage = icechunk.local_filesystem_storage(str(place))
        return icechunk.Repository.create(storage).writable_session("main")

    def save(place: Path) -> None:
        ours = session(place)
        aioxarray.to_zarr(ds, ours.store, consolidated=False)
        ours.commit("saved")

    def theirs(place: Path) -> None:
        other = session(place)
        to_icechunk(ds, other)
        other.commit("saved")

    try:
        peer: float | str = best(theirs)
    except TypeError:
        # icechunk 1 passes xarray an argument that it no longer has.
        peer = "fails"
    ours = best(save)
    goal = 1.2 * peer if isinstance(peer, float) else None
    yield Row(f"{what}, icechunk", "s", None, peer, ours, goal)


def _main(way: str, target: str, gb: str, rank: str, size: str) -> None:
    warnings.simplefilter("ignore")
    _write(way, target, float(gb), rank, int(size))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    # Not ru_maxrss: that begins with what the parent process had when it started this one.
    peak = float(status.partition("VmHWM:")[2].split()[0]) / 1024
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": peak}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
