"""Plans beside traces: each reason for which a load makes other requests than were planned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray import explain
from aioxarray._tracing.comparison import REASONS, Comparison, compare
from aioxarray.testing import GatedStore, ObjectServer, RecordingStore
from tests.concurrency.clients import fsspec_http, obstore_http
from tests.concurrency.helpers import followed
from tests.samples import contents, opened, stored

CHUNKS = 8


def sample() -> xr.Dataset:
    """Two variables of `CHUNKS` chunks that are not compressed, and one in two shards."""
    values = np.arange(CHUNKS * 4.0)
    ds = xr.Dataset(dict.fromkeys(["a", "b", "sharded"], ("x", values)))
    for name, variable in ds.variables.items():
        variable.encoding = {"chunks": (4,), "compressors": None}
        if name == "sharded":
            variable.encoding["shards"] = (16,)
    return ds


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        for key, value in contents(stored(sample(), consolidated=False)).items():
            server.put(key, value)
        yield server


def lazily(server: ObjectServer) -> xr.Dataset:
    """Return the data behind the server, opened, with an empty log."""
    ds = opened(obstore_http(server.url), consolidated=False)
    server.log.clear()
    return ds


def compared(obj: Any, made: Callable[[], Any]) -> Comparison:
    """Return the plan of a load of ``obj``, beside the requests of ``made()``."""
    plan = explain(obj)
    with aioxarray.trace() as t:
        made()
    return t.compare(plan)


def assert_adds_up(found: Comparison) -> None:
    for each in (*found.variables, found.total):
        assert each.planned_requests is not None
        assert each.requests == each.planned_requests + sum(each.reasons.values())
        assert set(each.reasons) <= set(REASONS)


def test_a_load_as_planned_needs_no_reason(server: ObjectServer) -> None:
    ds = lazily(server)
    found = compared(ds, lambda: aioxarray.compute(ds))
    assert found.total.requests == found.total.planned_requests == server.log.count("GET")
    assert found.total.bytes == found.total.planned_bytes
    assert found.total.planned_round_trips == 1
    assert (found.total.reasons, found.elsewhere, found.dropped) == ({}, {}, 0)
    assert_adds_up(found)


def test_cached_chunks(server: ObjectServer) -> None:
    ds = lazily(server)
    plan = explain(ds)
    with aioxarray.config.set(cache="1MiB"):
        aioxarray.compute(ds.isel(x=slice(0, 12)))
        server.log.clear()
        with aioxarray.trace() as t:
            aioxarray.compute(ds)
        found = t.compare(plan)
    reasons = {each.name: each.reasons for each in found.variables}
    assert reasons["a"] == reasons["b"] == {"cached": -3}
    assert found.total.requests == server.log.count("GET")
    assert_adds_up(found)


def test_chunks_that_were_cached_when_planned(server: ObjectServer) -> None:
    ds = lazily(server)[["a"]]
    with aioxarray.config.set(cache="1MiB"):
        aioxarray.compute(ds.isel(x=slice(0, 12)))
        plan = explain(ds)
    server.log.clear()
    with aioxarray.config.set(cache=0), aioxarray.trace() as t:
        aioxarray.compute(ds)
    found = t.compare(plan)
    assert found.total.reasons == {"gone": 3}
    assert found.total.requests == server.log.count("GET") == CHUNKS
    assert_adds_up(found)


def test_the_rest_of_shards(server: ObjectServer) -> None:
    # A little more than the largest gap in a range, 1 MiB.
    length = (1 << 17) + 1
    large = xr.Dataset({"v": ("y", np.arange(3.0 * length))})
    large.v.encoding = {"chunks": (length,), "shards": (3 * length,), "compressors": None}
    for key, value in contents(stored(large, consolidated=False)).items():
        server.put(key, value)
    ds = lazily(server)[["v"]]
    plan = explain(ds)
    with aioxarray.config.set(cache="16MiB"):
        # The middle of the shard: the rest is two ranges, too far apart for one request.
        aioxarray.compute(ds.isel(y=slice(length, 2 * length)))
        server.log.clear()
        with aioxarray.trace() as t:
            aioxarray.compute(ds)
        found = t.compare(plan)
    assert found.total.requests == server.log.count("GET") == 2
    assert found.total.reasons == {"in parts": 1}
    assert_adds_up(found)


@pytest.mark.parametrize("scope", ["process", "block"])
def test_another_load_at_the_same_time(scope: Any) -> None:
    gate = GatedStore(stored(sample(), consolidated=False), keys="a/c/*")
    ds = opened(gate, consolidated=False)[["a"]]
    plan = explain(ds)

    async def main() -> aioxarray.Trace:
        other = asyncio.create_task(aioxarray.compute_async(ds.isel(x=slice(0, 12))))
        await gate.requested("a/c/*", 3)
        async with aioxarray.trace(scope=scope) as t:
            mine = asyncio.create_task(aioxarray.compute_async(ds))
            await followed(3)
            gate.release_all()
            await asyncio.gather(other, mine)
        return t

    with aioxarray.config.set(cache=0):
        found = asyncio.run(main()).compare(plan)
    # The requests of the other load began before the trace, which does not have them.
    assert found.total.reasons == {"shared": -3}
    assert_adds_up(found)


def test_the_same_load_by_another_caller(server: ObjectServer) -> None:
    ds = lazily(server)[["a"]]
    other = lazily(server)[["b"]]

    def made() -> None:
        for each in (ds, ds.isel(x=slice(0, 8)), other):
            aioxarray.compute(each)

    found = compared(ds, made)
    assert found.total.reasons == {"others": 2}
    assert found.elsewhere == {"data": CHUNKS}
    assert found.total.requests + CHUNKS == server.log.count("GET")
    assert_adds_up(found)


def test_retries(server: ObjectServer) -> None:
    ds = lazily(server)
    server.fail("a/c/3", 503, times=2)
    with aioxarray.config.set({"retry.backoff_s": 0.0}):
        found = compared(ds, lambda: aioxarray.compute(ds))
    assert found.total.reasons == {"retries": 2}
    assert (found.total.failed, found.total.cancelled) == (2, 0)
    assert found.total.requests == server.log.count("GET")
    assert found.total.bytes == found.total.planned_bytes
    assert_adds_up(found)


def test_cancelled_loads() -> None:
    gate = GatedStore(stored(sample(), consolidated=False), keys="a/c/*")
    ds = opened(gate, consolidated=False)[["a"]]

    async def main() -> None:
        mine = asyncio.create_task(aioxarray.compute_async(ds, concurrency=2))
        await gate.requested("a/c/*", 2)
        mine.cancel()
        await asyncio.wait([mine])

    found = compared(ds, lambda: asyncio.run(main()))
    assert found.total.cancelled == found.total.requests
    assert found.total.reasons == {"not made": found.total.requests - CHUNKS}
    assert found.total.bytes == 0
    assert_adds_up(found)


def test_neighbours_in_shards(server: ObjectServer) -> None:
    ds = lazily(server)[["sharded"]].isel(x=slice(0, 12))
    found = compared(ds, lambda: aioxarray.compute(ds))
    assert found.total.reasons == {"together": -2}
    assert found.total.requests == server.log.count("GET") == 2
    assert (found.total.planned_round_trips, found.total.in_a_row) == (2, 2)
    assert_adds_up(found)


def test_dropped_requests_are_named(server: ObjectServer) -> None:
    ds = lazily(server)[["a"]]
    plan = explain(ds)
    with aioxarray.trace(most=3) as t:
        aioxarray.compute(ds)
    found = t.compare(plan)
    assert found.dropped == CHUNKS - 3
    assert "5 older requests dropped" in str(found)
    assert_adds_up(found)


def test_variables_of_one_name_are_told_apart() -> None:
    one, other = (
        opened(RecordingStore(stored(sample(), consolidated=False)), consolidated=False)[["a"]]
        for _ in range(2)
    )
    parts = {"one": one, "windows": [other.isel(x=slice(0, 8)), other.isel(x=slice(8, 20))]}
    found = compared(parts, lambda: aioxarray.compute(parts))
    assert {each.name: (each.requests, each.reasons) for each in found.variables} == {
        "['one'] a": (8, {}),
        "['windows'][0] a": (2, {}),
        "['windows'][1] a": (3, {}),
    }


@pytest.mark.parametrize("kind", [MemoryStore, RecordingStore])
def test_groups_of_trees(kind: Any) -> None:
    inner = stored(xr.DataTree.from_dict({"/": sample(), "/child": sample()}), consolidated=False)
    store: Any = inner if kind is MemoryStore else RecordingStore(inner)
    with aioxarray.open_datatree(store, engine="zarr", consolidated=False) as tree:
        found = compared(tree, lambda: aioxarray.compute(tree))
    assert {each.name for each in found.variables} >= {"/a", "/child/a"}
    # Parts of shards in memory are found in the index, and read together.
    assert found.total.reasons == ({"together": -12} if kind is MemoryStore else {})
    assert_adds_up(found)


def test_opaque_plans_have_what_happened(server: ObjectServer) -> None:
    ds = xr.Dataset({"v": ("x", np.arange(4.0))}).chunk(x=2)
    found = compared(ds, lambda: aioxarray.compute(ds))
    (each,) = found.variables
    assert (each.planned_requests, each.requests, each.reasons) == (None, 0, {})
    assert "opaque requests planned" in str(found)


def test_silent_requests(server: ObjectServer) -> None:
    ds = opened(fsspec_http(server.url), consolidated=False)[["a"]]
    server.log.clear()
    server.fail("a/c/3", "stall", times=1)
    with aioxarray.config.set(stall_s=0.2):
        found = compared(ds, lambda: aioxarray.compute(ds))
    # On a busy machine, others may be silent for that long, too.
    assert found.total.reasons["silent"] >= 1
    assert set(found.total.reasons) == {"silent"}
    assert found.total.requests == server.log.count("GET")
    assert_adds_up(found)


def test_hedges(server: ObjectServer) -> None:
    ds = lazily(server)[["a"]]
    plan = explain(ds)
    with aioxarray.trace() as t:
        aioxarray.compute(ds)
    recording = t._recording()
    # Hedges need hundreds of answers before the first one, so the second attempt is written here.
    hedge = recording.requests[3]._replace(reason="hedge", attempt=2, error=None)
    found = compare(plan, replace(recording, requests=[*recording.requests, hedge]))
    assert (found.total.reasons, found.total.cancelled) == ({"hedges": 1}, 1)
    assert_adds_up(found)


# --- the value -----------------------------------------------------------------------------------


def test_the_forms_agree(server: ObjectServer) -> None:
    ds = lazily(server)
    server.fail("a/c/3", 503, times=1)
    with aioxarray.config.set({"retry.backoff_s": 0.0}):
        found = compared(ds, lambda: aioxarray.compute(ds))
    table = found.table()
    assert list(table.index) == [each.name for each in found.variables]
    assert table["retries"].sum() == found.total.reasons["retries"] == 1
    assert table["requests"].sum() == found.total.requests
    back = json.loads(json.dumps(found.to_dict()))
    assert back["total"]["reasons"] == {"retries": 1}
    for shown in (str(found), found._repr_html_()):
        assert f"18 requests planned, {found.total.requests} made" in shown
        assert "1 retries" in shown
        assert "retries: made again after a failure" in shown
    assert repr(found).startswith("<Comparison: 18 requests planned")


def test_only_plans_are_compared() -> None:
    with aioxarray.trace() as t:
        pass
    wrong: Any = sample()
    with pytest.raises(TypeError, match="plan must be a LoadPlan"):
        t.compare(wrong)
