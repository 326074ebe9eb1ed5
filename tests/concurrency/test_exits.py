"""Processes end at once, whatever servers owe them, in every way in which a process can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.concurrency.exits import STORES
from tests.concurrency.helpers import PATIENCE_S
from tests.stalling import StallingProxy

# Enough for an interpreter to end on a busy machine, and less than any client waits for a server.
EXIT_S = 30.0


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
            said = _pipe(self.process.stderr).read()
            pytest.fail(f"the process had not ended {EXIT_S} s later; it had said: {said}")
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
def proxy(request: pytest.FixtureRequest, ports: dict[str, int]) -> Iterator[StallingProxy]:
    port = ports.get(request.getfixturevalue("store"), ports["http"])
    with StallingProxy(port) as running:
        yield running


def interrupt(child: Child) -> None:
    child.process.send_signal(signal.SIGINT)


# What ends the process, and its exit code and a part of its last words.
ENDS: dict[str, tuple[Callable[[Child], None], int, str]] = {
    # An interrupt.
    "blocking": (interrupt, -signal.SIGINT, "KeyboardInterrupt"),
    # Nothing: the call gives up by itself.
    "timeout": (lambda child: None, 0, ""),
    # The end of the script. What the other thread says of its end, if it comes to that, is its own
    # affair.
    "in_background": (Child.tell, 0, ""),
}


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("way", ENDS)
@pytest.mark.parametrize("store", list(STORES))
def test_with_each_store(store: str, way: str, proxy: StallingProxy) -> None:
    end, expected, words = ENDS[way]
    with loading(proxy, store, way) as child:
        end(child)
        code, stderr = child.ends()
    assert code == expected, stderr
    assert words in stderr


@pytest.mark.parametrize(
    "store", ["obstore_http", pytest.param("fsspec_http", marks=pytest.mark.slow)]
)
def test_at_the_end_of_the_callers_loop(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "end_of_loop") as child:
        child.tell()
        code, stderr = child.ends()
    assert code == 0, stderr
    # aiohttp may say that fsspec has not closed a session.
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "store", ["fsspec_http", pytest.param("obstore_http", marks=pytest.mark.slow)]
)
def test_after_an_interrupt_of_the_callers_loop(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "asynchronous") as child:
        interrupt(child)
        code, stderr = child.ends()
    assert code == -signal.SIGINT, stderr
    assert "KeyboardInterrupt" in stderr


@pytest.mark.parametrize("store", ["obstore_http"])
@pytest.mark.parametrize(
    ("way", "code"), [("sys_exit", 7), pytest.param("unhandled", 1, marks=pytest.mark.slow)]
)
def test_in_other_ways(way: str, code: int, store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, way) as child:
        child.tell()
        assert child.ends()[0] == code


@pytest.mark.parametrize("store", ["obstore_http"])
def test_after_another_signal(store: str, proxy: StallingProxy) -> None:
    with loading(proxy, store, "blocking") as child:
        child.process.terminate()
        assert child.ends()[0] == -signal.SIGTERM
