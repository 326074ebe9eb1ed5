"""Cancel scopes of threads: they cancel the requests that a thread waits for.

The thread itself cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# The scope of the current code, with the requests that it waits for.
_scope: contextvars.ContextVar[CancelScope | None] = contextvars.ContextVar(
    "aioxarray_cancel_scope", default=None
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


class CancelScope:
    """Ties the requests of a thread to the task that waits for the thread.

    A thread cannot be cancelled, but its requests can: `cancel` cancels those in progress and every
    later one. They are the blocking calls of this package, and the requests of tasks that another
    library (zarr) starts on the I/O loop and waits for.

    Parameters
    ----------
    outer
        A scope around this one, whose cancelling cancels the requests, too.

    Attributes
    ----------
    cancelled
        Whether `cancel` was called: the result of the thread is not needed any more.
    awaited
        Whether the task, when cancelled, has to wait for the thread's function: see `be_awaited`.
    """

    def __init__(self, outer: CancelScope | None = None) -> None:
        self._outer = outer
        self._lock = threading.Lock()
        self._calls: set[Cancellable] = set()
        self._ended = False
        self.cancelled = False
        self.awaited = False

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` with its requests in this scope.

        Afterwards, cancel those that are still running, and wait for their end: a library that
        makes several concurrently may leave some behind if one fails, or if it is interrupted.
        """
        token = _scope.set(self)
        try:
            return function()
        finally:
            _scope.reset(token)
            for outcome in self._cancel_all():
                outcome.exception()

    def cancel(self) -> list[concurrent.futures.Future[Any]]:
        """Cancel the requests of the thread, those in progress and later ones.

        Returns the outcomes of those in progress, which are done when the requests have ended.
        """
        self.cancelled = True
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
            if self.cancelled:
                raise asyncio.CancelledError
            self.awaited = True

    @contextlib.contextmanager
    def enclosing(self, call: Cancellable) -> Iterator[None]:
        """Have ``call`` in the scope; raises CancelledError if that was cancelled or has ended."""
        with self._outer.enclosing(call) if self._outer else contextlib.nullcontext():
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
    scope = _scope.get()
    if scope is not None:
        scope.be_awaited()


def is_cancelled() -> bool:
    """Return whether the task that waited for this worker thread was cancelled."""
    scope = _scope.get()
    return scope is not None and scope.cancelled


def run_in_scope(function: Callable[[], T]) -> T:
    """Call ``function``; when it ends or is interrupted, cancel the requests that it has left."""
    return CancelScope(_scope.get()).run(function)


def call_scope(
    call: Cancellable, context: contextvars.Context
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which ``call``, a blocking call of this package, is in a cancel scope.

    The scope is that of this thread, if it has one. ``context`` is the context of the call's task.
    The scope is removed from it: it has the task as a whole, and so need not have the task's
    requests.
    """
    context.run(_scope.set, None)
    scope = _scope.get()
    return _NO_SCOPE if scope is None else scope.enclosing(call)


def has_scope() -> bool:
    """Return whether the current code is in a cancel scope."""
    return _scope.get() is not None


def request_scope() -> contextlib.AbstractContextManager[None]:
    """Return a context in which a request is in the cancel scope of the thread it is made for.

    For the I/O loop. A task that a library starts for a thread inherits the thread's context, and
    with it the scope; the tasks of this package's own calls, which are in it as a whole, do not.
    Entering raises CancelledError if the scope was cancelled before.
    """
    scope = _scope.get()
    return _NO_SCOPE if scope is None else _request_in(scope)


_NO_SCOPE = contextlib.nullcontext()


@contextlib.contextmanager
def _request_in(scope: CancelScope) -> Iterator[None]:
    request = _Foreign()
    with scope.enclosing(request):
        try:
            yield
        finally:
            request.outcome.set_result(None)
