"""What the tests of opening share: the ways to open, and plain xarray to compare with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xarray as xr

import aioxarray
from tests.oracle import assert_same, assert_same_entries, lazy


@dataclass(frozen=True)
class Way:
    """One of the ways to open: it is told xarray's name for the function."""

    name: str
    call: Callable[..., Any]

    def __call__(self, function: str, *args: Any, **options: Any) -> Any:
        return self.call(function, *args, **options)


def _awaited(function: str, *args: Any, **options: Any) -> Any:
    return asyncio.run(getattr(aioxarray, f"{function}_async")(*args, **options))


def _engine(function: str, *args: Any, **options: Any) -> Any:
    return getattr(xr, function)(*args, **{**options, "engine": "aio"})


BLOCKING = Way("blocking", lambda name, *args, **kw: getattr(aioxarray, name)(*args, **kw))
ASYNC = Way("async", _awaited)
ENGINE = Way("engine aio", _engine)
OWN = [BLOCKING, ASYNC]
WAYS = [*OWN, ENGINE]

every_way = pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
own_ways = pytest.mark.parametrize("way", OWN, ids=[way.name for way in OWN])


def check(way: Way, function: str, *args: Any, **options: Any) -> Any:
    """Check that ``way`` opens what plain xarray opens, lazily and loaded; return it, lazy."""
    plain = getattr(xr, function)(*args, **options)
    got = way(function, *args, **options)
    assert_opened(got, plain)
    compared = copied(got)
    assert_loaded(compared, copied(plain))
    return got


def assert_opened(got: Any, plain: Any) -> None:
    """Assert that both hold the same, as lazily, in the same chunks, under the same indexes."""
    ours, theirs = datasets(got), datasets(plain)
    assert list(ours) == list(theirs)
    assert lazy(got) == lazy(plain)
    for path, ds in ours.items():
        assert_same_dataset(ds, theirs[path], path)


def assert_same_dataset(got: xr.Dataset, plain: xr.Dataset, place: str) -> None:
    """Assert that two datasets agree in all but the values of what is not in memory."""
    assert list(got.variables) == list(plain.variables), place
    assert list(got.coords) == list(plain.coords), place
    assert dict(got.sizes) == dict(plain.sizes), place
    assert_same_entries(got.attrs, plain.attrs, f"attributes of {place}")
    assert_same_entries(got.encoding, plain.encoding, f"encoding of {place}")
    assert list(got.xindexes) == list(plain.xindexes), place
    for name, index in got.xindexes.items():
        assert type(index) is type(plain.xindexes[name]), f"index {name!r} of {place}"
        assert index.equals(plain.xindexes[name]), f"index {name!r} of {place}"
    for name, variable in got.variables.items():
        expected = plain.variables[name]
        where = f"{place}[{name!r}]"
        assert type(variable) is type(expected), where
        assert type(variable._data) is type(expected._data), where
        assert (variable.dims, variable.dtype) == (expected.dims, expected.dtype), where
        assert variable.chunks == expected.chunks, where
        assert_same_entries(variable.attrs, expected.attrs, f"attributes of {where}")
        assert_same_entries(variable.encoding, expected.encoding, f"encoding of {where}")


def assert_loaded(got: Any, plain: Any) -> None:
    """Load both by xarray's own functions, and assert that they are identical."""
    for each in (got, plain):
        for obj in each.values() if isinstance(each, dict) else [each]:
            obj.load()
    assert_same(got, plain)


def datasets(obj: Any) -> dict[str, xr.Dataset]:
    """Return the datasets of what was opened, by path; those of a tree without what they inherit.

    An inherited coordinate must be the parent's, which the tests of trees look at.
    """
    if isinstance(obj, xr.DataTree):
        own = {node.path: node.to_dataset(inherit=False) for node in obj.subtree}
        return own | {f"{node.path} inheriting": node.to_dataset() for node in obj.subtree}
    if isinstance(obj, xr.DataArray):
        return {"array": obj.to_dataset(name="without a name" if obj.name is None else obj.name)}
    return dict(obj) if isinstance(obj, dict) else {"dataset": obj}


def root(opened: Any) -> xr.Dataset:
    """Return the dataset at the root of a tree, or of groups."""
    ds: xr.Dataset = opened["/"] if isinstance(opened, dict) else opened.to_dataset()
    return ds


def copied(obj: Any) -> Any:
    """Return a copy whose loading leaves ``obj`` lazy."""
    if isinstance(obj, dict):
        return {path: each.copy() for path, each in obj.items()}
    return obj.copy()


def climate() -> xr.Dataset:
    """Times with bounds, calendars, packed values: all that decoding needs values for."""
    time = xr.date_range("2001-01-15", periods=6, freq="30D", unit="ns")
    days = np.timedelta64(15, "D")
    noleap = xr.date_range("2001-02-25", periods=4, calendar="noleap", use_cftime=True)
    ds = xr.Dataset(
        {
            "tas": (("time", "lat", "lon"), np.arange(6 * 3 * 4.0).reshape(6, 3, 4) / 7),
            "model": ("model_time", np.arange(4.0)),
            "run": ("run", np.array(["2001-01-01", "2001-01-02"], dtype="M8[ns]")),
            "lead": ("lead", np.arange(3).astype("m8[h]").astype("m8[ns]")),
            "area": (("lat", "lon"), np.ones((3, 4), dtype="f4")),
        },
        {
            "time": time,
            "time_bnds": (("time", "bnds"), np.stack([time - days, time + days], axis=1)),
            "model_time": np.asarray(noleap, dtype=object),
            "lat": [10.0, 20.0, 30.0],
            "lon": np.arange(4, dtype="i2"),
            "issued": ((), np.datetime64("2000-12-31T12", "ns")),
        },
        {"Conventions": "CF-1.8"},
    )
    ds.time.attrs["bounds"] = "time_bnds"
    ds.tas.attrs["cell_measures"] = "area: area"
    ds.time.encoding.update(units="days since 2000-01-01", dtype="f8")
    ds.model_time.encoding.update(units="hours since 2000-01-01", dtype="i4")
    ds.issued.encoding.update(units="seconds since 1970-01-01", dtype="i8")
    ds.lead.encoding.update(units="minutes", dtype="i4")
    ds.tas.encoding.update(dtype="i2", scale_factor=0.01, _FillValue=-1, chunks=(2, 3, 4))
    return ds
