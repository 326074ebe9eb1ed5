"""``concurrency="auto"``: what each server accepts, on servers of many kinds.

Most of them answer on a virtual clock, with exact times. What a process itself can do is modelled
too: it makes `PROCESS_A_SECOND` requests a second.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.grants import open_grants
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.observing.observers import observed
from aioxarray._zarr.stores.retries import attempts as retrying
from aioxarray._zarr.stores.retries.errors import transient
from aioxarray._zarr.stores.servers import pacing
from aioxarray.config import MOST_REQUESTS, Concurrency, config, request_limit
from aioxarray.testing import ObjectServer, Request, VirtualClock
from tests.concurrency import clients
from tests.concurrency.helpers import lazily, plain, same, written
from tests.concurrency.refusing import PROCESS_A_SECOND, ServedStore, Server
from tests.concurrency.sessions import closed_later
from tests.concurrency.test_requests import Seen
from tests.samples import opened, stored

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")


@pytest.fixture(autouse=True)
def no_silence() -> Iterator[None]:
    """Do not ask again for what a slow link delivers late."""
    with config.set(stall_s=None):
        yield


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was learned of servers, and let pauses be the same in each run."""
    pacing._paces.clear()
    random.seed(0)


def behind(server: Server, chunks: int, size: int = 8) -> xr.Dataset:
    """Return `plain` in one variable, lazily from ``server``."""
    ds = lazily(ServedStore(written(1, chunks, size), server))
    server.is_still = False
    return ds


def timed(
    monkeypatch: pytest.MonkeyPatch, *loads: Callable[[], Coroutine[Any, Any, object]]
) -> list[float]:
    """Run ``loads`` concurrently on a virtual clock; return when each of them ended."""
    monkeypatch.setattr(retrying, "clock", lambda: asyncio.get_running_loop().time())
    clock = VirtualClock()

    async def ended(load: Callable[[], Coroutine[Any, Any, object]]) -> float:
        await load()
        return clock.elapsed_s

    async def main() -> list[float]:
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(ended(load)) for load in loads]
        return [each.result() for each in ends]

    return clock.run(main)


def seconds(
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    count: int,
    size: int = 8,
    limit: Concurrency = "auto",
) -> float:
    """Read ``count`` values of ``size`` bytes as a load does; return the virtual seconds."""
    value = Buffer.from_bytes(bytes(size))
    store = ServedStore(MemoryStore({str(i): value for i in range(count)}), server)
    server.is_still = False

    async def read() -> None:
        got = 0
        keys = iter(range(count))
        with open_grants(limit) as grants:
            limited = LimitedStore(store, grants.requests)

            async def worker() -> None:
                nonlocal got
                for key in keys:
                    found = await limited.get(str(key), default_buffer_prototype())
                    got += found is not None and len(found) == size

            async with asyncio.TaskGroup() as tasks:
                for _ in range(int(min(count, grants.requests.bound))):
                    tasks.create_task(worker())
        assert got == count

    (elapsed,) = timed(monkeypatch, read)
    return elapsed


def paces() -> list[pacing.Pace]:
    return list(pacing._paces.values())


# --- servers that refuse nothing -----------------------------------------------------------------


@pytest.mark.parametrize("latency_s", [0.005, 0.05, 0.2])
def test_a_load_takes_hardly_longer_than_with_the_best_fixed_value(
    latency_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = {
        limit: seconds(monkeypatch, Server(latency_s), 1000, limit=limit)
        for limit in (64, 128, 512, 1024)
    }
    server = Server(latency_s)
    assert seconds(monkeypatch, server, 1000) <= 1.2 * min(fixed.values()), fixed
    assert not server.refused
    assert len(server.asked) == 1000


def test_a_slow_link_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, size = 100, 100_000
    server = Server(0.05, bytes_a_second=1.25e6)
    fixed = seconds(monkeypatch, Server(0.05, bytes_a_second=1.25e6), chunks, size, limit=16)
    assert seconds(monkeypatch, server, chunks, size) <= 1.2 * fixed
    assert len(server.asked) == chunks


def test_more_in_flight_than_brings_more_answers_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds(monkeypatch, Server(0.05, bytes_a_second=1000), 1500, 1)
    (pace,) = paces()
    assert pace.limits.bound == tuning.FIRST_IN_FLIGHT
    assert not pace.is_bounded


# --- servers that refuse -------------------------------------------------------------------------


@pytest.mark.parametrize("latency_s", [0.05, 0.2])
@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_a_server_that_refuses_above_40_gets_40(
    latency_s: float, retry_after: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(latency_s, most=40, retry_after=retry_after)
    chunks = 1200
    elapsed = seconds(monkeypatch, server, chunks)
    best = chunks / 40 * latency_s
    # Only the first requests are refused, and one whenever more is tried.
    assert elapsed <= 1.2 * best + 2 * (retry_after or 0.1) + latency_s
    assert server.most_in_flight == 40
    assert server.refusals_after(1) < 0.05
    assert len(server.refused) <= tuning.FIRST_IN_FLIGHT


@pytest.mark.parametrize("latency_s", [0.005, 0.05, 0.2])
@pytest.mark.parametrize(
    ("window", "burst"), [("fixed", 0), ("sliding", 0), ("bucket", 10), ("bucket", 300)]
)
def test_a_server_that_refuses_above_300_a_second_gets_nearly_300(
    window: str, burst: int, latency_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(latency_s, a_second=300, window=window, burst=burst)
    chunks = 1500
    elapsed = seconds(monkeypatch, server, chunks)
    assert server.refusals_after(1) < 0.05
    assert elapsed <= 2 * chunks / 300


def test_more_is_tried_when_a_server_accepts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0.05, most=20)
    server.later = (2.0, 200)
    seconds(monkeypatch, server, 4000)
    assert server.most_in_flight > 100
    assert server.refusals_after(1) < 0.05


def test_time_outs_of_a_slow_link_lower_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first 256 would take 20 s, but the client waits for 10.
    server = Server(0.05, bytes_a_second=1.25e6, patience_s=10)
    seconds(monkeypatch, server, 300, 100_000)
    (pace,) = paces()
    assert pace.limits.bound < 10
    # None after those of the first bound, and of what was let in before the first was late.
    assert 0 < server.late <= tuning.FIRST_IN_FLIGHT


def test_a_server_that_refuses_does_not_hold_up_another(monkeypatch: pytest.MonkeyPatch) -> None:
    single = behind(Server(0.05), 200)
    (alone,) = timed(monkeypatch, partial(aioxarray.load_async, single, concurrency="auto"))
    bad, good = Server(0.05, most=5), Server(0.05)
    refused, other = behind(bad, 300), behind(good, 200)
    with config.set(concurrency="auto"):
        bad_s, good_s = timed(
            monkeypatch,
            partial(aioxarray.load_async, refused, timeout=3600),
            partial(aioxarray.load_async, other, timeout=3600),
        )
    same(refused, 1, 300)
    same(other, 1, 200)
    assert good_s <= 1.1 * alone
    assert bad_s > 3 * good_s
    assert not good.refused
    assert bad.refusals_after(1) < 0.05


# Memory for eight chunks of eight numbers.
MEMORY = 8 * 64


@pytest.mark.parametrize("concurrency", ["auto", 128])
@pytest.mark.parametrize(
    ("shard", "part"),
    [(None, slice(None)), (64, slice(None)), (64, slice(0, None, 16))],
    ids=["chunks", "whole shards", "parts of shards"],
)
def test_a_server_that_refuses_takes_no_memory_from_another(
    shard: int | None, part: slice, concurrency: Concurrency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither requests that wait for their turn hold memory, nor those for their next attempt."""
    bad, good = Server(0.05), Server(0.05)
    refused = lazily(ServedStore(written(1, 64, shard=shard), bad)).isel(x=part)
    other = lazily(ServedStore(written(1, 64, shard=shard), good)).isel(x=part)
    bad.is_still = good.is_still = False

    async def load_other() -> None:
        # The first requests, among them those for indexes, are answered.
        await asyncio.sleep(0.04)
        bad.is_down = True
        await asyncio.sleep(1)
        await aioxarray.load_async(other)
        bad.is_down = False

    settings = {"concurrency": concurrency, "memory": MEMORY, "retry.attempts": 1000}
    with config.set({**settings, "retry.deadline": 10_000}):
        timed(monkeypatch, partial(aioxarray.load_async, refused), load_other)
    xr.testing.assert_identical(refused, other)
    assert len(bad.refused) >= 4


class DownForChunks(ServedStore):
    """A store whose server is down from the moment when a chunk is written."""

    def __init__(self, store: Store, server: Server) -> None:
        super().__init__(store, server)
        self.is_asked = asyncio.Event()

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.method == "set" and "/c/" in request.key and not self.is_asked.is_set():
            self.server.is_down = True
            self.is_asked.set()
        return await super()._request(request, send)


def test_a_save_to_a_server_that_refuses_takes_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, good = Server(0.05), Server(0.05)
    other = behind(good, 64)
    inside = MemoryStore()
    target = DownForChunks(inside, bad)
    bad.is_still = False

    async def load_other() -> None:
        await target.is_asked.wait()
        await asyncio.sleep(1)
        await aioxarray.load_async(other)
        bad.is_down = False

    save = partial(aioxarray.to_zarr_async, plain(1, 64), target)
    with config.set({"concurrency": "auto", "memory": MEMORY, "retry.deadline": 10_000}):
        timed(monkeypatch, save, load_other)
    xr.testing.assert_equal(opened(inside), plain(1, 64))


@pytest.mark.parametrize("most", [1, 3])
def test_loads_and_saves_at_one_server_share_little_memory(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of chunks that are written hold memory when they wait for their turn."""
    chunks, inside = 40, MemoryStore()
    old = plain(1, chunks).expand_dims(y=2, axis=1).copy(deep=True)
    old["v0"].encoding["chunks"] = (8, 2)
    for group in ("loaded", "updated"):
        old.to_zarr(inside, group=group, zarr_format=3, consolidated=False)
    server = Server(0.05, most=most)
    store = ServedStore(inside, server)
    loaded = [opened(store, group="loaded", consolidated=False) for _ in range(3)]
    server.is_still = False

    async def load(ds: xr.Dataset, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await aioxarray.load_async(ds)

    options: dict[str, Any] = {"consolidated": False, "zarr_format": 3, "safe_chunks": False}
    part, region = old.isel(y=slice(1)) + 1, {"x": slice(None), "y": slice(0, 1)}
    with config.set({"concurrency": "auto", "memory": 4 * 64, "retry.deadline": 10_000}):
        timed(
            monkeypatch,
            *(partial(load, each, after_s) for after_s, each in enumerate(loaded)),
            partial(aioxarray.to_zarr_async, old, store, group="saved", **options),
            partial(
                aioxarray.to_zarr_async, part, store, group="updated", region=region, **options
            ),
        )
    for ds in (*loaded, opened(inside, group="saved", consolidated=False)):
        xr.testing.assert_identical(ds, old)
    updated = opened(inside, group="updated", consolidated=False)
    xr.testing.assert_identical(updated, xr.concat([part, old.isel(y=slice(1, 2))], "y"))


def test_the_wait_that_a_server_asks_for_is_that_of_all_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(0.01, most=10, retry_after=5)
    seconds(monkeypatch, server, 400)
    # Not those that the process was about to make, of the first bound.
    known = server.refused[0] + tuning.FIRST_IN_FLIGHT / PROCESS_A_SECOND
    assert not [at for at in server.asked if known < at < known + 4.5]
    assert server.refusals_after(known) == 0


def test_refused_attempts_do_not_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0.05)
    server.is_down = True
    ds = behind(server, 100)

    async def come_back() -> None:
        await asyncio.sleep(20)
        server.is_down = False

    with config.set({"concurrency": "auto", "retry.attempts": 2}):
        timed(monkeypatch, partial(aioxarray.load_async, ds), come_back)
    same(ds, 1, 100)
    # One at a time, after pauses that grow, is enough to find out.
    assert len([at for at in server.refused if at > 1]) < 20


def test_the_deadline_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0.05)
    server.is_down = True
    ds = behind(server, 100)

    async def load() -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await aioxarray.load_async(ds, concurrency="auto")
        assert "retry.deadline=7" in "".join(caught.value.__notes__)

    with config.set({"retry.deadline": 7}):
        (elapsed,) = timed(monkeypatch, load)
    assert elapsed <= 7.5


def test_a_small_load_goes_between_the_requests_of_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(0.05, most=10)
    store = ServedStore(written(1, 600), server)
    large, small = lazily(store), lazily(store).isel(x=slice(0, 16))
    server.is_still = False

    async def later() -> None:
        await asyncio.sleep(2)
        await aioxarray.load_async(small)

    with config.set(concurrency="auto"):
        large_s, small_s = timed(monkeypatch, partial(aioxarray.load_async, large), later)
    assert large_s > 2.9
    assert small_s < 2.3


def test_cancelling_leaves_no_turn_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0.05, most=10)
    ds = behind(server, 500)

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await aioxarray.load_async(ds, concurrency="auto", timeout=1.01)

    timed(monkeypatch, cancelled)
    (pace,) = paces()
    assert pace.in_flight == 0
    assert not pace._is_waited_for


def test_without_it_nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, Server(0.05), 100, limit=10)
    assert not paces()


# --- descriptors ---------------------------------------------------------------------------------


def test_there_are_never_more_than_descriptors_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (150, 4096))
    assert request_limit("auto") == 75
    server = Server(0.2)
    seconds(monkeypatch, server, 500)
    assert server.most_in_flight == 75


def test_a_process_may_open_as_many_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    infinity = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (infinity, infinity))
    assert request_limit("auto") == MOST_REQUESTS


# --- real clients --------------------------------------------------------------------------------


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("client", [clients.fsspec_http, clients.obstore_http])
# With the shorter latency, threads make the requests of obstore.
@pytest.mark.parametrize(("latency_s", "most"), [(0.001, 4), (0.02, 40)])
def test_a_real_server_gets_what_it_accepts(
    client: Callable[[str], Store], latency_s: float, most: int
) -> None:
    data = plain(1, 600)
    with ObjectServer(latency_s) as server:
        for key, value in stored(data, zarr_format=2)._store_dict.items():
            server.put(f"data/{key}", value.to_bytes())
        store: Any = closed_later(client(f"{server.url}/data"))
        ds = aioxarray.open_zarr(store, consolidated=True)
        server.fail("*", 503, above=most)
        server.log.clear()
        with config.set({"concurrency": "auto", "retry.attempts": 2}), observed(seen := Seen()):
            xr.testing.assert_identical(aioxarray.compute(ds), data)
        assert len(seen.done_with) == 600
        assert server.log.count("GET") == 600 + len(seen.failed_with)
        if most == 40:
            # Those of the first bound, and a few when more was tried.
            assert len(seen.failed_with) < 2 * tuning.FIRST_IN_FLIGHT


# --- which failures count ------------------------------------------------------------------------


class AnsweredError(Exception):
    """An error of a client, with the status of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@pytest.mark.parametrize(
    ("error", "refused", "late"),
    [
        (AnsweredError(429), True, False),
        (AnsweredError(503), True, False),
        (AnsweredError(500), False, False),
        (AnsweredError(408), False, True),
        (AnsweredError(504), False, True),
        (ConnectionResetError(), False, False),
        (TimeoutError(), False, True),
    ],
)
def test_refusals_and_time_outs_differ_from_other_failures(
    error: Exception, refused: bool, late: bool
) -> None:
    found = transient(error)
    assert found is not None
    assert (found.refused, found.late) == (refused, late)
