"""Groups whose variables have the same documents open as with plain xarray, and share nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.system.collector import collector
from aioxarray._xarray.opening import engine
from tests.opening.helpers import Way, check, datasets, every_way, own_ways

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
modes = pytest.mark.parametrize("consolidated", [False, True])


def sweep(day: int) -> xr.Dataset:
    """Return a group: others differ from it in the times and in what coordinates they have."""
    azimuth = np.arange(4.0) + 0.5
    times = np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(1, "s")
    packed = {"scale_factor": 0.5, "add_offset": 1.0, "_FillValue": np.int16(-1), "dtype": "int16"}
    ds = xr.Dataset(
        {
            "z": (("azimuth", "range"), np.arange(12.0).reshape(4, 3), {"flags": [1, [2, 3]]}),
            "packed": (("azimuth", "range"), np.arange(12.0).reshape(4, 3) / 2, {"units": "dBZ"}),
            "valid": ("azimuth", np.array([True, False, True, True])),
            "lasted": ("azimuth", np.arange(4) * np.timedelta64(1, "s")),
            "label": ("azimuth", np.array(["a", "bc", "d", "e"], dtype=object)),
        },
        {
            "azimuth": azimuth,
            "range": np.arange(3) * 250,
            "time": ("azimuth", times + np.timedelta64(day, "D")),
        },
    )
    ds["packed"].encoding = packed
    return ds.assign_coords(height=day) if day % 2 else ds


def radar(count: int = 5) -> dict[str, xr.Dataset]:
    groups = {f"/vol/sweep_{day}": sweep(day) for day in range(count)}
    return {"/": xr.Dataset(attrs={"site": "x"}), **groups}


def saved(groups: dict[str, xr.Dataset], consolidated: bool) -> MemoryStore:
    store = MemoryStore()
    xr.DataTree.from_dict(groups).to_zarr(store, consolidated=consolidated)
    return store


@every_way
@modes
@pytest.mark.parametrize("function", ["open_datatree", "open_groups"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_times": False},
        {"mask_and_scale": False},
        {"decode_coords": False},
        {"decode_coords": "all"},
        {"decode_cf": False},
        {"decode_timedelta": True},
        {"mask_and_scale": {"packed": False}},
        {"drop_variables": "packed"},
        {"drop_variables": ["time", "z", "azimuth"]},
        {"create_default_indexes": False},
        {"chunks": {}},
        {"cache": False},
        {"group": "vol"},
    ],
    ids=str,
)
@pytest.mark.matrix(together=1)
def test_they_open_as_with_plain_xarray(
    options: dict[str, Any], function: str, consolidated: bool, way: Way
) -> None:
    store = saved(radar(), consolidated)
    check(way, function, store, engine="zarr", consolidated=consolidated, **options)


@own_ways
@modes
def test_what_is_done_to_one_group_does_not_reach_another(consolidated: bool, way: Way) -> None:
    store = saved(radar(), consolidated)
    tree = way("open_datatree", store, engine="zarr", consolidated=consolidated)
    first = tree["/vol/sweep_0"]
    for name in ("z", "packed", "valid"):
        first[name].attrs["mine"] = 1
        first[name].encoding["chunks"] = (1, 1)
        first[name].encoding["preferred_chunks"]["azimuth"] = 1
    first["z"].attrs["flags"][1].append(4)
    first["z"].load()
    first["z"].values[:] = 0
    plain = xr.open_datatree(store, engine="zarr", consolidated=consolidated)
    for day in range(1, 5):
        path = f"/vol/sweep_{day}"
        xr.testing.assert_identical(tree[path].dataset, plain[path].dataset)
        for each, variable in plain[path].variables.items():
            ours = tree[path].variables[each].encoding
            assert ours["chunks"] == variable.encoding["chunks"]
            assert ours["preferred_chunks"] == variable.encoding["preferred_chunks"]
    again = way("open_datatree", store, engine="zarr", consolidated=consolidated)
    xr.testing.assert_identical(again, plain)


@every_way
def test_bounds_take_the_units_of_their_time(way: Way) -> None:
    def with_bounds(day: int) -> xr.Dataset:
        bounds = np.stack([np.arange(3), np.arange(3) + 1], axis=1)
        time = ("time", np.arange(3), {"units": f"days since 2001-01-0{day}", "bounds": "b"})
        return xr.Dataset({"b": (("time", "edge"), bounds)}, {"time": time})

    def without(day: int) -> xr.Dataset:
        return with_bounds(day).drop_vars("time")

    groups = {"/a": without(1), "/b": with_bounds(1), "/c": with_bounds(2), "/d": without(2)}
    check(way, "open_datatree", saved(groups, False), engine="zarr", consolidated=False)


@own_ways
@modes
def test_inherited_coordinates_and_their_conflicts(consolidated: bool, way: Way) -> None:
    x = {"x": [1, 2, 3]}
    groups = {
        "/": xr.Dataset({"v": ("x", np.zeros(3))}, x),
        "/a": xr.Dataset({"w": ("x", np.zeros(3))}, x),
        "/a/b": xr.Dataset({"w": ("x", np.zeros(3))}),
    }
    store = saved(groups, consolidated)
    options: dict[str, Any] = {"engine": "zarr", "consolidated": consolidated}
    got = check(way, "open_datatree", store, **options)
    assert list(got["/a/b"].coords) == ["x"]
    # A group that cannot be in a tree with its parent.
    xr.Dataset({"v": ("x", np.zeros(3))}, {"x": [4, 5, 6]}).to_zarr(
        store, group="a/c", consolidated=False
    )
    if consolidated:
        zarr.consolidate_metadata(store)
    with pytest.raises(ValueError, match="group '/a/c' is not aligned with its parents"):
        xr.open_datatree(store, **options)
    with pytest.raises(ValueError, match="group '/a/c' is not aligned with its parents"):
        way("open_datatree", store, **options)


@own_ways
def test_sizes_that_conflict_are_the_error_of_xarray(way: Way) -> None:
    store = saved(radar(2), False)
    root = zarr.open_group(store)
    root.create_array(
        "vol/sweep_1/odd", shape=(7,), dtype="f8", dimension_names=["azimuth"], chunks=(7,)
    )
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    with pytest.raises(ValueError, match="conflicting sizes for dimension 'azimuth'"):
        xr.open_datatree(store, **options)
    with pytest.raises(ValueError, match="conflicting sizes for dimension 'azimuth'"):
        way("open_datatree", store, **options)


@own_ways
@pytest.mark.parametrize("change", ["kind", "order", "nested"])
def test_odd_consolidated_metadata_are_left_to_zarr(change: str, way: Way) -> None:
    store = saved(radar(3), True)
    document = json.loads(store._store_dict["zarr.json"].to_bytes())
    whole = document["consolidated_metadata"]
    if change == "kind":
        whole["must_understand"] = True
    elif change == "order":
        # A parent whose members are not next to one another.
        entries = list(whole["metadata"].items())
        whole["metadata"] = dict(entries[::2] + entries[1::2])
    else:
        whole["metadata"]["vol"]["consolidated_metadata"]["metadata"] = {}
    prototype = default_buffer_prototype()
    store._store_dict["zarr.json"] = prototype.buffer.from_bytes(json.dumps(document).encode())
    options: dict[str, Any] = {"engine": "zarr", "consolidated": True}
    try:
        expected = xr.open_datatree(store, **options)
    except Exception as error:  # noqa: BLE001 - ours has to raise the same
        with pytest.raises(type(error)):
            way("open_datatree", store, **options)
    else:
        xr.testing.assert_identical(way("open_datatree", store, **options), expected)


def test_each_document_is_decoded_once() -> None:
    tree = aioxarray.open_datatree(saved(radar(5), False), engine="zarr", consolidated=False)
    functions = {day: _function(tree[f"/vol/sweep_{day}/packed"].variable) for day in range(5)}
    # Every other group has one more coordinate, which its variables name.
    assert functions[0] is functions[2] is functions[4]
    assert functions[1] is functions[3] is not functions[0]
    times = {_function(tree[f"/vol/sweep_{day}/time"].variable) for day in range(5)}
    assert len(times) == 5


def _function(variable: xr.Variable) -> Any:
    """Return the function that decodes the values of ``variable``."""
    data: Any = variable._data
    while not hasattr(data, "func"):
        data = data.array
    return data.func


def test_groups_of_one_open_are_datasets_of_their_own() -> None:
    groups = aioxarray.open_groups(saved(radar(3), False), engine="zarr", consolidated=False)
    variables = [id(v) for ds in datasets(groups).values() for v in ds.variables.values()]
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("many", [True, False])
def test_no_collection_runs_while_a_large_tree_is_built(
    many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_MANY_NODES", 3 if many else 1000)
    held = []

    @contextmanager
    def building() -> Iterator[None]:
        held.append(True)
        yield

    monkeypatch.setattr(collector, "building", building)
    aioxarray.open_groups(saved(radar(4), False), engine="zarr", consolidated=False)
    assert bool(held) == many
