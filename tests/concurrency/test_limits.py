"""Never more requests in flight than the limit says, counted at the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import dask
import pytest
import xarray as xr
import zarr
from zarr.storage import FsspecStore

import aioxarray
from aioxarray.testing import GatedStore, LatencyStore, ObjectServer, RecordingStore, VirtualClock
from tests.concurrency.helpers import PATIENCE_S, lazily, plain, same, written

if TYPE_CHECKING:
    from zarr.abc.store import Store

LIMIT = 20


def unmerged() -> AbstractContextManager[object]:
    """Keep zarr 3.3 and later from merging ranges that lie close together into one request."""
    setting: AbstractContextManager[object] = zarr.config.set(
        {"array.sharding_coalesce_max_gap_bytes": 0}
    )
    return setting


Requests = tuple[GatedStore, RecordingStore]


def gated(store: Store) -> Requests:
    """Return a gate that holds the requests for chunks, and what counts all that pass it or wait.

    Both are in one: the count is taken outside the gate.
    """
    gate = GatedStore(store, keys="*/c/*")
    return gate, RecordingStore(gate)


def in_threads(jobs: list[Callable[[], object]]) -> None:
    """Run each of ``jobs`` in a thread of its own, all at once."""
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="caller") as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result(PATIENCE_S)


def run_own_loop(ds: xr.Dataset, **options: Any) -> None:
    asyncio.run(aioxarray.load_async(ds, **options))


class Opener:
    """Opens datasets of `plain` at stores that hold requests until as many wait as may."""

    def __init__(self, count: int, limit: int, make: Callable[[], Store]) -> None:
        self.limit = limit
        inner = make()
        # One gate for all, so that it sees the requests of all.
        self.gate, self.counter = gated(inner)
        self.datasets = [lazily(self.counter) for _ in range(count)]
        self.counter.log.clear()

    def check_and_release(self) -> None:
        """Wait for as many requests as the limit lets through; then let them and all others go."""
        self.gate.wait_requested("*/c/*", PATIENCE_S, count=self.limit)
        assert len(self.gate.waiting) == self.limit
        self.gate.release_all()

    def assert_kept(self) -> None:
        assert self.counter.log.most_in_flight == self.limit
        assert self.counter.log.in_flight == 0


WAYS: dict[str, Callable[[list[xr.Dataset]], None]] = {
    "a list": lambda datasets: in_threads([lambda: aioxarray.load(datasets)]),
    "threads": lambda datasets: in_threads([lambda ds=ds: aioxarray.load(ds) for ds in datasets]),  # type: ignore[misc]
    "loops": lambda datasets: in_threads([lambda ds=ds: run_own_loop(ds) for ds in datasets]),  # type: ignore[misc]
    "tasks": lambda datasets: asyncio.run(_side_by_side(datasets)),
}


async def _side_by_side(datasets: list[xr.Dataset]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for ds in datasets:
            tasks.create_task(aioxarray.load_async(ds))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shard", [None, 16], ids=["chunks", "whole shards"])
def test_the_setting_holds_over_three_loads_side_by_side(way: str, shard: int | None) -> None:
    opener = Opener(3, LIMIT, lambda: written(4, 20, shard=shard))
    release = threading.Thread(target=opener.check_and_release)
    release.start()
    with aioxarray.config.set(concurrency=LIMIT):
        WAYS[way](opener.datasets)
    release.join()
    opener.assert_kept()
    for ds in opener.datasets:
        same(ds, 4, 20)


@pytest.mark.parametrize("way", WAYS)
def test_byte_ranges_inside_shards_count(way: str) -> None:
    # Eight chunks a shard, of which every other one is wanted: four ranges, where zarr does not
    # merge them.
    limit = 3
    part = {"x": slice(None, None, 16)}
    with unmerged(), aioxarray.config.set(concurrency=limit):
        opener = Opener(3, limit, lambda: written(2, 32, shard=64))
        opener.datasets = [ds.isel(part) for ds in opener.datasets]
        release = threading.Thread(target=opener.check_and_release)
        release.start()
        WAYS[way](opener.datasets)
    release.join()
    opener.assert_kept()
    log = opener.counter.log
    # For each of the 24 shards its index, and four ranges of it.
    assert log.count("get", "*/c/*") == 5 * 24
    assert all(request.byte_range is not None for request in log.requests)
    for ds in opener.datasets:
        xr.testing.assert_identical(ds, plain(2, 32).isel(part))


def test_byte_ranges_inside_one_shard_count() -> None:
    """Once the index is there, the ranges are the only requests: they alone reach the limit."""
    latency = LatencyStore(written(1, 16, shard=128), 0.0)
    store = RecordingStore(latency)
    with unmerged():
        ds = lazily(store).isel(x=slice(None, None, 16))
        store.log.clear()
        latency.latency_s = 1.0
        clock = VirtualClock()
        clock.run(lambda: aioxarray.load_async(ds, concurrency=4))
    assert len(store.log.requests) == 9
    assert store.log.most_in_flight == 4
    assert clock.elapsed_s == 3
    xr.testing.assert_identical(ds, plain(1, 16).isel(x=slice(None, None, 16)))


@pytest.mark.parametrize("concurrency", [0, -1, -100])
def test_zero_or_less_is_no_limit(concurrency: int) -> None:
    opener = Opener(1, 200, lambda: written(10, 20))
    release = threading.Thread(target=opener.check_and_release)
    release.start()
    with aioxarray.config.set(concurrency=concurrency):
        aioxarray.load(opener.datasets)
    release.join()
    opener.assert_kept()


@pytest.mark.parametrize("method", ["load", "compute"])
@pytest.mark.parametrize("concurrency", [1, 7, 100])
def test_a_call_may_have_a_limit_of_its_own(method: str, concurrency: int) -> None:
    opener = Opener(1, concurrency, lambda: written(10, 20))
    release = threading.Thread(target=opener.check_and_release)
    release.start()
    with aioxarray.config.set(concurrency=LIMIT):
        getattr(aioxarray, method)(opener.datasets[0], concurrency=concurrency)
    release.join()
    opener.assert_kept()


def test_all_calls_together_keep_to_the_largest_of_their_limits() -> None:
    opener = Opener(3, 9, lambda: written(10, 20))
    release = threading.Thread(target=opener.check_and_release)
    release.start()
    jobs: list[Callable[[], object]] = [
        lambda ds=ds, limit=limit: aioxarray.load(ds, concurrency=limit)  # type: ignore[misc]
        for ds, limit in zip(opener.datasets, (3, 9, 5), strict=True)
    ]
    in_threads(jobs)
    release.join()
    # Not seventeen. (It may happen that the largest ends first; then fewer are let through.)
    assert opener.counter.log.most_in_flight == 9


def test_reads_by_dask_count_if_aioxarray_opened_the_data() -> None:
    gate, counter = gated(written(4, 20))
    ds = aioxarray.open_zarr(counter, chunks={}, consolidated=False)
    counter.log.clear()

    def release_when_full() -> None:
        gate.wait_requested("*/c/*", PATIENCE_S, count=3)
        gate.release_all()

    release = threading.Thread(target=release_when_full)
    release.start()
    with aioxarray.config.set(concurrency=3), dask.config.set(scheduler="threads", num_workers=8):
        aioxarray.load(ds)
    release.join()
    assert counter.log.most_in_flight == 3
    same(ds, 4, 20)


def test_the_environment_sets_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOXARRAY_CONCURRENCY", "5")
    aioxarray.config.refresh()
    try:
        opener = Opener(1, 5, lambda: written(3, 20))
        release = threading.Thread(target=opener.check_and_release)
        release.start()
        aioxarray.load(opener.datasets)
        release.join()
        opener.assert_kept()
    finally:
        monkeypatch.undo()
        aioxarray.config.refresh()


@pytest.mark.parametrize("way", WAYS)
def test_the_limit_holds_at_an_http_server(way: str) -> None:
    memory = written(4, 20)
    # The latency makes requests meet: long enough for a busy machine to send all that may be sent.
    with ObjectServer(latency_s=0.05) as server:
        datasets = []
        # Equal requests would be made once.
        for name in ("data/a", "data/b", "data/c"):
            for key, value in memory._store_dict.items():
                server.put(f"{name}/{key}", value.to_bytes())
            store = FsspecStore.from_url(f"{server.url}/{name}", read_only=True)
            datasets.append(lazily(store))
        server.log.clear()
        with aioxarray.config.set(concurrency=LIMIT):
            WAYS[way](datasets)
        # 240 requests, so that the limit is reached.
        assert server.log.most_in_flight == LIMIT
        assert server.log.count("GET", "data/*") == 240
        for ds in datasets:
            same(ds, 4, 20)
