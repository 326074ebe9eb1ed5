"""How a load finds out whether a store is close by, and what it does then."""

from __future__ import annotations

import asyncio

import numpy as np
import obstore.store
import pytest
import xarray as xr
from zarr.storage import MemoryStore, ObjectStore

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.clients import Nearness
from aioxarray.testing import ObjectServer, VirtualClock


def answers_after(seconds: float, is_near: bool, within: float) -> tuple[list[bool], float]:
    """Return what two that ask are told, and how long they wait."""

    async def run() -> list[bool]:
        nearness = Nearness()
        asking = [asyncio.create_task(nearness.within(within)) for _ in range(2)]
        await asyncio.sleep(seconds)
        nearness.tell(is_near)
        return [await each for each in asking]

    clock = VirtualClock()
    return clock.run(run), clock.elapsed_s


@pytest.mark.parametrize("is_near", [True, False])
def test_reads_wait_for_the_first_answer(is_near: bool) -> None:
    assert answers_after(2, is_near, within=5) == ([is_near, is_near], 2)


def test_a_store_that_has_not_answered_in_time_is_far() -> None:
    async def run() -> bool:
        return await Nearness().within(5)

    clock = VirtualClock()
    assert (clock.run(run), clock.elapsed_s) == (False, 5)


def test_from_a_distant_server_more_is_fetched_at_once_than_threads_could() -> None:
    memory = MemoryStore()
    values = np.arange(64.0).reshape(32, 2)
    ds = xr.Dataset({"a": (("y", "x"), values)})
    ds.to_zarr(memory, encoding={"a": {"chunks": (1, 1)}}, consolidated=True)
    with ObjectServer(latency_s=0.2) as server:
        for key, buffer in memory._store_dict.items():
            server.put(f"data/{key}", buffer.to_bytes())
        client = obstore.store.HTTPStore(f"{server.url}/data", client_options={"allow_http": True})
        lazy = xr.open_zarr(ObjectStore(client), chunks=None)
        server.log.clear()
        aioxarray.load(lazy)
        assert server.log.most_in_flight > 2 * tuning.FETCHERS
        assert server.log.count("GET", "data/a/c/*") == 64
    np.testing.assert_array_equal(lazy.a, values)
