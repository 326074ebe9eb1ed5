"""The default limit on requests in flight follows the latency of the server; a number does not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.grants import requests
from aioxarray._zarr.stores.servers.following import bound_for, most_at_once
from aioxarray._zarr.stores.servers.hosts import host_of
from aioxarray._zarr.stores.servers.measured import Measured
from aioxarray.config import FIRST_REQUESTS, MOST_REQUESTS
from aioxarray.testing import LatencyStore, RecordingStore, VirtualClock
from tests.concurrency.helpers import lazily, same, written

CHUNKS = 1500


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """Have latencies measured: that is done where silent requests are noticed."""
    with aioxarray.config.set(stall_s=60):
        yield


class Distant:
    """A dataset of two variables whose chunks arrive after ``latency_s``."""

    def __init__(self, latency_s: float) -> None:
        latency = LatencyStore(written(2, CHUNKS // 2), 0.0)
        self.store = RecordingStore(latency)
        self.ds = lazily(self.store)
        self.store.log.clear()
        latency.latency_s = latency_s

    def load(self, **options: Any) -> tuple[int, float]:
        """Load it; return the most requests in flight, and the virtual seconds."""
        clock = VirtualClock()
        clock.run(lambda: aioxarray.load_async(self.ds, **options))
        same(self.ds, 2, CHUNKS // 2)
        assert self.store.log.count("get") == CHUNKS
        return self.store.log.most_in_flight, clock.elapsed_s


def test_more_are_in_flight_to_a_distant_server() -> None:
    most, seconds = Distant(0.1).load()
    assert most == pytest.approx(0.1 * tuning.FOLLOWED_A_SECOND, abs=1)
    before, longer = Distant(0.1).load(concurrency=FIRST_REQUESTS)
    assert before == FIRST_REQUESTS
    assert seconds < longer / 2


def test_there_are_never_more_than_the_most() -> None:
    most, _ = Distant(1.0).load()
    assert most <= MOST_REQUESTS


@pytest.mark.parametrize("latency_s", [0.001, 0.02])
def test_a_near_server_gets_the_first_number(latency_s: float) -> None:
    most, _ = Distant(latency_s).load()
    assert most == FIRST_REQUESTS


@pytest.mark.parametrize("concurrency", [1, 60, 128, 700])
def test_a_number_is_exact(concurrency: int) -> None:
    most, _ = Distant(0.2).load(concurrency=concurrency)
    assert most == concurrency
    with aioxarray.config.set(concurrency=concurrency):
        assert Distant(0.2).load()[0] == concurrency


def test_loads_beside_each_other_keep_to_the_largest() -> None:
    one, other = Distant(0.1), Distant(0.1)
    most = 0

    async def main() -> None:
        nonlocal most
        loads = asyncio.gather(aioxarray.load_async(one.ds), aioxarray.load_async(other.ds))
        while not loads.done():
            most = max(most, requests.in_use)
            await asyncio.wait([loads], timeout=0.01)
        await loads

    VirtualClock().run(main)
    assert FIRST_REQUESTS < most <= 0.1 * tuning.FOLLOWED_A_SECOND + 1


def test_a_server_that_has_refused_requests_gets_the_first_number() -> None:
    distant = Distant(0.1)
    host = host_of(distant.store)
    assert host is not None
    host.measured.refused_at = monotonic()
    assert distant.load()[0] == FIRST_REQUESTS


def measured(latency_s: float, bytes_a_second: float | None = None) -> Measured:
    """Return a server as the answers of ten seconds have shown it."""
    server = Measured()
    for number in range(tuning.MEASURED_ANSWERS):
        server.answered(number, number + latency_s, 100)
    if bytes_a_second is not None:
        server.answered(100.0, 101.0 + latency_s, int(bytes_a_second))
    return server


@pytest.mark.parametrize(
    ("nbytes", "bytes_a_second", "bound"),
    [
        (64 << 10, None, 500),
        (1 << 20, None, 256),
        (2 << 20, None, 128),
        (100 << 20, None, 128),
        # Four times 100 ms at 10 Gbit/s are 500 MB.
        (1 << 20, 1.25e9, 476),
        (64 << 10, 1e6, 500),
    ],
)
def test_the_bytes_on_their_way_are_bounded(
    nbytes: int, bytes_a_second: float | None, bound: int
) -> None:
    assert bound_for(measured(0.1, bytes_a_second), nbytes) == bound


@pytest.mark.parametrize(
    ("nbytes", "bytes_a_second", "most"),
    [
        (64 << 10, 1e8, math.inf),
        (2 << 20, None, math.inf),
        # Four times 100 ms at 100 MB/s are 40 MB.
        (2 << 20, 1e8, 20),
        (32 << 20, 1e8, tuning.FOLLOWED_LEAST),
    ],
)
def test_fewer_large_objects_are_in_flight(
    nbytes: int, bytes_a_second: float | None, most: float
) -> None:
    assert most_at_once(measured(0.1, bytes_a_second), nbytes) == most
