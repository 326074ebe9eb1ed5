"""Pacing: under ``concurrency="auto"``, requests wait for their turn at their server.

The turns of a server (a host) are for all its stores and all calls of this process.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr.stores.retries.errors import transient
from aioxarray._zarr.stores.servers.following import FollowingShare
from aioxarray._zarr.stores.servers.hosts import Host, host_of
from aioxarray._zarr.stores.servers.limits import ServerLimits
from aioxarray._zarr.stores.servers.room import Room
from aioxarray.config import Concurrency, is_adaptive, is_default, request_limit


class PacedShare(Share):
    """A share of the requests in flight, whose requests also wait for their turn at the server.

    Attributes
    ----------
    known
        The store of the latest request, and the pace of its server: most calls have one store.
    """

    __slots__ = ("known",)

    def __init__(self, budget: Budget, bound: float) -> None:
        super().__init__(budget, bound)
        self.known: tuple[Any, Pace | None] = None, None


def request_share(requests: Budget, concurrency: Concurrency | None) -> Share:
    """Return a share of ``requests`` for a call with the limit ``concurrency``."""
    kind = Share
    if is_adaptive(concurrency):
        kind = PacedShare
    elif is_default(concurrency):
        kind = FollowingShare
    return kind(requests, request_limit(concurrency))


def pace_of(store: Any, places: Share | None) -> Pace | None:
    """Return the pace of the server behind ``store``; None without a server or "auto"."""
    if type(places) is not PacedShare:
        return None
    known, pace = places.known
    if known is not store:
        pace = _find(store)
        places.known = store, pace
    return pace


def _find(store: Any) -> Pace | None:
    host = host_of(store)
    if host is None:
        return None
    with _lock:
        pace = _paces.get(host)
        if pace is None:
            pace = _paces[host] = Pace()
        return pace


# The future gets the era in which the request is made; see `ServerLimits`.
_Waiting = tuple[asyncio.Future[int], asyncio.AbstractEventLoop]
# The requests of a share, and whether they will wait for memory; None in place of the share for
# those that have been made before.
_Queue = tuple[Share | None, bool]


class Pace:
    """The turns of the requests to one server, in any event loop or thread.

    Waiting is fair among calls, as in `Budget`; requests that were refused go first.
    """

    def __init__(self) -> None:
        self.limits = ServerLimits()
        self.in_flight = 0
        # The requests that have had their turn and wait for memory.
        self.aside = 0
        self._lock = threading.Lock()
        # In the order of their turns; each has an entry.
        self._queues: OrderedDict[_Queue, deque[_Waiting]] = OrderedDict()
        # When the next request is let in, and the loop that has the timer for it.
        self._alarm: tuple[float, asyncio.AbstractEventLoop] | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether the server has refused a request."""
        return self.limits.is_bounded

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Open a context for a request that does not wait for its turn, in any thread."""
        with self._lock:
            era = self._send(time.monotonic())
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.leave(era, None, error)

    def turn_now(self, now: float) -> int | None:
        """Take the turn of a request if it need not wait; return the era, for `leave`."""
        with self._lock:
            if self._queues or self.aside or self.limits.opens_at(now, self.in_flight) > now:
                return None
            return self._send(now)

    async def turn(self, places: Share, *, again: bool, needs_memory: bool) -> int:
        """Wait for the turn of a request; return the era, for `leave`.

        Parameters
        ----------
        places
            The share of the requests that its call has.
        again
            Whether the request has been made before.
        needs_memory
            Whether it will wait for memory.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        key = (None if again else places), needs_memory
        with self._lock:
            future: asyncio.Future[int] = loop.create_future()
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = deque()
                if again:
                    self._queues.move_to_end(key, last=False)
            queue.append((future, loop))
            self._let_in(now, loop)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                # The timer may be in a loop that ends.
                with self._lock:
                    self._alarm = None
                    self._let_in(loop.time(), loop)
            else:
                self.leave(future.result(), loop, None, answered=False)
            raise

    async def stand_aside(self, era: int, room: Room) -> None:
        """Wait for the bytes of ``room`` with a turn, which other requests may use meanwhile.

        That is for requests that do not wait for memory; others wait until fewer do. If the wait is
        cancelled, the turn ends.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self.aside += 1
            self.in_flight -= 1
            self.limits.dropped(era)
            self._let_in(loop.time(), loop)
        has_room = False
        try:
            await room.acquire()
            has_room = True
        finally:
            with self._lock:
                self.aside -= 1
                if has_room:
                    self.in_flight += 1
                else:
                    self._go_on(loop.time(), loop)

    def leave(
        self,
        era: int,
        here: asyncio.AbstractEventLoop | None,
        error: BaseException | None,
        *,
        answered: bool = True,
    ) -> None:
        """Record the end of a request, and let others in; thread-safe.

        Parameters
        ----------
        era
            The result of `turn` or `turn_now`.
        here
            The running loop; None in a thread without one.
        error
            The error of the request; None if it succeeded.
        answered
            False if the request was not made after all.
        """
        answered = answered and (error is None or isinstance(error, Exception))
        found = transient(error) if answered and error is not None else None
        now = time.monotonic() if here is None else here.time()
        with self._lock:
            if answered and found is None:
                # Errors such as "not found" are answers, too.
                self.limits.accepted(era, now, wanted=self._is_waited_for)
            elif found is not None and (found.refused or found.late):
                self.limits.refused(
                    era, now, self.in_flight, late=found.late, retry_after=found.retry_after
                )
            else:
                self.limits.dropped(era)
            self.in_flight -= 1
            self._go_on(now, here)

    def _send(self, now: float) -> int:
        self.in_flight += 1
        return self.limits.sent(now)

    @property
    def _is_waited_for(self) -> bool:
        return bool(self._queues)

    def _go_on(self, now: float, here: asyncio.AbstractEventLoop | None) -> None:
        """Let in others after the end of a request; the lock is held."""
        if self._is_waited_for:
            self._let_in(now, here)
        elif self.in_flight == self.aside == 0:
            self.limits.idle()

    def _let_in(self, now: float, here: asyncio.AbstractEventLoop | None) -> None:
        """Let in the requests whose turn it is; the lock is held.

        ``here`` is the running loop; None in a thread without one.
        """
        while (key := self._first()) is not None:
            future, loop = self._queues[key][0]
            when = self.limits.opens_at(now, self.in_flight)
            if when == math.inf:
                return
            try:
                if when > now:
                    self._wake_at(when, loop)
                    return
                era = self._send(now)
                if loop is here:
                    future.set_result(era)
                else:
                    loop.call_soon_threadsafe(self._grant, future, loop, era)
            except RuntimeError:
                # The loop was closed while the request waited.
                if when <= now:
                    self.in_flight -= 1
            self._remove_first(key)

    def _first(self) -> _Queue | None:
        """Return the queue whose first request is next; None if none may be let in now."""
        are_many_aside = self.aside > 0 and self.limits.is_full(self.in_flight + self.aside)
        first, empty = None, []
        for key, queue in self._queues.items():
            while queue and queue[0][0].cancelled():
                queue.popleft()
            if not queue:
                empty.append(key)
            elif not (are_many_aside and key[1]):
                first = key
                break
        for key in empty:
            del self._queues[key]
        return first

    def _remove_first(self, key: _Queue) -> None:
        queue = self._queues[key]
        queue.popleft()
        if not queue:
            del self._queues[key]
        elif key[0] is not None:
            self._queues.move_to_end(key)

    def _grant(
        self, future: asyncio.Future[int], loop: asyncio.AbstractEventLoop, era: int
    ) -> None:
        if future.cancelled():
            self.leave(era, loop, None, answered=False)
        else:
            future.set_result(era)

    def _wake_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        """Call `_let_in` at ``when``, in ``loop``."""
        alarm = self._alarm
        if alarm is None or when < alarm[0] or alarm[1].is_closed():
            loop.call_soon_threadsafe(self._set_timer, when, loop)
            self._alarm = when, loop

    def _set_timer(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(when, self._ring, when, loop)

    def _ring(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._alarm = None
            # A loop calls a bit early, by the resolution of its clock.
            self._let_in(max(when, loop.time()), loop)


_lock = threading.Lock()
_paces: weakref.WeakKeyDictionary[Host, Pace] = weakref.WeakKeyDictionary()


@after_fork
def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _paces.clear()
