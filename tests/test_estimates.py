"""Estimates of a plan take the latency and bandwidth that the server has shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.stores.servers.measured import Measured
from aioxarray.testing import LatencyStore, ObjectServer, VirtualClock
from tests.concurrency.clients import fsspec_http, obstore_http
from tests.concurrency.sessions import close_all, closed_later
from tests.samples import contents, stored

MB = 1 << 20


@pytest.fixture(autouse=True)
def _no_session_stays() -> Iterator[None]:
    yield
    run_blocking(close_all)


def test_nothing_is_known_at_first() -> None:
    measured = Measured()
    assert measured.latency_s is None
    assert measured.bandwidth is None


def test_the_latency_is_that_of_the_shortest_small_answer() -> None:
    measured = Measured()
    for begun, seconds, nbytes in ((0, 0.3, 100), (1, 0.1, 100), (2, 0.2, 0), (3, 0.05, MB)):
        measured.answered(begun, begun + seconds, nbytes)
    assert measured.latency_s == pytest.approx(0.1)
    for begun in range(10, 50):
        measured.answered(begun, begun + 0.2, 100)
    assert measured.latency_s == pytest.approx(0.2)


def test_the_bandwidth_is_that_of_all_answers_together_without_a_latency() -> None:
    measured = Measured()
    measured.answered(0.0, 0.1, 100)
    # Four requests at once, whose bodies arrive after each other.
    for number in range(4):
        measured.answered(1.0, 1.1 + 0.25 * (number + 1), MB)
    assert measured.bandwidth == pytest.approx(4 * MB)
    # Fewer bytes, and small answers, tell nothing.
    measured.answered(5.0, 6.0, MB - 1)
    for _ in range(100):
        measured.answered(7.0, 7.1, MB // 50)
    assert measured.bandwidth == pytest.approx(4 * MB)
    measured.answered(9.0, 9.6, MB)
    assert measured.bandwidth == pytest.approx(2 * MB)


def test_a_long_period_is_measured_in_parts() -> None:
    measured = Measured()
    for number in range(10):
        measured.answered(number * 0.5, number * 0.5 + 0.75, MB)
    first = measured.bandwidth
    assert first == pytest.approx(2 * MB, rel=0.6)
    for number in range(10, 20):
        measured.answered(number * 0.5, number * 0.5 + 0.75, 4 * MB)
    assert measured.bandwidth == pytest.approx(8 * MB, rel=0.6)


def test_a_plan_has_the_latency_of_its_store() -> None:
    ds = xr.Dataset({"v": ("x", np.arange(64.0))})
    ds.v.encoding["chunks"] = (8,)
    # A class of its own is taken for a store with a server.
    store = LatencyStore(stored(ds), 0.25)

    async def planned() -> Any:
        return aioxarray.explain(await aioxarray.open_zarr_async(store, consolidated=False))

    with aioxarray.config.set(stall_s=5):
        plan = VirtualClock().run(planned)
    assert plan.latency == pytest.approx(0.25)
    assert plan.bandwidth is None
    assert plan.to_dict()["latency"] == plan.latency
    assert plan.estimate() == plan.estimate(0.25, "1Gbit/s")
    assert plan.estimate(1.0) == plan.estimate(1.0, "1Gbit/s")


@pytest.mark.parametrize("client", [fsspec_http, obstore_http])
def test_plans_for_a_server_have_both_after_a_load(client: Callable[[str], Any]) -> None:
    ds = xr.Dataset({"v": ("x", np.arange(4.0 * MB // 8))})
    ds.v.encoding.update(chunks=(MB // 8,), compressors=None)
    with ObjectServer(latency_s=0.002) as server, aioxarray.config.set(stall_s=5):
        for key, value in contents(stored(ds)).items():
            server.put(key, value)
        lazy = aioxarray.open_zarr(closed_later(client(server.url)), consolidated=False)
        aioxarray.compute(lazy)
        plan = aioxarray.explain(lazy)
        assert plan.latency is not None
        assert plan.latency >= 0.002
        assert plan.bandwidth is not None
        assert plan.bandwidth > 0
        assert plan.estimate() == plan.estimate(plan.latency, plan.bandwidth)


def test_local_stores_have_neither() -> None:
    ds = xr.Dataset({"v": ("x", [1.0])})
    plan = aioxarray.explain(aioxarray.open_zarr(stored(ds)))
    assert (plan.latency, plan.bandwidth) == (None, None)
    assert plan.estimate() == plan.estimate(0.05, "1Gbit/s")
