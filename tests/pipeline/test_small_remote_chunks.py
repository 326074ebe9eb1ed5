"""Small chunks of a server close by: decoded many at once, each requested once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import obstore.store
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore, ObjectStore

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.codecs.decoders import Decoder
from aioxarray._zarr.stores.sources import ObjectSource
from aioxarray.testing import ObjectServer
from tests.concurrency.helpers import PATIENCE_S, followed

CHUNKS, SIZE = 50, 100
VALUES = np.arange(CHUNKS * SIZE)
MISSING, FAILING = 5, 7


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the server takes to answer, it is close by."""
    pytest.importorskip("zstandard")
    monkeypatch.setattr(tuning, "NEARBY_S", PATIENCE_S)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    memory = MemoryStore()
    array = zarr.create_group(memory).create_array(
        "v", shape=VALUES.shape, dtype="i8", chunks=(SIZE,), dimension_names=["x"], fill_value=-1
    )
    array[:] = VALUES
    with ObjectServer() as server:
        for key, buffer in memory._store_dict.items():
            if key != f"v/c/{MISSING}":
                server.put(key, buffer.to_bytes())
        yield server


def lazily(server: ObjectServer) -> xr.Dataset:
    client = obstore.store.HTTPStore(server.url, client_options={"allow_http": True})
    # Values as they are stored: a fill value is no missing one.
    ds: xr.Dataset = xr.open_zarr(
        ObjectStore(client), chunks=None, consolidated=False, mask_and_scale=False
    )
    return ds


def expected() -> Any:
    values = VALUES.copy()
    values[MISSING * SIZE : (MISSING + 1) * SIZE] = -1
    return values


class Held:
    """Holds the reads of all chunks but the first, which tells that the server is close by."""

    # Seven threads read seven chunks each.
    RUNS = 7

    def __init__(self) -> None:
        self.broken = ""
        self._begun = threading.Semaphore(0)
        self._gate = threading.Event()

    def wait(self, key: str) -> None:
        self._begun.release()
        assert self._gate.wait(PATIENCE_S)
        if key == self.broken:
            raise OSError("broken")

    async def begun(self) -> None:
        """Wait until a load has all chunks in work."""
        for _ in range(self.RUNS):
            assert await asyncio.to_thread(self._begun.acquire, timeout=PATIENCE_S)

    def release(self) -> None:
        self._gate.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    read = ObjectSource.read

    def read_later(self: ObjectSource, key: str) -> Any:
        if key != "v/c/0":
            held.wait(key)
        return read(self, key)

    monkeypatch.setattr(ObjectSource, "read", read_later)
    yield held
    held.release()


def test_they_are_decoded_many_at_once(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    many = Decoder.many

    def decode(self: Decoder, encoded: Any) -> Any:
        together.append(len(encoded))
        return many(self, encoded)

    monkeypatch.setattr(Decoder, "many", decode)
    lazy = lazily(server)
    server.log.clear()
    np.testing.assert_array_equal(aioxarray.load(lazy).v, expected())
    assert server.log.count("GET", "v/c/*") == CHUNKS
    assert sum(together) == CHUNKS - 1
    assert max(together) > 1


@pytest.mark.parametrize("part", [slice(None), slice(0, 4_321, 7)])
def test_a_load_of_the_same_chunks_follows(server: ObjectServer, held: Held, part: slice) -> None:
    lazy = lazily(server)
    server.log.clear()

    async def main() -> None:
        first = asyncio.create_task(aioxarray.compute_async(lazy))
        async with asyncio.timeout(PATIENCE_S):
            await held.begun()
            second = asyncio.create_task(aioxarray.compute_async(lazy.isel(x=part)))
            await followed(43)
            held.release()
            np.testing.assert_array_equal((await first).v, expected())
            np.testing.assert_array_equal((await second).v, expected()[part])

    asyncio.run(main())
    # The first one is not held.
    assert server.log.count("GET", "v/c/*") - server.log.count("GET", "v/c/0") == CHUNKS - 1


@pytest.mark.parametrize("how", ["damaged", "broken"])
def test_a_chunk_that_fails_is_named_to_all_loads(
    server: ObjectServer, held: Held, how: str
) -> None:
    key = f"v/c/{FAILING}"
    if how == "damaged":
        server.put(key, server.data[key][:-9])
    else:
        held.broken = key
    lazy = lazily(server)

    async def main() -> Sequence[object]:
        first = asyncio.create_task(aioxarray.compute_async(lazy))
        async with asyncio.timeout(PATIENCE_S):
            await held.begun()
            second = asyncio.create_task(aioxarray.compute_async(lazy))
            await followed(CHUNKS - 1)
            held.release()
            return await asyncio.gather(first, second, return_exceptions=True)

    for error in asyncio.run(main()):
        assert isinstance(error, Exception)
        notes = "\n".join(error.__notes__)
        assert notes.count(f"chunk {key!r}") == 1
        assert "variable 'v'" in notes
