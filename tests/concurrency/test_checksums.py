"""A chunk or an index of a shard whose checksum fails is requested once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
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
