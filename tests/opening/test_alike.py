"""Files that are opened together, and from one another: what differs between them is seen."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._xarray.arrays.read import in_hdf5
from aioxarray._xarray.hdf5.engine import open_caching_metadata
from aioxarray._xarray.hdf5.layouts import Layouts
from aioxarray._xarray.opening.indexes import KnownIndexes, with_default_indexes
from aioxarray.testing import ObjectServer
from tests.opening.odd_files import by_h5netcdf, by_netcdf4
from tests.oracle import assert_same

Write = Callable[[Path, int], None]


def part(day: int) -> xr.Dataset:
    days = np.array([2 * day, 2 * day + 1])
    time = np.datetime64("2001-01-01", "ns") + days * np.timedelta64(1, "D")
    return xr.Dataset(
        {
            "t": (("time", "x"), np.arange(6.0).reshape(2, 3) + 10 * day, {"units": "K"}),
            "packed": (("time", "x"), np.full((2, 3), day + 0.5)),
            "words": ("x", np.array([b"ab", b"c", b"d"])),
            "bounds": (("time", "b"), np.stack([time, time + np.timedelta64(1, "D")], axis=1)),
        },
        {"time": ("time", time, {"bounds": "bounds"}), "x": [1.0, 2.0, 3.0], "run": day},
        {"history": f"made on day {day}", "list": [day, 2], "title": "quicksilver"},
    )


def by_xarray(path: Path, day: int, engine: Any = "h5netcdf") -> None:
    packed = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}
    time = {"units": f"days since 2001-01-0{day + 1}"}
    encoding: Any = {"packed": packed, "time": time, "bounds": time}
    part(day).to_netcdf(path, engine=engine, encoding=encoding, unlimited_dims=["time"])


def by_xarray_and_netcdf4(path: Path, day: int) -> None:
    by_xarray(path, day, "netcdf4")


def compressed(path: Path, day: int) -> None:
    values = np.random.default_rng(day).random((4, 300)) * (np.arange(300) < 40 * day)
    data = xr.Dataset({"t": (("y", "x"), values)}, {"x": np.arange(300) + day}, {"day": day})
    encoding = {"t": {"zlib": True, "shuffle": day < 3, "chunksizes": (2, 100)}}
    data.to_netcdf(path, engine="h5netcdf", encoding=encoding)


def longer(path: Path, day: int) -> None:
    data = xr.Dataset({"t": (("time", "x"), np.ones((day + 1, 2)))}, {"x": [1, 2]})
    data.to_netcdf(path, engine="netcdf4", unlimited_dims=["time"])


def shorter_than_its_dimension(path: Path, day: int) -> None:
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"time": None, "x": 2}
        file.resize_dimension("time", 2 if day < 3 else 3)
        file.create_variable("short", ("time", "x"), "f4", fillvalue=np.float32(day))
        time = file.create_variable("time", ("time",), "i4", data=np.arange(2 if day < 3 else 3))
        time.attrs["units"] = "days since 2001-01-01"


def other_attributes(path: Path, day: int) -> None:
    """Write attributes of other types, with the same names."""
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"x": 2}
        v = file.create_variable("v", ("x",), "f8", data=np.arange(2.0))
        values = [
            1,
            1.0,
            "1",
            np.float32(1),
            np.array([1, 1], "i2"),
            ["1"],
            ["1", "2"],
            np.bytes_("1"),
        ]
        v.attrs["value"] = values[day % len(values)]
        file.attrs["value"] = values[-1 - day % len(values)]
        if day % 2:
            v.attrs["only here"] = day


def other_order(path: Path, day: int) -> None:
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"x": 2, "y": 2}
        for name in ("v", "w") if day % 2 else ("w", "v"):
            variable = file.create_variable(name, ("x", "y") if day < 3 else ("y", "x"), "f8")
            for attribute in ("a", "b") if day % 3 else ("b", "a"):
                variable.attrs[attribute] = 1


def by_h5py(path: Path, day: int) -> None:
    with h5py.File(path, "w") as file:
        file["v"] = np.full((2, 3), day)


def a_group_below(path: Path, day: int) -> None:
    by_xarray(path, day)
    if day == 2:
        with h5netcdf.File(path, "a") as file:
            file.create_group("below")


def bare_dimensions(path: Path, day: int) -> None:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("x", 2)
        file.createDimension("time", None)
        file.createVariable("v", "f4", ("time", "x"))[: day + 1] = day
        file.day = day


def odd_of_netcdf4(path: Path, day: int) -> None:
    by_netcdf4(path)


def odd_of_h5netcdf(path: Path, day: int) -> None:
    by_h5netcdf(path)


WRITERS: list[Write] = [
    by_xarray,
    by_xarray_and_netcdf4,
    compressed,
    longer,
    shorter_than_its_dimension,
    other_attributes,
    other_order,
    by_h5py,
    a_group_below,
    bare_dimensions,
    odd_of_netcdf4,
    odd_of_h5netcdf,
]
NAMES = [getattr(each, "__name__", "") for each in WRITERS]
every_writer = pytest.mark.parametrize("write", WRITERS, ids=NAMES)


def written(folder: Path, write: Write, count: int = 5) -> list[Path]:
    paths = [folder / f"{day}.nc" for day in range(count)]
    for day, path in enumerate(paths):
        write(path, day)
    return paths


def opened(paths: list[Path], layouts: Layouts | None, **options: Any) -> list[Any]:
    """Open files in HDF5's lane, as `open_mfdataset_async` opens each of them."""

    def each() -> list[Any]:
        return [
            open_caching_metadata(str(path), options, deep=False, layouts=layouts) for path in paths
        ]

    return run_blocking(lambda: in_hdf5(each))


def plain(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="h5netcdf", create_default_indexes=False, **options)


@every_writer
@pytest.mark.parametrize("decode_times", [True, False])
@pytest.mark.filterwarnings("ignore:The 'phony_dims':UserWarning")
def test_files_opened_from_one_another_are_those_of_plain_xarray(
    write: Write, decode_times: bool, tmp_path: Path
) -> None:
    paths = written(tmp_path, write)
    options = {"decode_times": decode_times}
    for got, path in zip(opened(paths, Layouts(), **options), paths, strict=True):
        with got, plain(path, **options) as expected:
            assert list(got.variables) == list(expected.variables)
            # NaN is not equal to itself.
            assert repr({**got.encoding, "source": str(path)}) == repr(expected.encoding)
            for name, variable in expected.variables.items():
                assert repr(got[name].encoding) == repr(variable.encoding)
                assert repr(got[name].attrs) == repr(variable.attrs)
            # xarray's own lazy arrays: they are not wrapped yet.
            assert_same(got.compute(), expected.compute())


def test_the_layout_is_looked_up_once(tmp_path: Path) -> None:
    paths = written(tmp_path, by_xarray)
    layouts = Layouts()
    for each in opened(paths, layouts):
        each.close()
    assert layouts.counts == (4, 1)


def test_files_without_a_common_layout_are_soon_no_longer_compared(tmp_path: Path) -> None:
    paths = written(tmp_path, longer, 15)
    layouts = Layouts()
    for each in opened(paths, layouts):
        each.close()
    assert layouts.counts == (0, 9)


def test_what_one_dataset_holds_is_not_changed_through_another(tmp_path: Path) -> None:
    first, second, third = opened(written(tmp_path, by_xarray, 3), Layouts())
    with first, second, third:
        second.attrs["list"][0] = -1
        second.t.encoding["preferred_chunks"].clear()
        second.encoding["unlimited_dims"].clear()
        assert third.attrs["list"].tolist() == [2, 2]
        assert third.t.encoding["preferred_chunks"] == {"time": 1, "x": 3} or (
            third.t.encoding["preferred_chunks"] == dict(first.t.encoding["preferred_chunks"])
        )
        assert third.encoding["unlimited_dims"] == {"time"}


@pytest.mark.parametrize("chunks", [None, {}])
def test_a_pickled_dataset_opens_its_files_again(chunks: Any, tmp_path: Path) -> None:
    paths = written(tmp_path, by_xarray)
    how: Any = {"chunks": chunks, "engine": "h5netcdf", "data_vars": "minimal"}
    with aioxarray.open_mfdataset(paths, **how, compat="override", coords="minimal") as ds:
        expected = np.concatenate([part(day).t for day in range(5)])
        copied = pickle.loads(pickle.dumps(ds))
        np.testing.assert_array_equal(copied.t.compute(), expected)
        np.testing.assert_array_equal(ds.t.compute(), expected)
        copied.close()


def test_many_files_behind_a_server(tmp_path: Path) -> None:
    paths = written(tmp_path, by_xarray_and_netcdf4)
    how: Any = {"combine": "nested", "concat_dim": "time", "data_vars": "minimal"}
    how |= {"coords": "minimal", "compat": "override"}
    with ObjectServer(0, tmp_path) as server:
        urls = [f"{server.url}/{path.name}" for path in paths]

        async def main() -> xr.Dataset:
            ds = await aioxarray.open_mfdataset_async(urls, engine="h5netcdf", chunks=None, **how)
            return await aioxarray.load_async(ds)

        got = asyncio.run(main())
        with xr.open_mfdataset(urls, engine="h5netcdf", **how) as expected:
            assert_same(got, expected.compute())
        got.close()


def test_indexes_of_equal_values_are_shared_and_others_are_not(tmp_path: Path) -> None:
    paths, known = written(tmp_path, by_xarray), KnownIndexes()
    found = [with_default_indexes(each, known) for each in opened(paths, Layouts())]
    assert {id(each.xindexes["x"]) for each in found} == {id(found[0].xindexes["x"])}
    assert len({id(each.xindexes["time"]) for each in found}) == 5
    for each, path in zip(found, paths, strict=True):
        with each, xr.open_dataset(path, engine="h5netcdf") as expected:
            each.encoding["source"] = str(path)
            assert_same(each.compute(), expected.compute())
