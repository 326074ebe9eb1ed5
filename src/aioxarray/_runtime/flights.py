"""Work on equal keys at the same time, done once: by whichever call comes to it first.

A call that wants many keys joins with a `Party` and asks to `~Party.lead` each of them when it
comes to it. It leads a key that nobody else is at; it then does the work, calls `~Party.close`
just before the last step, and hands what came of it to those who asked meanwhile. A key that
somebody else leads is delivered to it: it goes on with its next one, and asks at its end for the
`~Party.rest`.

Nobody waits while it holds anything: who follows has no thread, no place and no lock. Any thread
and any loop may take part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """The keys that are being worked on in this process, and by whom."""

    def __init__(self) -> None:
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # The one who leads, and those who follow if there are any.
        self._leaders: dict[K, Party[K, V]] = {}
        self._followers: dict[K, list[Party[K, V]]] = {}

    def __repr__(self) -> str:
        return f"<Flights: {len(self._leaders)} under way>"

    @contextlib.contextmanager
    def party(self, deliver: Callable[[K, V], None]) -> Iterator[Party[K, V]]:
        """Take part in the work as one call, from a running asyncio loop.

        At the end of the context, however it comes, the keys that it still leads are given up:
        one of those who follow goes on with each.

        Parameters
        ----------
        deliver
            Takes a value that somebody else made; in their thread, so it must not wait. An
            error of its own becomes that of the call.
        """
        party: Party[K, V] = Party(self, deliver)
        try:
            yield party
        finally:
            party._leave()


class Party(Generic[K, V]):
    """One call's part in the work."""

    def __init__(self, flights: Flights[K, V], deliver: Callable[[K, V], None]) -> None:
        self._flights = flights
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._led: set[K] = set()
        self._awaited: set[K] = set()
        self._given_up: list[K] = []
        self._error: BaseException | None = None
        self._left = False

    def lead(self, key: K) -> bool:
        """Say whether the work on ``key`` is this call's; else somebody else delivers."""
        flights = self._flights
        with flights._lock:
            if flights._leaders.setdefault(key, self) is self:
                self._led.add(key)
                return True
            flights._followers.setdefault(key, []).append(self)
            self._awaited.add(key)
            return False

    def close(self, key: K) -> Sequence[Party[K, V]]:
        """End the time in which others can follow; return those who do.

        Each of them must then be given `hand` or `fail`, in the same thread without waiting:
        nothing else would wake them.
        """
        flights = self._flights
        with flights._lock:
            # The call may have ended meanwhile, and somebody else leads.
            if flights._leaders.get(key) is not self:
                return ()
            del flights._leaders[key]
            self._led.discard(key)
            # Most have none, and an attribute is looked up faster than a key.
            return flights._followers.pop(key, ()) if flights._followers else ()

    def hand(self, key: K, value: V) -> None:
        """Give this call a value that another one made; in any thread."""
        error: BaseException | None = None
        try:
            if not self._left:
                self._deliver(key, value)
        except Exception as caught:  # noqa: BLE001 - it belongs to this call, not to who works for it
            error = caught
        self._settle(key, error)

    def fail(self, key: K, error: BaseException) -> None:
        """Give this call the error that another one met; in any thread."""
        self._settle(key, error)

    def _settle(self, key: K, error: BaseException | None) -> None:
        with self._flights._lock:
            self._awaited.discard(key)
            self._error = self._error or error
            ended = not self._awaited or error is not None
        if ended:
            self._wake()

    def _wake(self) -> None:
        # Its loop may be gone, and with it whoever waited.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed.set)

    async def rest(self) -> list[K]:
        """Wait until all that others lead is delivered; return what they gave up instead.

        It is this call's turn to ask to `lead` those again. Raises the first error that another
        call met on a key of this one.
        """
        while True:
            with self._flights._lock:
                if self._error is not None:
                    raise self._error
                if self._given_up or not self._awaited:
                    again, self._given_up = self._given_up, []
                    return again
                self._changed.clear()
            await self._changed.wait()

    def _leave(self) -> None:
        flights = self._flights
        woken: list[Party[K, V]] = []
        with flights._lock:
            self._left = True
            for key in self._led:
                # A child after a fork knows nothing of it.
                if flights._leaders.get(key) is not self:
                    continue
                del flights._leaders[key]
                for other in flights._followers.pop(key, ()):
                    other._awaited.discard(key)
                    other._given_up.append(key)
                    woken.append(other)
            self._led.clear()
            for key in self._awaited:
                # Not there any more where it is just being delivered.
                others = flights._followers.get(key, [])
                if self in others:
                    others.remove(self)
                    if not others:
                        del flights._followers[key]
        for other in woken:
            other._wake()


_all: weakref.WeakSet[Flights[Any, Any]] = weakref.WeakSet()


def _reset_after_fork() -> None:
    # What was under way belongs to the parent's threads.
    for flights in _all:
        flights._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
