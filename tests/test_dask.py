"""Dask data: equal names of different data, values put together from odd blocks, early ends."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import FaultyStore, GatedStore, Request
from tests.oracle import Way, assert_same, every_way, mapped, plainly_computed
from tests.samples import stored

# A gigabyte and a few bytes are put together alike, but only this much and more block by block.
LARGE = (4 << 20) // 8

PATHS = ("/a", "/a/b", "/c")


# --- equal names ---------------------------------------------------------------------------------


def groups() -> dict[str, xr.Dataset]:
    """Open groups with the same variables with plain xarray, which gives them the same names."""
    tree = xr.DataTree.from_dict(
        {path: xr.Dataset({"v": ("x", np.arange(6) + 10 * n)}) for n, path in enumerate(PATHS)}
    )
    encoding = {path: {"v": {"chunks": (2,)}} for path in PATHS}
    store: Any = stored(tree, encoding=encoding)
    opened = xr.open_groups(store, engine="zarr", chunks={})
    chosen = {path: opened[path] for path in PATHS}
    assert len({ds.v.data.name for ds in chosen.values()}) == 1, "the names differ by now"
    return chosen


@pytest.fixture(params=["as opened", "derived", "rechunked", "optimized", "in memory"])
def same_names(request: pytest.FixtureRequest) -> dict[str, xr.Dataset]:
    """Different data of the same names."""
    makes: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
        "as opened": lambda ds: ds,
        "derived": lambda ds: ds + ds.isel(x=[5, 0, 1, 1, 2, 3]).mean(),
        "rechunked": lambda ds: ds.chunk(x=3) * 2,
        "optimized": lambda ds: dask.base.optimize(ds + 1)[0],
        "in memory": lambda ds: (ds + 1).persist(),
    }
    made = {path: makes[request.param](ds) for path, ds in groups().items()}
    assert len({ds.v.data.name for ds in made.values()}) == 1
    return made


@every_way
def test_equal_names_of_different_data(same_names: dict[str, xr.Dataset], way: Way) -> None:
    expected = plainly_computed(same_names)
    copies = mapped(same_names, lambda ds: ds.copy())
    assert_same(way(copies), expected)
    tree = xr.DataTree.from_dict(same_names)
    xr.testing.assert_identical(way(tree), xr.DataTree.from_dict(expected))
    one = xr.Dataset({path[1:].replace("/", "_"): ds.v for path, ds in same_names.items()})
    sums = [ds.v + 1 for ds in same_names.values()]
    got, got_sums = way((one, sums))
    for path, ds in expected.items():
        xr.testing.assert_equal(got[path[1:].replace("/", "_")].variable, ds.v.variable)
    assert [each.values.tolist() for each in got_sums] == [
        (ds.v.values + 1).tolist() for ds in expected.values()
    ]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("compute", [True, False])
def test_saving_equal_names_of_different_data(
    same_names: dict[str, xr.Dataset], compute: bool, tmp_path: Path
) -> None:
    expected = xr.DataTree.from_dict(plainly_computed(same_names))
    tree = xr.DataTree.from_dict(same_names)
    for node in tree.subtree:
        for variable in node.variables.values():
            variable.encoding.clear()
    store: Any = MemoryStore()
    later = aioxarray.to_zarr(tree, store, compute=compute)
    if not compute:
        later.compute()
    xr.testing.assert_identical(xr.open_datatree(store, engine="zarr").load(), expected)
    aioxarray.to_netcdf(tree, tmp_path / "tree.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_datatree(tmp_path / "tree.nc"), expected)


def test_equal_names_on_a_cluster() -> None:
    distributed = pytest.importorskip("distributed")
    opened = groups()
    expected = plainly_computed(opened)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        assert_same(aioxarray.compute(opened), expected)


def test_names_that_were_given_by_hand() -> None:
    sources = [da.from_array(np.arange(6) + 10 * n, chunks=2, name="given") for n in range(2)]
    functions = [
        da.arange(6, chunks=2).map_blocks(function, name="also given", dtype="i8")
        for function in (np.negative, np.square)
    ]
    got = aioxarray.compute([xr.Variable("x", each) for each in (*sources, *functions)])
    assert [each.values.tolist() for each in got] == [
        [0, 1, 2, 3, 4, 5],
        [10, 11, 12, 13, 14, 15],
        [0, -1, -2, -3, -4, -5],
        [0, 1, 4, 9, 16, 25],
    ]


@every_way
def test_data_in_memory_and_other_data_of_the_same_name(way: Way) -> None:
    opened = groups()
    got = way([(opened["/a"] + 1).persist(), opened["/c"] + 1])
    assert [each.v.values.tolist() for each in got] == [list(range(1, 7)), list(range(21, 27))]


@every_way
def test_common_parts_of_different_data_are_computed_once(way: Way) -> None:
    calls: list[int] = []

    def count(block: Any) -> Any:
        calls.append(1)
        return block

    common = da.arange(6, chunks=6).map_blocks(count, dtype="i8", meta=np.zeros(0, "i8"))
    opened = [xr.Variable("x", ds.v.data.rechunk(6) + common) for ds in groups().values()]
    twice = xr.Variable("x", da.ones(6, chunks=6) * common)
    got = way([*opened, twice, xr.Variable("x", da.ones(6, chunks=6) * common)])
    assert [each.values[0] for each in got] == [0, 10, 20, 0, 0]
    assert calls == [1]


# --- values --------------------------------------------------------------------------------------


def numbers(count: int = LARGE, dtype: Any = "f8") -> Any:
    return da.arange(count, chunks=count // 3, dtype=dtype)


def by_block(function: Callable[[Any, Any], Any], dtype: Any = "f8") -> Any:
    """Make of each block, and where it is, something that dask is not told of."""

    def call(block: Any, block_id: Any = None) -> Any:
        return function(block, block_id[0])

    return numbers().map_blocks(call, dtype=dtype, meta=np.zeros(0, dtype))


def square() -> Any:
    return numbers().reshape(1 << 10, -1).rechunk((300, 200))


ARRAYS: dict[str, Callable[[], Any]] = {
    "numbers": numbers,
    "two dimensions": square,
    "transposed": lambda: square().T,
    "big-endian": lambda: numbers(dtype=">i4"),
    "times": lambda: numbers(dtype="i8").astype("M8[s]"),
    "texts": lambda: numbers(1 << 19, "i4").astype("U8"),
    "texts of a length for each block": lambda: by_block(
        lambda b, at: b.astype(f"U{9 - at}"), "U9"
    ),
    "objects": lambda: numbers().astype(object),
    "structured": lambda: by_block(
        lambda b, _: np.array(list(zip(b, b > 3, strict=True)), "f8,?"), "f8,?"
    ),
    "of unknown size": lambda: numbers()[numbers() > 5],
    "masked": lambda: da.ma.masked_less(numbers(), 5),
    "masked, unannounced": lambda: by_block(lambda b, _: np.ma.masked_less(b, 5)),
    "of another type": lambda: by_block(lambda b, _: b.astype("f4")),
    "of several types": lambda: by_block(lambda b, at: b.astype("f4") if at == 1 else b),
    "with metadata": lambda: by_block(lambda b, _: b.astype(np.dtype("f8", metadata={"a": 1}))),
    "of another shape": lambda: by_block(lambda b, at: b[: at + 1]),
    "a block without values": lambda: by_block(lambda b, at: b[:0] if at == 0 else b),
    "a block of no length": lambda: da.concatenate([da.ones(0), numbers()]),
    "of no dimension": lambda: numbers().sum(),
    "one block": lambda: da.ones(LARGE, chunks=LARGE),
    "no values": lambda: da.ones((0, LARGE), chunks=LARGE // 2),
}


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_kind_of_array(kind: str, scheduler: str) -> None:
    array = ARRAYS[kind]()
    with dask.config.set(scheduler=scheduler):
        lazily = xr.Variable(tuple("yx"[2 - array.ndim :]), array)
        (expected,) = dask.base.compute(array)
        got: Any = aioxarray.compute(lazily)._data
    # As plain xarray takes in what was computed, when it loads a dataset.
    expected = xr.Variable(lazily.dims, expected)._data
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    assert got.dtype.metadata == expected.dtype.metadata
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
    assert np.asarray(got).flags.writeable


def test_blocks_are_let_go_of_one_by_one() -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def make(block: Any) -> Any:
        nonlocal most
        new = block + 1
        alive.append(weakref.ref(new))
        most = max(most, sum(each() is not None for each in alive))
        return new

    array = da.zeros(LARGE, chunks=LARGE // 16).map_blocks(make, dtype="f8", meta=np.zeros(0))
    with dask.config.set(scheduler="synchronous"):
        got = aioxarray.compute(xr.Variable("x", array))
    assert len(alive) == 16
    assert got.values.sum() == LARGE
    assert most <= 2


def test_dask_uses_as_many_threads_as_in_the_main_thread() -> None:
    events: list[str] = []
    callback = dask.callbacks.Callback(
        pretask=lambda *_: events.append("begun"), posttask=lambda *_: events.append("ended")
    )
    count = dask.system.CPU_COUNT + 8
    array = da.ones(count, chunks=1).map_blocks(lambda block: block + 1, dtype="f8")
    with dask.config.set(scheduler="threads"), callback:
        aioxarray.compute(xr.Variable("x", array))
    # The scheduler fills its threads before it looks for what has ended.
    assert events.index("ended") == dask.system.CPU_COUNT


def test_the_result_is_not_the_data_that_dask_holds() -> None:
    held = da.ones(LARGE, chunks=LARGE // 2).persist()
    got = aioxarray.compute(xr.Variable("x", held))
    got.values[:] = 0
    assert held.sum().compute() == LARGE


# --- ends ----------------------------------------------------------------------------------------


def two_chunks() -> tuple[GatedStore, xr.Dataset]:
    """Return a store that fails for one chunk and holds requests, and its data as dask arrays."""
    memory = stored(xr.Dataset({"v": ("x", np.arange(4))}), encoding={"v": {"chunks": (2,)}})

    def fail(index: int, request: Request) -> BaseException | None:
        return OSError("no luck") if request.key == "v/c/0" else None

    gate = GatedStore(FaultyStore(memory, fail), "v/c/*")
    return gate, aioxarray.open_zarr(gate, chunks={})


def test_no_task_reads_on_after_one_has_failed() -> None:
    gate, ds = two_chunks()

    def release() -> None:
        gate.wait_requested("v/c/*", count=2)
        gate.release("v/c/0")

    thread = threading.Thread(target=release)
    thread.start()
    with dask.config.set(num_workers=2), pytest.raises(OSError, match="no luck"):
        aioxarray.load(ds)
    assert gate.waiting == ()
    thread.join()


def test_no_task_reads_on_after_a_cancellation() -> None:
    gate, ds = two_chunks()

    async def main() -> None:
        task = asyncio.create_task(aioxarray.load_async(ds))
        await gate.requested("v/c/*", count=2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.waiting == ()

    with dask.config.set(num_workers=2):
        asyncio.run(main())


def test_threads_that_the_user_gave_are_used() -> None:
    ran_in: set[str] = set()

    def note(block: Any) -> Any:
        ran_in.add(threading.current_thread().name)
        return block

    data = da.ones(4, chunks=2).map_blocks(note, meta=np.ones(0))
    with ThreadPoolExecutor(2, "mine") as pool, dask.config.set(pool=pool):
        aioxarray.load(xr.Dataset({"v": ("x", data)}))
    assert {name.split("_")[0] for name in ran_in} == {"mine"}
