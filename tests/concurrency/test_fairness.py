"""A small load beside a large one is not starved, nor a large one by small ones.

The stores answer after a second of a virtual clock, so the second in which a load ends tells how
many waves of requests it took. Waiting in one queue for all, a small load would end last.
"""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr import tuning
from aioxarray._zarr.stores import grants
from aioxarray._zarr.stores.observing.observers import Observer, Origin, observed
from aioxarray.testing import GatedStore, LatencyStore, RecordingStore, VirtualClock
from tests.concurrency.helpers import PATIENCE_S, lazily, plain, same, written
from tests.runtime.helpers import settle
from tests.samples import opened

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.parametrize("setting", ["concurrency", "memory"])
@pytest.mark.parametrize("limit", [1, 2, 3, 8, 100, 0], ids=lambda limit: f"limit {limit}")
def test_a_small_load_has_every_other_place_at_every_limit(limit: int, setting: str) -> None:
    """Zero is no limit: then nothing waits."""
    bytes_of_a_chunk, requests = 64, 3
    large, small = Slow(*LARGE), Slow(requests, 1)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(large.load(clock))
            await asyncio.sleep(0.5)
            await small.load(clock)

    value = limit if setting == "concurrency" else limit * bytes_of_a_chunk
    clock = VirtualClock()
    with aioxarray.config.set({"concurrency": 0, "memory": 0, setting: value}):
        clock.run(main)
    if limit == 0:
        assert (small.ended_s, large.ended_s) == (1.5, 1)
        return
    # After the first wave, the two loads have every other place until the small one has its last.
    assert small.ended_s <= 1 + math.ceil((2 * requests - 1) / limit)
    # Nor does a place stay free.
    assert large.ended_s <= math.ceil((40 * 10 + requests) / limit)


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
    gates = [GatedStore(written(*shape), keys="*/c/*") for shape in ((20, 10), (2, 1))]
    datasets = [lazily(gate) for gate in gates]

    def held() -> list[int]:
        return [len(gate.waiting) for gate in gates]

    async def main() -> None:
        # Time passes when nothing else goes on, in this loop or in the threads.
        large = asyncio.create_task(asyncio.to_thread(_run_own_loop, datasets[0]))
        await asyncio.sleep(1)
        assert held() == [LIMIT, 0]
        small = asyncio.create_task(asyncio.to_thread(_run_own_loop, datasets[1]))
        await asyncio.sleep(1)
        # A worker for each variable and as many as may be in flight, except those that are, and the
        # two of the small load.
        assert grants.requests.statistics().waiting == 20 + LIMIT - LIMIT + 2
        assert held() == [LIMIT, 0]
        # Four places become free, one after another: two of them are the small load's.
        for key in gates[0].waiting[:4]:
            gates[0].release(key)
        await asyncio.sleep(1)
        # The two others are the large load's.
        assert held() == [LIMIT - 4 + 2, 2]
        gates[1].release_all()
        await small
        assert not large.done()
        gates[0].release_all()
        await large

    with aioxarray.config.set(concurrency=LIMIT):
        VirtualClock().run(main)
    same(datasets[0], 20, 10)
    same(datasets[1], 2, 1)


class Steps(Observer):
    """An observer that holds the reads of "large" in their threads, and lets them go in steps.

    After each step it waits until all threads are held again: then a load that takes turns with
    this one has no thread.

    Attributes
    ----------
    others
        The number of reads for other variables that are done.
    """

    def __init__(self, threads: int) -> None:
        self.others = 0
        self._threads = threads
        self._changed = threading.Condition()
        self._held: deque[int] = deque()
        self._arrived = 0
        self._is_open = False

    def read(self, origin: Origin, key: str, *details: Any) -> None:
        self.others += key.startswith("small/c/")
        if key.startswith("large/c/"):
            with self._changed:
                self._arrived += 1
                number = self._arrived
                self._held.append(number)
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._is_open or number not in self._held, PATIENCE_S
                )

    def wait(self) -> None:
        """Wait until all threads are held."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) == self._threads, PATIENCE_S)

    def step(self) -> None:
        """Let the read go that has been held for longest."""
        with self._changed:
            self._held.popleft()
            self._changed.notify_all()
        self.wait()

    def open(self) -> None:
        """Hold no read any more."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("shard", [None, 8 * 4096], ids=["chunks", "shards"])
def test_a_small_load_goes_between_the_runs_of_a_large_one_in_threads(
    threads: int, shard: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From local files. A thread makes way at the end of a run, here of four chunks of 32 KiB."""
    monkeypatch.setattr(tuning, "TURN_S", 0)
    monkeypatch.setattr(tuning, "READ_RUN_BYTES", 4 * 32 << 10)
    data = plain(1, 128, 4096).rename(v0="large")
    data["large"].encoding["shards"] = shard and (shard,)
    data["small"] = ("y", np.arange(3 * 4096))
    data["small"].encoding["chunks"] = (4096,)
    data.to_zarr(tmp_path, zarr_format=3, consolidated=False)
    ds = opened(tmp_path, consolidated=False)
    asks = threading.Event()
    in_thread = grants.Grants.in_thread

    def spy(granted: grants.Grants, *args: Any, **options: Any) -> Any:
        asks.set()
        return in_thread(granted, *args, **options)

    steps = 0
    with (
        aioxarray.config.set(threads=threads),
        observed(gate := Steps(threads)),
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            large = pool.submit(aioxarray.load, ds[["large"]])
            gate.wait()
            monkeypatch.setattr(grants.Grants, "in_thread", spy)
            small = pool.submit(aioxarray.load, ds[["small"]])
            assert asks.wait(PATIENCE_S)
            # By then, it waits for a thread.
            run_blocking(settle)
            while gate.others < 3:
                gate.step()
                steps += 1
        finally:
            gate.open()
        xr.testing.assert_identical(large.result(PATIENCE_S), data[["large"]])
        xr.testing.assert_identical(small.result(PATIENCE_S), data[["small"]])
    # A run of each thread, and three that have their turn between those of the small load.
    assert steps <= 4 * (threads + 3)


def _run_own_loop(ds: xr.Dataset) -> None:
    asyncio.run(aioxarray.load_async(ds))


# A decoded chunk of these is more than 4 MiB: places for it are held for long.
LARGE_CHUNK = 1 << 20


def large_chunks(count: int) -> MemoryStore:
    """Return a store of ``count`` chunks of 8 MiB, none of which is there: all are requested."""
    store = MemoryStore()
    zarr.create_array(
        store,
        name="v0",
        shape=(count * LARGE_CHUNK,),
        chunks=(LARGE_CHUNK,),
        dtype="f8",
        dimension_names=["x"],
    )
    return store


@pytest.mark.parametrize(
    ("concurrency", "memory"),
    [(LIMIT, "4MiB"), (LIMIT, "8MiB"), (LIMIT, "17MiB"), (4, "1GiB"), (0, "8MiB")],
    ids=["over-sized", "just one", "a few", "requests", "no limit of requests"],
)
def test_a_small_load_does_not_wait_for_the_end_of_large_chunks(
    concurrency: int, memory: str
) -> None:
    """A small chunk takes a second, a large one a hundred."""
    slow, quick = LatencyStore(large_chunks(6), 0.0), LatencyStore(written(1, 1), 0.0)
    large, small = lazily(slow), [lazily(quick) for _ in range(3)]
    slow.latency_s, quick.latency_s = 100.0, 1.0
    waited_s: list[float] = []

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(aioxarray.load_async(large))
            await asyncio.sleep(0.5)
            for each in small:
                begun_s = clock.elapsed_s
                await aioxarray.load_async(each)
                waited_s.append(clock.elapsed_s - begun_s)

    clock = VirtualClock()
    with aioxarray.config.set(concurrency=concurrency, memory=memory):
        clock.run(main)
    # Its own round trip.
    assert waited_s == [1, 1, 1]
    assert large.v0.size == 6 * LARGE_CHUNK


def test_many_small_loads_beside_large_chunks_keep_to_the_limit() -> None:
    slow, quick = LatencyStore(large_chunks(12), 0.0), LatencyStore(written(40, 1), 0.0)
    counter = RecordingStore(quick)
    large, small = lazily(slow), lazily(counter)
    slow.latency_s, quick.latency_s = 100.0, 1.0
    counter.log.clear()
    ended_s = []

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(aioxarray.load_async(large))
            await asyncio.sleep(0.5)
            await aioxarray.load_async(small)
            ended_s.append(clock.elapsed_s)

    clock = VirtualClock()
    with aioxarray.config.set(concurrency=8):
        clock.run(main)
    # Seven places have large chunks; one is left, for one after the other.
    assert (counter.log.most_in_flight, ended_s) == (1, [40.5])
    # The large load has not waited for them.
    assert clock.elapsed_s == 200
