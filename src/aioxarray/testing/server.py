"""Loopback HTTP server for objects, with latency and counters.

It runs in a thread or in its own process. ``python -m aioxarray.testing --latency-s 0.05 --root
DIRECTORY`` starts one from the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import quote

from aioxarray.testing._gate import Gate
from aioxarray.testing._http import CONTROL, Connection, Site, from_json
from aioxarray.testing._log import LogSnapshot, RequestLog
from aioxarray.testing._objects import DirectoryObjects, MemoryObjects

__all__ = ["ObjectServer"]

HOST = "127.0.0.1"  # never anything else: every client may write
# How long a process may take to start or end: on a busy machine, imports take seconds.
PATIENCE_S = 60.0


def _site(
    latency_s: float, bytes_per_s: float, root: str | os.PathLike[str] | None, alone: bool
) -> Site:
    if root is None:
        return Site(MemoryObjects(), latency_s, bytes_per_s, off_loop=False)
    return Site(DirectoryObjects(root), latency_s, bytes_per_s, off_loop=not alone)


async def _serve(site: Site, started: Future[int], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    # Hundreds of clients may connect before the loop gets to accept them.
    server = await loop.create_server(lambda: Connection(site), HOST, 0, backlog=1024)
    try:
        started.set_result(server.sockets[0].getsockname()[1])
        await stop.wait()
    finally:
        # Not wait_closed: it would wait for clients that keep their connections open.
        server.close()
        for connection in tuple(site.connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the loop close their sockets


class _Host(Protocol):
    """Interface of the hosts: a thread or a process that runs the server."""

    port: int
    log: RequestLog
    data: MutableMapping[str, bytes]
    latency_s: float

    def close(self) -> None: ...


class _ThreadHost:
    """Host that runs the server on its own loop in a daemon thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.log = site.log
        self.data: MutableMapping[str, bytes] = site.objects
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="object-server", daemon=True
        )
        self._thread.start()
        self.port = started.result()

    def _run(self, started: Future[int]) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            await _serve(self.site, started, self._stop)

        try:
            asyncio.run(main())
        except BaseException as error:  # raised in `__init__`, which waits for the start
            if started.done():
                raise
            started.set_exception(error)

    @property
    def latency_s(self) -> float:
        return self.site.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self.site.latency_s = seconds

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class _ProcessHost:
    """Host that runs the server in another process, which ends when its standard input does."""

    def __init__(
        self, latency_s: float, bytes_per_s: float, root: str | os.PathLike[str] | None
    ) -> None:
        # The child must import the same package as this process.
        path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "aioxarray.testing"]
        command += ["--latency-s", str(latency_s), "--bytes-per-s", str(bytes_per_s)]
        if root is not None:
            command += ["--root", os.fspath(root)]
        self._process = subprocess.Popen(
            [*command, "--until-stdin-ends"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            start_new_session=True,  # Ctrl-C reaches only the parent; the child ends after it
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            self.close()
            raise RuntimeError(f"the server process did not start: {line!r}")
        self.port = int(line)
        self.log: RequestLog = _RemoteLog(self)
        self.data: MutableMapping[str, bytes] = _RemoteObjects(self)
        self._latency_s = latency_s

    @property
    def latency_s(self) -> float:
        return self._latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self.call("PUT", "latency", str(seconds).encode())
        self._latency_s = seconds

    def call(self, method: str, what: str, body: bytes | None = None) -> bytes | None:
        """Send a control request to the other process; return the body, or None for a 404."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, f"/{CONTROL}{quote(what)}", body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise OSError(f"{method} {what}: {answer.status} {answer.reason}")
        return data

    def close(self) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class _RemoteLog(RequestLog):
    """The log of a server in another process."""

    def __init__(self, host: _ProcessHost) -> None:
        super().__init__()
        self._host = host

    def snapshot(self) -> LogSnapshot:
        data = self._host.call("GET", "stats")
        assert data is not None
        return from_json(data)

    def clear(self) -> None:
        self._host.call("PUT", "reset")


class _RemoteObjects(MutableMapping[str, bytes]):
    """The objects of a server in another process."""

    def __init__(self, host: _ProcessHost) -> None:
        self._host = host

    def _keys(self) -> list[str]:
        keys: list[str] = json.loads(self._host.call("GET", "keys") or b"[]")
        return keys

    def __getitem__(self, key: str) -> bytes:
        data = self._host.call("GET", f"objects/{key}")
        if data is None:
            raise KeyError(key)
        return data

    def __setitem__(self, key: str, data: bytes) -> None:
        self._host.call("PUT", f"objects/{key}", bytes(data))

    def __delitem__(self, key: str) -> None:
        if self._host.call("DELETE", f"objects/{key}") is None:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())


class ObjectServer:
    """HTTP/1.1 server for objects on 127.0.0.1, at a free port.

    It answers GET (whole or with one range), HEAD, PUT and DELETE. Directories are listed as a
    page of links, for fsspec, and by PROPFIND, for obstore. Connections are kept alive.

    Parameters
    ----------
    latency_s : float, optional
        Delay of each answer in seconds. It can be changed while the server runs.
    root : path, optional
        Serve the files of this directory. By default, objects are in memory.
    process : bool, optional
        Serve from another process, so that the server does not hold the GIL of the process under
        test. It starts in about the time that ``import zarr`` takes, and ends with this process.
    bytes_per_s : float, optional
        Bandwidth for bodies, sent and received, of all clients together: an answer is sent when
        all bodies before it, and its own, have been transferred. 0: no limit.

    Examples
    --------
    >>> import urllib.request
    >>> with ObjectServer() as server:
    ...     server.put("a/b", b"hello")
    ...     with urllib.request.urlopen(f"{server.url}/a/b") as answer:
    ...         answer.read()
    ...     server.log.count("GET")
    b'hello'
    1
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        root: str | os.PathLike[str] | None = None,
        process: bool = False,
        bytes_per_s: float = 0.0,
    ) -> None:
        self._initial_latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._root = root
        self._process = process
        self._host: _Host | None = None

    def start(self) -> Self:
        """Start the server; ``with`` does the same."""
        if self._host is not None:
            raise RuntimeError("the server has been started already")
        if self._process:
            self._host = _ProcessHost(self._initial_latency_s, self._bytes_per_s, self._root)
        else:
            self._host = _ThreadHost(
                _site(self._initial_latency_s, self._bytes_per_s, self._root, alone=False)
            )
        return self

    def hold(self, glob: str = "*") -> None:
        """Hold the answers to requests for matching keys from now on, until `release`.

        Not available for a server in another process.
        """
        host = self._running
        if not isinstance(host, _ThreadHost):
            raise TypeError("only a server in this process can hold requests")
        if host.site.gate is None:
            host.site.gate = Gate(glob)
        else:
            host.site.gate.set_open(glob, False)

    def release(self, glob: str = "*") -> None:
        """Answer matching requests, both held and future ones."""
        self._gate.set_open(glob, True)

    @property
    def waiting(self) -> tuple[str, ...]:
        """The keys whose requests are held now, in order of arrival."""
        return self._gate.waiting

    async def requested(self, glob: str = "*", count: int = 1) -> None:
        """Wait until ``count`` requests for matching keys have arrived since the first `hold`."""
        await self._gate.arrival(glob, count)

    def wait_requested(self, glob: str = "*", timeout_s: float = 30.0, count: int = 1) -> None:
        """Block this thread until ``count`` requests for matching keys have arrived.

        Raises TimeoutError after ``timeout_s`` seconds.
        """
        self._gate.wait_arrival(glob, count, timeout_s)

    async def deserted(self) -> None:
        """Wait until no request is held: all were answered, or their clients disconnected."""
        await self._gate.departure()

    @property
    def _gate(self) -> Gate:
        host = self._running
        if not isinstance(host, _ThreadHost) or host.site.gate is None:
            raise RuntimeError("nothing is held: call `hold` first")
        return host.site.gate

    def fail(self, glob: str, status: int | None = 500) -> None:
        """Answer requests for matching keys with an error status; None ends that.

        Not available for a server in another process.
        """
        host = self._running
        if not isinstance(host, _ThreadHost):
            raise TypeError("only a server in this process can fail requests")
        host.site.faults.append((glob, None if status is None else HTTPStatus(status)))

    def close(self) -> None:
        """Disconnect all clients and stop. Objects in memory are lost."""
        host, self._host = self._host, None
        if host is not None:
            host.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "not running" if self._host is None else self.url
        return f"<ObjectServer: {where}>"

    @property
    def _running(self) -> _Host:
        if self._host is None:
            raise RuntimeError("the server is not running: use `with ObjectServer() as server`")
        return self._host

    @property
    def url(self) -> str:
        """The server's URL, without a trailing slash."""
        return f"http://{HOST}:{self._running.port}"

    @property
    def log(self) -> RequestLog:
        """The requests, by HTTP verb and key, and how many were in flight.

        A request counts as completed when its answer is handed to the connection, and as
        cancelled if the client disconnected before that. Objects in memory without latency are
        served at once, so no two requests are in flight together. Each access asks the server
        process, if there is one.
        """
        return self._running.log

    @property
    def data(self) -> MutableMapping[str, bytes]:
        """The objects. Reading and changing them here is neither delayed nor counted."""
        return self._running.data

    def put(self, key: str, data: bytes) -> None:
        """Store an object; neither delayed nor counted."""
        self.data[key] = data

    @property
    def latency_s(self) -> float:
        """Delay of each answer in seconds; can be set."""
        return self._running.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._running.latency_s = seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server from the command line until interrupted; prints the port first."""
    parser = argparse.ArgumentParser(prog="python -m aioxarray.testing", description=__doc__)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--bytes-per-s", type=float, default=0.0, help="0: no limit")
    parser.add_argument("--root", default=None, help="a directory; without it, in memory")
    parser.add_argument("--until-stdin-ends", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        started: Future[int] = Future()
        started.add_done_callback(lambda port: print(port.result(), flush=True))  # noqa: T201

        def wait_for_parent() -> None:
            # The pipe closes however the parent ends, so no server outlives it.
            while os.read(0, 4096):
                pass
            loop.call_soon_threadsafe(stop.set)

        if options.until_stdin_ends:
            threading.Thread(target=wait_for_parent, daemon=True).start()
        site = _site(options.latency_s, options.bytes_per_s, options.root, alone=True)
        await _serve(site, started, stop)

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        pass
