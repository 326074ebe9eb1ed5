"""A proxy on loopback that stalls: it takes requests from then on, and never answers them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self

HOST = "127.0.0.1"
# Only a bug waits this long.
PATIENCE_S = 60.0

# How a request begins, up to and without the version of HTTP: "GET /bucket/a".
_HEAD = re.compile(rb"([A-Z]+ \S+) HTTP/1\.1\r\n")
# More turns than a loop needs from accepting a connection to reading what was sent by it.
_TURNS = 20


@dataclass(eq=False)
class _Connection:
    """A client's connection, and the one by which its requests are passed on."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    back: asyncio.Task[None] | None = None
    # What the client sent in vain and has not been passed on.
    held: list[bytes] = field(default_factory=list)
    # Held while the server's side is opened, which a release and the client may ask for at once.
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class StallingProxy:
    """Passes bytes between clients and a server on loopback, until it is told to stall.

    Requests are named by what they begin with: "GET /bucket/a".

    Parameters
    ----------
    upstream : int
        The port of the server.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        # How many more requests are passed on; None while all are.
        self._left: int | None = None
        self._only = "*"
        self._passing = 0
        self._asked = 0
        self._changed = threading.Condition()
        self._requests: list[str] = []
        self._faults: list[tuple[str, int, bytes]] = []
        # Connections by which something was sent in vain.
        self._in_vain: set[_Connection] = set()
        self._releasing: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        self.port = started.result(PATIENCE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    def stall(self, after: int = 0, passing: int = 0, only: str = "*") -> None:
        """Answer nothing, ``after`` so many more requests, but the first ``passing`` bytes.

        Requests that do not match the glob ``only`` are answered and not counted.
        """
        self._only = only
        self._passing = passing
        self._left = after

    def resume(self) -> None:
        """Answer what is asked from now on; what was asked in vain stays so."""
        self._left = None

    def fail(self, glob: str, status: int, body: bytes = b"") -> None:
        """Answer requests that match ``glob`` with ``status`` and ``body``, unless they stall."""
        self._faults.append((glob, status, body))

    def release(self) -> None:
        """Answer what was asked in vain, and everything as usual from now on."""
        self.resume()
        self._faults.clear()
        self._on_loop(self._release)

    def drop(self) -> None:
        """Close the connections by which something was asked in vain."""
        with self._changed:
            for each in self._in_vain:
                self._loop.call_soon_threadsafe(each.client.transport.abort)

    @property
    def in_vain(self) -> int:
        """By how many connections something was asked in vain, and is still waited for."""
        with self._changed:
            return len(self._in_vain)

    @property
    def asked(self) -> int:
        """How often something was asked in vain."""
        with self._changed:
            return self._asked

    @property
    def requests(self) -> tuple[str, ...]:
        """What was requested since the start, all that was sent before this was asked for."""
        self._on_loop(lambda: None)
        with self._changed:
            return tuple(self._requests)

    def wait_asked(self, count: int = 1) -> None:
        """Wait until something was asked in vain ``count`` times, since the start."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._asked >= count, PATIENCE_S)

    def wait_requested(self, glob: str) -> None:
        """Wait until a request that matches ``glob`` has been made in vain."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(fnmatchcase(each, glob) for each in self._requests), PATIENCE_S
            )

    def wait_left(self) -> None:
        """Wait until no client waits for an answer in vain any more."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._in_vain, PATIENCE_S)

    def _on_loop(self, function: Callable[[], None]) -> None:
        """Call ``function`` on the loop, when all has been read that was sent until now."""

        async def call() -> None:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE_S)

    def _lets_pass(self, request: str) -> bool:
        if self._left is None or not fnmatchcase(request, self._only):
            return True
        self._left = max(-1, self._left - 1)
        return self._left >= 0

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._clients: set[asyncio.StreamWriter] = set()
        self._no_clients = asyncio.Event()
        self._no_clients.set()
        server = await asyncio.start_server(self._connected, HOST, 0, backlog=1024)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for each in self._clients:
            each.transport.abort()
        await self._no_clients.wait()

    async def _connected(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._clients.add(client)
        self._no_clients.clear()
        connection = _Connection(client)
        try:
            while data := await reader.read(1 << 16):
                await self._take(connection, data)
        except ConnectionError:
            pass
        finally:
            if connection.back is not None:
                connection.back.cancel()
            with self._changed:
                self._in_vain.discard(connection)
                self._changed.notify_all()
            self._clients.discard(client)
            if connection.server is not None:
                connection.server.close()
            client.close()
            if not self._clients:
                self._no_clients.set()

    async def _take(self, connection: _Connection, data: bytes) -> None:
        """Do with a piece of what a client sent as was told."""
        head = _HEAD.match(data)
        if head is not None:
            request = head[1].decode()
            passes = connection not in self._in_vain and self._lets_pass(request)
            with self._changed:
                self._requests.append(request)
                if not passes:
                    self._in_vain.add(connection)
                    self._asked += 1
                    self._changed.notify_all()
            if passes and (answer := self._fault(request)) is not None:
                connection.client.write(answer)
                return
        if connection in self._in_vain and not self._passing:
            connection.held.append(data)
        else:
            await self._pass_on(connection, data)

    def _fault(self, request: str) -> bytes | None:
        for glob, status, body in self._faults:
            if fnmatchcase(request, glob):
                head = f"HTTP/1.1 {status} Told so\r\nContent-Length: {len(body)}\r\n\r\n"
                return head.encode() + (b"" if request.startswith("HEAD ") else body)
        return None

    async def _pass_on(self, connection: _Connection, data: bytes) -> None:
        async with connection.opening:
            if connection.server is None and self._is_open(connection):
                answers, server = await asyncio.open_connection(HOST, self._upstream)
                if self._is_open(connection):
                    connection.server = server
                    connection.back = asyncio.create_task(self._pass_back(answers, connection))
                else:
                    server.close()
        if connection.server is None or not self._is_open(connection):
            return
        connection.server.write(data)
        await connection.server.drain()

    def _is_open(self, connection: _Connection) -> bool:
        return connection.client in self._clients

    def _release(self) -> None:
        with self._changed:
            connections = list(self._in_vain)
            self._in_vain.clear()
            self._changed.notify_all()
        for each in connections:
            held, each.held = b"".join(each.held), []
            task = asyncio.create_task(self._pass_on(each, held))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def _pass_back(self, answers: asyncio.StreamReader, connection: _Connection) -> None:
        client = connection.client
        passed = 0
        try:
            while data := await answers.read(1 << 16):
                if connection in self._in_vain:
                    data = data[: max(0, self._passing - passed)]
                    passed += len(data)
                client.write(data)
                await client.drain()
        except ConnectionError:
            pass
