"""How many requests depend on each other, as exact seconds of a virtual clock.

Each request takes one second, so the time of a load is the number of its round trips.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore, RecordingStore, VirtualClock
from tests.concurrency.helpers import lazily, plain, same, written
from tests.samples import opened, opened_tree

if TYPE_CHECKING:
    from zarr.abc.store import Store


class Slow:
    """A store of one second a request, counted; opening it beforehand takes no time."""

    def __init__(self, store: Store) -> None:
        self._latency = LatencyStore(store, 0.0)
        self.store = RecordingStore(self._latency)

    def opened(self) -> xr.Dataset:
        ds = lazily(self.store)
        self.begin()
        return ds

    def begin(self) -> None:
        self.store.log.clear()
        self._latency.latency_s = 1.0

    @property
    def requests(self) -> int:
        return len(self.store.log.requests)


def trips(obj: Any, **options: Any) -> float:
    """Load ``obj`` and return how many round trips that took."""
    clock = VirtualClock()
    clock.run(lambda: aioxarray.load_async(obj, **options))
    return clock.elapsed_s


@pytest.mark.parametrize("method", ["load_async", "compute_async"])
def test_forty_variables_are_one_round_trip(method: str) -> None:
    slow = Slow(written(40, 1))
    ds = slow.opened()
    clock = VirtualClock()
    same(clock.run(lambda: getattr(aioxarray, method)(ds)), 40, 1)
    assert (clock.elapsed_s, slow.requests) == (1.0, 40)


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize(
    ("concurrency", "expected"), [(100, 10), (1000, 1), (0, 1), (-1, 1), (64, 16), (1, 1000)]
)
def test_a_thousand_chunks_take_as_many_round_trips_as_the_limit_asks_for(
    concurrency: int, expected: int
) -> None:
    slow = Slow(written(10, 100))
    ds = slow.opened()
    assert trips(ds, concurrency=concurrency) == expected
    assert slow.requests == 1000
    assert slow.store.log.most_in_flight == (concurrency if concurrency > 0 else 1000)
    same(ds, 10, 100)


def test_the_limit_may_be_a_setting() -> None:
    slow = Slow(written(1, 100))
    ds = slow.opened()
    with aioxarray.config.set(concurrency=20):
        assert trips(ds) == 5
    assert slow.store.log.most_in_flight == 20


def test_a_tree_of_thirteen_nodes_is_one_round_trip() -> None:
    nodes = ["/", "/a", "/b", "/c", *(f"/{top}/{name}" for top in "abc" for name in "xyz")]
    assert len(nodes) == 13
    tree = xr.DataTree.from_dict({node: plain(3, 1) for node in nodes})
    memory = MemoryStore()
    tree.to_zarr(memory, zarr_format=3)
    slow = Slow(memory)
    lazy_tree = opened_tree(slow.store)
    slow.begin()
    clock = VirtualClock()
    clock.run(lambda: lazy_tree.load_async())
    assert (clock.elapsed_s, slow.requests) == (1.0, 39)
    assert lazy_tree.identical(tree)


def test_several_datasets_are_one_round_trip() -> None:
    slow = [Slow(written(40, 1)) for _ in range(5)]
    nest = {
        "list": [each.opened() for each in slow[:3]],
        "rest": tuple(s.opened() for s in slow[3:]),
    }
    assert trips(nest, concurrency=400) == 1
    assert [each.requests for each in slow] == [40] * 5


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "selection",
    [
        {"x": [0, 9, 70]},
        {"x": slice(None, None, 7)},
        {"x": xr.DataArray([[3, 60], [2, 1]], dims=("a", "b"))},
        {"x": np.arange(80) % 3 == 0},
    ],
    ids=["array", "steps", "vectorized", "mask"],
)
def test_a_selection_is_one_round_trip(zarr_format: int, selection: dict[str, Any]) -> None:
    memory = MemoryStore()
    plain(4, 10).to_zarr(memory, zarr_format=zarr_format)
    slow = Slow(memory)
    ds = opened(slow.store)
    part = ds.isel(selection)
    slow.begin()
    assert trips(part) == 1
    xr.testing.assert_identical(part, plain(4, 10).isel(selection))


def test_a_missing_chunk_costs_no_more_than_another() -> None:
    memory = written(2, 4)
    asyncio.run(memory.delete("v0/c/2"))
    slow = Slow(memory)
    ds = slow.opened()
    assert trips(ds) == 1
    assert slow.requests == 8
    expected = plain(2, 4)
    expected.v0[16:24] = 0
    xr.testing.assert_identical(ds, expected)


def test_data_in_memory_makes_no_request() -> None:
    slow = Slow(written(2, 4))
    ds = slow.opened()
    assert trips(ds) == 1
    assert trips(ds) == 0
    assert slow.requests == 8


# --- shards --------------------------------------------------------------------------------


def sharded(variables: int = 1, shards: int = 4) -> Slow:
    """Shards of eight chunks of eight numbers each."""
    return Slow(written(variables, 8 * shards, shard=64))


def test_whole_shards_are_one_round_trip() -> None:
    slow = sharded(variables=3)
    ds = slow.opened()
    assert trips(ds) == 1
    assert slow.requests == 12
    same(ds, 3, 32)


def test_one_chunk_of_each_shard_is_two_round_trips() -> None:
    slow = sharded(variables=3)
    ds = slow.opened().isel(x=slice(3, None, 64))
    # The index of each shard, then the chunk.
    assert trips(ds) == 2
    assert slow.requests == 24
    xr.testing.assert_identical(ds, plain(3, 32).isel(x=slice(3, None, 64)))


def test_many_chunks_of_each_shard_are_two_round_trips() -> None:
    slow = sharded(variables=3)
    part = {"x": [i for i in range(256) if i % 64 // 8 in (0, 3, 4, 7)]}
    ds = slow.opened().isel(part)
    assert trips(ds) == 2
    xr.testing.assert_identical(ds, plain(3, 32).isel(part))


# --- side by side --------------------------------------------------------------------------


def test_three_loads_side_by_side_share_the_limit() -> None:
    slow = [Slow(written(1, 100)) for _ in range(3)]
    datasets = [each.opened() for each in slow]
    ended: dict[int, float] = {}

    async def load(index: int) -> None:
        await aioxarray.load_async(datasets[index])
        ended[index] = clock.elapsed_s

    async def main() -> None:
        await asyncio.gather(*(load(index) for index in range(3)))

    clock = VirtualClock()
    with aioxarray.config.set(concurrency=20):
        clock.run(main)
    # 300 requests, 20 at a time; and each load gets its turns, so that they end together.
    assert clock.elapsed_s == 15
    assert min(ended.values()) >= 13
    for ds in datasets:
        same(ds, 1, 100)


def test_a_small_load_is_not_kept_by_a_large_one() -> None:
    large, small = Slow(written(1, 400)), Slow(written(1, 10))
    first, second = large.opened(), small.opened()

    async def main() -> float:
        task = asyncio.create_task(aioxarray.load_async(first))
        await asyncio.sleep(3)
        await aioxarray.load_async(second)
        ended = clock.elapsed_s
        await task
        return ended

    clock = VirtualClock()
    with aioxarray.config.set(concurrency=20):
        # Half of the places that are given back at 4 s are its: all ten are there at 5 s.
        assert clock.run(main) <= 5
    assert clock.elapsed_s == 21
    same(second, 1, 10)


# --- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "at_once"), [("640 B", 10), (64, 1), (63, 1), (0, 64)])
def test_the_memory_setting_bounds_the_bytes_in_flight(memory: str | int, at_once: int) -> None:
    # Chunks of 64 bytes, decoded.
    slow = Slow(written(4, 25))
    ds = slow.opened()
    with aioxarray.config.set(memory=memory, concurrency=64):
        assert trips(ds) == -(-100 // at_once)
    assert slow.store.log.most_in_flight == at_once
    same(ds, 4, 25)


def test_the_memory_setting_bounds_all_loads_together() -> None:
    slow = [Slow(written(1, 25)) for _ in range(4)]
    datasets = [each.opened() for each in slow]

    async def main() -> None:
        await asyncio.gather(*(aioxarray.load_async(ds) for ds in datasets))

    clock = VirtualClock()
    with aioxarray.config.set(memory="640 B", concurrency=64):
        clock.run(main)
    assert clock.elapsed_s == 10
