"""An open that ends early (an error, a timeout, a cancellation, Ctrl-C) leaves nothing behind.

The requests that zarr makes by itself count as those of this package do. They come when what was
fetched ahead is not complete: here because one request of that failed.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.opening.calls import closing_on_error
from aioxarray.testing import (
    FaultyStore,
    GatedStore,
    LatencyStore,
    ObjectServer,
    RecordingStore,
    Request,
    VirtualClock,
)
from tests.opening.helpers import Way, every_way
from tests.samples import stored

PATIENCE_S = 30.0
NAMES = ["open_dataset", "open_datatree", "open_groups", "load_dataset", "load_datatree"]
FUNCTIONS = pytest.mark.parametrize("function", NAMES)


def wide() -> xr.Dataset:
    """Return a dataset of more variables than zarr looks at side by side."""
    return xr.Dataset(
        {f"v{i}": (("t", "x"), np.arange(20.0).reshape(4, 5)) for i in range(12)},
        {"x": np.arange(5.0), "t": np.arange(4)},
    )


class Asked:
    """A store of which the first request fails, so that zarr asks for all of it; held at a gate."""

    def __init__(self, held: str = "nothing") -> None:
        self.gate = GatedStore(stored(wide(), consolidated=False), held)
        self.faulty = FaultyStore.kth(self.gate, 0, OSError("no luck"))
        self.store = RecordingStore(self.faulty)
        self.options: dict[str, Any] = {"engine": "zarr", "consolidated": False}

    @property
    def in_flight(self) -> int:
        return self.store.log.in_flight

    def assert_opens(self) -> None:
        """Assert that the store is as good as new."""
        self.gate.release_all()
        xr.testing.assert_identical(aioxarray.load_dataset(self.store, **self.options), wide())


# --- the limit -----------------------------------------------------------------------------------


@FUNCTIONS
@every_way
@pytest.mark.parametrize("limit", [1, 3])
def test_requests_that_zarr_makes_itself_keep_to_the_limit(
    limit: int, way: Way, function: str
) -> None:
    asked = Asked()
    # A latency of nothing still lets other requests begin meanwhile.
    asked.store = RecordingStore(LatencyStore(asked.faulty, 0.0))
    with aioxarray.config.set(concurrency=limit):
        way(function, asked.store, **asked.options)
    assert asked.store.log.most_in_flight == limit
    assert asked.store.log.count("get", "*zarr.json") > len(wide().variables)


@pytest.mark.parametrize("function", ["load_dataset", "load_datatree"])
def test_a_load_by_name_may_have_a_limit_of_its_own(function: str) -> None:
    store = RecordingStore(LatencyStore(stored(wide(), consolidated=False), 0.0))
    getattr(aioxarray, function)(store, engine="zarr", consolidated=False, concurrency=2)
    assert store.log.most_in_flight == 2


def test_reading_under_the_pipeline_of_an_open_takes_one_place_a_request() -> None:
    """A read that held one and waited for another would wait for ever."""
    asked = Asked()
    ours = {"codec_pipeline.path": "aioxarray.CodecPipeline"}
    with zarr.config.set(ours), aioxarray.config.set(concurrency=1):
        ds = xr.open_dataset(asked.store, **{**asked.options, "engine": "aio"})
    xr.testing.assert_identical(ds.load(), wide())
    assert asked.store.log.most_in_flight == 1


# --- errors --------------------------------------------------------------------------------------


@FUNCTIONS
@every_way
def test_a_failed_open_leaves_no_request(way: Way, function: str) -> None:
    """Zarr leaves those that it made beside the one that failed."""

    def fail(index: int, request: Request) -> BaseException | None:
        return OSError("no luck") if request.key == "v3/zarr.json" else None

    gate = GatedStore(stored(wide(), consolidated=False), "v[5-9]/*")
    store = RecordingStore(FaultyStore(gate, fail))
    with pytest.raises(OSError, match="no luck"):
        way(function, store, engine="zarr", consolidated=False)
    assert (store.log.in_flight, gate.waiting) == (0, ())
    requests = len(store.log.requests)
    gate.release_all()
    assert len(store.log.requests) == requests


# --- cancelling ----------------------------------------------------------------------------------


@FUNCTIONS
def test_cancelling_ends_what_zarr_asks_for_itself(function: str) -> None:
    asked = Asked("zarr.json")

    async def main() -> None:
        opening = getattr(aioxarray, f"{function}_async")(asked.store, **asked.options)
        task = asyncio.create_task(opening)
        # The request for it ahead failed before it came to the gate.
        await asked.gate.requested("zarr.json")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asked.in_flight == 0

    asyncio.run(main())
    asked.assert_opens()


def test_cancelling_many_files_ends_what_zarr_asks_for_itself() -> None:
    files = [Asked("zarr.json") for _ in range(3)]

    async def main() -> None:
        stores = [each.store for each in files]
        opening = aioxarray.open_mfdataset_async(
            stores, combine="nested", concat_dim="n", **files[0].options
        )
        task = asyncio.create_task(opening)
        for each in files:
            await each.gate.requested("zarr.json")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [each.in_flight for each in files] == [0, 0, 0]

    asyncio.run(main())


def test_cancelling_a_save_ends_what_zarr_asks_for_itself() -> None:
    """What a save asks for ahead has no time coordinate's values beyond the first and the last."""
    times = xr.Dataset({"t": ("t", np.arange(12), {"units": "days since 2000-01-01"})})
    times.t.encoding["chunks"] = (4,)
    store = stored(times, consolidated=False)
    gate = GatedStore(store, "t/c/1")
    recording = RecordingStore(gate)
    more = xr.decode_cf(times.assign_coords(t=times.t)).isel(t=slice(4, 8))

    async def main() -> None:
        saving = aioxarray.to_zarr_async(more, recording, region="auto", consolidated=False)
        task = asyncio.create_task(saving)
        await gate.requested("t/c/1")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert recording.log.in_flight == 0

    async def zarr_returns() -> None:
        # zarr does not await its own tasks, which decode the answers that have come.
        tasks = [each for each in asyncio.all_tasks() if "concurrent_" in repr(each.get_coro())]
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE_S)

    asyncio.run(main())
    run_blocking(zarr_returns)


@pytest.mark.parametrize("way", ["engine aio", "blocking"])
@pytest.mark.parametrize("function", NAMES[:3])
def test_an_interrupt_ends_what_zarr_asks_for_itself(function: str, way: str) -> None:
    asked = Asked("zarr.json")
    main_thread = threading.main_thread().ident
    assert main_thread == threading.get_ident()

    ended = threading.Event()

    def interrupt() -> None:
        asked.gate.wait_requested("zarr.json", PATIENCE_S)
        signal.pthread_kill(main_thread, signal.SIGINT)
        # With "engine aio", zarr itself waits in the main thread. Python does not wake it for a
        # signal that arrives in the moment before it waits, but does for the next one.
        while not ended.wait(PATIENCE_S / 4):
            signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    where, engine = (xr, "aio") if way == "engine aio" else (aioxarray, "zarr")
    with pytest.raises(KeyboardInterrupt):
        getattr(where, function)(asked.store, **{**asked.options, "engine": engine})
    ended.set()
    assert asked.in_flight == 0
    thread.join()
    asked.assert_opens()


# --- timeouts ------------------------------------------------------------------------------------

TIMED = ["open_dataset", "open_dataarray", "open_datatree", "open_groups", "open_zarr"]
TIMED += ["load_dataset", "load_dataarray", "load_datatree"]


@pytest.mark.parametrize("name", TIMED)
def test_a_timeout_says_what_was_waited_for(name: str) -> None:
    memory = stored(wide()[["v1", "x"]].reset_coords(drop=True), consolidated=False)
    recording = RecordingStore(LatencyStore(memory, 1.0))
    options: dict[str, Any] = {} if name == "open_zarr" else {"engine": "zarr"}
    clock = VirtualClock()

    async def main() -> None:
        function = getattr(aioxarray, f"{name}_async")
        await function(recording, consolidated=False, timeout=2.5, **options)

    with pytest.raises(TimeoutError) as caught:
        clock.run(main)
    done = "loaded" if name.startswith("load") else "opened"
    # The documents of the group (four), its members' names, and then the members' own.
    expected = rf"not {done} within the timeout of 2.5 s: waiting for '[vtx1]+/zarr.json'"
    assert re.match(expected, str(caught.value))
    assert f"of memory://{id(memory._store_dict)}; " in str(caught.value)
    assert re.search(r"; \d requests done$", str(caught.value))
    assert clock.elapsed_s == 2.5
    assert recording.log.in_flight == 0


def test_the_timeout_of_many_files_holds_for_all_of_them() -> None:
    stores = [RecordingStore(LatencyStore(stored(wide()), 1.0)) for _ in range(3)]
    clock = VirtualClock()

    async def main() -> None:
        await aioxarray.open_mfdataset_async(
            stores, combine="nested", concat_dim="n", engine="zarr", timeout=0.5
        )

    with pytest.raises(TimeoutError, match=r"not opened within the timeout of 0.5 s: waiting for"):
        clock.run(main)
    assert clock.elapsed_s == 0.5
    assert [store.log.in_flight for store in stores] == [0, 0, 0]


def test_the_timeout_of_a_load_by_name_says_how_far_it_came() -> None:
    memory = stored(wide())
    gated = GatedStore(memory, "v*/c/*")
    clock = VirtualClock()
    with pytest.raises(TimeoutError) as caught:
        clock.run(lambda: aioxarray.load_dataset_async(gated, engine="zarr", timeout=5))
    assert re.fullmatch(
        r"not loaded within the timeout of 5 s: 0 of 1920 bytes had arrived; waiting for "
        rf"'v0/c/0/0' and 11 more of memory://{id(memory._store_dict)}; \d+ requests done",
        str(caught.value),
    )
    assert gated.waiting == ()


def test_a_timeout_of_zero_makes_no_request() -> None:
    store = RecordingStore(stored(wide()))
    for name in TIMED:
        options: dict[str, Any] = {} if name == "open_zarr" else {"engine": "zarr"}
        with pytest.raises(TimeoutError, match="within the timeout of 0 s"):
            getattr(aioxarray, name)(store, timeout=0, **options)
    assert store.log.in_flight == 0


@pytest.mark.parametrize(("timeout", "error"), [("soon", TypeError), (-1, ValueError)])
@pytest.mark.parametrize("name", [*TIMED, "open_mfdataset"])
def test_a_timeout_that_is_none_is_refused(name: str, timeout: Any, error: type[Exception]) -> None:
    store = RecordingStore(stored(wide()))
    with pytest.raises(error, match="timeout must"):
        getattr(aioxarray, name)(store, timeout=timeout)
    assert store.log.requests == ()


def test_a_save_says_what_was_waited_for() -> None:
    memory = MemoryStore()
    gated = GatedStore(memory, "v*/c/*", methods=("set",))
    clock = VirtualClock()
    with pytest.raises(TimeoutError) as caught:
        clock.run(lambda: aioxarray.to_zarr_async(wide(), gated, consolidated=False, timeout=5))
    assert re.fullmatch(
        r"not saved within the timeout of 5 s: \d+ of 1992 bytes had been written; waiting for "
        rf"'v\d+/c/0/0' and 11 more of memory://{id(memory._store_dict)}; \d+ requests done",
        str(caught.value),
    )
    assert gated.waiting == ()


# --- servers -------------------------------------------------------------------------------------


def url_for_fsspec(server: ObjectServer) -> Any:
    return f"{server.url}/a.zarr"


def obstore_http(server: ObjectServer) -> Any:
    from obstore.store import HTTPStore

    return HTTPStore.from_url(f"{server.url}/a.zarr", client_options={"allow_http": True})


def obstore_s3(server: ObjectServer) -> Any:
    from obstore.store import S3Store

    return S3Store(
        "a.zarr",
        endpoint=server.url,
        region="nowhere",
        skip_signature=True,
        client_options={"allow_http": True},
    )


def s3fs_store(server: ObjectServer) -> Any:
    import s3fs
    from zarr.storage import FsspecStore

    filesystem = s3fs.S3FileSystem(
        anon=True,
        asynchronous=True,
        skip_instance_cache=True,
        client_kwargs={"endpoint_url": server.url},
    )
    return FsspecStore(filesystem, read_only=True, path="a.zarr")


CLIENTS: dict[str, Callable[[ObjectServer], Any]] = {
    "fsspec http": url_for_fsspec,
    "obstore http": obstore_http,
    "obstore s3": obstore_s3,
    "s3fs": s3fs_store,
}
every_client = pytest.mark.parametrize("client", CLIENTS)


def serve(server: ObjectServer, *, consolidated: bool = True) -> None:
    memory = stored(wide(), consolidated=consolidated)
    for key, value in memory._store_dict.items():
        server.put(f"a.zarr/{key}", value.to_bytes())


@every_client
@pytest.mark.parametrize("function", ["open_dataset", "load_dataset"])
def test_a_stalled_server_is_left(client: str, function: str) -> None:
    """When the call has ended, its requests leave the server; the client still works."""
    held = "a.zarr/zarr.json" if function == "open_dataset" else "a.zarr/v*/c/*"
    # Format 2 has documents that are not here, which S3's own clients ask for again and again.
    options: dict[str, Any] = {"engine": "zarr", "zarr_format": 3}

    async def main(server: ObjectServer) -> None:
        source = CLIENTS[client](server)
        opening = getattr(aioxarray, f"{function}_async")
        task = asyncio.create_task(opening(source, **options))
        await server.requested(held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.deserted()
        server.release()
        again = await opening(source, **options)
        xr.testing.assert_identical(again.load(), wide())

    with ObjectServer() as server:
        serve(server)
        server.hold(held)
        asyncio.run(main(server))


def test_a_timeout_leaves_a_stalled_server() -> None:
    with ObjectServer() as server:
        serve(server)
        server.hold()
        with pytest.raises(TimeoutError, match=r"1 s: waiting for '[.\w]+' and 3 more of http://"):
            aioxarray.open_dataset(obstore_http(server), engine="zarr", timeout=1)
        asyncio.run(server.deserted())


@pytest.mark.parametrize("client", ["fsspec http", "obstore http", "obstore s3"])
def test_a_failing_server_is_left(client: str) -> None:
    """One document fails, others stall: all that was asked for ends with the error."""

    async def main(server: ObjectServer) -> None:
        source = CLIENTS[client](server)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each client has its own
            await aioxarray.open_dataset_async(source, engine="zarr", consolidated=False)
        assert not isinstance(caught.value, TimeoutError)
        await server.deserted()

    with ObjectServer() as server:
        serve(server, consolidated=False)
        server.fail("a.zarr/zarr.json", 403)
        server.hold("a.zarr/.z*")
        asyncio.run(main(server))


def test_a_timeout_names_the_file_that_a_library_reads_by_itself() -> None:
    url = "http://me:hush@"
    with ObjectServer() as server:
        server.hold()
        address = server.url.removeprefix("http://")
        with pytest.raises(TimeoutError) as caught:
            aioxarray.open_dataset(f"{url}{address}/a.nc?key=hush", engine="h5netcdf", timeout=0.5)
        server.release()
    assert str(caught.value) == (
        "not opened within the timeout of 0.5 s: "
        f"waiting for http://{address}/a.nc; 0 requests done"
    )


def test_a_failed_open_does_not_wait_long_for_a_file_that_cannot_be_closed() -> None:
    """A library closes nothing while it reads; and that may be from a server that stalls."""
    reading, closed = threading.Event(), threading.Event()

    def close() -> None:
        reading.wait(PATIENCE_S)
        closed.set()

    async def main() -> None:
        async with closing_on_error(close):
            raise OSError("no luck")

    with pytest.raises(OSError, match="no luck"):
        asyncio.run(main())
    assert not closed.is_set()
    reading.set()
    assert closed.wait(PATIENCE_S)


def test_a_cancelled_open_has_ended_in_its_thread() -> None:
    """Not only its requests: nothing of it runs when the call returns."""
    asked = Asked("zarr.json")
    ended = threading.Event()

    def open_it() -> None:
        try:
            xr.open_dataset(asked.store, **{**asked.options, "engine": "aio"})
        finally:
            ended.set()

    async def main() -> None:
        task = asyncio.create_task(in_worker(open_it))
        await asked.gate.requested("zarr.json")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())
