"""A chunk or an index of a shard whose checksum fails is requested once more.

Loads request them, and opens, which need the values of index coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import zarr
from numcodecs import CRC32C, Fletcher32
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.config import config
from aioxarray.errors import DamagedDataError
from aioxarray.testing import ObjectServer
from tests.concurrency.test_retries import fsspec_http, obstore_http

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

CHUNK = "*/v/c/*"
VALUES = np.random.default_rng(0).random((32, 16))

INNER: Any = [BytesCodec(), Crc32cCodec()]

# Ways to store the values: each ends in a checksum, of a chunk or of the index of a shard.
KINDS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (4, 16), "compressors": [BloscCodec(), Crc32cCodec()]},
    "shards": {
        "chunks": (16, 16),
        "compressors": [],
        "filters": [],
        "serializer": ShardingCodec(
            chunk_shape=(4, 16), codecs=[BytesCodec(), Crc32cCodec()], index_location="end"
        ),
    },
}


def stored(kind: str) -> dict[str, bytes]:
    """Return the values as stored, by key."""
    store = MemoryStore()
    group = zarr.create_group(store)
    array: Any = group.create_array(
        "v", shape=VALUES.shape, dtype=VALUES.dtype, dimension_names=("y", "x"), **KINDS[kind]
    )
    array[...] = VALUES
    zarr.consolidate_metadata(store)
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


over_each_client = pytest.mark.parametrize("client", [fsspec_http, obstore_http])


@pytest.fixture
def server(kind: str) -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        for key, value in stored(kind).items():
            server.put(f"bucket/data/{key}", value)
        yield server


def opened(server: ObjectServer, client: Callable[[str], Any]) -> xr.Dataset:
    ds: xr.Dataset = aioxarray.open_zarr(client(server.url), consolidated=True)
    return ds


# Selections that read all inner chunks of a shard, one of them, and one of the chunks.
SELECTIONS = {"all": slice(None), "part": slice(0, 4)}


@over_each_client
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("part", "after"), [("all", 0), ("all", 1), ("part", 0)])
def test_a_damaged_answer_is_requested_once_more(
    client: Callable[[str], Store], kind: str, part: str, after: int, server: ObjectServer
) -> None:
    ds = opened(server, client).isel(y=SELECTIONS[part])
    aioxarray.compute(ds)
    usual = server.log.count("GET", CHUNK)
    server.fail(CHUNK, "flip", after=after, times=1)
    with config.set({"retry.backoff_s": 0}):
        got = aioxarray.compute(ds)
    np.testing.assert_array_equal(got["v"], VALUES[SELECTIONS[part]])
    assert server.log.count("GET", CHUNK) == 2 * usual + 1


@over_each_client
@pytest.mark.parametrize("kind", KINDS)
def test_data_that_stays_damaged_is_an_error_after_two_requests(
    client: Callable[[str], Store], kind: str, server: ObjectServer
) -> None:
    ds = opened(server, client).isel(y=slice(0, 4))
    server.fail(CHUNK, "flip")
    with (
        config.set({"retry.backoff_s": 0}),
        pytest.raises(DamagedDataError, match="the checksum is 0x") as caught,
    ):
        aioxarray.load(ds)
    assert isinstance(caught.value, ValueError)
    assert caught.value.attempts == 2
    assert server.log.count("GET", CHUNK) == 2
    notes = "\n".join(caught.value.__notes__)
    assert "2 x DamagedDataError; a damaged answer is requested twice at most" in notes
    assert f"in chunk 'v/c/0/0' of '{server.url}/bucket/data'" in notes
    assert "while loading variable 'v'" in notes


@over_each_client
@pytest.mark.parametrize("kind", ["chunks"])
def test_attempts_that_failed_otherwise_do_not_count(
    client: Callable[[str], Store], server: ObjectServer
) -> None:
    ds = opened(server, client).isel(y=slice(0, 4))
    server.fail(CHUNK, "flip", times=1)
    server.fail(CHUNK, 503, times=1)
    with config.set({"retry.backoff_s": 0}):
        got = aioxarray.compute(ds)
    np.testing.assert_array_equal(got["v"], VALUES[:4])
    # A status, a damaged answer, and a right one.
    assert server.log.count("GET", CHUNK) == 3


@pytest.mark.parametrize("kind", ["shards"])
def test_an_inner_chunk_is_requested_once_more_without_the_index(server: ObjectServer) -> None:
    ds = opened(server, fsspec_http).isel(y=slice(0, 4))
    server.fail(CHUNK, "flip", after=1, times=1)
    with config.set({"retry.backoff_s": 0}):
        aioxarray.compute(ds)
    # The index, and the inner chunk twice.
    assert server.log.count("GET", CHUNK) == 3


@over_each_client
@pytest.mark.parametrize("kind", ["shards"])
def test_a_truncated_index_is_not_requested_again(
    client: Callable[[str], Store], kind: str, server: ObjectServer
) -> None:
    ds = opened(server, client).isel(y=slice(0, 4))
    for key in list(server.data):
        if "/v/c/" in key:
            server.put(key, server.data[key][:10])
    with pytest.raises(ValueError, match="truncated"):
        aioxarray.load(ds)
    assert server.log.count("GET", CHUNK) == 1


# --- index coordinates, whose values an open requests together with the metadata -----------------

COORDINATE = np.arange(1.0, 17.0)

# What is damaged is in the middle of an object: for the last, that is in the index of a shard.
COORDINATES: dict[str, tuple[Literal[2, 3], dict[str, Any]]] = {
    "chunks of format 3": (3, {"chunks": 4, "compressors": [BloscCodec(), Crc32cCodec()]}),
    "chunks of format 2": (2, {"chunks": 4, "filters": None, "compressors": CRC32C()}),
    "chunks with fletcher32": (2, {"chunks": 4, "filters": None, "compressors": Fletcher32()}),
    "inner chunks": (3, {"chunks": 8, "serializer": ShardingCodec(chunk_shape=(4,), codecs=INNER)}),
    "index of a shard": (
        3,
        {"chunks": 4, "serializer": ShardingCodec(chunk_shape=(1,), codecs=INNER)},
    ),
}
CHUNK_OF_COORDINATE = {2: "*/x/[0-9]*", 3: "*/x/c/*"}


@pytest.fixture
def coordinate(of: str) -> Iterator[ObjectServer]:
    """A server of a dataset whose index coordinate is stored in one of these ways."""
    zarr_format, options = COORDINATES[of]
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=zarr_format)
    named: dict[str, Any] = {"dimension_names": ("x",)} if zarr_format == 3 else {}
    if zarr_format == 3 and "serializer" in options:
        named |= {"compressors": [], "filters": []}
    array = group.create_array("x", shape=16, dtype="f8", **named, **options)
    if zarr_format == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["x"]
    array[...] = COORDINATE
    zarr.consolidate_metadata(store)
    with ObjectServer() as server:
        for key, value in store._store_dict.items():
            server.put(f"bucket/data/{key}", value.to_bytes())
        yield server


@over_each_client
@pytest.mark.parametrize("of", COORDINATES)
def test_an_open_requests_a_damaged_index_coordinate_once_more(
    client: Callable[[str], Store], of: str, coordinate: ObjectServer
) -> None:
    glob = CHUNK_OF_COORDINATE[COORDINATES[of][0]]
    objects = [key for key in coordinate.data if fnmatch(key, glob)]
    coordinate.fail(glob, "flip", times=1)
    with config.set({"retry.backoff_s": 0}):
        ds = opened(coordinate, client)
    np.testing.assert_array_equal(ds.indexes["x"], COORDINATE)
    assert coordinate.log.count("GET", glob) == len(objects) + 1


@over_each_client
@pytest.mark.parametrize("of", COORDINATES)
def test_an_index_coordinate_that_stays_damaged_is_an_error_of_the_open(
    client: Callable[[str], Store], of: str, coordinate: ObjectServer
) -> None:
    glob = CHUNK_OF_COORDINATE[COORDINATES[of][0]]
    first = sorted(key for key in coordinate.data if fnmatch(key, glob))[0]
    coordinate.fail(first, "flip")
    with config.set({"retry.backoff_s": 0}), pytest.raises(DamagedDataError) as caught:
        opened(coordinate, client)
    notes = "\n".join(caught.value.__notes__)
    assert "2 x DamagedDataError; a damaged answer is requested twice at most" in notes
    assert f"in chunk '{first.removeprefix('bucket/data/')}' of" in notes
    assert "while opening" in notes
    assert coordinate.log.count("GET", first) == 2
