"""Reading by the workers of a cluster: the caller's settings, a share for each worker; and ends."""

import asyncio
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._xarray.dask import carried
from aioxarray._xarray.dask.carried import Carried
from aioxarray._xarray.dask.carrying import with_settings
from aioxarray.testing import ObjectServer
from tests.runtime.helpers import run_script

distributed = pytest.importorskip("distributed")

CHUNKS = 64
Open = Callable[..., xr.Dataset]

OPENERS: dict[str, Open] = {"plain": xr.open_zarr, "ours": aioxarray.open_zarr}
every_opener = pytest.mark.parametrize("open_zarr", OPENERS.values(), ids=OPENERS)


def values() -> xr.Dataset:
    return xr.Dataset({"v": (("t", "x"), np.arange(8.0 * CHUNKS).reshape(CHUNKS, 8))})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    chunks = {"v": {"chunks": (1, 8)}}
    values().to_zarr(root / "a.zarr", encoding=chunks, consolidated=False)
    return root


@pytest.fixture
def server(root: Path) -> Iterator[ObjectServer]:
    with ObjectServer(root=root) as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        with distributed.Client(cluster) as client:
            client.wait_for_workers(2)
            client.run(import_what_reads)
        yield cluster


def import_what_reads() -> None:
    """Import what tests with held requests would wait for on a busy machine."""
    for name in ("aiohttp", "aioxarray", "fsspec", "xarray", "zarr.storage"):
        importlib.import_module(name)


def forget_the_others() -> None:
    """Have a worker ask for the list of workers again, which it remembers for five seconds."""
    carried._known.clear()


@pytest.fixture(autouse=True)
def two_known_workers(cluster: Any) -> None:
    """Let no worker count those that a test before has killed or added."""
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        client.run(forget_the_others)


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


def doubled(open_zarr: Open, server: ObjectServer, **options: Any) -> xr.DataArray:
    """Open data of blocks of eight chunks each, more than a worker's share of requests."""
    ds = open_zarr(f"{server.url}/a.zarr", consolidated=False, chunks={"t": 8}, **options)
    server.log.clear()
    twice: xr.DataArray = ds.v * 2
    return twice


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(call()))
    thread.start()
    return thread, got


@every_opener
def test_as_many_requests_as_asked_for(client: Any, server: ObjectServer, open_zarr: Open) -> None:
    array = doubled(open_zarr, server)
    server.hold("*/c/*")
    thread, got = in_thread(lambda: aioxarray.compute(array, concurrency=8))
    server.wait_requested("*/c/*", count=8, timeout_s=90)
    server.release()
    thread.join()
    np.testing.assert_array_equal(got[0], values().v * 2)
    assert server.log.most_in_flight == 8
    assert server.log.count("GET", "*/c/*") == CHUNKS


def test_arrays_inside_of_tasks(client: Any, server: ObjectServer) -> None:
    """`xarray.open_dataset` puts the lazy array into each task if it is told to."""
    url = f"{server.url}/a.zarr"
    ds = xr.open_dataset(url, engine="zarr", chunks={"t": 8}, consolidated=False, inline_array=True)
    server.log.clear()
    np.testing.assert_array_equal(aioxarray.compute(ds.v * 2, concurrency=4), values().v * 2)
    assert server.log.most_in_flight <= 4


def test_settings_in_computations_by_dask_alone(client: Any, server: ObjectServer) -> None:
    with aioxarray.config.set(concurrency=6):
        array = doubled(aioxarray.open_zarr, server)
        np.testing.assert_array_equal(array.compute(), values().v * 2)
    assert server.log.most_in_flight <= 6


def test_a_load_in_a_task(client: Any, server: ObjectServer) -> None:
    # With a cache, xarray would load what is pickled.
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False, "cache": False}
    lazy = aioxarray.open_dataset(f"{server.url}/a.zarr", **options)
    server.log.clear()
    with aioxarray.config.set(concurrency=4):
        got = client.submit(aioxarray.load, lazy, pure=False).result()
    np.testing.assert_array_equal(got.v, values().v)
    # The share of the worker that runs the task.
    assert server.log.most_in_flight <= 2


@every_opener
def test_retries_travel(client: Any, server: ObjectServer, open_zarr: Open) -> None:
    array = doubled(open_zarr, server)
    server.fail("*/c/3/0", 503)
    with (
        aioxarray.config.set({"retry.attempts": 2, "retry.backoff_s": 0}),
        pytest.raises(Exception, match="503"),
    ):
        aioxarray.compute(array)
    assert server.log.count("GET", "*/c/3/0") == 2


def test_a_process_is_not_taken_for_another_with_the_same_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In containers, the processes of a cluster often have the same number."""
    script = """
import os
os.getpid = lambda: 1
from aioxarray._xarray.dask.carried import Carried
from aioxarray._xarray.dask.carrying import with_settings
print(Carried.here().process)
"""
    there = run_script(script).strip()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    here = Carried.here().process
    assert here == Carried.here().process
    assert here != there


@every_opener
def test_settings_leave_annotations_as_they_are(open_zarr: Open, root: Path) -> None:
    annotated: Any = dask.annotate  # type: ignore[attr-defined]
    with annotated(resources={"GPU": 1}):
        array = open_zarr(root / "a.zarr", consolidated=False, chunks={"t": 8}).v.data * 2
    (carrying,) = with_settings([array], Carried.here())
    before, after = array.__dask_graph__().layers, carrying.__dask_graph__().layers
    assert {name: layer.annotations for name, layer in after.items()} == {
        name: {"resources": {"GPU": 1}} for name in before
    }
    assert any(after[name] is not before[name] for name in before)
    np.testing.assert_array_equal(carrying.compute(scheduler="sync"), values().v * 2)


def share(carried: Carried) -> Mapping[str, Any] | None:
    """Return the share of the worker that runs this."""
    from aioxarray._runtime.loops import run_blocking

    return run_blocking(carried.share)


def shares(client: Any, **settings: Any) -> list[Mapping[str, Any]]:
    with aioxarray.config.set(settings):
        carried = Carried.here()
    workers = sorted(client.scheduler_info()["workers"])
    futures = [client.submit(share, carried, workers=[each], pure=False) for each in workers]
    return list(client.gather(futures))


def test_shares(client: Any) -> None:
    found = shares(client, concurrency=9, memory="1MiB", retry="batch")
    assert [each["concurrency"] for each in found] == [5, 4]
    assert [each["memory"] for each in found] == [1 << 19] * 2
    assert {each["retry"]["profile"] for each in found} == {"batch"}
    # A share is at least one.
    assert [each["concurrency"] for each in shares(client, concurrency=1)] == [1, 1]
    assert [each["concurrency"] for each in shares(client, concurrency=0)] == [0, 0]
    assert [each["concurrency"] for each in shares(client, concurrency="auto")] == ["auto"] * 2
    assert share(Carried.here()) is None


def set_own(**settings: Any) -> None:
    aioxarray.config.set(settings)


def test_the_lower_of_two_limits_holds(client: Any) -> None:
    client.run(set_own, **{"concurrency": 3, "retry.attempts": 7})
    try:
        low = shares(client, **{"concurrency": 2, "retry.attempts": 5})
        high = shares(client, concurrency=32)
    finally:
        client.run(set_own, **{"concurrency": 128, "retry.attempts": None})
    assert [each["concurrency"] for each in low] == [1, 1]
    assert [each["concurrency"] for each in high] == [3, 3]
    assert [each["retry"]["attempts"] for each in (*low, *high)] == [7] * 4


def test_a_worker_that_is_killed(client: Any, server: ObjectServer) -> None:
    array = doubled(xr.open_zarr, server)
    server.hold("*/c/*")
    thread, got = in_thread(lambda: aioxarray.compute(array, concurrency=8))
    server.wait_requested("*/c/*", count=8, timeout_s=90)
    pids = client.run(os.getpid)
    os.kill(min(pids.values()), signal.SIGKILL)
    server.release()
    thread.join()
    np.testing.assert_array_equal(got[0], values().v * 2)


def test_more_workers_than_requests(cluster: Any, client: Any, server: ObjectServer) -> None:
    cluster.scale(3)
    client.wait_for_workers(3)
    array = doubled(xr.open_zarr, server)
    np.testing.assert_array_equal(aioxarray.compute(array, concurrency=2), values().v * 2)
    assert server.log.most_in_flight <= 3


def test_workers_in_the_process_of_the_caller(server: ObjectServer) -> None:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        array = doubled(aioxarray.open_zarr, server)
        with aioxarray.config.set(concurrency=8):
            np.testing.assert_array_equal(aioxarray.compute(array), values().v * 2)
    assert server.log.most_in_flight <= 8


def test_what_only_reads_is_read_here(client: Any, server: ObjectServer) -> None:
    lazy = xr.open_zarr(f"{server.url}/a.zarr", consolidated=False, chunks={})
    ran = client.run(lambda dask_worker: len(dask_worker.state.tasks))
    np.testing.assert_array_equal(aioxarray.compute(lazy).v, values().v)
    assert client.run(lambda dask_worker: len(dask_worker.state.tasks)) == ran
    (plan,) = aioxarray.explain(lazy).variables
    assert (plan.tasks, plan.requests) == (0, CHUNKS)


def test_an_asynchronous_client(cluster: Any, server: ObjectServer) -> None:
    array = doubled(xr.open_zarr, server).to_dataset(name="v")

    server.hold("*/c/*")

    async def main() -> None:
        async with distributed.Client(cluster.scheduler_address, asynchronous=True) as client:
            load = asyncio.create_task(aioxarray.load_async(array, concurrency=4))
            await server.requested("*/c/*", count=4)
            # Nothing of it comes by the caller's loop, on which this client reads its messages.
            assert not client.futures
            server.release()
            assert await load is array
            assert distributed.Client.current() is client

    asyncio.run(main())
    np.testing.assert_array_equal(array.v, values().v * 2)
    assert server.log.most_in_flight <= 4


def test_an_asynchronous_client_that_keeps_data(cluster: Any, server: ObjectServer) -> None:
    array = doubled(xr.open_zarr, server)

    async def main() -> xr.DataArray:
        async with distributed.Client(cluster.scheduler_address, asynchronous=True) as client:
            kept = array.copy(data=client.persist(array.data))
            return await aioxarray.compute_async(kept + 1)

    np.testing.assert_array_equal(asyncio.run(main()), values().v * 2 + 1)


def test_cancelling(cluster: Any, server: ObjectServer) -> None:
    array = doubled(aioxarray.open_zarr, server)
    server.hold("*/c/*")

    async def main() -> None:
        async with distributed.Client(cluster.scheduler_address, asynchronous=True) as client:
            load = asyncio.create_task(aioxarray.load_async(array))
            await server.requested("*/c/*")
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
            server.release()
            # The workers are free for other work.
            assert await client.submit(sum, [1, 2]) == 3

    asyncio.run(main())
    assert array.chunks is not None


def test_large_results_come_block_by_block(client: Any) -> None:
    blocks = da.ones((16, 1 << 18), chunks=(1, 1 << 17)) * np.arange(16)[:, np.newaxis]
    texts = da.from_array(np.array(["a", "bc"], object), chunks=1)
    ds = xr.Dataset({"v": (("t", "x"), blocks), "s": ("n", texts), "sum": ((), blocks.sum())})
    out = np.empty(blocks.shape)
    got = ds.copy()
    aioxarray.load(got, out={"v": out})
    assert got.v.variable._data is out
    np.testing.assert_array_equal(out, np.arange(16.0)[:, np.newaxis] * np.ones(1 << 18))
    assert got.s.values.tolist() == ["a", "bc"]
    assert float(got["sum"]) == 120 << 18
