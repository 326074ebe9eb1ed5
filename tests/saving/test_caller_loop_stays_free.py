"""Reading, encoding, computing and writing happen in other threads than the caller's loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import dask.array
import numpy as np
import pytest
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.coding.common import lazy_elemwise_func
from xarray.core import indexing
from zarr.registry import register_codec
from zarr.storage import MemoryStore

import aioxarray
from tests.concurrency.helpers import PATIENCE_S
from tests.concurrency.test_caller_loop_stays_free import Held, HeldCodec, HeldStore
from tests.loops import every_loop
from tests.saving.helpers import LARGE

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

VALUES = np.arange(float(LARGE))


class HeldEncoder(HeldCodec):
    """A codec that blocks the thread that encodes with it."""

    held = Held()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "aioxarray.test.held-encoder", "configuration": {}}

    async def _encode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        type(self).held()
        return chunk_bytes

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return chunk_bytes


register_codec("aioxarray.test.held-encoder", HeldEncoder)


class HeldArray(BackendArray):
    """An array of a backend that only knows blocking reads."""

    def __init__(self, held: Held | None) -> None:
        self.shape = VALUES.shape
        self.dtype = VALUES.dtype
        self._held = held

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: Any) -> Any:
        if self._held is not None:
            self._held()
        return VALUES[key]


def dataset(data: Any) -> xr.Dataset:
    return xr.Dataset({"a": xr.Variable("x", data)})


def held_by(held: Held) -> Callable[[Any], Any]:
    def function(values: Any) -> Any:
        held()
        return values

    return function


async def to_store(held: Held, folder: Path) -> None:
    await aioxarray.to_zarr_async(dataset(VALUES), HeldStore(MemoryStore(), held))


async def by_codec(held: Held, store: Any) -> None:
    HeldEncoder.held = held
    encoding = {"a": {"compressors": [HeldEncoder()], "chunks": (LARGE // 2,)}}
    await aioxarray.to_zarr_async(dataset(VALUES), store, encoding=encoding)


async def to_memory_by_codec(held: Held, folder: Path) -> None:
    await by_codec(held, MemoryStore())


async def to_files_by_codec(held: Held, folder: Path) -> None:
    await by_codec(held, folder / "a.zarr")


async def from_backend(held: Held, folder: Path) -> None:
    ds = dataset(indexing.LazilyIndexedArray(HeldArray(held)))
    await aioxarray.to_zarr_async(ds, folder / "a.zarr")


async def from_decoding(held: Held, folder: Path) -> None:
    raw = indexing.LazilyIndexedArray(HeldArray(None))
    data = lazy_elemwise_func(raw, held_by(held), VALUES.dtype)
    await aioxarray.to_zarr_async(dataset(indexing.LazilyIndexedArray(data)), folder / "a.zarr")


def computed(held: Held) -> xr.Dataset:
    array = dask.array.from_array(VALUES, chunks=LARGE)
    return dataset(array.map_blocks(held_by(held), dtype="f8", meta=np.zeros(0)))


async def from_dask(held: Held, folder: Path) -> None:
    await aioxarray.to_zarr_async(computed(held), folder / "a.zarr")


async def to_netcdf(held: Held, folder: Path) -> None:
    # The data is computed in the middle of writing the file.
    await aioxarray.to_netcdf_async(computed(held), folder / "a.nc", engine="h5netcdf")


async def to_netcdf_from_backend(held: Held, folder: Path) -> None:
    ds = dataset(indexing.LazilyIndexedArray(HeldArray(held)))
    await aioxarray.to_netcdf_async(ds, folder / "a.nc", engine="h5netcdf")


@dataclass(frozen=True)
class Work:
    """A save, and the thread that does what is held up in it ("" for threads of others)."""

    save: Callable[[Held, Path], Any]
    thread: str


WORK = {
    "storing": Work(to_store, "zarr_io"),
    "compressing": Work(to_memory_by_codec, "aioxarray-decode"),
    "compressing to files": Work(to_files_by_codec, "aioxarray-decode"),
    "reading": Work(from_backend, "aioxarray-blocking"),
    "decoding": Work(from_decoding, "aioxarray-decode"),
    "dask": Work(from_dask, ""),
    "netCDF": Work(to_netcdf, ""),
    "netCDF of lazy data": Work(to_netcdf_from_backend, "aioxarray-blocking"),
}


@pytest.mark.parametrize("kind", WORK)
@every_loop
async def test_the_callers_loop_goes_on_while_something_works(kind: str, tmp_path: Path) -> None:
    held, work = Held(), WORK[kind]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work.save, held, tmp_path)
        # Only a loop that is not held up comes to the next lines.
        assert await anyio.to_thread.run_sync(held.begun.wait, PATIENCE_S)
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        held.may_end.set()
    assert held.threads
    for thread in held.threads:
        assert thread is not threading.current_thread()
        assert thread.name.startswith(work.thread)
