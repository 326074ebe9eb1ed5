"""Every kind of object and of encoded data, loaded as plain xarray loads it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore, RecordingStore
from tests import samples
from tests.loops import every_loop
from tests.oracle import Way, assert_same, check, every_way, lazy
from tests.samples import contents, opened, opened_tree, stored

formats = pytest.mark.parametrize("zarr_format", [2, 3])


NUMBERS = stored(samples.numbers(), encoding={"cube": {"chunks": (2, 4, 3)}})


def open_numbers() -> xr.Dataset:
    return opened(NUMBERS)


OBJECTS: dict[str, Callable[[], Any]] = {
    "variable": lambda: open_numbers().variables["cube"],
    "scalar variable": lambda: open_numbers().variables["scalar"],
    "data array": lambda: open_numbers().cube,
    "data array with lazy coordinates": lambda: open_numbers().plane,
    "data array without a name": lambda: open_numbers().plane.rename(None),
    "coordinate": lambda: open_numbers().height,
    "dataset": open_numbers,
    "dataset of coordinates": lambda: open_numbers().coords.to_dataset(),
    "renamed": lambda: open_numbers().rename(cube="c", x="lon", height="h"),
    "transposed": lambda: open_numbers().transpose("x", ...),
    "expanded": lambda: open_numbers().plane.isel(y=1),
    "without indexes": lambda: open_numbers().drop_indexes(["x", "y"]),
    "dims swapped": lambda: open_numbers().swap_dims(x="column"),
    "same variable twice": lambda: open_numbers().assign(copy=lambda ds: ds.plane),
    "view of its own": lambda: open_numbers().assign(part=lambda ds: ds.plane[1:3].rename(y="w")),
    "partly in memory": lambda: open_numbers().assign(new=("x", np.arange(samples.X))),
    "with new attributes": lambda: open_numbers().cube.assign_attrs(a=1),
}


@every_way
@pytest.mark.parametrize("name", OBJECTS)
def test_every_kind_of_object(name: str, way: Way) -> None:
    check(OBJECTS[name], way)


@every_way
@formats
def test_numbers(zarr_format: int, way: Way) -> None:
    store = stored(samples.numbers(), zarr_format)
    check(lambda: opened(store), way)


@every_way
@formats
@pytest.mark.parametrize("options", [{}, {"decode_cf": False}, {"mask_and_scale": False}], ids=str)
def test_decoding(zarr_format: int, options: dict[str, Any], way: Way) -> None:
    ds, encoding = samples.decoded()
    store = stored(ds, zarr_format, encoding=encoding)
    got = check(lambda: opened(store, **options), way)
    if not options:
        assert got.calendar.values[0] == ds.calendar.values[0]
        assert got.flag.dtype == bool
        assert np.isnan(got["packed"].values[2, 3])


@every_way
@formats
def test_decoding_of_parts(zarr_format: int, way: Way) -> None:
    ds, encoding = samples.decoded()
    store = stored(ds, zarr_format, encoding=encoding)
    part = {"x": [5, 1, 1], "time": slice(None, None, -2), "y": 3}
    check(lambda: opened(store).isel(part), way)


@every_way
@formats
def test_texts(zarr_format: int, way: Way) -> None:
    store = stored(samples.texts(), zarr_format)
    check(lambda: opened(store), way)
    check(lambda: opened(store).isel(n=[4, 0, 2]), way)
    check(lambda: opened(store).isel(n=3), way)


@every_way
def test_character_arrays(way: Way) -> None:
    letters = np.array([list("Oslo "), list("Paris"), list("Rom  ")], dtype="S1")
    store = stored(xr.Dataset({"name": (("n", "length"), letters)}), 2)
    got = check(lambda: opened(store), way)
    assert got["name"].values.tolist() == [b"Oslo ", b"Paris", b"Rom  "]
    check(lambda: opened(store).isel(n=[1, 0]), way)
    check(lambda: opened(store).isel(n=2), way)
    check(lambda: opened(store, concat_characters=False), way)


@every_way
@formats
def test_byte_order(zarr_format: int, way: Way) -> None:
    ds = xr.Dataset({"big": ("x", np.arange(9, dtype=">f8")), "little": ("x", np.arange(9))})
    store = stored(ds, zarr_format)
    got = check(lambda: opened(store), way)
    assert got.big.values.tolist() == list(range(9))
    check(lambda: opened(store).isel(x=3), way)
    check(lambda: opened(store, decode_cf=False).isel(x=3), way)


@every_way
@formats
def test_nothing_in_it(zarr_format: int, way: Way) -> None:
    store = stored(samples.empty(), zarr_format)
    check(lambda: opened(store), way)


def uncached(store: Any) -> xr.Dataset:
    return xr.open_dataset(store, engine="zarr", cache=False)


@every_way
def test_without_cache(way: Way) -> None:
    store = stored(samples.numbers())
    check(lambda: uncached(store), way)
    # Two variables on one lazy array: plain xarray reads it twice, into arrays of their own.
    obj = uncached(store)
    obj["again"] = obj["plane"]
    got = way(obj)
    assert not np.shares_memory(got["again"].values, got["plane"].values)


@every_way
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_of_zarr_v2(order: Any, way: Way) -> None:
    import zarr

    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=2)
    array = group.create_array("a", shape=(5, 7), chunks=(2, 3), dtype="i4", order=order)
    array[:] = np.arange(35).reshape(5, 7)
    array.attrs["_ARRAY_DIMENSIONS"] = ["x", "y"]
    check(lambda: opened(store, consolidated=False), way)
    check(lambda: opened(store, consolidated=False).isel(x=[4, 0, 1], y=slice(6, None, -3)), way)


@every_way
@formats
def test_missing_chunks_are_the_fill_value(zarr_format: Any, way: Way) -> None:
    import zarr

    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=zarr_format)
    dims: dict[str, Any] = {} if zarr_format == 2 else {"dimension_names": ["x", "y"]}
    array = group.create_array(
        "a", shape=(10, 4), chunks=(3, 4), dtype="f4", fill_value=-7.0, **dims
    )
    empty = group.create_array(
        "empty", shape=(10, 4), chunks=(3, 2), dtype="i8", fill_value=5, **dims
    )
    if zarr_format == 2:
        for each in (array, empty):
            each.attrs["_ARRAY_DIMENSIONS"] = ["x", "y"]
    array[3:6] = 1.0
    got = check(lambda: opened(store, consolidated=False, mask_and_scale=False), way)
    assert got["empty"].values.tolist() == [[5] * 4] * 10
    assert got["a"].values[:, 0].tolist() == [-7] * 3 + [1] * 3 + [-7] * 4
    # Decoded, the fill value of an array of Zarr v2 is a missing value too.
    check(lambda: opened(store, consolidated=False), way)


@every_way
@formats
def test_tree_with_inherited_coordinates(zarr_format: int, way: Way) -> None:
    store = stored(samples.tree(), zarr_format)
    got = check(lambda: opened_tree(store), way)
    assert "x" in got["/a/deep"].coords, "not inherited"


@every_way
def test_branch_of_a_tree(way: Way) -> None:
    store = stored(samples.tree())
    check(lambda: opened_tree(store)["/a"], way)


def test_loading_a_branch_loads_what_it_inherits_and_no_more() -> None:
    store = stored(samples.tree())
    plain, ours = (opened_tree(store) for _ in range(2))
    plain["/a"].load()
    aioxarray.load(ours["/a"])
    assert lazy(ours) == lazy(plain)
    assert_same(ours.load(), plain.load())


def test_loading_fills_all_that_shares_the_data() -> None:
    def views(ds: xr.Dataset) -> list[Any]:
        array = ds.cube
        return [array, ds, ds[["cube"]], array.variable.to_base_variable(), ds.copy(), array.T]

    plain, ours = views(open_numbers()), views(open_numbers())
    plain[0].load()
    aioxarray.load(ours[0])
    for expected, got in zip(plain, ours, strict=True):
        assert lazy(got) == lazy(expected)
        assert_same(got.compute(), expected.compute())
    # One array for all of them, as with plain xarray.
    for held in (plain, ours):
        assert np.shares_memory(held[0].values, held[1].cube.values)
        assert np.shares_memory(held[0].values, held[3].values)
        assert not np.shares_memory(held[0].values, held[4].cube.values)


def test_objects_that_share_the_data_request_it_once() -> None:
    recording = RecordingStore(NUMBERS)
    ours = opened(recording)
    sharing = ours.cube.variable.to_base_variable()
    aioxarray.load(ours)
    recording.log.clear()
    np.testing.assert_array_equal(aioxarray.load(sharing).values, samples.numbers().cube.values)
    assert recording.log.requests == ()


def test_computing_leaves_everything_lazy_and_caches_nothing() -> None:
    recording = RecordingStore(NUMBERS)
    ours = opened(recording)
    was = lazy(ours)
    first = aioxarray.compute(ours)
    requests = len(recording.log.requests)
    second = aioxarray.compute(ours)
    assert lazy(ours) == was
    assert len(recording.log.requests) > requests, "the second call was served from the first"
    assert not np.shares_memory(first.cube.values, second.cube.values)


def test_computing_shares_what_is_in_memory_and_loads_into_new_variables() -> None:
    ds = open_numbers().assign(new=("x", np.arange(samples.X)))
    got = aioxarray.compute(ds)
    assert np.shares_memory(got.new.values, ds.new.values)
    assert got.cube.variable is not ds.cube.variable
    got["cube"][:] = 0
    assert_same(ds.load(), open_numbers().assign(new=("x", np.arange(samples.X))).load())


def test_data_in_memory_is_not_touched() -> None:
    recording = RecordingStore(NUMBERS)
    ds = opened(recording).load()
    data = {name: variable._data for name, variable in ds.variables.items()}
    recording.log.clear()
    assert aioxarray.load(ds) is ds
    asyncio.run(aioxarray.load_async(ds))
    assert all(ds.variables[name]._data is data[name] for name in data)
    assert recording.log.requests == ()


def test_each_chunk_is_requested_once() -> None:
    recording = RecordingStore(NUMBERS)
    ds = opened(recording)
    recording.log.clear()
    sharing = ds.cube.variable.to_base_variable()
    aioxarray.load([ds, ds.cube, sharing, {"same": ds}])
    keys = [request.key for request in recording.log.requests]
    assert sorted(keys) == sorted(set(keys))
    chunks = {key for key in contents(NUMBERS) if "/c" in key and not key.startswith(("x/", "y/"))}
    assert {key for key in chunks if not key.startswith("time/")} == set(keys)


def test_the_script_of_pull_request_10327() -> None:
    """``await ds.sel(x=[30, 40]).load_async()`` on a store with latency, as shown there."""
    store = MemoryStore()
    x = np.arange(0, 100, 10)
    xr.Dataset({"data": ("x", x * 10)}, {"x": x}).to_zarr(store, encoding={"data": {"chunks": 2}})

    async def select() -> xr.Dataset:
        ds = opened(LatencyStore(store, 0.001), consolidated=False)
        part = ds.sel(x=[30, 40])
        assert lazy(part)
        return await aioxarray.load_async(part)

    got = asyncio.run(select())
    expected = xr.Dataset({"data": ("x", [300, 400])}, {"x": [30, 40]})
    xr.testing.assert_identical(got, expected)


@every_loop
async def test_on_every_loop() -> None:
    recording = RecordingStore(NUMBERS)
    # zarr's own blocking calls refuse to run on a loop that is theirs; a notebook opens so too.
    ds = await anyio.to_thread.run_sync(lambda: opened(recording))
    was = lazy(ds)
    expected = open_numbers().load()
    assert_same(await aioxarray.compute_async(ds), expected)
    assert lazy(ds) == was
    assert await aioxarray.load_async(ds) is ds
    assert_same(ds, expected)


@every_loop
async def test_blocking_load_inside_a_running_loop() -> None:
    ds = await anyio.to_thread.run_sync(open_numbers)
    assert_same(aioxarray.compute(ds), open_numbers().load())
    assert_same(aioxarray.load(ds), open_numbers().load())


def test_lazy_and_loaded_objects_pickle() -> None:
    ds = open_numbers()
    expected = open_numbers().load()
    lazy_copy = pickle.loads(pickle.dumps(ds))
    assert lazy(lazy_copy) == lazy(ds)
    assert_same(aioxarray.load(lazy_copy), expected)
    assert_same(pickle.loads(pickle.dumps(aioxarray.load(ds))), expected)
