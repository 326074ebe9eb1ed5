"""Odd netCDF4 and HDF5 files, of each library that writes them: opened as plain xarray opens them.

Of each object of a file everything is asked once; what is remembered must be what plain xarray is
told, of strings and types as well as of dimensions without a name.
"""

from __future__ import annotations

import asyncio
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioxarray
from tests.opening.helpers import Way, assert_loaded, assert_opened, own_ways
from tests.opening.odd_files import ODD_FILES, compare, open_files, said, write_odd_files

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "undecoded": {"decode_cf": False},
    "unmasked": {"mask_and_scale": False, "concat_characters": False},
    "sorted names": {"phony_dims": "sort"},
    "bytes": {"decode_vlen_strings": False},
    "no indexes": {"create_default_indexes": False},
    "chunks": {"chunks": {}},
    "not cached": {"cache": False},
}
every_file = pytest.mark.parametrize("name", [name for name in ODD_FILES if name != "large"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_files(tmp_path_factory.mktemp("odd"))


# --- what is in them ------------------------------------------------------------------------------


@pytest.mark.matrix(together=2)
@said
@own_ways
@every_file
@pytest.mark.parametrize("options", OPTIONS)
def test_a_dataset_is_that_of_plain_xarray(name: str, options: str, way: Way, folder: Path) -> None:
    compare(way, "open_dataset", folder / f"{name}.nc", OPTIONS[options])


@pytest.mark.matrix(together=0)
@said
@own_ways
@every_file
@pytest.mark.parametrize("function", ["open_groups", "open_datatree"])
def test_all_groups_are_those_of_plain_xarray(
    name: str, function: str, way: Way, folder: Path
) -> None:
    compare(way, function, folder / f"{name}.nc", {})


@said
@own_ways
@pytest.mark.parametrize(
    ("name", "group"), [("netCDF4", "below"), ("h5py", "/group"), ("netCDF4", "none")]
)
@pytest.mark.parametrize("function", ["open_dataset", "open_groups"])
def test_a_group_is_that_of_plain_xarray(
    name: str, group: str, function: str, way: Way, folder: Path
) -> None:
    compare(way, function, folder / f"{name}.nc", {"group": group})


def test_dimensions_without_a_name_are_warned_of_as_in_xarray(folder: Path) -> None:
    counts = []
    for opening in (xr.open_dataset, aioxarray.open_dataset):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opening(folder / "h5py.nc", engine="h5netcdf").close()
        counts.append(len([each for each in caught if "phony_dims" in str(each.message)]))
    assert counts == [1, 1]


ATTRIBUTES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(allow_nan=False),
    st.lists(st.integers(0, 100), min_size=1, max_size=3).map(np.asarray),
)


@st.composite
def datasets(draw: st.DrawFn) -> xr.Dataset:
    """Datasets with dimensions of which some have coordinates, and all kinds of values."""
    sizes = {name: draw(st.integers(1, 3)) for name in ("x", "y", "z")}
    variables: dict[str, Any] = {}
    for name in ("x", "y", "a", "b", "c"):
        dims = (name,) if name in sizes else tuple(draw(st.permutations(list(sizes))))
        dims = dims[: draw(st.integers(0, 3))] if name not in sizes else dims
        shape = [sizes[dim] for dim in dims]
        dtype = draw(st.sampled_from(["i2", "f4", "f8", "S3", "U2", "M8[ns]"]))
        values: Any = np.arange(int(np.prod(shape))).reshape(shape)
        values = values.astype("M8[D]").astype(dtype) if dtype[0] == "M" else values.astype(dtype)
        attrs = draw(st.dictionaries(st.sampled_from(["p", "q", "ü"]), ATTRIBUTES))
        if draw(st.booleans()) or name not in sizes:
            variables[name] = xr.Variable(dims, values, attrs)
    return xr.Dataset(variables, attrs=draw(st.dictionaries(st.just("r"), ATTRIBUTES)))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ds=datasets(), engine=st.sampled_from(["h5netcdf", "netcdf4"]), grows=st.booleans())
def test_files_that_xarray_writes_are_opened_the_same(
    ds: xr.Dataset, engine: Any, grows: bool, tmp_path: Path
) -> None:
    path = tmp_path / "any.nc"
    unlimited = ["x"] if grows and "x" in ds.dims else []
    ds.to_netcdf(path, engine=engine, unlimited_dims=unlimited)
    with (
        xr.open_dataset(path, engine="h5netcdf") as plain,
        aioxarray.open_dataset(path, engine="h5netcdf") as ours,
    ):
        assert_opened(ours, plain)
        assert_loaded(ours, plain)


# --- the file itself ------------------------------------------------------------------------------


@said
@own_ways
@pytest.mark.parametrize("name", ["netCDF4", "h5netcdf", "h5py", "xarray"])
def test_closing_closes_the_file(name: str, way: Way, folder: Path) -> None:
    ds = way("open_dataset", folder / f"{name}.nc", engine="h5netcdf")
    assert open_files()
    ds.close()
    assert not open_files()


@own_ways
def test_nothing_stays_open_after_an_error(way: Way, folder: Path) -> None:
    for options in ({"group": "none"}, {"phony_dims": "wrong"}, {"no_option": 1}):
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one, is compared above
            way("open_dataset", folder / "netCDF4.nc", engine="h5netcdf", **options)
        assert not open_files(), options


def test_a_closed_file_is_opened_again_where_it_is_read(folder: Path) -> None:
    expected = climate_as_written(folder)
    with xr.set_options(file_cache_maxsize=1):
        first = aioxarray.open_dataset(folder / "xarray.nc", engine="h5netcdf")
        second = aioxarray.open_dataset(folder / "h5netcdf.nc", engine="h5netcdf")
        # xarray keeps one file open, the latest.
        assert open_files() == [str(folder / "h5netcdf.nc")]
        xr.testing.assert_identical(first.load(), expected)
        assert open_files() == [str(folder / "xarray.nc")]
        second.close()
        first.close()
    assert not open_files()


def climate_as_written(folder: Path) -> xr.Dataset:
    return xr.load_dataset(folder / "xarray.nc", engine="h5netcdf")


def test_it_can_be_pickled_and_loaded_from_another_loop(folder: Path) -> None:
    with aioxarray.open_dataset(folder / "xarray.nc", engine="h5netcdf") as ds:
        copy = pickle.loads(pickle.dumps(ds))
        loaded = asyncio.run(aioxarray.load_async(copy))
        xr.testing.assert_identical(loaded, climate_as_written(folder))
        copy.close()
