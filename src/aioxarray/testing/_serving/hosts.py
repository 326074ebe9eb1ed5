"""Hosts of the server: a thread of this process, or a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from aioxarray.testing._log import LogSnapshot, RequestLog
from aioxarray.testing._serving.connection import Connection
from aioxarray.testing._serving.faults import Fault
from aioxarray.testing._serving.objects import DirectoryObjects, MemoryObjects
from aioxarray.testing._serving.site import CONTROL, Site, from_json
from aioxarray.testing.latency import Latency, latency_to_json

__all__ = ["HOST", "Host", "ProcessHost", "ThreadHost", "make_site", "serve"]

HOST = "127.0.0.1"  # never anything else: every client may write
# How long a process may take to start or end: on a busy machine, imports take seconds.
PATIENCE_S = 60.0


def make_site(
    latency_s: Latency, bytes_per_s: float, root: str | os.PathLike[str] | None, alone: bool
) -> Site:
    if root is None:
        return Site(MemoryObjects(), latency_s, bytes_per_s, off_loop=False)
    return Site(DirectoryObjects(root), latency_s, bytes_per_s, off_loop=not alone)


# More than a connection takes from being accepted to `Connection.connection_made`.
_ROUNDS = 5


async def serve(site: Site, started: Future[int], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    # Hundreds of clients may connect before the loop gets to accept them.
    server = await loop.create_server(lambda: Connection(site), HOST, 0, backlog=1024)
    try:
        started.set_result(server.sockets[0].getsockname()[1])
        await stop.wait()
    finally:
        # A closed server refuses a connection that the loop has just accepted, and leaves its
        # socket open. So the loop accepts no more first, and finishes what it has accepted.
        for listening in server.sockets:
            # The loop of Windows has no readers.
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listening)
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        # Not wait_closed: it would wait for clients that keep their connections open.
        server.close()
        for connection in tuple(site.connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the loop close their sockets


class Host(Protocol):
    """Interface of the hosts: a thread or a process that runs the server."""

    port: int
    log: RequestLog
    data: MutableMapping[str, bytes]
    latency_s: Latency

    def fail(self, fault: Fault) -> None: ...

    def mend(self) -> None: ...

    def close(self) -> None: ...


class ThreadHost:
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
            await serve(self.site, started, self._stop)

        try:
            asyncio.run(main())
        except BaseException as error:  # raised in `__init__`, which waits for the start
            if started.done():
                raise
            started.set_exception(error)

    @property
    def latency_s(self) -> Latency:
        return self.site.latency_s

    @latency_s.setter
    def latency_s(self, latency: Latency) -> None:
        self.site.latency_s = latency

    def fail(self, fault: Fault) -> None:
        """Add a rule by which requests fail."""
        self.site.faults.add(fault)

    def mend(self) -> None:
        """Drop the rules."""
        self.site.faults.clear()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class ProcessHost:
    """Host that runs the server in another process, which ends when its standard input does."""

    def __init__(
        self, latency_s: Latency, bytes_per_s: float, root: str | os.PathLike[str] | None
    ) -> None:
        # The child must import the same package as this process.
        path = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "aioxarray.testing"]
        command += ["--latency-s", latency_to_json(latency_s), "--bytes-per-s", str(bytes_per_s)]
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
    def latency_s(self) -> Latency:
        return self._latency_s

    @latency_s.setter
    def latency_s(self, latency: Latency) -> None:
        self.call("PUT", "latency", latency_to_json(latency).encode())
        self._latency_s = latency

    def fail(self, fault: Fault) -> None:
        """Add a rule by which requests fail."""
        self.call("PUT", "fault", fault.to_json())

    def mend(self) -> None:
        """Drop the rules."""
        self.call("PUT", "mend")

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

    def __init__(self, host: ProcessHost) -> None:
        super().__init__()
        self._host = host

    def snapshot(self) -> LogSnapshot:
        data = self._host.call("GET", "stats")
        assert data is not None
        return from_json(data)

    @property
    def in_flight(self) -> int:
        return self.snapshot().in_flight

    def wait_in_flight(self, count: int, timeout_s: float = 30.0) -> None:
        raise TypeError("only the log of a server in this process can be waited for")

    def clear(self) -> None:
        self._host.call("PUT", "reset")


class _RemoteObjects(MutableMapping[str, bytes]):
    """The objects of a server in another process."""

    def __init__(self, host: ProcessHost) -> None:
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
