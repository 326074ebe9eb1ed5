"""Servers on a virtual clock, with the limits that real ones have."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from aioxarray.testing._log import Request
from aioxarray.testing._wrapper import RequestStore

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

# The requests that one process makes in a second.
PROCESS_A_SECOND = 2500


class RefusedError(OSError):
    """An answer with the status 503."""

    status = 503

    def __init__(self, retry_after: float | None) -> None:
        super().__init__("503 Slow Down")
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class Line:
    """Something that serves one request after the other."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def serve(self, seconds: float) -> None:
        async with self._turn:
            await asyncio.sleep(seconds)


class Server:
    """The state of a server; see `ServedStore`.

    Parameters
    ----------
    latency_s
        How long an answer takes; a refusal takes a tenth of that.
    most
        The most requests in flight; others are refused.
    a_second
        The most requests in a second.
    window
        How these are counted: in the seconds of the clock ("fixed"), in the second before
        ("sliding"), or with a reserve of ``burst`` requests ("bucket").
    bytes_a_second
        The bandwidth of the link, which carries one answer after the other.
    patience_s
        The client raises TimeoutError after so many seconds.
    retry_after
        The header of refusals.
    """

    def __init__(
        self,
        latency_s: float,
        *,
        most: float = math.inf,
        a_second: float = math.inf,
        window: str = "fixed",
        burst: float = 0,
        bytes_a_second: float = math.inf,
        patience_s: float = math.inf,
        retry_after: float | None = None,
    ) -> None:
        self.latency_s = latency_s
        self.most = most
        self.a_second = a_second
        self.window = window
        self.burst = burst
        self.bytes_a_second = bytes_a_second
        self.patience_s = patience_s
        self.retry_after = retry_after
        self.in_flight = 0
        self.most_in_flight = 0
        # The times of the requests, and of those that were refused.
        self.asked: list[float] = []
        self.refused: list[float] = []
        self.late = 0
        # While the server is still, it answers at once and counts nothing.
        self.is_still = True
        self.is_down = False
        # From a time on, another limit on the requests in flight.
        self.later: tuple[float, float] | None = None
        self._accepted: deque[float] = deque()
        self._tokens, self._filled_at = burst, 0.0
        self._process = Line()
        self._link = Line()

    def refusals_after(self, seconds: float) -> float:
        """Return the part of the requests after so many seconds that were refused."""
        asked = sum(at > seconds for at in self.asked)
        return sum(at > seconds for at in self.refused) / asked if asked else 0.0

    def _has_room(self, now: float) -> bool:
        if self.is_down or self.in_flight >= self.most:
            return False
        if self.a_second == math.inf:
            return True
        if self.window == "bucket":
            gained = (now - self._filled_at) * self.a_second
            self._tokens, self._filled_at = min(self.burst, self._tokens + gained), now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
        start = math.floor(now) if self.window == "fixed" else now - 1
        while self._accepted and self._accepted[0] < start:
            self._accepted.popleft()
        if len(self._accepted) >= self.a_second:
            return False
        self._accepted.append(now)
        return True

    async def answer(self, send: Callable[[], Awaitable[T]]) -> T:
        """Answer a request, or refuse it."""
        if self.is_still:
            return await send()
        await self._process.serve(1 / PROCESS_A_SECOND)
        try:
            async with asyncio.timeout(None if self.patience_s == math.inf else self.patience_s):
                return await self._answer(send)
        except TimeoutError:
            self.late += 1
            raise

    async def _answer(self, send: Callable[[], Awaitable[T]]) -> T:
        now = asyncio.get_running_loop().time()
        if self.later is not None and now >= self.later[0]:
            self.most = self.later[1]
        self.asked.append(now)
        if not self._has_room(now):
            self.refused.append(now)
            await asyncio.sleep(self.latency_s / 10)
            raise RefusedError(self.retry_after)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency_s)
            value = await send()
            if self.bytes_a_second < math.inf and value is not None:
                await self._link.serve(len(value) / self.bytes_a_second)  # type: ignore[arg-type]
            return value
        finally:
            self.in_flight -= 1


class ServedStore(RequestStore):
    """A store behind a `Server`."""

    def __init__(self, store: Store, server: Server) -> None:
        super().__init__(store)
        self.server = server

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        return await self.server.answer(send)
