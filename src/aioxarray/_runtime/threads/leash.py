"""Leashes: cancelling the requests that a thread waits for, since threads cannot be cancelled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# The leash of the current code: holds the requests that it waits for.
_leash: contextvars.ContextVar[Leash | None] = contextvars.ContextVar(
    "aioxarray_leash", default=None
)


class Cancellable(Protocol):
    """A call on another loop, which can be cancelled from any thread."""

    outcome: concurrent.futures.Future[Any]

    def cancel(self) -> None: ...


class _Foreign:
    """A request on the I/O loop, made by a task that another library started."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        # Done when the request has ended, even if the task goes on.
        self.outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self.outcome.done():
            self._task.cancel()


class Leash:
    """Ties the requests of a thread to the task that waits for the thread.

    A thread cannot be cancelled, but its requests can: `pull` cancels those in progress and every
    later one. They are the blocking calls of this package, and the requests of tasks that another
    library (zarr) starts on the I/O loop and waits for.

    Parameters
    ----------
    outer
        Another leash that also holds the requests.

    Attributes
    ----------
    pulled
        Whether the result of the thread is not needed any more.
    awaited
        Whether the task, when cancelled, has to wait for the thread's function: see `be_awaited`.
    """

    def __init__(self, outer: Leash | None = None) -> None:
        self._outer = outer
        self._lock = threading.Lock()
        self._calls: set[Cancellable] = set()
        self._ended = False
        self.pulled = False
        self.awaited = False

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` with its requests on this leash.

        Afterwards, cancel those that are still running, and wait for their end: a library that
        makes several concurrently may leave some behind if one fails, or if it is interrupted.
        """
        token = _leash.set(self)
        try:
            return function()
        finally:
            _leash.reset(token)
            for outcome in self._cancel_all():
                outcome.exception()

    def pull(self) -> list[concurrent.futures.Future[Any]]:
        """Cancel the requests of the thread, those in progress and later ones.

        Returns the outcomes of those in progress, which are done when the requests have ended.
        """
        self.pulled = True
        return self._cancel_all()

    def _cancel_all(self) -> list[concurrent.futures.Future[Any]]:
        with self._lock:
            self._ended = True
            for call in self._calls:
                call.cancel()
            return [call.outcome for call in self._calls]

    def be_awaited(self) -> None:
        """Make the task wait for the end of the thread's function, even when cancelled.

        Raises CancelledError if it was cancelled before.
        """
        with self._lock:
            if self.pulled:
                raise asyncio.CancelledError
            self.awaited = True

    @contextlib.contextmanager
    def holding(self, call: Cancellable) -> Iterator[None]:
        """Hold ``call`` on the leash; raises CancelledError if it was pulled or has ended."""
        with self._outer.holding(call) if self._outer else contextlib.nullcontext():
            with self._lock:
                if self._ended:
                    raise asyncio.CancelledError
                self._calls.add(call)
            try:
                yield
            finally:
                with self._lock:
                    self._calls.discard(call)


def be_awaited() -> None:
    """Make the task that waits for this worker thread wait for its end, even when cancelled.

    For work that must not go on beside the user's code. It should be short, or end early when its
    blocking calls are cancelled. In other threads this does nothing.
    """
    leash = _leash.get()
    if leash is not None:
        leash.be_awaited()


def is_cancelled() -> bool:
    """Return whether the task that waited for this worker thread was cancelled."""
    leash = _leash.get()
    return leash is not None and leash.pulled


def run_leashed(function: Callable[[], T]) -> T:
    """Call ``function``; when it ends or is interrupted, cancel the requests that it has left."""
    return Leash(_leash.get()).run(function)


def on_leash(call: Cancellable) -> contextlib.AbstractContextManager[None]:
    """Return a context that holds ``call``, which this thread waits for, on its leash, if any."""
    leash = _leash.get()
    return _NO_LEASH if leash is None else leash.holding(call)


def holding(
    call: Cancellable, context: contextvars.Context
) -> contextlib.AbstractContextManager[None]:
    """Return a context that holds a blocking call of this package on this thread's leash, if any.

    ``context`` is the context of the call's task. The leash is removed from it: it holds the task
    as a whole, so it need not hold the requests of the task.
    """
    context.run(_leash.set, None)
    return on_leash(call)


def leashed() -> contextlib.AbstractContextManager[None]:
    """Return a context that holds a request on the leash of the thread that it is made for, if any.

    For the I/O loop. A task that a library starts for a thread inherits the thread's context, and
    with it the leash; the tasks of this package's own calls, which are held as a whole, do not.
    Entering raises CancelledError if the leash was pulled before.
    """
    leash = _leash.get()
    return _NO_LEASH if leash is None else _on(leash)


_NO_LEASH = contextlib.nullcontext()


@contextlib.contextmanager
def _on(leash: Leash) -> Iterator[None]:
    request = _Foreign()
    with leash.holding(request):
        try:
            yield
        finally:
            request.outcome.set_result(None)
