"""The I/O loop, and the ways onto it from any thread and any event loop.

All requests of a process run on one asyncio loop in a thread of its own, the *I/O loop*:
objects that bind to the first loop that awaits them (fsspec filesystems, HTTP sessions) then
meet the same loop whoever asks, and the caller's loop only waits. This module is the one
place where work passes between loops.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import difflib
import functools
import inspect
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import anyio

# Private, and imported for its effect alone: anyio imports it when it is first used, which would
# hold up the event loop of the first caller in a process for some 35 ms.
import anyio._backends._asyncio  # noqa: F401
from anyio.lowlevel import current_token

from aioxarray._runtime.leash import holding
from aioxarray._runtime.outcomes import Outcome
from aioxarray._runtime.own_threads import mark_own_thread

T = TypeVar("T")
P = ParamSpec("P")

_Deliver = Callable[[Callable[[], None]], None]

# How a function reaches the thread or loop of the caller for whom the current task works.
_deliver: contextvars.ContextVar[_Deliver | None] = contextvars.ContextVar(
    "aioxarray_deliver", default=None
)
# Loops whose thread waits, blocked, for the current task: work sent there would never run.
_blocked_loops: contextvars.ContextVar[tuple[asyncio.AbstractEventLoop, ...]] = (
    contextvars.ContextVar("aioxarray_blocked_loops", default=())
)


class _OwnLoop:
    """An asyncio loop in a daemon thread, made on first use and anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._loop = None

    def __call__(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="aioxarray-io", daemon=True
                ).start()
            return self._loop


_source: Callable[[], asyncio.AbstractEventLoop] = _OwnLoop()


def provide_io_loop(source: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Make ``source()`` the I/O loop from now on; it is asked each time, so it may change."""
    global _source
    _source = source


def io_loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which all requests run; it runs in a thread of its own."""
    return _source()


@contextlib.contextmanager
def use_io_loop(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Make ``loop`` the I/O loop of the process while the context is open.

    Code already running on ``loop`` is then awaited in place. For tests that run everything,
    caller and requests, on one loop (one with a virtual clock, say).
    """
    before = _source
    provide_io_loop(lambda: loop)
    try:
        yield
    finally:
        provide_io_loop(before)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the asyncio loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def deliver(function: Callable[[], None]) -> None:
    """Call ``function`` soon where the caller is: on its loop, or in its waiting thread.

    On a task that was not sent by anyone, it is called at once.
    """
    to_caller = _deliver.get()
    if to_caller is None:
        function()
    else:
        to_caller(function)


def deliver_if_sent(function: Callable[[], None]) -> None:
    """Call ``function`` soon where the caller is, if there is one; takes no lock."""
    to_caller = _deliver.get()
    if to_caller is not None:
        to_caller(function)


class _Remote:
    """A task on another loop: its outcome is there only when the task has really ended.

    When it has, nothing in the thread of that loop holds the function or its result any more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[[], Coroutine[Any, Any, Any]],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._functions = [function]
        self._on_end = on_end
        self._task: asyncio.Task[Any] | None = None
        self._taken: Outcome[Any] = Outcome()
        # Done when the task is. Not the future of ``run_coroutine_threadsafe``: that one counts as
        # done as soon as it is cancelled, while the task may still have requests in flight.
        self.outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def start(self) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def take(self) -> Any:
        """Return or raise what the task did."""
        return self._taken.take()

    def drop(self) -> None:
        """Let go of what the task did, in this thread."""
        self._taken.drop()

    def _start(self) -> None:
        # The main thread is the user's, also where a test runs the I/O loop in it for a while.
        if self._loop is io_loop() and threading.current_thread() is not threading.main_thread():
            mark_own_thread()
        if self.outcome.done():
            # Cancelled, by a leash, just before the start was sent.
            return
        # Called in the task, so that wrong arguments are its error: nobody else would hear it, and
        # the caller would wait for ever.
        self._task = self._loop.create_task(self._taken.of_async(self._functions.pop()))
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self.outcome.done():
            # An interrupt came before the start was sent; it never will be.
            self._taken.fail(concurrent.futures.CancelledError())
            self._finish()

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        if task.cancelled():
            # Before it began.
            self._taken.fail(concurrent.futures.CancelledError())
        self._finish()

    def _finish(self) -> None:
        self.outcome.set_result(None)
        self._on_end()


def waker() -> _Deliver:
    """Return a function that, from any thread, has its argument called on this very loop."""
    token = cast(Any, current_token().native_token)
    # An asyncio loop, or a TrioToken.
    soon = (
        token.call_soon_threadsafe
        if hasattr(token, "call_soon_threadsafe")
        else (token.run_sync_soon)
    )

    def wake(function: Callable[[], None]) -> None:
        # The caller's loop may be gone by now (its owner stopped it): nobody waits any more.
        with contextlib.suppress(RuntimeError):
            soon(function)

    return wake


async def run_on(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, T]]
) -> T:
    """Await ``function()`` on ``loop`` from whatever asynchronous library runs here.

    Cancelling cancels the task on ``loop`` and returns only when that task has ended.
    """
    if running_loop() is loop:
        return await function()
    if loop in _blocked_loops.get():
        raise RuntimeError(
            "the event loop that has to do this work is blocked: its thread waits for this very "
            "call. Await the coroutine (the name that ends in _async) on that loop instead."
        )
    ended = anyio.Event()
    wake = waker()
    context = contextvars.copy_context()
    context.run(_deliver.set, wake)
    remote = _Remote(loop, function, lambda: wake(ended.set))
    context.run(remote.start)
    try:
        await ended.wait()
    except BaseException:
        remote.cancel()
        with anyio.CancelScope(shield=True):
            while not ended.is_set():
                try:
                    await ended.wait()
                except anyio.get_cancelled_exc_class():
                    # A task of asyncio can be cancelled again, past any shield: by a timeout
                    # and the task group around it, say. The first one goes on below.
                    continue
        remote.drop()
        raise
    try:
        result: T = remote.take()
        return result
    finally:
        # The traceback of an error holds this frame: hold nothing that was opened.
        del remote


def run_blocking(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``function()`` on the I/O loop and block this thread until it has ended.

    Works in plain code and in a thread whose own event loop is running (a notebook's). An
    interrupt cancels the work and waits for its end.
    """
    loop = io_loop()
    here = running_loop()
    if here is loop:
        raise RuntimeError(
            "a blocking call on aioxarray's own I/O loop would wait for itself: "
            "await the coroutine (the name that ends in _async) instead"
        )
    # Callbacks for the caller and, last, None: the end.
    inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    context = contextvars.copy_context()
    context.run(_deliver.set, inbox.put)
    if here is not None:
        context.run(_blocked_loops.set, (*_blocked_loops.get(), here))
    remote = _Remote(loop, function, lambda: inbox.put(None))
    with holding(remote, context):
        try:
            context.run(remote.start)
            _serve(inbox)
        except BaseException:
            remote.cancel()
            remote.outcome.result()
            remote.drop()
            raise
    try:
        result: T = remote.take()
        return result
    finally:
        # The traceback of an error holds this frame: hold nothing that was opened.
        del remote


def _serve(inbox: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (function := inbox.get()) is not None:
        function()


def _did_you_mean(given: Iterable[str], signature: inspect.Signature) -> str:
    """Return a question for a name that is like one in ``given`` which is none; "" without."""
    names = list(signature.parameters)
    for name in given:
        if name not in names and (close := difflib.get_close_matches(name, names, n=1)):
            return f"; did you mean {close[0]!r}?"
    return ""


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return the blocking twin of a coroutine function ``name_async``: ``name``."""
    name = function.__name__.removesuffix("_async")
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return run_blocking(lambda: function(*args, **kwargs))
        except TypeError:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                # Python named the coroutine function, which the user did not call.
                hint = _did_you_mean(kwargs, signature)
                raise TypeError(f"{name}() {error}{hint}") from None
            raise

    call.__name__ = name
    call.__qualname__ = function.__qualname__.removesuffix("_async")
    call.__doc__ = (
        f"Blocking call of `{function.__name__}`: plain code, any thread, also while an event\n"
        f"loop is running in this thread (a notebook). An interrupt (Ctrl-C) cancels it.\n\n"
        f"{inspect.getdoc(function)}"
    )
    return call
