"""What opens carries asynchronous reading: xarray's own ``load_async`` and ``load`` use it."""

from __future__ import annotations

import asyncio
import datetime
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dask.base
import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import FaultyStore, GatedStore, LatencyStore, RecordingStore, VirtualClock
from tests import samples
from tests.concurrency.helpers import plain, written
from tests.loops import every_loop
from tests.opening.helpers import Way, assert_loaded, climate, every_way, own_ways
from tests.oracle import assert_same, lazy
from tests.samples import stored

if TYPE_CHECKING:
    from zarr.abc.store import Store


def check_reading(open_lazily: Callable[[], Any], open_plainly: Callable[[], Any]) -> None:
    """Check that xarray's own ways to load, off and on a loop, read what plain xarray reads."""
    expected = open_plainly().load()
    for load in (
        lambda ds: asyncio.run(ds.load_async()),
        lambda ds: ds.load(),
        lambda ds: ds.compute(),
        lambda ds: asyncio.run(aioxarray.load_async(ds)),
        lambda ds: asyncio.run(ds.copy().load_async()),
        lambda ds: pickle.loads(pickle.dumps(ds)).load(),
        lambda ds: asyncio.run(pickle.loads(pickle.dumps(ds)).load_async()),
    ):
        with open_lazily() as ds:
            assert lazy(ds)
            assert_same(load(ds), expected)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each format, without texts: netCDF4's wheel crashes on those beside h5py."""
    folder = tmp_path_factory.mktemp("files")
    for engine, form in (("netcdf4", "NETCDF4"), ("h5netcdf", "NETCDF4"), ("scipy", None)):
        ds = file_sample(engine)
        ds.to_netcdf(folder / f"{engine}.nc", engine=engine, format=form)
    write_grib(folder / "field.grib")
    return folder


def file_sample(engine: str) -> xr.Dataset:
    ds = climate().drop_vars(["run", "issued"])
    for variable in ds.variables.values():
        variable.encoding.pop("chunks", None)
    letters = np.array([list("Oslo "), list("Paris"), list("Rom  ")], dtype="S1")
    ds["letters"] = (("place", "length"), letters)
    ds["flag"] = ("lat", np.array([True, False, True]))
    if engine != "scipy":
        ds["big"] = ("lat", np.arange(3, dtype=">f8"))
        ds["unsigned"] = ("lat", np.arange(3, dtype="u2"))
    return ds


def write_grib(path: Path) -> None:
    import eccodes

    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    try:
        size = eccodes.codes_get_size(handle, "values")
        eccodes.codes_set_values(handle, np.arange(float(size)))
        with path.open("wb") as file:
            eccodes.codes_write(handle, file)
    finally:
        eccodes.codes_release(handle)


ENGINES = ["netcdf4", "h5netcdf", "scipy"]


@own_ways
@pytest.mark.parametrize("engine", ENGINES)
def test_files_of_every_engine(engine: str, files: Path, way: Way) -> None:
    path = files / f"{engine}.nc"
    check_reading(
        lambda: way("open_dataset", path, engine=engine),
        lambda: xr.open_dataset(path, engine=engine),
    )


@own_ways
def test_grib(files: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    # cfgrib writes the minute of the opening into an attribute.
    minute = datetime.datetime(2026, 1, 1)
    clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda: minute))
    monkeypatch.setattr("cfgrib.dataset.datetime", clock)
    options: dict[str, Any] = {"engine": "cfgrib", "backend_kwargs": {"indexpath": ""}}
    check_reading(
        lambda: way("open_dataset", files / "field.grib", **options),
        lambda: xr.open_dataset(files / "field.grib", **options),
    )


@pytest.mark.parametrize("name", ["netcdf4.nc", "h5netcdf.nc", "scipy.nc"])
def test_engine_aio_finds_the_engine_of_a_file(name: str, files: Path) -> None:
    path = files / name
    check_reading(lambda: xr.open_dataset(path, engine="aio"), lambda: xr.open_dataset(path))
    check_reading(lambda: aioxarray.open_dataset(str(path)), lambda: xr.open_dataset(path))


@every_way
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr(zarr_format: int, way: Way) -> None:
    ds, encoding = samples.decoded()
    store = stored(ds, zarr_format, encoding=encoding)
    check_reading(
        lambda: way("open_dataset", store, engine="zarr"),
        lambda: xr.open_dataset(store, engine="zarr"),
    )


@every_way
def test_characters_of_zarr(way: Way) -> None:
    letters = np.array([list("Oslo "), list("Paris"), list("Rom  ")], dtype="S1")
    ds = xr.Dataset({"name": (("n", "length"), letters), "big": ("n", np.arange(3, dtype=">f8"))})
    store = stored(ds, 2)
    check_reading(
        lambda: way("open_dataset", store, engine="zarr"),
        lambda: xr.open_dataset(store, engine="zarr"),
    )


@every_way
def test_trees(way: Way) -> None:
    store = stored(samples.tree())
    expected = xr.open_datatree(store, engine="zarr").load()
    tree = way("open_datatree", store, engine="zarr")
    assert lazy(tree)
    asyncio.run(tree.load_async())
    assert_same(tree, expected)
    assert_same(way("open_datatree", store, engine="zarr").load(), expected)
    groups: dict[str, xr.Dataset] = way("open_groups", store, engine="zarr")
    for path, ds in groups.items():
        asyncio.run(ds.load_async())
        assert_same(ds, xr.open_groups(store, engine="zarr")[path].load())


# --- selections -------------------------------------------------------------------------------

SELECTIONS: dict[str, Callable[[xr.Dataset], Any]] = {
    "integer": lambda ds: ds.isel(x=2, y=-1),
    "slices": lambda ds: ds.isel(x=slice(1, 7, 2), time=slice(None, None, -1)),
    "arrays": lambda ds: ds.isel(x=[4, 1, 1], y=[0, 5]),
    "points": lambda ds: ds.isel(
        x=xr.DataArray([1, 5], dims="p"), y=xr.DataArray([0, 3], dims="p")
    ),
    "labels": lambda ds: ds.sel(x=[30, 40]),
    "array": lambda ds: ds.cube[1:3, :, 4],
    "variable": lambda ds: ds.variables["cube"][:, [1, 5], ::-2],
    "transposed": lambda ds: ds.transpose("x", "time", "y").isel(x=[3, 1]),
    "renamed": lambda ds: ds.rename(x="lon").isel(lon=slice(2)),
    "nothing": lambda ds: ds.isel(x=[]),
    "chain": lambda ds: ds.isel(y=slice(None, None, -1)).sel(x=[70, 10]).isel(x=-1),
    "copied": lambda ds: ds.isel(x=[1]).copy(),
    "pickled": lambda ds: pickle.loads(pickle.dumps(ds.isel(x=[1, 2]))),
}
NUMBERS = stored(samples.numbers(), encoding={"cube": {"chunks": (2, 4, 3)}})


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(name: str, way: Way) -> None:
    select = SELECTIONS[name]
    expected = select(xr.open_dataset(NUMBERS, engine="zarr")).load()
    for load in (
        lambda obj: obj.load(),
        lambda obj: asyncio.run(obj.load_async()),
        aioxarray.load,
    ):
        assert_same(load(select(way("open_dataset", NUMBERS, engine="zarr"))), expected)


@every_way
def test_only_the_selected_chunks_are_requested(way: Way) -> None:
    recording = RecordingStore(written(2, 10))
    ds = way("open_dataset", recording, engine="zarr", consolidated=False)
    recording.log.clear()
    part = ds.isel(x=[0, 79])
    asyncio.run(part.load_async())
    keys = sorted(request.key for request in recording.log.requests)
    assert keys == ["v0/c/0", "v0/c/9", "v1/c/0", "v1/c/9"]
    xr.testing.assert_identical(part, plain(2, 10).isel(x=[0, 79]))


@every_way
def test_loaded_values_are_kept_as_by_plain_xarray(way: Way) -> None:
    recording = RecordingStore(written(2, 4))
    ds = way("open_dataset", recording, engine="zarr", consolidated=False)
    array = ds.v0
    asyncio.run(ds.load_async())
    recording.log.clear()
    array.load()
    assert recording.log.requests == ()


@every_way
def test_an_index_that_is_dropped_later_is_no_stale_copy(way: Way) -> None:
    """What was known of the store while it was opened is forgotten: chunks are read anew."""
    store = MemoryStore()
    ds = xr.Dataset(
        {"v": ("t", [1.0, 2.0])}, {"t": ("t", [0, 1], {"units": "days since 2000-01-01"})}
    )
    ds.to_zarr(store)
    opened = way("open_dataset", store, engine="zarr", create_default_indexes=False)
    ds.assign_coords(t=("t", [5, 6], ds.t.attrs)).to_zarr(store, mode="r+")
    assert opened.t.values.tolist() == np.array(["2000-01-06", "2000-01-07"], "M8[ns]").tolist()


# --- the limit, the loop, the thread --------------------------------------------------------


@every_way
def test_xarrays_own_load_async_keeps_to_the_limit(way: Way) -> None:
    gated = GatedStore(written(8, 10), "*/c/*")
    recording = RecordingStore(gated)
    ds = way("open_dataset", recording, engine="zarr", consolidated=False)
    recording.log.clear()
    thread = threading.Thread(target=lambda: asyncio.run(ds.load_async()), name="caller")
    with aioxarray.config.set(concurrency=7):
        thread.start()
        gated.wait_requested("*/c/*", count=7)
        gated.release_all()
        thread.join()
    assert recording.log.most_in_flight == 7
    assert len(recording.log.requests) == 80
    xr.testing.assert_identical(ds, plain(8, 10))


def test_xarrays_own_loads_on_many_loops_keep_to_one_limit() -> None:
    """Three loops in three threads, and plain code: the limit is the process's."""
    gated = GatedStore(written(4, 10), "*/c/*")
    recording = RecordingStore(gated)
    opened = [
        aioxarray.open_dataset(recording, engine="zarr", consolidated=False).isel(x=slice(n, None))
        for n in range(4)
    ]
    recording.log.clear()
    calls: list[Callable[[], Any]] = [
        *(partial(asyncio.run, ds.load_async()) for ds in opened[1:]),
        opened[0].load,
    ]
    threads = [threading.Thread(target=call) for call in calls]
    with aioxarray.config.set(concurrency=7):
        for thread in threads:
            thread.start()
        gated.wait_requested("*/c/*", count=7)
        gated.release_all()
        for thread in threads:
            thread.join()
    assert recording.log.most_in_flight == 7
    for n, ds in enumerate(opened):
        xr.testing.assert_identical(ds, plain(4, 10).isel(x=slice(n, None)))


def test_xarrays_own_load_async_is_one_round_trip() -> None:
    latency = LatencyStore(written(40, 1), 0.0)
    ds = aioxarray.open_dataset(latency, engine="zarr", consolidated=False)
    latency.latency_s = 1.0
    clock = VirtualClock()
    clock.run(lambda: ds.load_async())
    assert clock.elapsed_s == 1
    xr.testing.assert_identical(ds, plain(40, 1))


class ThreadNoting(RecordingStore):
    """A store that notes the threads its requests come from."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.threads: set[str] = set()

    async def _request(self, request: Any, send: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        return await super()._request(request, send)


@every_loop
async def test_requests_are_off_the_callers_loop() -> None:
    store = ThreadNoting(written(3, 4))
    ds = await aioxarray.open_dataset_async(store, engine="zarr", consolidated=False)
    await aioxarray.load_async(ds)
    assert threading.current_thread().name not in store.threads
    xr.testing.assert_identical(ds, plain(3, 4))


def test_a_file_is_read_off_the_callers_loop(files: Path) -> None:
    seen: set[str] = set()

    class Noting(xr.backends.BackendArray):  # type: ignore[misc, unused-ignore]
        shape, dtype = (3,), np.dtype("f8")

        def __getitem__(self, key: Any) -> Any:
            seen.add(threading.current_thread().name)
            return np.arange(3.0)[key.tuple]

    class Engine(xr.backends.BackendEntrypoint):
        def open_dataset(self, filename_or_obj: Any, **_: Any) -> xr.Dataset:
            from xarray.core.indexing import LazilyIndexedArray

            return xr.Dataset({"v": ("x", LazilyIndexedArray(Noting()))})

    async def main() -> xr.Dataset:
        ds = await aioxarray.open_dataset_async("anything", engine=Engine)
        return await ds.load_async()

    assert asyncio.run(main()).v.values.tolist() == [0, 1, 2]
    assert seen
    assert threading.current_thread().name not in seen


@own_ways
def test_loading_an_error_leaves_the_object_lazy(way: Way) -> None:
    faulty = FaultyStore.kth(written(3, 4), 5, OSError("no luck"), keys="*/c/*")
    ds = way("open_dataset", faulty, engine="zarr", consolidated=False)
    faulty.restart()
    with pytest.raises(OSError, match="no luck"):
        aioxarray.load(ds)
    assert len(lazy(ds)) == 3
    xr.testing.assert_identical(ds.load(), plain(3, 4))


@pytest.fixture
def opened_files(files: Path) -> Iterator[list[xr.Dataset]]:
    datasets = [
        aioxarray.open_dataset(files / f"{engine}.nc", engine=engine)
        for engine in ("netcdf4", "h5netcdf")
        for _ in range(10)
    ]
    yield datasets
    for ds in datasets:
        ds.close()


def test_many_files_at_once_with_one_loop(files: Path, opened_files: list[xr.Dataset]) -> None:
    async def main() -> None:
        await asyncio.gather(*(ds.load_async() for ds in opened_files))

    asyncio.run(main())
    expected = {e: xr.load_dataset(files / f"{e}.nc", engine=e) for e in ("netcdf4", "h5netcdf")}
    for ds in opened_files[:10]:
        assert_same(ds, expected["netcdf4"])
    for ds in opened_files[10:]:
        assert_same(ds, expected["h5netcdf"])


def test_chunks_make_dask_arrays_over_the_same_reading() -> None:
    recording = RecordingStore(written(2, 4))
    ds = aioxarray.open_dataset(recording, engine="zarr", consolidated=False, chunks={})
    recording.log.clear()
    assert_loaded(
        ds.isel(x=slice(8)),
        xr.open_dataset(written(2, 4), engine="zarr", consolidated=False, chunks={}).isel(
            x=slice(8)
        ),
    )
    assert sorted(request.key for request in recording.log.requests) == ["v0/c/0", "v1/c/0"]


@every_way
@pytest.mark.parametrize("inline_array", [False, True])
@pytest.mark.parametrize("kind", ["zarr", "netcdf4", "h5netcdf"])
def test_dask_names_say_the_group(kind: str, inline_array: bool, way: Way, tmp_path: Path) -> None:
    """`xarray.open_groups` gives one name to the same variable of all groups."""
    groups = {f"/g{n}": xr.Dataset({"v": ("x", np.arange(6) + 10 * n)}) for n in range(3)}
    tree = xr.DataTree.from_dict(groups)
    source: Any = stored(tree) if kind == "zarr" else tmp_path / "groups.nc"
    if kind != "zarr":
        tree.to_netcdf(source, engine=kind)
    options: dict[str, Any] = {"chunks": {}, "inline_array": inline_array}
    if way.name != "engine aio":
        options["engine"] = kind
    opened, again = (way("open_groups", source, **options) for _ in range(2))
    names = {path: ds.v.data.name for path, ds in opened.items() if "v" in ds}
    assert len(set(names.values())) == 3
    assert {path: ds.v.data.name for path, ds in again.items() if "v" in ds} == names
    (computed,) = dask.base.compute(opened)
    for path, ds in groups.items():
        assert type(opened[path]) is xr.Dataset
        xr.testing.assert_identical(computed[path], ds)
    for ds in (*opened.values(), *again.values()):
        ds.close()


@every_way
def test_groups_are_plain_datasets_that_close(way: Way, tmp_path: Path) -> None:
    ds = file_sample("netcdf4")
    xr.DataTree.from_dict({"/": ds, "/a": ds}).to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    options: list[Any] = [None, {}]
    for chunks in options:
        opened = way("open_groups", tmp_path / "a.nc", chunks=chunks)
        plain = xr.open_groups(tmp_path / "a.nc", chunks=chunks)
        assert {path: type(ds) for path, ds in opened.items()} == {
            "/": xr.Dataset,
            "/a": xr.Dataset,
        }
        assert_loaded(opened, plain)
        for each in (*opened.values(), *plain.values()):
            each.close()
            assert each._close is None
