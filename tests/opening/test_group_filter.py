"""``group_filter``: the groups of a Zarr tree whose paths match are opened, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._zarr.metadata.filtering import GroupFilter
from aioxarray.testing import RecordingStore
from tests.opening.helpers import ENGINE, Way, assert_opened, copied, every_way

VOLUMES = ("vol_0", "vol_1")
MATCHING = {"/", "/vol_0", "/vol_1", "/vol_0/sweep_0", "/vol_1/sweep_0"}


def radar() -> xr.DataTree:
    """Return a tree of two volumes with two sweeps each, and of groups beside them."""
    nodes = {"/": xr.Dataset(coords={"site": 3}), "/other/deep": xr.Dataset({"q": 5})}
    for volume in VOLUMES:
        nodes[f"/{volume}"] = xr.Dataset(coords={"time": np.arange(3)})
        for sweep in range(2):
            nodes[f"/{volume}/sweep_{sweep}"] = xr.Dataset(
                {"z": ("range", np.arange(4.0) + sweep)}, {"range": np.arange(4)}
            )
    return xr.DataTree.from_dict(nodes)


def saved(**options: Any) -> RecordingStore:
    store = MemoryStore()
    radar().to_zarr(store, **options)
    return RecordingStore(store)


def limited_to(tree: xr.DataTree, paths: set[str]) -> xr.DataTree:
    """Return the nodes at ``paths``, with all that they hold themselves."""
    nodes = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    return xr.DataTree.from_dict({path: ds for path, ds in nodes.items() if path in paths})


@every_way
@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_groups_that_match_are_those_of_the_whole_tree(
    way: Way, consolidated: bool, zarr_format: int
) -> None:
    store = saved(consolidated=consolidated, zarr_format=zarr_format)
    options: dict[str, Any] = {"engine": "zarr", "consolidated": consolidated}
    whole = limited_to(xr.open_datatree(store, **options), MATCHING)
    store.log.clear()
    got = way("open_datatree", store, group_filter="/*/sweep_0", **options)
    # The documents of other groups may be read, but none of their arrays.
    others = ("sweep_1/z/", "sweep_1/range/", "other/deep/q/")
    requested = [request.key for request in store.log.requests]
    assert not [key for key in requested if any(each in key for each in others)]
    assert_opened(got, whole)
    xr.testing.assert_identical(copied(got).load(), copied(whole).load())


@every_way
def test_paths_are_relative_to_the_group(way: Way) -> None:
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False, "group": "vol_1"}
    got = way("open_groups", saved(consolidated=False), group_filter="sweep_[01]", **options)
    # A store in memory lists its groups in any order.
    assert sorted(got) == [".", "sweep_0", "sweep_1"]


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("/*/sweep_0", ["", "a", "a/sweep_0"]),
        ("a/sweep_?", ["", "a", "a/sweep_0", "a/sweep_1"]),
        ("/a", ["", "a"]),
        ("/b/**", ["", "b", "b/c", "b/c/d"]),
        ("**/d", ["", "b", "b/c", "b/c/d"]),
        ("/b/**/c", ["", "b", "b/c"]),
        ("/*/*/*/*", []),
        ("/A", []),
    ],
)
def test_matching(pattern: str, selected: Sequence[str]) -> None:
    paths = ["", "a", "a/sweep_0", "a/sweep_1", "b", "b/c", "b/c/d"]
    groups = GroupFilter(pattern)
    assert groups.selected(paths) == set(selected)
    assert all(groups.leads_to_match(path) for path in selected)


def test_walks_are_pruned() -> None:
    groups = GroupFilter("/*/sweep_0", "root/of/tree")
    assert groups.leads_to_match("root/of/tree/a")
    assert not groups.leads_to_match("root/of/tree/a/b")
    assert not groups.leads_to_match("root/of/tree/a/sweep_0/below")
    assert GroupFilter("/a/**").leads_to_match("a/b/c")
    assert not GroupFilter("/a/**").leads_to_match("b")


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("/*/sweep_9", ValueError, r"no group matches group_filter='/\*/sweep_9'; groups on the"),
        ("/", ValueError, "group_filter='/' names no group"),
        (5, TypeError, "group_filter must be a text"),
    ],
)
def test_filters_that_select_nothing(pattern: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aioxarray.open_datatree(
            saved(consolidated=False), engine="zarr", consolidated=False, group_filter=pattern
        )


@every_way
def test_other_engines_open_all_groups(way: Way, tmp_path: Path) -> None:
    path = tmp_path / "tree.nc"
    radar().to_netcdf(path, engine="netcdf4")
    options = {} if way is ENGINE else {"engine": "netcdf4"}
    with pytest.raises(ValueError, match="selects groups of Zarr stores; engine 'netcdf4' opens"):
        way("open_datatree", path, group_filter="/a", **options)


def test_datasets_have_no_groups_to_filter() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'group_filter'"):
        aioxarray.open_dataset(saved(), engine="zarr", group_filter="/a")
