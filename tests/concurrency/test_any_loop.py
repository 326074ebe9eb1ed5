"""One dataset, opened by an ordinary synchronous call, loads on every loop one after another."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import xarray as xr
from zarr.storage import FsspecStore, LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import GatedStore, ObjectServer
from tests.concurrency.helpers import PATIENCE_S, lazily, plain, same, written
from tests.loops import LOOPS
from tests.oracle import lazy
from tests.s3 import s3_server

VARIABLES, CHUNKS = 3, 4


def files() -> dict[str, bytes]:
    return {k: v.to_bytes() for k, v in written(VARIABLES, CHUNKS)._store_dict.items()}


@pytest.fixture(scope="session")
def http_url() -> Iterator[str]:
    """Where the data is served over HTTP."""
    with ObjectServer() as server:
        for key, data in files().items():
            server.put(f"data/{key}", data)
        yield f"{server.url}/data"


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """How to reach a bucket ``data`` of an S3 endpoint that holds the data."""
    with s3_server("data") as (filesystem, options):
        for key, data in files().items():
            filesystem.pipe(f"data/set/{key}", data)
        yield options


@pytest.fixture(scope="module")
def s3_opened(s3_options: dict[str, Any]) -> xr.Dataset:
    """The data on S3, opened once: a client of it takes long to make."""
    return lazily(FsspecStore.from_url("s3://data/set", s3_options, read_only=True))


@pytest.fixture(params=["http", "s3"])
def ds(request: pytest.FixtureRequest) -> xr.Dataset:
    """A lazy dataset of an fsspec filesystem that zarr's synchronous calls have bound."""
    if request.param == "http":
        url = request.getfixturevalue("http_url")
        return lazily(FsspecStore.from_url(url, read_only=True))
    opened: xr.Dataset = request.getfixturevalue("s3_opened")
    return opened.copy()


def run_on(backend: str, ds: xr.Dataset) -> xr.Dataset:
    name, options = LOOPS[backend]
    return anyio.run(aioxarray.compute_async, ds, backend=name, backend_options=options)


def in_notebook(ds: xr.Dataset) -> xr.Dataset:
    """Call the blocking function while a loop runs in this thread."""

    async def cell() -> xr.Dataset:
        return aioxarray.compute(ds)

    return asyncio.run(cell())


def in_thread(ds: xr.Dataset) -> xr.Dataset:
    with ThreadPoolExecutor(1, thread_name_prefix="caller") as pool:
        return pool.submit(run_on, "asyncio", ds).result(PATIENCE_S)


WAYS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "blocking": aioxarray.compute,
    "notebook": in_notebook,
    "thread": in_thread,
    **{name: lambda ds, name=name: run_on(name, ds) for name in LOOPS},  # type: ignore[misc]
}


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("way", WAYS)
def test_three_times_in_a_row(ds: xr.Dataset, way: str) -> None:
    for _ in range(3):
        same(WAYS[way](ds), VARIABLES, CHUNKS)


def test_one_way_after_another(ds: xr.Dataset) -> None:
    for way in [*WAYS, *reversed(WAYS)]:
        same(WAYS[way](ds), VARIABLES, CHUNKS)


def test_xarrays_own_load_still_works_between_ours(ds: xr.Dataset) -> None:
    same(run_on("asyncio", ds), VARIABLES, CHUNKS)
    same(ds.compute(), VARIABLES, CHUNKS)
    same(run_on("asyncio", ds), VARIABLES, CHUNKS)


@pytest.mark.parametrize("ways", [["asyncio"] * 4, ["blocking"] * 4, ["asyncio", "trio"] * 2])
def test_four_threads_at_once(ds: xr.Dataset, ways: list[str]) -> None:
    ready = threading.Barrier(4)

    def load(way: str) -> xr.Dataset:
        ready.wait(PATIENCE_S)
        return WAYS[way](ds)

    with ThreadPoolExecutor(4, thread_name_prefix="caller") as pool:
        for call in [pool.submit(load, way) for way in ways]:
            same(call.result(PATIENCE_S), VARIABLES, CHUNKS)


def test_four_threads_load_one_object_in_place(ds: xr.Dataset) -> None:
    with ThreadPoolExecutor(4, thread_name_prefix="caller") as pool:
        calls = [pool.submit(asyncio.run, aioxarray.load_async(ds)) for _ in range(4)]
        for call in calls:
            assert call.result(PATIENCE_S) is ds
    same(ds, VARIABLES, CHUNKS)


def test_four_loads_are_in_flight_together() -> None:
    """They do not wait for each other: all their requests are at the store at once."""
    gate = GatedStore(written(VARIABLES, CHUNKS), keys="*/c/*")
    datasets = [lazily(gate) for _ in range(4)]
    with ThreadPoolExecutor(4, thread_name_prefix="caller") as pool:
        ways = ["asyncio", "trio", "blocking", "notebook"]
        calls = [pool.submit(WAYS[way], ds) for way, ds in zip(ways, datasets, strict=True)]
        gate.wait_requested("*/c/*", PATIENCE_S, 4 * VARIABLES * CHUNKS)
        gate.release_all()
        for call in calls:
            same(call.result(PATIENCE_S), VARIABLES, CHUNKS)


def test_a_loop_that_ended_in_the_middle_does_not_matter_to_the_next(ds: xr.Dataset) -> None:
    async def abandon() -> asyncio.Task[xr.Dataset]:
        task = asyncio.create_task(aioxarray.compute_async(ds))
        await asyncio.sleep(0)
        return task

    for _ in range(3):
        assert asyncio.run(abandon()).cancelled()
        same(run_on("asyncio", ds), VARIABLES, CHUNKS)


def test_the_accessor_and_the_tree_on_every_loop(ds: xr.Dataset) -> None:
    tree = xr.DataTree.from_dict({"/": ds, "/a": ds})
    for name, options in LOOPS.values():
        copy = tree.copy()
        anyio.run(copy.load_async, backend=name, backend_options=options)
        assert not lazy(copy)
        same(copy["a"].to_dataset(), VARIABLES, CHUNKS)
        loaded = anyio.run(ds.aio.compute_async, backend=name, backend_options=options)
        same(loaded, VARIABLES, CHUNKS)


# --- pickling ----------------------------------------------------------------------------------


def stores(tmp_path: Any, url: str) -> dict[str, Any]:
    plain(VARIABLES, CHUNKS).to_zarr(tmp_path, zarr_format=3, consolidated=False)
    return {
        "local": LocalStore(tmp_path, read_only=True),
        "http": FsspecStore.from_url(url, read_only=True),
    }


@pytest.mark.parametrize("store", ["local", "http"])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_lazy_objects_pickle(store: str, loaded_before: bool, tmp_path: Any, http_url: str) -> None:
    ds = lazily(stores(tmp_path, http_url)[store])
    if loaded_before:
        # A load leaves nothing on the lazy object that could not be pickled.
        same(run_on("asyncio", ds), VARIABLES, CHUNKS)
        assert len(lazy(ds)) == VARIABLES
    copy = pickle.loads(pickle.dumps(ds))
    assert len(lazy(copy)) == VARIABLES
    for way in ("asyncio", "trio", "blocking"):
        same(WAYS[way](copy), VARIABLES, CHUNKS)


@pytest.mark.parametrize("store", ["local", "http"])
def test_loaded_objects_pickle(store: str, tmp_path: Any, http_url: str) -> None:
    ds = lazily(stores(tmp_path, http_url)[store])
    aioxarray.load(ds)
    same(pickle.loads(pickle.dumps(ds)), VARIABLES, CHUNKS)
    tree = xr.DataTree.from_dict({"/a": lazily(stores(tmp_path / "tree", http_url)[store])})
    aioxarray.load(tree)
    same(pickle.loads(pickle.dumps(tree))["a"].to_dataset(), VARIABLES, CHUNKS)


def test_an_object_pickles_while_it_loads() -> None:
    gate = GatedStore(written(VARIABLES, CHUNKS), keys="*/c/*")
    ds = lazily(MemoryStore(dict(written(VARIABLES, CHUNKS)._store_dict)))
    both = [ds, lazily(gate)]
    with ThreadPoolExecutor(1, thread_name_prefix="caller") as pool:
        call = pool.submit(aioxarray.load, both)
        gate.wait_requested("*/c/*", PATIENCE_S, VARIABLES * CHUNKS)
        copy = pickle.loads(pickle.dumps(ds))
        assert len(lazy(copy)) == VARIABLES
        gate.release_all()
        call.result(PATIENCE_S)
    same(ds, VARIABLES, CHUNKS)
    same(aioxarray.load(copy), VARIABLES, CHUNKS)
