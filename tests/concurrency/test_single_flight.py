"""Chunks that several loads want at once are requested once, whatever happens to a load."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._zarr.stores.grants import decoders
from aioxarray._zarr.stores.sharing import forget
from aioxarray._zarr.stores.sources import FileSource
from aioxarray.testing import FaultyStore, GatedStore, RecordingStore
from tests.concurrency.helpers import PATIENCE_S, followed, lazily, same, written

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNKS = 4


class Shared:
    """A store whose chunks are held, and counted."""

    def __init__(self, store: Any = None) -> None:
        self.gate = GatedStore(written(1, CHUNKS) if store is None else store, keys="*/c/*")
        self.counter = RecordingStore(self.gate)
        # Opened once: each copy is as lazy, on the same store.
        self.ds = lazily(self.counter)

    def load(self) -> asyncio.Task[xr.Dataset]:
        return asyncio.create_task(aioxarray.compute_async(self.ds))

    @property
    def requests(self) -> int:
        return self.counter.log.count("get", "*/c/*")


def run(main: Any) -> None:
    async def patiently() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await main()

    asyncio.run(patiently())


def test_each_chunk_is_requested_once() -> None:
    shared = Shared()

    async def main() -> None:
        loads = [shared.load() for _ in range(8)]
        await followed(7 * CHUNKS)
        shared.gate.release_all()
        for loaded in await asyncio.gather(*loads):
            same(loaded, 1, CHUNKS)

    run(main)
    assert shared.requests == CHUNKS


def test_if_the_leading_load_is_cancelled_another_takes_over() -> None:
    shared = Shared()

    async def main() -> None:
        first = shared.load()
        await shared.gate.requested("*/c/*", CHUNKS)
        second, third = shared.load(), shared.load()
        await followed(2 * CHUNKS)
        first.cancel()
        await shared.gate.requested("*/c/*", 2 * CHUNKS)
        await followed(CHUNKS)
        shared.gate.release_all()
        same(await second, 1, CHUNKS)
        same(await third, 1, CHUNKS)
        assert first.cancelled()

    run(main)
    assert shared.requests == 2 * CHUNKS


def test_cancelling_a_follower_changes_nothing_for_the_leading_load() -> None:
    shared = Shared()

    async def main() -> None:
        first, second = shared.load(), shared.load()
        await followed(CHUNKS)
        second.cancel()
        await asyncio.wait([second])
        shared.gate.release_all()
        same(await first, 1, CHUNKS)

    run(main)
    assert shared.requests == CHUNKS


def test_an_error_reaches_all_loads_and_is_not_kept() -> None:
    shared = Shared(FaultyStore.kth(written(1, CHUNKS), 0, OSError("broken"), keys="*/c/0"))

    async def main() -> None:
        loads = [shared.load() for _ in range(3)]
        await followed(2 * CHUNKS)
        shared.gate.release("*/c/0")
        errors = await asyncio.gather(*loads, return_exceptions=True)
        assert [str(error) for error in errors] == ["broken"] * 3
        for error in errors:
            assert isinstance(error, OSError)
            notes = [note for note in error.__notes__ if note.startswith("in chunk")]
            assert len(notes) == 1, "those of the others are not added"
        shared.gate.release_all()
        same(await shared.load(), 1, CHUNKS)

    run(main)


def test_loops_of_several_threads_share() -> None:
    shared = Shared()
    loaded: list[xr.Dataset] = []

    def load() -> None:
        loaded.append(asyncio.run(aioxarray.compute_async(shared.ds)))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    run(lambda: followed(CHUNKS))
    shared.gate.release_all()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(loaded) == 2
    for ds in loaded:
        same(ds, 1, CHUNKS)
    assert shared.requests == CHUNKS


def test_reads_after_a_write_do_not_follow_reads_before_it() -> None:
    shared = Shared()

    async def main() -> None:
        first = shared.load()
        await shared.gate.requested("*/c/*", CHUNKS)
        forget(shared.gate)
        second = shared.load()
        await shared.gate.requested("*/c/*", 2 * CHUNKS)
        shared.gate.release_all()
        await asyncio.gather(first, second)

    run(main)
    assert shared.requests == 2 * CHUNKS


def test_stores_with_equal_values_are_not_the_same() -> None:
    several = [Shared() for _ in range(2)]

    async def main() -> None:
        loads = [shared.load() for shared in several]
        for shared in several:
            await shared.gate.requested("*/c/*", CHUNKS)
            shared.gate.release_all()
        await asyncio.gather(*loads)

    run(main)
    assert [shared.requests for shared in several] == [CHUNKS] * 2


def test_chunks_that_zarrs_own_codecs_decode_are_shared_too() -> None:
    store = MemoryStore()
    ds = xr.Dataset({"v0": ("x", np.arange(CHUNKS * 8))})
    encoding = {"v0": {"chunks": (8,), "filters": [numcodecs.Delta("i8")]}}
    ds.to_zarr(store, zarr_format=2, consolidated=False, encoding=encoding)
    gate = GatedStore(store, keys="v0/[0-9]")
    counter = RecordingStore(gate)
    lazy = lazily(counter)

    async def main() -> None:
        loads = [asyncio.create_task(aioxarray.compute_async(lazy)) for _ in range(8)]
        await followed(7 * CHUNKS)
        gate.release_all()
        for loaded in await asyncio.gather(*loads):
            xr.testing.assert_identical(loaded, ds)

    run(main)
    assert counter.log.count("get", "v0/[0-9]") == CHUNKS


# --- shards --------------------------------------------------------------------------------------

# 64 inner chunks in 4 shards.
LENGTH, INNER, SHARD = 32, 4, 16


class Sharded(Shared):
    """A dataset in two dimensions and in shards, whose requests are held, and counted."""

    def __init__(self, faulty: bool = False) -> None:
        values = np.arange(LENGTH * LENGTH).reshape(LENGTH, LENGTH)
        self.plain = xr.Dataset({"v0": (("y", "x"), values)})
        store = MemoryStore()
        encoding = {"v0": {"chunks": (INNER,) * 2, "shards": (SHARD,) * 2}}
        self.plain.to_zarr(store, zarr_format=3, consolidated=False, encoding=encoding)
        super().__init__(
            FaultyStore.kth(store, 0, OSError("broken"), keys="*/c/0/0") if faulty else store
        )

    def window(self, part: Mapping[str, slice]) -> asyncio.Task[xr.Dataset]:
        return asyncio.create_task(aioxarray.compute_async(self.ds.isel(part)))

    def bytes_twice(self) -> int:
        """Return how many bytes were requested more than once."""
        counts: dict[str, Any] = {}
        for request in self.counter.log.requests:
            count = counts.setdefault(request.key, np.zeros(1 << 16, int))
            asked = request.byte_range
            if isinstance(asked, RangeByteRequest):
                count[asked.start : asked.end] += 1
        return sum(int((count > 1).sum()) for count in counts.values())


WINDOWS = [
    {"y": slice(y, y + 9), "x": slice(x, x + 9)} for y in range(0, 24, 3) for x in range(0, 24, 3)
]


UNMERGED = {"array.sharding_coalesce_max_gap_bytes": 0}


@pytest.mark.parametrize("order", [1, -1])
def test_overlapping_windows_of_shards_fetch_each_range_once(order: int) -> None:
    # Else unwanted bytes are read where that saves a request. From zarr 3.3 on an array has the
    # setting of the moment at which it was opened.
    with zarr.config.set(UNMERGED):
        shared = Sharded()
    inner = [
        (y, x)
        for part in WINDOWS
        for y in range(part["y"].start // INNER, (part["y"].stop - 1) // INNER + 1)
        for x in range(part["x"].start // INNER, (part["x"].stop - 1) // INNER + 1)
    ]

    async def main() -> None:
        loads = [shared.window(part) for part in WINDOWS[::order]]
        # Loads that lead in a shard besides the first one wait for its index.
        await shared.gate.requested("*/c/*", 4)
        await followed(len(inner) - len(set(inner)))
        shared.gate.release_all()
        for part, loaded in zip(WINDOWS[::order], await asyncio.gather(*loads), strict=True):
            xr.testing.assert_identical(loaded, shared.plain.isel(part))

    with zarr.config.set(UNMERGED):
        run(main)
    assert shared.bytes_twice() == 0
    suffixes = [
        request
        for request in shared.counter.log.requests
        if request.byte_range is not None and not isinstance(request.byte_range, RangeByteRequest)
    ]
    assert len(suffixes) == 4, "one a shard's index"


def test_an_error_in_a_shard_reaches_all_loads_of_it() -> None:
    shared = Sharded(faulty=True)
    part = {"y": slice(8), "x": slice(8)}

    async def main() -> None:
        loads = [shared.window(part) for _ in range(3)]
        await followed(2 * 4)
        shared.gate.release("*/c/*")
        errors = await asyncio.gather(*loads, return_exceptions=True)
        assert [str(error) for error in errors] == ["broken"] * 3
        shared.gate.release_all()
        xr.testing.assert_identical(await shared.window(part), shared.plain.isel(part))

    run(main)


def test_if_the_leading_load_of_a_shard_is_cancelled_another_takes_over() -> None:
    shared = Sharded()
    part = {"y": slice(8), "x": slice(8)}

    async def main() -> None:
        first = shared.window(part)
        await shared.gate.requested("*/c/*", 1)
        second = shared.window(part)
        await followed(4)
        first.cancel()
        await shared.gate.requested("*/c/*", 2)
        shared.gate.release_all()
        xr.testing.assert_identical(await second, shared.plain.isel(part))
        assert first.cancelled()

    run(main)
    assert shared.requests == 3, "the index twice, and the range"


def test_an_error_in_opening_a_local_shard_reaches_loads_of_other_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    ds = xr.Dataset({"v0": ("x", np.arange(16))})
    encoding = {"v0": {"chunks": (4,), "shards": (16,)}}
    ds.to_zarr(store, zarr_format=3, consolidated=False, encoding=encoding)
    shard = tmp_path / "v0" / "c" / "0"
    shard.unlink()
    shard.symlink_to(shard)
    opens: list[str] = []
    opened = FileSource.opened

    def counted(source: FileSource, key: str) -> Any:
        opens.append(key)
        return opened(source, key)

    monkeypatch.setattr(FileSource, "opened", counted)
    lazy = lazily(store)
    go_on = threading.Event()

    async def main() -> None:
        # The only thread is busy, until the second load follows the first one.
        decoders.resize(1)
        busy = decoders.submit(go_on.wait, PATIENCE_S)
        parts = [lazy.isel(x=slice(start, start + 4)) for start in (0, 4)]
        loads = [asyncio.create_task(aioxarray.compute_async(part)) for part in parts]
        # Of the shard's index.
        await followed(1)
        go_on.set()
        errors = await asyncio.gather(*loads, return_exceptions=True)
        assert busy.result()
        assert all(isinstance(each, OSError) and each.errno == errno.ELOOP for each in errors)

    with aioxarray.config.set(cache="1MiB", threads=1):
        run(main)
    assert opens == ["v0/c/0"]
