"""Every store and every file format, loaded as plain xarray loads it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
import zarr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core.indexing import ExplicitIndexer, IndexingSupport, explicit_indexing_adapter
from zarr.storage import LocalStore, MemoryStore, ObjectStore, ZipStore

import aioxarray
from aioxarray.testing import ObjectServer, RecordingStore
from tests import samples
from tests.loops import every_loop
from tests.oracle import Way, assert_same, check, every_way, lazy
from tests.samples import contents, opened, opened_tree, stored

CHUNKS = {"cube": {"chunks": (2, 4, 3)}, "plane": {"chunks": (4, 3)}}
SHARDS = {"cube": {"chunks": (1, 2, 2), "shards": (2, 4, 4)}}

Opener = Callable[[], xr.Dataset]


def check_copies(ds: xr.Dataset, way: Way) -> None:
    """Check that a dataset is loaded as plain xarray loads it, whole and in part.

    It is opened once, where opening costs many requests or gives another order each time.
    """
    check(ds.copy, way)
    check(lambda: ds.copy().isel(x=[6, 1], y=slice(None, None, -2)), way)
    check(lambda: ds.copy().isel(x=2, time=0, y=-1), way)


# --- Zarr: formats -------------------------------------------------------------------------------


@pytest.mark.matrix(together=2)
@every_way
@pytest.mark.parametrize("consolidated", [True, False], ids=["consolidated", "plain"])
@pytest.mark.parametrize("kind", ["v2", "v3", "v3 sharded"])
def test_zarr_formats(kind: str, consolidated: bool, way: Way) -> None:
    encoding = SHARDS if kind == "v3 sharded" else CHUNKS
    store = stored(
        samples.numbers(), 2 if kind == "v2" else 3, encoding=encoding, consolidated=consolidated
    )
    check(lambda: opened(store, consolidated=consolidated), way)
    check(lambda: opened(store, consolidated=consolidated).isel(x=[5, 0], time=3), way)


@every_way
@pytest.mark.parametrize("consolidated", [True, False], ids=["consolidated", "plain"])
def test_zarr_trees(consolidated: bool, way: Way) -> None:
    store = stored(samples.tree(), consolidated=consolidated)
    check(lambda: opened_tree(store, consolidated=consolidated), way)


def codecs() -> dict[str, dict[str, Any]]:
    from zarr.codecs import (
        BloscCodec,
        BytesCodec,
        Crc32cCodec,
        GzipCodec,
        TransposeCodec,
        ZstdCodec,
    )

    return {
        "none": {"compressors": None},
        "gzip": {"compressors": [GzipCodec()]},
        "blosc": {"compressors": [BloscCodec(cname="lz4")]},
        "zstd with a checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
        "big-endian": {"serializer": BytesCodec(endian="big")},
        "transposed": {"filters": [TransposeCodec(order=(1, 0))]},
    }


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("name", codecs())
def test_zarr_codecs(name: str, way: Way) -> None:
    ds = xr.Dataset({"a": (("y", "x"), np.arange(70.0).reshape(7, 10))})
    store = stored(ds, encoding={"a": {"chunks": (3, 4), **codecs()[name]}})
    check(lambda: opened(store), way)
    check(lambda: opened(store).isel(y=[6, 2], x=slice(None, None, -3)), way)


@every_way
@pytest.mark.parametrize("location", ["start", "end"])
def test_partly_written_shards(location: Any, way: Way) -> None:
    store = MemoryStore()
    group = zarr.create_group(store)
    array = group.create_array(
        "a",
        shape=(24, 10),
        shards={"shape": (8, 10), "index_location": location},
        chunks=(2, 5),
        dtype="i4",
        fill_value=-1,
        dimension_names=["y", "x"],
    )
    array[2:5, 3:6] = 7
    array[20] = 8
    options = {"consolidated": False, "mask_and_scale": False}
    check(lambda: opened(store, **options), way)
    check(lambda: opened(store, **options).isel(y=slice(3, 22, 4)), way)
    check(lambda: opened(store, **options).isel(y=[21, 4], x=[3, 9]), way)
    check(lambda: opened(store, **options).isel(y=slice(9, 15)), way)


# --- Zarr: stores --------------------------------------------------------------------------------

KEY = {"key": "testing", "secret": "testing"}


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """A S3 server on this machine; yields the options with which fsspec reaches it."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {**KEY, "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    server.stop()


def open_path(directory: Path) -> Opener:
    samples.numbers().to_zarr(directory / "a.zarr", encoding=CHUNKS)
    return lambda: opened(str(directory / "a.zarr"))


def open_path_of_zip(directory: Path) -> Opener:
    with ZipStore(directory / "a.zip", mode="w") as store:
        samples.numbers().to_zarr(store, encoding=CHUNKS)
    return lambda: opened(ZipStore(directory / "a.zip", mode="r"))


def open_local_store(directory: Path) -> Opener:
    samples.numbers().to_zarr(LocalStore(directory / "a"), encoding=CHUNKS)
    return lambda: opened(LocalStore(directory / "a", read_only=True))


def open_obstore_memory(directory: Path) -> Opener:
    obstore = pytest.importorskip("obstore")
    store = ObjectStore(obstore.store.MemoryStore())
    samples.numbers().to_zarr(store, encoding=CHUNKS)
    return lambda: opened(store)


def open_obstore_local(directory: Path) -> Opener:
    obstore = pytest.importorskip("obstore")
    samples.numbers().to_zarr(directory / "a.zarr", encoding=SHARDS)
    return lambda: opened(
        ObjectStore(obstore.store.LocalStore(str(directory / "a.zarr")), read_only=True)
    )


def open_icechunk(directory: Path) -> Opener:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(directory)))
    session = repository.writable_session("main")
    samples.numbers().to_zarr(session.store, encoding=CHUNKS, consolidated=False)
    session.commit("numbers")
    return lambda: opened(repository.readonly_session("main").store, consolidated=False)


LOCAL = [
    open_path,
    open_path_of_zip,
    open_local_store,
    open_obstore_memory,
    open_obstore_local,
    open_icechunk,
]


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("prepare", LOCAL, ids=lambda function: function.__name__)
def test_zarr_stores(prepare: Callable[[Path], Opener], tmp_path: Path, way: Way) -> None:
    check_copies(prepare(tmp_path)(), way)


FORMATS = {
    "v2": contents(stored(samples.numbers(), 2, encoding=CHUNKS)),
    "v3": contents(stored(samples.numbers(), 3, encoding=CHUNKS)),
    "sharded": contents(stored(samples.numbers(), 3, encoding=SHARDS)),
}


@pytest.fixture
def http() -> Iterator[str]:
    """A HTTP server with a dataset in each of `FORMATS`; yields its URL."""
    with ObjectServer() as server:
        for name, objects in FORMATS.items():
            for key, data in objects.items():
                server.put(f"{name}/{key}", data)
        yield server.url


@pytest.fixture(scope="module")
def bucket(s3: dict[str, Any]) -> str:
    """A bucket with a dataset in each of `FORMATS`; its URL."""
    s3fs = pytest.importorskip("s3fs")
    filesystem = s3fs.S3FileSystem(**s3)
    filesystem.mkdir("datasets")
    for name, objects in FORMATS.items():
        filesystem.pipe({f"datasets/{name}/{key}": data for key, data in objects.items()})
    return "s3://datasets"


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("name", FORMATS)
def test_http_urls(name: str, http: str, way: Way) -> None:
    check_copies(opened(f"{http}/{name}"), way)


@pytest.mark.matrix(together=0)
@every_way
@pytest.mark.parametrize("name", FORMATS)
def test_s3_urls(name: str, s3: dict[str, Any], bucket: str, way: Way) -> None:
    check_copies(opened(f"{bucket}/{name}", storage_options=s3), way)


@pytest.mark.matrix(together=0)
@every_loop
async def test_a_url_opened_by_plain_code_is_awaited_on_any_loop(
    http: str, s3: dict[str, Any], bucket: str
) -> None:
    # xarray's blocking calls in a running loop, as a notebook makes them.
    datasets = [opened(f"{http}/v3"), opened(f"{bucket}/v3", storage_options=s3)]
    assert lazy(datasets)
    for ds in await aioxarray.load_async(datasets):
        xr.testing.assert_identical(ds, samples.numbers())


# --- files ---------------------------------------------------------------------------------------

ENGINES = ["netcdf4", "h5netcdf", "scipy"]
every_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def netcdf(engine: str, tmp_path: Path) -> Iterator[Opener]:
    """A file with numbers and with values in encoded form; yields what opens it."""
    # Files of netCDF 3 have no 64-bit integers; complex numbers none.
    numbers = samples.numbers().drop_vars("complex")
    # A variable of texts makes the library of netCDF4 crash once h5py is imported, without
    # aioxarray too; numbers only.
    values, encoding = samples.decoded()
    values = values.drop_vars(["swapped", "unsigned"])
    encoding = {name: each for name, each in encoding.items() if name in values}
    ds = numbers.drop_vars("time").merge(values.rename(time="t"))
    path = tmp_path / "a.nc"
    ds.to_netcdf(path, engine=engine, encoding=encoding)  # type: ignore[call-overload]
    files: list[xr.Dataset] = []

    def open_lazily() -> xr.Dataset:
        files.append(xr.open_dataset(path, engine=engine))
        return files[-1]

    yield open_lazily
    for file in files:
        file.close()


@pytest.mark.matrix(together=1)
@every_way
@every_engine
def test_netcdf(netcdf: Opener, way: Way) -> None:
    check(netcdf, way)


@pytest.mark.matrix(together=1)
@every_way
@every_engine
def test_parts_of_netcdf(netcdf: Opener, way: Way) -> None:
    check(lambda: netcdf().isel(x=[6, 1, 1], y=slice(None, None, -2)), way)
    check(lambda: netcdf().isel(x=3, y=0, time=-1, t=1), way)
    p = {"x": xr.DataArray([1, 5], dims="p"), "y": xr.DataArray([3, 0], dims="p")}
    check(lambda: netcdf().isel(p), way)
    check(lambda: netcdf().sel(x=[30, 40]).transpose(), way)
    check(lambda: netcdf().isel(x=slice(0)), way)


@every_way
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_netcdf_trees(engine: Any, tmp_path: Path, way: Way) -> None:
    samples.tree().to_netcdf(tmp_path / "a.nc", engine=engine)
    with xr.open_datatree(tmp_path / "a.nc", engine=engine) as one:
        with xr.open_datatree(tmp_path / "a.nc", engine=engine) as other:
            trees = [one, other]
            check(trees.pop, way)


@every_way
def test_netcdf_in_memory(way: Way) -> None:
    data = bytes(samples.numbers().drop_vars("complex").to_netcdf(engine="h5netcdf"))
    with xr.open_dataset(data, engine="h5netcdf") as ds:
        check_copies(ds, way)


@every_loop
async def test_netcdf_on_every_loop(tmp_path: Path) -> None:
    ds = samples.numbers().drop_vars("complex")
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as file:
        assert lazy(file)
        xr.testing.assert_identical(await aioxarray.load_async(file), ds)


@every_way
def test_grib(tmp_path: Path, way: Way) -> None:
    pytest.importorskip("cfgrib")
    eccodes = pytest.importorskip("eccodes")
    path = tmp_path / "a.grib"
    with path.open("wb") as file:
        for step in (0, 6):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            eccodes.codes_set(message, "step", step)
            count = eccodes.codes_get(message, "numberOfDataPoints")
            eccodes.codes_set_values(message, np.linspace(200.0, 300.0, count) + step)
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)

    def open_lazily() -> xr.Dataset:
        return xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""})

    got = check(open_lazily, way)
    assert sum(variable.size for variable in got.data_vars.values()) > 100
    check(lambda: open_lazily().isel(step=1, latitude=slice(2, 5), longitude=[1, 0]), way)


# --- third-party backends ------------------------------------------------------------------------


class Blocking(BackendArray):
    """A third party's array: blocking reads, of one thread at a time where there is a lock."""

    seen_in: ClassVar[list[str]] = []

    def __init__(self, values: Any, lock: Any = None) -> None:
        self.values = values
        self.shape = values.shape
        self.dtype = values.dtype
        if lock is not None:
            self.lock = lock

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        self.seen_in.append(threading.current_thread().name)
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER_1VECTOR, self.read)

    def read(self, key: tuple[Any, ...]) -> Any:
        outer = tuple(np.array([k]) if isinstance(k, int | np.integer) else k for k in key)
        drop = tuple(axis for axis, k in enumerate(key) if isinstance(k, int | np.integer))
        rest = self.values
        for axis, k in enumerate(outer):
            rest = rest[(slice(None),) * axis + (k,)]
        return rest.squeeze(axis=drop)


class Asynchronous(Blocking):
    """The same with an asynchronous read; the blocking one would be a mistake."""

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        raise AssertionError("read by the blocking call")

    async def async_getitem(self, key: ExplicitIndexer) -> Any:
        self.seen_in.append("async")
        await asyncio.sleep(0)
        return Blocking.__getitem__(self, key)


class Hesitant(Blocking):
    """Says only when asked that it cannot."""

    async def async_getitem(self, key: ExplicitIndexer) -> Any:
        self.seen_in.append("async")
        raise NotImplementedError


class Locked(Blocking):
    """Is read by one thread at a time."""

    inside: ClassVar[int] = 0
    most_inside: ClassVar[int] = 0

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        Locked.inside += 1
        Locked.most_inside = max(Locked.inside, Locked.most_inside)
        try:
            with self.lock:
                return super().__getitem__(key)
        finally:
            Locked.inside -= 1


class ThirdParty(BackendEntrypoint):
    """Opens a dataset in memory as if it were a file."""

    def open_dataset(  # type: ignore[override]
        self, filename_or_obj: Any, *, drop_variables: Any = None, kind: Any, lock: Any = None
    ) -> xr.Dataset:
        from xarray.core.indexing import LazilyIndexedArray

        ds: xr.Dataset = filename_or_obj
        lazily = {
            # Indexes are built when the dataset is opened.
            name: v
            if name in ds.indexes
            else (v.dims, LazilyIndexedArray(kind(v.values, lock)), v.attrs, v.encoding)
            for name, v in ds.variables.items()
        }
        return xr.Dataset(lazily).set_coords(list(ds.coords))


@every_way
@pytest.mark.parametrize("kind", [Blocking, Asynchronous, Hesitant])
def test_third_party_backends(kind: type[Blocking], way: Way) -> None:
    reference = samples.numbers()

    def open_lazily(kind: type[Blocking]) -> xr.Dataset:
        return xr.open_dataset(reference, engine=ThirdParty, kind=kind)

    selections: list[Callable[[xr.Dataset], xr.Dataset]] = [
        lambda ds: ds,
        lambda ds: ds.isel(x=[5, 1], y=2),
        lambda ds: ds.isel(x=slice(None, None, -2), time=[0, 3]).transpose(),
    ]
    for select in selections:
        expected = select(open_lazily(Blocking)).load()
        ds = select(open_lazily(kind))
        was = lazy(ds)
        Blocking.seen_in.clear()
        assert_same(way(ds), expected)
        if not way.in_place:
            assert lazy(ds) == was
        # Never in the caller's thread, nor in that of the loop that carries the requests.
        threads = set(Blocking.seen_in) - {"async"}
        assert ("async" in Blocking.seen_in) == (kind is not Blocking)
        if kind is not Asynchronous:
            assert threads
            assert threading.current_thread().name not in threads
            assert "zarr_io" not in threads


@every_way
def test_a_backend_with_a_lock_keeps_one_thread(way: Way) -> None:
    ds = xr.Dataset({f"v{n}": ("x", np.arange(100) + n) for n in range(40)})
    lazily = xr.open_dataset(ds, engine=ThirdParty, kind=Locked, lock=threading.Lock())
    Locked.most_inside = 0
    xr.testing.assert_identical(way(lazily), ds)
    assert Locked.most_inside == 1


# --- chunked data --------------------------------------------------------------------------------


def chunked() -> xr.Dataset:
    return samples.numbers().chunk({"x": 3, "time": 2})


def mixed(store: Any) -> xr.Dataset:
    """Part lazy, part dask, part in memory, with each in the coordinates too."""
    ds = opened(store)
    ds["cube"] = ds.cube.copy().chunk({"time": 2})
    ds["new"] = ("x", np.arange(samples.X))
    return ds.assign_coords(
        twice=2 * samples.numbers().height.chunk({"y": 2}), known=("y", np.arange(samples.Y))
    )


@every_way
def test_dask(way: Way) -> None:
    got = check(chunked, way)
    assert isinstance(got.cube.data, np.ndarray)
    check(lambda: chunked().cube.isel(x=[4, 0]).variable, way)
    check(lambda: [chunked().cube.mean("x"), {"a": chunked().plane + 1}], way)


@every_way
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_schedulers_of_dask(scheduler: str, way: Way) -> None:
    import dask

    with dask.config.set(scheduler=scheduler):
        check(chunked, way)


@every_way
def test_zarr_as_dask(way: Way) -> None:
    store = stored(samples.numbers(), encoding=CHUNKS)
    check(lambda: opened(store, chunks={}), way)
    check(lambda: opened(store, chunks={}).isel(x=[5, 1]), way)


@every_way
def test_mixed_datasets(way: Way) -> None:
    store = stored(samples.numbers())
    got = check(lambda: mixed(store), way)
    xr.testing.assert_identical(got.drop_vars(["twice", "known", "new"]), samples.numbers())


@every_way
def test_mixed_trees(way: Way) -> None:
    store = stored(samples.numbers())

    def tree() -> xr.DataTree:
        return xr.DataTree.from_dict({"/": mixed(store)[["line"]], "/a": mixed(store)})

    check(tree, way)


@every_way
def test_dask_data_that_two_share_is_computed_once(way: Way) -> None:
    import dask.array as da
    from dask.delayed import delayed

    calls: list[int] = []

    def values() -> Any:
        calls.append(1)
        return np.arange(10)

    data = da.from_delayed(delayed(values)(), (10,), dtype="i8")
    got = way({"a": xr.DataArray(data, dims="x"), "b": [xr.Dataset({"v": ("x", data)})]})
    assert got["b"][0].v.values.tolist() == got["a"].values.tolist() == list(range(10))
    assert calls == [1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@every_way
def test_distributed_client(cluster: Any, way: Way) -> None:
    from distributed import Client

    store = stored(samples.numbers())
    with Client(cluster):
        check(chunked, way)
        check(lambda: mixed(store), way)


def test_asynchronous_distributed_client(cluster: Any) -> None:
    from distributed import Client

    store = stored(samples.numbers())
    expected = mixed(store).load()

    async def main() -> None:
        ds = mixed(store)
        was = lazy(ds)
        async with Client(cluster.scheduler_address, asynchronous=True):
            assert_same(await aioxarray.compute_async(ds), expected)
            assert lazy(ds) == was
            assert await aioxarray.load_async(ds) is ds
            assert_same(ds, expected)

    asyncio.run(main())


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["v2", "v3", "v3 sharded"])
def test_all_requests_are_reads_of_chunks(kind: str) -> None:
    encoding = SHARDS if kind == "v3 sharded" else CHUNKS
    store = stored(samples.numbers(), 2 if kind == "v2" else 3, encoding=encoding)
    recording = RecordingStore(store)
    ds = opened(recording)
    recording.log.clear()
    aioxarray.load(ds)
    assert {request.method for request in recording.log.requests} == {"get"}
    metadata = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
    assert not [r.key for r in recording.log.requests if r.key.endswith(metadata)]
