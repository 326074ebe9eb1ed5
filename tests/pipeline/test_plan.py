"""The plan of a read says what the read then requests, and by which way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore.store
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore, MemoryStore, ObjectStore

import aioxarray
from aioxarray._zarr.chunks.arrays import plan_block
from aioxarray._zarr.chunks.plan import ReadPlan, Way
from aioxarray._zarr.stores.observing.observers import Observer, Origin, observed
from aioxarray._zarr.stores.request import Request
from aioxarray.testing import RecordingStore

VALUES = np.arange(64.0 * 64).reshape(64, 64)
EVERYTHING = (slice(None), slice(None))
PART = (slice(3, 20), slice(0, 40))


def array_in(store: Any, **options: Any) -> zarr.Array[Any]:
    return zarr.create_array(store, name="a", data=VALUES, chunks=(16, 16), **options)


STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryStore(),
    "local": LocalStore,
    "obstore": lambda path: ObjectStore(obstore.store.LocalStore(path)),
    "wrapped": lambda path: RecordingStore(MemoryStore()),
}
WAYS = {
    "memory": Way.INLINE,
    "local": Way.THREADS,
    "obstore": Way.FIRST_ANSWER,
    "wrapped": Way.COROUTINES,
}


@pytest.fixture(params=STORES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    return request.param, STORES[request.param](tmp_path)


def plan_of(array: zarr.Array[Any], selection: Any) -> ReadPlan:
    plan = plan_block(array, selection)
    assert plan is not None
    return plan


class Keys(Observer):
    """The keys that a read requests."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def started(self, request: Request) -> None:
        self.keys.append(request.key)

    def read(self, origin: Origin, key: str, *details: Any) -> None:
        self.keys.append(key)


def requested(array: zarr.Array[Any], selection: Any) -> list[str]:
    """Return the keys that a load of ``selection`` requests."""
    ds = xr.open_zarr(array.store, chunks=None, consolidated=False)
    with observed(keys := Keys()):
        aioxarray.load(ds["a"][selection])
    return keys.keys


@pytest.mark.parametrize("selection", [EVERYTHING, PART], ids=["everything", "a part"])
def test_chunks(stored: tuple[str, Any], selection: Any) -> None:
    name, store = stored
    array = array_in(store, dimension_names=["y", "x"])
    plan = plan_of(array, selection)
    is_much = name == "memory" and selection is EVERYTHING
    assert plan.way is (Way.THREADS if is_much else WAYS[name])
    assert plan.reason
    assert plan.nbytes == plan.count * 16 * 16 * 8
    planned = list(plan.requests())
    assert {each.part for each in planned} == {"all"}
    assert len(planned) == plan.count
    assert sorted(requested(array, selection)) == sorted(each.key for each in planned)


def test_shards(stored: tuple[str, Any]) -> None:
    name, store = stored
    array = array_in(store, shards=(32, 32), dimension_names=["y", "x"])
    plan = plan_of(array, PART)
    assert plan.way is (Way.THREADS if name in ("memory", "local") else Way.COROUTINES)
    planned = list(plan.requests())
    assert {each.part for each in planned} == {"ranges"}
    # The index of each shard, and at least one range.
    assert set(requested(array, PART)) == {each.key for each in planned}


def test_few_bytes_in_memory_are_decoded_at_once() -> None:
    array = array_in(MemoryStore())
    assert plan_of(array, (slice(0, 16), slice(0, 16))).way is Way.INLINE
    with aioxarray.config.set(cache="1MiB"):
        plan = plan_of(array, (slice(0, 16), slice(0, 16)))
    assert plan.way is Way.THREADS
    assert plan.shared_as is not None


class OwnChecksum(zarr.codecs.Crc32cCodec):
    """A codec that only zarr's own code can undo: it is of no known class."""


def test_an_index_with_a_codec_of_the_users_is_zarrs() -> None:
    codecs: Any = [zarr.codecs.BytesCodec(), OwnChecksum()]
    array = zarr.create_array(
        MemoryStore(),
        name="a",
        shape=VALUES.shape,
        dtype="f8",
        chunks=(32, 32),
        serializer=zarr.codecs.ShardingCodec(chunk_shape=(16, 16), index_codecs=codecs),
        compressors=None,
    )
    assert plan_of(array, PART).way is Way.ZARR


def test_a_selection_that_only_zarr_reads_has_no_plan() -> None:
    assert plan_block(array_in(MemoryStore()), (slice(None, None, -1), slice(None))) is None
