"""With very many chunks, neither the objects alive nor collections of garbage grow with them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore, WrapperStore

import aioxarray
from aioxarray._runtime.window import Part
from aioxarray._xarray.streaming import feed, room
from aioxarray._xarray.streaming.room import _LOADING_PARTS, Room
from aioxarray._zarr import tuning

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNKS = 20_000
# Less than one object for each further chunk, and more than those of the requests in flight.
FEW_OBJECTS = CHUNKS // 4


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """What ``conftest`` has frozen is thawed meanwhile, and nothing stays frozen."""
    gc.unfreeze()
    yield
    assert gc.get_freeze_count() == 0
    gc.freeze()


class Counts:
    """The objects that are alive when the chunks with some numbers are asked for.

    ``counts`` has, for each of these chunks, the objects alive, and the objects that are left out
    of collections. ``failing`` ends the key of a chunk that cannot be had.
    """

    def __init__(self, at: tuple[int, ...], failing: str = "none") -> None:
        self.at = at
        self.failing = failing
        self.asked = 0
        self.counts: list[tuple[int, int]] = []

    def ask(self, key: str) -> None:
        if "/c/" in key:
            self.asked += 1
            if self.asked in self.at:
                # In a process with very many objects, garbage may stay for long.
                gc.collect()
                self.counts.append((len(gc.get_objects()), gc.get_freeze_count()))
        if key.endswith(self.failing):
            assert gc.get_freeze_count() > 0
            raise OSError("gone")


class Counting(WrapperStore[MemoryStore]):
    """A store that is read, or written, by coroutines; it discards what is written to chunks."""

    def __init__(self, store: MemoryStore, counts: Counts) -> None:
        super().__init__(store)
        self.counts = counts

    def _with_store(self, store: MemoryStore) -> Counting:
        return Counting(store, self.counts)

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        self.counts.ask(key)
        await asyncio.sleep(0)
        return await super().get(key, *args, **options)

    async def set(self, key: str, *args: Any, **options: Any) -> None:
        self.counts.ask(key)
        await asyncio.sleep(0)
        # The values would be objects, too.
        if "/c/" not in key:
            await super().set(key, *args, **options)


# Before the first request completes, and when most are done.
AT = (CHUNKS // 10, CHUNKS - CHUNKS // 10)


def sparse(chunks: int) -> MemoryStore:
    """Return a store with an array of ``chunks`` chunks, of which none is stored."""
    store = MemoryStore()
    zarr.create_array(
        store, name="v", shape=(4 * chunks,), chunks=(4,), dtype="i4", dimension_names=["x"]
    )
    return store


def opened(store: Any) -> xr.Dataset:
    ds: xr.Dataset = xr.open_zarr(store, chunks=None, consolidated=False)
    return ds


def check(counts: Counts) -> None:
    """Assert that hardly more objects were alive later, and that older ones were left out."""
    assert counts.asked == CHUNKS
    (early, frozen), (late, still_frozen) = counts.counts
    assert late - early < FEW_OBJECTS
    assert frozen > 0
    assert still_frozen > 0


@pytest.mark.parametrize("selected", ["all", "by a list"])
def test_objects_do_not_grow_while_chunks_are_fetched(selected: str) -> None:
    counts = Counts(AT)
    lazy = opened(Counting(sparse(CHUNKS), counts))
    if selected == "by a list":
        lazy = lazy.isel(x=np.random.default_rng(0).permutation(4 * CHUNKS))
    loaded = aioxarray.load(lazy)
    assert not loaded.v.values.any()
    check(counts)


def test_objects_do_not_grow_while_chunks_are_saved() -> None:
    counts = Counts(AT)
    values: NDArray[np.int32] = np.arange(4 * CHUNKS, dtype="i4") + 1
    ds = xr.Dataset({"v": ("x", values)})
    aioxarray.to_zarr(ds, Counting(MemoryStore(), counts), encoding={"v": {"chunks": (4,)}})
    check(counts)


def test_a_stream_does_not_plan_all_its_pieces_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # All values fit into what the stream may hold. Five objects for each part.
    monkeypatch.setattr(feed, "_KNOWN_PARTS", 1000)
    monkeypatch.setattr(room, "_LOADING_PARTS", 1000)
    counts = Counts((*AT, CHUNKS // 2))
    lazy = opened(Counting(sparse(CHUNKS), counts))
    aioxarray.compute(lazy.isel(x=slice(4)))
    gc.collect()
    before = len(gc.get_objects())
    with aioxarray.stream(aioxarray.blocks(lazy, {"x": 4 * CHUNKS // 40})) as pieces:
        assert sum(int(piece.sizes["x"]) for piece in pieces) == 4 * CHUNKS
    assert max(alive for alive, _ in counts.counts) - before < 2 * CHUNKS
    # A stream may go on for days.
    assert not any(frozen for _, frozen in counts.counts)


def test_few_parts_of_pieces_load_at_once() -> None:
    space = Room(1 << 30)
    begun = 0
    for serial in range(100):
        flights: Any = None
        parts = [Part((flights, (serial, number)), 8) for number in range(500)]
        space.window.announce(serial, parts)
        piece: Any = SimpleNamespace(nbytes=1000, beside=0, parts=parts)
        if not space.fits(piece):
            break
        space.unconsumed += 1
        space.begin(serial, piece)
        begun += 1
    assert begun == _LOADING_PARTS // 500


def test_a_piece_of_very_many_parts_loads_alone() -> None:
    space = Room(1 << 30)
    flights: Any = None
    parts = [Part((flights, number), 8) for number in range(_LOADING_PARTS + 1)]
    space.window.announce(0, parts)
    space.unconsumed += 1
    piece: Any = SimpleNamespace(nbytes=1000, beside=0, parts=parts)
    assert space.fits(piece)


def test_variables_of_one_load_count_together() -> None:
    each = CHUNKS // 3
    assert each < tuning.MANY_CHUNKS <= 2 * each
    counts = Counts((2 * each,))
    store = Counting(sparse(each), counts)
    aioxarray.load([opened(store), opened(store).isel(x=slice(1, None))])
    ((_, frozen),) = counts.counts
    assert frozen > 0


def test_a_small_load_leaves_the_collector_alone() -> None:
    counts = Counts((100,))
    aioxarray.load(opened(Counting(sparse(100), counts)))
    ((_, frozen),) = counts.counts
    assert frozen == 0


def test_a_load_that_fails_leaves_nothing_frozen() -> None:
    counts = Counts((), failing="/5000")
    with pytest.raises(OSError, match="gone"):
        aioxarray.load(opened(Counting(sparse(CHUNKS), counts)))
