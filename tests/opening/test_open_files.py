"""Files of HDF5 and netCDF-C: one thread at a time is in these libraries."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
import xarray as xr
from fsspec.spec import AbstractBufferedFile

import aioxarray
from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._xarray.arrays.read import blocking_pool, in_hdf5, lane_of_hdf5
from aioxarray._xarray.lazy.aio_array import AioArray
from aioxarray.testing import ObjectServer, VirtualClock
from tests.runtime.helpers import PATIENCE_S, run_script

engines = pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])


def sample() -> xr.Dataset:
    """A text, whose reading HDF5 remembers, a number, and an index that xarray reads."""
    ds = xr.Dataset({"text": ("x", ["a", "bc", "def"]), "u": ("x", np.arange(3.0))})
    return ds.assign_coords(x=[1.0, 2.0, 4.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open_files") / "a.nc"
    sample().to_netcdf(path, engine="netcdf4")
    return path


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def times_open(path: Path) -> int:
    return sum(file.path == str(path) for file in psutil.Process().open_files())


# --- dropped --------------------------------------------------------------------------------------


def _mfdataset(path: Path, engine: Any) -> xr.Dataset:
    return aioxarray.open_mfdataset([path], engine=engine, chunks=None)


def _loaded(path: Path, engine: Any) -> xr.Dataset:
    return aioxarray.load(aioxarray.open_dataset(path, engine=engine))


def _partly_loaded(path: Path, engine: Any) -> xr.Dataset:
    ds = aioxarray.open_dataset(path, engine=engine)
    aioxarray.load(ds.u)
    return ds


def _read(path: Path, engine: Any) -> xr.Dataset:
    ds = aioxarray.open_dataset(path, engine=engine)
    assert ds.text.values.tolist() == ["a", "bc", "def"]
    return ds


async def _loaded_async(path: Path, engine: Any) -> xr.Dataset:
    return await aioxarray.load_async(await aioxarray.open_dataset_async(path, engine=engine))


OPENINGS: dict[str, Callable[[Path, Any], Any]] = {
    "opened": lambda path, engine: aioxarray.open_dataset(path, engine=engine),
    "opened without indexes": lambda path, engine: aioxarray.open_dataset(
        path, engine=engine, create_default_indexes=False
    ),
    "a tree": lambda path, engine: aioxarray.open_datatree(path, engine=engine),
    "groups": lambda path, engine: aioxarray.open_groups(path, engine=engine),
    "many, without dask": _mfdataset,
    "with dask": lambda path, engine: aioxarray.open_dataset(path, engine=engine, chunks={}),
    "loaded": _loaded,
    "partly loaded": _partly_loaded,
    "read": _read,
    "loaded by a coroutine": lambda path, engine: asyncio.run(_loaded_async(path, engine)),
}


@pytest.mark.matrix(together=1)
@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("name", OPENINGS)
@engines
def test_a_dropped_file_is_closed_then_and_there(path: Path, engine: Any, name: str) -> None:
    for _ in range(10):
        ds = OPENINGS[name](path, engine)
        assert times_open(path) == 1
        del ds
        assert times_open(path) == 0


SEQUENTIAL = """
import sys
import aioxarray, xarray as xr
path, engine = {path!r}, {engine!r}
for number in range(60):
    if number % 3 == 0:
        ds = aioxarray.open_dataset(path, engine=engine)
    elif number % 3 == 1:
        ds = aioxarray.load(aioxarray.open_dataset(path, engine=engine))
    else:
        ds = aioxarray.open_datatree(path, engine=engine)
    del ds
    xr.open_dataset(path, engine=engine)["u"].values
print("fine")
"""


@pytest.mark.matrix(together=0)
@engines
def test_a_sequential_program_survives(path: Path, engine: str) -> None:
    """It also dies, in one thread, where files stay open longer than in plain xarray."""
    assert run_script(SEQUENTIAL.format(path=str(path), engine=engine)) == "fine\n"


def reading(variable: xr.Variable) -> Any:
    """Return the array of ours in a variable, below what xarray puts around it."""
    data: Any = variable._data
    while not isinstance(data, AioArray):
        data = data.array
    return data


class Closes:
    """Notes in which thread what a file object is kept with is let go of."""

    def __init__(self) -> None:
        self.closed_in: list[str] = []

    def open(self) -> Any:
        closed_in = self.closed_in

        class Open:
            def __del__(self) -> None:
                closed_in.append(threading.current_thread().name)

        return Open()


def keep_with(array: Any, obj: Any) -> None:
    """Have ``obj`` let go of with the file of ``array``."""
    lane_of_hdf5()._kept[array.file._key].append(obj)


def _collect_in_a_thread_of_ours() -> None:
    run_blocking(lambda: blocking_pool.run(gc.collect))


def test_a_thread_that_ran_the_io_loop_for_a_while_is_the_users_again(path: Path) -> None:
    async def nothing() -> None:
        pass

    VirtualClock().run(lambda: asyncio.to_thread(run_blocking, nothing))
    ds = aioxarray.open_dataset(path, engine="h5netcdf")
    assert times_open(path) == 1
    del ds
    assert times_open(path) == 0


@pytest.mark.usefixtures("no_collections")
@engines
def test_files_collected_in_our_threads_are_closed_in_the_callers(path: Path, engine: Any) -> None:
    cycle: list[Any] = [aioxarray.open_dataset(path, engine=engine)]
    # Lives as long as the file's store.
    closes = Closes()
    keep_with(reading(cycle[0].u.variable), closes.open())
    cycle.append(cycle)
    del cycle
    _collect_in_a_thread_of_ours()
    assert times_open(path) == 0
    assert closes.closed_in == [threading.current_thread().name]


# --- copies ---------------------------------------------------------------------------------------


def _unpickled(obj: Any) -> Any:
    return pickle.loads(pickle.dumps(obj))


@pytest.mark.matrix(together=1)
@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, _unpickled])
@pytest.mark.parametrize("name", ["opened", "many, without dask"])
@engines
def test_a_copy_keeps_what_closes_its_file(
    path: Path, engine: Any, name: str, copied: Callable[[Any], Any]
) -> None:
    ds = OPENINGS[name](path, engine)
    data = copied(reading(ds.u.variable))
    del ds
    assert data.file is not None
    assert data.get_duck_array().tolist() == [0.0, 1.0, 2.0]
    assert times_open(path) == 1
    # In a cycle that a thread of ours collects.
    cycle = [data]
    cycle.append(cycle)
    closes = Closes()
    keep_with(data, closes.open())
    del cycle, data
    _collect_in_a_thread_of_ours()
    assert times_open(path) == 0
    assert closes.closed_in == [threading.current_thread().name]


# --- cancelled ------------------------------------------------------------------------------------


class Gated(io.BytesIO):
    """A file object that HDF5 reads, and waits for, while the gate is shut."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.waits, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def readinto(self, buffer: Any) -> int:
        if not self.may_go_on.is_set():
            self.waits.set()
            assert self.may_go_on.wait(PATIENCE_S)
        return super().readinto(buffer)


async def _ends_with_the_library(task: asyncio.Task[Any], file: Gated) -> None:
    assert await asyncio.to_thread(file.waits.wait, PATIENCE_S)
    for _ in range(3):
        task.cancel()
        await run_on(io_loop(), lambda: asyncio.sleep(0))
    assert not task.done()
    file.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def large(tmp_path: Path) -> bytes:
    ds = xr.Dataset({"v": ("x", np.random.default_rng(0).random(1 << 16))})
    ds.to_netcdf(tmp_path / "large.nc", engine="h5netcdf")
    return (tmp_path / "large.nc").read_bytes()


@pytest.mark.anyio
async def test_a_cancelled_load_ends_when_hdf5_has(tmp_path: Path) -> None:
    file = Gated(large(tmp_path))
    ds = await aioxarray.open_dataset_async(file, engine="h5netcdf")
    file.may_go_on.clear()
    await _ends_with_the_library(asyncio.create_task(aioxarray.load_async(ds)), file)
    assert not ds.v.variable._in_memory
    ds.close()


@pytest.mark.anyio
async def test_a_cancelled_opening_ends_when_hdf5_has(tmp_path: Path) -> None:
    file = Gated(large(tmp_path))
    file.may_go_on.clear()
    opening = asyncio.create_task(aioxarray.open_dataset_async(file, engine="h5netcdf"))
    await _ends_with_the_library(opening, file)


OPENED_BY: dict[str, Callable[[str], Any]] = {
    "aioxarray": lambda url: aioxarray.open_dataset(url, engine="h5netcdf"),
    "plain xarray": lambda url: xr.open_dataset(url, engine="h5netcdf"),
    # Its fetches cannot be awaited.
    "a file object": lambda url: xr.open_dataset(Untold(url), engine="h5netcdf"),
    "another cache": lambda url: xr.open_dataset(
        fsspec.open(url, cache_type="readahead", block_size=1 << 16).open(), engine="h5netcdf"
    ),
}


class Untold(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of a filesystem that has blocking calls only."""

    def __init__(self, url: str) -> None:
        filesystem, path = fsspec.url_to_fs(url)
        super().__init__(
            filesystem,
            path,
            block_size=1 << 16,
            cache_type="blockcache",
            size=filesystem.size(path),
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start=start, end=end)
        return data


@pytest.mark.parametrize("opened_by", OPENED_BY)
def test_a_stalled_server_is_not_waited_for(tmp_path: Path, path: Path, opened_by: str) -> None:
    # Larger than the blocks that are read ahead.
    ds = xr.Dataset({"v": ("x", np.random.default_rng(0).random(3 << 19))})
    ds.to_netcdf(tmp_path / "large.nc", engine="h5netcdf")
    with ObjectServer(root=tmp_path) as server:
        got = OPENED_BY[opened_by](f"{server.url}/large.nc")
        server.latency_s = 3600
        with pytest.raises(TimeoutError):
            aioxarray.load(got, timeout=0.2)
        # No thread is left in the library.
        xr.testing.assert_identical(_loaded(path, "h5netcdf"), sample())
        server.latency_s = 0
        xr.testing.assert_identical(aioxarray.load(got), ds)
        got.close()


@pytest.mark.anyio
async def test_files_opened_in_vain_are_closed(path: Path) -> None:
    """The dataset of an opening that is cancelled in the moment in which it ends."""
    begun, may_end = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        assert may_end.wait(PATIENCE_S)

    # Opening waits for its turn, and ends after it was cancelled.
    other = asyncio.create_task(run_on(io_loop(), lambda: in_hdf5(occupy)))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    opening = asyncio.create_task(aioxarray.open_dataset_async(path, engine="netcdf4"))
    await asyncio.sleep(0)
    opening.cancel()
    may_end.set()
    await asyncio.wait([opening, other])
    assert opening.cancelled()
    assert times_open(path) == 0
