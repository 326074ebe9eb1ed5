"""``load(obj, out=…)``: values are read into arrays that the caller brings, and are the same."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numcodecs
import numcodecs.abc
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._runtime.loops import io_loop, run_on
from aioxarray._runtime.threads.lent import Lent
from aioxarray.testing import FaultyStore, GatedStore, RecordingStore
from tests import samples
from tests.oracle import lazy
from tests.samples import opened, stored, stored_once

LOADS = [
    pytest.param(aioxarray.load, id="load"),
    pytest.param(lambda obj, **kw: asyncio.run(aioxarray.load_async(obj, **kw)), id="load_async"),
]
on_asyncio = pytest.mark.anyio
every_load = pytest.mark.parametrize("load", LOADS)


def empty_like(ds: xr.Dataset, order: Any = "C") -> dict[Any, np.ndarray[Any, Any]]:
    """Return arrays for all variables of ``ds`` without an index."""
    return {
        name: np.empty(variable.shape, variable.dtype, order)
        for name, variable in ds.variables.items()
        if not isinstance(variable, xr.IndexVariable)
    }


def check(open_lazily: Callable[[], xr.Dataset], load: Any, order: Any = "C") -> None:
    """Check that all of a dataset is loaded into arrays, as xarray itself loads it."""
    expected = open_lazily().load()
    ds = open_lazily()
    out = empty_like(ds, order)
    assert load(ds, out=out) is ds
    xr.testing.assert_identical(ds, expected)
    for name, array in out.items():
        assert ds[name].variable._data is array
        assert array.dtype == expected[name].dtype
    assert not lazy(ds)


def cube(**encoding: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    values = np.random.default_rng(3).normal(size=(6, 40, 50)).astype("f4")
    ds = xr.Dataset(
        {"a": (("time", "y", "x"), values), "b": (("y", "x"), values[0].astype("f8"))},
        {"time": np.arange(6), "area": ("y", np.arange(40.0))},
    )
    return ds, {"encoding": {"a": {"chunks": (1, 40, 25), **encoding}}}


def packed() -> xr.Dataset:
    return samples.decoded()[0]


def packed_store() -> MemoryStore:
    ds, encoding = samples.decoded()
    return stored(ds, encoding=encoding)


ENCODINGS: dict[str, dict[str, Any]] = {
    "raw": {},
    "not compressed": {"compressors": None},
    "sharded": {"chunks": (1, 20, 25), "shards": (2, 40, 50)},
    "packed": {"dtype": "i2", "scale_factor": 0.001, "_FillValue": -32768},
}


@every_load
@pytest.mark.parametrize("name", ENCODINGS)
def test_zarr(name: str, load: Any) -> None:
    ds, options = cube(**ENCODINGS[name])
    store = stored(ds, **options)
    check(lambda: opened(store), load)
    check(lambda: opened(RecordingStore(store)), load)
    # Slices, single elements, other orders of memory, points, and what only zarr's indexing reads.
    check(lambda: opened(store).isel(y=slice(3, 39, 2), time=4), load)
    check(lambda: opened(store), load, "F")
    at = xr.DataArray([1, 5, 5, 0], dims="point")
    check(lambda: opened(store).isel(time=at, y=at, x=at), load)
    check(lambda: opened(store).isel(y=[7, 2], x=slice(None, None, -3)), load)


@every_load
@pytest.mark.parametrize("make", [samples.numbers, samples.texts, samples.empty, packed])
def test_every_kind_of_variable(make: Any, load: Any) -> None:
    store = packed_store() if make is packed else stored_once(make)
    check(lambda: opened(store), load)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
@every_load
def test_netcdf(engine: Any, load: Any, tmp_path: Path) -> None:
    ds, _ = cube()
    ds.to_netcdf(tmp_path / "a.nc", engine=engine)
    with xr.open_dataset(tmp_path / "a.nc", engine=engine) as plain:
        check(lambda: plain.copy(), load)


@pytest.mark.parametrize("chunks", [{}, {"time": 2}, {"time": 1}])
@every_load
def test_dask(chunks: Any, load: Any) -> None:
    ds, options = cube()
    store = stored(ds, **options)
    check(lambda: xr.open_zarr(store, chunks=chunks), load)
    large = xr.Dataset({"a": (("y", "x"), np.arange(2e6).reshape(1000, 2000))})
    check(lambda: large.chunk({"y": 100}), load)


@every_load
def test_joined_files(load: Any, tmp_path: Path) -> None:
    ds = cube()[0].drop_vars(["area", "b"])
    for step in range(3):
        part = ds.isel(time=slice(2 * step, 2 * step + 2))
        part.to_zarr(tmp_path / f"{step}.zarr", zarr_format=2)
    paths = sorted(tmp_path.glob("*.zarr"))

    def together() -> xr.Dataset:
        return aioxarray.open_mfdataset(paths, engine="zarr", chunks=None)

    check(together, load)
    check(lambda: together().isel(time=slice(1, 5), y=3), load)
    check(lambda: together().isel(time=[4, 1], x=slice(None, None, -1)), load)


@every_load
def test_values_in_memory_are_copied(load: Any) -> None:
    ds, _ = cube()
    before = ds.copy(deep=True)
    held = ds.a.values
    out = empty_like(ds)
    load(ds, out=out)
    xr.testing.assert_identical(ds, before)
    assert all(ds[name].variable._data is array for name, array in out.items())
    assert not np.shares_memory(held, out["a"])
    # Once more, with the values where they should be.
    load(ds, out=out)
    xr.testing.assert_identical(ds, before)
    # No bytes count that are in memory already.
    load(before, out=empty_like(ds), max_bytes=0)


def test_more_small_variables_than_are_read_one_by_one() -> None:
    ds = xr.Dataset({f"v{i}": ("x", np.arange(5.0) + i) for i in range(60)})
    store = stored(ds)
    check(lambda: opened(store), aioxarray.load)


def test_variables_and_data_arrays() -> None:
    ds, options = cube()
    store = stored(ds, **options)
    out = np.empty(ds.a.shape, "f4")
    array = opened(store).a
    assert aioxarray.load(array, out=out) is array
    assert array.variable._data is out
    xr.testing.assert_identical(array, ds.a)
    again = np.empty_like(out)
    variable = opened(store).a.variable
    variable_loaded = aioxarray.load(variable, out=again)
    assert variable_loaded._data is again
    np.testing.assert_array_equal(again, ds.a)
    method = opened(store).a
    method.aio.load(out=out)
    assert method.variable._data is out


def test_other_variables_are_loaded_as_always() -> None:
    ds, options = cube()
    lazily = opened(stored(ds, **options))
    out = np.empty(ds.a.shape, "f4")
    aioxarray.load(lazily, out={"a": out})
    xr.testing.assert_identical(lazily, ds)
    assert not lazy(lazily)


def test_the_array_belongs_to_one_variable() -> None:
    """Copies stay lazy, and variables of the same data get memory of their own."""
    ds, options = cube()
    lazily = opened(stored(ds, **options))
    copied = lazily.copy()
    out = np.empty(ds.a.shape, "f4")
    aioxarray.load(lazily.copy(), out={"a": out})
    assert "['a']" in lazy(lazily)
    lazily["same"] = lazily.a
    aioxarray.load(lazily, out={"a": out})
    assert lazily.a.variable._data is out
    assert not np.shares_memory(lazily["same"].values, out)
    out[:] = 0
    np.testing.assert_array_equal(lazily["same"], ds.a)
    np.testing.assert_array_equal(copied.a, ds.a)
    copied = opened(stored(ds, **options))
    copied["same"] = copied.a
    both = {"a": np.empty_like(out), "same": np.empty_like(out)}
    aioxarray.load(copied, out=both)
    np.testing.assert_array_equal(both["a"], ds.a)
    np.testing.assert_array_equal(both["same"], ds.a)


class Interface:
    """An array of a library that numpy knows by ``__array_interface__``."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Exchanged:
    """An array of a library that numpy knows by DLPack, in memory of a given kind."""

    def __init__(self, array: np.ndarray[Any, Any], device: int = 1) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array


class ExchangedOfOld(Exchanged):
    """The same by a version of DLPack that does not tell whether it may be written to."""

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()


def test_arrays_of_other_libraries() -> None:
    ds = xr.Dataset({"a": ("x", np.arange(6.0))})
    store = stored(ds)
    memory = np.empty(6)
    buffer = (ctypes.c_double * 6)()
    # Every second element of an array.
    strided = np.empty(12)[::2]
    others: list[Any] = [Interface(memory), memory.data, buffer, strided]
    others += [Exchanged(memory), ExchangedOfOld(memory)]
    for given in others:
        memory[:] = -1
        array = aioxarray.load(opened(store).a, out=given)
        np.testing.assert_array_equal(array, ds.a)
        shared = memory if isinstance(given, Interface | Exchanged | memoryview) else given
        assert np.shares_memory(array.values, np.asarray(shared))
        np.testing.assert_array_equal(np.asarray(shared), ds.a)


def test_shared_memory() -> None:
    ds, options = cube()
    block = shared_memory.SharedMemory(create=True, size=ds.a.nbytes)
    try:
        out = np.ndarray(ds.a.shape, "f4", block.buf)
        aioxarray.load(opened(stored(ds, **options)), out={"a": out})
        other = shared_memory.SharedMemory(block.name)
        np.testing.assert_array_equal(np.ndarray(ds.a.shape, "f4", other.buf), ds.a)
        other.close()
        del out
    finally:
        block.unlink()


@every_load
def test_what_does_not_fit_is_refused_before_any_request(load: Any) -> None:
    ds, options = cube()
    store = RecordingStore(stored(ds, **options))
    lazily = opened(store)
    was = lazy(lazily)
    store.log.clear()
    a = np.zeros(ds.a.shape, "f4")
    locked = a.copy()
    locked.flags.writeable = False
    repeated = np.lib.stride_tricks.as_strided(a, ds.a.shape, (0, 200, 4), writeable=True)
    both = np.empty(40 * 50 * 6 + 100, "f8")
    one = both[:6000].view("f4").reshape(6, 40, 50)
    two = both[5000:7000].reshape(40, 50)
    for out, error, match in (
        (a, TypeError, "mapping of names"),
        ({"aera": a}, ValueError, "no such variable; did you mean 'area'"),
        ({"time": np.empty(6, "i8")}, ValueError, "index holds the values"),
        ({"a": a[0]}, ValueError, r"shape \(40, 50\), and its variable \(6, 40, 50\)"),
        ({"a": a.astype("f8")}, TypeError, "dtype float64, and its variable float32"),
        ({"a": a.astype(">f4")}, TypeError, "not converted"),
        ({"a": locked}, ValueError, "read-only"),
        ({"a": b"\0" * 4}, ValueError, "shape"),
        ({"a": repeated}, ValueError, "share one place"),
        ({"a": a.tolist()}, TypeError, "got list"),
        ({"a": ds.a}, TypeError, "got DataArray"),
        ({"a": np.ma.MaskedArray(a)}, TypeError, "plain numpy"),
        ({"a": Exchanged(a, device=2)}, TypeError, "not in memory of the CPU"),
        ({"a": one, "b": two}, ValueError, r"out\['b'\] overlaps out\['a'\]"),
    ):
        with pytest.raises(error, match=match):
            load(lazily, out=out)
    with pytest.raises(TypeError, match="one array"):
        load(lazily.a, out={"a": a})
    with pytest.raises(TypeError, match="one by one"):
        load([lazily], out=a)
    with pytest.raises(TypeError, match="one by one"):
        load(xr.DataTree(lazily), out={"a": a})
    assert store.log.requests == ()
    assert lazy(lazily) == was
    # Those that interleave do not overlap.
    pairs = np.empty((40, 50, 2))
    lazily["c"] = lazily.b
    load(lazily, out={"b": pairs[..., 0], "c": pairs[..., 1]})
    np.testing.assert_array_equal(pairs[..., 0], ds.b)
    np.testing.assert_array_equal(pairs[..., 1], ds.b)


def test_the_memory_of_other_values_is_refused() -> None:
    ds = xr.Dataset({"a": ("x", np.arange(4.0)), "b": ("x", np.arange(4.0))})
    with pytest.raises(ValueError, match="out\\['a'\\] overlaps the values of variable 'b'"):
        aioxarray.load(ds, out={"a": ds.b.values})


def test_a_backend_that_declares_another_dtype() -> None:
    import dask.array

    wrong = dask.array.from_delayed(
        dask.delayed(np.zeros)(4, "f8"),  # type: ignore[attr-defined]
        (4,),
        "f4",
    )
    array = xr.DataArray(wrong, dims="x")
    with pytest.raises(TypeError, match="loaded with the dtype float64"):
        aioxarray.load(array, out=np.empty(4, "f4"))
    assert lazy(array)


def test_the_same_requests() -> None:
    for name in ENCODINGS:
        ds, options = cube(**ENCODINGS[name])
        logs = []
        for with_out in (False, True):
            store = RecordingStore(stored(ds, **options))
            lazily = opened(store)
            store.log.clear()
            aioxarray.load(lazily, out=empty_like(lazily) if with_out else None)
            logs.append(sorted((each.key, str(each.byte_range)) for each in store.log.requests))
        assert logs[0] == logs[1] != []


def test_the_cache_keeps_its_own_values() -> None:
    ds, options = cube()
    store = stored(ds, **options)
    out = np.empty(ds.a.shape, "f4")
    with aioxarray.config.set(cache="64MiB"):
        for _ in range(2):
            out[:] = 0
            aioxarray.load(opened(store).a, out=out)
            np.testing.assert_array_equal(out, ds.a)


@pytest.mark.parametrize("name", ["raw", "not compressed", "sharded", "packed", "joined", "dask"])
def test_no_second_copy(name: str, tmp_path: Path) -> None:
    values = np.arange(16 << 20, dtype="u1").reshape(64, 512, 512)
    ds = xr.Dataset({"a": (("time", "y", "x"), values)})
    encoding: dict[str, Any] = {"chunks": (1, 512, 512)}
    if name == "not compressed":
        encoding["compressors"] = None
    if name == "sharded":
        encoding = {"chunks": (1, 128, 512), "shards": (1, 512, 512)}
    if name == "packed":
        encoding |= {"dtype": "u1", "scale_factor": 1.0, "add_offset": 1.0, "_FillValue": 255}
        ds = ds.astype("f4") % 250 + 1
    if name == "joined":
        for half in range(64):
            part = ds.isel(time=slice(half, half + 1))
            part.to_zarr(tmp_path / f"{half:02}.zarr", zarr_format=2, encoding={"a": encoding})
        paths = sorted(tmp_path.glob("*.zarr"))
        lazily = aioxarray.open_mfdataset(
            paths, engine="zarr", chunks=None, combine="nested", concat_dim="time"
        )
    else:
        store = LocalStore(tmp_path)
        ds.to_zarr(store, encoding={"a": encoding}, consolidated=False)
        chunks: Any = {"time": 2} if name == "dask" else None
        lazily = xr.open_zarr(store, chunks=chunks, consolidated=False)
    out = np.empty(values.shape, lazily.a.dtype)
    aioxarray.load(lazily.isel(time=slice(0, 4)).a, out=out[:4])
    tracemalloc.start()
    try:
        aioxarray.load(lazily, out={"a": out})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(out, ds.a)
    # Chunks in flight, and not the result. The parts of joined files are read into arrays of
    # their own.
    # Packed values are read as they are, of a quarter of the size or less.
    assert peak < out.nbytes * (1.25 if name == "joined" else 0.5)


def test_a_failed_load_leaves_the_object_lazy() -> None:
    ds, options = cube()
    store = FaultyStore(stored(ds, **options), lambda *_: RuntimeError("no"), keys="a/c/3/*")
    lazily = opened(store)
    was = lazy(lazily)
    out = np.empty(ds.a.shape, "f4")
    with pytest.raises(RuntimeError, match="no"):
        aioxarray.load(lazily, out={"a": out})
    assert lazy(lazily) == was


class Waiting(numcodecs.abc.Codec):  # type: ignore[misc]  # numcodecs is untyped
    """A compressor whose decoding waits until a test lets it go on."""

    codec_id = "waiting"
    begun = threading.Event()
    go_on = threading.Event()
    ended: list[str] = []  # noqa: RUF012 - shared by all instances on purpose

    def encode(self, buf: Any) -> Any:
        return bytes(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        self.begun.set()
        assert self.go_on.wait(30)
        self.ended.append("decoding")
        return bytes(buf)


numcodecs.register_codec(Waiting)


@on_asyncio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_is_written_after_the_end() -> None:
    ds = xr.Dataset({"a": ("x", np.arange(400_000.0))})
    encoding = {"a": {"chunks": (100_000,), "compressors": Waiting()}}
    # A store of coroutines: its chunks are decoded by threads for which a cancelled load does not
    # wait otherwise.
    lazily = opened(RecordingStore(stored(ds, 2, encoding=encoding)))
    out = np.full(400_000, -1.0)

    async def load() -> None:
        try:
            await aioxarray.load_async(lazily, out={"a": out})
        finally:
            Waiting.ended.append("load")

    task = asyncio.create_task(load())
    await asyncio.to_thread(Waiting.begun.wait, 30)
    task.cancel()
    for _ in range(50):
        # Long enough for all that the cancellation ends on this loop and on that of the requests.
        await run_on(io_loop(), partial(asyncio.sleep, 0))
    assert not task.done()
    Waiting.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    # A decoding that went on, and had permission to write, has ended.
    assert Waiting.ended[0] == "decoding"
    assert lazy(lazily)
    await aioxarray.load_async(lazily, out={"a": out})
    np.testing.assert_array_equal(out, ds.a)


@on_asyncio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_at_a_gate() -> None:
    ds, options = cube()
    gate = GatedStore(stored(ds, **options), keys="a/c/*")
    lazily = opened(gate)
    was = lazy(lazily)
    out = np.empty(ds.a.shape, "f4")
    task = asyncio.create_task(aioxarray.load_async(lazily, out={"a": out}))
    await gate.requested("a/c/*", 12)
    gate.release(gate.waiting[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lazy(lazily) == was
    gate.release_all()
    aioxarray_loaded = await aioxarray.load_async(lazily, out={"a": out})
    xr.testing.assert_identical(aioxarray_loaded, ds)


@on_asyncio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_lent_memory() -> None:
    lent = Lent()
    inside, leave = threading.Event(), threading.Event()

    def write() -> bool:
        with lent.writing() as outer, lent.writing() as inner:
            inside.set()
            assert leave.wait(30)
            return outer and inner

    writer = asyncio.create_task(asyncio.to_thread(write))
    await asyncio.to_thread(inside.wait, 30)
    ending = asyncio.create_task(lent.end())
    await asyncio.sleep(0)
    assert not ending.done()
    # Cancelling does not shorten the wait.
    ending.cancel()
    await asyncio.sleep(0)
    assert not ending.done()
    with lent.writing() as may_write:
        assert not may_write
    leave.set()
    assert await writer
    await asyncio.wait([ending])
    await lent.end()
