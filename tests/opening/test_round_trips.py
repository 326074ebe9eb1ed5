"""How many requests of an opening depend on each other, as exact seconds of a virtual clock.

Each request takes one second, so the time is the number of round trips.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore, RecordingStore, VirtualClock
from tests.oracle import assert_same
from tests.samples import stored, stored_once

if TYPE_CHECKING:
    from zarr.abc.store import Store

formats = pytest.mark.parametrize("zarr_format", [2, 3])


def wide(variables: int = 70, indexes: int = 30, times: int = 3) -> xr.Dataset:
    """Many variables, many of them index coordinates, some of those times."""
    coords: dict[str, Any] = {f"i{n}": np.arange(4) + n for n in range(indexes - times)}
    start = np.datetime64("2001-01-01", "ns")
    for n in range(times):
        coords[f"t{n}"] = start + np.arange(4) * np.timedelta64(n + 1, "D")
    dims = list(coords) or ["x"]
    rest = range(variables - indexes)
    return xr.Dataset({f"v{n}": (dims[n % len(dims)], np.arange(4) * n) for n in rest}, coords)


def without_times() -> xr.Dataset:
    return wide(times=0)


def without_indexes() -> xr.Dataset:
    return wide(20, 0, times=0)


def small() -> xr.Dataset:
    return wide(5, 2, times=1)


def groups(count: int, zarr_format: Any, consolidated: bool) -> MemoryStore:
    """Return a store of so many groups, each with `small`."""
    one = stored_once(small, zarr_format, consolidated=False)._store_dict
    store = MemoryStore({f"g{n}/{key}": value for n in range(count) for key, value in one.items()})
    zarr.create_group(store, zarr_format=zarr_format)
    if consolidated:
        zarr.consolidate_metadata(store)
    return store


def thirteen_nodes(variables: int = 3) -> xr.DataTree:
    ds = wide(variables + 2, 2, times=1)
    tops = {f"/{top}": ds for top in "abc"}
    below = {f"/{top}/{name}": ds for top in "abc" for name in "xyz"}
    return xr.DataTree.from_dict({"/": ds, **tops, **below})


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    """Count what depends on what; a limit makes further round trips."""
    with aioxarray.config.set(concurrency=0):
        yield


class Opening:
    """What an opening took: its round trips and its requests."""

    def __init__(self, store: Store, function: str, **options: Any) -> None:
        recording = RecordingStore(LatencyStore(store, 1.0))
        clock = VirtualClock()
        if options.pop("aio", False):
            # xarray's own function blocks the thread that calls it: one of the loop's.
            plain = getattr(xr, function)
            options["engine"] = "aio"
            self.result = clock.run(lambda: asyncio.to_thread(plain, recording, **options))
        else:
            opening = getattr(aioxarray, f"{function}_async")
            self.result = clock.run(lambda: opening(recording, **options))
        self.trips = clock.elapsed_s
        self.requests = len(recording.log.requests)
        self.keys = [f"{r.method} {r.key}" for r in recording.log.requests]


def plain_requests(store: Store, function: str, **options: Any) -> int:
    """Return how many requests plain xarray makes for the same."""
    recording = RecordingStore(store)
    getattr(xr, function)(recording, engine="zarr", **options)
    return len(recording.log.requests)


both = pytest.mark.parametrize("aio", [False, True], ids=["own", "engine aio"])


@both
@formats
def test_a_consolidated_dataset_is_two_round_trips(zarr_format: int, aio: bool) -> None:
    store = stored_once(wide, zarr_format)
    # The metadata; the first and last value of times, and the indexes. xarray does not tell an
    # engine whether it wants indexes: there they are read when it makes the first.
    assert Opening(store, "open_dataset", aio=aio).trips == (3 if aio else 2)


@both
@formats
def test_without_times_it_is_two(zarr_format: int, aio: bool) -> None:
    store = stored_once(without_times, zarr_format)
    assert Opening(store, "open_dataset", aio=aio).trips == 2


@formats
def test_times_that_are_not_decoded_cost_nothing(zarr_format: int) -> None:
    store = stored_once(wide, zarr_format)
    assert Opening(store, "open_dataset", decode_times=False).trips == 2
    times = [f"t{n}" for n in range(3)]
    assert Opening(store, "open_dataset", drop_variables=times).trips == 2


@both
@formats
def test_without_indexes_only_times_are_read(zarr_format: int, aio: bool) -> None:
    store = stored_once(wide, zarr_format)
    options = {"create_default_indexes": False, "aio": aio}
    assert Opening(store, "open_dataset", **options).trips == 2
    opening = Opening(store, "open_dataset", decode_times=False, **options)
    assert opening.trips == 1
    assert [key for key in opening.keys if "zarr.json" not in key and "/." not in key] == [
        key for key in opening.keys if key.split()[1].startswith(".")
    ]


@formats
def test_indexes_that_are_built_later_are_read_in_one_round_trip(zarr_format: int) -> None:
    recording = RecordingStore(LatencyStore(stored_once(wide, zarr_format), 1.0))
    clock = VirtualClock()

    async def opened() -> xr.Dataset:
        return await aioxarray.open_dataset_async(
            recording, engine="zarr", create_default_indexes=False
        )

    ds: xr.Dataset = clock.run(opened)
    labels = {name: ds[name].variable for name in ds.coords if ds[name].dims == (name,)}
    assert len(labels) == 30
    recording.log.clear()
    indexed = clock.run(lambda: asyncio.to_thread(ds.assign_coords, labels))
    assert clock.elapsed_s == 1
    assert len(recording.log.requests) == 30
    assert_same(indexed, xr.open_dataset(stored_once(wide, zarr_format), engine="zarr"))


@both
@formats
def test_metadata_that_is_not_consolidated_is_four(zarr_format: int, aio: bool) -> None:
    store = stored_once(wide, zarr_format, consolidated=False)
    # Without the limit, which would make two of the third: format 2 has 140 documents here.
    with aioxarray.config.set(concurrency=0):
        opening = Opening(store, "open_dataset", consolidated=False, aio=aio)
    # The group, its members' names, their metadata; times and indexes.
    assert opening.trips == (5 if aio else 4)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated:RuntimeWarning")
@formats
def test_looking_for_consolidated_metadata_costs_no_round_trip(zarr_format: int) -> None:
    store = stored_once(wide, zarr_format, consolidated=False)
    with aioxarray.config.set(concurrency=0):
        assert Opening(store, "open_dataset").trips == 4


@both
@formats
def test_a_consolidated_tree_is_two_round_trips(zarr_format: int, aio: bool) -> None:
    store = stored_once(thirteen_nodes, zarr_format)
    for function in ("open_datatree", "open_groups"):
        assert Opening(store, function, aio=aio).trips == (3 if aio else 2)


@both
@formats
def test_a_tree_that_is_not_consolidated_is_two_a_level(zarr_format: int, aio: bool) -> None:
    store = stored_once(thirteen_nodes, zarr_format, consolidated=False)
    # The root; two for each of three levels, the last of which has no coordinates of its own: those
    # of the others are fetched meanwhile.
    opening = Opening(store, "open_datatree", consolidated=False, aio=aio)
    assert opening.trips == (8 if aio else 7)


@formats
def test_load_dataset_is_three_round_trips(zarr_format: int) -> None:
    store = stored_once(wide, zarr_format)
    with aioxarray.config.set(concurrency=200):
        opening = Opening(store, "load_dataset")
    assert opening.trips == 3
    assert_same(opening.result, xr.load_dataset(store, engine="zarr"))


@formats
def test_load_datatree_is_three_round_trips(zarr_format: int) -> None:
    store = stored_once(thirteen_nodes, zarr_format)
    with aioxarray.config.set(concurrency=500):
        assert Opening(store, "load_datatree").trips == 3


def test_a_group_of_a_tree() -> None:
    store = stored_once(thirteen_nodes)
    # It inherits its coordinates, so that the groups themselves have none.
    assert Opening(store, "open_dataset", group="a/x").trips == 1
    assert Opening(store, "open_datatree", group="a").trips == 1


# --- however many -----------------------------------------------------------------------------


@formats
@pytest.mark.parametrize("consolidated", [True, False])
def test_the_number_does_not_grow_with_variables(zarr_format: int, consolidated: bool) -> None:
    trips = set()
    with aioxarray.config.set(concurrency=0):
        for count in (6, 120):
            store = stored(wide(count, count // 2), zarr_format, consolidated=consolidated)
            trips.add(Opening(store, "open_dataset", consolidated=consolidated).trips)
    assert len(trips) == 1


@formats
@pytest.mark.parametrize("consolidated", [True, False])
def test_the_number_does_not_grow_with_groups(zarr_format: int, consolidated: bool) -> None:
    trips = set()
    with aioxarray.config.set(concurrency=0):
        for count in (2, 40):
            store = groups(count, zarr_format, consolidated)
            trips.add(Opening(store, "open_datatree", consolidated=consolidated).trips)
    assert len(trips) == 1


def test_the_limit_decides_how_many_at_once() -> None:
    store = stored_once(without_times)
    with aioxarray.config.set(concurrency=10):
        # 30 indexes of one chunk each.
        assert Opening(store, "open_dataset").trips == 1 + 3


# --- however little --------------------------------------------------------------------------

MATERIAL: dict[str, tuple[Callable[[], Any], str]] = {
    "dataset": (wide, "open_dataset"),
    "dataset without times": (without_times, "open_dataset"),
    "dataset without indexes": (without_indexes, "open_dataset"),
    "tree": (thirteen_nodes, "open_datatree"),
    "groups": (thirteen_nodes, "open_groups"),
    "dataset, loaded": (wide, "load_dataset"),
    "tree, loaded": (thirteen_nodes, "load_datatree"),
}


@formats
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("name", MATERIAL)
def test_no_more_requests_than_plain_xarray(
    name: str, consolidated: bool, zarr_format: int
) -> None:
    make, function = MATERIAL[name]
    store = stored_once(make, zarr_format, consolidated=consolidated)
    options = {"consolidated": consolidated}
    opening = Opening(store, function, **options)
    assert opening.requests <= plain_requests(store, function, **options)


@formats
def test_each_key_is_requested_once(zarr_format: int) -> None:
    store: MemoryStore = stored_once(wide, zarr_format)
    opening = Opening(store, "open_dataset")
    assert len(opening.keys) == len(set(opening.keys))


@formats
def test_an_index_of_many_chunks_is_read_later(zarr_format: int) -> None:
    ds = wide(3, 2, times=1).isel(i0=[0] * 65).assign_coords(i0=np.arange(65))
    for chunk, trips in ((2, 2), (1, 3)):
        store = stored(ds, zarr_format, encoding={"i0": {"chunks": (chunk,)}})
        opening = Opening(store, "open_dataset")
        assert opening.trips == trips
        xr.testing.assert_identical(opening.result, ds)


@formats
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree"])
def test_prefetched_values_are_not_kept(zarr_format: int, function: str) -> None:
    store = stored(wide(6, 3, times=1), zarr_format)
    opened = getattr(aioxarray, function)(store, engine="zarr")
    wide(6, 3, times=1).map(lambda v: v + 1).to_zarr(store, mode="w", zarr_format=zarr_format)
    np.testing.assert_array_equal(opened["v0"].load(), wide(6, 3, times=1)["v0"] + 1)
