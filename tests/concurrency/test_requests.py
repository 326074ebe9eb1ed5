"""Every request is a `Request`: observers learn of all that a store or server sees, and no more."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import obstore.store
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore, MemoryStore, ObjectStore

import aioxarray
from aioxarray._zarr.stores.observing.observers import Observer, Origin, Part, observed
from aioxarray._zarr.stores.request import Request
from aioxarray.testing import FaultyStore, GatedStore, ObjectServer, RecordingStore
from tests.concurrency.helpers import followed
from tests.samples import contents, stored


class Seen(Observer):
    """An observer that notes what it is told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.under_way: set[Request] = set()
        self.done_with: list[Request] = []
        self.failed_with: list[tuple[Request, BaseException]] = []
        self.shared_parts: list[Any] = []

    def started(self, request: Request) -> None:
        with self._lock:
            self.under_way.add(request)

    def done(self, request: Request) -> None:
        with self._lock:
            self.under_way.remove(request)
            self.done_with.append(request)

    def failed(self, request: Request, error: BaseException) -> None:
        with self._lock:
            self.under_way.remove(request)
            self.failed_with.append((request, error))

    def read(self, origin: Origin, key: str, part: Part | None, nbytes: int, *details: Any) -> None:
        with self._lock:
            self.done_with.append(Request("get", MemoryStore(), key, nbytes=nbytes))

    def shared(self, part: Hashable) -> None:
        with self._lock:
            self.shared_parts.append(part)

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        ended = [*self.done_with, *(request for request, _ in self.failed_with)]
        return Counter((request.kind, request.key) for request in ended)


KINDS = {
    "list": ("list", "list_dir", "list_prefix", "is_empty"),
    "set": ("set", "set_if_not_exists"),
    "delete": ("delete", "delete_dir"),
    "exists": ("exists", "getsize"),
    "get": ("get",),
}


def counted(store: RecordingStore) -> Counter[tuple[str, str]]:
    """Return what reached a store, in the words of `Request`."""
    kinds = {method: kind for kind, methods in KINDS.items() for method in methods}
    return Counter((kinds[each.method], each.key) for each in store.log.requests)


def sample(**encoding: Any) -> xr.Dataset:
    data = np.arange(64.0).reshape(8, 8)
    ds = xr.Dataset(dict.fromkeys("ab", (("x", "y"), data)), {"x": np.arange(8)})
    for name in "ab":
        ds[name].encoding = {"chunks": (2, 8), **encoding}
    return ds


def tree() -> xr.DataTree:
    return xr.DataTree.from_dict({"/": sample(), "/child": sample(), "/child/leaf": sample()})


def opens(store: Any) -> None:
    aioxarray.open_dataset(store, engine="zarr")


def opens_without_consolidated(store: Any) -> None:
    aioxarray.open_datatree(store, engine="zarr", consolidated=False)


def opens_by_engine(store: Any) -> None:
    xr.open_dataset(store, engine="aio")


def opens_a_missing_group(store: Any) -> None:
    with pytest.raises(KeyError, match="absent"):
        aioxarray.open_dataset(store, engine="zarr", group="absent")


def loads(store: Any) -> None:
    aioxarray.load(aioxarray.open_datatree(store, engine="zarr"))


def loads_points(store: Any) -> None:
    at = xr.DataArray(np.arange(8), dims="p")
    aioxarray.load(aioxarray.open_dataset(store, engine="zarr").isel(x=at, y=at))


def saves_again(store: Any) -> None:
    aioxarray.to_zarr(tree(), store, mode="w")


def appends(store: Any) -> None:
    aioxarray.to_zarr(sample(), store, append_dim="x")


def writes_a_region(store: Any) -> None:
    part = sample().drop_vars("x").isel(x=slice(1, 3))
    aioxarray.to_zarr(part, store, region={"x": slice(1, 3)}, safe_chunks=False)


def uses_the_pipeline_alone(store: Any) -> None:
    with zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"}):
        array = zarr.open_array(store, path="a")
        opened = counted(store)
        store.log.clear()
        with observed(seen := Seen()):
            array[3:5] = array[1:3]
        assert seen.counts == counted(store)
        assert opened


WAYS: list[Callable[[Any], None]] = [
    opens,
    opens_without_consolidated,
    opens_by_engine,
    opens_a_missing_group,
    loads,
    loads_points,
    saves_again,
    appends,
    writes_a_region,
]


@pytest.mark.parametrize("encoding", [{}, {"shards": (4, 8)}], ids=["chunks", "shards"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_observers_learn_of_every_request_to_a_store(
    way: Callable[[Any], None], encoding: dict[str, Any]
) -> None:
    inner = MemoryStore()
    saved = xr.DataTree.from_dict({"/": sample(**encoding), "/child": sample(**encoding)})
    # zarr's shards take whole chunks: an append or a region would be refused.
    if encoding and way in (appends, writes_a_region):
        encoding.clear()
        saved = xr.DataTree.from_dict({"/": sample(), "/child": sample()})
    saved.to_zarr(inner)
    store = RecordingStore(inner)
    with observed(seen := Seen()):
        way(store)
    assert not seen.under_way
    assert seen.counts == counted(store)
    assert seen.counts


def test_the_pipeline_alone_makes_requests() -> None:
    inner = MemoryStore()
    sample().to_zarr(inner)
    uses_the_pipeline_alone(RecordingStore(inner))


def test_plain_calls_to_a_server() -> None:
    with ObjectServer() as server:
        for key, value in contents(stored(sample())).items():
            server.put(key, value)
        client = obstore.store.HTTPStore(server.url, client_options={"allow_http": True})
        ds = aioxarray.open_zarr(ObjectStore(client))
        server.log.clear()
        with observed(seen := Seen()):
            aioxarray.load(ds)
        assert len(seen.done_with) == server.log.snapshot().completed == 8
        assert {request.variable for request in seen.done_with} == {"variable 'a'", "variable 'b'"}
        assert {request.phase for request in seen.done_with} == {"loaded"}
        assert all(request.nbytes for request in seen.done_with)


@pytest.mark.parametrize("kind", [LocalStore, MemoryStore])
def test_stores_at_hand(kind: Any, tmp_path: Path) -> None:
    store: Any = LocalStore(tmp_path) if kind is LocalStore else MemoryStore()
    with observed(seen := Seen()):
        aioxarray.to_zarr(sample(), store)
    keys = {request.key for request in seen.done_with if request.kind == "set"}
    assert keys == set(contents(store))
    with observed(seen := Seen()):
        aioxarray.load(aioxarray.open_zarr(store))
    chunks = [request for request in seen.done_with if "/c/" in request.key]
    assert sorted(each.key for each in chunks) == sorted(key for key in keys if "/c/" in key)
    assert {each.kind for each in chunks} == {"get"}


def test_an_observer_learns_of_whole_requests_only() -> None:
    request = Request("get", MemoryStore(), "key")
    with observed(early := Seen()):
        request.__enter__()
    with observed(late := Seen()):
        request.__exit__(None, None, None)
    assert early.done_with == [request]
    assert not early.under_way
    assert not late.done_with


def test_an_observer_learns_of_chunks_that_another_read_fetches() -> None:
    inner = MemoryStore()
    sample().to_zarr(inner)
    gate = GatedStore(inner, keys="a/c/*")
    ds = aioxarray.open_zarr(gate)[["a"]]

    async def main() -> None:
        first = asyncio.create_task(aioxarray.compute_async(ds))
        await gate.requested("a/c/*", 4)
        second = asyncio.create_task(aioxarray.compute_async(ds.isel(x=slice(2, 6))))
        await followed(2)
        gate.release_all()
        await asyncio.gather(first, second)

    with observed(seen := Seen()):
        asyncio.run(main())
    assert sorted(part[0] for part in seen.shared_parts) == ["a/c/1/0", "a/c/2/0"]
    assert [seen.counts["get", f"a/c/{n}/0"] for n in range(4)] == [1] * 4


def test_a_failed_request_is_named_once() -> None:
    inner = MemoryStore()
    sample().to_zarr(inner)
    ds = aioxarray.open_zarr(FaultyStore.kth(inner, 0, ConnectionError("cut"), keys="a/c/*"))
    once = aioxarray.config.set({"retry.attempts": 1})
    with once, observed(seen := Seen()), pytest.raises(ConnectionError) as caught:
        aioxarray.load(ds)
    assert seen.failed_with
    assert not seen.under_way
    notes = [note for note in caught.value.__notes__ if "a/c/" in note]
    assert len(notes) == 1
    assert notes[0].startswith("in chunk 'a/c/")
    faulty = FaultyStore(inner, lambda *_: ConnectionError("cut"), keys="*zarr.json")
    once = aioxarray.config.set({"retry.attempts": 1})
    with once, pytest.raises(ConnectionError) as caught:
        aioxarray.to_zarr(sample(), faulty, mode="a")
    assert any(note.startswith("in request for 'zarr.json'") for note in caught.value.__notes__)
