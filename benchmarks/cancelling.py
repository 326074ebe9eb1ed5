"""Benchmark of how long requests continue after a load was cancelled, timed out or failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from time import perf_counter
from typing import Any

import xarray as xr

import aioxarray
from aioxarray.testing import FaultyStore, LatencyStore, RecordingStore
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, check_same
from benchmarks.rows import Cell, Row

TITLE = "How long requests continue after a load has ended early"
TABLE = Row
LATENCY_S = 0.05
# When to cancel: in the middle of the load.
AFTER_S = 0.07
# How long to look for requests that are still in flight.
WATCH_S = 0.5
GOAL_MS = 100.0


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    dataset = data.many_variables(10, 5 if options.quick else 10)
    yield _row("cancelled", _Case(dataset), _cancelled, "cannot")
    yield _row("timed out", _Case(dataset), _timed_out, "cannot")
    failing = _Case(dataset, failing=100)
    yield _row("one chunk failed", failing, _failed, failing.goes_on_ms(_failed, _in_thread))


_Load = Callable[[xr.Dataset], Coroutine[Any, Any, Any]]
# Ends a load early and returns the time at which it should have ended.
_End = Callable[[_Load, xr.Dataset], Coroutine[Any, Any, float]]


class _Case:
    """A dataset in a store that counts and delays requests and, if asked to, fails one."""

    def __init__(self, dataset: xr.Dataset, failing: int = -1) -> None:
        self._faulty = FaultyStore.kth(data.in_memory(dataset), failing, keys="*/c/*")
        delayed = LatencyStore(self._faulty, 0)
        counting = RecordingStore(delayed)
        self._log = counting.log
        self._dataset = dataset
        self._lazy = data.opened(counting)
        delayed.latency_s = LATENCY_S

    def goes_on_ms(self, end: _End, load: _Load) -> float:
        """Return how long requests continued after ``end`` should have ended the load."""
        self._faulty.restart()
        return asyncio.run(self._watch(end, load, self._lazy.copy(deep=False)))

    async def _watch(self, end: _End, load: _Load, dataset: xr.Dataset) -> float:
        due = await end(load, dataset)
        now = quiet_since = perf_counter()
        until = now + WATCH_S
        while (now := perf_counter()) < until:
            if self._log.in_flight:
                quiet_since = now
            await asyncio.sleep(0.001)
        return (quiet_since - due) * 1000

    def check_still_lazy(self, end: _End) -> None:
        """Raise AssertionError unless a load that ended early can be repeated from the start."""
        self._faulty.restart()
        dataset = self._lazy.copy(deep=False)
        asyncio.run(end(_ours, dataset))
        self._log.clear()
        check_same(aioxarray.load(dataset), self._dataset)
        chunks = sum(variable.size for variable in self._dataset.variables.values()) // 50**2
        assert self._log.count("get", "*/c/*") == chunks


def _row(what: str, case: _Case, end: _End, plain: Cell) -> Row:
    row = Row(
        what,
        "ms",
        plain,
        case.goes_on_ms(end, xr.Dataset.load_async),
        case.goes_on_ms(end, _ours),
        GOAL_MS,
    )
    case.check_still_lazy(end)
    return row


async def _ours(dataset: xr.Dataset) -> None:
    await aioxarray.load_async(dataset, concurrency=100)


async def _in_thread(dataset: xr.Dataset) -> None:
    await asyncio.to_thread(dataset.load)


async def _cancelled(load: _Load, dataset: xr.Dataset) -> float:
    task = asyncio.create_task(load(dataset))
    await asyncio.sleep(AFTER_S)
    due = perf_counter()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    return due


async def _timed_out(load: _Load, dataset: xr.Dataset) -> float:
    due = perf_counter() + AFTER_S
    try:
        if load is _ours:
            await aioxarray.load_async(dataset, concurrency=100, timeout=AFTER_S)
        else:
            async with asyncio.timeout(AFTER_S):
                await load(dataset)
    except TimeoutError:
        return due
    raise AssertionError("there was time enough")


async def _failed(load: _Load, dataset: xr.Dataset) -> float:
    try:
        await load(dataset)
    except OSError:
        return perf_counter()
    raise AssertionError("no chunk failed")
