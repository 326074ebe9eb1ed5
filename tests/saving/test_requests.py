"""Round trips, order, limits and memory of saves; what cancelling leaves."""

from __future__ import annotations

import asyncio
import gc
import threading
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore, StorePath

import aioxarray
from aioxarray._runtime.loops import io_loop
from aioxarray._xarray.saving import saver
from aioxarray._zarr.stores import grants
from aioxarray.testing import (
    FaultyStore,
    GatedStore,
    LatencyStore,
    RecordingStore,
    Request,
    VirtualClock,
)
from tests import samples
from tests.saving.helpers import content, copied, plain, sample, tree

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def trips(obj: Any, before: MemoryStore | None = None, **options: Any) -> float:
    """Return how many round trips a save takes without a limit on requests."""
    store = LatencyStore(copied(before or MemoryStore()), 1.0)
    clock = VirtualClock()
    clock.run(lambda: aioxarray.to_zarr_async(obj, store, concurrency=0, **options))
    return clock.elapsed_s


def existing(zarr_format: int) -> MemoryStore:
    store = MemoryStore()
    encoding = {"a": {"chunks": (4, 5)}}
    plain(sample(), store, zarr_format=zarr_format, encoding=encoding)
    return store


def test_round_trips_to_a_new_store() -> None:
    # A listing; chunks; arrays; the group with consolidated metadata.
    assert trips(sample(), zarr_format=3) == 4
    # Groups come before the outermost one.
    assert trips(tree(), zarr_format=3) == 5
    # Attributes are documents of their own, and so is the consolidated metadata.
    assert trips(sample(), zarr_format=2) == 7
    assert trips(tree(), zarr_format=2) == 8


@pytest.mark.parametrize(("zarr_format", "expected"), [(3, 8), (2, 9)])
def test_round_trips_of_an_append(zarr_format: int, expected: int) -> None:
    assert trips(sample(), existing(zarr_format), append_dim="time") <= expected


def test_round_trips_do_not_grow() -> None:
    wide = xr.Dataset({f"v{n}": ("x", np.arange(9)) for n in range(40)})
    assert trips(wide, zarr_format=3) == 4


def test_order_of_the_keys() -> None:
    store = RecordingStore(MemoryStore())
    aioxarray.to_zarr(tree(), store)
    keys = [request.key for request in store.log.requests if request.method == "set"]
    chunks = [index for index, key in enumerate(keys) if "/c" in key and "json" not in key]
    documents = [index for index, key in enumerate(keys) if key.endswith("zarr.json")]
    assert max(chunks) < min(documents)
    assert keys[-1] == "zarr.json"
    groups = [keys.index(f"{path}/zarr.json") for path in ("a", "a/b", "c")]
    assert min(groups) == len(keys) - 4
    assert len(keys) == len(set(keys))


def test_requests_keep_to_the_limit() -> None:
    store = RecordingStore(LatencyStore(MemoryStore(), 0.001))
    encoding = {"a": {"chunks": (1, 10_000)}}
    aioxarray.to_zarr(sample(large=True), store, encoding=encoding, concurrency=3)
    assert store.log.most_in_flight == 3


@pytest.mark.anyio
async def test_a_slow_store_slows_the_reading() -> None:
    size = 1 << 17
    values = np.arange(64 * size, dtype="f8").reshape(64, size)
    source = RecordingStore(samples.stored(xr.Dataset({"a": (("t", "x"), values)}).chunk(t=1), 3))
    lazy = xr.open_zarr(source, chunks=None)
    source.log.clear()
    target = GatedStore(MemoryStore(), keys="*/c/*", methods=("set",))
    with aioxarray.config.set(memory=32 * values[0].nbytes):
        task = asyncio.create_task(aioxarray.to_zarr_async(lazy, target))
        await asyncio.to_thread(target.wait_requested, "*", 20.0, 4)
        await asyncio.sleep(0)
        # An eighth of the memory is for blocks between being read and being written.
        assert saver.staging.in_use <= 8 * values[0].nbytes
        assert source.log.count("get", "a/c/*") <= 16
        target.release_all()
        await task
    assert saver.staging.in_use == grants.memory.in_use == 0
    found = xr.open_zarr(target, chunks=None)
    np.testing.assert_array_equal(found.a[::9], values[::9])


@pytest.mark.anyio
async def test_chunks_that_wait_for_their_turn_are_not_listed() -> None:
    # Many live objects have Python look for garbage, and every thread wait for it.
    values = np.arange(4096 * 32, dtype="f8").reshape(4096, 32)
    gated = GatedStore(MemoryStore(), keys="*/c/*", methods=("set",))
    before = sum(isinstance(each, StorePath) for each in gc.get_objects())
    task = asyncio.create_task(
        aioxarray.to_zarr_async(
            xr.Dataset({"a": (("t", "x"), values)}),
            gated,
            encoding={"a": {"chunks": (1, 32)}},
            concurrency=4,
        )
    )
    await asyncio.to_thread(gated.wait_requested, "*", 20.0, 4)
    places = sum(isinstance(each, StorePath) for each in gc.get_objects()) - before
    gated.release_all()
    await task
    assert places < 100
    np.testing.assert_array_equal(xr.open_zarr(gated, chunks=None).a, values)


@pytest.mark.anyio
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_cancelled_save_leaves_nothing_in_flight(chunked: bool) -> None:
    inner = MemoryStore()
    gated = GatedStore(inner, keys="*/c/*", methods=("set",))
    store = RecordingStore(gated)
    ds = sample(large=True).chunk(time=1) if chunked else sample(large=True)
    task = asyncio.create_task(aioxarray.to_zarr_async(ds, store))
    await asyncio.to_thread(gated.wait_requested, "*", 20.0, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.log.in_flight == 0
    assert store.log.cancelled >= 1
    assert not [key for key in content(inner) if key.endswith("zarr.json")]
    assert saver.staging.in_use == grants.requests.in_use == grants.memory.in_use == 0


def test_a_timeout() -> None:
    store = LatencyStore(MemoryStore(), 60.0)
    with pytest.raises(TimeoutError, match="not saved within the timeout"):
        aioxarray.to_zarr(sample(), store, timeout=0.05)


@pytest.mark.parametrize("chunked", [False, True])
def test_progress_ends_with_all_bytes(chunked: bool) -> None:
    told: list[tuple[int, int]] = []
    ds = sample(large=True)[["a"]]
    obj = ds.chunk(time=2) if chunked else ds
    aioxarray.to_zarr(obj, MemoryStore(), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] >= ds.a.nbytes


def test_icechunk_sessions_are_left_uncommitted(tmp_path: Any) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path)))
    session = repository.writable_session("main")
    aioxarray.to_zarr(sample(large=True), session.store)
    assert session.has_uncommitted_changes
    session.commit("first")
    found = xr.open_zarr(repository.readonly_session("main").store, chunks=None, consolidated=False)
    xr.testing.assert_equal(found, sample(large=True))
    session = repository.writable_session("main")
    with pytest.raises(ValueError, match="append_dim"):
        aioxarray.to_zarr(sample(), session.store, append_dim="nope")
    assert not session.has_uncommitted_changes
    aioxarray.to_zarr(sample(large=True), session.store, append_dim="time")
    assert session.has_uncommitted_changes


@pytest.mark.parametrize("mode", ["w-", "w", "a"])
def test_a_new_group_of_an_icechunk_session(mode: Any) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    store = repository.writable_session("main").store
    for group in ("new", "new/below"):
        aioxarray.to_zarr(sample(), store, group=group, mode=mode)
        found = xr.open_zarr(store, group=group, chunks=None, consolidated=False)
        xr.testing.assert_equal(found, sample())


def test_icechunk_sessions_are_not_listed_on_the_io_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its functions block until the server has answered, and as long as they retry.
    icechunk = pytest.importorskip("icechunk")
    threads: list[threading.Thread] = []
    for name in ("list", "list_dir", "list_prefix"):
        real = getattr(icechunk.IcechunkStore, name)

        def listed(*args: Any, real: Any = real) -> Any:
            threads.append(threading.current_thread())
            return real(*args)

        monkeypatch.setattr(icechunk.IcechunkStore, name, listed)

    async def current() -> threading.Thread:
        return threading.current_thread()

    store = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main").store
    modes: list[Any] = ["w-", "w", "a"]
    for mode in modes:
        aioxarray.to_zarr(sample(), store, group="new", mode=mode)
    aioxarray.open_datatree(store, engine="zarr").close()
    assert threads
    assert asyncio.run_coroutine_threadsafe(current(), io_loop()).result(60) not in threads


@pytest.mark.parametrize("fails", ["*/c/0*", "*zarr.json"])
def test_an_icechunk_session_that_fails_leaves_its_branch_as_it_was(
    fails: str, tmp_path: Any
) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path)))
    session = repository.writable_session("main")
    aioxarray.to_zarr(sample(), session.store)
    first = session.commit("first")
    session = repository.writable_session("main")

    def fail(index: int, request: Request) -> BaseException | None:
        # After some of the writes.
        return (
            OSError("injected") if request.method == "set" and fnmatch(request.key, fails) else None
        )

    with pytest.raises(OSError, match="injected"):
        aioxarray.to_zarr(sample(), FaultyStore(session.store, fail), append_dim="time")
    assert repository.lookup_branch("main") == first
    reader = repository.readonly_session("main").store
    xr.testing.assert_equal(xr.open_zarr(reader, chunks=None, consolidated=False), sample())
    # The caller decides what becomes of the session, and saves again.
    session.discard_changes()
    aioxarray.to_zarr(sample(), session.store, append_dim="time")
    session.commit("second")
    reader = repository.readonly_session("main").store
    assert xr.open_zarr(reader, consolidated=False).sizes["time"] == 12


def test_workers_of_a_cluster_write(tmp_path: Any) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
    )
    with cluster, distributed.Client(cluster):
        ds = sample(large=True).chunk(time=2)
        aioxarray.to_zarr(ds, tmp_path / "cluster.zarr")
    found = xr.open_zarr(tmp_path / "cluster.zarr", chunks=None)
    xr.testing.assert_equal(found, ds.compute(scheduler="sync"))


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_save_on_a_cluster_that_is_cancelled(tmp_path: Any) -> None:
    distributed = pytest.importorskip("distributed")
    from distributed.diagnostics.plugin import SchedulerPlugin

    store = tmp_path / "cluster.zarr"

    def held(values: Any) -> Any:
        distributed.Event("begun").set()
        distributed.Event("may end").wait()
        return values

    class Left(SchedulerPlugin):
        """The tasks that the scheduler knows; tells when there are none any more."""

        def __init__(self) -> None:
            self.keys: set[Any] = set()
            self.none = threading.Event()

        def transition(self, key: Any, start: Any, finish: str, *args: Any, **options: Any) -> None:
            if finish == "forgotten":
                self.keys.discard(key)
            else:
                self.keys.add(key)
            if self.keys:
                self.none.clear()
            else:
                self.none.set()

    def cluster() -> Any:
        return distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
        )

    left = Left()
    with await asyncio.to_thread(cluster) as workers, distributed.Client(workers) as client:
        # The scheduler runs in this process.
        workers.scheduler.add_plugin(left)
        ds = sample(large=True)[["a"]].chunk(time=2)
        ds["a"].data = ds.a.data.map_blocks(held, dtype=ds.a.dtype, meta=np.zeros(0, ds.a.dtype))
        task = asyncio.create_task(aioxarray.to_zarr_async(ds, store))
        begun, may_end = (distributed.Event(name, client) for name in ("begun", "may end"))
        assert await asyncio.to_thread(begun.wait, 60)
        assert left.keys
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # What had not begun never will, and nothing names what was written.
        may_end.set()
        assert await asyncio.to_thread(left.none.wait, 60)
        assert not list(store.rglob("zarr.json"))
        # The cluster is as good as new.
        await aioxarray.to_zarr_async(sample(large=True).chunk(time=2), store, mode="w")
    xr.testing.assert_equal(xr.open_zarr(store, chunks=None), sample(large=True))
