"""Whenever a load ends early, nothing of it is left, and the object loads afterwards."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import dask.array
import numpy as np
import pytest
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

import aioxarray
from aioxarray._zarr.stores.printable import printable
from aioxarray.errors import TimedOutError
from aioxarray.testing import FaultyStore, GatedStore, LatencyStore, RecordingStore, VirtualClock
from tests.concurrency.helpers import (
    PATIENCE_S,
    CompletionStore,
    assert_idle,
    followed,
    lazily,
    plain,
    same,
    tasks_on_io_loop,
    written,
)
from tests.loops import LOOPS, every_loop
from tests.oracle import lazy

if TYPE_CHECKING:
    from zarr.abc.store import Store

VARIABLES, CHUNKS = 3, 4
REQUESTS = VARIABLES * CHUNKS
ALL_LAZY = {f"['v{i}']" for i in range(VARIABLES)}


class Loading:
    """A dataset whose requests are held at a gate, and counted when they complete."""

    def __init__(self, store: Store | None = None) -> None:
        self.gate = GatedStore(store or written(VARIABLES, CHUNKS), keys="*/c/*")
        self.counter = CompletionStore(self.gate)
        self.ds = lazily(self.counter)
        self.counter.log.clear()

    async def let_complete(self, count: int, at_once: int) -> None:
        """Let ``count`` requests complete, one after another, while the others are in flight."""
        for done in range(count):
            await self.gate.requested("*/c/*", min(done + at_once, REQUESTS))
            self.gate.release(self.gate.waiting[0])
            await self.counter.completed(done + 1)
        await self.gate.requested("*/c/*", min(count + at_once, REQUESTS))
        assert self.counter.log.in_flight == min(at_once, REQUESTS - count)

    def assert_untouched(self) -> None:
        """Assert that nothing is in flight and all is lazy, at this very moment."""
        assert self.counter.log.in_flight == 0
        assert not self.gate.waiting
        assert lazy(self.ds) == ALL_LAZY

    def assert_loads(self) -> None:
        """Assert that the dataset is as good as new."""
        self.gate.release_all()
        aioxarray.load(self.ds)
        same(self.ds, VARIABLES, CHUNKS)


@asynccontextmanager
async def cancelled_at_its_end(
    function: Callable[[], Any],
) -> AsyncIterator[None]:
    """Run ``function`` beside the body, and cancel it when the body ends."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(function)
        yield
        tasks.cancel_scope.cancel()


# --- cancelling at every request -------------------------------------------------------------


@pytest.mark.parametrize("completed", range(REQUESTS))
@pytest.mark.parametrize("at_once", [1, 5, REQUESTS])
@every_loop
async def test_cancelling_after_any_number_of_requests(completed: int, at_once: int) -> None:
    loading = await anyio.to_thread.run_sync(Loading)
    before = await anyio.to_thread.run_sync(tasks_on_io_loop)
    load = functools.partial(aioxarray.load_async, loading.ds, concurrency=at_once)
    async with cancelled_at_its_end(load):
        await loading.let_complete(completed, at_once)
    loading.assert_untouched()
    await anyio.to_thread.run_sync(assert_idle, before)
    await anyio.to_thread.run_sync(loading.assert_loads)


@every_loop
async def test_cancelling_before_the_first_request() -> None:
    loading = await anyio.to_thread.run_sync(Loading)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await aioxarray.load_async(loading.ds)
    assert scope.cancelled_caught
    loading.assert_untouched()
    await anyio.to_thread.run_sync(loading.assert_loads)


@every_loop
async def test_cancelling_while_waiting_for_places_that_others_have() -> None:
    first, second = [await anyio.to_thread.run_sync(Loading) for _ in range(2)]
    with aioxarray.config.set(concurrency=2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(aioxarray.load_async, first.ds)
            await first.gate.requested("*/c/*", 2)
            async with cancelled_at_its_end(lambda: aioxarray.load_async(second.ds)):
                await anyio.lowlevel.checkpoint()
            second.assert_untouched()
            assert second.counter.log.requests == ()
            assert len(first.gate.waiting) == 2
            first.gate.release_all()
    same(first.ds, VARIABLES, CHUNKS)
    await anyio.to_thread.run_sync(second.assert_loads)


@every_loop
async def test_cancelling_one_load_leaves_another_of_the_same_object_alone() -> None:
    loading = await anyio.to_thread.run_sync(Loading)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(aioxarray.load_async, loading.ds)
        await loading.gate.requested("*/c/*", REQUESTS)
        async with cancelled_at_its_end(lambda: aioxarray.load_async(loading.ds)):
            await followed(REQUESTS)
        assert loading.counter.log.count("get", "*/c/*") == REQUESTS
        loading.gate.release_all()
    same(loading.ds, VARIABLES, CHUNKS)


@every_loop
async def test_cancelling_compute_leaves_the_object_lazy() -> None:
    loading = await anyio.to_thread.run_sync(Loading)
    async with cancelled_at_its_end(lambda: aioxarray.compute_async(loading.ds)):
        await loading.let_complete(REQUESTS - 1, REQUESTS)
    loading.assert_untouched()
    await anyio.to_thread.run_sync(loading.assert_loads)


@every_loop
async def test_cancelling_the_load_of_several_objects() -> None:
    nest = [await anyio.to_thread.run_sync(Loading) for _ in range(3)]
    tree = xr.DataTree.from_dict({"/a": nest[2].ds})
    objects = {"list": [nest[0].ds, (nest[1].ds,)], "tree": tree}
    nest[0].gate.release_all()
    async with cancelled_at_its_end(lambda: aioxarray.load_async(objects)):
        await nest[0].counter.completed(REQUESTS)
        await nest[1].gate.requested("*/c/*", REQUESTS)
        await nest[2].gate.requested("*/c/*", REQUESTS)
    for loading in nest:
        # The first, too, all of whose requests had completed.
        loading.assert_untouched()
    assert len(lazy(tree)) == VARIABLES
    for loading in nest:
        await anyio.to_thread.run_sync(loading.assert_loads)


@pytest.mark.parametrize("part", ["index", "chunk"])
@every_loop
async def test_cancelling_inside_a_shard(part: str) -> None:
    store = written(1, 64, shard=64)
    gate = GatedStore(store, keys="*/c/*")
    counter = CompletionStore(gate)
    ds = await anyio.to_thread.run_sync(lazily, counter)
    ds = ds.isel(x=slice(3, None, 64))
    counter.log.clear()
    async with cancelled_at_its_end(lambda: aioxarray.load_async(ds)):
        await gate.requested("*/c/*", 8)
        if part == "chunk":
            gate.release("v0/c/5")
            await counter.completed(2)
    assert counter.log.in_flight == 0
    assert lazy(ds) == {"['v0']"}
    gate.release_all()
    await aioxarray.load_async(ds)
    xr.testing.assert_identical(ds, plain(1, 64).isel(x=slice(3, None, 64)))


def test_cancelling_a_task_of_asyncio_more_than_once() -> None:
    async def main() -> None:
        task = asyncio.create_task(aioxarray.load_async(loading.ds))
        await loading.let_complete(4, REQUESTS)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        loading.assert_untouched()

    loading = Loading()
    asyncio.run(main())
    loading.assert_loads()


@pytest.mark.parametrize("completed", [0, 5, REQUESTS - 1])
def test_interrupting_a_blocking_load(completed: int) -> None:
    loading = Loading()
    main_thread = threading.main_thread().ident
    assert main_thread == threading.get_ident()

    def interrupt() -> None:
        asyncio.run(loading.let_complete(completed, REQUESTS))
        signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        aioxarray.load(loading.ds)
    loading.assert_untouched()
    thread.join()
    loading.assert_loads()


def test_the_end_of_the_callers_loop_ends_the_load() -> None:
    async def main() -> None:
        background.append(asyncio.create_task(aioxarray.load_async(loading.ds)))
        await loading.gate.requested("*/c/*", REQUESTS)

    background: list[asyncio.Task[Any]] = []
    loading = Loading()
    asyncio.run(main())
    assert background[0].cancelled()
    loading.assert_untouched()
    loading.assert_loads()


# --- timeouts --------------------------------------------------------------------------------


@every_loop
async def test_a_timeout_of_zero_ends_the_load_at_once() -> None:
    loading = await anyio.to_thread.run_sync(Loading)
    with pytest.raises(TimeoutError, match="timeout of 0 s"):
        await aioxarray.load_async(loading.ds, timeout=0)
    loading.assert_untouched()
    await anyio.to_thread.run_sync(loading.assert_loads)


def test_a_timeout_of_zero_ends_a_blocking_load() -> None:
    loading = Loading()
    with pytest.raises(TimeoutError, match="timeout of 0 s"):
        aioxarray.load(loading.ds, timeout=0)
    loading.assert_untouched()
    loading.assert_loads()


@pytest.mark.parametrize(("timeout", "done"), [(0.5, 0), (2.5, 8), (5.5, 20), (11.5, 44)])
def test_a_timeout_says_how_far_the_load_came(timeout: float, done: int) -> None:
    latency = LatencyStore(written(1, 48), 0.0)
    counter = RecordingStore(latency)
    ds = lazily(counter)
    counter.log.clear()
    latency.latency_s = 1.0
    clock = VirtualClock()
    with pytest.raises(TimeoutError) as caught:
        clock.run(lambda: aioxarray.load_async(ds, timeout=timeout, concurrency=4))
    assert f"timeout of {timeout} s: {64 * done} of {48 * 64} bytes" in str(caught.value)
    assert clock.elapsed_s == timeout
    assert (counter.log.completed, counter.log.cancelled, counter.log.in_flight) == (done, 4, 0)
    assert lazy(ds) == {"['v0']"}
    clock.run(lambda: aioxarray.load_async(ds, timeout=12.5, concurrency=4))
    same(ds, 1, 48)


def test_a_timeout_counts_the_waiting_for_places() -> None:
    latency = LatencyStore(written(2, 20), 0.0)
    counter = RecordingStore(latency)
    first, second = lazily(counter), lazily(counter)
    latency.latency_s = 10.0

    async def main() -> None:
        task = asyncio.create_task(aioxarray.load_async(first))
        await asyncio.sleep(1)
        counter.log.clear()
        with pytest.raises(TimeoutError):
            await aioxarray.load_async(second, timeout=5)
        assert clock.elapsed_s == 6
        assert counter.log.requests == ()
        await task

    clock = VirtualClock()
    with aioxarray.config.set(concurrency=40):
        clock.run(main)
    assert clock.elapsed_s == 10
    same(first, 2, 20)
    assert len(lazy(second)) == 2


def test_a_timeout_error_of_the_stores_own_is_not_taken_for_ours() -> None:
    error = TimeoutError("the store gave up")
    store = FaultyStore.kth(written(1, 4), 2, error, keys="*/c/*")
    ds = lazily(store)
    once = aioxarray.config.set({"retry.attempts": 1})
    with once, pytest.raises(TimedOutError, match="the server did not answer in time") as caught:
        aioxarray.load(ds, timeout=1000)
    assert caught.value.__cause__ is error


# --- errors ----------------------------------------------------------------------------------


class StoreError(Exception):
    """An error of a store of an unknown class."""


def load_on(backend: str) -> Callable[[Any], None]:
    if backend == "blocking":
        return lambda obj: aioxarray.load(obj) and None
    name, options = LOOPS[backend]

    def run(obj: Any) -> None:
        anyio.run(aioxarray.load_async, obj, backend=name, backend_options=options)

    return run


@pytest.mark.parametrize("failing", range(REQUESTS))
@pytest.mark.parametrize("backend", ["blocking", *LOOPS])
def test_an_error_in_any_request_ends_the_others(failing: int, backend: str) -> None:
    faulty = FaultyStore.kth(
        GatedStore(written(VARIABLES, CHUNKS), keys="*/c/*"), failing, StoreError, keys="*/c/*"
    )
    loading = Loading(faulty)
    # The outer gate lets all come together; behind it, all but the failing one are held.

    def let_all_come() -> None:
        loading.gate.wait_requested("*/c/*", PATIENCE_S, REQUESTS)
        loading.gate.release_all()

    before = tasks_on_io_loop()
    release = threading.Thread(target=let_all_come)
    release.start()
    with pytest.raises(StoreError) as caught:
        load_on(backend)(loading.ds)
    loading.assert_untouched()
    release.join()
    log = loading.counter.log
    assert (log.failed, log.cancelled, log.completed) == (1, REQUESTS - 1, 0)
    assert_idle(before)
    # It says where: the chunk's key and store, and the variable.
    notes = "\n".join(caught.value.__notes__)
    key = str(caught.value).split("'")[1]
    assert f"in chunk '{key}' of '{printable(faulty)}'" in notes
    assert f"while loading variable '{key[:2]}'" in notes
    # The failing request was an accident; repeated, it succeeds.
    inner: Any = faulty._store
    inner.release_all()
    loading.assert_loads()


@pytest.mark.parametrize("failing", range(5))
def test_an_error_with_few_places(failing: int) -> None:
    faulty = FaultyStore.kth(written(VARIABLES, CHUNKS), failing, StoreError, keys="*/c/*")
    counter = RecordingStore(faulty)
    ds = lazily(counter)
    counter.log.clear()
    with pytest.raises(StoreError):
        aioxarray.load(ds, concurrency=1)
    # Another may begin before the news is through, but not all of them.
    assert failing <= counter.log.completed < REQUESTS
    assert (counter.log.failed, counter.log.in_flight) == (1, 0)
    assert lazy(ds) == ALL_LAZY
    aioxarray.load(ds)
    same(ds, VARIABLES, CHUNKS)


def test_an_error_is_the_very_same_object_and_named_once() -> None:
    error = StoreError("original")
    ds = lazily(FaultyStore.kth(written(VARIABLES, CHUNKS), 7, error, keys="*/c/*"))
    with pytest.raises(StoreError) as caught:
        aioxarray.load({"here": [ds]})
    assert caught.value is error
    assert error.__cause__ is None
    assert len(error.__notes__) == 3
    assert error.__notes__[0].startswith("1 attempt: StoreError")
    assert error.__notes__[2].endswith("in obj['here'][0]")


def test_when_all_fail_one_error_is_raised() -> None:
    store = FaultyStore(written(VARIABLES, CHUNKS), lambda index, request: StoreError(str(index)))
    good = RecordingStore(store)
    with pytest.raises(StoreError):
        lazily(good)
    faulty = FaultyStore(
        written(VARIABLES, CHUNKS), lambda index, request: StoreError(str(index)), keys="*/c/*"
    )
    ds = lazily(faulty)
    with pytest.raises(StoreError):
        aioxarray.load(ds)
    assert lazy(ds) == ALL_LAZY


@pytest.mark.parametrize("failing", range(4))
def test_an_error_inside_a_shard(failing: int) -> None:
    # Two shards: their indexes, and a chunk of each.
    faulty = FaultyStore.kth(written(1, 16, shard=64), failing, StoreError, keys="*/c/*")
    counter = RecordingStore(faulty)
    ds = lazily(counter).isel(x=slice(3, None, 64))
    counter.log.clear()
    with pytest.raises(StoreError) as caught:
        aioxarray.load(ds, concurrency=1)
    assert any("in chunk 'v0/c/" in note for note in caught.value.__notes__)
    assert counter.log.in_flight == 0
    assert lazy(ds) == {"['v0']"}
    aioxarray.load(ds)
    xr.testing.assert_identical(ds, plain(1, 16).isel(x=slice(3, None, 64)))


def test_an_error_of_one_object_leaves_all_lazy() -> None:
    good = [Loading() for _ in range(2)]
    faulty = FaultyStore.kth(written(1, 1), 0, StoreError, keys="*/c/*")
    bad = Loading(faulty)

    def release() -> None:
        for loading in (*good, bad):
            count = 1 if loading is bad else REQUESTS
            loading.gate.wait_requested("*/c/*", PATIENCE_S, count)
        bad.gate.release_all()

    thread = threading.Thread(target=release)
    thread.start()
    with pytest.raises(StoreError):
        aioxarray.load((good[0].ds, [bad.ds], {"a": good[1].ds}))
    thread.join()
    assert lazy(bad.ds) == {"['v0']"}
    for loading in good:
        loading.assert_untouched()
        loading.assert_loads()
    aioxarray.load(bad.ds)
    same(bad.ds, 1, 1)


def test_a_corrupt_chunk_ends_the_others() -> None:
    store = FaultyStore.corrupt(written(VARIABLES, CHUNKS), "v1/c/2", lambda data: data[:-9])
    counter = RecordingStore(store)
    ds = lazily(counter)
    with pytest.raises(RuntimeError) as caught:
        aioxarray.load(ds)
    notes = "\n".join(caught.value.__notes__)
    assert "'v1/c/2'" in notes
    assert "variable 'v1'" in notes
    assert counter.log.in_flight == 0
    assert lazy(ds) == ALL_LAZY


# --- blocking backends, dask -----------------------------------------------------------------


class GatedArray(BackendArray):
    """An array of some other backend, whose reads wait until the test lets them end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.shape = (3,)
        self.dtype = np.dtype("i8")
        self.begun, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self.reads = 0
        self._error = error

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: Any) -> Any:
        self.reads += 1
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.ended.set()
        if self._error is not None:
            raise self._error
        return np.arange(3)[key]

    def dataset(self) -> xr.Dataset:
        return xr.Dataset({"a": xr.Variable("x", indexing.LazilyIndexedArray(self))})


@every_loop
async def test_cancelling_a_blocking_read_returns_while_it_goes_on_unheard() -> None:
    array = GatedArray()
    ds = array.dataset()
    async with cancelled_at_its_end(lambda: aioxarray.load_async(ds)):
        assert await anyio.to_thread.run_sync(array.begun.wait, PATIENCE_S)
    # The load is over, and the read is not.
    assert not array.ended.is_set()
    assert lazy(ds) == {"['a']"}
    array.may_end.set()
    assert await anyio.to_thread.run_sync(array.ended.wait, PATIENCE_S)
    assert lazy(ds) == {"['a']"}
    await aioxarray.load_async(ds)
    assert ds.a.values.tolist() == [0, 1, 2]
    assert array.reads == 2


@every_loop
async def test_an_error_in_a_cancelled_read_is_discarded() -> None:
    array = GatedArray(StoreError("unheard"))
    ds = array.dataset()
    async with cancelled_at_its_end(lambda: aioxarray.load_async(ds)):
        assert await anyio.to_thread.run_sync(array.begun.wait, PATIENCE_S)
    array.may_end.set()
    assert await anyio.to_thread.run_sync(array.ended.wait, PATIENCE_S)


def test_an_error_of_a_request_does_not_wait_for_a_blocking_read() -> None:
    array = GatedArray()
    faulty = FaultyStore.kth(written(1, 1), 0, StoreError, keys="*/c/*")
    loading = Loading(faulty)

    def release() -> None:
        assert array.begun.wait(PATIENCE_S)
        loading.gate.release_all()

    thread = threading.Thread(target=release)
    thread.start()
    ds = array.dataset()
    with pytest.raises(StoreError):
        aioxarray.load([ds, loading.ds])
    assert not array.ended.is_set()
    assert lazy([ds, loading.ds]) == {"[0]['a']", "[1]['v0']"}
    thread.join()
    array.may_end.set()
    assert array.ended.wait(PATIENCE_S)


def test_an_error_of_a_blocking_read_ends_the_requests() -> None:
    array = GatedArray(StoreError("of the backend"))
    loading = Loading()

    def release() -> None:
        loading.gate.wait_requested("*/c/*", PATIENCE_S, REQUESTS)
        array.may_end.set()

    thread = threading.Thread(target=release)
    thread.start()
    with pytest.raises(StoreError, match="of the backend") as caught:
        aioxarray.load([array.dataset(), loading.ds])
    assert "variable 'a' in obj[0]" in "\n".join(caught.value.__notes__)
    loading.assert_untouched()
    thread.join()
    loading.assert_loads()


class DaskBlocks:
    """A dask array whose blocks wait until the test lets them end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.lock = threading.Lock()
        self.started = self.ended = 0
        self.ended_one = threading.Semaphore(0)

    def _block(self, block: Any) -> Any:
        with self.lock:
            self.started += 1
        self.begun.release()
        assert self.may_end.wait(PATIENCE_S)
        with self.lock:
            self.ended += 1
        self.ended_one.release()
        return block + 1

    def dataset(self) -> xr.Dataset:
        zeros = dask.array.zeros(100, chunks=1, dtype="i8")
        # With a meta, so that dask does not call the function to learn what it returns.
        blocks = zeros.map_blocks(self._block, dtype="i8", meta=np.zeros(0, "i8"))
        return xr.Dataset({"d": ("x", blocks)})


@every_loop
async def test_cancelling_a_dask_computation_begins_no_more_tasks() -> None:
    blocks = DaskBlocks()
    ds = blocks.dataset()
    with dask.config.set(scheduler="threads", num_workers=2):
        async with cancelled_at_its_end(lambda: aioxarray.load_async(ds)):
            for _ in range(2):
                assert await anyio.to_thread.run_sync(blocks.begun.acquire, True, PATIENCE_S)
        # At once, with two blocks at work, of a hundred.
        assert blocks.ended == 0
        assert lazy(ds) == {"['d']"}
        blocks.may_end.set()
        for _ in range(2):
            assert await anyio.to_thread.run_sync(blocks.ended_one.acquire, True, PATIENCE_S)
        await aioxarray.load_async(ds)
        # All hundred of the second load, and of the first only those that had been begun (two,
        # or a few that dask had handed to its threads before).
        assert 102 <= blocks.started <= 106
    assert ds.d.values.tolist() == [1] * 100


def test_an_error_in_dask_ends_the_requests() -> None:
    def fail(block: Any) -> Any:
        assert requested.wait(PATIENCE_S)
        raise StoreError("in a block")

    requested = threading.Event()
    array = dask.array.zeros(4, chunks=1).map_blocks(fail, dtype="f8", meta=np.zeros(0))
    loading = Loading()

    def release() -> None:
        loading.gate.wait_requested("*/c/*", PATIENCE_S, REQUESTS)
        requested.set()

    thread = threading.Thread(target=release)
    thread.start()
    ds = xr.Dataset({"d": ("y", array)})
    with pytest.raises(StoreError, match="in a block"):
        aioxarray.load([ds, loading.ds])
    thread.join()
    loading.assert_untouched()
    assert lazy(ds) == {"['d']"}
    loading.assert_loads()
