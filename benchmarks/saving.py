"""Benchmark of saving: at 50 ms per request, to a local disk, and from server to server.

The stored keys are compared with those of plain xarray; so are the values, in the small cases.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from obstore.store import HTTPStore
from zarr.storage import MemoryStore, ObjectStore

import aioxarray
from aioxarray.testing import LatencyStore, ObjectServer
from benchmarks import data
from benchmarks.measuring import Bystander, Options, Taken, in_turn, noise_ms
from benchmarks.rows import Row
from benchmarks.stalls import GOAL_MS

if TYPE_CHECKING:
    from benchmarks.data import Files

TITLE = "Time to save (`to_zarr`); to a store with 50 ms per request, and to a disk"
TABLE = Row
LATENCY_S = 0.05
# A fast compressor for the copies, so that compression does not dominate.
_QUICK = "blosc"


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    quick = options.quick
    nodes, many, steps = (3, 8, 5) if quick else (13, 70, 50)
    yield from _remote(
        [
            _Save(f"a tree of {nodes} nodes, 4 variables each", data.tree(nodes, 4), 8, 0.35),
            _Save(f"{many} variables", data.many_variables(many), 8, 0.3),
            _append(steps),
        ]
    )
    folder = files.large_chunks().parent
    yield Row(
        "nothing: 2 threads busy, the machine's own noise", "ms", None, None, noise_ms(options)
    )
    for what, path, factor, side in (
        ("1 GB in chunks of 2 MB, local", files.large_chunks(), 1.0, (1, 512, 512)),
        ("8192 chunks of 4 KB, local", files.small_chunks(), 3.0, (1, 32, 32)),
    ):
        with data.quiet():
            ds = data.opened(path).load()
        yield from _local(what, ds, folder, factor, side, options)
        del ds
    yield from _lazy(files)
    yield from _copied(files, options)


def _seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def _content(store: MemoryStore) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


@dataclass(frozen=True)
class _Save:
    """A save to a store with latency; its goal is ``trips`` round trips plus ``rest_s``."""

    what: str
    obj: Any
    trips: int
    rest_s: float
    before: MemoryStore = field(default_factory=MemoryStore)
    options: Mapping[str, Any] = field(default_factory=dict)

    def timed(self, save: Callable[..., object]) -> tuple[float, dict[str, bytes]]:
        """Return the seconds it takes, and the stored keys and bytes."""
        after = MemoryStore(dict(self.before._store_dict))
        store = LatencyStore(after, LATENCY_S)
        return _seconds(lambda: save(self.obj, store, **self.options)), _content(after)


def _plain(obj: Any, store: Any, **options: Any) -> None:
    obj.to_zarr(store, **options)


def _append(steps: int) -> _Save:
    values = data.smooth(steps, 50, dtype="float32")
    ds = xr.Dataset(
        {f"v{i}": (("t", "x"), values + i) for i in range(50)}, {"t": np.arange(float(steps))}
    )
    before = MemoryStore()
    ds.to_zarr(before)
    more = ds[[f"v{i}" for i in range(10)]].assign_coords(t=ds.t + steps)
    what = f"append {steps} steps of 10 variables to 50"
    return _Save(what, more, 14, 0.6, before, {"append_dim": "t"})


def _remote(saves: Sequence[_Save]) -> Iterator[Row]:
    # Plain xarray waits most of the time: run concurrently, its saves take no longer than alone.
    with ThreadPoolExecutor(len(saves)) as pool:
        plain = list(pool.map(lambda save: save.timed(_plain), saves))
    for save, (plain_s, expected) in zip(saves, plain, strict=True):
        runs = [save.timed(aioxarray.to_zarr) for _ in range(3)]
        assert runs[0][1] == expected
        goal_s = save.trips * LATENCY_S + save.rest_s
        yield Row(save.what, "s", plain_s, None, median(s for s, _ in runs), goal_s)


def _local(
    what: str, ds: xr.Dataset, folder: Path, factor: float, chunks: Any, options: Options
) -> Iterator[Row]:
    """Yield the time, and the worst stall of an event loop that awaits our save."""
    encoding: dict[str, Any] = {str(name): {"chunks": chunks} for name in ds.data_vars}
    for variable in ds.variables.values():
        variable.encoding.clear()
    saved: dict[str, list[Path]] = {"plain": [], "ours": []}

    def path(way: str) -> Path:
        # A new path each time: deleting takes as long as saving.
        saved[way].append(folder / f"saved-{way}-{len(saved[way])}.zarr")
        return saved[way][-1]

    beside_ms: list[float] = []

    async def ours() -> None:
        await asyncio.to_thread(bystander.worst_ms)
        await aioxarray.to_zarr_async(ds, path("ours"), encoding=encoding)
        beside_ms.append(await asyncio.to_thread(bystander.worst_ms))

    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: ds.to_zarr(path("plain"), encoding=encoding),
        "ours": ours,
    }
    with Bystander() as bystander:
        plain, taken = in_turn(ways, lambda _: None, options).values()
    assert isinstance(plain, Taken), plain
    assert isinstance(taken, Taken), taken
    assert _sizes(saved["plain"][0]) == _sizes(saved["ours"][0])
    for each in (*saved["plain"], *saved["ours"]):
        shutil.rmtree(each)
    yield Row(what, "s", plain.seconds, None, taken.seconds, plain.seconds / factor)
    yield Row(f"{what}: stall", "ms", plain.stall_ms, None, taken.stall_ms, GOAL_MS)
    yield Row("    of a process that only slept meanwhile", "ms", None, None, median(beside_ms))


def _sizes(folder: Path) -> dict[str, int]:
    files = (each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): each.stat().st_size for each in files}


_PEAK = """
import asyncio, sys, warnings
warnings.simplefilter("ignore")
import xarray as xr
from zarr.storage import MemoryStore
way, source = sys.argv[1:]
if way == "ours":
    import aioxarray
class Discarding(MemoryStore):
    # A server somewhere else: chunks take their time, and no memory here.
    async def set(self, key, value, *more):
        if key.endswith("zarr.json"):
            await super().set(key, value, *more)
        else:
            await asyncio.sleep(0.02)
ds = xr.open_zarr(source, chunks=None)
if way == "ours":
    for i in range(2):
        aioxarray.to_zarr(ds, Discarding())
else:
    ds.to_zarr(Discarding())
# Not ru_maxrss: that begins with what the parent process had when it started this one.
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)
"""


def _lazy(files: Files) -> Iterator[Row]:
    """Yield the peak memory of copying a gigabyte; ours copies it twice."""
    peaks = {}
    for way in ("plain", "ours"):
        command = [sys.executable, "-c", _PEAK, way, str(files.large_chunks(_QUICK))]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[way] = float(found.stdout)
    yield Row(
        "peak MiB, a lazy copy of 1 GB (ours: twice)", "", peaks["plain"], None, peaks["ours"], 512
    )


# Of both servers: slow enough that the bandwidth is the limit, and not the two cores, which also
# run the servers.
_LATENCY_S, _BYTES_PER_S = 0.02, 200e6


def _http(server: ObjectServer) -> ObjectStore[Any]:
    http = HTTPStore.from_url(server.url, client_options={"allow_http": True, "timeout": "120s"})
    return ObjectStore(http)


def _copied(files: Files, options: Options) -> Iterator[Row]:
    """Yield the time of a copy from one server to another, and of reading and writing alone."""
    path = files.large_chunks(_QUICK)
    with (
        data.quiet(),
        ObjectServer(_LATENCY_S, path, process=True, bytes_per_s=_BYTES_PER_S) as source,
        ObjectServer(_LATENCY_S, process=True, bytes_per_s=_BYTES_PER_S) as target,
    ):
        ds = data.opened(path).load()
        lazy = aioxarray.open_zarr(_http(source))
        store = _http(target)
        saved: list[str] = []

        def write(obj: xr.Dataset) -> Any:
            # To a new group, so that nothing is deleted first.
            saved.append(f"copy-{len(saved)}")
            return aioxarray.to_zarr_async(obj, store, group=saved[-1], consolidated=False)

        def check(_: object) -> None:
            if saved:
                found = aioxarray.open_zarr(store, group=saved[-1], consolidated=False)[["v0"]]
                xr.testing.assert_identical(aioxarray.load(found), ds[["v0"]])

        ways: dict[str, Callable[[], Any]] = {
            "HTTP, 200 MB/s each way: reading 1 GB": lambda: aioxarray.load_async(
                lazy.copy(deep=False)
            ),
            "HTTP, 200 MB/s each way: writing 1 GB": lambda: write(ds),
            "a copy of 1 GB from one such server to another": lambda: write(lazy),
        }
        seconds = {}
        for what, taken in in_turn(ways, check, options).items():
            assert isinstance(taken, Taken), taken
            seconds[what] = taken.seconds
    *halves, (copy, copy_s) = seconds.items()
    for what, half_s in halves:
        yield Row(what, "s", None, None, half_s)
    yield Row(copy, "s", None, None, copy_s, 1.2 * max(half_s for _, half_s in halves))
