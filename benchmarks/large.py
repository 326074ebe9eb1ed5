"""Benchmark of very many tiny chunks: time and CPU a chunk, stalls of the caller's loop, memory."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore
from benchmarks import data
from benchmarks.measuring import Bystander, Options, Stalls, plain_load_async
from benchmarks.memory import kilobytes, reset_peak
from benchmarks.peer_rows import Bound, Goal, PeerRow, Relative
from benchmarks.peers import LOAD, LOAD_ASYNC, OURS, TENSORSTORE

if TYPE_CHECKING:
    from benchmarks.data import Files

TITLE = "Very many chunks of 256 bytes"
# Of a chunk, along both dimensions.
LENGTH = 8
STALL_GOAL_MS = 20.0
# Of plain xarray, which takes up to a millisecond a chunk, so many chunks are measured.
PART = 4096
LATENCY_S = 0.01
MILLION = "million"
_PEERS = (OURS, LOAD, LOAD_ASYNC, TENSORSTORE)


@dataclass(frozen=True)
class LargeRow(PeerRow):
    """Row of the table; ``notes`` are more lines below it."""

    COLUMNS: ClassVar[Sequence[str]] = [each.name for each in _PEERS]
    HEADER: ClassVar[Sequence[str]] = ["", *COLUMNS, "xarray/ours"]
    WIDTHS: ClassVar[Sequence[int]] = (52, *(max(9, len(name)) for name in COLUMNS), 11)

    notes: Sequence[str] = field(default=())

    def below(self) -> list[str]:
        """Return the lines below the row: the notes, the goals, and why numbers are missing."""
        return [*self.notes, *super().below()]


TABLE = LargeRow


@dataclass(frozen=True)
class Taken:
    """What a way took for a number of chunks."""

    chunks: int
    seconds: float
    cpu_s: float
    stall_ms: float
    stall_cpu_ms: float
    beside_ms: float
    collection_ms: float
    peak_mb: float


# Loads or saves, and returns an awaitable if it can; and the number of chunks.
Way = tuple[Callable[[], Any], int]


def run(options: Options, files: Files) -> Iterator[LargeRow]:
    """Yield the rows; those of a million chunks only if the case names them."""
    folder = files.folder("large")
    # Squares of a number, since the grids are square.
    side = 80 if options.quick else 316
    cases = _cases(side, folder)
    if MILLION in options.case.lower():
        cases = _cases(1000, folder)
    for what, make in cases.items():
        if options.wants(what):
            yield from _rows(what, *make(), repeat=1 if options.quick else 2)


def _cases(
    side: int, folder: Path
) -> dict[str, Callable[[], tuple[Mapping[str, Way], list[Goal]]]]:
    count = "a million" if side == 1000 else f"{side * side:,}"
    return {
        f"{count} chunks of local files": partial(_local, side, folder, stored=True),
        f"{count} chunks of local files, none stored": partial(_local, side, folder, stored=False),
        f"{count} chunks in memory": partial(_in_memory, side, "whole"),
        f"{count} chunks in memory, by lists of positions": partial(_in_memory, side, "lists"),
        f"{count} chunks in memory, by points": partial(_in_memory, side, "points"),
        f"{count} chunks in memory, streamed": partial(_in_memory, side, "streamed"),
        f"{count} chunks in memory, traced": partial(_in_memory, side, "traced"),
        f"{count} chunks in memory, explained": partial(_in_memory, side, "explained"),
        f"{count} chunks at 10 ms a request": partial(_remote, side),
        f"{count} chunks saved to local files": partial(_saved, side, folder),
        f"{count} chunks saved at 10 ms a request": partial(_saved_remote, side),
    }


def _rows(what: str, ways: Mapping[str, Way], goals: list[Goal], repeat: int) -> Iterator[LargeRow]:
    taken: dict[str, Taken] = {}
    missing: dict[str, float | str] = {}
    with Bystander() as bystander:
        for name, (way, chunks) in ways.items():
            try:
                runs = [
                    asyncio.run(_taken(way, chunks, bystander))
                    for _ in range(repeat if name == OURS.name else 1)
                ]
            except ImportError as error:
                missing[name] = f"{error.name or error} is not installed"
                continue
            taken[name] = min(runs, key=lambda each: each.cpu_s)
    parts = {each.chunks for name, each in taken.items() if name in (LOAD.name, LOAD_ASYNC.name)}
    notes = [f"load and load_async, or plain to_zarr: {part} of the chunks" for part in parts]

    def cells(value: Callable[[Taken], float]) -> dict[str, float | str]:
        return missing | {name: value(each) for name, each in taken.items()}

    ours = taken[OURS.name]
    yield LargeRow(
        what, "µs", cells(lambda each: each.seconds / each.chunks * 1e6), goals, notes=notes
    )
    yield LargeRow("    CPU a chunk", "µs", cells(lambda each: each.cpu_s / each.chunks * 1e6))
    yield LargeRow(
        "    worst stall of the caller's loop",
        "ms",
        cells(lambda each: each.stall_ms),
        [Bound(STALL_GOAL_MS)],
        notes=[f"of a process that only slept beside aioxarray: {ours.beside_ms:.0f} ms"],
    )
    yield LargeRow(
        "    the most CPU time of the process in a stall",
        "ms",
        cells(lambda each: each.stall_cpu_ms),
        [Bound(STALL_GOAL_MS)],
    )
    yield LargeRow(
        "    longest collection of garbage, CPU", "ms", cells(lambda each: each.collection_ms)
    )
    yield LargeRow("    memory, with the values", "MB", cells(lambda each: each.peak_mb))


class _Stalls(Stalls):
    """Records also the CPU time that this process used during the worst stall.

    If the loop waited for the machine, and not for a thread with the GIL, that is far shorter.
    """

    worst_cpu_s = 0.0

    async def _watch(self) -> None:
        while True:
            due, cpu_s = time.perf_counter() + self._INTERVAL_S, time.process_time()
            await asyncio.sleep(self._INTERVAL_S)
            now, cpu_s = time.perf_counter(), time.process_time() - cpu_s
            self.all_s.append((due, now))
            self.worst_cpu_s = max(self.worst_cpu_s, min(now - due, cpu_s))


class _Collections:
    """Measures the longest collection of garbage, in CPU time: also on a busy machine."""

    def __init__(self) -> None:
        self.longest_s = self._begun_s = 0.0

    def __call__(self, phase: str, _: object) -> None:
        now_s = time.thread_time()
        if phase == "start":
            self._begun_s = now_s
        else:
            self.longest_s = max(self.longest_s, now_s - self._begun_s)

    def __enter__(self) -> Self:
        gc.collect()
        gc.callbacks.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self)


async def _taken(way: Callable[[], Any], chunks: int, bystander: Bystander) -> Taken:
    with _Collections() as collections:
        reset_peak()
        before = kilobytes("VmRSS")
        bystander.worst_ms()
        async with _Stalls() as stalls:
            cpu_s, begun = time.process_time(), time.perf_counter()
            found = way()
            if inspect.isawaitable(found):
                found = await found
            seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_s
            # Freeing the result may stall the loop, too.
            del found
        peak_mb = max(0.0, (kilobytes("VmHWM") - before) * 1024 / 1e6)
    return Taken(
        chunks,
        seconds,
        cpu_s,
        stalls.worst_s * 1000,
        stalls.worst_cpu_s * 1000,
        bystander.worst_ms(),
        collections.longest_s * 1000,
        peak_mb,
    )


# --- loads ---------------------------------------------------------------------------------------


def _array(store: Any, side: int) -> None:
    zarr.create_array(
        store,
        name="v",
        shape=(side * LENGTH, side * LENGTH),
        chunks=(LENGTH, LENGTH),
        dtype="float32",
        compressors=ZstdCodec(),
        dimension_names=["y", "x"],
    )


def _encoded() -> Any:
    """Return the stored bytes of a chunk, as a buffer."""
    store = MemoryStore()
    _array(store, 1)
    values = data.smooth(LENGTH, LENGTH, dtype="float32")
    zarr.open_array(store, path="v")[:] = values
    return store._store_dict["v/c/0/0"]


def _lazy(store: Any) -> xr.Dataset:
    return data.opened(store)


def _plain(part: xr.Dataset, chunks: int) -> dict[str, Way]:
    """Return plain xarray's ways to load a part with so many chunks."""
    return {
        LOAD.name: (lambda: part.copy().load(), chunks),
        LOAD_ASYNC.name: (lambda: plain_load_async(part.copy()), chunks),
    }


def _plain_corner(ds: xr.Dataset) -> dict[str, Way]:
    """Return plain xarray's ways to load `PART` chunks."""
    part = ds.isel(y=slice(64 * LENGTH), x=slice(PART // 64 * LENGTH))
    return _plain(part, part.v.size // LENGTH**2)


def _local(side: int, folder: Path, *, stored: bool) -> tuple[Mapping[str, Way], list[Goal]]:
    path = folder / f"{side}-{'stored' if stored else 'missing'}.zarr"
    if not path.exists():
        _array(LocalStore(path), side)
        encoded = _encoded().to_bytes()
        for row in range(side if stored else 0):
            below = path / "v" / "c" / str(row)
            below.mkdir(parents=True)
            for column in range(side):
                (below / str(column)).write_bytes(encoded)
    ds = _lazy(path)

    def tensorstore() -> Any:
        return _tensorstore(path).read().result()

    ways: dict[str, Way] = {
        OURS.name: (lambda: aioxarray.load_async(ds.copy()), side * side),
        **_plain_corner(ds),
        TENSORSTORE.name: (tensorstore, side * side),
    }
    return ways, [Relative((TENSORSTORE,), 1.0)]


def _tensorstore(path: Path, **more: Any) -> Any:
    import tensorstore

    kvstore = {"driver": "file", "path": f"{path}/v/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore, **more}).result()


def _filled(side: int) -> MemoryStore:
    store = MemoryStore()
    _array(store, side)
    encoded = _encoded()
    store._store_dict.update({f"v/c/{i}/{j}": encoded for i in range(side) for j in range(side)})
    return store


def _in_memory(side: int, how: str) -> tuple[Mapping[str, Way], list[Goal]]:
    ds = _lazy(_filled(side))
    chance = np.random.default_rng(0)
    length, count = side * LENGTH, side * side
    plain: dict[str, Way] = {}
    ours: Callable[[], Any]
    match how:
        case "lists":
            lists = _by_lists(ds)
            ours = lambda: aioxarray.load_async(lists.copy())  # noqa: E731
            corner = _by_lists(ds.isel(y=slice(64 * LENGTH), x=slice(64 * LENGTH)))
            plain = _plain(corner, 64 * 64)
        case "points":
            at: Any = {dim: ("p", chance.integers(0, length, 3 * count)) for dim in ("y", "x")}
            points = ds.isel(at)
            ours = lambda: aioxarray.load_async(points.copy())  # noqa: E731
        case "streamed":
            ours = partial(_streamed, ds)
        case "traced":
            ours = partial(_traced, ds)
        case "explained":
            ours = lambda: asyncio.to_thread(lambda: str(aioxarray.explain(ds)))  # noqa: E731
        case _:
            ours = lambda: aioxarray.load_async(ds.copy())  # noqa: E731
            plain = _plain_corner(ds)
    return {OURS.name: (ours, count), **plain}, []


def _by_lists(ds: xr.Dataset) -> xr.Dataset:
    """Select every third position along y and half of those along x, in random order.

    That touches almost all chunks.
    """
    size = ds.sizes["x"]
    return ds.isel(
        y=np.arange(0, ds.sizes["y"], 3),
        x=np.random.default_rng(0).permutation(size)[: size // 2],
    )


async def _streamed(ds: xr.Dataset) -> None:
    async with aioxarray.stream(aioxarray.blocks(ds, {"y": LENGTH})) as pieces:
        async for _ in pieces:
            pass


async def _traced(ds: xr.Dataset) -> Any:
    with aioxarray.trace() as trace:
        await aioxarray.load_async(ds.copy())
    return await asyncio.to_thread(trace.verdict)


def _remote(side: int) -> tuple[Mapping[str, Way], list[Goal]]:
    store = LatencyStore(_filled(side), 0)
    ds = _lazy(store)
    store.latency_s = LATENCY_S
    ways: dict[str, Way] = {OURS.name: (lambda: aioxarray.load_async(ds.copy()), side * side)}
    plain = _plain_corner(ds)
    del plain[LOAD.name]
    return ways | plain, []


# --- saves ---------------------------------------------------------------------------------------


def _values(side: int) -> xr.Dataset:
    return xr.Dataset(
        {"v": (("y", "x"), data.smooth(side * LENGTH, side * LENGTH, dtype="float32"))}
    )


ENCODING = {"v": {"chunks": (LENGTH, LENGTH)}}


def _saved(side: int, folder: Path) -> tuple[Mapping[str, Way], list[Goal]]:
    ds = _values(side)
    part = ds.isel(y=slice(64 * LENGTH), x=slice(PART // 64 * LENGTH))
    path = folder / "saved.zarr"

    def emptied() -> Path:
        # Deleting takes as long as saving, and would count: the last save is moved away.
        if path.exists():
            path.rename(folder / f"saved-{len(list(folder.iterdir()))}")
        return path

    def tensorstore() -> None:
        _tensorstore(
            emptied(),
            create=True,
            metadata={
                "shape": list(ds.v.shape),
                "data_type": "float32",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [LENGTH, LENGTH]},
                },
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "zstd", "configuration": {"level": 0}},
                ],
            },
        ).write(ds.v.values).result()

    ways: dict[str, Way] = {
        OURS.name: (
            lambda: aioxarray.to_zarr_async(ds, emptied(), encoding=ENCODING),
            side * side,
        ),
        LOAD.name: (
            lambda: part.to_zarr(emptied(), encoding=ENCODING),
            part.v.size // LENGTH**2,
        ),
        TENSORSTORE.name: (tensorstore, side * side),
    }
    return ways, [Relative((TENSORSTORE,), 5.0)]


class _Discarding(MemoryStore):
    """A server somewhere else: its values are no objects of this process."""

    async def set(self, key: str, value: Any, byte_range: Any = None) -> None:
        if "/c/" not in key:
            await super().set(key, value, byte_range)


def _saved_remote(side: int) -> tuple[Mapping[str, Way], list[Goal]]:
    ds = _values(side)

    def ours() -> Any:
        store = LatencyStore(_Discarding(), LATENCY_S)
        return aioxarray.to_zarr_async(ds, store, encoding=ENCODING)

    return {OURS.name: (ours, side * side)}, []
