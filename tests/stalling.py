"""A proxy on loopback that stalls: it takes requests from then on, and never answers them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Self

HOST = "127.0.0.1"
# Only a bug waits this long.
PATIENCE_S = 60.0


class StallingProxy:
    """Passes bytes between clients and a server on loopback, until it is told to stall.

    Parameters
    ----------
    upstream : int
        The port of the server.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        # How many pieces of requests are still passed on; None while all are.
        self._left: int | None = None
        self._passing = 0
        self._asked = 0
        self._changed = threading.Condition()
        # Connections by which something was sent in vain.
        self._in_vain: set[asyncio.StreamWriter] = set()

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

    def stall(self, after: int = 0, passing: int = 0) -> None:
        """Answer nothing, ``after`` so many more requests, but the first ``passing`` bytes."""
        self._passing = passing
        self._left = after

    def resume(self) -> None:
        """Answer what is asked from now on; what was asked in vain stays so."""
        self._left = None

    def drop(self) -> None:
        """Close the connections by which something was asked in vain."""
        with self._changed:
            for client in self._in_vain:
                self._loop.call_soon_threadsafe(client.transport.abort)

    def _lets_pass(self) -> bool:
        if self._left is None:
            return True
        self._left = max(-1, self._left - 1)
        return self._left >= 0

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

    def wait_asked(self, count: int = 1) -> None:
        """Wait until something was asked in vain ``count`` times, since the start."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._asked >= count, PATIENCE_S)

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
        answers, server = await asyncio.open_connection(HOST, self._upstream)
        back = asyncio.create_task(self._pass_back(answers, client))
        try:
            while data := await reader.read(1 << 16):
                if client in self._in_vain or not self._lets_pass():
                    with self._changed:
                        self._in_vain.add(client)
                        self._asked += 1
                        self._changed.notify_all()
                    if not self._passing:
                        continue
                server.write(data)
                await server.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            with self._changed:
                self._in_vain.discard(client)
            server.close()
            client.close()
            self._clients.discard(client)
            if not self._clients:
                self._no_clients.set()

    async def _pass_back(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        passed = 0
        try:
            while data := await answers.read(1 << 16):
                if client in self._in_vain:
                    data = data[: max(0, self._passing - passed)]
                    passed += len(data)
                client.write(data)
                await client.drain()
        except ConnectionError:
            pass
