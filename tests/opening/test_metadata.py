"""Metadata that are not consolidated: zarr makes its objects once, of oddities what it would."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.codec import ArrayArrayCodec
from zarr.registry import register_codec
from zarr.storage import MemoryStore

from aioxarray._zarr.metadata.hierarchy import StoredNode
from aioxarray.testing import RecordingStore
from tests import samples
from tests.opening.helpers import Way, assert_loaded, assert_opened, every_way
from tests.samples import stored


@dataclass(frozen=True)
class Counted(ArrayArrayCodec):
    """Leaves data as they are, and counts how often zarr met it in metadata."""

    is_fixed_size = True
    met: ClassVar[int] = 0

    @classmethod
    def from_dict(cls, data: Any) -> Counted:
        cls.met += 1
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "aioxarray.tests.counted"}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        return input_byte_length

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return chunk_data

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return chunk_data


register_codec("aioxarray.tests.counted", Counted)


@every_way
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree"])
def test_zarr_makes_its_objects_once_of_arrays_that_are_alike(function: str, way: Way) -> None:
    sizes = {"a": 3, "b": 4, "c": 4}
    store = MemoryStore()
    for group in ("/", "/one", "/one/two"):
        ds = xr.Dataset(
            {
                name: (f"x{size}", np.arange(float(size)), {"long_name": f"{name} of {group}"})
                for name, size in sizes.items()
            }
        )
        encoding = {name: {"filters": [Counted()]} for name in sizes}
        ds.to_zarr(store, group=group, encoding=encoding, consolidated=False)
    before = Counted.met
    got = way(function, store, engine="zarr", consolidated=False)
    assert Counted.met - before == len(set(sizes.values()))
    assert_opened(got, getattr(xr, function)(store, engine="zarr", consolidated=False))


def a_stray_object(store: MemoryStore) -> None:
    store._store_dict["child/notes"] = store._store_dict["zarr.json"]


def an_unknown_codec(store: MemoryStore) -> None:
    changed(store, "child/t/zarr.json", lambda array: array["codecs"].append({"name": "nobodys"}))


def a_strange_node(store: MemoryStore) -> None:
    changed(store, "child/t/zarr.json", lambda array: array.update(node_type="mystery"))


def no_shape(store: MemoryStore) -> None:
    changed(store, "child/t/zarr.json", lambda array: array.pop("shape"))


def stale_inner_metadata(store: MemoryStore) -> None:
    inside = {"kind": "inline", "must_understand": False, "metadata": {}}
    changed(store, "child/zarr.json", lambda group: group.update(consolidated_metadata=inside))


def changed(store: MemoryStore, key: str, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(store._store_dict[key].to_bytes())
    change(document)
    buffer = type(store._store_dict[key])
    store._store_dict[key] = buffer.from_bytes(json.dumps(document).encode())


def outcome(open_it: Callable[[], Any]) -> Any:
    """Return what is opened, or the type of the error; warnings of zarr are no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return open_it()
        except Exception as error:  # noqa: BLE001 - compared with ours
            return type(error)


@every_way
@pytest.mark.parametrize(
    "spoil", [a_stray_object, an_unknown_codec, a_strange_node, no_shape, stale_inner_metadata]
)
def test_odd_metadata_is_handled_as_by_zarr(spoil: Callable[[MemoryStore], None], way: Way) -> None:
    part = xr.Dataset({"v": ("t", np.arange(3.0))}, {"t": np.arange(3)})
    tree = xr.DataTree.from_dict({"/": samples.numbers(), "/child": part})
    store = stored(tree, consolidated=False)
    spoil(store)
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    plain = outcome(lambda: xr.open_datatree(store, **options))
    ours = outcome(lambda: way("open_datatree", store, **options))
    if isinstance(plain, type):
        assert ours is plain
    else:
        assert_loaded(ours, plain)


ENCODINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, dots": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "as in format 2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "as in format 2, slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "format 2": {"zarr_format": 2},
    "format 2, slashes": {
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
}


@pytest.mark.parametrize("shape", [(), (5, 7), (2, 3)])
@pytest.mark.parametrize("name", ENCODINGS)
def test_the_keys_of_the_end_chunks_are_those_zarr_reads(name: str, shape: Any) -> None:
    store = RecordingStore(MemoryStore())
    chunks = (2, 3)[: len(shape)] or ()
    array = zarr.create_array(
        store, name="group/a", shape=shape, chunks=chunks, dtype="i4", **ENCODINGS[name]
    )
    document: dict[str, Any] = json.loads(json.dumps(array.metadata.to_dict()))
    store.log.clear()
    array[(0,) * len(shape)]
    array[(-1,) * len(shape)]
    read = dict.fromkeys(request.key for request in store.log.requests)
    assert list(StoredNode("group/a", document).end_chunk_keys()) == list(read)
