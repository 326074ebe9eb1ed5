"""The store wrappers count, delay, hold and fail exactly what they say they do."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import RangeByteRequest, Store, SupportsGetSync
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from aioxarray.testing import (
    FaultyStore,
    GatedStore,
    LatencyStore,
    LogSnapshot,
    RecordingStore,
    Request,
    RequestLog,
)

PROTOTYPE = default_buffer_prototype()


def buffer(data: bytes) -> Any:
    return PROTOTYPE.buffer.from_bytes(data)


def memory(**values: bytes) -> MemoryStore:
    return MemoryStore({key.replace("_", "/"): buffer(data) for key, data in values.items()})


async def read(store: Store, key: str) -> bytes | None:
    value = await store.get(key, PROTOTYPE)
    return None if value is None else value.to_bytes()


def requests(store: RecordingStore) -> list[tuple[str, str]]:
    return [(request.method, request.key) for request in store.log.requests]


CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "get": lambda store: store.get("a/0", PROTOTYPE),
    "exists": lambda store: store.exists("a/0"),
    "getsize": lambda store: store.getsize("a/0"),
    "set": lambda store: store.set("a/0", buffer(b"x")),
    "set_if_not_exists": lambda store: store.set_if_not_exists("a/0", buffer(b"x")),
    "delete": lambda store: store.delete("a/0"),
}


@pytest.mark.parametrize("method", CALLS)
def test_each_call_is_one_request_and_does_what_the_store_does(method: str) -> None:
    async def main() -> None:
        store, plain = RecordingStore(memory(a_0=b"0", a_1=b"1")), memory(a_0=b"0", a_1=b"1")
        ours, theirs = await CALLS[method](store), await CALLS[method](plain)
        assert ours == theirs or isinstance(ours, PROTOTYPE.buffer)
        assert requests(store) == [(method, "a/0")]
        assert [key async for key in store._store.list()] == [key async for key in plain.list()]
        assert (store.log.completed, store.log.in_flight) == (1, 0)

    asyncio.run(main())


def test_listing_is_one_request_however_far_it_is_read() -> None:
    async def main() -> None:
        store = RecordingStore(memory(a_0=b"0", a_1=b"1", b_0=b"2"))
        assert sorted([key async for key in store.list()]) == ["a/0", "a/1", "b/0"]
        assert sorted([key async for key in store.list_prefix("a/")]) == ["a/0", "a/1"]
        assert sorted([key async for key in store.list_dir("")]) == ["a", "b"]
        assert not await store.is_empty("a")
        assert requests(store) == [
            ("list", ""),
            ("list_prefix", "a/"),
            ("list_dir", ""),
            ("list_prefix", "a/"),
        ]
        assert store.log.in_flight == 0

    asyncio.run(main())


def test_bulk_calls_count_each_request() -> None:
    async def main() -> None:
        store = RecordingStore(memory(a_0=b"zero", a_1=b"one"))
        part = RangeByteRequest(0, 2)
        values = await store.get_partial_values(PROTOTYPE, [("a/0", part), ("a/2", None)])
        assert [value and value.to_bytes() for value in values] == [b"ze", None]
        assert store.log.requests == (Request("get", "a/0", part), Request("get", "a/2"))

        store.log.clear()
        wanted = [("a/0", PROTOTYPE, None), ("a/1", PROTOTYPE, part)]
        got = {key: value async for key, value in store._get_many(wanted)}
        assert {key: value and value.to_bytes() for key, value in got.items()} == {
            "a/0": b"zero",
            "a/1": b"on",
        }
        await store._set_many([("a/2", buffer(b"2")), ("a/3", buffer(b"3"))])
        assert store.log.count("get") == 2
        assert store.log.count("set", "a/*") == 2

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(Store, "get_ranges"), reason="zarr 3.1 has no get_ranges")
def test_byte_ranges_of_a_shard_are_not_read_round_the_wrapper() -> None:
    async def main() -> None:
        store: Any = RecordingStore(memory(a_0=bytes(range(100))))
        ranges = [RangeByteRequest(0, 2), RangeByteRequest(2, 4), RangeByteRequest(50, 51)]
        got: dict[int, bytes] = {}
        async for group in store.get_ranges("a/0", ranges, prototype=PROTOTYPE, max_gap_bytes=4):
            got |= {index: value.to_bytes() for index, value in group}
        assert got == {0: b"\x00\x01", 1: b"\x02\x03", 2: b"\x32"}
        assert {request.byte_range for request in store.log.requests} == {
            RangeByteRequest(0, 4),
            RangeByteRequest(50, 51),
        }
        store.log.clear()
        async for _ in store.get_ranges("a/0", ranges, prototype=PROTOTYPE, max_gap_bytes=None):
            pass
        assert store.log.count("get") == 1  # zarr's own default gap is 1 MiB

    asyncio.run(main())


def test_there_is_no_synchronous_way_round_a_wrapper() -> None:
    store: Any = RecordingStore(LatencyStore(MemoryStore(), 0.0))
    assert isinstance(MemoryStore(), SupportsGetSync) or not hasattr(MemoryStore, "get_sync")
    assert not isinstance(store, SupportsGetSync)
    assert store._supports_sync_io is False


@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_every_chunk_that_zarr_reads_and_writes_is_counted(pipeline: str) -> None:
    path = f"zarr.core.codec_pipeline.{pipeline}"
    if not hasattr(zarr.core.codec_pipeline, pipeline):
        pytest.skip("not in this zarr")
    with zarr.config.set({"codec_pipeline.path": path}):
        store = RecordingStore(MemoryStore())
        array = zarr.create_array(store, name="a", shape=(40,), chunks=(10,), dtype="i4")
        store.log.clear()
        array[:] = np.arange(40)
        assert store.log.count("set", "a/c/*") == 4
        np.testing.assert_array_equal(array[:], np.arange(40))
        assert store.log.count("get", "a/c/*") == 4

        sharded = zarr.create_array(
            store, name="s", shape=(40,), chunks=(5,), shards=(20,), dtype="i4"
        )
        sharded[:] = np.arange(40)
        store.log.clear()
        np.testing.assert_array_equal(sharded[5:10], np.arange(5, 10))
        parts = [request.byte_range for request in store.log.requests]
        assert len(parts) == 2  # the index of the shard, and one chunk
        assert None not in parts


def test_delete_dir_counts_what_the_store_has_to_do(tmp_path: Any) -> None:
    async def main() -> None:
        one_by_one = RecordingStore(LatencyStore(memory(a_0=b"0", a_1=b"1", b_0=b"2"), 0.0))
        await one_by_one.delete_dir("a")
        assert sorted(requests(one_by_one)) == [
            ("delete", "a/0"),
            ("delete", "a/1"),
            ("list_prefix", "a/"),
        ]
        at_once = RecordingStore(LocalStore(tmp_path))
        await at_once.set("a/0", buffer(b"0"))
        at_once.log.clear()
        await at_once.delete_dir("a")
        await at_once.clear()
        assert requests(at_once) == [("delete_dir", "a"), ("clear", "")]

    asyncio.run(main())


def test_copies_count_in_one_log() -> None:
    async def main() -> None:
        latency = LatencyStore(memory(a_0=b"0"), 0.0)
        store = RecordingStore(latency)
        copy = store.with_read_only(True)
        assert (copy.read_only, store.read_only) == (True, False)
        await read(copy, "a/0")
        with store as entered:
            await read(entered, "a/0")
        assert store.log is copy.log
        assert store.log.count("get", "a/*") == 2
        latency.latency_s = 0.5
        assert isinstance(copy._store, LatencyStore)
        assert copy._store.latency_s == 0.5

    asyncio.run(main())


def test_a_dataset_is_the_same_through_a_wrapper() -> None:
    data = xr.Dataset({"a": (("y", "x"), np.arange(12.0).reshape(3, 4))}, {"x": [4, 3, 2, 1]})
    store = RecordingStore(LatencyStore(MemoryStore(), 0.0))
    data.chunk(x=2).to_zarr(store, consolidated=False)
    store.log.clear()
    loaded = xr.open_zarr(store, chunks=None, consolidated=False).load()
    xr.testing.assert_identical(loaded, data)
    assert store.log.count("get", "a/c/*") == 2
    assert store.log.failed == store.log.cancelled == store.log.in_flight == 0


def test_most_in_flight_is_exact_with_a_gate() -> None:
    async def main() -> None:
        gated = GatedStore(memory(**{f"a_{i}": b"x" for i in range(7)}))
        store = RecordingStore(gated)
        readers = [asyncio.create_task(read(store, f"a/{i}")) for i in range(7)]
        await gated.requested("a/*", count=7)
        assert store.log.in_flight == store.log.most_in_flight == 7
        assert gated.waiting == tuple(f"a/{i}" for i in range(7))
        gated.release("a/3")
        assert await readers[3] == b"x"
        assert store.log.in_flight == 6
        readers[0].cancel()
        await asyncio.wait([readers[0]])
        assert "a/0" not in gated.waiting
        gated.release_all()
        assert await asyncio.gather(*readers[1:]) == [b"x"] * 6
        log = store.log
        assert (log.in_flight, log.most_in_flight, log.completed, log.cancelled) == (0, 7, 6, 1)
        assert gated.waiting == ()

    asyncio.run(main())


def test_a_gate_sets_the_order_of_answers() -> None:
    async def main() -> None:
        store = GatedStore(memory(t_0=b"0", t_1=b"1"))
        answers: list[bytes | None] = []

        async def reader(key: str) -> None:
            answers.append(await read(store, key))

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(reader("t/0"))
            second = tasks.create_task(reader("t/1"))
            await store.requested("t/1")
            store.release("t/1")
            await second
            assert not first.done()
            store.release("t/0")
        assert answers == [b"1", b"0"]

    asyncio.run(main())


def test_a_gate_holds_only_what_it_was_told_to() -> None:
    async def main() -> None:
        store = GatedStore(memory(a_zarr=b"meta", a_c_0=b"0"), keys="*/c/*", methods=["set", "get"])
        assert await read(store, "a/zarr") == b"meta"
        store.release("a/c/*")
        assert await read(store, "a/c/0") == b"0"
        store.hold("a/c/0")
        writing = asyncio.create_task(store.set("a/c/0", buffer(b"new")))
        await store.requested("a/c/0", count=2)
        assert store.waiting == ("a/c/0",)
        store.release("*/0")
        await writing

    asyncio.run(main())


def test_a_gate_works_across_threads_and_loops() -> None:
    store = GatedStore(memory(a_0=b"0", a_1=b"1"))
    got: list[bytes | None] = []
    threads = [
        threading.Thread(target=lambda key=key: got.append(asyncio.run(read(store, key))))
        for key in ("a/0", "a/1")
    ]
    for thread in threads:
        thread.start()
    store.wait_requested("a/*", count=2)
    store.release("a/1")
    threads[1].join()
    assert got == [b"1"]

    async def from_another_loop() -> None:
        await store.requested("a/0")
        store.release("a/0")

    asyncio.run(from_another_loop())
    threads[0].join()
    assert got == [b"1", b"0"]


def test_a_trio_test_can_wait_at_the_gate() -> None:
    trio = pytest.importorskip("trio")
    store = GatedStore(memory(a_0=b"0"))
    got: list[bytes | None] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                trio.to_thread.run_sync, lambda: got.append(asyncio.run(read(store, "a/0")))
            )
            await store.requested("a/0")
            assert store.waiting == ("a/0",)
            store.release_all()

    trio.run(main)
    assert got == [b"0"]


def test_waiting_in_vain_says_what_is_held() -> None:
    async def main() -> None:
        store = GatedStore(memory(a_0=b"0"))
        reader = asyncio.create_task(read(store, "a/0"))
        await store.requested()
        with pytest.raises(TimeoutError, match=r"0 of 1 requests for 'b/\*'.*held: a/0"):
            store.wait_requested("b/*", timeout_s=0.0)
        store.release_all()
        await reader

    asyncio.run(main())


@pytest.mark.parametrize("k", range(3))
def test_the_kth_request_fails_once(k: int) -> None:
    async def main() -> None:
        store = RecordingStore(FaultyStore.kth(memory(a_0=b"0", a_1=b"1", a_2=b"2"), k))
        failed = []
        for i in range(3):
            try:
                await read(store.with_read_only(), f"a/{i}")
            except OSError as error:
                failed.append((i, str(error)))
        assert failed == [(k, f"injected failure of request {k}: get 'a/{k}'")]
        assert (store.log.completed, store.log.failed) == (2, 1)
        assert await read(store, f"a/{k}") == str(k).encode()

    asyncio.run(main())


def test_faults_can_be_chosen_by_key_and_error() -> None:
    async def main() -> None:
        error = PermissionError("no")
        store = FaultyStore.kth(memory(a_c=b"0", meta=b"m"), 0, error, keys="a/*")
        assert await read(store, "meta") == b"m"
        with pytest.raises(PermissionError) as caught:
            await read(store, "a/c")
        assert caught.value is error
        assert await read(store, "a/c") == b"0"
        store.restart()
        with pytest.raises(PermissionError):
            await read(store, "a/c")

        writes_fail = FaultyStore(
            MemoryStore(), lambda _, request: ValueError("no") if request.method == "set" else None
        )
        with pytest.raises(ValueError, match="no"):
            await writes_fail.set("a", buffer(b""))
        assert not await writes_fail.exists("a")

    asyncio.run(main())


def test_corrupt_changes_the_bytes_of_matching_keys() -> None:
    async def main() -> None:
        store = FaultyStore.corrupt(
            memory(a_0=b"good", b_0=b"good"), "a/*", lambda data: data[:-1]
        ).with_read_only(True)
        assert await read(store, "a/0") == b"goo"
        assert await read(store, "b/0") == b"good"
        assert await read(store, "a/missing") is None

    asyncio.run(main())


def test_a_failed_bulk_read_leaves_nothing_in_flight() -> None:
    async def main() -> None:
        store = RecordingStore(
            FaultyStore.kth(GatedStore(memory(a_0=b"0", a_1=b"1"), keys="a/0"), 1)
        )
        with pytest.raises(OSError, match="request 1"):
            await store.get_partial_values(PROTOTYPE, [("a/0", None), ("a/1", None)])
        assert (store.log.in_flight, store.log.failed, store.log.cancelled) == (0, 1, 1)

    asyncio.run(main())


def test_clear_forgets_requests_that_end_later() -> None:
    log = RequestLog()
    with log.record(Request("get", "a")):
        log.clear()
        assert (log.requests, log.in_flight, log.most_in_flight) == ((), 1, 1)
    assert log.snapshot() == LogSnapshot(most_in_flight=1)


def test_a_pickled_log_counts_for_itself() -> None:
    log = RequestLog()
    with log.record(Request("get", "a")):
        other = pickle.loads(pickle.dumps(log))
        assert (other.in_flight, other.requests) == (0, ())
    assert "1 completed" in repr(log)
