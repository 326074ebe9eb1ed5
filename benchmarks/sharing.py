"""Benchmark of the number of requests for chunks that loads share, and for parts of shards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import xarray as xr

import aioxarray
from aioxarray.testing import LatencyStore, RecordingStore
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, check_same, plain_load, plain_load_async
from benchmarks.peer_rows import Bound, PeerRow
from benchmarks.peers import (
    DASK,
    FUSED,
    FUSED_PATH,
    LOAD,
    LOAD_ASYNC,
    OURS,
    TENSORSTORE,
    XARRAY_TENSORSTORE,
    ZARRS,
    Unavailable,
    pipeline,
)

if TYPE_CHECKING:
    from zarr.storage import MemoryStore

TITLE = "Requests for chunks"
TABLE = PeerRow
# Long enough for loads to overlap, even on a busy machine.
LATENCY_S = 0.03

_Load = Callable[[list[xr.Dataset]], Coroutine[Any, Any, list[xr.Dataset]]]
_Part = Mapping[str, slice]


async def _ours(datasets: list[xr.Dataset]) -> list[xr.Dataset]:
    return list(await asyncio.gather(*(aioxarray.load_async(one) for one in datasets)))


async def _plain(datasets: list[xr.Dataset]) -> list[xr.Dataset]:
    return list(await asyncio.gather(*(asyncio.to_thread(one.load) for one in datasets)))


LOADS: dict[str, _Load] = {
    OURS.name: _ours,
    LOAD.name: _plain,
    LOAD_ASYNC.name: plain_load_async,
    FUSED.name: _plain,
}
OTHERS = dict.fromkeys(
    (ZARRS.name, TENSORSTORE.name, XARRAY_TENSORSTORE.name), "reads no store that counts requests"
) | {DASK.name: "not counted"}


def run(options: Options, files: Files) -> Iterator[PeerRow]:
    """Yield the rows."""
    store = data.in_memory(data.many_variables(1, 8))
    windows = [
        {"y": slice(y, y + 120), "x": slice(x, x + 120)}
        for y in range(0, 280, 35)
        for x in range(0, 280, 35)
    ]
    assert len(windows) == 64
    what = "64 chunks, in 64 overlapping windows at once"
    if options.wants(what):
        yield _row(what, store, windows, 64)
    # 16 shards of 16 inner chunks; the first inner chunk of each shard.
    sharded = data.in_memory(data.many_variables(1, 16), shards=True)
    corners = [
        {"y": slice(y, y + 50), "x": slice(x, x + 50)}
        for y in range(0, 800, 200)
        for x in range(0, 800, 200)
    ]
    beside = [
        {"y": slice(y, y + 50), "x": slice(x + 50, x + 100)}
        for y in range(0, 800, 200)
        for x in range(0, 800, 200)
    ]
    what = "one corner of each of 16 shards"
    if options.wants(what):
        yield _row(what, sharded, corners, 2 * 16)
    what = "another corner, with a cache"
    if options.wants(what):
        yield _row(what, sharded, beside, 16, before=corners)
    what = "16 shards, in 64 overlapping windows at once"
    if options.wants(what):
        # 16 requests for indexes, and up to 16 ranges in each shard.
        windows = [
            {"y": slice(y, y + 150), "x": slice(x, x + 150)}
            for y in range(0, 640, 80)
            for x in range(0, 640, 80)
        ]
        yield _row(what, sharded, windows, 16 + 16 * 16)


def _row(
    what: str,
    stored: MemoryStore,
    parts: Sequence[_Part],
    goal: int,
    before: Sequence[_Part] = (),
) -> PeerRow:
    """Count the requests for ``parts``, after the parts in ``before`` were loaded."""
    delayed = LatencyStore(stored, 0)
    counting = RecordingStore(delayed)
    expected = plain_load([data.opened(stored).isel(part) for part in parts])
    cells: dict[str, float | str] = dict(OTHERS)
    for name, load in LOADS.items():
        try:
            with (
                pipeline(FUSED_PATH) if name == FUSED.name else nullcontext(),
                aioxarray.config.set(cache="1GiB" if before else 0),
            ):
                delayed.latency_s = 0
                whole = data.opened(counting)
                delayed.latency_s = LATENCY_S
                asyncio.run(load([whole.isel(part) for part in before]))
                counting.log.clear()
                result = asyncio.run(load([whole.isel(part) for part in parts]))
            check_same(result, expected)
            cells[name] = float(counting.log.count("get", "*/c/*"))
        except Unavailable as error:
            cells[name] = str(error)
    return PeerRow(what, "", cells, (Bound(goal),))
