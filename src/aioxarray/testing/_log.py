"""What was requested, and how many requests were in flight: the memory of every fake."""

# The standard library only: the object server's own process needs no more than this.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

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
        The store's method (``"get"``, ``"set"``, ``"list_dir"``, …); at an object server the
        HTTP verb.
    key : str
        The key; for a listing, the prefix.
    byte_range : zarr.abc.store.ByteRequest or None
        The part that was asked for; ``None`` for the whole value.
    """

    method: str
    key: str
    byte_range: ByteRequest | None = None


@dataclass(frozen=True, slots=True)
class LogSnapshot:
    """All of a `RequestLog` at one moment. Numbers taken from one snapshot agree."""

    requests: tuple[Request, ...] = ()
    in_flight: int = 0
    most_in_flight: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class RequestLog:
    """Counts requests; any thread may read it or write to it.

    Fakes of your own can use one: ``with log.record(Request("get", "a/c/0")): …``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._restart()

    def _restart(self) -> None:
        self._requests: list[Request] = []
        self._most_in_flight = self._in_flight
        self._ended: dict[Outcome, int] = {"completed": 0, "failed": 0, "cancelled": 0}

    def __getstate__(self) -> dict[str, object]:
        # A pickled copy counts for itself: requests in flight stay in this process.
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
        """Count `request` as in flight while the body runs, then by how the body ended.

        Parameters
        ----------
        request : Request
            The request that the body carries out.
        """
        epoch = self.begin(request)
        outcome: Outcome = "failed"
        try:
            yield
            outcome = "completed"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        finally:
            self.end(epoch, outcome)

    def begin(self, request: Request) -> object:
        """Count `request` as in flight; what is returned is to be given to `end`, once."""
        with self._lock:
            # The list's identity tells a request that began before a `clear` from later ones.
            epoch = self._requests
            epoch.append(request)
            self._in_flight += 1
            if self._in_flight > self._most_in_flight:
                self._most_in_flight = self._in_flight
        return epoch

    def end(self, epoch: object, outcome: Outcome) -> None:
        """Count a request that `begin` counted by how it ended."""
        with self._lock:
            self._in_flight -= 1
            if self._requests is epoch:
                self._ended[outcome] += 1

    def snapshot(self) -> LogSnapshot:
        """All numbers of one moment, together."""
        with self._lock:
            return LogSnapshot(
                requests=tuple(self._requests),
                in_flight=self._in_flight,
                most_in_flight=self._most_in_flight,
                **self._ended,
            )

    def clear(self) -> None:
        """Forget what was. Requests still in flight stay counted as in flight, and no more."""
        with self._lock:
            self._restart()

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests in the order they started."""
        return self.snapshot().requests

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""
        return self.snapshot().in_flight

    @property
    def most_in_flight(self) -> int:
        """How many were in flight at once, at most, since the last `clear`."""
        return self.snapshot().most_in_flight

    @property
    def completed(self) -> int:
        """How many ended with an answer. "No such key" is one."""
        return self.snapshot().completed

    @property
    def failed(self) -> int:
        """How many ended with an error."""
        return self.snapshot().failed

    @property
    def cancelled(self) -> int:
        """How many were cancelled before their answer."""
        return self.snapshot().cancelled

    def count(self, method: str | None = None, key: str | None = None) -> int:
        """How many requests started, of one method, or for some keys.

        Parameters
        ----------
        method : str, optional
            Count this method only.
        key : str, optional
            Count keys that match this glob only; its ``*`` matches ``/`` too.
        """
        return sum(
            (method is None or request.method == method)
            and (key is None or fnmatchcase(request.key, key))
            for request in self.requests
        )
