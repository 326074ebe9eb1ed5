"""The server of the guide: uvicorn, clients over sockets, and a store that can be held."""

from __future__ import annotations

import asyncio
import copy
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import numpy as np
import pytest
import uvicorn
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from tests.documents import blocks

PAGE = "docs/guides/server.md"
VALUES = np.arange(40 * 50, dtype="f4").reshape(40, 50)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectServer]:
    ds = xr.Dataset({"t2m": (("time", "x"), VALUES)})
    chunks = {"t2m": {"chunks": (1, 50)}}
    aioxarray.to_zarr(ds, tmp_path / "era5.zarr", encoding=chunks, consolidated=True)
    with ObjectServer(root=tmp_path) as server:
        yield server


@pytest.fixture
def restored() -> Iterator[None]:
    before = copy.deepcopy(aioxarray.config.config)
    yield
    aioxarray.config.set(before)


def guide(store: ObjectServer, **settings: Any) -> ModuleType:
    """Import the code of the guide as a module, with another store and other settings."""
    (code,) = [block.code for block in blocks(PAGE) if block.language == "python"]
    module = ModuleType("app")
    exec(compile(code, PAGE, "exec"), vars(module))
    vars(module).update({"URL": f"{store.url}/era5.zarr", **settings})
    return module


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the application with uvicorn, in a thread with its own loop; give a client for it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    startup = server.startup

    async def starting(sockets: Any = None) -> None:
        await startup(sockets)
        loop.call_soon_threadsafe(started.set)

    server.startup = starting  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, name="caller: uvicorn")
    thread.start()
    try:
        await asyncio.wait_for(started.wait(), 30)
        port = server.servers[0].sockets[0].getsockname()[1]
        limit = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=limit) as client:
            yield client
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()


async def answer(client: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with client.get(path) as response:
        body = await response.read()
        return response.status, body


pytestmark = pytest.mark.usefixtures("restored")


def test_it_answers(store: ObjectServer) -> None:
    async def main() -> None:
        module = guide(store)
        async with serving(module.app) as client:
            status, body = await answer(client, "/mean?start=0&stop=4")
            assert (status, float(body)) == (200, VALUES[:4].mean())
            status, body = await answer(client, "/tile/7.bin")
            assert (status, body) == (200, VALUES[7].tobytes())
            status, body = await answer(client, "/metrics")
            assert status == 200
            assert b"aioxarray_requests_in_use 0" in body
            # The data that all requests share stays lazy; only five chunks are in the cache.
            assert aioxarray.explain(module.app.state.ds).requests == len(VALUES) - 5

    asyncio.run(main())


def test_a_late_load_is_504(store: ObjectServer) -> None:
    async def main() -> None:
        async with serving(guide(store, TIMEOUT_S=0.1).app) as client:
            store.hold("*/c/*")
            status, body = await answer(client, "/tile/3.bin")
            assert status == 504
            assert b"not loaded within the timeout of 0.1 s" in body
            # The request to the store was cancelled.
            await store.deserted()

    asyncio.run(main())


def test_a_client_that_goes_away_ends_its_requests(store: ObjectServer) -> None:
    async def main() -> None:
        async with serving(guide(store).app) as client:
            store.hold("*/c/*")
            gone = asyncio.ensure_future(answer(client, "/mean?start=0&stop=8"))
            await asyncio.to_thread(store.wait_requested, "*/c/*", 30.0, 8)
            gone.cancel()
            await store.deserted()
            # Its places are free, and the next client is served.
            store.release("*/c/*")
            status, body = await answer(client, "/tile/3.bin")
            assert (status, body) == (200, VALUES[3].tobytes())

    asyncio.run(main())


def test_a_store_that_fails_is_502(store: ObjectServer) -> None:
    async def main() -> None:
        async with serving(guide(store).app) as client:
            aioxarray.config.set({"retry.attempts": 2})
            store.fail("*/c/*", 500)
            status, body = await answer(client, "/tile/3.bin")
            assert status == 502
            assert b"the server failed" in body

    asyncio.run(main())


def test_a_large_window_is_413(store: ObjectServer) -> None:
    async def main() -> None:
        module = guide(store)
        async with serving(module.app) as client:
            before = store.log.count("GET", "*/c/*")
            big = module.app.state.ds.isel(x=np.zeros(5_000_000, int))
            module.app.state.ds = big
            status, body = await answer(client, "/mean?start=0&stop=40")
            assert status == 413
            assert b"max_bytes='256MiB'" in body
            assert store.log.count("GET", "*/c/*") == before

    asyncio.run(main())


def test_overload_is_503(store: ObjectServer) -> None:
    async def main() -> None:
        async with serving(guide(store).app) as client:
            aioxarray.config.set(concurrency=1, queue=1)
            store.hold("*/c/*")
            first = asyncio.ensure_future(answer(client, "/tile/0.bin"))
            await asyncio.to_thread(store.wait_requested, "*/c/*")
            others = [asyncio.ensure_future(answer(client, f"/tile/{n}.bin")) for n in (1, 2)]
            # One of them waits, and the other is refused, whichever comes first.
            done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            (refused,) = done
            status, body = refused.result()
            assert status == 503
            assert b"the limits of this process are used up" in body
            store.release("*/c/*")
            assert [(await each)[0] for each in (first, *waiting)] == [200, 200]

    asyncio.run(main())


@pytest.mark.slow
def test_workers_serve_it_from_the_command_line(store: ObjectServer, tmp_path: Path) -> None:
    (code,) = [block.code for block in blocks(PAGE) if block.language == "python"]
    (tmp_path / "app.py").write_text(code)
    # uvicorn inherits the socket, so that its port is known before it starts.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = ("uvicorn", "app:app", "--workers", "2", "--fd", str(listening.fileno()))
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env={**os.environ, "DATA_URL": f"{store.url}/era5.zarr"},
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            started = 0
            while started < 2:
                line = process.stderr.readline()
                assert line, "the workers have ended"
                started += "Application startup complete" in line
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/tile/3.bin"
            for _ in range(4):
                with urllib.request.urlopen(url, timeout=60) as answer:
                    assert answer.read() == VALUES[3].tobytes()
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
        assert errors.count("Application shutdown complete") == 2, errors
