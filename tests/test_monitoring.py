"""Statistics of the process: the numbers while a load is under way, and Prometheus' text."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from prometheus_client.parser import text_string_to_metric_families

import aioxarray
from aioxarray._zarr.stores import grants
from aioxarray.testing import GatedStore, RecordingStore
from tests.samples import stored

COUNT = 4


def chunked() -> xr.Dataset:
    ds = xr.Dataset({"v": ("x", np.arange(COUNT * 4.0))})
    ds.v.encoding["chunks"] = (4,)
    return ds


def samples(text: str) -> dict[str, float]:
    """Return the values of the metrics by name, and check that each has a type and a meaning."""
    families = list(text_string_to_metric_families(text))
    assert all(each.documentation.endswith(".") for each in families)
    assert {each.type for each in families} == {"gauge", "counter"}
    return {sample.name: sample.value for each in families for sample in each.samples}


def test_statistics_of_a_load_under_way() -> None:
    gate = GatedStore(stored(chunked()), keys="v/c/*")
    ds = aioxarray.open_zarr(gate)

    async def main() -> aioxarray.Statistics:
        load = asyncio.create_task(aioxarray.load_async(ds, concurrency=3))
        await gate.requested("v/c/*", 3)
        now = aioxarray.statistics()
        gate.release_all()
        await load
        return now

    before = aioxarray.statistics()
    now = asyncio.run(main())
    assert (now.requests.in_use, now.requests.bound, now.requests.shares) == (3, 3, 1)
    assert now.memory.in_use > 0
    assert now.flights.flights == 3
    found = samples(now.to_prometheus())
    assert found["aioxarray_requests_in_use"] == 3
    assert found["aioxarray_requests_limit"] == 3
    assert found["aioxarray_memory_in_use_bytes"] == now.memory.in_use
    assert found["aioxarray_flights"] == 3
    assert found["aioxarray_requests_silent_total"] == before.repeated.silent
    assert before.requests.in_use == aioxarray.statistics().requests.in_use == 0


def test_no_limit_is_infinite() -> None:
    with grants.requests.share(math.inf):
        text = aioxarray.statistics().to_prometheus()
    assert samples(text)["aioxarray_requests_limit"] == math.inf


def test_dropped_records_of_all_traces_are_counted(tmp_path: Path) -> None:
    store = stored(chunked(), consolidated=False)
    chunked().to_zarr(tmp_path, consolidated=False)
    # Chunks in memory, in small files that are read in a row, and behind requests.
    places: list[Any] = [store, tmp_path, RecordingStore(store)]
    each = [aioxarray.open_zarr(place, consolidated=False) for place in places]
    before = aioxarray.statistics().records.dropped
    with aioxarray.trace(most=3 * COUNT) as enough:
        aioxarray.compute(each)
    assert aioxarray.statistics().records.dropped == before
    with aioxarray.trace(most=1) as few, aioxarray.trace(most=COUNT) as more:
        aioxarray.compute(each)
    now = aioxarray.statistics()
    assert (enough.dropped, few.dropped, more.dropped) == (0, 3 * COUNT - 1, 2 * COUNT)
    assert now.records.dropped - before == few.dropped + more.dropped
    found = samples(now.to_prometheus())
    assert found["aioxarray_records_dropped_total"] == now.records.dropped


def test_statistics_of_the_cache() -> None:
    with aioxarray.config.set(cache="1MiB"):
        aioxarray.load(aioxarray.open_zarr(stored(chunked())))
        now = aioxarray.statistics()
    try:
        found = samples(now.to_prometheus())
        assert found["aioxarray_cache_bytes"] == now.cache.nbytes >= COUNT * 32
        assert found["aioxarray_cache_limit_bytes"] == 2**20
        assert now.to_dict()["cache"]["entries"] == now.cache.entries >= COUNT
    finally:
        grants.cache.reset()
