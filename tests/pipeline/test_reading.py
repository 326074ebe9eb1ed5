"""`aioxarray.CodecPipeline` on its own, beside zarr's: values, requests, wrappers."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import obstore.store
import pytest
import xarray as xr
import zarr
from zarr.abc.store import SuffixByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfig
from zarr.storage import LocalStore, MemoryStore, ObjectStore, WrapperStore

import aioxarray
from aioxarray._zarr.codecs.steps import steps_of
from aioxarray.testing import RecordingStore
from tests.concurrency.helpers import PATIENCE_S
from tests.pipeline.arrays import in_one_second

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

OURS = {"codec_pipeline.path": "aioxarray.CodecPipeline"}

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda path: MemoryStore(),
    "local": LocalStore,
    "obstore": lambda path: ObjectStore(obstore.store.MemoryStore()),
    "coroutines": lambda path: RecordingStore(MemoryStore()),
}

ARRAYS: dict[str, dict[str, Any]] = {
    "zstd": {},
    "none": {"compressors": None},
    "gzip": {"compressors": GzipCodec()},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "checksums": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "checksum below": {"compressors": [Crc32cCodec(), ZstdCodec()]},
    "transposed": {"filters": [TransposeCodec(order=(1, 0))]},
    "big endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "shards": {"shards": (40, 30)},
    "uncompressed shards": {"shards": (20, 60), "compressors": None},
    "index first": {
        "chunks": (40, 30),
        "compressors": None,
        "serializer": zarr.codecs.ShardingCodec(chunk_shape=(10, 10), index_location="start"),
    },
    "nested shards": {
        "chunks": (40, 60),
        "compressors": None,
        "serializer": zarr.codecs.ShardingCodec(
            chunk_shape=(20, 20), codecs=[zarr.codecs.ShardingCodec(chunk_shape=(10, 10))]
        ),
    },
    "v2": {"zarr_format": 2},
    "v2, order F": {"zarr_format": 2, "order": "F"},
    "v2, zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2, lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    "v2, shuffle": {
        "zarr_format": 2,
        "filters": [numcodecs.Shuffle(4)],
        "compressors": numcodecs.Zstd(),
    },
    "v2, delta": {"zarr_format": 2, "filters": [numcodecs.Delta("i4")]},
}

SHAPE = (85, 64)
VALUES = np.random.default_rng(0).integers(0, 1000, SHAPE).astype("i4")
EXPECTED = np.where(np.arange(SHAPE[0])[:, None] < 50, VALUES, 7).astype("i4")

SELECTIONS: dict[str, Callable[[Any], Any]] = {
    "all": lambda a: a[:],
    "block": lambda a: a[3:61:4, 11:12],
    "integers": lambda a: a[5, 60],
    "a row": lambda a: a[49],
    "nothing": lambda a: a[5:5],
    "orthogonal": lambda a: getattr(a, "oindex", Outer(a))[[1, 50, 3], [61, 2]],
    "points": lambda a: getattr(a, "vindex", a)[[1, 50, 3], [61, 2, 5]],
    "a mask": lambda a: getattr(a, "vindex", a)[EXPECTED > 900],
}


class Outer:
    """Orthogonal indexing of a numpy array."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __getitem__(self, key: Any) -> Any:
        return self._array[np.ix_(*key)]


def made(store: Store, **options: Any) -> None:
    """Store the values up to row 50; the chunks below are missing, or in part the fill value."""
    options = {"chunks": (10, 10), "fill_value": 7, "dtype": "i4", **options}
    array = zarr.create_array(store, shape=SHAPE, **options)
    array[:50] = VALUES[:50]


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("make", STORES)
def test_values_are_those_of_numpy(make: str, kind: str, tmp_path: Path) -> None:
    store = STORES[make](tmp_path)
    made(store, **ARRAYS[kind])
    with zarr.config.set(OURS):
        array = zarr.open_array(store, mode="r")
        for name, select in SELECTIONS.items():
            np.testing.assert_array_equal(select(array), select(EXPECTED), err_msg=name)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "u1", ">f8", "c8", "S5", "U4", "M8[s]", "m8[ms]", "f2", [("a", "i4"), ("b", "f8")]],
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_types(dtype: Any, zarr_format: int) -> None:
    values = np.arange(40).astype("i8").astype(dtype)
    store = RecordingStore(MemoryStore())
    array = zarr.create_array(
        store,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(16,),
        zarr_format=zarr_format,  # type: ignore[arg-type]
    )
    array[:] = values
    expected = zarr.open_array(store, mode="r")[:]
    with zarr.config.set(OURS):
        found = zarr.open_array(store, mode="r")[:]
    np.testing.assert_array_equal(found, expected)
    assert np.asarray(found).dtype == np.asarray(expected).dtype


@pytest.mark.parametrize("kind", ARRAYS)
def test_writes_the_same_keys_and_bytes(kind: str) -> None:
    def contents() -> list[dict[str, bytes]]:
        theirs, ours = MemoryStore(), MemoryStore()
        made(theirs, **ARRAYS[kind])
        with zarr.config.set(OURS):
            made(ours, **ARRAYS[kind])
        return [
            {key: buffer.to_bytes() for key, buffer in store._store_dict.items()}
            for store in (theirs, ours)
        ]

    by_zarr, by_us = in_one_second(contents)
    assert by_zarr == by_us


class _Vanishing(WrapperStore[MemoryStore]):
    """Shards are gone once their index was read."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Buffer | None:
        whole = byte_range is None or isinstance(byte_range, SuffixByteRequest)
        return await self._store.get(key, prototype, byte_range) if whole else None


def test_a_shard_that_is_deleted_after_its_index_was_read_is_missing() -> None:
    memory = MemoryStore()
    made(memory, **ARRAYS["shards"])
    # zarr's own pipeline says so too; that of 3.3 and later reads ranges by another method.
    with zarr.config.set(OURS):
        part = zarr.open_array(_Vanishing(memory), mode="r")[:5, :5]
    np.testing.assert_array_equal(part, np.full((5, 5), 7))


@pytest.mark.skipif(
    "sharding_coalesce_max_gap_bytes" not in ArrayConfig.__annotations__,
    reason="zarr before 3.3 has the setting for all arrays only, and no name for it",
)
def test_an_array_says_how_far_apart_ranges_may_lie() -> None:
    memory = MemoryStore()
    made(memory, **ARRAYS["shards"])
    counts = []
    for gap in (0, 1 << 20):
        store = RecordingStore(memory)
        config: Any = {"sharding_coalesce_max_gap_bytes": gap}
        with zarr.config.set(OURS):
            array = zarr.open_array(store, mode="r", config=config)
        store.log.clear()
        # A column of inner chunks. In the shard, in Morton order, two and two are neighbours.
        np.testing.assert_array_equal(array[:40, :10], EXPECTED[:40, :10])
        counts.append(len(store.log.requests))
    # The index, and each of the pairs, or both in one.
    assert counts == [1 + 2, 1 + 1]


@pytest.mark.parametrize("kind", ["zstd", "shards"])
def test_values_are_freed_without_a_collection_of_garbage(kind: str) -> None:
    store = RecordingStore(MemoryStore())
    encoding = {
        "zstd": {"chunks": (300, 200)},
        "shards": {"chunks": (99, 99), "shards": (297, 297)},
    }
    xr.Dataset({"a": (("y", "x"), np.ones((600, 400)))}).to_zarr(
        store, encoding={"a": encoding[kind]}
    )
    with xr.open_zarr(store, chunks=None) as ds:
        gc.collect()
        gc.disable()
        try:
            values = aioxarray.compute(ds.a.variable[:250, :390]).values
            freed = threading.Event()
            weakref.finalize(values if values.base is None else values.base, freed.set)
            del values
            # A thread that has put the last chunk into them may be about to return.
            assert freed.wait(PATIENCE_S)
        finally:
            gc.enable()


def test_asynchronous_zarr() -> None:
    store = MemoryStore()
    made(store)

    async def read() -> Any:
        array = await zarr.api.asynchronous.open_array(store=store, mode="r")
        return await array.getitem((slice(None), slice(None)))

    with zarr.config.set(OURS):
        np.testing.assert_array_equal(asyncio.run(read()), EXPECTED)


@pytest.mark.parametrize(
    ("kind", "said"), [("zstd", "plain functions"), ("v2, delta", "zarr's own codecs")]
)
def test_says_what_decodes(kind: str, said: str) -> None:
    store = MemoryStore()
    made(store, **ARRAYS[kind])
    with zarr.config.set(OURS):
        array = zarr.open_array(store)._async_array
    assert said in repr(array.codec_pipeline)


@pytest.mark.parametrize("part", [np.s_[0:10, 0:10], np.s_[0:10, 0:20], np.s_[5:35, 25:29]])
def test_at_most_two_requests_a_shard(part: Any) -> None:
    inner = MemoryStore()
    made(inner, shards=(40, 30))
    store = RecordingStore(inner)
    with zarr.config.set(OURS):
        array = zarr.open_array(store, mode="r")
        store.log.clear()
        np.testing.assert_array_equal(array[part], EXPECTED[part])
    assert len(store.log.requests) == 2
    ranges = [request.byte_range for request in store.log.requests]
    assert len(set(map(repr, ranges))) == 2
    assert None not in ranges


def test_a_whole_shard_is_one_request() -> None:
    inner = MemoryStore()
    made(inner, shards=(40, 30))
    store = RecordingStore(inner)
    with zarr.config.set(OURS):
        array = zarr.open_array(store, mode="r")
        store.log.clear()
        np.testing.assert_array_equal(array[:40, :30], EXPECTED[:40, :30])
    assert [request.byte_range for request in store.log.requests] == [None]


class Ciphered(WrapperStore[Any]):
    """Keeps chunks with every bit turned over."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        buffer: Buffer | None = await super().get(key, *args, **kwargs)
        if buffer is None or "zarr.json" in key:
            return buffer
        return buffer.from_bytes((~buffer.as_numpy_array()).tobytes())


@pytest.mark.parametrize("make", STORES)
def test_nothing_goes_round_a_wrapper(make: str, tmp_path: Path) -> None:
    store = STORES[make](tmp_path)
    made(store, compressors=None, fill_value=-8)
    with zarr.config.set(OURS):
        array = zarr.open_array(Ciphered(store), mode="r")
        np.testing.assert_array_equal(array[:50], ~VALUES[:50])


def test_subclasses_of_stores_are_read_by_their_own_get(tmp_path: Path) -> None:
    class Local(LocalStore):
        async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
            return await super().get(key.replace("c/0", "c/1"), *args, **kwargs)

    made(LocalStore(tmp_path))
    with zarr.config.set(OURS):
        array = zarr.open_array(Local(tmp_path), mode="r")
        np.testing.assert_array_equal(array[:10], VALUES[10:20])


def test_public() -> None:
    assert aioxarray.CodecPipeline.__module__ == "aioxarray"


@pytest.mark.parametrize("size", [8, 256, 264, 1000, 8192])
@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("level", [-5, 0, 19])
def test_small_chunks_of_zstd_are_decoded_by_one_call(
    level: int, checksum: bool, size: int
) -> None:
    pytest.importorskip("zstandard")
    # As they come: of one value, of few, and such that do not shrink.
    random = np.random.default_rng(0)
    chunks = [random.integers(0, most, size).astype("u1").tobytes() for most in (1, 2, 9, 90, 256)]
    (step,) = steps_of([ZstdCodec(level=level, checksum=checksum)]) or ()
    assert step.expand_many is not None
    codec = numcodecs.Zstd(level=level, checksum=checksum)
    decoded = step.expand_many([codec.encode(chunk) for chunk in chunks], size)
    assert decoded is not None
    assert [bytes(each) for each in decoded] == chunks
