"""Selections given as texts are those of xarray's ``sel`` and ``isel``."""

from __future__ import annotations

import argparse
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr

from aioxarray.cli.failures import InputError
from aioxarray.cli.longitudes import BoundingBox
from aioxarray.cli.selecting import Selection
from tests.cli.helpers import grid


def selected(ds: xr.Dataset, **texts: str) -> xr.Dataset:
    return Selection(labels=texts).of_dataset(ds)


@pytest.mark.parametrize(
    ("dimension", "text", "key"),
    [
        ("time", "2024-02", "2024-02"),
        ("time", "2024-02-03", "2024-02-03"),
        ("time", "2024-01-30:2024-02", slice("2024-01-30", "2024-02")),
        ("time", "2024-02-02:2024-02", slice("2024-02-02", "2024-02")),
        ("time", "2024-02-02:2024-01-30", slice("2024-01-30", "2024-02-02")),
        ("time", "2024-02-01T00:00:2024-02-03T12:30", slice("2024-02-01", "2024-02-03")),
        ("time", "2024-02-02:", slice("2024-02-02", None)),
        ("time", ":2024-01", slice(None, "2024-01")),
        ("lat", "60:40", slice(60, 40)),
        ("lat", "40:60", slice(60, 40)),
        ("lat", "-10.5:10.5", slice(10.5, -10.5)),
        ("lat", ":-60", slice(None, -60)),
        ("lat", "50", 50.0),
        ("lon", "1e1:2e1", slice(10, 20)),
        ("lon", "20:10", slice(10, 20)),
    ],
)
def test_labels(dimension: str, text: str, key: Any) -> None:
    ds = grid()
    xr.testing.assert_identical(selected(ds, **{dimension: text}), ds.sel({dimension: key}))


def test_labels_of_other_types() -> None:
    step = np.arange(4).astype("m8[h]").astype("m8[ns]")
    ds = xr.Dataset(
        {"a": (("name", "step", "day"), np.zeros((3, 4, 5)))},
        {
            "name": ["a:b", "m", "z"],
            "step": step,
            "day": xr.date_range("2001-02-26", periods=5, calendar="noleap", use_cftime=True),
        },
    )
    xr.testing.assert_identical(selected(ds, name="a:b"), ds.sel(name="a:b"))
    xr.testing.assert_identical(selected(ds, name="m:z"), ds.sel(name=slice("m", "z")))
    xr.testing.assert_identical(selected(ds, step="1h:2h"), ds.sel(step=slice(step[1], step[2])))
    xr.testing.assert_identical(
        selected(ds, day="2001-02-28:2001-03-01"), ds.sel(day=slice("2001-02-28", "2001-03-01"))
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("0", 0),
        ("-1", -1),
        ("2:5", slice(2, 5)),
        ("::4", slice(None, None, 4)),
        ("-3:", slice(-3, None)),
    ],
)
def test_positions(text: str, key: Any) -> None:
    ds = grid()
    part = Selection(positions={"time": text}).of_dataset(ds)
    xr.testing.assert_identical(part, ds.isel(time=key))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(labels={"lat": "north"}), "neither a number nor a range of numbers"),
        (Selection(labels={"lat": "51"}), "the nearest labels are 50 and 60; a range"),
        (Selection(labels={"lat": "51:52"}), "selects nothing: lat runs from 90 to -90"),
        (Selection(labels={"time": "1:2"}), "neither a time nor a range of times"),
        (Selection(labels={"time": "2024-13"}), "time runs from 2024-01-28"),
        (Selection(positions={"time": "10"}), "time=10 is not one of the 10 positions"),
        (Selection(positions={"time": "1.5"}), "neither a position nor a range"),
        (Selection(positions={"time": "5:5"}), "selects none of the 10 positions"),
        (Selection(positions={"time": "5:0:-1"}), "neither a position nor a range"),
        (Selection(positions={"x": "1"}), "'x' is no dimension of the data; there are"),
        (Selection(box=BoundingBox(0, 41, 5, 44)), "--bbox selects nothing: lon runs from 0"),
    ],
)  # fmt: skip
def test_other_texts_are_refused(selection: Selection, message: str) -> None:
    with pytest.raises(InputError) as refused:
        selection.of_dataset(grid())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_range_of_labels_that_are_not_sorted_is_refused() -> None:
    ds = grid().isel(lat=[3, 1, 2])
    with pytest.raises(InputError, match="lat is not sorted"):
        selected(ds, lat="60:40")
    with pytest.raises(InputError, match="no dimension of the data has longitudes; there are lat"):
        Selection(box=BoundingBox(0, 0, 1, 1)).of_dataset(
            ds.mask.isel(lon=0, drop=True).to_dataset()
        )


# --- boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0.0, -180.0])
@pytest.mark.parametrize(
    ("bounds", "longitudes"),
    [
        ((10, 0, 30, 20), [10, 20, 30]),
        ((-20, 0, 10, 20), [-20, -10, 0, 10]),
        ((340, 0, 370 - 360, 20), [340, 350, 360, 370]),
        ((170, 0, -170, 20), [170, 180, 190]),
        ((170, 0, 190, 20), [170, 180, 190]),
        ((-190, 0, -170, 20), [-190, -180, -170]),
    ],
)
def test_a_box_has_its_own_longitudes(
    first: float, bounds: tuple[float, float, float, float], longitudes: list[float]
) -> None:
    ds = grid(2, first)
    part = Selection(box=BoundingBox(*bounds)).of_dataset(ds)
    np.testing.assert_array_equal(part.lon, longitudes)
    np.testing.assert_array_equal(part.lat, [20, 10, 0])
    at = [int(np.flatnonzero(ds.lon.values % 360 == lon % 360)[0]) for lon in longitudes]
    expected = ds.sel(lat=slice(20, 0)).isel(lon=at)
    np.testing.assert_array_equal(part.t2m, expected.t2m)
    assert part.lon.attrs == ds.lon.attrs


def test_a_box_that_needs_no_change_is_a_plain_slice() -> None:
    ds = grid()
    ds = ds.isel(lon=slice(None, None, -1))
    part = Selection(box=BoundingBox(10, -10, 30, 10)).of_dataset(ds)
    xr.testing.assert_identical(part, ds.sel(lon=slice(30, 10), lat=slice(10, -10)))


@pytest.mark.parametrize("name", ["x", "nav_lon", "longitude"])
def test_coordinates_are_found_by_name_or_attributes(name: str) -> None:
    ds = grid().rename(lon=name, lat="y")
    if name == "x":
        ds[name].attrs["units"] = "degrees_east"
    ds["y"].attrs["standard_name"] = "latitude"
    part = Selection(box=BoundingBox(10, -10, 30, 10)).of_dataset(ds)
    assert dict(part.sizes) == {"time": 10, "y": 3, name: 3}


@hypothesis.given(
    west=st.integers(-360, 360),
    east=st.integers(-360, 360),
    first=st.sampled_from([0, -180, -90, 33]),
    dtype=st.sampled_from(["f8", "f4", "i4"]),
)
def test_a_box_has_exactly_the_longitudes_within(
    west: int, east: int, first: int, dtype: str
) -> None:
    longitudes = (first + np.arange(0, 360, 7)).astype(dtype)
    ds = xr.Dataset(coords={"lon": longitudes, "lat": [0.0]})
    width = east - west if east >= west else east - west + 360
    within = {
        lon + 360 * turn
        for lon in longitudes.tolist()
        for turn in range(-3, 4)
        if west <= lon + 360 * turn <= west + width
    }
    box = BoundingBox(west, -1, east, 1)
    if not within:
        with pytest.raises(InputError):
            box.of_dataset(ds)
        return
    found = box.of_dataset(ds).lon.values
    assert found.dtype == longitudes.dtype
    assert set(found.tolist()) == {lon for lon in within if lon < west + 360}
    assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "0,50,1,40", "0,-91,1,0", "0,0,400,1"])
def test_boxes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        BoundingBox.parse(text)
