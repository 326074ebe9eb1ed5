"""The plan of a load, compared with the requests that the load then makes."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.storage import LocalStore, MemoryStore, StorePath

import aioxarray
from aioxarray import LoadPlan, VariablePlan, explain
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.chunks.arrays import plan_block, plan_points
from aioxarray._zarr.chunks.plan import ReadPlan
from aioxarray._zarr.compat import AsyncArray
from aioxarray._zarr.stores import grants
from aioxarray._zarr.stores.observing.observers import Observer, Origin, Part, observed
from aioxarray._zarr.stores.request import Request
from aioxarray.testing import (
    GatedStore,
    LatencyStore,
    ObjectServer,
    RecordingStore,
    VirtualClock,
)
from aioxarray.testing import Request as ServedRequest
from tests.concurrency import clients
from tests.concurrency.helpers import all_known
from tests.pipeline.arrays import OURS, Recipe, recipes, using
from tests.samples import opened, opened_tree, stored, tree

if TYPE_CHECKING:
    from zarr.abc.store import Store

SIZE = 48
CHUNK = 12 * 12 * 8


def layouts() -> xr.Dataset:
    """One array in chunks and shards, compressed or not."""
    values = np.random.default_rng(3).normal(size=(SIZE, SIZE))
    names = ["plain", "packed", "sharded", "packed_shards"]
    ds = xr.Dataset(dict.fromkeys(names, (("y", "x"), values)))
    for name, variable in ds.variables.items():
        variable.encoding["chunks"] = (12, 12)
        if "packed" not in str(name):
            variable.encoding["compressors"] = None
        if "shard" in str(name):
            variable.encoding["shards"] = (24, 24)
    return ds


@functools.cache
def written() -> dict[str, bytes]:
    store = MemoryStore()
    layouts().to_zarr(store, zarr_format=3, consolidated=False)
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def in_memory() -> MemoryStore:
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer
    return MemoryStore({key: buffer.from_bytes(value) for key, value in written().items()})


class Sum(Observer):
    """An observer that counts requests, those for a part, and their bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.ranges = self.nbytes = 0

    def started(self, request: Request) -> None:
        with self._lock:
            self.requests += 1
            self.ranges += request.byte_range is not None

    def done(self, request: Request) -> None:
        with self._lock:
            self.nbytes += request.nbytes or 0

    def read(self, origin: Origin, key: str, part: Part | None, nbytes: int, *details: Any) -> None:
        with self._lock:
            self.requests += 1
            self.ranges += part is not None
            self.nbytes += nbytes


def loaded(obj: Any) -> Sum:
    """Load ``obj``, and return what was requested."""
    with observed(seen := Sum()):
        aioxarray.compute(obj)
    return seen


def explained(obj: Any) -> LoadPlan:
    """Return the plan of a load of ``obj``, which makes no request."""
    with observed(seen := Sum()):
        plan = explain(obj)
    assert seen.requests == 0
    return plan


def assert_holds(plan: LoadPlan, seen: Sum) -> None:
    """Assert that ``plan`` is that of a load that made the requests ``seen``."""
    assert plan.requests is not None
    assert plan.bytes_fetched is not None
    ranges = sum(each.ranges or 0 for each in plan.variables)
    if plan.requests_are_exact:
        assert (plan.requests, ranges) == (seen.requests, seen.ranges)
    assert plan.requests >= seen.requests
    if plan.bytes_are_exact:
        assert plan.bytes_fetched == seen.nbytes
    assert plan.bytes_fetched >= seen.nbytes


POINTS = {
    "y": xr.DataArray([40, 3, 3, 17], dims="points"),
    "x": xr.DataArray([2, 2, 2, 47], dims="points"),
}
SELECTIONS: dict[str, dict[str, Any]] = {
    "everything": {},
    "a part": {"y": slice(5, 30), "x": slice(0, 13)},
    "whole shards": {"y": slice(24, 48)},
    "one inner chunk a shard": {"y": slice(0, 12), "x": slice(12, 24)},
    "strided": {"y": slice(1, None, 13), "x": slice(None, None, 5)},
    "backwards": {"y": slice(None, None, -1)},
    "outer": {"y": [45, 3, 4], "x": [0, 30, 0]},
    "one element": {"y": 7, "x": 11},
    "repeated points": POINTS,
    "points of one axis": {"y": xr.DataArray([1, 46, 1], dims="points"), "x": slice(3, 20)},
    "nothing": {"y": slice(0, 0)},
}


@contextmanager
def stores(name: str, path: Path) -> Iterator[Store]:
    with ExitStack() as stack:
        if name == "memory":
            yield in_memory()
        elif name == "wrapped":
            yield RecordingStore(in_memory())
        elif name == "local":
            for key, value in written().items():
                (path / key).parent.mkdir(parents=True, exist_ok=True)
                (path / key).write_bytes(value)
            yield LocalStore(path, read_only=True)
        else:
            server = stack.enter_context(ObjectServer())
            server.data.update(written())
            yield clients.CLIENTS[name](server.url)


@pytest.fixture(
    scope="module", params=["memory", "local", "wrapped", "fsspec_http", "obstore_http"]
)
def lazy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[xr.Dataset]:
    with stores(request.param, tmp_path_factory.mktemp("explained")) as store:
        yield opened(store, consolidated=False)


# --- the plan and the load -----------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_counts_are_those_of_the_load(lazy: xr.Dataset, selection: str) -> None:
    for name in lazy.data_vars:
        part = lazy[name].isel(SELECTIONS[selection])
        plan = explained(part)
        assert_holds(plan, loaded(part))
        (variable,) = plan.variables
        assert variable.requests_are_exact or (variable.shards or 0) > 0
        assert variable.bytes_wanted == part.size * 8
        if name == "plain":
            assert variable.bytes_are_exact


@pytest.mark.parametrize(
    ("client", "folder"),
    [
        ("fsspec_http", ""),
        ("s3fs", "bucket/data/"),
        ("obstore_http", ""),
        ("obstore_s3", "bucket/data/"),
    ],
)
def test_the_counts_are_those_of_the_server(client: str, folder: str) -> None:
    with ObjectServer() as server:
        server.data.update({f"{folder}{key}": value for key, value in written().items()})
        ds = opened(clients.CLIENTS[client](server.url), consolidated=False)
        for part in (ds, ds.isel(y=slice(0, 12), x=slice(0, 12)), ds[["plain"]].isel(POINTS)):
            server.log.clear()
            plan = explain(part)
            assert server.log.requests == ()
            aioxarray.compute(part)
            assert plan.requests_are_exact
            requests = server.log.snapshot().requests
            gets = [each for each in requests if each.method == "GET"]
            assert plan.requests == len(gets)
            # s3fs asks for the length of what it reads as a whole.
            whole = sum(each.byte_range is None for each in gets)
            assert len(requests) - len(gets) == (whole if client == "s3fs" else 0)
            assert sum(each.ranges or 0 for each in plan.variables) == len(gets) - whole
            for variable in plan.variables:
                sent = sum(
                    length_of(server, each)
                    for each in gets
                    if f"/{variable.name}/" in f"/{each.key}"
                )
                assert variable.bytes_fetched is not None
                if variable.bytes_are_exact:
                    assert variable.bytes_fetched == sent
                else:
                    assert variable.bytes_fetched >= sent


def length_of(server: ObjectServer, request: ServedRequest) -> int:
    """Return the length of the answer to a GET."""
    length = len(server.data[request.key])
    match request.byte_range:
        case RangeByteRequest(start=start, end=end):
            return min(end, length) - start
        case OffsetByteRequest(offset=offset):
            return length - offset
        case SuffixByteRequest(suffix=suffix):
            return min(suffix, length)
    return length


def test_requests_that_a_client_adds_are_named() -> None:
    pytest.importorskip("s3fs")
    made: Any = zarr.create_array(MemoryStore(), shape=(4, 4), chunks=(2, 2), dtype="f8")
    place = StorePath(clients.s3fs("http://127.0.0.1:1"), "a")
    array: zarr.Array[Any] = zarr.Array(AsyncArray(made.metadata, place))
    (variable,) = explained(opened_array(array)).variables
    assert variable.requests == 4
    assert "s3fs sends a HEAD request" in variable.reason


def test_missing_chunks_are_requested_but_have_no_bytes() -> None:
    store = RecordingStore(MemoryStore())
    array = zarr.create_array(
        store, name="a", shape=40, chunks=(10,), dtype="f8", dimension_names="x", compressors=None
    )
    array[:10] = 1.0
    part = opened(store, consolidated=False)
    plan, seen = explained(part), loaded(part)
    assert plan.requests == seen.requests == 4
    assert (plan.bytes_fetched, seen.nbytes) == (320, 80)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_tree(zarr_format: Any) -> None:
    store = RecordingStore(MemoryStore())
    tree().to_zarr(store, zarr_format=zarr_format, consolidated=False)
    lazy = opened_tree(store, consolidated=False)
    plan = explained(lazy)
    assert {"/a/line", "/a/deep/both", "/b/plane"} <= {each.name for each in plan.variables}
    assert_holds(plan, loaded(lazy))


def test_lists_and_dicts() -> None:
    ds = opened(RecordingStore(in_memory()), consolidated=False)
    parts = {"one": ds[["plain"]], "others": [ds["packed"], ds["sharded"].variable]}
    plan = explained(parts)
    assert [each.name for each in plan.variables] == [
        "['one'] plain",
        "['others'][0] packed",
        "['others'][1]",
    ]
    assert_holds(plan, loaded(parts))


def test_values_in_memory_need_nothing() -> None:
    plan = explained(layouts())
    assert {each.way for each in plan.variables} == {"memory"}
    assert (plan.requests, plan.round_trips, plan.memory, plan.estimate()) == (0, 0, 0, 0)


def test_variables_with_the_same_lazy_data_are_read_once() -> None:
    ds = opened(RecordingStore(in_memory()), consolidated=False)[["plain"]]
    ds = ds.assign(copy=ds["plain"].variable.copy(deep=False))
    plan = explained(ds)
    assert [each.way for each in plan.variables] == ["coroutines", "shared"]
    assert_holds(plan, loaded(ds))


def test_small_local_variables_are_read_together(tmp_path: Path) -> None:
    small = xr.Dataset({f"v{i}": ("x", np.arange(4.0)) for i in range(10)})
    small.to_zarr(tmp_path, consolidated=False)
    lazy = opened(LocalStore(tmp_path), consolidated=False)
    plan = explained(lazy)
    assert {each.way for each in plan.variables} == {"together"}
    assert_holds(plan, loaded(lazy))


def test_joined_files_are_explained_one_by_one(tmp_path: Path) -> None:
    for index in range(3):
        part = xr.Dataset(
            {"v": (("t", "x"), np.full((4, 6), index + 1))}, {"t": np.arange(4) + 4 * index}
        )
        part.v.encoding = {"chunks": (2, 6), "compressors": None}
        part.to_zarr(tmp_path / f"{index}.zarr", consolidated=False)
    with aioxarray.open_mfdataset(
        [str(tmp_path / f"{index}.zarr") for index in range(3)],
        engine="zarr",
        chunks=None,
        consolidated=False,
    ) as lazy:
        for part in (lazy, lazy.isel(t=slice(3, 6)), lazy.isel(t=[11, 0])):
            plan = explained(part)
            assert plan.requests_are_exact
            assert plan.bytes_are_exact
            assert_holds(plan, loaded(part))


def test_virtual_files_have_known_ranges(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    ds = xr.Dataset({"v": (("y", "x"), np.arange(600.0).reshape(20, 30))})
    ds.v.encoding = {"chunksizes": (5, 10), "zlib": True}
    path = tmp_path / "a.nc"
    ds.to_netcdf(path, engine="h5netcdf")
    with aioxarray.open_dataset(path, virtual=True) as lazy:
        part = lazy.isel(y=slice(0, 10))
        plan = explained(part)
        assert (plan.requests, plan.variables[0].ranges, plan.bytes_are_exact) == (6, 6, True)
        seen = loaded(part)
    assert seen.requests == 6
    # An observer sees whole chunks, and the store a range of the file for each.
    assert plan.bytes_fetched == seen.nbytes


# --- chunks that others bring --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "packed", "sharded", "packed_shards"])
def test_cached_chunks_are_not_requested(name: str) -> None:
    with aioxarray.config.set(cache="10MiB"):
        array = opened(RecordingStore(in_memory()), consolidated=False)[name]
        aioxarray.compute(array[:, :20])
        plan = explained(array)
        assert plan.variables[0].shared == 8
        assert_holds(plan, loaded(array))
        assert explained(array).requests == 0
        assert loaded(array).requests == 0


def test_a_known_index_tells_the_ranges() -> None:
    with aioxarray.config.set(cache="10MiB"):
        array = opened(RecordingStore(in_memory()), consolidated=False)["packed_shards"]
        aioxarray.compute(array[0, 0])
        rest = array[:24, :24]
        plan = explained(rest)
        assert (plan.requests_are_exact, plan.bytes_are_exact, plan.round_trips) == (True, True, 1)
        assert_holds(plan, loaded(rest))


@pytest.mark.anyio
async def test_chunks_that_another_load_is_fetching_are_not_requested() -> None:
    store = GatedStore(in_memory(), "plain/c/*")
    array = opened(store, consolidated=False)["plain"]
    other = asyncio.create_task(aioxarray.compute_async(array[:12]))
    await store.requested("plain/c/*", 4)
    plan = explained(array)
    assert (plan.requests, plan.variables[0].shared) == (12, 4)
    store.release("plain/c/*")
    await other


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_windows_share_their_chunks(name: str) -> None:
    store = LatencyStore(in_memory(), 0.0)
    array = opened(store, consolidated=False)[name]
    store.latency_s = 1.0
    windows = [array[:24], array[12:36], array[12:24].copy()]
    plan = explained(windows)
    with observed(seen := Sum()):
        clock = VirtualClock()
        clock.run(lambda: aioxarray.compute_async(windows))
    assert_holds(plan, seen)
    assert sum(each.shared for each in plan.variables) == 8


# --- round trips, memory and time ----------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
def test_round_trips_are_those_of_the_load(selection: str) -> None:
    store = LatencyStore(in_memory(), 0.0)
    ds = opened(store, consolidated=False)
    store.latency_s = 1.0
    for part in (ds[["plain", "packed"]], ds):
        part = part.isel(SELECTIONS[selection])
        clock = VirtualClock()
        clock.run(functools.partial(aioxarray.compute_async, part))
        assert explained(part).round_trips == clock.elapsed_s


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("settings", "name", "at_once", "held"),
    [
        ({}, "plain", 16, 16 * CHUNK),
        ({"concurrency": 5}, "plain", 5, 5 * CHUNK),
        ({"memory": 3 * CHUNK}, "plain", 3, 3 * CHUNK),
        ({}, "sharded", 4, 16 * CHUNK),
    ],
    ids=["all", "few requests", "little memory", "shards"],
)
async def test_memory_is_that_of_chunks_in_flight(
    settings: dict[str, Any], name: str, at_once: int, held: int
) -> None:
    store = GatedStore(in_memory(), f"{name}/c/*")
    with aioxarray.config.set({"concurrency": 128, **settings}):
        array = opened(store, consolidated=False)[name]
        plan = explained(array)
        load = asyncio.create_task(aioxarray.compute_async(array))
        await store.requested(f"{name}/c/*", at_once)
        assert grants.memory.statistics().in_use == held
        store.release(f"{name}/c/*")
        await load
    assert plan.memory is not None
    # The setting allows an eighth more, for small chunks beside large ones.
    assert held <= plan.memory <= held * 9 / 8


class _Copying(LatencyStore):
    """A store in memory whose answers take memory of their own, as those of a server do."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        return found and prototype.buffer.from_array_like(found.as_numpy_array().copy())


@pytest.mark.parametrize("concurrency", [128, 8])
@pytest.mark.parametrize("layout", ["chunks", "shards", "variables", "selection"])
def test_memory_is_what_a_load_allocates(layout: str, concurrency: int) -> None:
    count = 4 if layout == "variables" else 1
    values = np.random.default_rng(0).random((1024, 1024))
    ds = xr.Dataset({f"v{number}": (("y", "x"), values) for number in range(count)})
    for name in ds:
        encoding: dict[str, Any] = {"chunks": (256, 256)}
        if layout == "shards":
            encoding["shards"] = (512, 512)
        ds[name].encoding = encoding
    store = _Copying(stored(ds), 1.0)

    async def opened_and_loaded() -> xr.Dataset:
        lazy = await aioxarray.open_zarr_async(store, consolidated=False)
        await aioxarray.compute_async(lazy)
        return lazy.isel(y=slice(60, 800)) if layout == "selection" else lazy

    lazy = VirtualClock().run(opened_and_loaded)
    with aioxarray.config.set(concurrency=concurrency):
        plan = explained(lazy)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            result = VirtualClock().run(functools.partial(aioxarray.compute_async, lazy))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # Random values become only a little shorter by compression.
    assert peak - before - result.nbytes == pytest.approx(plan.memory, rel=0.1)


def test_decoded_values_are_held_beside_the_result() -> None:
    ds = xr.Dataset({"v": ("x", np.arange(100.0))})
    ds.v.encoding = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1, "compressors": None}
    store = RecordingStore(MemoryStore())
    ds.to_zarr(store, consolidated=False)
    plan = explained(opened(store, consolidated=False))
    assert (plan.bytes_wanted, plan.bytes_fetched, plan.memory) == (200, 200, 200 + 200)


def test_estimates() -> None:
    ds = opened(RecordingStore(in_memory()), consolidated=False)
    with aioxarray.config.set(concurrency=4):
        plan = explain(ds["plain"])
    assert plan.concurrency == 4
    assert plan.requests == 16
    assert plan.estimate(1.0, "1Gbit/s") == pytest.approx(4 + 16 * CHUNK / 125e6)
    assert plan.estimate(0, "1kB/s") == plan.estimate(0, 1000) == plan.estimate(0, "8 kbit/s")
    one = explain(ds["sharded"][0, 0])
    assert one.estimate(latency=1.0) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"latency": -1}, ValueError),
        ({"latency": float("nan")}, ValueError),
        ({"latency": "fast"}, TypeError),
        ({"latency": True}, TypeError),
        ({"bandwidth": 0}, ValueError),
        ({"bandwidth": "1Gb"}, ValueError),
        ({"bandwidth": "fast"}, ValueError),
        ({"bandwidth": []}, TypeError),
    ],
)
def test_estimates_of_nonsense_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        explain(layouts()).estimate(**options)


# --- what is opaque ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
def test_other_backends_are_opaque(engine: Any, tmp_path: Path) -> None:
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    path = tmp_path / "a.nc"
    layouts().drop_encoding().to_netcdf(path, engine=engine)
    with xr.open_dataset(path, engine=engine) as lazy:
        plan = explained(lazy)
        for each in plan.variables:
            assert each.way == "thread"
            assert each.reason.casefold().startswith(engine.casefold())
            assert (each.requests, each.bytes_fetched, each.memory) == (None, None, None)
            assert each.bytes_wanted == SIZE * SIZE * 8
    assert plan.estimate() is None
    assert (plan.requests, plan.round_trips, plan.memory) == (None, None, None)
    assert "4 variables opaque" in repr(plan)


def test_dask_tells_tasks_and_blocks() -> None:
    pytest.importorskip("dask")
    import dask

    ds = layouts()[["plain"]].chunk(x=16)
    with dask.config.set(scheduler="synchronous"):
        (variable,) = explained(ds).variables
    assert (variable.way, variable.chunks, variable.requests) == ("dask", 3, None)
    assert variable.tasks is not None
    assert variable.tasks >= 3
    assert "'synchronous'" in variable.reason


def test_strings_of_any_length_have_unknown_bytes() -> None:
    store = RecordingStore(MemoryStore())
    ds = xr.Dataset({"s": ("x", np.array(["a", "long" * 9], dtype=object))})
    ds.to_zarr(store, consolidated=False)
    (variable,) = explained(opened(store, consolidated=False)).variables
    assert (variable.requests, variable.bytes_wanted, variable.bytes_fetched) == (1, None, None)
    assert "dtype object" in variable.reason or "dtype StringDType" in variable.reason


# --- advice --------------------------------------------------------------------------------------


def array(**options: Any) -> xr.DataArray:
    store = RecordingStore(MemoryStore())
    zarr.create_array(store, name="a", dtype="f8", **options)
    return opened(store, consolidated=False)["a"]


def packed_by(compressor: Any) -> xr.DataArray:
    store = RecordingStore(MemoryStore())
    ds = xr.Dataset({"a": ("x", np.arange(10.0))})
    ds.a.encoding = {"compressors": compressor}
    ds.to_zarr(store, zarr_format=2, consolidated=False)
    return opened(store, consolidated=False)["a"]


ADVICE: dict[str, tuple[Callable[[], xr.DataArray], str]] = {
    "small chunks": (
        lambda: array(shape=256_000, chunks=500, dimension_names="x"),
        "512 requests for chunks of 3.906 KiB",
    ),
    "many objects": (
        lambda: array(shape=(10**6, 10**4), chunks=(1000, 10), dimension_names="yx"),
        "1,000,000 requests, one for each object",
    ),
    "over-read": (
        lambda: array(shape=(400, 400), chunks=(400, 400), dimension_names="yx", compressors=None)[
            :, 0
        ],
        "reads 400 times",
    ),
    "codec": (lambda: packed_by(numcodecs.BZ2()), "because of BZ2"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_layouts_that_cost_much_get_advice(case: str) -> None:
    make, text = ADVICE[case]
    (advice,) = explained(make()).advice
    assert advice.startswith("a: ")
    assert text in advice


def test_good_layouts_get_none() -> None:
    assert explained(opened(RecordingStore(in_memory()), consolidated=False)).advice == ()


def test_a_million_chunks_take_no_memory() -> None:
    lazy = array(shape=(10**6, 10**4), chunks=(1000, 10), dimension_names="yx")
    explain(lazy)
    tracemalloc.start()
    try:
        plan = explain(lazy)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.requests == 10**6
    assert plan.bytes_wanted == 8 * 10**10
    assert peak < 1 << 20


# --- the value -----------------------------------------------------------------------------------


def mixed() -> LoadPlan:
    ds = opened(RecordingStore(in_memory()), consolidated=False)
    opaque = VariablePlan(
        "<b>", "thread", "x & y", requests=None, bytes_fetched=None, memory=None, round_trips=None
    )
    plan = explain(ds.isel(y=slice(0, 20)))
    return LoadPlan((*plan.variables, opaque), None, plan.concurrency)


def test_the_table_has_a_row_for_each_variable() -> None:
    table = mixed().table()
    assert list(table.index) == [each.name for each in mixed().variables]
    assert table.requests.sum() == sum(each.requests or 0 for each in mixed().variables)
    assert table.requests.isna().tolist() == [False] * 4 + [True]
    assert explain(xr.Dataset()).table().empty


def test_the_dict_is_json() -> None:
    plan = mixed()
    back = json.loads(json.dumps(plan.to_dict()))
    assert back["requests"] is None
    assert [each["name"] for each in back["variables"]] == [each.name for each in plan.variables]
    assert back["variables"][0]["requests"] == plan.variables[0].requests


def test_the_text_shows_sums_and_bounds() -> None:
    text = str(mixed())
    assert text.splitlines()[0] == repr(mixed())[len("<LoadPlan: ") : -1]
    assert "1 variable opaque" in text
    assert "≤" in text
    (line,) = (line for line in text.splitlines() if line.startswith("<b>"))
    assert "opaque" in line


def test_many_variables_are_shown_in_part() -> None:
    variables = tuple(VariablePlan(f"v{i}", "coroutines", "so", requests=i) for i in range(100))
    text = str(LoadPlan(variables, 0, 128))
    assert "60 further variables with no more requests each" in text
    assert " v99 " not in text.splitlines()[-1]
    assert any(line.startswith("v99") for line in text.splitlines())


def test_the_html_is_escaped_and_needs_nothing_else() -> None:
    page = mixed()._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "x &amp; y" in page
    assert "http" not in page
    assert "<script" not in page


def test_the_method_is_the_function() -> None:
    ds = opened(RecordingStore(in_memory()), consolidated=False)
    assert ds.aio.explain() == explain(ds)
    with pytest.raises(TypeError, match="obj is of type int"):
        explain(3)


# --- the plan of a read --------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("shape", [(20, 1), (1, 20), (7, 9), (0, 4)])
def test_a_plan_without_memory_is_that_of_the_read(
    order: Any, zarr_format: Any, shape: tuple[int, ...]
) -> None:
    stored = zarr.create_array(
        RecordingStore(MemoryStore()),
        shape=shape,
        chunks=(5, 4),
        dtype="i4",
        zarr_format=zarr_format,
        **({"order": order} if zarr_format == 2 else {"config": {"order": order}}),
    )
    everything = (slice(None), slice(None))
    plans = [plan_block(stored, everything)]
    if 0 not in shape:
        plans.append(plan_points(stored, (np.array([0]), np.array([0]))))
    made: list[ReadPlan] = []
    pipeline = "aioxarray._zarr.chunks.pipeline.CodecPipeline.execute"
    with pytest.MonkeyPatch.context() as patch:

        async def execute(self: Any, plan: ReadPlan, result: Any) -> list[bool]:
            made.append(plan)
            return []

        patch.setattr(pipeline, execute)
        lazy = opened_array(stored)
        run_blocking(lambda: aioxarray.compute_async(lazy))
        if 0 not in shape:
            points = {name: xr.DataArray([0], dims="p") for name in lazy.dims}
            run_blocking(lambda: aioxarray.compute_async(lazy.isel(points)))
    assert len(made) == sum(plan is not None and plan.count > 0 for plan in plans)
    for real, without in zip(made, plans, strict=False):
        assert without is not None
        assert real.outline == without.outline
        assert (real.way, real.held, real.count) == (without.way, without.held, without.count)


def opened_array(stored: zarr.Array[Any]) -> xr.DataArray:
    """Return ``stored`` as a lazy xarray object."""
    from aioxarray._xarray.compat import LazilyIndexedArray, ZarrArrayWrapper

    dims = "zyx"[-stored.ndim :]
    return xr.DataArray(xr.Variable(tuple(dims), LazilyIndexedArray(ZarrArrayWrapper(stored))))


@st.composite
def parts(draw: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Selections for ``isel`` of each kind that xarray has."""
    dims = "zyx"[-len(shape) :]
    sizes = dict(zip(dims, shape, strict=True))
    if draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(dims), min_size=1, unique=True))
        count = draw(st.integers(1, 5))
        at = {
            d: st.lists(st.integers(-1, sizes[d] - 1), min_size=count, max_size=count) for d in dims
        }
        return {dim: xr.DataArray(draw(at[dim]), dims="points") for dim in chosen}
    each = {
        dim: st.one_of(
            st.slices(size),
            st.integers(-size, size - 1),
            st.lists(st.integers(0, size - 1), min_size=1, max_size=5),
        )
        for dim, size in sizes.items()
    }
    return {dim: draw(each[dim]) for dim in dims}


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
@given(data=st.data(), recipe=recipes(), wrap=st.sampled_from([RecordingStore, lambda each: each]))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_array_is_read_as_explained(data: Any, recipe: Recipe, wrap: Any) -> None:
    nested = isinstance(recipe.options.get("serializer"), ShardingCodec)
    config = {**recipe.options["config"], "write_empty_chunks": True}
    store = wrap(MemoryStore())
    with using(OURS):
        stored = replace(recipe, options={**recipe.options, "config": config}).create(store)
        stored[...] = recipe.values(recipe.shape, 1)
    lazy = opened_array(stored)
    # zarr itself reads shards in shards by slices only.
    chosen = {} if nested else data.draw(parts(recipe.shape))
    part = lazy.isel(chosen)
    (plan,) = explained(part).variables
    seen = loaded(part)
    if plan.requests is None:
        assert nested
        return
    assert plan.requests >= seen.requests
    if plan.requests_are_exact:
        assert (plan.requests, plan.ranges) == (seen.requests, seen.ranges)
    if plan.bytes_fetched is not None:
        assert plan.bytes_fetched >= seen.nbytes
        assert plan.bytes_fetched == seen.nbytes or not plan.bytes_are_exact


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [MemoryStore, lambda: LatencyStore(MemoryStore(), latency_s=0)])
def test_the_plan_of_a_stream_counts_each_chunk_once(make: Callable[[], Any]) -> None:
    log = RecordingStore(make())
    ds = xr.Dataset({"v": (("t", "x"), np.arange(400.0).reshape(20, 20))})
    ds.to_zarr(log, encoding={"v": {"chunks": (5, 20)}}, consolidated=False)
    lazy = aioxarray.open_zarr(log, consolidated=False)
    pieces = aioxarray.blocks(lazy, {"t": 1})
    stream = aioxarray.stream(pieces, ahead="1MiB")
    log.log.clear()
    plan = aioxarray.explain(stream)
    assert log.log.count() == 0
    assert plan.bytes_wanted == 400 * 8
    assert plan.memory == (1 << 20) + (32 << 20)
    with aioxarray.stream(all_known(pieces), ahead="1MiB") as loaded:
        for _ in loaded:
            pass
    assert plan.requests == log.log.count("get") == 4


def test_streams_of_unknown_pieces_are_refused() -> None:
    with pytest.raises(TypeError, match="explain a stream of a list or of blocks"):
        aioxarray.explain(aioxarray.stream(iter([xr.Dataset()])))
    with pytest.raises(TypeError, match="functions that open"):
        aioxarray.explain(aioxarray.stream([xr.Dataset]))
