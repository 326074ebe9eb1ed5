"""Leashes: they end what a thread waits for, since a thread itself cannot be cancelled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# What the code of this thread waits for, to be cancelled with the task it works for.
_leash: contextvars.ContextVar[Leash | None] = contextvars.ContextVar(
    "aioxarray_leash", default=None
)


class Cancellable(Protocol):
    """A call on another loop: it can be cancelled from any thread, and has an outcome then."""

    outcome: concurrent.futures.Future[Any]

    def cancel(self) -> None: ...


class _Foreign:
    """A request on the I/O loop, made by a task that another library started."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        # Set when the request has ended, whatever the task does then.
        self.outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self.outcome.done():
            self._task.cancel()


class Leash:
    """Ties what a thread waits for to the task that waits for the thread.

    A thread cannot be cancelled, but its requests can: after `pull`, those under way are
    cancelled, and so is every further one. These are the blocking calls of this package, and the
    requests of tasks that another library (zarr) starts on the I/O loop and waits for.

    Parameters
    ----------
    outer
        Another leash that holds the requests too.

    Attributes
    ----------
    pulled
        Whether nobody wants what the thread does any more.
    awaited
        Whether the task has to wait, when it is cancelled, for what the thread does: see
        `be_awaited`.
    """

    def __init__(self, outer: Leash | None = None) -> None:
        self._outer = outer
        self._lock = threading.Lock()
        self._calls: set[Cancellable] = set()
        self._ended = False
        self.pulled = False
        self.awaited = False

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` with what it waits for on this leash.

        When it ends, its requests have ended too: a library that makes several side by side
        leaves some of them running when one fails, or when it is interrupted.
        """
        token = _leash.set(self)
        try:
            return function()
        finally:
            _leash.reset(token)
            for outcome in self._cancel_all():
                outcome.exception()

    def pull(self) -> list[concurrent.futures.Future[Any]]:
        """Cancel the requests of the thread, those under way and those to come.

        Returns the outcomes of those under way, which are there when the requests have ended.
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
        """Have the task wait for the end of the thread's function, also when it is cancelled.

        Raises CancelledError where it was cancelled before.
        """
        with self._lock:
            if self.pulled:
                raise asyncio.CancelledError
            self.awaited = True

    @contextlib.contextmanager
    def holding(self, call: Cancellable) -> Iterator[None]:
        """Hold ``call`` on the leash; raises CancelledError where nothing more may be awaited."""
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
    """Have whoever waits for this worker thread wait for its end, also when they are cancelled.

    For what must not go on beside the user's code. It should not take long, or end early when the
    blocking calls that it makes are cancelled. In other threads this does nothing.
    """
    leash = _leash.get()
    if leash is not None:
        leash.be_awaited()


def is_cancelled() -> bool:
    """Return whether nobody waits any more for what this worker thread does."""
    leash = _leash.get()
    return leash is not None and leash.pulled


def run_leashed(function: Callable[[], T]) -> T:
    """Call ``function``; when it ends, or is interrupted, no request that it made goes on."""
    return Leash(_leash.get()).run(function)


def on_leash(call: Cancellable) -> contextlib.AbstractContextManager[None]:
    """Hold ``call``, which this thread waits for, on the leash of the thread, if it has one."""
    leash = _leash.get()
    return _NO_LEASH if leash is None else leash.holding(call)


def holding(
    call: Cancellable, context: contextvars.Context
) -> contextlib.AbstractContextManager[None]:
    """Return a context that holds a blocking call of this package on this thread's leash, if any.

    ``context`` is that in which the call's task will run: the task is held as a whole, so none of
    its own requests are.
    """
    context.run(_leash.set, None)
    return on_leash(call)


def leashed() -> contextlib.AbstractContextManager[None]:
    """Return a context that puts a request on the leash of the thread it is made for, if any.

    On the I/O loop. Tasks that a library starts for a thread have the context of the code that
    runs there, and with it the leash; those of this package's own calls, which are held as a
    whole, do not. Entering raises CancelledError where the leash was pulled before.
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
