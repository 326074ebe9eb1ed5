"""Every way of indexing lazy data, then loaded as plain xarray loads it, and with its requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

from aioxarray.testing import RecordingStore
from tests import samples
from tests.oracle import WAYS, Way, check, every_way, lazy, plainly_loaded
from tests.samples import opened, stored

CHUNKS = {"cube": {"chunks": (2, 4, 3)}, "plane": {"chunks": (4, 3)}, "height": {"chunks": (3, 8)}}
SHARDS = {
    "cube": {"chunks": (1, 2, 2), "shards": (2, 4, 4)},
    "plane": {"chunks": (1, 2), "shards": (3, 4)},
}
STORES = {
    "v2": stored(samples.numbers(), 2, encoding=CHUNKS),
    "v3": stored(samples.numbers(), 3, encoding=CHUNKS),
    "sharded": stored(samples.numbers(), 3, encoding=SHARDS),
}
OPENED = {name: opened(store) for name, store in STORES.items()}
every_store = pytest.mark.parametrize("store_name", STORES)


def lazily(store_name: str) -> xr.Dataset:
    """Return a lazy dataset that shares no cache with another."""
    return OPENED[store_name].copy()


Selection = Callable[[xr.Dataset], xr.Dataset]


def points(*dims: str, **values: Any) -> dict[str, xr.DataArray]:
    """Return indexers that select points (vectorized indexing)."""
    return {name: xr.DataArray(value, dims=dims) for name, value in values.items()}


SELECTIONS: dict[str, Selection] = {
    "all": lambda ds: ds,
    "integer": lambda ds: ds.isel(x=2),
    "negative integer": lambda ds: ds.isel(x=-1, time=-2),
    "numpy integer": lambda ds: ds.isel(x=np.int8(3)),
    "one element": lambda ds: ds.isel(x=2, y=3, time=4),
    "label": lambda ds: ds.sel(x=30.0),
    "nearest": lambda ds: ds.sel(x=33.3, y=2.2, method="nearest"),
    "nearest of many": lambda ds: ds.sel(x=[1, 29, 1000], method="nearest"),
    "padded": lambda ds: ds.sel(x=[31, 52], method="pad"),
    "time": lambda ds: ds.sel(time="2001-01-03"),
    "time slice": lambda ds: ds.sel(time=slice("2001-01-02", "2001-01-04")),
    "slice": lambda ds: ds.isel(x=slice(2, 6), y=slice(None, 3)),
    "slice of labels": lambda ds: ds.sel(x=slice(15, 55)),
    "slice with a step": lambda ds: ds.isel(x=slice(1, None, 3), y=slice(0, 5, 2)),
    "backwards": lambda ds: ds.isel(x=slice(None, None, -1)),
    "backwards with a step": lambda ds: ds.isel(x=slice(6, 0, -2), y=slice(None, None, -3)),
    "slice beyond the end": lambda ds: ds.isel(x=slice(5, 500)),
    "array": lambda ds: ds.isel(x=[4, 1, 1, 7]),
    "array of labels": lambda ds: ds.sel(x=[30, 40]),
    "negative array": lambda ds: ds.isel(x=np.array([-1, -8, 3])),
    "arrays (outer)": lambda ds: ds.isel(x=[4, 1], y=[0, 5, 2], time=[3, 0]),
    "array, integer and slice": lambda ds: ds.isel(x=[4, 1], y=2, time=slice(1, None)),
    "mask": lambda ds: ds.isel(x=np.arange(samples.X) % 3 == 0),
    "masks (outer)": lambda ds: ds.isel(
        x=np.arange(samples.X) > 4, y=np.arange(samples.Y) % 2 == 0
    ),
    "mask of a coordinate": lambda ds: ds.isel(x=ds.x > 35),
    "mask of nothing": lambda ds: ds.isel(x=np.zeros(samples.X, dtype=bool)),
    "points": lambda ds: ds.isel(points("p", x=[1, 5, 5], y=[0, 3, 2])),
    "points by label": lambda ds: ds.sel(points("p", x=[10, 30], y=[6, 2])),
    "points along a dimension": lambda ds: ds.isel(points("x", y=[0, 3, 2, 1, 0, 5, 4, 4])),
    "points in two dimensions": lambda ds: ds.isel(
        points("p", "q", x=[[1, 5], [2, 7]], y=[[0, 0], [3, 5]])
    ),
    "points, broadcast": lambda ds: ds.isel(
        points("p", x=[1, 5, 2]) | points("q", y=[0, 3]) | {"time": 1}
    ),
    "points and a slice": lambda ds: ds.isel(points("p", x=[1, 5], y=[0, 3]) | {"time": slice(3)}),
    "points and an array": lambda ds: ds.isel(points("p", x=[1, 5], y=[0, 3]) | {"time": [4, 0]}),
    "points in one dimension": lambda ds: ds.isel(points("p", "q", x=[[0, 1], [6, 7]])),
    "a point without dimensions": lambda ds: ds.isel(points(x=3)),
    "nothing by slice": lambda ds: ds.isel(x=slice(0, 0)),
    "nothing by array": lambda ds: ds.isel(x=[]),
    "nothing by points": lambda ds: ds.isel(points("p", x=np.empty(0, int), y=np.empty(0, int))),
    "nothing twice": lambda ds: ds.isel(x=slice(0, 0), y=[]),
    "chain of slices": lambda ds: ds.isel(x=slice(1, 7)).isel(x=slice(1, None, 2)),
    "chain of arrays": lambda ds: ds.isel(x=[5, 3, 1]).isel(x=[2, 0], y=[1, 1]),
    "chain of all": lambda ds: ds.isel(y=slice(None, None, -1)).sel(x=[70, 10]).isel(x=-1),
    "chain to points": lambda ds: ds.isel(x=slice(2, None)).isel(points("p", x=[0, 3], y=[1, 1])),
    "chain from points": lambda ds: ds.isel(points("p", x=[0, 3, 6], y=[1, 1, 2])).isel(p=[2, 0]),
    "chain from points to one": lambda ds: ds.isel(points("p", x=[0, 3], y=[1, 1])).isel(p=1),
    "transposed": lambda ds: ds.transpose("x", "time", "y"),
    "transposed and selected": lambda ds: ds.transpose("x", "time", "y").isel(x=[3, 1], y=2),
    "selected and transposed": lambda ds: ds.isel(x=[3, 1], y=slice(1, 3)).transpose(),
    "transposed points": lambda ds: ds.isel(points("p", x=[1, 5], y=[0, 3])).transpose(),
    "renamed and selected": lambda ds: ds.rename(x="lon", cube="c").isel(lon=[2, 0]),
    "head, tail, thin": lambda ds: ds.head(y=4).tail(x=5).thin(x=2),
    "rolled": lambda ds: ds.isel(x=np.roll(np.arange(samples.X), 3)),
    "sorted": lambda ds: ds.sortby("y"),
    "reindexed within": lambda ds: ds.reindex_like(ds.isel(x=[1, 2])),
    "without variables": lambda ds: ds.drop_vars(["cube", "height"]).isel(x=1),
    "squeezed": lambda ds: ds.isel(x=[3]).squeeze("x"),
}


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(name: str, way: Way) -> None:
    check(lambda: SELECTIONS[name](lazily("v3")), way)


@pytest.mark.matrix(together=1)
@pytest.mark.parametrize("store_name", ["v2", "sharded"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_of_other_formats(name: str, store_name: str) -> None:
    check(lambda: SELECTIONS[name](lazily(store_name)), WAYS[1])


@pytest.mark.matrix(together=1)
@pytest.mark.parametrize("store_name", ["v2", "v3"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_no_more_chunks_are_requested_than_by_plain_xarray(name: str, store_name: str) -> None:
    requested = []
    for load in (plainly_loaded, WAYS[0]):
        recording = RecordingStore(STORES[store_name])
        obj = SELECTIONS[name](opened(recording))
        recording.log.clear()
        load(obj)
        requested.append(sorted(request.key for request in recording.log.requests))
    plain, ours = requested
    assert ours == sorted(set(plain))


@every_way
@every_store
def test_parts_of_arrays_and_variables(store_name: str, way: Way) -> None:
    check(lambda: lazily(store_name).cube[1:3, :, 4], way)
    check(lambda: lazily(store_name).cube[0], way)
    check(lambda: lazily(store_name).cube.variable[:, [1, 5], ::-2], way)
    check(lambda: lazily(store_name).cube.variable.isel(x=1).transpose(), way)
    check(lambda: lazily(store_name).cube.loc[{"x": [30, 40]}], way)
    check(lambda: lazily(store_name).cube[..., -1].squeeze(), way)


def test_selections_are_views_that_load_alone() -> None:
    """Loading a part leaves the whole lazy, as with plain xarray."""
    whole, plain = lazily("v3"), lazily("v3")
    WAYS[0](whole.isel(x=2))
    plain.isel(x=2).load()
    assert lazy(whole) == lazy(plain)
    assert "['cube']" in lazy(whole)


@every_way
def test_an_empty_slice_that_goes_backward(way: Way) -> None:
    """xarray itself fails on such a slice of lazy data."""
    part = {"time": slice(0, 0, -1), "x": slice(2, 5, -1)}
    got = way(lazily("v3").cube.isel(part))
    xr.testing.assert_identical(got, samples.numbers().cube.isel(part))


# --- any indexer ----------------------------------------------------------------------------

SIZES = {"time": samples.T, "y": samples.Y, "x": samples.X}


@st.composite
def one_dimensional(draw: st.DrawFn, size: int) -> Any:
    """Draw what selects along one dimension: an integer, a slice, an array or a mask."""
    if size == 0:
        return draw(st.one_of(st.just(slice(None)), st.just([])))
    index = st.integers(-size, size - 1)
    kinds = st.one_of(
        index,
        st.slices(size),
        st.lists(index, max_size=6).map(lambda items: np.array(items, dtype=int)),
        st.lists(st.booleans(), min_size=size, max_size=size).map(np.array),
    )
    return draw(kinds)


@st.composite
def indexers(draw: st.DrawFn, sizes: dict[str, int]) -> dict[str, Any]:
    """Draw an indexer for some of the dimensions, either outer or of points."""
    dims = draw(st.lists(st.sampled_from(sorted(sizes)), unique=True)) if sizes else []
    if draw(st.booleans()) or not all(sizes[dim] for dim in dims):
        return {dim: draw(one_dimensional(sizes[dim])) for dim in dims}
    shape = draw(st.lists(st.integers(0, 3), min_size=0, max_size=2))
    names = [f"p{axis}" for axis in range(len(shape))]
    chosen: dict[str, Any] = {}
    for dim in dims:
        kept = draw(st.lists(st.sampled_from(range(len(shape))), unique=True)) if shape else []
        kept.sort()
        count = int(np.prod([shape[axis] for axis in kept], dtype=int))
        index = st.integers(-sizes[dim], sizes[dim] - 1)
        flat = draw(st.lists(index, min_size=count, max_size=count))
        values = np.array(flat, dtype=int).reshape([shape[axis] for axis in kept])
        chosen[dim] = xr.DataArray(values, dims=[names[axis] for axis in kept])
    return chosen


@given(st.data(), st.sampled_from(sorted(STORES)), st.sampled_from(WAYS))
def test_any_chain_of_indexers(data: st.DataObject, store_name: str, way: Way) -> None:
    array = lazily(store_name).cube.drop_vars(["height", "where"])
    in_memory = samples.numbers().cube.drop_vars(["height", "where"])
    for _ in range(data.draw(st.integers(1, 3), label="length of the chain")):
        sizes = {str(dim): size for dim, size in array.sizes.items()}
        key = data.draw(indexers(sizes), label="key")
        try:
            array = array.isel(key)
        except IndexError:
            # xarray cannot select one element of lazy data that was transposed before.
            assume(False)
        in_memory = in_memory.isel(key)
        if array.ndim > 1 and data.draw(st.booleans(), label="transpose"):
            order = data.draw(st.permutations(array.dims), label="order")
            array, in_memory = array.transpose(*order), in_memory.transpose(*order)
    got = way(array)
    xr.testing.assert_identical(got, in_memory)
    assert got.dtype == in_memory.dtype
    assert got.encoding == array.encoding
