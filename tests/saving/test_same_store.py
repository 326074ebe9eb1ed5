"""Keys, bytes and errors are those of xarray's own ``to_zarr``."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from zarr.storage import MemoryStore

import aioxarray
from tests import samples
from tests.saving.helpers import assert_saves_same, content, plain, sample, tree

pytestmark = pytest.mark.filterwarnings("ignore::Warning")
formats = pytest.mark.parametrize("zarr_format", [2, 3])


@formats
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["memory", "lazy", "dask"])
def test_every_kind_of_data(zarr_format: int, large: bool, kind: str) -> None:
    ds = sample(large=large)
    encoding = {"a": {"dtype": "i2", "_FillValue": -1, "scale_factor": 0.5, "chunks": (2, 4000)}}
    if kind == "lazy":
        ds = xr.open_zarr(samples.stored(ds, zarr_format), chunks=None)
        ds.a.encoding.clear()
    elif kind == "dask":
        ds, encoding = ds.chunk(time=2), {"a": {**encoding["a"], "chunks": (2, ds.sizes["x"])}}
    assert_saves_same(ds, zarr_format=zarr_format, encoding=encoding)


@formats
@pytest.mark.parametrize("make", [samples.numbers, samples.texts, samples.empty])
def test_every_type(make: Any, zarr_format: int) -> None:
    assert_saves_same(make(), zarr_format=zarr_format)


@formats
def test_coded_values(zarr_format: int) -> None:
    ds, encoding = samples.decoded()
    assert_saves_same(ds, zarr_format=zarr_format, encoding=encoding)


@pytest.mark.parametrize("name", [None, "a", "time"])
def test_a_data_array(name: str | None) -> None:
    assert_saves_same(sample().a.rename(name))


@formats
@pytest.mark.parametrize("options", [{}, {"consolidated": False}, {"write_inherited_coords": True}])
def test_a_tree(zarr_format: int, options: dict[str, Any]) -> None:
    assert_saves_same(samples.tree(), zarr_format=zarr_format, **options)
    before = assert_saves_same(tree(), zarr_format=zarr_format, **options)
    assert_saves_same(samples.tree(), before, mode="w", zarr_format=zarr_format, **options)
    assert_saves_same(tree(), before, mode="a", **options)


def test_shards() -> None:
    encoding = {"a": {"chunks": (2, 1000), "shards": (4, 20_000)}}
    before = assert_saves_same(sample(large=True), zarr_format=3, encoding=encoding)
    part = sample(large=True)[["a"]].drop_vars("time").isel(x=slice(500, 30_500)) + 1
    assert_saves_same(part, before, region={"x": slice(500, 30_500)})


saving = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["w", "w-", "a", "a-", "r+", None]),
        "group": st.sampled_from(["g", "g/h", None]),
        "consolidated": st.sampled_from([True, False, None]),
        "append_dim": st.sampled_from(["time", "x", "none", None]),
        "region": st.sampled_from(
            [None, "auto", {"time": slice(1, 4)}, {"time": "auto"}, {"none": slice(0, 1)}]
        ),
        "safe_chunks": st.booleans(),
        "align_chunks": st.booleans(),
        "write_empty_chunks": st.sampled_from([True, False, None]),
        "compute": st.booleans(),
        "zarr_format": st.sampled_from([2, 3, None]),
        "encoding": st.sampled_from(
            [None, {"a": {"chunks": (4, 2)}}, {"a": {"chunks": (4,)}}, {"a": {"colour": 1}}]
        ),
    },
)


@settings(max_examples=80)
@given(
    options=saving,
    existing=st.sampled_from([None, {}, {"group": "g"}, {"consolidated": False}]),
    zarr_format=st.sampled_from([2, 3]),
    part=st.sampled_from([slice(None), slice(1, 4), slice(4, 6)]),
    chunked=st.sampled_from([None, 1, 2, 3]),
    drops=st.booleans(),
)
def test_any_arguments(
    options: dict[str, Any],
    existing: dict[str, Any] | None,
    zarr_format: int,
    part: slice,
    chunked: int | None,
    drops: bool,
) -> None:
    before = MemoryStore()
    if existing is not None:
        encoding = {"a": {"chunks": (2, 5)}}
        plain(sample(), before, zarr_format=zarr_format, encoding=encoding, **existing)
    ds = sample().isel(time=part)
    if drops:
        ds = ds[["a"]] + 1
    # Without safe_chunks plain xarray writes parts of one chunk from several threads.
    if chunked is not None and options.get("safe_chunks", True):
        ds = ds.chunk(time=chunked)
    assert_saves_same(ds, before, **options)


def test_lazy_data_stays_lazy() -> None:
    ds = xr.open_zarr(samples.stored(sample(large=True)), chunks=None)
    aioxarray.to_zarr(ds, MemoryStore())
    assert not ds.a.variable._in_memory


def test_a_save_returns_the_store_itself() -> None:
    store = MemoryStore()
    returned = aioxarray.to_zarr(sample(), store)
    assert returned.zarr_group.store is store
    np.testing.assert_array_equal(returned.zarr_group["flag"][:], [1, 0, 1, 0, 1])


@pytest.mark.parametrize("consolidated", [None, False])
def test_a_returned_store_can_be_written_to_and_closed(consolidated: bool | None) -> None:
    # Large enough for its encoding to be deferred while it is saved.
    more = xr.Dataset({"more": ("y", np.arange(500_000.0))})
    stores = MemoryStore(), MemoryStore()
    ours = aioxarray.to_zarr(sample(), stores[0], consolidated=consolidated)
    theirs = sample().to_zarr(stores[1], consolidated=consolidated)
    assert type(ours) is type(theirs)
    for returned in (ours, theirs):
        more.dump_to_store(returned)
        returned.close()
    assert content(stores[0]) == content(stores[1])


def test_chunks_that_are_written_in_part_at_once() -> None:
    # safe_chunks=False is a promise of the user's that plain xarray does not make true; within
    # one process ours keeps such chunks whole.
    values = np.arange(1000.0)
    ds = xr.Dataset({"a": ("x", values)}).chunk(x=7)
    store = MemoryStore()
    aioxarray.to_zarr(ds, store, safe_chunks=False, encoding={"a": {"chunks": (100,)}})
    np.testing.assert_array_equal(xr.open_zarr(store, chunks=None).a, values)
    assert len(content(store)) > 10
