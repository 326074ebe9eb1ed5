"""The queue: the calls of this process that wait for their first turn, and the limit on them.

A call is an open, a load or a save, with all calls nested in it. It waits while a limit is used up
by others: for a place in a `Budget`, for a thread of a pool, or for the library that another call
is in. It leaves the queue for good when it begins: with its first request, or with its turn in a
library. Under overload, a call that would make the queue too long fails at once, before any
request, instead of waiting for a result that nobody may want any more.
"""

from __future__ import annotations

import contextvars
import enum
import threading
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from aioxarray._runtime.threads.forks import after_fork
from aioxarray.errors import Overloaded

T = TypeVar("T")


class _Queue:
    """The number of calls that wait in this process, and the lock for it and for their tickets."""

    __slots__ = ("count", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0


_queue = _Queue()


@after_fork
def _reset_after_fork() -> None:
    # The calls that wait are the parent's, and one of its threads may have held the lock.
    global _queue
    _queue = _Queue()


def waiting() -> int:
    """Return how many calls with a ticket wait for their first turn; from any thread."""
    with _queue.lock:
        return _queue.count


class _State(enum.Enum):
    NEW = "has not waited so far"
    WAITING = "counts in the queue"
    SERVED = "has waited, and may wait again without being refused"
    BEGUN = "does not count any more"
    REFUSED = "must make no request"


class Ticket:
    """The part of one call in the queue; thread-safe.

    Only calls under a limit have one: without it, nothing is counted.

    Parameters
    ----------
    limit
        The most calls that may wait.
    """

    __slots__ = ("_limit", "_queue", "_state")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue = _queue
        self._state = _State.NEW

    def check(self) -> None:
        """Raise `Overloaded` if the call was refused: its other tasks must make no request."""
        if self._state is _State.REFUSED:
            raise self._error()

    def wait(self) -> None:
        """Record that the call has to wait; raise `Overloaded` if too many calls wait already.

        A call is refused the first time that it has to wait, or never.
        """
        if self._state is _State.BEGUN or self._queue is not _queue:
            return
        with self._queue.lock:
            if self._state is _State.NEW and self._queue.count >= self._limit:
                self._state = _State.REFUSED
            if self._state in (_State.NEW, _State.SERVED):
                self._state = _State.WAITING
                self._queue.count += 1
        self.check()

    def serve(self) -> None:
        """Record that the call has a thread, in which it may have to wait again."""
        self._leave(_State.SERVED)

    def begin(self) -> None:
        """Record that the call has its first turn.

        Raises `Overloaded` if it was refused.
        """
        if self._state is not _State.BEGUN:
            self._leave(_State.BEGUN)
            self.check()

    def end(self) -> None:
        """Record that the call has ended, whether it has begun or not."""
        self._leave(_State.BEGUN)

    def _leave(self, state: _State) -> None:
        if self._queue is not _queue:
            return
        with self._queue.lock:
            if self._state is _State.WAITING:
                self._queue.count -= 1
                self._state = state
            elif state is _State.BEGUN and self._state is not _State.REFUSED:
                self._state = state

    def _error(self) -> Overloaded:
        count = "1 call waits" if self._limit == 1 else f"{self._limit} calls wait"
        reason = "no call may wait" if self._limit == 0 else f"{count} already"
        return Overloaded(
            f"the limits of this process are used up, and {reason} for its turn: as many as the "
            f"setting queue={self._limit} allows. No request was made: call again later, or allow "
            "more"
        )


_ticket: contextvars.ContextVar[Ticket | None] = contextvars.ContextVar(
    "aioxarray_ticket", default=None
)


def current_ticket() -> Ticket | None:
    """Return the ticket of the call that the current code works for; None if it has none."""
    return _ticket.get()


class queued:
    """A context in which a call has a ticket; ``limit`` is the most calls that may wait."""

    __slots__ = ("_ticket", "_token")

    def __init__(self, limit: int) -> None:
        self._ticket = Ticket(limit)

    def __enter__(self) -> Ticket:
        self._token = _ticket.set(self._ticket)
        return self._ticket

    def __exit__(self, *_: object) -> None:
        self._ticket.end()
        _ticket.reset(self._token)


def beginning(function: Callable[[], T]) -> Callable[[], T]:
    """Return a function that records, when it starts, that the current call has its first turn."""
    ticket = _ticket.get()
    if ticket is None:
        return function

    @wraps(function)
    def begin() -> T:
        ticket.begin()
        return function()

    return begin
