"""Requests without an answer are made again, beside the silent one or in its place.

Latencies are virtual, and so are the connections' counts: times and numbers of requests are exact.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._zarr.stores import grants
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.observing.observers import observed
from aioxarray._zarr.stores.retries import silence, watch
from aioxarray.config import config
from aioxarray.errors import SilentServerError
from aioxarray.testing import ObjectServer, RecordingStore, VirtualClock
from aioxarray.testing._wrapper import RequestStore
from tests import budgets
from tests.concurrency.test_requests import Seen
from tests.concurrency.test_retries import over_each_client
from tests.samples import stored

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

NEVER = math.inf
STEP = 0.125
"""The usual latency: a binary fraction, so that sums are exact."""


class Script:
    """The latencies of a `ScriptedStore`."""

    def __init__(self, latency: Callable[[str, int], float]) -> None:
        self.latency = latency
        self._counts: dict[str, int] = {}

    def next(self, key: str) -> float:
        number = self._counts[key] = self._counts.get(key, 0) + 1
        return self.latency(key, number)

    def restart(self, latency: Callable[[str, int], float]) -> None:
        self.latency = latency
        self._counts.clear()


class ScriptedStore(RequestStore):
    """Store wrapper whose latencies, in seconds, a function of key and count of requests gives."""

    def __init__(self, store: Store, latency: Callable[[str, int], float]) -> None:
        super().__init__(store)
        # Shared by the copies that zarr makes.
        self.script = Script(latency)

    async def _request(self, request: Any, send: Callable[[], Awaitable[T]]) -> T:
        seconds = self.script.next(request.key)
        if seconds < 0:
            await asyncio.sleep(-seconds)
            raise ConnectionResetError("reset by the test")
        await (asyncio.Event().wait() if seconds == NEVER else asyncio.sleep(seconds))
        return await send()


def chunks(count: int, length: int = 4) -> xr.Dataset:
    values = np.arange(count * length, dtype="f8").reshape(count, length)
    return xr.Dataset({"v": (("y", "x"), values)}).chunk(y=1)


def scripted(ds: xr.Dataset, latency: Callable[[str, int], float]) -> tuple[Any, xr.Dataset]:
    """Return a store with ``ds`` whose requests take as long as ``latency`` says, and its data."""
    memory = MemoryStore()
    ds.to_zarr(memory, zarr_format=3, consolidated=False)
    slow = ScriptedStore(memory, lambda key, number: 0.0)
    store = RecordingStore(slow)
    opened = xr.open_zarr(store, chunks=None, consolidated=False)
    slow.script.restart(latency)
    store.log.clear()
    return store, opened


def one(key: str, *seconds: float) -> Callable[[str, int], float]:
    """Return latencies: ``seconds`` for the first requests of ``key``, and `STEP` otherwise."""

    def latency(of: str, number: int) -> float:
        return seconds[number - 1] if of == key and number <= len(seconds) else STEP

    return latency


def load(opened: xr.Dataset, **options: Any) -> tuple[xr.Dataset, float]:
    """Load on a virtual clock; return the data and the seconds it took."""
    clock = VirtualClock()
    got = clock.run(lambda: aioxarray.compute_async(opened, **options))
    return got, clock.elapsed_s


@pytest.fixture(autouse=True)
def default_stall() -> Iterator[None]:
    with config.set(stall_s=5):
        yield


# The bytes of a chunk allow it some microseconds.
ALMOST_AT_ONCE = pytest.approx(5 + STEP, abs=2e-3)

Connections = Callable[[Callable[[], Any]], None]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Set what the system says of the bytes on each connection."""

    def count(function: Callable[[], Any]) -> None:
        monkeypatch.setattr(watch, "count_moved", function)

    return count


@pytest.fixture
def quiet(connections: Connections) -> None:
    connections(lambda: {("host", 1, 2): 10})


@pytest.fixture
def moving(connections: Connections) -> None:
    numbers = itertools.count()
    connections(lambda: {("host", 1, 2): next(numbers)})


@pytest.fixture
def unknown(connections: Connections) -> None:
    connections(lambda: None)


KEY = "v/c/3/0"


@pytest.mark.usefixtures("quiet")
def test_silent_read_gets_a_second_request() -> None:
    ds = chunks(6)
    store, opened = scripted(ds, one(KEY, NEVER))
    got, seconds = load(opened)
    xr.testing.assert_identical(got, ds.compute())
    assert store.log.count("get", KEY) == 2
    assert store.log.count("get") == 7
    assert seconds == ALMOST_AT_ONCE


@pytest.mark.usefixtures("quiet")
def test_first_answer_wins() -> None:
    store, opened = scripted(chunks(6), one(KEY, 5.5, NEVER))
    _, seconds = load(opened)
    assert store.log.count("get", KEY) == 2
    assert seconds == 5.5
    assert store.log.in_flight == 0


@pytest.mark.usefixtures("moving")
def test_slow_body_is_left_alone() -> None:
    store, opened = scripted(chunks(6), one(KEY, 60.0))
    _, seconds = load(opened)
    assert store.log.count("get", KEY) == 1
    assert seconds == 60


@pytest.mark.usefixtures("unknown")
def test_unknown_connections_do_not_count_as_silent() -> None:
    store, opened = scripted(chunks(6), one(KEY, 60.0))
    _, seconds = load(opened)
    assert store.log.count("get", KEY) == 1
    assert seconds == 60


@pytest.mark.usefixtures("moving")
def test_answers_to_later_requests_show_that_one_is_silent() -> None:
    ds = chunks(6)
    # With two places, later requests begin when the first ones end.
    store, opened = scripted(ds, one("v/c/0/0", NEVER))
    got, seconds = load(opened, concurrency=2)
    xr.testing.assert_identical(got, ds.compute())
    assert store.log.count("get", "v/c/0/0") == 2
    assert store.log.most_in_flight == 2
    assert seconds == ALMOST_AT_ONCE


@pytest.mark.usefixtures("quiet")
def test_limit_holds_while_all_are_silent() -> None:
    ds = chunks(3)
    store, opened = scripted(ds, one("v/c/0/0", NEVER))
    got, _ = load(opened, concurrency=1)
    xr.testing.assert_identical(got, ds.compute())
    assert store.log.count("get", "v/c/0/0") == 2
    assert store.log.most_in_flight == 1


@pytest.mark.usefixtures("moving")
def test_limit_holds_while_a_body_arrives() -> None:
    store, opened = scripted(chunks(3), one("v/c/0/0", 100.0))
    load(opened, concurrency=1)
    assert store.log.count("get") == 3
    assert store.log.most_in_flight == 1


@pytest.mark.usefixtures("quiet")
def test_large_bodies_may_take_longer() -> None:
    # 8 MB take 8 s at the slowest rate.
    store, opened = scripted(chunks(2, 1_000_000), one("v/c/1/0", 12.0))
    _, seconds = load(opened)
    assert store.log.count("get", "v/c/1/0") == 1
    assert seconds == 12


@pytest.mark.usefixtures("quiet")
def test_server_that_never_answers() -> None:
    store, opened = scripted(chunks(4), lambda key, number: NEVER)
    with pytest.raises(SilentServerError, match=r"no answer to \d+ attempts in 3[5-6].") as caught:
        load(opened)
    notes = "\n".join(caught.value.__notes__)
    assert "v/c/" in notes
    assert "variable 'v'" in notes
    # After 5, 10 and 20 s more: the first, one beside it, and one in the place of the first.
    assert store.log.count("get", "v/c/0/0") <= 4
    assert store.log.in_flight == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_attempts_are_limited(attempts: int) -> None:
    store, opened = scripted(chunks(4), lambda key, number: NEVER)
    with config.set({"retry.attempts": attempts}), pytest.raises(SilentServerError) as caught:
        load(opened)
    assert store.log.count("get", "v/c/0/0") == attempts
    assert caught.value.attempts == attempts


@pytest.mark.usefixtures("quiet")
def test_clients_that_retry_get_one_more_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "retrying_client", lambda store: "client")
    store, opened = scripted(chunks(4), lambda key, number: NEVER)
    with pytest.raises(SilentServerError):
        load(opened)
    assert store.log.count("get", "v/c/0/0") == 2


@pytest.mark.usefixtures("quiet")
def test_no_request_is_made_again_if_it_is_off() -> None:
    store, opened = scripted(chunks(4), one(KEY, 60.0))
    with config.set(stall_s=None):
        _, seconds = load(opened)
    assert store.log.count("get", KEY) == 1
    assert seconds == 60


@pytest.mark.usefixtures("quiet")
def test_timeout_of_the_call_holds() -> None:
    store, opened = scripted(chunks(4), lambda key, number: NEVER)
    clock = VirtualClock()
    with pytest.raises(TimeoutError, match="not loaded within the timeout of 6 s"):
        clock.run(lambda: aioxarray.compute_async(opened, timeout=6))
    assert clock.elapsed_s == 6
    assert store.log.in_flight == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("at", [4.5, 5.0, 5.0625])
def test_cancelling_ends_both(at: float) -> None:
    store, opened = scripted(chunks(4), lambda key, number: NEVER)

    async def main() -> None:
        task = asyncio.ensure_future(aioxarray.compute_async(opened))
        await asyncio.sleep(at)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock = VirtualClock()
    clock.run(main)
    assert clock.elapsed_s == at
    assert store.log.in_flight == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("seconds", "requests"),
    [
        pytest.param((-6.0, 2.0), 2, id="first"),
        pytest.param((20.0, -0.5), 3, id="second"),
        pytest.param((-6.0, -2.0), 3, id="both"),
    ],
)
def test_one_of_the_two_fails(
    seconds: tuple[float, ...], requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = chunks(6)
    store, opened = scripted(ds, one(KEY, *seconds))
    got, _ = load(opened)
    xr.testing.assert_identical(got, ds.compute())
    assert store.log.count("get", KEY) == requests
    assert store.log.in_flight == 0


@pytest.mark.usefixtures("quiet")
def test_missing_chunk_is_an_answer() -> None:
    store, opened = scripted(chunks(6), one(KEY, NEVER))
    asyncio.run(store._store._store.delete(KEY))
    got, seconds = load(opened)
    assert np.isnan(got["v"][3]).all()
    assert seconds == ALMOST_AT_ONCE


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("key", ["zarr.json", "v/zarr.json", KEY])
def test_silent_write_is_made_again_alone(key: str) -> None:
    ds = chunks(6).compute()
    ds["v"].encoding["chunks"] = (1, 4)
    memory = MemoryStore()
    asked = False

    def latency(of: str, number: int) -> float:
        nonlocal asked
        if of != key or asked:
            return STEP
        asked = True
        return NEVER

    store = RecordingStore(ScriptedStore(memory, latency))
    clock = VirtualClock()
    clock.run(lambda: aioxarray.to_zarr_async(ds, store, zarr_format=3, consolidated=False))
    xr.testing.assert_identical(xr.open_zarr(memory, consolidated=False).load(), ds)
    assert store.log.in_flight == 0
    assert 5 < clock.elapsed_s < 8


@pytest.mark.usefixtures("quiet")
def test_observers_are_told_of_each_attempt() -> None:
    _, opened = scripted(chunks(6), one(KEY, NEVER))
    with observed(seen := Seen()):
        load(opened)
    assert [request.attempt for request in seen.done_with if request.key == KEY] == [2]
    assert [request.attempt for request, _ in seen.failed_with] == [1]
    assert not seen.under_way


# --- hedging ---------------------------------------------------------------------------------


class Reads:
    """Reads of many chunks at once, one such load after another, on one virtual clock."""

    def __init__(self, latency: Callable[[str, int], float]) -> None:
        self.store = RecordingStore(ScriptedStore(MemoryStore(), latency))

    def loads(self, *counts: int, concurrency: float = 128) -> list[float]:
        """Read as many chunks at once as each of ``counts`` says; return the seconds of each."""
        took: list[float] = []

        async def main() -> None:
            with grants.requests.share(concurrency) as places:
                limited = LimitedStore(self.store, places)
                for count in counts:
                    begun = clock.elapsed_s
                    await asyncio.gather(
                        *(limited.get(f"c/{i}", default_buffer_prototype()) for i in range(count))
                    )
                    took.append(clock.elapsed_s - begun)

        clock = VirtualClock()
        clock.run(main)
        return took


def sometimes(share: float, seed: int = 0) -> Callable[[str, int], float]:
    """Return latencies around 20 ms, of which ``share`` are 2 s."""
    rng = random.Random(seed)
    return lambda key, number: 2.0 if rng.random() < share else rng.uniform(0.015, 0.025)


@pytest.mark.usefixtures("moving")
@pytest.mark.slow
def test_hedging_cuts_the_tail() -> None:
    p99 = {}
    for hedge in (False, True):
        reads = Reads(sometimes(0.01))
        with config.set(hedge=hedge):
            took = reads.loads(*[100] * 120)
        p99[hedge] = float(np.quantile(took, 0.99))
        extra = reads.store.log.count("get") / (120 * 100) - 1
        assert extra <= (0.05 if hedge else 0)
    assert p99[False] >= 3 * p99[True]


@pytest.mark.usefixtures("moving")
def test_hedges_stop_when_everything_is_slow() -> None:
    begun = 0

    def latency(key: str, number: int) -> float:
        nonlocal begun
        begun += 1
        return 0.02 if begun <= 2000 else 0.5

    reads = Reads(latency)
    with config.set(hedge=True):
        reads.loads(*[100] * 40)
    assert 0 <= reads.store.log.count("get") - 4000 <= 0.01 * 2000


@pytest.mark.usefixtures("moving")
def test_hedges_take_free_places_only() -> None:
    reads = Reads(sometimes(0.2))
    with config.set(hedge=True):
        reads.loads(*[20] * 20, concurrency=1)
    assert reads.store.log.most_in_flight == 1
    assert reads.store.log.count("get") == 400


@pytest.mark.usefixtures("moving")
def test_hedges_are_counted() -> None:
    before = silence.statistics()
    reads = Reads(sometimes(0.01))
    with config.set(hedge=True):
        reads.loads(*[100] * 20)
    hedges = silence.statistics().hedges - before.hedges
    assert hedges == reads.store.log.count("get") - 2000
    assert 0 < silence.statistics().won - before.won <= hedges


@pytest.mark.usefixtures("moving")
def test_loads_with_hedging_have_the_right_values() -> None:
    ds = chunks(60)
    _, opened = scripted(ds, sometimes(0.05))
    with config.set(hedge=True):
        got, _ = load(opened)
    xr.testing.assert_identical(got, ds.compute())


# --- real servers ----------------------------------------------------------------------------


@over_each_client
@pytest.mark.parametrize("number", [0, 17])
def test_stalled_connection(client: Callable[[str], Store], number: int) -> None:
    ds = chunks(40).compute()
    ds["v"].encoding["chunks"] = (1, 4)
    with ObjectServer() as server, config.set(stall_s=0.5):
        for key, value in stored(ds)._store_dict.items():
            server.put(f"bucket/data/{key}", value.to_bytes())
        store: Any = client(server.url)
        server.fail(f"*/v/c/{number}/0", "stall", times=1)
        got = aioxarray.load_dataset(store, engine="zarr", consolidated=True)
        xr.testing.assert_identical(got, ds)
        assert server.log.count("GET", f"*/v/c/{number}/0") == 2
    # A thread that waited for the stalled server has its place until now.
    asyncio.run(budgets.until_free())
