"""Work on equal keys, done once: by whoever comes to it first.

Who comes first gets a `Flight` and does the work; who comes while that is open gets a `Follower`
and awaits it, on any loop; who comes later gets what a cache has kept of it. Who follows holds no
place, no thread and no lock meanwhile.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from aioxarray._runtime.cache import Cache

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")
V = TypeVar("V")
R = TypeVar("R")


class Flights(Generic[K, V]):
    """The keys that are being worked on, and what is kept of those that were.

    Parameters
    ----------
    cache
        Keeps what flights land with, where they ask for it.
    """

    def __init__(self, cache: Cache) -> None:
        self._lock = threading.Lock()
        self._open: dict[K, Flight[K, V]] = {}
        self._cache = cache
        self._keeps = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._open)} under way>"

    def join(
        self, key: K, take: Callable[[V, P], R], part: P
    ) -> tuple[V] | Flight[K, V] | Follower[V, R]:
        """Return what is to be done about ``key``.

        Parameters
        ----------
        key
            What is to be worked on.
        take, part
            ``take(value, part)`` takes the value where the caller follows. It is called in a
            thread of who leads, so it must not wait.

        Returns
        -------
        tuple, Flight or Follower
            The value in a tuple, if it is kept; a flight, which the caller has to end; or what
            follows the one under way.
        """
        with self._lock:
            # Thousands of times a read: mostly there is no cache.
            if self._cache.entries and (kept := self._cache.get(self, key)) is not None:
                return kept
            flight = self._open.get(key)
            if flight is None:
                flight = self._open[key] = Flight(self, key)
                return flight
            follower = Follower(take, part)
            if flight._followers is None:
                flight._followers = []
            flight._followers.append(follower)
            return follower

    def known(self, key: K) -> tuple[V] | None:
        """Return the value in a tuple, if it is kept."""
        return self._cache.get(self, key)

    def keep(self, key: K, value: V, size: int) -> None:
        """Keep ``value``, which counts for ``size`` bytes, unless `close` was called."""
        with self._lock:
            self._keep(key, value, size)

    def _keep(self, key: K, value: V, size: int) -> None:
        if self._keeps:
            self._cache.put(self, key, value, size)

    def close(self) -> None:
        """Keep nothing, neither what there is nor what is still to come.

        Those who have joined what is under way get what comes of it.
        """
        with self._lock:
            self._keeps = False
            self._cache.drop(self)


class Flight(Generic[K, V]):
    """Work that its owner does, and others may wait for.

    It ends once, by what is first: `land`, `fail` or `give_up`; each from any thread. As a
    context, it fails with an error that is raised in it.
    """

    __slots__ = ("_flights", "_followers", "_is_open", "_key")

    def __init__(self, flights: Flights[K, V], key: K) -> None:
        self._flights = flights
        self._key = key
        self._is_open = True
        self._followers: list[Follower[V, Any]] | None = None

    def close(self) -> bool:
        """End the time in which others can follow; say whether some do."""
        with self._flights._lock:
            self._close()
            return self._followers is not None

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            del self._flights._open[self._key]

    def _end(self) -> list[Follower[V, Any]]:
        self._close()
        followers, self._followers = self._followers, None
        return followers or []

    def land(self, value: V, size: int | None = None) -> None:
        """Have each of those who follow take ``value``.

        With a ``size`` it is kept, and counts for so many bytes.
        """
        with self._flights._lock:
            if size is not None:
                self._flights._keep(self._key, value, size)
            followers = self._end()
        for follower in followers:
            follower._take_from(value)

    def fail(self, error: Exception) -> None:
        """Raise ``error``, a copy for each, in those who follow."""
        with self._flights._lock:
            followers = self._end()
        for follower in followers:
            follower._fail(_copy_of(error))

    def give_up(self) -> None:
        """Leave the work to those who follow, if it has not ended."""
        if self._is_open or self._followers:
            with self._flights._lock:
                followers = self._end()
            for follower in followers:
                follower._lose()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            self.fail(error)
        else:
            self.give_up()


class Follower(Generic[V, R]):
    """Somebody who waits for what another one works on."""

    __slots__ = ("_outcome", "_part", "_take")

    def __init__(self, take: Callable[[V, Any], R], part: object) -> None:
        self._take = take
        self._part = part
        # None: the work was given up.
        self._outcome: Future[tuple[R] | None] = Future()

    async def outcome(self) -> tuple[R] | None:
        """Wait; return what ``take`` returned, in a tuple, or None where the work was given up.

        Raises the error that the one who leads has met, or that ``take`` raised. Cancelling
        does not concern the work; `withdraw` must follow.
        """
        return await asyncio.wrap_future(self._outcome)

    async def withdraw(self) -> None:
        """Follow no longer; returns when ``take`` is not being called, and will not be."""
        if self._outcome.cancel() or self._outcome.done():
            return
        ended = asyncio.wrap_future(self._outcome)
        while not ended.done():
            # Cancelled again meanwhile: who waits here is about to raise anyway.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([ended])
        if not ended.cancelled():
            # Its error, if any, is no longer of interest, and must not be logged as unheard.
            ended.exception()

    def _take_from(self, value: V) -> None:
        if self._outcome.set_running_or_notify_cancel():
            try:
                result = self._take(value, self._part)
            except Exception as error:  # noqa: BLE001 - it belongs to who follows
                self._outcome.set_exception(error)
            else:
                self._outcome.set_result((result,))

    def _fail(self, error: Exception) -> None:
        if self._outcome.set_running_or_notify_cancel():
            self._outcome.set_exception(error)

    def _lose(self) -> None:
        if self._outcome.set_running_or_notify_cancel():
            self._outcome.set_result(None)


def _copy_of(error: Exception) -> Exception:
    """Return an error like ``error``, to which each who meets it adds notes of its own."""
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - whatever a class's constructor makes of it
        return error
    if type(copied) is not type(error):
        return error
    if hasattr(error, "__notes__"):
        copied.__notes__ = list(error.__notes__)
    copied.__cause__ = error.__cause__
    return copied.with_traceback(error.__traceback__)
