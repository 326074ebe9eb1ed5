"""Odd netCDF4 and HDF5 files, of each library that writes them: opened as plain xarray opens them.

Of each object of a file everything is asked once; what is remembered must be what plain xarray is
told, of strings and types as well as of dimensions without a name.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import netCDF4
import numpy as np
import psutil
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioxarray
from tests.opening.helpers import Way, assert_loaded, assert_opened, climate, own_ways

# --- the files ------------------------------------------------------------------------------------


def by_netcdf4(path: Path) -> None:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        file.createDimension("char", 5)
        # A dimension without a variable, and a variable with the name of a dimension not its own.
        file.createDimension("bare", 4)
        clash = file.createVariable("x", "f4", ("time",))
        clash[:] = [1, 2]
        time = file.createVariable("time", "i4", ("time",))
        time.units, time.calendar = "days since 2001-02-27", "noleap"
        time[:] = [0, 1]
        packed = file.createVariable("packed", "i2", ("time", "x"), zlib=True, fill_value=-9)
        packed.scale_factor, packed.add_offset = 0.5, 10.0
        packed[:] = [[1, 2, 3], [4, 5, 6]]
        char = file.createVariable("char", "S1", ("x", "char"))
        char[:] = netCDF4.stringtochar(np.array(["abc", "de", "fghij"], dtype="S5"))
        char._Encoding = "utf-8"
        text = file.createVariable("text", str, ("x",))
        text[:] = np.array(["a", "bcd", "ü"], dtype=object)
        scalar = file.createVariable("scalar", "f8", ())
        scalar[...] = 3.5
        big = file.createVariable("big", ">i4", ("x",), endian="big")
        big[:] = [1, 2, 3]
        kind = file.createEnumType("u1", "kind_t", {"dry": 0, "wet": 1})
        enum = file.createVariable("enum", kind, ("x",), fill_value=1)
        enum[:] = [0, 1, 0]
        dtype = np.dtype([("a", "i8"), ("b", "f8")])
        pair = file.createVariable("pair", file.createCompoundType(dtype, "pair_t"), ("x",))
        pair[:] = np.array([(1, 2.0), (3, 4.0), (5, 6.0)], dtype=dtype)
        file.setncattr("title", "odd")
        file.setncattr_string("strings", ["one", "two"])
        file.setncattr("numbers", np.array([1, 2, 3], dtype="i2"))
        file.setncattr("one", np.array([7], dtype="i8"))
        file.setncattr("empty", "")
        below = file.createGroup("below")
        below.createDimension("y", 2)
        below.createVariable("y", "f8", ("y",))[:] = [1, 2]
        below.createVariable("both", "f8", ("x", "y"))[:] = np.ones((3, 2))


def by_h5netcdf(path: Path) -> None:
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"x": 3, "time": None}
        file.resize_dimension("time", 2)
        file.create_variable("x", ("x",), "f8", data=np.arange(3.0))
        # Shorter than its dimension, which can grow: the rest of it is fill values.
        file.create_variable("short", ("time",), "f4", fillvalue=np.float32(-1))
        compressed = file.create_variable(
            "compressed", ("x",), "i8", chunks=(2,), compression="gzip", shuffle=True
        )
        compressed[...] = np.arange(3)
        file.create_variable("fixed", ("x",), "S4", data=np.array(["a", "bcd", "efgh"], "S4"))
        file.create_variable("coord", ("x",), "f8", data=np.arange(3.0)).attrs["units"] = "m"
        compressed.attrs["coordinates"] = "coord"
        file.attrs["bytes"] = np.bytes_(b"abc")
        file.attrs["float"] = 1.5
        file.attrs["list"] = ["a", "b"]


def by_h5py(path: Path) -> None:
    with h5py.File(path, "w") as file:
        # Dimensions without names, one of them twice.
        file["square"] = np.arange(9).reshape(3, 3)
        file["line"] = np.arange(3.0)
        file["long"] = np.arange(5, dtype="u2")
        file["same"] = file["line"]
        file["line"].attrs["empty"] = h5py.Empty("f8")
        file["line"].attrs["no text"] = h5py.Empty(h5py.string_dtype(length=1))
        file["line"].attrs["latin"] = np.bytes_("ä".encode("latin-1"))
        file["line"].attrs["words"] = np.array([b"ab", b"cd"], dtype="S2")
        file["text"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        file["group/inner"] = np.zeros((2, 5))


def by_xarray(path: Path) -> None:
    climate().to_netcdf(path, engine="h5netcdf", unlimited_dims=["time"])


def with_user_types(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = h5py.enum_dtype({"a": 0, "b": 1}, basetype="u1")
        file["kind"] = kind
        file.create_dataset("kinds", (3,), dtype=file["kind"])
        file["ragged"] = h5py.vlen_dtype(np.dtype("i4"))
        many = file.create_dataset("many", (2,), dtype=file["ragged"])
        many[0], many[1] = [1, 2], [3]


def with_links(path: Path) -> None:
    """Links within the file, and into one that has been written before."""
    with h5py.File(path, "w") as file:
        file["a/b/line"] = np.arange(3.0)
        file["soft"] = h5py.SoftLink("/a/b/line")
        file["a/up"] = h5py.SoftLink("/a/b")
        file["variable"] = h5py.ExternalLink("h5py.nc", "/long")
        file["group"] = h5py.ExternalLink("h5py.nc", "/group")


FILES: dict[str, Callable[[Path], None]] = {
    "netCDF4": by_netcdf4,
    "h5netcdf": by_h5netcdf,
    "h5py": by_h5py,
    "xarray": by_xarray,
    "user types": with_user_types,
    "links": with_links,
}
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
every_file = pytest.mark.parametrize("name", FILES)
# Said by plain xarray of these files, and so by ours.
said = pytest.mark.filterwarnings(
    "ignore:The 'phony_dims' kwarg now defaults:UserWarning",
    "ignore:'utf-8' codec can't decode bytes:UnicodeWarning",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for name, write in FILES.items():
        write(folder / f"{name}.nc")
    return folder


def compare(way: Way, function: str, path: Path, options: dict[str, Any]) -> None:
    plain, ours = (
        _outcome(opening, path, {**options, "engine": "h5netcdf"})
        for opening in (getattr(xr, function), lambda *a, **kw: way(function, *a, **kw))
    )
    if isinstance(plain, Exception) or isinstance(ours, Exception):
        assert (type(ours), str(ours)) == (type(plain), str(plain))
        return
    assert_opened(ours, plain)
    assert_loaded(ours, plain)
    for obj in (ours, plain):
        for each in obj.values() if isinstance(obj, dict) else [obj]:
            each.close()


def _outcome(opening: Callable[..., Any], path: Path, options: dict[str, Any]) -> Any:
    try:
        return opening(path, **options)
    except Exception as error:  # noqa: BLE001 - compared with what plain xarray raises
        return error


# --- what is in them ------------------------------------------------------------------------------


@said
@own_ways
@every_file
@pytest.mark.parametrize("options", OPTIONS)
def test_a_dataset_is_that_of_plain_xarray(name: str, options: str, way: Way, folder: Path) -> None:
    compare(way, "open_dataset", folder / f"{name}.nc", OPTIONS[options])


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
def test_whatever_xarray_writes_is_opened_the_same(
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


def open_files() -> list[str]:
    gc.collect()
    return [each.path for each in psutil.Process().open_files() if each.path.endswith(".nc")]


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
