"""Benchmark of the most requests in flight at once, counted at the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import aioxarray
from aioxarray.testing import LatencyStore, RecordingStore
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, check_same, copies, plain_load
from benchmarks.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.storage import MemoryStore

TITLE = "Most requests in flight, concurrency=20"
TABLE = Row
LIMIT = 20
# Long enough for requests to pile up where nothing limits them.
LATENCY_S = 0.005


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    side = 4 if options.quick else 8
    three = data.store_of({f"d{i}": data.many_variables(4, side) for i in range(3)})
    sharded = data.store_of({"d0": data.many_variables(4, 2 * side)}, shards=True)
    with aioxarray.config.set(concurrency=LIMIT):
        yield _row("3 concurrent loads", _Counted(three, 3), _side_by_side)
        yield _row("2 threads, each with its own loop", _Counted(three, 2), _in_threads)
        # One row of chunks from each row of shards: a whole shard would be one request.
        part = {"y": np.arange(10, 100 * side, 200)}
        yield _row("inside shards (byte ranges)", _Counted(sharded, 1, part), _side_by_side)


class _Counted:
    """Datasets in one store that counts requests."""

    def __init__(
        self, store: MemoryStore, datasets: int, part: dict[str, NDArray[Any]] | None = None
    ) -> None:
        delayed = LatencyStore(store, 0)
        counting = RecordingStore(delayed)
        self.log = counting.log
        self.lazy = [data.opened(counting, group=f"d{i}").isel(part or {}) for i in range(datasets)]
        self.expected = plain_load(copies(self.lazy))
        delayed.latency_s = LATENCY_S

    def most_in_flight(self, together: _Together, load: _Load) -> int:
        """Return the most requests in flight at once while all datasets were loaded."""
        lazy = copies(self.lazy)
        self.log.clear()
        check_same(together(load, lazy), self.expected)
        return self.log.most_in_flight


_Load = Callable[[xr.Dataset], Coroutine[Any, Any, xr.Dataset]]
_Together = Callable[[_Load, list[xr.Dataset]], list[xr.Dataset]]


def _side_by_side(load: _Load, datasets: list[xr.Dataset]) -> list[xr.Dataset]:
    async def main() -> list[xr.Dataset]:
        return await asyncio.gather(*map(load, datasets))

    return asyncio.run(main())


def _in_threads(load: _Load, datasets: list[xr.Dataset]) -> list[xr.Dataset]:
    with ThreadPoolExecutor(len(datasets)) as threads:
        return list(threads.map(lambda one: asyncio.run(load(one)), datasets))


def _row(what: str, counted: _Counted, together: _Together) -> Row:
    async def plain_blocking(one: xr.Dataset) -> xr.Dataset:
        return await asyncio.to_thread(one.load)

    return Row(
        what,
        "",
        counted.most_in_flight(together, plain_blocking),
        counted.most_in_flight(together, xr.Dataset.load_async),
        counted.most_in_flight(together, aioxarray.load_async),
        LIMIT,
    )
