"""The cache of decoded chunks: no request for what is kept, and nothing kept that is outdated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._zarr.stores.grants import cache
from aioxarray.testing import GatedStore, RecordingStore
from tests.pipeline.arrays import OURS, using
from tests.samples import opened

if TYPE_CHECKING:
    from zarr.abc.store import Store

SHAPE = (40, 60)
VALUES = np.random.default_rng(0).integers(1, 1000, SHAPE).astype("i4")
# The last rows of chunks, and of shards, are missing.
EXPECTED = np.where(np.arange(40)[:, None] < 20, VALUES, 7).astype("i4")
ARRAYS: dict[str, dict[str, Any]] = {
    "chunks": {},
    "checksums": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "uncompressed": {"compressors": None},
    "by zarr": {"zarr_format": 2, "filters": [numcodecs.Delta("i4")]},
    "transposed": {"zarr_format": 2, "order": "F"},
    "shards": {"shards": (20, 30)},
    "uncompressed shards": {"shards": (20, 60), "compressors": None},
    "nested shards": {
        "chunks": (20, 60),
        "compressors": None,
        "serializer": zarr.codecs.ShardingCodec(
            chunk_shape=(20, 20), codecs=[zarr.codecs.ShardingCodec(chunk_shape=(10, 10))]
        ),
    },
}

pytestmark = [pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")]


@pytest.fixture(autouse=True)
def cached() -> Iterator[None]:
    """Keep chunks in each test here."""
    with aioxarray.config.set(cache="1GiB"):
        yield


def made(store: Store, **options: Any) -> None:
    options = {"chunks": (10, 10), "fill_value": 7, "dtype": "i4", **options}
    array = zarr.create_array(store, shape=SHAPE, **options)
    array[:20] = VALUES[:20]


def reader(store: Store, mode: Any = "r") -> zarr.Array[Any]:
    with using(OURS):
        return zarr.open_array(store, mode=mode)


@pytest.mark.parametrize("kind", ARRAYS)
def test_cached_chunks_are_not_requested(kind: str) -> None:
    inner = MemoryStore()
    made(inner, **ARRAYS[kind])
    store = RecordingStore(inner)
    array = reader(store)
    np.testing.assert_array_equal(array[:], EXPECTED)
    store.log.clear()
    for part in (np.s_[:], np.s_[5:25, 7], np.s_[11, 13], np.s_[::3, 2:60:7]):
        np.testing.assert_array_equal(array[part], EXPECTED[part])
    rows, columns = np.array([1, 30, 3]), np.array([50, 2])
    np.testing.assert_array_equal(array.oindex[rows, columns], EXPECTED[np.ix_(rows, columns)])
    np.testing.assert_array_equal(array.vindex[[1, 30], [50, 2]], EXPECTED[[1, 30], [50, 2]])
    assert store.log.requests == ()


@pytest.mark.parametrize("kind", ["chunks", "by zarr", "uncompressed", "shards"])
@pytest.mark.parametrize("make", ["local", "memory", "obstore"])
def test_stores_that_are_read_by_plain_calls(make: str, kind: str, tmp_path: Path) -> None:
    import obstore.store
    from zarr.storage import ObjectStore

    stores: dict[str, Store] = {
        "local": LocalStore(tmp_path),
        "memory": MemoryStore(),
        "obstore": ObjectStore(obstore.store.MemoryStore()),
    }
    store = stores[make]
    made(store, **ARRAYS[kind])
    array = reader(store)
    np.testing.assert_array_equal(array[:], EXPECTED)
    # A write that this process does not notice.
    asyncio.run(store.clear())
    np.testing.assert_array_equal(array[:], EXPECTED)
    with aioxarray.config.set(cache=0):
        np.testing.assert_array_equal(array[:], np.full(SHAPE, 7))


def test_structured_types_by_zarrs_own_code(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    values = np.zeros(40, [("a", "i4"), ("b", "f8")])
    values["a"] = np.arange(40)
    array = zarr.create_array(store, shape=40, chunks=(10,), dtype=values.dtype, compressors=None)
    array[:] = values
    array = reader(store)
    for _ in range(2):
        # Decoded, they are what was read as it is; the memory for that is used again.
        np.testing.assert_array_equal(array[:], values)


def test_missing_chunks_are_cached_too() -> None:
    store = RecordingStore(MemoryStore())
    made(store)
    array = reader(store)
    np.testing.assert_array_equal(array[35:], EXPECTED[35:])
    store.log.clear()
    np.testing.assert_array_equal(array[35:], EXPECTED[35:])
    assert store.log.requests == ()


def texts() -> Any:
    found = np.empty(30, dtype=object)
    found[:] = [f"text {i}" * (i % 9) for i in range(30)]
    return found


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_texts(zarr_format: Any) -> None:
    store = RecordingStore(MemoryStore())
    array = zarr.create_array(
        store,
        shape=30,
        chunks=(7,),
        dtype=str,
        zarr_format=zarr_format,
    )
    array[:] = texts()
    array = reader(store)
    np.testing.assert_array_equal(array[:], texts())
    store.log.clear()
    np.testing.assert_array_equal(array[3:17], texts()[3:17])
    assert array[5] == texts()[5]
    assert store.log.requests == ()


@pytest.mark.parametrize("kind", ARRAYS)
def test_results_are_the_callers_own(kind: str) -> None:
    store = RecordingStore(MemoryStore())
    made(store, **ARRAYS[kind])
    array = reader(store)
    for part in (np.s_[:], np.s_[0:10, 0:10], np.s_[:]):
        result: Any = array[part]
        np.testing.assert_array_equal(result, EXPECTED[part])
        result[...] = -1


class Room:
    """A store of four chunks, and how many of them were requested."""

    def __init__(self) -> None:
        self.store = RecordingStore(MemoryStore())
        array = zarr.create_array(self.store, shape=4096, chunks=(1024,), dtype="f8")
        array[:] = np.arange(4096)
        self.array = reader(self.store)

    def requests(self, *chunks: int) -> int:
        self.store.log.clear()
        for chunk in chunks:
            part = slice(chunk * 1024, (chunk + 1) * 1024)
            assert np.asarray(self.array[part]).tolist() == list(range(4096))[part]
        return len(self.store.log.requests)


def test_the_least_recently_used_goes_first() -> None:
    room = Room()
    with aioxarray.config.set(cache="20KiB"):
        assert room.requests(0, 1, 0, 2) == 3
        assert room.requests(2, 0) == 0
        assert cache.size <= 20 << 10
        assert room.requests(1) == 1
        assert room.requests(0) == 0
        assert room.requests(2) == 1


def test_a_chunk_larger_than_the_cache_displaces_nothing() -> None:
    room = Room()
    with aioxarray.config.set(cache="9KiB"):
        assert room.requests(0) == 1
        with aioxarray.config.set(cache="10KiB"):
            store = RecordingStore(MemoryStore())
            zarr.create_array(store, shape=4096, chunks=(4096,), dtype="f8")[:] = 1
            array = reader(store)
            store.log.clear()
            for _ in range(2):
                np.testing.assert_array_equal(array[:], np.ones(4096))
            assert len(store.log.requests) == 2
        assert room.requests(0) == 0


def test_a_smaller_setting_makes_room() -> None:
    room = Room()
    assert room.requests(0, 1, 2, 3) == 4
    with aioxarray.config.set(cache="9KiB"):
        assert room.requests(3) == 0
        assert cache.size <= 9 << 10
    with aioxarray.config.set(cache=0):
        assert room.requests(3) == 1
        assert (len(cache), cache.size) == (0, 0)
    assert room.requests(3) == 1


# --- writes --------------------------------------------------------------------------------------


def dataset(offset: int) -> xr.Dataset:
    ds = xr.Dataset({"v": ("x", np.arange(40) + offset)})
    ds["v"].encoding = {"chunks": (10,)}
    return ds


@pytest.mark.parametrize("shards", [None, (20,)])
def test_saves_are_seen(shards: Any) -> None:
    store = MemoryStore()
    first, second = dataset(0), dataset(100)
    first["v"].encoding["shards"] = second["v"].encoding["shards"] = shards
    aioxarray.to_zarr(first, store, consolidated=False)
    ds: xr.Dataset = opened(RecordingStore(store), consolidated=False)
    xr.testing.assert_equal(aioxarray.compute(ds), first)
    aioxarray.to_zarr(second, store, mode="w", consolidated=False)
    xr.testing.assert_equal(aioxarray.compute(ds), second)
    aioxarray.to_zarr(first[{"x": slice(20)}], store, region={"x": slice(20)}, consolidated=False)
    expected = xr.concat([first[{"x": slice(20)}], second[{"x": slice(20, None)}]], "x")
    xr.testing.assert_equal(aioxarray.compute(ds), expected)


@pytest.mark.parametrize("kind", ARRAYS)
def test_writes_by_the_pipeline_are_seen(kind: str) -> None:
    inner = MemoryStore()
    made(inner, **ARRAYS[kind])
    store = RecordingStore(inner)
    array = reader(store)
    np.testing.assert_array_equal(array[:], EXPECTED)
    reader(inner, "r+")[15:35, 5] = 1
    expected = EXPECTED.copy()
    expected[15:35, 5] = 1
    np.testing.assert_array_equal(array[:], expected)
    store.log.clear()
    np.testing.assert_array_equal(array[:], expected)
    assert store.log.requests == (), "what was read after the write is kept"


def test_writes_through_another_path_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    made(LocalStore(tmp_path / "a"))
    array = reader(LocalStore(tmp_path / "link"))
    for number, (root, path) in enumerate([(tmp_path / "a", ""), (tmp_path, "a")]):
        np.testing.assert_array_equal(array[:], EXPECTED if number == 0 else np.full(SHAPE, 0))
        with using(OURS):
            zarr.open_array(LocalStore(root), path=path, mode="r+")[:] = number
    np.testing.assert_array_equal(array[:], np.full(SHAPE, 1))


def test_a_write_elsewhere_changes_nothing(tmp_path: Path) -> None:
    made(LocalStore(tmp_path / "a"))
    made(LocalStore(tmp_path / "ab"))
    array = reader(LocalStore(tmp_path / "a"))
    array[:]
    size = cache.size
    assert size > EXPECTED.nbytes
    reader(LocalStore(tmp_path / "ab"), "r+")[:] = 0
    assert cache.size == size


def test_icechunk(tmp_path: Path) -> None:
    from icechunk import Repository, local_filesystem_storage

    session = Repository.create(local_filesystem_storage(str(tmp_path))).writable_session("main")
    made(session.store)
    array = reader(session.store.with_read_only(True))
    np.testing.assert_array_equal(array[:], EXPECTED)
    reader(session.store, "r+")[:] = 0
    np.testing.assert_array_equal(array[:], np.zeros(SHAPE))


@pytest.mark.parametrize("kind", ["chunks", "by zarr", "shards"])
def test_a_read_that_began_before_a_write_keeps_nothing(kind: str) -> None:
    inner = MemoryStore()
    made(inner, **ARRAYS[kind])
    gate = GatedStore(inner, keys="*[0-9]")
    array = reader(gate)

    async def main() -> None:
        part = (slice(0, 10), slice(0, 10))
        grants = asyncio.create_task(array._async_array.getitem(part))
        await gate.requested("*[0-9]", 1)
        await asyncio.to_thread(reader(inner, "r+").__setitem__, slice(None), 1)
        # The second one a shard takes, too.
        gate.release_all()
        await grants

    asyncio.run(main())
    np.testing.assert_array_equal(array[:], np.ones(SHAPE))


# --- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["start", "end"])
def test_a_known_index_is_not_requested(location: Any) -> None:
    inner = MemoryStore()
    serializer = zarr.codecs.ShardingCodec(chunk_shape=(10, 10), index_location=location)
    made(inner, chunks=(20, 30), compressors=None, serializer=serializer)
    store = RecordingStore(inner)
    array = reader(store)
    for number, row in enumerate((slice(0, 10), slice(10, 20), slice(0, 20))):
        store.log.clear()
        np.testing.assert_array_equal(array[row], EXPECTED[row])
        # Of two shards index and range, then a range, then nothing.
        assert len(store.log.requests) == (4, 2, 0)[number]
    store.log.clear()
    np.testing.assert_array_equal(array[20:30], EXPECTED[20:30])
    assert len(store.log.requests) == 2
    np.testing.assert_array_equal(array[30:], EXPECTED[30:])
    assert len(store.log.requests) == 2, "there are no such shards"


def test_the_index_of_a_shard_read_whole_is_kept() -> None:
    inner = MemoryStore()
    made(inner, shards=(40, 30))
    store = RecordingStore(inner)
    array = reader(store)
    for count in (2, 0):
        store.log.clear()
        np.testing.assert_array_equal(array[:], EXPECTED)
        # It says which inner chunks are missing.
        assert len(store.log.requests) == count
