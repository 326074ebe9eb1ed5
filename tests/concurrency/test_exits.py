"""Processes end at once, whatever servers owe them, in every way in which a process can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import numpy as np
import pytest
import xarray as xr

from aioxarray.testing import ObjectServer
from tests.concurrency.exits import STORES
from tests.concurrency.helpers import PATIENCE_S
from tests.s3 import s3_server
from tests.stalling import StallingProxy

# Enough for an interpreter to end on a busy machine; where one waited for a server, it was minutes.
EXIT_S = 10.0
CHUNKS = 40

S3 = ("s3fs", "obstore_s3", "icechunk")


def data() -> xr.Dataset:
    """Return numbers that do not compress, in `CHUNKS` chunks."""
    values = np.random.default_rng(0).random((CHUNKS, 1000))
    ds = xr.Dataset({"a": (("y", "x"), values)})
    ds["a"].encoding["chunks"] = (1, 1000)
    return ds


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of servers that have the data: of objects, and S3."""
    import icechunk

    root = tmp_path_factory.mktemp("root")
    ds = data()
    ds.to_zarr(root / "bucket" / "data", consolidated=True, zarr_format=2)
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(root / "repo")))
    session = repo.writable_session("main")
    ds.to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("data")
    del ds["a"].encoding["chunks"]
    # Larger than what is read ahead of its first and last bytes.
    large = xr.concat([ds] * 60, "y")
    large.to_netcdf(root / "data.nc", engine="h5netcdf")
    with ExitStack() as stack:
        server = stack.enter_context(ObjectServer(root=root, process=True))
        filesystem, options = stack.enter_context(s3_server("bucket"))
        filesystem.put(str(root / "bucket" / "data"), "bucket/data", recursive=True)
        filesystem.put(str(root / "repo"), "bucket/repo", recursive=True)
        s3 = options["client_kwargs"]["endpoint_url"]
        ports = {name: urlsplit(server.url).port for name in STORES}
        ports.update(dict.fromkeys(S3, urlsplit(s3).port))
        yield {name: port for name, port in ports.items() if port is not None}


class Child:
    """A process that has opened data and is told, line by line, to go on."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def tell(self) -> None:
        """Send a line."""
        _pipe(self.process.stdin).write("\n")
        _pipe(self.process.stdin).flush()

    def ends(self) -> tuple[int, str]:
        """Wait a little for the end; return the exit code and what was written to stderr."""
        try:
            code = self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the process had not ended {EXIT_S} s later")
        return code, _pipe(self.process.stderr).read()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def loading(proxy: StallingProxy, store: str, way: str) -> Iterator[Child]:
    """Start a process whose load stalls; give it when its requests have reached the proxy."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.concurrency.exits", store, way, proxy.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
    )
    guard = threading.Timer(3 * PATIENCE_S, process.kill)
    guard.start()
    with process:
        try:
            child = Child(process)
            line = _pipe(process.stdout).readline()
            assert line == "open\n", _pipe(process.stderr).read()
            proxy.stall()
            child.tell()
            proxy.wait_asked()
            yield child
        finally:
            guard.cancel()
            process.kill()


@pytest.fixture
def proxy(request: pytest.FixtureRequest, upstreams: dict[str, int]) -> Iterator[StallingProxy]:
    with StallingProxy(upstreams[request.getfixturevalue("store")]) as running:
        yield running


every_store = pytest.mark.parametrize("store", list(STORES))


@every_store
def test_after_an_interrupt(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "blocking") as child:
        child.process.send_signal(signal.SIGINT)
        code, stderr = child.ends()
    assert code == -signal.SIGINT, stderr
    assert "KeyboardInterrupt" in stderr


@every_store
def test_after_a_timeout(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "timeout") as child:
        code, stderr = child.ends()
    assert code == 0, stderr


@every_store
def test_at_the_end_of_the_script(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "in_background") as child:
        child.tell()
        code, stderr = child.ends()
    # What the other thread says of its end, if it comes to that, is its own affair.
    assert code == 0, stderr


@pytest.mark.parametrize("store", ["obstore_http", "fsspec_http"])
def test_at_the_end_of_the_callers_loop(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "end_of_loop") as child:
        child.tell()
        assert child.ends() == (0, "")


@pytest.mark.parametrize("store", ["obstore_http", "fsspec_http"])
def test_after_an_interrupt_of_the_callers_loop(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "asynchronous") as child:
        child.process.send_signal(signal.SIGINT)
        code, stderr = child.ends()
    assert code == -signal.SIGINT, stderr
    assert "KeyboardInterrupt" in stderr


@pytest.mark.parametrize("store", ["obstore_http"])
@pytest.mark.parametrize(("way", "code"), [("sys_exit", 7), ("unhandled", 1)])
def test_in_other_ways(way: str, code: int, store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, way) as child:
        child.tell()
        assert child.ends()[0] == code


@pytest.mark.parametrize("store", ["obstore_http"])
def test_after_another_signal(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "blocking") as child:
        child.process.terminate()
        assert child.ends()[0] == -signal.SIGTERM
