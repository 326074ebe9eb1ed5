"""Loads of thousands of small variables: values, and few tasks, thread hops and objects."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.lowlevel
import numpy as np
import pytest
import xarray as xr
import zarr
from xarray.core.indexing import LazilyIndexedArray
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._runtime.threads.pool import Pool
from aioxarray._zarr import tuning
from aioxarray.testing import GatedStore, RecordingStore
from tests import samples
from tests.concurrency.helpers import PATIENCE_S, lazily, plain, tasks_on_io_loop, written
from tests.loops import every_loop
from tests.oracle import assert_same

SELECTIONS: dict[str, Any] = {
    "all": {},
    "a part": {"x": slice(1, 3)},
    "one": {"x": 1},
    "backwards": {"x": slice(None, None, -1)},
    "nothing": {"x": slice(0)},
    "a list": {"x": [2, 0]},
}


def copies(ds: xr.Dataset, count: int) -> xr.Dataset:
    """Return ``ds`` with ``count`` copies of each of its variables."""
    ds = ds.reset_coords()
    return xr.merge(
        [ds.rename({name: f"{name}_{i}" for name in ds.data_vars}) for i in range(count)]
    )


@pytest.fixture(scope="module", params=[samples.numbers, samples.texts, samples.empty])
def made(request: pytest.FixtureRequest) -> xr.Dataset:
    """Copies of the variables of a sample."""
    return copies(request.param(), 4)


@pytest.fixture(scope="module", params=[2, 3])
def at_hand(
    request: pytest.FixtureRequest, made: xr.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> LocalStore:
    """A store of `made`."""
    folder = tmp_path_factory.mktemp("at_hand")
    # Consolidated, because the order of a folder listing is arbitrary.
    made.to_zarr(folder, zarr_format=request.param, consolidated=True)
    return LocalStore(folder, read_only=True)


@pytest.mark.matrix(together=2)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.filterwarnings("ignore:.*Zarr (format|V) ?3 specification")
def test_zarr_at_hand_has_the_values_of_plain_xarray(
    made: xr.Dataset, at_hand: LocalStore, selection: str
) -> None:
    chosen = {dim: key for dim, key in SELECTIONS[selection].items() if dim in made.dims}

    def lazy() -> xr.Dataset:
        return samples.opened(at_hand).isel(chosen)

    assert_same(aioxarray.load(lazy()), lazy().load())
    assert_same(aioxarray.compute(lazy()), lazy().compute())


@pytest.fixture(scope="module", params=["netcdf4", "h5netcdf", "scipy"])
def file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A file of many variables, and the engine that wrote it."""
    path = tmp_path_factory.mktemp("file") / "many.nc"
    plain(100, 1).to_netcdf(path, engine=request.param)
    return path, request.param


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_netcdf_has_the_values_of_plain_xarray(file: tuple[Path, Any], selection: str) -> None:
    path, engine = file
    chosen = SELECTIONS[selection]
    with xr.open_dataset(path, engine=engine) as ds, xr.open_dataset(path, engine=engine) as other:
        assert_same(aioxarray.load(ds.isel(chosen)), other.isel(chosen).load())


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_missing_chunks_and_chunks_that_are_large_or_sharded(tmp_path: Path) -> None:
    ds = plain(30, 4)
    ds["v1"] = ("y", np.arange(200_000.0))
    ds["v2"].encoding |= {"shards": (16,)}
    store = LocalStore(tmp_path)
    ds.to_zarr(store, zarr_format=3, consolidated=True)
    (tmp_path / "v3" / "c" / "0").unlink()

    def lazy() -> xr.Dataset:
        # Selects a few values of a large chunk.
        return samples.opened(store).isel(y=slice(2))

    assert_same(aioxarray.load(lazy()), lazy().load())


def test_an_error_names_its_variable_and_leaves_all_lazy(tmp_path: Path) -> None:
    plain(100, 1).to_zarr(tmp_path, zarr_format=3, consolidated=False)
    (tmp_path / "v57" / "c" / "0").write_bytes(b"damaged")
    ds = lazily(LocalStore(tmp_path))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the codec's own error
        aioxarray.load(ds)
    notes = "\n".join(caught.value.__notes__)
    assert "while loading variable 'v57'" in notes
    assert "v57/c/0" in notes
    assert not any(variable._in_memory for variable in ds.variables.values())


def test_progress_tells_of_each_variable(tmp_path: Path) -> None:
    plain(100, 1).to_zarr(tmp_path, zarr_format=3, consolidated=False)
    seen: list[tuple[int, int]] = []
    aioxarray.load(lazily(LocalStore(tmp_path)), progress=lambda *each: seen.append(each))
    assert seen[-1] == (6400, 6400)
    assert seen == sorted(seen)


def test_a_cancelled_load_takes_no_further_variable(tmp_path: Path) -> None:
    """The lane of a library that is not thread-safe is free after the current variable."""
    path = tmp_path / "many.nc"
    plain(200, 1).to_netcdf(path, engine="scipy")
    begun, go_on = threading.Event(), threading.Event()
    read: list[object] = []

    class Array(xr.backends.BackendArray):
        lock = threading.Lock()
        shape, dtype = (8,), np.dtype("f8")

        def __getitem__(self, key: Any) -> Any:
            read.append(key)
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return np.zeros(8)

    ds = xr.Dataset(
        {f"v{i}": ("x", xr.core.indexing.LazilyIndexedArray(Array())) for i in range(20)}
    )

    async def main() -> None:
        load = asyncio.create_task(aioxarray.load_async(ds))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        load.cancel()
        await asyncio.wait([load])
        assert load.cancelled()
        go_on.set()

    asyncio.run(main())
    # The next load in the same lane.
    assert aioxarray.load(ds.v0.copy(deep=False)).values.tolist() == [0] * 8
    assert len(read) == 2


def test_a_load_has_no_task_a_variable() -> None:
    limit = 7
    gate = GatedStore(written(300, 1), keys="*/c/*")
    counter = RecordingStore(gate)
    ds = lazily(counter)
    counter.log.clear()
    tasks: list[int] = []

    def count_and_release() -> None:
        gate.wait_requested("*/c/*", PATIENCE_S, count=limit)
        tasks.append(len(tasks_on_io_loop()))
        gate.release_all()

    counting = threading.Thread(target=count_and_release)
    counting.start()
    with aioxarray.config.set(concurrency=limit):
        aioxarray.load(ds)
    counting.join()
    # The full limit is used, with that number of workers and a few more for other work.
    assert counter.log.most_in_flight == limit
    assert tasks[0] < 60
    xr.testing.assert_identical(ds, plain(300, 1))


@pytest.mark.parametrize("kind", ["memory", "local", "netcdf4"])
def test_small_variables_share_the_hops_to_a_thread(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 200
    store = MemoryStore() if kind == "memory" else LocalStore(tmp_path / "zarr")
    if kind == "netcdf4":
        plain(count, 1).to_netcdf(tmp_path / "many.nc", engine="netcdf4")
        ds = xr.open_dataset(tmp_path / "many.nc", engine="netcdf4")
    else:
        plain(count, 1).to_zarr(store, zarr_format=3, consolidated=False)
        ds = lazily(store)
    # A longer time limit for runs, because the machine may be busy.
    monkeypatch.setattr(tuning, "TURN_S", PATIENCE_S)
    hops = 0
    submit = Pool.submit

    def counted(self: Pool, *args: Any) -> Any:
        nonlocal hops
        hops += 1
        return submit(self, *args)

    monkeypatch.setattr(Pool, "submit", counted)
    with ds:
        aioxarray.load(ds)
        xr.testing.assert_identical(ds, plain(count, 1))
    assert 1 <= hops <= 4


def test_memory_above_the_result_does_not_grow_with_the_variables(tmp_path: Path) -> None:
    count = 300
    root = zarr.create_group(LocalStore(tmp_path), zarr_format=3)
    for index in range(count):
        root.create_array(f"v{index}", shape=(8,), dtype="f8", dimension_names=["x"])
    ds = xr.open_zarr(tmp_path, chunks=None, consolidated=False)
    aioxarray.load(xr.open_zarr(tmp_path, chunks=None, consolidated=False)[["v0"]])
    tracemalloc.start()
    try:
        aioxarray.load(ds)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # It was 20 KB per variable.
    assert (peak - held) / count < 1500


class Kept(xr.backends.BackendArray):
    """A backend array whose living instances are counted."""

    shape, dtype = (2,), np.dtype("f8")
    # With a lock, one thread reads all arrays.
    lock = threading.Lock()
    alive: weakref.WeakSet[Kept]

    def __init__(self, read: Callable[[], object] = lambda: None) -> None:
        self._read = read

    def __getitem__(self, key: Any) -> Any:
        self._read()
        return np.zeros(2)

    @classmethod
    def many(cls, count: int) -> xr.Dataset:
        cls.alive = weakref.WeakSet()
        ds = xr.Dataset({f"v{i}": ("x", LazilyIndexedArray(cls())) for i in range(count)})
        for variable in ds.variables.values():
            data: Any = variable._data
            cls.alive.add(data.array)
        return ds


def test_a_load_holds_no_objects_a_variable_for_the_garbage_collector() -> None:
    """When objects grow by a quarter, Python runs a full collection, which stops all threads."""
    count = 2000
    tracked: list[int] = []

    def note() -> None:
        gc.collect()
        tracked.append(len(gc.get_objects()))

    aioxarray.load(xr.Variable("x", LazilyIndexedArray(Kept())))
    ds = Kept.many(count)
    ds["v0"] = ("x", LazilyIndexedArray(Kept(note)))
    note()
    aioxarray.load(ds)
    before, during = tracked
    # It was 8 per variable.
    assert (during - before) / count < 0.5


@every_loop
async def test_lazy_arrays_are_let_go_of_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing those of ten thousand variables at once would block the caller's loop."""
    monkeypatch.setattr("aioxarray._runtime.tasks._STEP_S", 0.0)
    count = 50
    ds = Kept.many(count)
    await aioxarray.load_async(ds)
    assert all(variable._in_memory for variable in ds.variables.values())
    left = [len(Kept.alive)]
    while left[-1]:
        await anyio.lowlevel.checkpoint()
        left.append(len(Kept.alive))
    assert left[0] >= count - 2
    assert all(before - after <= 2 for before, after in itertools.pairwise(left))


def test_a_blocking_load_leaves_nothing_to_be_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be freed in the I/O loop's thread, concurrently with the user's thread."""
    monkeypatch.setattr("aioxarray._runtime.tasks._STEP_S", 0.0)
    ds = Kept.many(50)
    aioxarray.load(ds)
    assert not Kept.alive
