"""A stalled server holds up nothing else in a process, and calls that ended leave no requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
import xarray as xr

from tests.concurrency.clients import CLIENTS, WRITERS
from tests.concurrency.helpers import PATIENCE_S
from tests.stalling import StallingProxy

LOADS = 24


class Child:
    """A child process that makes calls with one kind of client: see `tests.concurrency.stalled`.

    Parameters
    ----------
    client
        The name of the client.
    port
        The port of the server.
    """

    def __init__(self, client: str, port: int) -> None:
        self.client = client
        self._port = port
        self._stack = ExitStack()
        root = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.concurrency.stalled", client],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._hears()

    def _hears(self) -> str:
        guard = threading.Timer(3 * PATIENCE_S, self._process.kill)
        guard.start()
        line = _pipe(self._process.stdout).readline()
        guard.cancel()
        if not line:
            self._process.kill()
            pytest.fail(_pipe(self._process.stderr).read() or "it did not answer")
        return line

    def tell(self, line: str = "") -> None:
        """Send a line."""
        pipe = _pipe(self._process.stdin)
        pipe.write(f"{line}\n")
        pipe.flush()

    def ask(self, name: str, *arguments: object) -> None:
        """Start a call in the process."""
        self.tell(json.dumps([name, *arguments]))

    def answer(self) -> Any:
        """Wait for the return value of the call."""
        return json.loads(self._hears())

    def call(self, name: str, *arguments: object) -> Any:
        self.ask(name, *arguments)
        return self.answer()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def connect(self) -> StallingProxy:
        """Create a new client in the process; return the proxy between it and the server."""
        proxy = self._stack.enter_context(StallingProxy(self._port))
        self.call("make", proxy.url)
        return proxy

    def end(self) -> None:
        """End the process, which must exit even while servers stall."""
        with self._stack, self._process as process:
            _pipe(process.stdin).close()
            try:
                code = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                pytest.fail(f"the process had not ended {PATIENCE_S} s later")
            assert code == 0, _pipe(process.stderr).read()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.fixture(scope="module")
def child(request: pytest.FixtureRequest, ports: dict[str, int]) -> Iterator[Child]:
    """Yield a process with the client under test; it has to exit while servers stall."""
    name: str = request.param
    child = Child(name, ports.get(name, ports["http"]))
    yield child
    child.end()


@pytest.fixture(scope="module")
def other_requests(child: Child) -> Counter[str]:
    """Return the requests that a client makes to load the second group, and nothing else."""
    proxy = child.connect()
    made = len(proxy.requests)
    child.call("load_other", proxy.url)
    return Counter(proxy.requests[made:])


# Icechunk continues its requests when the caller no longer waits for them: see the last test. So do
# threads in a blocking call of obstore, which cannot be cancelled.
OPENS_GO_ON = ("icechunk",)
LOADS_GO_ON = ("icechunk", "obstore_http", "obstore_s3")

pytestmark = pytest.mark.slow

every_client = pytest.mark.parametrize("child", CLIENTS, indirect=True)
every_writer = pytest.mark.parametrize("child", WRITERS, indirect=True)


def went_on(
    child: Child, proxy: StallingProxy, others: Counter[str], *, waits: bool = False
) -> Counter[str]:
    """Return the requests made after a call has ended that do not belong to a later call.

    The server first answers all stalled requests, so that leftover work could go on. Unless
    ``waits``, the client must have dropped the stalled requests before.
    """
    before = len(proxy.requests)
    if not waits:
        proxy.wait_left()
    proxy.release()
    child.call("load_other", proxy.url)
    return Counter(proxy.requests[before:]) - others


@every_client
def test_many_loads_given_up_leave_a_healthy_server_alone(child: Child) -> None:
    bad, good = child.connect(), child.connect()
    for proxy in (bad, good):
        child.call("open", proxy.url)
    bad.stall()
    child.call("begin", bad.url)
    bad.wait_asked()
    assert child.call("give_up", bad.url, LOADS) == LOADS
    child.call("load", good.url)
    # The other server still has not answered.
    assert bad.in_vain >= 1
    assert child.call("in_background") == 1


@pytest.fixture
def busy(child: Child) -> StallingProxy:
    """Return the proxy of a server that has not answered a request of the process."""
    proxy = child.connect()
    child.call("open", proxy.url)
    proxy.stall()
    child.call("begin", proxy.url)
    proxy.wait_asked()
    return proxy


@every_client
def test_an_interrupt_is_the_programs(child: Child, busy: StallingProxy) -> None:
    """An interrupt raises in the program even during garbage collection."""
    for _ in range(3):
        assert child.call("loop") == "begun"
        child.interrupt()
        assert child.answer() == "KeyboardInterrupt"
    assert busy.in_vain >= 1


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
@every_client
def test_files_are_read_meanwhile(
    child: Child, busy: StallingProxy, engine: Any, tmp_path: Path
) -> None:
    """HDF5 would crash if files were closed late, or by two threads."""
    ds = xr.Dataset({"text": ("x", ["a", "bc", "def"]), "u": ("x", [0.0, 1.0, 2.0])})
    ds.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    assert child.call("read_files", str(tmp_path / "a.nc"), engine, 20) == 20
    assert busy.in_vain >= 1


# The requests of an open for twelve variables. Icechunk has their metadata in one document: for it,
# the values of an index.
HELD = dict.fromkeys(CLIENTS, "GET *first/v*") | {"icechunk": "GET *chunks*"}
OF_ONE = dict.fromkeys(CLIENTS, "GET *first/v3/zarr.json") | {"icechunk": "GET *chunks*"}
OF_OTHERS = dict.fromkeys(CLIENTS, "GET *first/v[5-9]*") | {"icechunk": ""}
CHUNKS = dict.fromkeys(CLIENTS, "GET *first/v*/c/*") | {"icechunk": "GET *chunks*"}


@every_client
def test_an_open_that_timed_out_goes_on_with_nothing(
    child: Child, other_requests: Counter[str]
) -> None:
    proxy = child.connect()
    proxy.stall(only=HELD[child.client])
    child.ask("open_until_told", proxy.url)
    proxy.wait_asked()
    child.tell()
    assert child.answer() == "TimeoutError"
    waits = child.client in OPENS_GO_ON
    assert went_on(child, proxy, other_requests, waits=waits) == Counter()


# Icechunk retries for a minute after a server error.
FAILURES = [(client, status) for client in CLIENTS for status in (403, 500)]
FAILURES.remove(("icechunk", 500))


@pytest.mark.parametrize(("child", "status"), FAILURES, indirect=["child"])
def test_an_open_that_failed_goes_on_with_nothing(
    child: Child, status: int, other_requests: Counter[str]
) -> None:
    """The request for one document fails, and others stall."""
    proxy = child.connect()
    proxy.fail(OF_ONE[child.client], status)
    proxy.stall(only=OF_OTHERS[child.client])
    assert child.call("open_failing", proxy.url) not in ("none", "TimeoutError")
    assert went_on(child, proxy, other_requests) == Counter()


@every_client
def test_an_open_of_corrupt_data_goes_on_with_nothing(
    child: Child, other_requests: Counter[str]
) -> None:
    proxy = child.connect()
    proxy.fail(OF_ONE[child.client], 200, b"{")
    assert child.call("open_failing", proxy.url) not in ("none", "TimeoutError")
    assert went_on(child, proxy, other_requests) == Counter()


@every_client
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_a_load_that_timed_out_goes_on_with_nothing(
    child: Child, chunks: dict[str, int] | None, other_requests: Counter[str]
) -> None:
    proxy = child.connect()
    child.call("open", proxy.url, chunks)
    proxy.stall(only=CHUNKS[child.client])
    child.ask("load_until_told", proxy.url)
    proxy.wait_asked()
    if chunks is None and child.client.startswith("obstore"):
        # A thread makes this one, to measure the distance. It must not be about to do so.
        proxy.wait_requested("GET *first/v0/c/0/0")
    child.tell()
    assert child.answer() == "TimeoutError"
    waits = child.client in LOADS_GO_ON
    assert went_on(child, proxy, other_requests, waits=waits) == Counter()


@every_writer
@pytest.mark.parametrize("chunks", [None, {"y": 1}], ids=["in memory", "dask"])
def test_a_save_that_timed_out_goes_on_with_nothing(
    child: Child, chunks: dict[str, int] | None, other_requests: Counter[str]
) -> None:
    proxy = child.connect()
    proxy.stall(only="PUT *")
    child.ask("save_until_told", proxy.url, chunks)
    proxy.wait_asked()
    child.tell()
    assert child.answer() == "TimeoutError"
    # obstore's coroutines write: only those of its threads, which read, go on.
    waits = child.client in OPENS_GO_ON
    assert went_on(child, proxy, other_requests, waits=waits) == Counter()


@pytest.mark.parametrize("child", OPENS_GO_ON, indirect=True)
def test_a_client_that_goes_on_does_so_without_aioxarray(child: Child) -> None:
    left = {}
    for call in ("get_until_told", "open_until_told"):
        proxy = child.connect()
        proxy.stall(only=HELD[child.client])
        child.ask(call, proxy.url)
        proxy.wait_asked()
        child.tell()
        assert child.answer() == "TimeoutError"
        # Later calls are answered, while the earlier requests are still stalled.
        proxy.resume()
        child.call("load_other", proxy.url)
        left[call] = proxy.in_vain
    assert left["open_until_told"] <= left["get_until_told"]
