"""What opens is what plain xarray opens: values, types, encoding, indexes, chunks, laziness."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from xarray.coders import CFDatetimeCoder, CFTimedeltaCoder
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import RecordingStore
from tests import samples
from tests.opening.helpers import (
    Way,
    assert_loaded,
    assert_opened,
    check,
    climate,
    every_way,
    own_ways,
)
from tests.oracle import assert_same, lazy
from tests.samples import stored, stored_once

formats = pytest.mark.parametrize("zarr_format", [2, 3])
pytestmark = [
    # xarray says so of chunks that are not those of the store; here they are meant.
    pytest.mark.filterwarnings("ignore:The specified chunks separate the stored chunks"),
]


def packed() -> tuple[xr.Dataset, dict[str, Any]]:
    return samples.decoded()


def characters() -> xr.Dataset:
    letters = np.array([list("Oslo "), list("Paris"), list("Rom  ")], dtype="S1")
    return xr.Dataset({"name": (("n", "length"), letters), "big": ("n", np.arange(3, dtype=">f8"))})


SAMPLES: dict[str, Callable[[int], MemoryStore]] = {
    "numbers": lambda f: stored(samples.numbers(), f, encoding={"cube": {"chunks": (2, 4, 3)}}),
    "decoded": lambda f: stored(packed()[0], f, encoding=packed()[1]),
    "texts": lambda f: stored(samples.texts(), f),
    "empty": lambda f: stored(samples.empty(), f),
    "climate": lambda f: stored(climate(), f),
    "characters": lambda f: stored(characters(), f),
    "no variables": lambda f: stored(xr.Dataset(attrs={"a": 1}), f),
}
_made: dict[tuple[str, int], MemoryStore] = {}


def sample(name: str, zarr_format: int) -> MemoryStore:
    if name == "characters" and zarr_format == 3:
        # Zarr v3 has no numbers of another byte order and xarray writes no characters there.
        return sample(name, 2)
    key = (name, zarr_format)
    if key not in _made:
        _made[key] = SAMPLES[name](zarr_format)
    return _made[key]


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_data(name: str, zarr_format: int, way: Way) -> None:
    check(way, "open_dataset", sample(name, zarr_format), engine="zarr")


@pytest.mark.matrix(together=2)
@own_ways
@formats
@pytest.mark.parametrize("name", SAMPLES)
def test_without_an_engine_a_store_is_zarr(name: str, zarr_format: int, way: Way) -> None:
    store = sample(name, zarr_format)
    assert_opened(way("open_dataset", store), xr.open_dataset(store, engine="zarr"))


OPTIONS: dict[str, dict[str, Any]] = {
    "chunks of the store": {"chunks": {}},
    "chunks as told": {"chunks": {"time": 3, "lat": 2}},
    "automatic chunks": {"chunks": "auto"},
    "one chunk": {"chunks": -1},
    "inlined": {"chunks": {}, "inline_array": True},
    "chunks of dask": {"chunks": {}, "chunked_array_type": "dask"},
    "one variable dropped": {"drop_variables": "tas"},
    "a time dropped": {"drop_variables": ["time", "time_bnds"]},
    "bounds dropped": {"drop_variables": ["time_bnds"]},
    "what is not there dropped": {"drop_variables": ["nothing"]},
    "undecoded": {"decode_cf": False},
    "times undecoded": {"decode_times": False},
    "times of cftime": {"decode_times": CFDatetimeCoder(use_cftime=True)},
    "times in seconds": {"decode_times": CFDatetimeCoder(time_unit="s")},
    "some times undecoded": {"decode_times": {"time": False}},
    "timedeltas decoded": {"decode_timedelta": True},
    "timedeltas undecoded": {"decode_timedelta": False},
    "timedeltas in seconds": {"decode_timedelta": CFTimedeltaCoder(time_unit="s")},
    "packed": {"mask_and_scale": False},
    "some packed": {"mask_and_scale": {"tas": False}},
    "characters": {"concat_characters": False},
    "coordinates undecoded": {"decode_coords": False},
    "all coordinates": {"decode_coords": "all"},
    "without indexes": {"create_default_indexes": False},
    "uncached": {"cache": False},
    "consolidated": {"consolidated": True},
    "not consolidated": {"consolidated": False},
    "consolidated or not": {"consolidated": None},
    "for the backend": {"backend_kwargs": {"consolidated": False}},
    "the root": {"group": "/"},
    "read-only": {"mode": "r"},
}


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options: dict[str, Any], zarr_format: int, way: Way) -> None:
    check(way, "open_dataset", sample("climate", zarr_format), engine="zarr", **options)


@every_way
@formats
def test_the_format_may_be_told(zarr_format: int, way: Way) -> None:
    store = sample("numbers", zarr_format)
    check(way, "open_dataset", store, engine="zarr", zarr_format=zarr_format)


@every_way
@formats
def test_stores_without_consolidated_metadata(zarr_format: int, way: Way) -> None:
    store = stored_once(samples.numbers, zarr_format, consolidated=False)
    check(way, "open_dataset", store, engine="zarr", consolidated=False)


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree", "open_groups"])
def test_missing_consolidated_metadata_is_noticed(
    function: str, zarr_format: int, way: Way
) -> None:
    store = stored_once(samples.numbers, zarr_format, consolidated=False)
    with pytest.warns(RuntimeWarning, match="Failed to open Zarr store with consolidated") as said:
        check(way, function, store, engine="zarr")
    # By plain xarray, and by us.
    assert len(said) == 2


@every_way
def test_sharded_coordinates(way: Way) -> None:
    sharded = {"chunks": (2,), "shards": (4,)}
    store = stored(samples.numbers(), encoding={"x": sharded, "time": {"chunks": (1,)}})
    check(way, "open_dataset", store, engine="zarr")


@every_way
@formats
def test_coordinates_in_many_chunks(zarr_format: int, way: Way) -> None:
    store = stored(climate(), zarr_format, encoding={name: {"chunks": (1,)} for name in ("time",)})
    check(way, "open_dataset", store, engine="zarr")


@every_way
@formats
def test_an_index_made_of_missing_chunks(zarr_format: Any, way: Way) -> None:
    import zarr

    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=zarr_format)
    dims: dict[str, Any] = {} if zarr_format == 2 else {"dimension_names": ["x"]}
    array = group.create_array("x", shape=(6,), chunks=(2,), dtype="i4", fill_value=-7, **dims)
    if zarr_format == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["x"]
    array[2:4] = [1, 2]
    check(way, "open_dataset", store, engine="zarr", consolidated=False, mask_and_scale=False)


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("group", ["a", "/a", "a/", "a/deep", "/empty", "b"])
def test_a_group(group: str, zarr_format: int, way: Way) -> None:
    store = stored_once(samples.tree, zarr_format)
    check(way, "open_dataset", store, engine="zarr", group=group)
    check(way, "open_dataset", store, engine="zarr", group=group, consolidated=False)


@every_way
def test_a_group_that_is_consolidated_itself(way: Way) -> None:
    for zarr_format in (2, 3):
        store = MemoryStore()
        samples.numbers().to_zarr(store, group="deep/er", zarr_format=zarr_format)
        check(way, "open_dataset", store, engine="zarr", group="deep/er", consolidated=False)


# --- arrays ----------------------------------------------------------------------------------


@every_way
@formats
@pytest.mark.parametrize("name", ["tas", None])
def test_a_data_array(name: str | None, zarr_format: int, way: Way) -> None:
    store = MemoryStore()
    climate().tas.rename(name).to_zarr(store, zarr_format=zarr_format)
    got = check(way, "open_dataarray", store, engine="zarr")
    assert isinstance(got, xr.DataArray)
    assert got.name == name
    check(way, "open_dataarray", store, engine="zarr", chunks={}, drop_variables="area")


@every_way
def test_a_data_array_of_several_variables_is_refused(way: Way) -> None:
    with pytest.raises(ValueError, match="more than one data variable"):
        way("open_dataarray", sample("numbers", 3), engine="zarr")


# --- trees -----------------------------------------------------------------------------------

TREE_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "not consolidated": {"consolidated": False},
    "consolidated": {"consolidated": True},
    "chunks of the store": {"chunks": {}},
    "chunks as told": {"chunks": {"x": 3}},
    "a branch": {"group": "a"},
    "a leaf": {"group": "/a/deep"},
    "undecoded": {"decode_cf": False},
    "a variable dropped": {"drop_variables": ["where"]},
    "the root's index dropped": {"drop_variables": ["x"]},
    "without indexes": {"create_default_indexes": False},
    "uncached": {"cache": False},
}


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("options", TREE_OPTIONS.values(), ids=TREE_OPTIONS)
def test_a_tree(options: dict[str, Any], zarr_format: int, way: Way) -> None:
    store = stored_once(samples.tree, zarr_format)
    check(way, "open_datatree", store, engine="zarr", **options)


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("options", TREE_OPTIONS.values(), ids=TREE_OPTIONS)
def test_groups(options: dict[str, Any], zarr_format: int, way: Way) -> None:
    store = stored_once(samples.tree, zarr_format)
    got = check(way, "open_groups", store, engine="zarr", **options)
    assert type(got) is dict


def climates() -> xr.DataTree:
    """Times of several calendars, bounds and packed values in groups below each other."""
    return xr.DataTree.from_dict({"/": climate()[["area"]], "/a": climate(), "/b/c": climate()})


DECODING: dict[str, dict[str, Any]] = {
    name: OPTIONS[name]
    for name in (
        "times undecoded",
        "times of cftime",
        "some times undecoded",
        "timedeltas decoded",
        "packed",
        "some packed",
        "characters",
        "coordinates undecoded",
        "all coordinates",
    )
}


@pytest.mark.matrix(together=1)
@every_way
@formats
@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
def test_how_a_tree_is_decoded(options: dict[str, Any], zarr_format: int, way: Way) -> None:
    store = stored_once(climates, zarr_format)
    for function in ("open_datatree", "open_groups"):
        check(way, function, store, engine="zarr", **options)


@every_way
@formats
def test_the_format_of_a_tree_may_be_told(zarr_format: int, way: Way) -> None:
    store = stored_once(samples.tree, zarr_format)
    for function in ("open_datatree", "open_groups"):
        check(way, function, store, engine="zarr", zarr_format=zarr_format)


@every_way
def test_coordinates_are_inherited(way: Way) -> None:
    tree = way("open_datatree", stored_once(samples.tree), engine="zarr")
    assert tree["/a/deep"].coords["x"].variable is not None
    assert tree["/a/deep"].indexes["x"].equals(tree.indexes["x"])
    assert "x" not in tree["/a/deep"].to_dataset(inherit=False).coords
    assert tree["/a/deep"].sel(x=30.0)["both"].values.tolist() == [6.0, 7.0]


def repeated_coordinates() -> xr.DataTree:
    """Each node stores its parent's coordinate again: in memory it is inherited, once."""
    ds = samples.numbers()[["plane"]]
    return xr.DataTree.from_dict({"/": ds, "/a": ds, "/a/b": ds})


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("inherited", [True, False])
def test_coordinates_that_every_node_stores(zarr_format: int, inherited: bool, way: Way) -> None:
    store = stored_once(repeated_coordinates, zarr_format, write_inherited_coords=inherited)
    check(way, "open_datatree", store, engine="zarr")


@every_way
@formats
def test_a_tree_that_does_not_align(zarr_format: int, way: Way) -> None:
    store = MemoryStore()
    xr.Dataset(coords={"x": [1, 2]}).to_zarr(store, zarr_format=zarr_format)
    xr.Dataset(coords={"x": [1, 3]}).to_zarr(store, zarr_format=zarr_format, group="a")
    for function, error in (("open_datatree", ValueError), ("load_datatree", ValueError)):
        with pytest.raises(error, match="not aligned"):
            way(function, store, engine="zarr", consolidated=False)
    check(way, "open_groups", store, engine="zarr", consolidated=False)


# --- zarr's own function -----------------------------------------------------------------------

ZARR_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chunks of the store": {"chunks": {}},
    "automatic chunks": {"chunks": "auto"},
    "consolidated": {"consolidated": True},
    "not consolidated": {"consolidated": False},
    "undecoded": {"decode_cf": False},
    "packed": {"mask_and_scale": False},
    "times undecoded": {"decode_times": False},
    "times of cftime": {"decode_times": CFDatetimeCoder(use_cftime=True)},
    "a variable dropped": {"drop_variables": "tas"},
    "coordinates undecoded": {"decode_coords": False},
    "overwritten chunks": {"overwrite_encoded_chunks": True, "chunks": {"time": 4}},
    "without indexes": {"create_default_indexes": False},
    "timedeltas": {"decode_timedelta": True},
}


@pytest.mark.matrix(together=2)
@own_ways
@formats
@pytest.mark.parametrize("options", ZARR_OPTIONS.values(), ids=ZARR_OPTIONS)
def test_open_zarr(options: dict[str, Any], zarr_format: int, way: Way) -> None:
    store = sample("climate", zarr_format)
    plain = xr.open_zarr(store, **{"chunks": None, **options})
    got = way("open_zarr", store, **options)
    assert_opened(got, plain)
    assert_loaded(got, plain)


@own_ways
def test_open_zarr_takes_the_group_by_position(way: Way) -> None:
    store = stored_once(samples.tree)
    assert_opened(way("open_zarr", store, "a"), xr.open_zarr(store, "a", chunks=None))


@own_ways
def test_open_zarr_is_lazy_without_dask_unless_chunks_are_given(way: Way) -> None:
    assert way("open_zarr", sample("climate", 3)).tas.chunks is None
    assert way("open_zarr", sample("climate", 3), chunks={}).tas.chunks[0] == (2, 2, 2)


@own_ways
def test_open_zarr_refuses_what_xarray_refuses(way: Way) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument.*nonsense"):
        way("open_zarr", sample("climate", 3), nonsense=1)


# --- load -----------------------------------------------------------------------------------


@pytest.mark.matrix(together=2)
@every_way
@formats
@pytest.mark.parametrize("options", [{}, {"drop_variables": "tas"}, {"decode_cf": False}], ids=str)
def test_load_dataset(options: dict[str, Any], zarr_format: int, way: Way) -> None:
    store = sample("climate", zarr_format)
    got = way("load_dataset", store, engine="zarr", **options)
    assert not lazy(got)
    assert_same(got, xr.load_dataset(store, engine="zarr", **options))


@every_way
def test_load_dataarray(way: Way) -> None:
    store = MemoryStore()
    climate().tas.to_zarr(store)
    got = way("load_dataarray", store, engine="zarr")
    assert not lazy(got)
    assert_same(got, xr.load_dataarray(store, engine="zarr"))


@every_way
@formats
def test_load_datatree(zarr_format: int, way: Way) -> None:
    store = stored_once(samples.tree, zarr_format)
    got = way("load_datatree", store, engine="zarr")
    assert not lazy(got)
    assert_same(got, xr.load_datatree(store, engine="zarr"))


@own_ways
@pytest.mark.parametrize("function", ["load_dataset", "load_dataarray"])
def test_loading_has_no_cache_to_choose(function: str, way: Way) -> None:
    with pytest.raises(TypeError, match="cache"):
        getattr(xr, function)(sample("climate", 3), engine="zarr", cache=False)
    with pytest.raises(TypeError, match="cache"):
        way(function, sample("climate", 3), cache=False)


# --- indexes ----------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree", "open_groups"])
def test_without_default_indexes_no_index_is_read(function: str, way: Way) -> None:
    recording = RecordingStore(stored_once(samples.tree))
    got = way(function, recording, engine="zarr", create_default_indexes=False)
    assert recording.log.count("get", "*/c/*") == recording.log.count("get", "*/c") == 0
    ds = {"open_dataset": lambda: got, "open_groups": lambda: got["/"]}.get(
        function, lambda: got["/"].dataset
    )()
    assert not ds.xindexes
    recording.log.clear()
    way(function, recording, engine="zarr")
    assert recording.log.count("get", "x/c/*") == 1


@own_ways
@pytest.mark.parametrize("function", ["open_zarr", "open_dataarray"])
def test_without_default_indexes_none_is_read_of_one_variable(function: str, way: Way) -> None:
    store = MemoryStore()
    samples.numbers()[["plane"]].drop_vars(["height", "where"]).to_zarr(store)
    recording = RecordingStore(store)
    options = {} if function == "open_zarr" else {"engine": "zarr"}
    got = way(function, recording, create_default_indexes=False, **options)
    assert recording.log.count("get", "*/c/*") == 0
    assert not got.xindexes
    assert lazy(got)


# --- signatures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "open_dataset",
        "open_dataarray",
        "open_datatree",
        "open_groups",
        "open_zarr",
        "load_dataset",
        "load_dataarray",
        "load_datatree",
    ],
)
def test_the_signatures_are_those_of_xarray(name: str) -> None:
    plain = list(inspect.signature(getattr(xr, name)).parameters.values())
    for ours in (getattr(aioxarray, name), getattr(aioxarray, f"{name}_async")):
        found = list(inspect.signature(ours).parameters.values())
        assert [each for each in found if each in plain] == plain
        # What is ours is told by its name.
        own = [each for each in found if each not in plain]
        assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in own)
        assert "Requests" in (ours.__doc__ or "")


@own_ways
def test_options_unknown_to_xarray_are_refused(way: Way) -> None:
    wrong: list[dict[str, Any]] = [{"nonsense": 1}, {"chunk": {}}]
    for options in wrong:
        with pytest.raises(TypeError, match="unexpected keyword"):
            way("open_dataset", sample("climate", 3), **options)
