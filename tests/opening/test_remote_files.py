"""netCDF4 and HDF5 files: read ahead over HTTP, each object opened once, closed in the end."""

from __future__ import annotations

import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._xarray.arrays.remote_files import ReadAheadFile
from aioxarray._xarray.hdf5.files import MetadataCachingFile
from aioxarray.testing import ObjectServer
from tests.opening.helpers import Way, assert_loaded, assert_opened, climate, own_ways


def large() -> xr.Dataset:
    """More than the first and the last block of its file, with a dimension that can grow."""
    values = np.random.default_rng(0).random((3, 1 << 19))
    ds = xr.Dataset({"v": (("time", "x"), values), "name": ("time", ["a", "bc", "def"])})
    return ds.assign_coords(time=np.arange(3) * 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    climate().to_netcdf(folder / "climate.nc", engine="h5netcdf")
    large().to_netcdf(folder / "large.nc", engine="h5netcdf", unlimited_dims=["time"])
    tree = xr.DataTree.from_dict({"/": climate()[["area"]], "/a/b": climate(), "/b": large()})
    tree.to_netcdf(folder / "tree.nc", engine="h5netcdf")
    (folder / "text.nc").write_bytes(b"no HDF5 at all")
    (folder / "empty.nc").write_bytes(b"")
    (folder / "cut.nc").write_bytes((folder / "climate.nc").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ObjectServer]:
    with ObjectServer(root=folder) as server:
        yield server


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """No garbage is collected: the server is in this process, and plain xarray could hang."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@own_ways
@pytest.mark.parametrize("name", ["climate", "large"])
def test_a_dataset_is_that_of_plain_xarray(way: Way, server: ObjectServer, name: str) -> None:
    url = f"{server.url}/{name}.nc"
    plain = xr.open_dataset(url, engine="h5netcdf")
    got = way("open_dataset", url, engine="h5netcdf")
    assert_opened(got, plain)
    assert_loaded(got, plain)
    got.close()
    plain.close()


@own_ways
def test_a_tree_is_that_of_plain_xarray(way: Way, server: ObjectServer) -> None:
    url = f"{server.url}/tree.nc"
    with (
        xr.open_datatree(url, engine="h5netcdf") as plain,
        way("open_datatree", url, engine="h5netcdf") as got,
    ):
        assert_opened(got, plain)
        assert_loaded(got, plain)


@own_ways
@pytest.mark.parametrize("name", ["text.nc", "empty.nc", "cut.nc", "none.nc"])
def test_a_file_that_is_not_hdf5_raises_as_in_xarray(
    way: Way, server: ObjectServer, name: str
) -> None:
    url = f"{server.url}/{name}"
    with pytest.raises(Exception) as plain:  # noqa: PT011 - whatever plain xarray raises
        xr.open_dataset(url, engine="h5netcdf")
    with pytest.raises(plain.type) as ours:
        way("open_dataset", url, engine="h5netcdf")
    assert str(ours.value) == str(plain.value)


def test_a_small_file_is_two_requests(server: ObjectServer) -> None:
    url = f"{server.url}/climate.nc"
    before = len(server.log.requests)
    aioxarray.open_dataset(url, engine="h5netcdf").close()
    # How large it is, and all of it.
    assert [request.method for request in server.log.requests[before:]] == ["HEAD", "GET"]


def test_a_closed_dataset_has_closed_its_file(server: ObjectServer) -> None:
    ds = aioxarray.open_dataset(f"{server.url}/climate.nc", engine="h5netcdf")
    ds.close()
    with pytest.raises(RuntimeError, match="file is closed"):
        ds.tas.load()


def test_an_open_dataset_can_be_pickled(server: ObjectServer) -> None:
    with aioxarray.open_dataset(f"{server.url}/large.nc", engine="h5netcdf") as ds:
        copy = pickle.loads(pickle.dumps(ds))
        xr.testing.assert_identical(copy.load(), ds.load())
        copy.close()


# --- garbage --------------------------------------------------------------------------------------


class ReadElsewhere(io.BytesIO):
    """A file object that is read in another thread, in which garbage is collected then.

    That is what can happen to files of fsspec. The garbage is of h5py: to be freed, it has to
    wait for the thread that is in HDF5, which waits for this thread.
    """

    thread = ThreadPoolExecutor(1)
    reads = 0

    @property
    def size(self) -> int:
        return len(self.getvalue())

    def readinto(self, buffer: Any) -> int:
        type(self).reads += 1
        return self.thread.submit(self._read, buffer).result(timeout=20)

    def _read(self, buffer: Any) -> int:
        with collected_often():
            _ = [[] for _ in range(100)]
        return super().readinto(buffer)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.getvalue(),)


@contextmanager
def collected_often() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def with_garbage(call: Callable[[], Any], folder: Path) -> Any:
    """Return ``call()``, with garbage of h5py around, of which nothing is collected before."""
    usual = gc.get_threshold()
    gc.set_threshold(1 << 30)
    gc.enable()
    try:
        garbage: list[Any] = [h5py.File(folder / "climate.nc", "r")]
        garbage.append(garbage)
        # Old, so that no collection of the youngest takes it.
        gc.collect()
        del garbage
        return call()
    finally:
        gc.set_threshold(*usual)


@pytest.mark.parametrize("opened_by", ["xarray's engine", "us"])
def test_garbage_is_not_collected_while_hdf5_waits(folder: Path, opened_by: str) -> None:
    reads = ReadElsewhere.reads
    file: Any = ReadElsewhere((folder / "large.nc").read_bytes())
    if opened_by == "us":
        file = ReadAheadFile(file)
    ds = with_garbage(lambda: aioxarray.open_dataset(file, engine="h5netcdf"), folder)
    opened = ReadElsewhere.reads
    assert opened > reads
    assert gc.isenabled()
    loaded = with_garbage(lambda: aioxarray.load(ds), folder)
    assert ReadElsewhere.reads > opened
    assert gc.isenabled()
    xr.testing.assert_identical(loaded, large())
    ds.close()


def test_garbage_is_not_collected_while_a_file_is_unpickled(folder: Path) -> None:
    file = ReadAheadFile(ReadElsewhere((folder / "large.nc").read_bytes()))
    with aioxarray.open_dataset(file, engine="h5netcdf") as ds:
        pickled = pickle.dumps(ds)
    reads = ReadElsewhere.reads
    copy = with_garbage(lambda: pickle.loads(pickled), folder)
    assert ReadElsewhere.reads > reads
    xr.testing.assert_identical(with_garbage(copy.load, folder), large())
    copy.close()


# --- the pieces -----------------------------------------------------------------------------------


class File(io.BytesIO):
    """A file object as fsspec has them, which counts what it is asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)
        self.reads = 0

    def readinto(self, buffer: Any) -> int:
        self.reads += 1
        return super().readinto(buffer)


def test_bytes_are_those_of_the_file() -> None:
    data = np.random.default_rng(0).bytes(10 << 20)
    ahead = ReadAheadFile(File(data))
    ahead.read_ahead()
    # In the first block, across its end, between the blocks, in the last, across the end.
    for start, count in ((0, 10), (4 << 20, 7), ((4 << 20) - 3, 9), (5 << 20, 1), (9 << 20, 5)):
        ahead.seek(start)
        assert ahead.read(count) == data[start : start + count]
        assert ahead.tell() == start + count
    ahead.seek(-3, io.SEEK_END)
    assert ahead.read(10) == data[-3:]
    assert ahead.read(10) == b""
    ahead.seek(2)
    ahead.seek(3, io.SEEK_CUR)
    assert ahead.read(2) == data[5:7]


def test_metadata_is_read_from_memory(folder: Path) -> None:
    file = File((folder / "climate.nc").read_bytes())
    ahead = ReadAheadFile(file)
    ahead.read_ahead()
    once = MetadataCachingFile(ahead)
    with xr.open_dataset(once, engine="h5netcdf") as ds:
        xr.testing.assert_identical(ds.load(), xr.load_dataset(folder / "climate.nc"))
    once.close()
    assert file.reads == 0


def test_an_object_is_opened_once(folder: Path) -> None:
    with MetadataCachingFile(io.BytesIO((folder / "tree.nc").read_bytes())) as file:
        assert file["/b/v"] is file["/b/v"]
        assert file["/b/v"].name == "/b/v"
        assert file[file["/b/v"].ref] == file["/b/v"]
        with pytest.raises(KeyError):
            file["/none"]


OPEN_AT_THE_END = """
import sys
import aioxarray
ds = aioxarray.open_dataset(sys.argv[1], engine=sys.argv[2])
print(float(ds.area[0, 0]))
"""


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4", "url"])
def test_a_program_may_end_with_a_file_open(
    folder: Path, server: ObjectServer, engine: str
) -> None:
    source = f"{server.url}/climate.nc" if engine == "url" else str(folder / "climate.nc")
    engine = "h5netcdf" if engine == "url" else engine
    ended = subprocess.run(
        [sys.executable, "-c", OPEN_AT_THE_END, source, engine],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1.0\n", "")
