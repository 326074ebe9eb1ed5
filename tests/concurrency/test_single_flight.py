"""Chunks that several loads want at once are requested once; who fails or leaves harms nobody."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import aioxarray
from aioxarray._zarr.sharing import forget
from aioxarray.testing import FaultyStore, GatedStore, RecordingStore
from tests.concurrency.helpers import PATIENCE_S, followed, lazily, same, written

if TYPE_CHECKING:
    import xarray as xr

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


def test_when_the_one_who_leads_is_cancelled_another_goes_on() -> None:
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


def test_cancelling_one_who_follows_harms_nobody() -> None:
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


def test_an_error_reaches_all_and_is_forgotten() -> None:
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
