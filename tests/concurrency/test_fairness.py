"""A small load beside a large one is not starved, nor a large one by small ones.

The stores answer after a second of a virtual clock, so the second in which a load ends tells how
many waves of requests it took. Waiting in one queue for all, a small load would end last.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import aioxarray
from aioxarray._zarr import reading
from aioxarray.testing import GatedStore, LatencyStore, RecordingStore, VirtualClock
from tests.concurrency.helpers import PATIENCE_S, lazily, same, written

if TYPE_CHECKING:
    import xarray as xr

LIMIT = 10


class Slow:
    """A dataset that takes a second a request, and the second in which its load ended."""

    def __init__(self, variables: int, chunks: int, shard: int | None = None) -> None:
        latency = LatencyStore(written(variables, chunks, shard=shard), 0.0)
        self.store = RecordingStore(latency)
        self.ds = lazily(self.store)
        self.store.log.clear()
        latency.latency_s = 1.0
        self._shape = variables, chunks
        self.ended_s = 0.0

    async def load(self, clock: VirtualClock, **options: Any) -> None:
        await aioxarray.load_async(self.ds, **options)
        self.ended_s = clock.elapsed_s
        same(self.ds, *self._shape)


def run_beside(
    large: Slow, others: Callable[[VirtualClock], Coroutine[Any, Any, object]], **options: Any
) -> None:
    """Load ``large``; half a second later, with all places taken, begin ``others``."""

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(large.load(clock, **options))
            await asyncio.sleep(0.5)
            assert large.store.log.in_flight == LIMIT
            await others(clock)

    clock = VirtualClock()
    clock.run(main)
    assert large.store.log.most_in_flight <= LIMIT


# Forty variables, so that four hundred requests wait before the small load comes.
LARGE = (40, 10)


@pytest.mark.parametrize("setting", ["concurrency", "memory"])
def test_a_small_load_goes_between_the_requests_of_a_large_one(setting: str) -> None:
    bytes_of_a_chunk = 64
    limit = LIMIT if setting == "concurrency" else LIMIT * bytes_of_a_chunk
    large, small = Slow(*LARGE), Slow(3, 1)
    with aioxarray.config.set({setting: limit}):
        run_beside(large, small.load)
    # In the second wave already: three of the ten places that the first one gave back.
    assert small.ended_s == 2
    assert large.ended_s == 41


def test_each_round_trip_of_a_small_load_in_a_shard_is_in_the_next_wave() -> None:
    large, small = Slow(*LARGE), Slow(1, 16, shard=64)
    small.ds = small.ds.isel(x=slice(0, 8))
    with aioxarray.config.set(concurrency=LIMIT):
        run_beside(large, functools.partial(_load_part, small))
    # The index of the shard from 1 to 2, and the chunk in it at once or in the wave after that.
    assert small.ended_s in (3, 4)


async def _load_part(small: Slow, clock: VirtualClock) -> None:
    await aioxarray.load_async(small.ds)
    small.ended_s = clock.elapsed_s
    assert small.ds.v0.values.tolist() == list(range(8))


def test_many_small_loads_all_have_their_turn() -> None:
    large, small = Slow(*LARGE), [Slow(2, 1) for _ in range(12)]

    async def all_small(clock: VirtualClock) -> None:
        async with asyncio.TaskGroup() as tasks:
            for each in small:
                tasks.create_task(each.load(clock))

    with aioxarray.config.set(concurrency=LIMIT):
        run_beside(large, all_small)
    # Thirteen shares take turns at ten places: 24 requests, and two or three of the large load.
    assert max(each.ended_s for each in small) == 4
    assert large.ended_s == 43


def test_a_large_load_goes_on_beside_small_ones_without_end() -> None:
    large = Slow(10, 10)
    count = 0

    async def one_after_another(clock: VirtualClock) -> None:
        nonlocal count
        while not large.ended_s:
            await Slow(LIMIT, 1).load(clock)
            count += 1

    with aioxarray.config.set(concurrency=LIMIT):
        run_beside(large, one_after_another)
    # Alone it takes ten seconds; of each wave it has half, at least.
    assert 10 < large.ended_s <= 21
    assert count >= 4


def test_an_own_limit_of_the_large_load_leaves_the_rest_to_others() -> None:
    """Its own limit of ten is not the setting's thirty: the small load need not wait at all."""
    large, small = Slow(*LARGE), Slow(20, 1)
    with aioxarray.config.set(concurrency=3 * LIMIT):
        run_beside(large, small.load, concurrency=LIMIT)
    assert small.ended_s == 1.5
    assert large.ended_s == 40


def test_a_small_load_of_another_thread_is_next() -> None:
    """Over loops and threads too: each place that is given back goes to the next in turn."""
    gates = [GatedStore(written(*shape), keys="*/c/*") for shape in (LARGE, (2, 1))]
    datasets = [lazily(gate) for gate in gates]
    with (
        aioxarray.config.set(concurrency=LIMIT),
        ThreadPoolExecutor(2, thread_name_prefix="caller") as threads,
    ):
        try:
            large = threads.submit(_run_own_loop, datasets[0])
            gates[0].wait_requested("*/c/*", PATIENCE_S, count=LIMIT)
            small = threads.submit(_run_own_loop, datasets[1])
            _wait_until_both_wait(2)
            assert gates[1].waiting == ()
            # Four places become free, one after another: two of them are the small load's.
            for key in gates[0].waiting[:4]:
                gates[0].release(key)
            gates[1].wait_requested("*/c/*", PATIENCE_S, count=2)
            gates[1].release_all()
            small.result(PATIENCE_S)
            assert not large.done()
        finally:
            for gate in gates:
                gate.release_all()
        large.result(PATIENCE_S)
    same(datasets[0], *LARGE)
    same(datasets[1], 2, 1)


def _run_own_loop(ds: xr.Dataset) -> None:
    asyncio.run(aioxarray.load_async(ds))


def _wait_until_both_wait(count: int) -> None:
    """Wait until two loads wait for places, the smaller one with ``count`` requests."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        waiting = sorted(len(share.waiting) for share in reading.requests._shares)
        if len(waiting) == 2 and count == waiting[0] < waiting[1]:
            return
        assert time.monotonic() < deadline
        time.sleep(0.001)
