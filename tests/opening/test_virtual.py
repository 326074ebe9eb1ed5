"""netCDF4 and HDF5 files whose chunks are read as Zarr's: opened as plain xarray opens them.

The engine that plain xarray opens them with, h5netcdf, is the oracle.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from tests.opening.helpers import BLOCKING, Way, assert_loaded, assert_opened, own_ways
from tests.opening.odd_files import ODD_FILES, compare, open_files, said, write_odd_files

OPTIONS: dict[str, dict[str, Any]] = {
    "undecoded": {"decode_cf": False},
    "sorted names": {"phony_dims": "sort"},
    "no indexes": {"create_default_indexes": False},
    "chunks": {"chunks": {}},
    "dropped": {"drop_variables": ["x", "time", "gzip"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_files(tmp_path_factory.mktemp("virtual"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ObjectServer]:
    with ObjectServer(root=folder) as server:
        yield server


@pytest.mark.matrix(together=1)
@said
@own_ways
@pytest.mark.parametrize("name", ODD_FILES)
def test_a_dataset_is_that_of_plain_xarray(name: str, way: Way, folder: Path) -> None:
    compare(way, "open_dataset", folder / f"{name}.nc", {}, virtual=True)


@pytest.mark.matrix(together=1)
@said
@pytest.mark.parametrize("name", [name for name in ODD_FILES if name != "large"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_mean_what_they_mean_to_plain_xarray(name: str, options: str, folder: Path) -> None:
    path = folder / f"{name}.nc"
    compare(BLOCKING, "open_dataset", path, OPTIONS[options], virtual=True)


@said
@own_ways
@pytest.mark.parametrize(
    ("name", "group"), [("netCDF4", "below"), ("h5py", "/group"), ("netCDF4", "none")]
)
def test_a_group_is_that_of_plain_xarray(name: str, group: str, way: Way, folder: Path) -> None:
    compare(way, "open_dataset", folder / f"{name}.nc", {"group": group}, virtual=True)


@said
@own_ways
@pytest.mark.parametrize("name", ["storage", "conventions", "netCDF4", "xarray"])
def test_a_url_gives_what_the_file_does(
    name: str, way: Way, folder: Path, server: ObjectServer
) -> None:
    with (
        xr.open_dataset(folder / f"{name}.nc", engine="h5netcdf") as plain,
        way("open_dataset", f"{server.url}/{name}.nc", engine="h5netcdf", virtual=True) as got,
    ):
        for ds in (got, plain):
            sources = [ds.encoding.pop("source")]
            sources += [each.encoding.pop("source", "") for each in ds.variables.values()]
            assert all(source.endswith(f"{name}.nc") for source in sources if source)
        assert_opened(got, plain)
        assert_loaded(got, plain)


@pytest.mark.parametrize(
    "selection",
    [
        {"y": slice(1, 4), "x": slice(None, None, 3)},
        {"y": [4, 0, 0], "x": 2},
        {"y": xr.DataArray([0, 4, 2], dims="p"), "x": xr.DataArray([6, 0, 3], dims="p")},
    ],
)
def test_a_selection_is_that_of_plain_xarray(selection: dict[str, Any], folder: Path) -> None:
    path = folder / "storage.nc"
    only: dict[str, Any] = {"phony_dims": "sort", "engine": "h5netcdf"}
    with (
        xr.open_dataset(path, **only) as plain,
        aioxarray.open_dataset(path, virtual=True, **only) as got,
    ):
        for name in ("shuffled", "contiguous", "lzf", "part"):
            sizes = dict(zip(plain[name].dims, ("y", "x"), strict=True))
            expected, ours = (each[name].rename(sizes).isel(selection) for each in (plain, got))
            xr.testing.assert_identical(aioxarray.load(ours), expected.load())


def test_numbers_are_read_by_zarr_alone(folder: Path) -> None:
    before = open_files()
    ds = aioxarray.open_dataset(folder / "xarray.nc", engine="h5netcdf", virtual=True)
    assert open_files() == before
    ds.load()


@said
def test_a_file_stays_open_for_what_hdf5_reads_until_it_is_closed(folder: Path) -> None:
    before = open_files()
    ds = aioxarray.open_dataset(folder / "netCDF4.nc", engine="h5netcdf", virtual=True)
    assert open_files() == [*before, str(folder / "netCDF4.nc")]
    ds.close()
    assert open_files() == before


@pytest.mark.parametrize(
    ("file", "name", "selection", "count"),
    [
        ("storage", "gzip", (slice(2, 4), slice(0, 3)), 1),
        ("storage", "gzip", (slice(0, 4), slice(0, 6)), 4),
        # 4 MB each, of which the last is shorter.
        ("large", "long", slice(None), 3),
        ("large", "long", slice(0, 10), 1),
        ("large", "rows", (0, slice(1, None), slice(5)), 2),
    ],
)
def test_a_selection_requests_its_chunks_only(
    file: str, name: str, selection: Any, count: int, server: ObjectServer
) -> None:
    url = f"{server.url}/{file}.nc"
    with aioxarray.open_dataset(url, engine="h5netcdf", virtual=True, phony_dims="sort") as ds:
        before = len(server.log.requests)
        ds[name][selection].aio.load()
        assert len(server.log.requests) - before == count


@said
def test_it_can_be_pickled_and_loaded_on_another_loop(server: ObjectServer) -> None:
    with aioxarray.open_dataset(f"{server.url}/netCDF4.nc", engine="h5netcdf", virtual=True) as ds:
        copy = pickle.loads(pickle.dumps(ds))
        loaded = asyncio.run(aioxarray.load_async(copy))
        xr.testing.assert_identical(loaded, ds.load())
        copy.close()


def test_a_filter_without_a_codec_fails_as_in_plain_xarray(tmp_path: Path) -> None:
    path = tmp_path / "unknown.nc"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("v", (4,), "i4", chunks=(4,), compression="lzf")
        data.id.write_direct_chunk((0,), b"no chunk of lzf's", filter_mask=0)
    only: dict[str, Any] = {"engine": "h5netcdf", "phony_dims": "sort"}
    with (
        xr.open_dataset(path, **only) as plain,
        aioxarray.open_dataset(path, virtual=True, **only) as got,
    ):
        with pytest.raises(OSError) as expected:  # noqa: PT011 - the oracle's own words
            plain.load()
        with pytest.raises(OSError) as error:  # noqa: PT011
            got.load()
        assert str(error.value) == str(expected.value)


@pytest.mark.parametrize("compression", ["zstd", "blosc_lz4", "blosc_zlib", "bzip2", "szip"])
def test_compressors_of_netcdf_c_give_what_netcdf_c_reads(compression: Any, tmp_path: Path) -> None:
    path = tmp_path / "compressed.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("x", 1000)
        numbers = file.createVariable("v", "i4", ("x",), compression=compression, chunksizes=(300,))
        numbers[:] = np.arange(1000)
    by_hdf5 = compression in ("bzip2", "szip")
    with aioxarray.open_dataset(path, virtual=True) as got:
        assert (str(path) in open_files()) == by_hdf5
        try:
            got.load()
        except OSError:
            # HDF5 has no such filter here.
            assert by_hdf5
        else:
            xr.testing.assert_identical(got, xr.load_dataset(path, engine="netcdf4"))


# --- bad input ------------------------------------------------------------------------------------


@own_ways
def test_only_netcdf4_can_be_virtual(way: Way, folder: Path) -> None:
    with pytest.raises(ValueError, match="virtual=True reads netCDF4 and HDF5 files"):
        way("open_dataset", folder / "xarray.nc", engine="zarr", virtual=True)
    with pytest.raises(TypeError, match="virtual=True needs a path or a URL"):
        way("open_dataset", io.BytesIO(), virtual=True)
    with pytest.raises(FileNotFoundError):
        way("open_dataset", folder / "none.nc", virtual=True)
    with pytest.raises(TypeError, match="virtual=True takes the arguments of the h5netcdf engine"):
        way("open_dataset", folder / "xarray.nc", virtual=True, driver="core")
    with pytest.raises(TypeError, match="storage_options are for URLs"):
        way("open_dataset", folder / "xarray.nc", virtual=True, storage_options={"anon": True})


@own_ways
def test_another_file_is_refused_as_in_plain_xarray(
    way: Way, tmp_path: Path, server: ObjectServer
) -> None:
    path = tmp_path / "text.nc"
    path.write_bytes(b"no HDF5 at all")
    for source in (path, f"{server.url}/none.nc"):
        with pytest.raises(Exception) as plain:  # noqa: PT011 - whatever plain xarray raises
            xr.open_dataset(source, engine="h5netcdf")
        with pytest.raises(plain.type):
            way("open_dataset", source, virtual=True)


@own_ways
@pytest.mark.parametrize("absent", ["h5netcdf", "h5py", "obstore"])
def test_a_missing_package_is_named_with_what_to_install(
    way: Way, folder: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    # How Python itself is told that a module cannot be imported.
    monkeypatch.delitem(sys.modules, "aioxarray._xarray.opening.virtual", raising=False)
    monkeypatch.delitem(sys.modules, "aioxarray._xarray.hdf5.engine", raising=False)
    monkeypatch.delitem(sys.modules, "aioxarray._xarray.hdf5.files", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=rf"{absent}.*pip install 'aioxarray\[virtual\]'"):
        way("open_dataset", folder / "xarray.nc", engine="h5netcdf", virtual=True)


def test_no_memory_is_asked_for_chunks_that_do_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "sparse.nc"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("v", (1 << 40,), "i1", chunks=(16,), fillvalue=3)
        data[1 << 39] = 5
    only: dict[str, Any] = {"engine": "h5netcdf", "phony_dims": "sort"}
    with aioxarray.open_dataset(path, virtual=True, **only) as ds:
        part = ds.v[(1 << 39) - 2 : (1 << 39) + 2].load()
    np.testing.assert_array_equal(part, [3, 3, 5, 3])
