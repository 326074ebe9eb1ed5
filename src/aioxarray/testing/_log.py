"""Logs of requests, with counts of those in flight; used by all test doubles."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

__all__ = ["LogSnapshot", "Outcome", "Request", "RequestLog"]

Outcome = Literal["completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a store or to an object server.

    Attributes
    ----------
    method : str
        The store's method (``"get"``, ``"set"``, ``"list_dir"``, …); for an object server, the
        HTTP verb.
    key : str
        The key; for a listing, the prefix.
    byte_range : zarr.abc.store.ByteRequest or None
        The requested part; ``None`` for the whole value.
    """

    method: str
    key: str
    byte_range: ByteRequest | None = None


@dataclass(frozen=True, slots=True)
class LogSnapshot:
    """Consistent copy of a `RequestLog` at one moment.

    ``times`` has for each request when it began and ended, in seconds since 1970; the end is None
    while the request is in flight.
    """

    requests: tuple[Request, ...] = ()
    times: tuple[tuple[float, float | None], ...] = ()
    in_flight: int = 0
    most_in_flight: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


# A clock that is never set back, in seconds since 1970.
_ZERO = time.time() - time.perf_counter()


def _now() -> float:
    return _ZERO + time.perf_counter()


# The times of a log, and the number of a request in it.
Counted: TypeAlias = tuple[list[tuple[float, float | None]], int]


class RequestLog:
    """Thread-safe log of requests.

    Your own test doubles can use one: ``with log.record(Request("get", "a/c/0")): …``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._in_flight = 0
        self._restart()

    def _restart(self) -> None:
        self._requests: list[Request] = []
        self._times: list[tuple[float, float | None]] = []
        self._most_in_flight = self._in_flight
        self._ended: dict[Outcome, int] = {"completed": 0, "failed": 0, "cancelled": 0}

    def __getstate__(self) -> dict[str, object]:
        # A pickled copy starts empty: requests in flight stay in this process.
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        RequestLog.__init__(self)

    def __repr__(self) -> str:
        now = self.snapshot()
        return (
            f"<{type(self).__name__}: {len(now.requests)} requests, {now.in_flight} in flight, "
            f"{now.most_in_flight} at most, {now.completed} completed, {now.failed} failed, "
            f"{now.cancelled} cancelled>"
        )

    @contextmanager
    def record(self, request: Request) -> Iterator[None]:
        """Count `request` as in flight while the body runs, and then by how the body ended.

        Parameters
        ----------
        request : Request
            The request that the body carries out.
        """
        counted = self.begin(request)
        outcome: Outcome = "failed"
        try:
            yield
            outcome = "completed"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        finally:
            self.end(counted, outcome)

    def begin(self, request: Request) -> Counted:
        """Count `request` as in flight; pass the result to `end`, once."""
        with self._lock:
            # The list's identity distinguishes requests from before and after a `clear`.
            counted = self._times, len(self._times)
            self._requests.append(request)
            self._times.append((_now(), None))
            self._in_flight += 1
            self._changed.notify_all()
            if self._in_flight > self._most_in_flight:
                self._most_in_flight = self._in_flight
        return counted

    def end(self, counted: Counted, outcome: Outcome) -> None:
        """Count the end of a request that `begin` counted."""
        times, number = counted
        with self._lock:
            self._in_flight -= 1
            times[number] = times[number][0], _now()
            if self._times is times:
                self._ended[outcome] += 1
            self._changed.notify_all()

    def snapshot(self) -> LogSnapshot:
        """Return a consistent copy of the log."""
        with self._lock:
            return LogSnapshot(
                requests=tuple(self._requests),
                times=tuple(self._times),
                in_flight=self._in_flight,
                most_in_flight=self._most_in_flight,
                **self._ended,
            )

    def wait_in_flight(self, count: int, timeout_s: float = 30.0) -> None:
        """Block this thread until ``count`` requests are in flight.

        Raises TimeoutError after ``timeout_s`` seconds.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: self._in_flight == count, timeout_s):
                raise TimeoutError(
                    f"{self._in_flight} requests are in flight after {timeout_s} s, not {count}"
                )

    def clear(self) -> None:
        """Clear the log. Requests still in flight keep counting as in flight, but nowhere else."""
        with self._lock:
            self._restart()

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests in the order they started."""
        return self.snapshot().requests

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""
        return self._in_flight

    @property
    def most_in_flight(self) -> int:
        """The maximum number of requests in flight at once since the last `clear`."""
        return self.snapshot().most_in_flight

    @property
    def completed(self) -> int:
        """How many ended with an answer, including "no such key"."""
        return self.snapshot().completed

    @property
    def failed(self) -> int:
        """How many ended with an error."""
        return self.snapshot().failed

    @property
    def cancelled(self) -> int:
        """How many were cancelled before they were answered."""
        return self.snapshot().cancelled

    def count(self, method: str | None = None, key: str | None = None) -> int:
        """Return how many requests started, optionally for one method or some keys.

        Parameters
        ----------
        method : str, optional
            Count only this method.
        key : str, optional
            Count only keys that match this glob; its ``*`` matches ``/`` too.
        """
        return sum(
            (method is None or request.method == method)
            and (key is None or fnmatchcase(request.key, key))
            for request in self.requests
        )
