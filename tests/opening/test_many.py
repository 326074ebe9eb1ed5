"""Many files as one dataset: `open_mfdataset` beside plain xarray's."""

from __future__ import annotations

import asyncio
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._xarray.arrays.read import in_hdf5
from aioxarray.testing import RecordingStore
from tests.opening.helpers import BLOCKING, OWN, Way, every_way, own_ways
from tests.oracle import assert_same, lazy

DAYS = 4


def part(day: int) -> xr.Dataset:
    time = np.datetime64("2001-01-01", "ns") + np.arange(day * 3, day * 3 + 3) * np.timedelta64(
        1, "D"
    )
    values = np.arange(3 * 2.0).reshape(3, 2) + 10 * day
    return xr.Dataset(
        {
            "t": (("time", "x"), values, {"long_name": "quicksilver"}),
            "n": ("time", np.arange(3, dtype="i2")),
        },
        {"time": time, "x": [1.0, 2.0]},
        {"day": day},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for day in range(DAYS):
        part(day).to_netcdf(folder / f"{day}.nc", engine="h5netcdf")
        part(day).to_zarr(folder / f"{day}.zarr")
    return folder


def paths(folder: Path, suffix: str = "nc") -> list[str]:
    return [str(folder / f"{day}.{suffix}") for day in range(DAYS)]


def doubled(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(t=ds.t * 2)


async def doubled_async(ds: xr.Dataset) -> xr.Dataset:
    await asyncio.sleep(0)
    return doubled(ds)


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "nested": {"combine": "nested", "concat_dim": "time"},
    "a new dimension": {"combine": "nested", "concat_dim": "file", "join": "override"},
    "preprocessed": {"preprocess": doubled},
    "chunks as told": {"chunks": {"time": 2}},
    "attributes of one file": {"attrs_file": "2.nc"},
    "attributes dropped": {"combine_attrs": "drop"},
    "minimal": {"data_vars": "minimal", "coords": "minimal", "compat": "override"},
    "a variable dropped": {"drop_variables": "n"},
    "undecoded": {"decode_times": False, "combine": "nested", "concat_dim": "time"},
}


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.filterwarnings("ignore:In a future version of xarray:FutureWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_what_xarray_opens(name: str, way: Way, folder: Path) -> None:
    options = dict(OPTIONS[name])
    if "attrs_file" in options:
        options["attrs_file"] = str(folder / options["attrs_file"])
    # Engine "aio" takes the engine that xarray would.
    engine = None if way.name == "engine aio" else "h5netcdf"
    with (
        xr.open_mfdataset(paths(folder), engine=engine, **options) as plain,
        way("open_mfdataset", paths(folder), engine="h5netcdf", **options) as got,
    ):
        assert {k: v.chunks for k, v in got.variables.items()} == {
            k: v.chunks for k, v in plain.variables.items()
        }
        assert_same(got.load(), plain.load())


@own_ways
def test_a_coroutine_function_may_preprocess(way: Way, folder: Path) -> None:
    with xr.open_mfdataset(paths(folder), engine="h5netcdf", preprocess=doubled) as plain:
        expected = plain.load()
    with way("open_mfdataset", paths(folder), engine="h5netcdf", preprocess=doubled_async) as got:
        xr.testing.assert_identical(got.load(), expected)


@own_ways
def test_preprocess_must_return_a_dataset(way: Way, folder: Path) -> None:
    with pytest.raises(TypeError, match="preprocess must return a Dataset, got NoneType"):
        way("open_mfdataset", paths(folder), engine="h5netcdf", preprocess=lambda ds: None)


@own_ways
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_without_dask_it_is_lazy_all_the_same(suffix: str, way: Way, folder: Path) -> None:
    engine = "h5netcdf" if suffix == "nc" else "zarr"
    with xr.open_mfdataset(paths(folder, suffix), engine=engine) as plain:
        expected = plain.load()
    with way("open_mfdataset", paths(folder, suffix), engine=engine, chunks=None) as got:
        assert lazy(got) == {"['t']", "['n']"}
        assert all(variable.chunks is None for variable in got.variables.values())
        xr.testing.assert_identical(
            got.isel(time=slice(2, 7)).load(), expected.isel(time=slice(2, 7))
        )
        xr.testing.assert_identical(asyncio.run(got.load_async()), expected)


@own_ways
def test_only_the_parts_that_are_selected_are_read(way: Way) -> None:
    stores = [MemoryStore() for _ in range(DAYS)]
    for day, store in enumerate(stores):
        part(day).to_zarr(store)
    recording = [RecordingStore(store) for store in stores]
    got = way("open_mfdataset", recording, engine="zarr", chunks=None)
    for each in recording:
        each.log.clear()
    aioxarray.load(got.t.isel(time=slice(0, 4)))
    assert [each.log.count("get", "t/c/*") for each in recording] == [1, 1, 0, 0]


@own_ways
def test_files_that_would_have_to_be_loaded_are_refused(
    way: Way, folder: Path, tmp_path: Path
) -> None:
    found = []
    for day in range(2):
        found.append(str(tmp_path / f"{day}.nc"))
        part(day).assign(same=("x", [5.0, 6.0])).to_netcdf(found[-1], engine="h5netcdf")
    options: dict[str, Any] = {"engine": "h5netcdf", "chunks": None, "compat": "equals"}
    options |= {"data_vars": "minimal", "coords": "minimal"}
    with pytest.raises(ValueError, match=r"never does behind your back.*compat='override'"):
        way("open_mfdataset", found, **options)
    with way("open_mfdataset", found, **{**options, "compat": "override"}) as got:
        assert got.same.values.tolist() == [5.0, 6.0]


# --- what is wrong ----------------------------------------------------------------------------


@pytest.fixture
def with_a_bad_one(folder: Path, tmp_path: Path) -> list[str]:
    bad = tmp_path / "bad.nc"
    bad.write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    return [*paths(folder)[:2], str(bad), *paths(folder)[2:]]


def open_files() -> set[str]:
    """Return the netCDF files that are open when the library has done what it had begun."""
    run_blocking(lambda: in_hdf5(gc.collect))
    return {each.path for each in psutil.Process().open_files() if each.path.endswith(".nc")}


@own_ways
def test_a_bad_file_is_named(way: Way, with_a_bad_one: list[str]) -> None:
    with pytest.raises(OSError) as plain:  # noqa: PT011 - compared with ours
        xr.open_mfdataset(with_a_bad_one, engine="h5netcdf")
    before = open_files()
    with pytest.raises(OSError) as ours:  # noqa: PT011
        way("open_mfdataset", with_a_bad_one, engine="h5netcdf")
    assert type(ours.value) is type(plain.value)
    assert f"while opening {with_a_bad_one[2]!r} with engine 'h5netcdf'" in ours.value.__notes__
    assert open_files() <= before


@own_ways
def test_a_bad_file_may_be_left_out(way: Way, with_a_bad_one: list[str], folder: Path) -> None:
    with xr.open_mfdataset(paths(folder), engine="h5netcdf") as plain:
        expected = plain.load()
    for errors in ("ignore", "warn"):
        options = {"engine": "h5netcdf", "errors": errors}
        if errors == "warn":
            with pytest.warns(UserWarning, match=r"Could not open .*bad\.nc"):
                got = way("open_mfdataset", with_a_bad_one, **options)
        else:
            got = way("open_mfdataset", with_a_bad_one, **options)
        with got:
            xr.testing.assert_identical(got.load(), expected)


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception]]] = {
    "no files": ([], {}, OSError),
    "a pattern of none": ("nowhere-*.nc", {}, OSError),
    "a way with errors": (["a.nc"], {"errors": "somehow"}, ValueError),
    "a dimension by coordinates": (["a.nc"], {"concat_dim": "time"}, ValueError),
    "no such file": (["none.nc"], {"engine": "h5netcdf"}, FileNotFoundError),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments(name: str) -> None:
    source, options, error = WRONG[name]
    with pytest.raises(error):
        xr.open_mfdataset(source, **options)
    for way in OWN:
        with pytest.raises(error):
            way("open_mfdataset", source, **options)


@own_ways
def test_a_way_to_combine_is_refused_before_a_file_is_opened(way: Way) -> None:
    with pytest.raises(ValueError, match="somehow is an invalid option"):
        way("open_mfdataset", ["none.nc"], combine="somehow")


# --- files -------------------------------------------------------------------------------------


def test_open_files_stay_within_xarrays_limit(tmp_path: Path) -> None:
    found = []
    for day in range(12):
        found.append(str(tmp_path / f"{day:02}.nc"))
        part(day).to_netcdf(found[-1], engine="h5netcdf")
    with xr.set_options(file_cache_maxsize=4):
        with aioxarray.open_mfdataset(found, engine="h5netcdf", chunks=None) as got:
            assert len(open_files()) <= 4
            assert got.t.load().shape == (36, 2)
            assert len(open_files()) <= 4
        assert not open_files()


def test_a_pickle_carries_no_more_than_what_it_is(folder: Path) -> None:
    options: dict[str, Any] = {"engine": "h5netcdf", "preprocess": lambda ds: ds[["n"]]}
    with BLOCKING("open_mfdataset", paths(folder), chunks=None, **options) as got:
        pickled = pickle.dumps(got)
        assert b"quicksilver" not in pickled
        with pickle.loads(pickled) as again:
            xr.testing.assert_identical(again.load(), got.load())
