"""The setting ``queue``: calls that would wait beside too many others fail at once.

The tests run on the virtual clock: a second passes only once nothing else can happen.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray import Overloaded
from aioxarray._runtime import queueing
from aioxarray._xarray.arrays.read import in_hdf5
from aioxarray.testing import GatedStore, LatencyStore, RecordingStore, VirtualClock
from tests.concurrency.helpers import lazily, same, written
from tests.runtime.helpers import run_script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT = 2


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    """Fail a test after which a call counts in the queue."""
    yield
    assert queueing.waiting() == 0


def on_the_clock(
    main: Callable[[], Coroutine[Any, Any, None]], *, queue: int | None, **settings: Any
) -> None:
    with aioxarray.config.set({"concurrency": LIMIT, "queue": queue, **settings}):
        VirtualClock().run(main)


async def until_idle() -> None:
    """Return once nothing on the loop, or in its threads, can go on."""
    await asyncio.sleep(1)


@asynccontextmanager
async def all_places_taken() -> AsyncIterator[GatedStore]:
    """Open a context in which one load has all places; opening the gate lets it go on."""
    gate = GatedStore(written(1, 8), keys="v0/c/*")
    ds = lazily(gate)
    load = asyncio.create_task(aioxarray.load_async(ds))
    await until_idle()
    assert len(gate.waiting) == LIMIT
    yield gate
    gate.release_all()
    await load
    same(ds, 1, 8)


class Small:
    """Lazy datasets of two chunks in a store that counts requests."""

    def __init__(self) -> None:
        self.store = RecordingStore(written(2, 1))
        self.datasets: list[xr.Dataset] = []

    def dataset(self) -> xr.Dataset:
        ds = lazily(self.store)
        self.store.log.clear()
        self.datasets.append(ds)
        return ds

    def load(self, **options: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(aioxarray.load_async(self.dataset(), **options))


async def refused(load: asyncio.Task[Any]) -> str:
    """Check that a load was refused; return the error's words."""
    assert load.done()
    with pytest.raises(Overloaded) as caught:
        await load
    assert isinstance(caught.value, RuntimeError)
    return str(caught.value)


def test_calls_beyond_the_limit_fail_at_once() -> None:
    small = Small()

    async def main() -> None:
        async with all_places_taken():
            loads = [small.load() for _ in range(5)]
            await until_idle()
            assert queueing.waiting() == 3
            for load in loads[3:]:
                text = await refused(load)
                assert "3 calls wait already for its turn: as many as the setting queue=3" in text
            assert small.store.log.requests == ()
            for ds in small.datasets[3:]:
                assert not ds.v0.variable._in_memory
            # A place in the queue that becomes free can be taken again.
            loads[0].cancel()
            await asyncio.wait([loads[0]])
            assert queueing.waiting() == 2
            loads.append(small.load())
            await until_idle()
            assert queueing.waiting() == 3
        for index in (1, 2, 5):
            await loads[index]
            same(small.datasets[index], 2, 1)

    on_the_clock(main, queue=3)


def test_no_limit_is_the_default() -> None:
    small = Small()
    assert aioxarray.config.get("queue") is None

    async def main() -> None:
        async with all_places_taken():
            loads = [small.load() for _ in range(50)]
            await until_idle()
        await asyncio.gather(*loads)

    on_the_clock(main, queue=None)


def test_a_call_that_need_not_wait_is_not_refused() -> None:
    """With a queue of none: only as many calls as there are places, however often they wait."""
    small = Small()

    async def main() -> None:
        # Both have a place at once, and wait for more: two variables each, four requests.
        await asyncio.gather(small.load(), small.load())
        for ds in small.datasets:
            same(ds, 2, 1)
        async with all_places_taken():
            load = small.load()
            await until_idle()
            assert "no call may wait for its turn" in await refused(load)

    on_the_clock(main, queue=0)


def test_many_requests_of_one_call_count_once() -> None:
    """A call that has begun does not count, and one that has not counts once."""
    large = [LatencyStore(written(5, 10), 0.0) for _ in range(3)]
    datasets = [lazily(each) for each in large]
    for each in large:
        each.latency_s = 10.0

    async def main() -> None:
        loads = [asyncio.create_task(aioxarray.load_async(ds)) for ds in datasets]
        await until_idle()
        assert queueing.waiting() == 2
        await asyncio.gather(*loads)
        for ds in datasets:
            same(ds, 5, 10)

    on_the_clock(main, queue=2)


def test_a_timeout_counts_the_wait() -> None:
    small = Small()

    async def main() -> None:
        async with all_places_taken():
            load = small.load(timeout=5)
            await asyncio.sleep(4.5)
            assert queueing.waiting() == 1
            await asyncio.sleep(1)
            with pytest.raises(TimeoutError, match="not loaded within the timeout of 5 s"):
                await load
            assert queueing.waiting() == 0

    on_the_clock(main, queue=1)


@pytest.mark.parametrize("setting", ["memory", "threads"])
def test_waiting_for_bytes_or_a_thread_counts(setting: str, tmp_path: Path) -> None:
    """Not only for requests: whatever keeps a call from its first one."""
    if setting == "memory":
        small = Small()

        async def main() -> None:
            async with all_places_taken():
                loads = [small.load() for _ in range(2)]
                await until_idle()
                assert queueing.waiting() == 1
                await refused(loads[1])
            await loads[0]

        # Two chunks of 64 bytes, and an eighth more for the small ones.
        on_the_clock(main, queue=1, concurrency=100, memory=LIMIT * 64)
        return
    path = str(tmp_path / "local.zarr")
    aioxarray.to_zarr(xr.Dataset({"v": ("x", list(range(100_000)))}), path)

    async def local() -> None:
        async with all_places_taken():
            loads = [
                asyncio.create_task(aioxarray.load_async(xr.open_zarr(path, chunks=None)))
                for _ in range(2)
            ]
            await until_idle()
            assert queueing.waiting() == 1
            await refused(loads[1])
        await loads[0]

    on_the_clock(local, queue=1)


def test_opens_and_saves_count_and_are_refused() -> None:
    stored: Any = RecordingStore(written(2, 1))
    target = RecordingStore(MemoryStore())

    async def main() -> None:
        async with all_places_taken():
            waits = asyncio.create_task(aioxarray.open_zarr_async(stored, consolidated=False))
            await until_idle()
            assert queueing.waiting() == 1
            calls: list[Coroutine[Any, Any, Any]] = [
                aioxarray.open_zarr_async(stored),
                aioxarray.open_dataset_async(stored, engine="zarr"),
                aioxarray.open_datatree_async(stored, engine="zarr"),
                aioxarray.open_mfdataset_async([stored], engine="zarr"),
                aioxarray.load_dataset_async(stored, engine="zarr"),
                aioxarray.to_zarr_async(xr.Dataset({"a": ("x", [1])}), target),
            ]
            for call in calls:
                with pytest.raises(Overloaded):
                    await call
            assert stored.log.requests == target.log.requests == ()
            assert queueing.waiting() == 1
        same(await aioxarray.load_async(await waits), 2, 1)

    on_the_clock(main, queue=1)


def test_reads_of_other_formats_count(tmp_path: Path) -> None:
    """HDF5 serves one thread at a time: calls wait for it, without a request."""
    path = tmp_path / "file.nc"
    xr.Dataset({"v": ("x", range(10))}).to_netcdf(path, engine="netcdf4")

    async def main() -> None:
        inside, go_on = threading.Event(), threading.Event()

        def stay() -> None:
            inside.set()
            go_on.wait()

        datasets = [xr.open_dataset(path, engine="netcdf4") for _ in range(4)]
        first = asyncio.create_task(in_hdf5(stay))
        await asyncio.to_thread(inside.wait)
        loads = [asyncio.create_task(aioxarray.load_async(ds)) for ds in datasets]
        # Refused in the order in which they were started.
        for load in loads[2:]:
            with pytest.raises(Overloaded):
                await load
        assert queueing.waiting() == 2
        go_on.set()
        await asyncio.gather(first, *loads[:2])
        for ds in datasets:
            ds.close()

    with aioxarray.config.set(queue=2):
        asyncio.run(main())


def test_opens_that_wait_for_a_thread_count() -> None:
    """Each open needs one of 32 worker threads before it can make its first request."""
    gate = GatedStore(written(1, 1), keys="*zarr.json")

    async def main() -> None:
        opens = [
            asyncio.create_task(aioxarray.open_zarr_async(gate, consolidated=False))
            for _ in range(100)
        ]
        waiting, refused = set(opens), set[asyncio.Task[Any]]()
        # At most 32 have a thread. A thread that has just ended the work of an earlier test may not
        # be free yet, so there may be a few less.
        while len(waiting) > 32 + 10:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert {type(each.exception()) for each in refused} == {Overloaded}
        assert len(waiting) > 10 >= queueing.waiting()
        gate.release_all()
        await asyncio.gather(*waiting)

    with aioxarray.config.set(queue=10, concurrency=0):
        asyncio.run(main())


def test_nested_calls_are_part_of_the_outer_one() -> None:
    """Tasks of dask that read through aioxarray, and opens of many files with their loads."""
    stores = [RecordingStore(written(3, 4)) for _ in range(4)]
    lazy = [aioxarray.open_zarr(each, chunks={}, consolidated=False) for each in stores]

    async def main() -> None:
        # All of them together have more requests than places, and no call may wait.
        await aioxarray.load_async(lazy)
        together = await aioxarray.open_mfdataset_async(
            stores, combine="nested", concat_dim="x", engine="zarr", consolidated=False
        )
        assert together.sizes["x"] == 4 * 32

    on_the_clock(main, queue=0, concurrency=1)
    for ds in lazy:
        same(ds, 3, 4)


def test_calls_that_wait_for_the_chunks_of_another_need_no_turn() -> None:
    gate = GatedStore(written(1, 1), keys="v0/c/*")
    ds = lazily(gate)

    async def main() -> None:
        async with all_places_taken():
            loads = [asyncio.create_task(aioxarray.compute_async(ds)) for _ in range(6)]
            await until_idle()
            assert [load.done() for load in loads] == [False] * 6
            assert queueing.waiting() == 1
        gate.release_all()
        for loaded in await asyncio.gather(*loads):
            same(loaded, 1, 1)

    on_the_clock(main, queue=1)


def test_calls_of_other_loops_and_threads_count() -> None:
    small = Small()
    datasets = [small.dataset() for _ in range(8)]

    async def main() -> None:
        async with all_places_taken():
            ways = [
                lambda ds: asyncio.run(aioxarray.load_async(ds)),
                aioxarray.load,
            ]
            loads = [
                asyncio.create_task(asyncio.to_thread(ways[index % 2], ds))
                for index, ds in enumerate(datasets)
            ]
            await until_idle()
            assert queueing.waiting() == 3
            errors = [load.exception() for load in loads if load.done()]
            assert [type(error) for error in errors] == [Overloaded] * 5
            assert small.store.log.requests == ()
        await asyncio.wait(loads)

    on_the_clock(main, queue=3)
    assert sum(ds.v0.variable._in_memory for ds in datasets) == 3


@pytest.mark.parametrize("value", [-1, "3", 1.5, True])
def test_wrong_values(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="queue must"):
        aioxarray.config.set(queue=value)


FORK = """
import os
from aioxarray._runtime.queueing import Ticket, waiting

parents = Ticket(1)
parents.wait()
assert waiting() == 1
child = os.fork()
if child == 0:
    try:
        assert waiting() == 0
        own = Ticket(1)
        own.wait()
        # Tickets of the parent change nothing here.
        parents.end()
        assert waiting() == 1
        own.begin()
        assert waiting() == 0
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert waiting() == 1
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_process_begins_with_an_empty_queue() -> None:
    assert run_script(FORK).splitlines()[-1] == "fine"
