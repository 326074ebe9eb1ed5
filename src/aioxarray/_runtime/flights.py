"""Deduplication of work in progress ("single flight"): equal keys are worked on once.

The first caller for a key gets a `Flight` and does the work. While the flight is open, other
callers follow it: they await a future of the result, on any loop. Later callers may get the result
from a cache. Followers hold no place in a budget, no thread and no lock while they wait.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from aioxarray._runtime.cache import Cache
from aioxarray.errors import Overloaded

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """The state of `Flights` at one moment: those that can be followed, and their followers."""

    flights: int
    followers: int


class Flights:
    """The open flights of one source by key, and their results in a cache.

    Parameters
    ----------
    cache
        Keeps the results of flights that land with a size.
    place
        The source.
    holds
        Objects that must live as long as the flights, for example because their ids identify them.
    """

    def __init__(self, cache: Cache, place: Any = None, holds: object = None) -> None:
        self.place = place
        self._holds = holds
        self._lock = threading.Lock()
        self._open: dict[Hashable, Flight[Any]] = {}
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
        self, key: Hashable, part: P, take: Callable[[Any, P], R]
    ) -> tuple[Any] | Flight[P] | Future[tuple[R] | None]:
        """Look up ``key`` in the cache, follow its flight, or open one.

        Parameters
        ----------
        key
            The key.
        part
            The caller's description of the work.
        take
            ``take(value, part)`` receives the value if the caller follows. It is called in the
            thread where the flight lands, so it must not wait.

        Returns
        -------
        tuple, Flight or Future
            The value in a tuple, if it is in the cache; a new flight, which the caller must end; or
            a future of what ``take`` returns, in a tuple. The future gets None if the open flight
            is given up, and the error with which it fails, or that ``take`` raises. Cancelling the
            future does not affect the flight. `withdraw` must be called afterwards.
        """
        with self._lock:
            # Called thousands of times per read, usually with an empty cache.
            if self._cache.entries and (kept := self._cache.get(self, key)) is not None:
                return kept
            flight = self._open.get(key)
            if flight is None:
                flight = self._open[key] = Flight(part, self, key)
                return flight
            follower: Future[tuple[R] | None] = Future()
            if flight._followers is None:
                flight._followers = []
            flight._followers.append((follower, take, part))
            return follower

    def lead(self, key: Hashable, part: P) -> Flight[P] | None:
        """Open a flight for ``key``, as `join` does, if it is neither cached nor under way."""
        with self._lock:
            if key in self._open or (self._cache.entries and self._cache.peek(self, key)):
                return None
            flight = self._open[key] = Flight(part, self, key)
            return flight

    def known(self, key: Hashable) -> tuple[Any] | None:
        """Return the value in a tuple if it is in the cache; otherwise None."""
        return self._cache.get(self, key)

    def peek(self, key: Hashable) -> tuple[Any] | None:
        """Do the same as `known`, but not count as a use of the value."""
        return self._cache.peek(self, key)

    def is_open(self, key: Hashable) -> bool:
        """Return whether there is an open flight for ``key``, which `join` would follow."""
        with self._lock:
            return key in self._open

    def keep(self, key: Hashable, value: Any, size: int) -> None:
        """Put ``value``, of ``size`` bytes, in the cache, unless `close` was called."""
        with self._lock:
            self._keep(key, value, size)

    def _keep(self, key: Hashable, value: Any, size: int) -> None:
        if self._keeps:
            self._cache.put(self, key, value, size)

    def close(self) -> None:
        """Drop all values from the cache, and add none from now on.

        Followers of open flights still get their results.
        """
        with self._lock:
            self._keeps = False
            self._cache.drop(self)


# The future of a follower, and what it calls with the value.
_Follower = tuple[Future[Any], Callable[[Any, Any], Any], Any]


class Flight(Generic[P]):
    """Work on a part by its owner, which followers may wait for.

    The first call of `land`, `fail` or `give_up`, from any thread, ends it. As a context, it fails
    with an error that is raised in the body, and otherwise is given up unless it has ended.

    Parameters
    ----------
    part
        The owner's description of the work.
    flights, key
        Where callers for ``key`` find the flight; it has no followers if ``flights`` is None.

    Attributes
    ----------
    part, key
        As the parameters.
    """

    __slots__ = ("_flights", "_followers", "_is_open", "key", "part")

    def __init__(self, part: P, flights: Flights | None = None, key: Hashable = None) -> None:
        self.part = part
        self._flights = flights
        self.key = key
        self._is_open = flights is not None
        self._followers: list[_Follower] | None = None

    def close(self) -> bool:
        """Allow no more followers; return whether there are any."""
        if self._flights is None:
            return False
        with self._flights._lock:
            self._close(self._flights)
            return bool(self._waiting())

    def _waiting(self) -> Sequence[_Follower]:
        """Return the followers that have not been withdrawn; the lock is held."""
        return [each for each in self._followers or () if not each[0].done()]

    def _close(self, flights: Flights) -> None:
        if self._is_open:
            self._is_open = False
            del flights._open[self.key]

    def land(self, value: Any, size: int | None = None) -> None:
        """Hand ``value`` to each follower; with a ``size`` in bytes, put it in the cache."""
        for follower, take, part in self._end(value, size):
            if follower.set_running_or_notify_cancel():
                try:
                    result = take(value, part)
                except Exception as error:  # noqa: BLE001 - raised in the follower
                    follower.set_exception(error)
                else:
                    follower.set_result((result,))

    def fail(self, error: Exception) -> None:
        """Raise a copy of ``error`` in each follower.

        `Overloaded` concerns only the owner's call, so the work is then left to the followers.
        """
        if isinstance(error, Overloaded):
            self.give_up()
            return
        for follower, _, _ in self._end():
            if follower.set_running_or_notify_cancel():
                follower.set_exception(_copy_of(error))

    def give_up(self) -> None:
        """Leave the work to the followers, if it has not ended."""
        if self._is_open or self._followers:
            for follower, _, _ in self._end():
                if follower.set_running_or_notify_cancel():
                    follower.set_result(None)

    def _end(self, value: Any = None, size: int | None = None) -> list[_Follower]:
        """Allow no more followers, keep ``value`` if it has a ``size``; return the followers."""
        flights = self._flights
        if flights is None:
            return []
        with flights._lock:
            if size is not None:
                flights._keep(self.key, value, size)
            self._close(flights)
            followers, self._followers = self._followers, None
        return followers or []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            self.fail(error)
        else:
            self.give_up()


@contextmanager
def failing(flights: Iterable[Flight[Any]]) -> Iterator[None]:
    """Make ``flights`` fail with any error that is raised in the body."""
    try:
        yield
    except Exception as error:
        for flight in flights:
            flight.fail(error)
        raise


async def withdraw(follower: Future[Any]) -> None:
    """Cancel a future from `Flights.join`; wait until ``take`` neither runs nor will be called."""
    if follower.cancel() or follower.done():
        return
    ended = asyncio.wrap_future(follower)
    while not ended.done():
        # If this task is cancelled again here, its first cancellation goes on anyway.
        with suppress(asyncio.CancelledError):
            await asyncio.wait([ended])
    if not ended.cancelled():
        # Retrieve an error, so that asyncio does not log it.
        ended.exception()


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
