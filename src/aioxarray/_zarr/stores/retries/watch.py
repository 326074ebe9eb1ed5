"""The watch: which of the requests in flight on an event loop are silent, and which are slow.

A request is *silent* if it is overdue, and its server has sent nothing lately on any connection or
has answered a request that began later. Where the system does not count what arrives (other than
Linux), only answers count. It is *slow* if it takes longer than nearly all answers of its server.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from aioxarray._runtime.system.connections import Connection, moved_bytes, plain_address
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.servers.hosts import Host
from aioxarray.config import stall_seconds

_RESOLUTION_S = 0.001

# Replaced in tests.
count_moved: Callable[[], Mapping[Connection, int] | None] = moved_bytes


class _Heard:
    """The latest answers of a host, and the hedges that they allow."""

    def __init__(self) -> None:
        # When the youngest request began that was answered.
        self.answered = -math.inf
        # The addresses of its connections; None as long as they are unknown.
        self.peers: frozenset[tuple[str, int]] | None = None
        self.resolving: asyncio.Task[None] | None = None
        # How long answers took lately, in seconds.
        self._times: deque[float] = deque(maxlen=tuning.HEDGE_HISTORY)
        self._fresh = 0
        # How many hedges are allowed.
        self.hedges = 0.0
        # An answer that takes longer than nearly all others is slow.
        self.slow_s = math.inf

    def record(self, seconds: float) -> None:
        """Record how long an answer took."""
        quick = seconds <= self.slow_s
        share = tuning.HEDGE_SHARE if quick else tuning.HEDGE_SHARE_IF_SLOW
        self.hedges = min(self.hedges + share, tuning.MOST_HEDGES)
        self._times.append(seconds)
        self._fresh += 1
        if self._fresh >= tuning.HEDGE_HISTORY // 16:
            self._fresh = 0
            times = sorted(self._times)
            nearly_all = times[int(len(times) * (1 - tuning.SLOW_SHARE))]
            self.slow_s = nearly_all * tuning.CLEARLY_SLOWER


class Awaited(Protocol):
    """A wait for an answer, which acts when the request turns out to be silent or slow.

    Attributes
    ----------
    host
        The server.
    begun, due, hedge_at
        When the request began, when its answer is overdue, and when it is slow.
    """

    host: Host
    hedge_at: float

    @property
    def begun(self) -> float: ...

    @property
    def due(self) -> float: ...

    def on_slowness(self) -> bool:
        """Called once when the request is slow; return whether another one was made."""

    def on_silence(self, now: float, *, is_quiet: bool) -> None:
        """Called again and again while the request is silent."""


class Watch:
    """The requests of one event loop that wait for their answers.

    One timer looks at all of them, so that a request which is answered in time costs little.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._asked: dict[Awaited, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._look_s = _look_s()
        self._heard: dict[Host, _Heard] = {}
        self._moved: Mapping[Connection, int] = {}
        self._growing: frozenset[Connection] | None = None
        self._counted_at = -math.inf

    def __contains__(self, asked: Awaited) -> bool:
        return asked in self._asked

    def of(self, host: Host) -> _Heard:
        """Return the latest answers of ``host``."""
        heard = self._heard.get(host)
        if heard is None:
            if len(self._heard) >= tuning.MOST_HOSTS:
                del self._heard[next(iter(self._heard))]
            heard = self._heard[host] = _Heard()
        return heard

    def add(self, asked: Awaited) -> None:
        """Watch a request that is being made."""
        self._asked[asked] = None
        if (when := min(asked.due - self._look_s, asked.hedge_at)) < self._wakes_at:
            self._wake_at(when)

    def remove(self, asked: Awaited) -> None:
        """Watch a request no more."""
        self._asked.pop(asked, None)

    def answered(self, host: Host, begun: float, *, is_hedged: bool) -> None:
        """Record that a request was answered which had begun at ``begun``."""
        heard = self.of(host)
        if begun > heard.answered:
            heard.answered = begun
        if is_hedged:
            heard.record(self.loop.time() - begun)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._wakes_at = None, math.inf
        # A timer may be early by the resolution of the clock; and close ones need but one look.
        now = self.loop.time() + _RESOLUTION_S
        self._look_s = look_s = _look_s()
        wake_at = math.inf
        counted = False
        for asked in list(self._asked):
            if now >= asked.hedge_at:
                self._hedge(asked)
            if now >= asked.due - look_s:
                if not counted:
                    self._count(now, look_s)
                    counted = True
                if now >= asked.due:
                    self._judge(asked, now)
            if asked in self._asked:
                wake_at = min(wake_at, asked.hedge_at, max(asked.due - look_s, now + look_s))
        if wake_at < self._wakes_at:
            self._wake_at(wake_at)

    def _hedge(self, asked: Awaited) -> None:
        heard = self.of(asked.host)
        asked.hedge_at = self.loop.time() + heard.slow_s
        if heard.hedges >= 1 and asked.on_slowness():
            heard.hedges -= 1

    def _judge(self, asked: Awaited, now: float) -> None:
        heard = self.of(asked.host)
        is_quiet = self._is_quiet(asked.host, heard)
        if is_quiet or heard.answered > asked.begun:
            asked.on_silence(now, is_quiet=is_quiet)

    def _count(self, now: float, look_s: float) -> None:
        """Find the connections on which bytes have moved since the last look."""
        moved = count_moved()
        if moved is None:
            self._growing = None
            return
        before, self._moved = self._moved, moved
        # Without a recent count there is nothing to compare with.
        recent = now - self._counted_at <= 2 * look_s
        self._counted_at = now
        self._growing = (
            frozenset(key for key, count in moved.items() if count > before.get(key, math.inf))
            if recent
            else None
        )

    def _is_quiet(self, host: Host, heard: _Heard) -> bool:
        """Return whether certainly nothing arrives from ``host``."""
        if self._growing is None:
            return False
        if host.address is not None and heard.peers is None:
            if heard.resolving is None:
                heard.resolving = self.loop.create_task(_resolve(host.address, heard))
            return False
        peers = heard.peers or ()
        ours = {each for each in self._moved if each[:2] in peers}
        # Through a proxy, or if the client does not tell its server, any connection may be meant.
        return not (self._growing & ours if ours else self._growing)


async def _resolve(address: tuple[str, int], heard: _Heard) -> None:
    """Find the IP addresses of a host."""
    name, port = address
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port)
    except OSError:
        # If there is a proxy, the name may mean nothing here.
        found = []
    addresses = (plain_address(str(address[0])) for *_, address in found)
    heard.peers = frozenset((each, port) for each in addresses)


def patience_s(size: int) -> float:
    """Return the seconds after which an answer of ``size`` bytes is overdue."""
    return stall_seconds() + size / tuning.SLOW_BYTES_A_SECOND


def _look_s() -> float:
    """Return the seconds between two looks at an overdue request."""
    return min(stall_seconds() / 5, 1.0)


_here = threading.local()


def watch_here() -> Watch:
    """Return the watch of the running loop."""
    loop = asyncio.get_running_loop()
    watch: Watch | None = getattr(_here, "watch", None)
    if watch is None or watch.loop is not loop:
        watch = _here.watch = Watch(loop)
    return watch
