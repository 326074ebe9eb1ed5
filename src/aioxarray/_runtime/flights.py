"""Deduplication of work in progress ("single flight"): equal keys are worked on once.

The first caller for a key gets a `Flight` and does the work. While the flight is open, other
callers get a `Follower` and await the result, on any loop; later callers may get it from a cache.
Followers hold no place in a budget, no thread and no lock while they wait.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from aioxarray._runtime.cache import Cache
from aioxarray.errors import Overloaded

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")
V = TypeVar("V")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """The state of `Flights` at one moment: those that can be followed, and their followers."""

    flights: int
    followers: int


class Flights(Generic[K, V]):
    """The open flights by key, and their results in a cache.

    Parameters
    ----------
    cache
        Keeps the results of flights that land with a size.
    """

    def __init__(self, cache: Cache) -> None:
        self._lock = threading.Lock()
        self._open: dict[K, Flight[K, V]] = {}
        self._cache = cache
        self._keeps = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.statistics().flights} under way>"

    def statistics(self) -> FlightStatistics:
        """Return the state of the flights at this moment; from any thread."""
        with self._lock:
            followers = sum(len(flight._waiting()) for flight in self._open.values())
            return FlightStatistics(len(self._open), followers)

    def join(
        self, key: K, take: Callable[[V, P], R], part: P
    ) -> tuple[V] | Flight[K, V] | Follower[V, R]:
        """Look up ``key`` in the cache, follow its flight, or open one.

        Parameters
        ----------
        key
            The key.
        take, part
            ``take(value, part)`` receives the value if the caller follows. It is called in the
            thread where the flight lands, so it must not wait.

        Returns
        -------
        tuple, Flight or Follower
            The value in a tuple, if it is in the cache; a new flight, which the caller must end; or
            a follower of the open flight.
        """
        with self._lock:
            # Called thousands of times per read, usually with an empty cache.
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
        """Return the value in a tuple if it is in the cache; otherwise None."""
        return self._cache.get(self, key)

    def keep(self, key: K, value: V, size: int) -> None:
        """Put ``value``, of ``size`` bytes, in the cache, unless `close` was called."""
        with self._lock:
            self._keep(key, value, size)

    def _keep(self, key: K, value: V, size: int) -> None:
        if self._keeps:
            self._cache.put(self, key, value, size)

    def close(self) -> None:
        """Drop all values from the cache, and add none from now on.

        Followers of open flights still get their results.
        """
        with self._lock:
            self._keeps = False
            self._cache.drop(self)


class Flight(Generic[K, V]):
    """Work on a key by its owner, which followers may wait for.

    The first call of `land`, `fail` or `give_up`, from any thread, ends it. As a context, it fails
    with an error that is raised in the body, and otherwise is given up unless it has ended.
    """

    __slots__ = ("_flights", "_followers", "_is_open", "_key")

    def __init__(self, flights: Flights[K, V], key: K) -> None:
        self._flights = flights
        self._key = key
        self._is_open = True
        self._followers: list[Follower[V, Any]] | None = None

    def close(self) -> bool:
        """Allow no more followers; return whether there are any."""
        with self._flights._lock:
            self._close()
            return bool(self._waiting())

    def _waiting(self) -> Sequence[Follower[V, Any]]:
        """Return the followers that have not been withdrawn; the lock is held."""
        return [each for each in self._followers or () if not each._outcome.done()]

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            del self._flights._open[self._key]

    def _end(self) -> list[Follower[V, Any]]:
        self._close()
        followers, self._followers = self._followers, None
        return followers or []

    def land(self, value: V, size: int | None = None) -> None:
        """Hand ``value`` to each follower; with a ``size`` in bytes, put it in the cache."""
        with self._flights._lock:
            if size is not None:
                self._flights._keep(self._key, value, size)
            followers = self._end()
        for follower in followers:
            follower._take_from(value)

    def fail(self, error: Exception) -> None:
        """Raise a copy of ``error`` in each follower.

        `Overloaded` concerns only the owner's call, so the work is then left to the followers.
        """
        if isinstance(error, Overloaded):
            self.give_up()
            return
        with self._flights._lock:
            followers = self._end()
        for follower in followers:
            follower._fail(_copy_of(error))

    def give_up(self) -> None:
        """Leave the work to the followers, if it has not ended."""
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
    """A wait for the result of a flight."""

    __slots__ = ("_outcome", "_part", "_take")

    def __init__(self, take: Callable[[V, Any], R], part: object) -> None:
        self._take = take
        self._part = part
        # None: the work was given up.
        self._outcome: Future[tuple[R] | None] = Future()

    async def outcome(self) -> tuple[R] | None:
        """Wait, and return the result of ``take`` in a tuple; None if the flight was given up.

        Raises the error with which the flight failed, or that ``take`` raised. Cancelling does not
        affect the flight. `withdraw` must be called afterwards.
        """
        return await asyncio.wrap_future(self._outcome)

    async def withdraw(self) -> None:
        """Stop following; wait until ``take`` is not running and will not be called."""
        if self._outcome.cancel() or self._outcome.done():
            return
        ended = asyncio.wrap_future(self._outcome)
        while not ended.done():
            # If this task is cancelled again here, its first cancellation goes on anyway.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([ended])
        if not ended.cancelled():
            # Retrieve an error, so that asyncio does not log it.
            ended.exception()

    def _take_from(self, value: V) -> None:
        if self._outcome.set_running_or_notify_cancel():
            try:
                result = self._take(value, self._part)
            except Exception as error:  # noqa: BLE001 - raised in the follower
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
    """Return a copy of ``error``, since each receiver adds its own notes."""
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - the class may have an unusual constructor
        return error
    if type(copied) is not type(error):
        return error
    if hasattr(error, "__notes__"):
        copied.__notes__ = list(error.__notes__)
    copied.__cause__ = error.__cause__
    return copied.with_traceback(error.__traceback__)
