"""Saves whose chunks are written by the workers of a cluster, which are killed as they write."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore, ObjectStore

import aioxarray
from aioxarray.testing import ObjectServer
from tests.saving.killing import KillingStore, moments

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
    # Of a worker that is killed; distributed logs it in another thread.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

VALUES = np.random.default_rng(0).random((80, 40))
ENCODING = {"v": {"chunks": (5, 10), "shards": (10, 20)}}
KEYS = [f"v/c/{y}/{x}" for y, x in itertools.product(range(8), range(2))]


def dataset() -> xr.Dataset:
    coords = {"y": np.arange(80)}
    ds = xr.Dataset({"v": (("y", "x"), VALUES), "t": ("y", VALUES[:, 0])}, coords)
    ds["v"] = ds.v.chunk(y=10, x=20)
    return ds


def cluster() -> Any:
    started = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
    )
    # Each kill also ends what the worker did besides.
    started.scheduler.allowed_failures = 100
    return started


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with cluster() as started:
        yield started


def found(store: Any, **options: Any) -> xr.Dataset:
    ds: xr.Dataset = xr.open_zarr(store, chunks=None, **options).load()
    return ds


# Each kill takes as long as starting a worker. Workers of a new cluster, since a nanny that is
# interrupted in a restart gives up: after many kills none would be left.
@pytest.fixture
def new_workers() -> Iterator[Any]:
    with cluster() as started:
        yield started


seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 7))]
)
KILLS = 3


@seeds
def test_the_tasks_of_killed_workers_are_done_by_others(
    new_workers: Any, tmp_path: Path, seed: int
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    inner = LocalStore(tmp_path / "killed.zarr")
    store = KillingStore(inner, marks, moments(KEYS, KILLS, seed))
    with distributed.Client(new_workers):
        aioxarray.to_zarr(dataset(), store, encoding=ENCODING)
    assert len(list(marks.iterdir())) == KILLS
    xr.testing.assert_identical(found(inner), dataset().compute(scheduler="sync"))


@seeds
def test_a_save_that_fails_with_its_workers_is_resumed(
    new_workers: Any, tmp_path: Path, seed: int
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    inner = LocalStore(tmp_path / "killed.zarr")
    store = KillingStore(inner, marks, moments(KEYS, KILLS, 7 + seed))
    failures = 0
    # A task is given up when the first worker dies with it.
    new_workers.scheduler.allowed_failures = 0
    with distributed.Client(new_workers) as client:
        while True:
            client.wait_for_workers(1)
            try:
                aioxarray.to_zarr(dataset(), store, encoding=ENCODING, resume=True)
                break
            except distributed.scheduler.KilledWorker:
                failures += 1
                with pytest.raises(FileNotFoundError):
                    found(inner)
    assert failures >= 1
    # Another thread's kill may come between the write of a chunk and its mark.
    assert 1 <= len(list(marks.iterdir())) <= KILLS
    xr.testing.assert_identical(found(inner), dataset().compute(scheduler="sync"))


_CALLER = """
import sys
import distributed
import aioxarray
from aioxarray.testing import ObjectServer
from tests.saving.test_cluster import ENCODING, held

with distributed.Client(sys.argv[1]):
    aioxarray.to_zarr(held(), sys.argv[2], encoding=ENCODING, resume=True)
"""


def wait(values: Any, block_info: Any = None) -> Any:
    """Return the first blocks at once, and the others once they may."""
    if block_info[0]["chunk-location"] not in [(0, 0), (0, 1), (1, 0)]:
        distributed.Event("begun").set()
        distributed.Event("may go on").wait()
    return values


def held() -> xr.Dataset:
    ds = dataset()
    data = ds.v.data.map_blocks(wait, dtype=float, meta=np.zeros((0, 0)))
    return ds.assign(v=ds.v.copy(data=data))


def test_after_its_caller_was_killed_another_process_resumes(workers: Any, tmp_path: Path) -> None:
    path = tmp_path / "killed.zarr"
    address = workers.scheduler_address
    with distributed.Client(workers) as client:
        command = [sys.executable, "-W", "ignore", "-c", _CALLER, address, str(path)]
        caller = subprocess.Popen(command)
        begun = distributed.Event("begun", client)
        while not begun.wait(1):
            assert caller.poll() is None
        caller.kill()
        caller.wait()
        distributed.Event("may go on", client).set()
        before = {each for each in (path / "v").rglob("c/*/*") if each.is_file()}
        assert not (path / "zarr.json").exists()
        assert (path / "v" / "zarr.json").exists()
        times = {each: each.stat().st_mtime_ns for each in before}
        aioxarray.to_zarr(held(), path, encoding=ENCODING, resume=True)
    assert {each: each.stat().st_mtime_ns for each in before} == times
    xr.testing.assert_identical(found(path), dataset().compute(scheduler="sync"))


def test_as_many_requests_as_asked_for(workers: Any) -> None:
    obstore = pytest.importorskip("obstore.store")
    with ObjectServer() as server, distributed.Client(workers) as client:
        client.wait_for_workers(2)
        http = obstore.HTTPStore.from_url(server.url, client_options={"allow_http": True})
        # Eight chunks in each block of dask.
        encoding = {"v": {"chunks": (5, 5)}}
        server.hold("*v/c/*")
        save = partial(aioxarray.to_zarr, dataset()[["v"]], ObjectStore(http), encoding=encoding)
        with ThreadPoolExecutor(1) as pool:
            saved = pool.submit(save, concurrency=6)
            server.wait_requested("*v/c/*", count=6)
            server.release()
            saved.result()
        assert server.log.most_in_flight == 6
        assert server.log.count("PUT", "*v/c/*") == 16 * 8
        xr.testing.assert_equal(found(ObjectStore(http)), dataset()[["v"]].compute())


# --- icechunk ------------------------------------------------------------------------------


def repository(folder: Path) -> Any:
    icechunk = pytest.importorskip("icechunk")
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)))


def assert_commits(repo: Any, session: Any, expected: xr.Dataset) -> None:
    """Assert that a session has uncommitted data, and after one commit the repository."""
    assert session.has_uncommitted_changes
    xr.testing.assert_equal(found(session.store, consolidated=False), expected)
    before = len(list(repo.ancestry(branch="main")))
    session.commit("saved")
    assert len(list(repo.ancestry(branch="main"))) == before + 1
    reader = repo.readonly_session("main").store
    xr.testing.assert_equal(found(reader, consolidated=False), expected)


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("mode", ["w-", "w", "append", "region"])
def test_workers_write_forks_of_an_icechunk_session(
    workers: Any, tmp_path: Path, mode: str
) -> None:
    repo = repository(tmp_path)
    ds, expected = dataset(), dataset().compute(scheduler="sync")
    if mode != "w-":
        session = repo.writable_session("main")
        old = expected * 2 if mode != "append" else expected
        aioxarray.to_zarr(old, session.store, encoding=ENCODING, consolidated=False)
        session.commit("before")
    options: dict[str, Any] = {"encoding": ENCODING}
    if mode == "w":
        options["mode"] = "w"
    elif mode == "append":
        options = {"append_dim": "y"}
        expected = xr.concat([expected, expected], "y")
    elif mode == "region":
        options = {"region": {"y": slice(0, 80)}}
        ds = ds.drop_vars("y")
    session = repo.writable_session("main")
    with distributed.Client(workers):
        aioxarray.to_zarr(ds, session.store, consolidated=False, **options)
    assert_commits(repo, session, expected)


@pytest.mark.anyio
async def test_an_asynchronous_client_and_icechunk(workers: Any, tmp_path: Path) -> None:
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    async with distributed.Client(workers.scheduler_address, asynchronous=True):
        await aioxarray.to_zarr_async(dataset(), session.store, consolidated=False)
    assert_commits(repo, session, dataset().compute(scheduler="sync"))


def test_killed_workers_and_icechunk(workers: Any, tmp_path: Path) -> None:
    repo = repository(tmp_path / "repository")
    session = repo.writable_session("main")
    marks = tmp_path / "marks"
    marks.mkdir()
    store = KillingStore(session.store, marks, moments(KEYS, 2, 3))
    with distributed.Client(workers):
        aioxarray.to_zarr(dataset(), store, encoding=ENCODING, consolidated=False)
    assert len(list(marks.iterdir())) == 2
    assert_commits(repo, session, dataset().compute(scheduler="sync"))


def test_a_session_that_cannot_be_forked(workers: Any, tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk")
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    memory = dataset().compute(scheduler="sync")
    aioxarray.to_zarr(memory, session.store, group="first", consolidated=False)
    with distributed.Client(workers):
        if int(icechunk.__version__.partition(".")[0]) < 2:
            with pytest.raises(ValueError, match="uncommitted changes"):
                aioxarray.to_zarr(dataset(), session.store, consolidated=False)
            return
        aioxarray.to_zarr(dataset(), session.store, group="second", consolidated=False)
    for group in ("first", "second"):
        xr.testing.assert_equal(found(session.store, group=group, consolidated=False), memory)
