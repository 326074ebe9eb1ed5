"""Loads of more than ``max_bytes`` are refused before any request, and say what is large."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import RecordingStore
from tests import samples
from tests.oracle import Way, every_way, lazy
from tests.samples import opened, opened_tree, stored

# 800, 400 and 80 bytes, and an index.
SIZES = {"large": 100, "middle": 50, "small": 10}
TOTAL = 8 * sum(SIZES.values())


def sized() -> xr.Dataset:
    return xr.Dataset(
        {name: (f"{name}_x", np.arange(float(size))) for name, size in SIZES.items()},
        {"small_x": np.arange(10)},
    )


def refused(obj: Any, way: Way, max_bytes: Any) -> str:
    """Check that a load is refused and leaves ``obj`` lazy; return the error's text."""
    was = lazy(obj)
    with pytest.raises(aioxarray.TooLargeError) as caught:
        way(obj, max_bytes=max_bytes)
    assert isinstance(caught.value, MemoryError)
    assert lazy(obj) == was
    return str(caught.value)


@every_way
def test_refused_before_any_request(way: Way) -> None:
    store = RecordingStore(stored(sized()))
    ds = opened(store)
    store.log.clear()
    text = refused(ds, way, TOTAL - 1)
    assert store.log.requests == ()
    assert f"{TOTAL} bytes (1.25 KiB), more than max_bytes={TOTAL - 1}" in text
    assert (
        "variable 'large' (800 bytes), variable 'middle' (400 bytes), variable 'small' (80 bytes)"
    ) in text
    xr.testing.assert_identical(way(ds, max_bytes=TOTAL), sized())


@pytest.mark.parametrize("allowed", [1280, "1.28kB", "2KiB", None])
def test_the_forms_of_a_size(allowed: Any) -> None:
    xr.testing.assert_identical(aioxarray.load(opened(stored(sized())), max_bytes=allowed), sized())


def test_nothing_may_be_loaded_with_zero() -> None:
    ds = opened(stored(sized()))
    with pytest.raises(aioxarray.TooLargeError, match="max_bytes=0"):
        aioxarray.load(ds, max_bytes=0)
    # What is in memory already counts for nothing.
    xr.testing.assert_identical(aioxarray.load(ds.load(), max_bytes=0), sized())


@pytest.mark.parametrize("name", ["load", "compute"])
def test_methods(name: str) -> None:
    ds = opened(stored(sized()))
    with pytest.raises(aioxarray.TooLargeError):
        getattr(ds.aio, name)(max_bytes=TOTAL - 1)
    with pytest.raises(aioxarray.TooLargeError):
        asyncio.run(getattr(ds.aio, f"{name}_async")(max_bytes=TOTAL - 1))
    xr.testing.assert_identical(getattr(ds.aio, name)(max_bytes=TOTAL), sized())


@pytest.mark.parametrize("engine", ["netcdf4", "zarr"])
@pytest.mark.parametrize("name", ["load_dataset", "load_dataarray", "load_datatree"])
def test_functions_that_open_and_load(name: str, engine: str, tmp_path: Path) -> None:
    path = str(tmp_path / f"sized.{engine}")
    ds = sized()[["large"]]
    if engine == "zarr":
        ds.to_zarr(path)
    else:
        ds.to_netcdf(path, engine="netcdf4")
    function, coroutine = (getattr(aioxarray, f"{name}{suffix}") for suffix in ("", "_async"))
    with pytest.raises(aioxarray.TooLargeError, match="'large'"):
        function(path, engine=engine, max_bytes=799)
    with pytest.raises(aioxarray.TooLargeError, match="'large'"):
        asyncio.run(coroutine(path, engine=engine, max_bytes=799))
    loaded = function(path, engine=engine, max_bytes=800)
    assert lazy(loaded) == set()
    # Refused before the file is opened.
    with pytest.raises(ValueError, match="max_bytes must not be negative"):
        function(tmp_path / "missing", max_bytes=-1)


def test_trees_and_nests_count_as_a_whole() -> None:
    tree = opened_tree(stored(samples.tree()))
    size = sum(
        v.nbytes for node in tree.subtree for v in node.variables.values() if not v._in_memory
    )
    nest = {"a": [tree], "b": tree}
    with pytest.raises(aioxarray.TooLargeError, match=f"{size} bytes .*of group '/a/deep'"):
        aioxarray.load(nest, max_bytes=size - 1)
    aioxarray.load(nest, max_bytes=size)


def test_the_selected_part_counts() -> None:
    ds = opened(stored(sized()))
    aioxarray.load(ds.large[:10], max_bytes=80)
    with pytest.raises(aioxarray.TooLargeError):
        aioxarray.load(ds.large[:11], max_bytes=80)


def test_decoded_values_count() -> None:
    """Two bytes in the store, eight in memory."""
    ds = xr.Dataset({"v": ("x", np.arange(10.0))})
    store = stored(ds, encoding={"v": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}})
    with pytest.raises(aioxarray.TooLargeError, match="80 bytes"):
        aioxarray.load(opened(store), max_bytes=79)
    aioxarray.load(opened(store), max_bytes=80)


def test_a_copy_for_each_variable_that_shares_data_counts() -> None:
    ds = opened(stored(sized()))[["large"]]
    shared = ds.assign(same=ds.large.variable.copy(deep=False))
    loaded = aioxarray.compute(shared)
    copies = 1 + (loaded["same"].values is not loaded["large"].values)
    with pytest.raises(aioxarray.TooLargeError, match=f"{copies * 800} bytes"):
        aioxarray.load(shared, max_bytes=copies * 800 - 1)
    aioxarray.load(shared, max_bytes=copies * 800)


def test_dask_arrays_count() -> None:
    ds = opened(stored(sized())).chunk({"large_x": 10})
    with pytest.raises(aioxarray.TooLargeError, match="'large'"):
        aioxarray.load(ds, max_bytes=TOTAL - 1)
    xr.testing.assert_identical(aioxarray.load(ds, max_bytes=TOTAL), sized())


def test_unknown_sizes_do_not_count() -> None:
    words = xr.Dataset({"words": ("x", np.array(["a", "b" * 100], dtype=object))})
    store = MemoryStore()
    words.merge(sized()).to_zarr(store, zarr_format=2)
    xr.testing.assert_identical(
        aioxarray.load(opened(store)[["words"]], max_bytes=0), opened(store)[["words"]].load()
    )
    with pytest.raises(
        aioxarray.TooLargeError, match=r"and 1 more; not counted: 1 of unknown size"
    ):
        aioxarray.load(opened(store), max_bytes=TOTAL - 1)


def test_dask_arrays_of_unknown_shape_do_not_count() -> None:
    values = opened(stored(sized())).large.chunk().data
    unknown = xr.Variable("x", values[values > 50])
    assert aioxarray.compute(unknown, max_bytes=0).size == 49
