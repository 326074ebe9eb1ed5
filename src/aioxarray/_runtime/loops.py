"""The I/O loop, and running coroutines on it from any thread and any event loop.

All requests of a process run on one asyncio loop in its own thread, the *I/O loop*. Objects that
bind to the first loop that awaits them (fsspec filesystems, HTTP sessions) then always see the same
loop, and the caller's loop only waits. Only this module moves work between loops.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import queue
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, ParamSpec, TypeVar

from aioxarray._runtime.threads.cancel_scope import call_scope
from aioxarray._runtime.threads.outcomes import Outcome
from aioxarray._runtime.threads.package_threads import mark_package_thread
from aioxarray.errors import did_you_mean

T = TypeVar("T")
P = ParamSpec("P")

_Deliver = Callable[[Callable[[], None]], None]

# Schedules a function in the thread or loop of the caller that the current task works for.
_deliver: contextvars.ContextVar[_Deliver | None] = contextvars.ContextVar(
    "aioxarray_deliver", default=None
)
# Loops whose threads are blocked, waiting for the current task: work sent there would never run.
_blocked_loops: contextvars.ContextVar[tuple[asyncio.AbstractEventLoop, ...]] = (
    contextvars.ContextVar("aioxarray_blocked_loops", default=())
)


# anyio is imported only for callers that use it, or Trio: it takes 45 ms, a quarter of the import.
_ANYIO_ON_ASYNCIO = "anyio._backends._asyncio"
if "trio" in sys.modules:
    # Imported now, because an import on first use would block the caller's event loop.
    import anyio._backends._trio  # noqa: F401


# Returns the I/O loop. Set when `aioxarray._zarr` is imported, and so with this package.
_source: Callable[[], asyncio.AbstractEventLoop]
# Whether the I/O loop runs in its own thread, and not in one of the user's.
_has_own_thread = True


def provide_io_loop(
    source: Callable[[], asyncio.AbstractEventLoop], *, has_own_thread: bool = True
) -> None:
    """Make ``source()`` the I/O loop; it is called each time, so the loop may change."""
    global _source, _has_own_thread
    _source, _has_own_thread = source, has_own_thread


def io_loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which all requests run, in its own thread."""
    return _source()


@contextlib.contextmanager
def use_io_loop(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Make ``loop`` the I/O loop of the process while the context is open.

    Calls from code on ``loop`` are then awaited in place. For tests that run callers and requests
    on one loop, with a virtual clock for example.
    """
    before, had_own_thread = _source, _has_own_thread
    provide_io_loop(lambda: loop, has_own_thread=False)
    try:
        yield
    finally:
        provide_io_loop(before, has_own_thread=had_own_thread)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the asyncio loop running in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def deliver(function: Callable[[], None]) -> None:
    """Call ``function`` soon on the caller's loop, or in the caller's waiting thread.

    If the current task has no caller elsewhere, call ``function`` at once.
    """
    to_caller = _deliver.get()
    if to_caller is None:
        function()
    else:
        to_caller(function)


def deliver_if_sent(function: Callable[[], None]) -> None:
    """Call ``function`` as `deliver` does if there is a caller elsewhere; takes no lock."""
    to_caller = _deliver.get()
    if to_caller is not None:
        to_caller(function)


class _Remote:
    """A task on another loop, whose outcome is set only once the task has really ended.

    By then, the thread of that loop has no reference to the function or its result.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[[], Coroutine[Any, Any, Any]],
        context: contextvars.Context,
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._function: Callable[[], Coroutine[Any, Any, Any]] | None = function
        # The context of the task only: two threads cannot be in a context at once.
        self._context = context
        self._on_end = on_end
        self._task: asyncio.Task[Any] | None = None
        self._taken: Outcome[Any] = Outcome()
        self._has_ended = False

    def start(self) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def take(self) -> Any:
        """Return the result of the task, or raise its error."""
        return self._taken.take()

    def drop(self) -> None:
        """Free the result or error of the task in this thread."""
        self._taken.drop()

    def _start(self) -> None:
        if _has_own_thread and self._loop is io_loop():
            mark_package_thread()
        if self._has_ended:
            # Cancelled by a scope just before the start was scheduled.
            return
        # Called inside the task, so that wrong arguments are an error of the task. Raised here, the
        # error would be lost, and the caller would wait forever.
        function, self._function = self._function, None
        assert function is not None
        self._task = self._loop.create_task(self._taken.of_async(function), context=self._context)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self._has_ended:
            # An interrupt came before the start was scheduled, so the task will never start.
            self._taken.fail(concurrent.futures.CancelledError())
            self._finish()

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        if task.cancelled():
            # Cancelled before it started.
            self._taken.fail(concurrent.futures.CancelledError())
        self._finish()

    def _finish(self) -> None:
        self._has_ended = True
        self._on_end()


class _BlockingRemote(_Remote):
    """A task on another loop that a thread waits for, and that a cancel scope can have."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Done when the task is. The future of ``run_coroutine_threadsafe`` is done as soon as it is
        # cancelled, while the task may still have requests in flight.
        self.outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def _finish(self) -> None:
        self.outcome.set_result(None)
        super()._finish()


class _Ended:
    """An event that one task of an asyncio loop can wait for.

    asyncio's event holds a queue, and anyio's holds that one: thousands of calls may wait at once,
    and the garbage collector traverses everything that they hold.
    """

    __slots__ = ("_future", "_is_set", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._future: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        while not self._is_set:
            self._future = self._loop.create_future()
            await self._future


def detached() -> contextvars.Context:
    """Return a copy of the current context for work that outlives the call that starts it.

    No caller waits for such work: nothing is delivered to one, and none has a blocked loop.
    """
    context = contextvars.copy_context()
    context.run(_deliver.set, None)
    context.run(_blocked_loops.set, ())
    return context


def waker(loop: asyncio.AbstractEventLoop | None) -> _Deliver:
    """Return a function that schedules calls on the running event loop from any thread.

    ``loop`` is that loop if it is an asyncio loop; None for another library's.
    """
    if loop is not None:
        return partial(_call_soon, loop.call_soon_threadsafe)
    from anyio.lowlevel import current_token

    # An asyncio loop, or a TrioToken.
    token: Any = current_token().native_token
    soon = (
        token.call_soon_threadsafe
        if hasattr(token, "call_soon_threadsafe")
        else (token.run_sync_soon)
    )
    return partial(_call_soon, soon)


def _call_soon(soon: Callable[[Callable[[], None]], object], function: Callable[[], None]) -> None:
    # The caller's loop may have been closed by now; then no task waits any more.
    with contextlib.suppress(RuntimeError):
        soon(function)


def _event() -> Any:
    """Return an event for a task of a library other than asyncio."""
    import anyio

    return anyio.Event()


async def _until_set(ended: Any, *, is_asyncio: bool) -> None:
    """Wait for ``ended``, however often the task is cancelled meanwhile."""
    if is_asyncio and _ANYIO_ON_ASYNCIO not in sys.modules:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()
        return
    import anyio

    # Without the shield, a cancelled anyio scope around the call would cancel it in every cycle of
    # the loop. The shield does not stop asyncio's own cancellations, such as those by a timeout.
    with anyio.CancelScope(shield=True):
        while not ended.is_set():
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await ended.wait()


async def run_on(
    loop: asyncio.AbstractEventLoop,
    function: Callable[[], Coroutine[Any, Any, T]],
    *,
    shielded: bool = False,
) -> T:
    """Await ``function()`` on ``loop``, from any asynchronous library.

    Cancelling cancels the task on ``loop`` unless it is ``shielded``, and returns only when that
    task has ended.
    """
    here = running_loop()
    if here is loop:
        return await function()
    if loop in _blocked_loops.get():
        raise RuntimeError(
            "the event loop that has to do this work is blocked: its thread waits for this very "
            "call. Await the coroutine (the name that ends in _async) on that loop instead."
        )
    if here is not None and asyncio.current_task() is None:
        # Trio in guest mode, on top of an asyncio loop.
        here = None
    ended = _event() if here is None else _Ended(here)
    wake = waker(here)
    context = contextvars.copy_context()
    context.run(_deliver.set, wake)
    remote = _Remote(loop, function, context, partial(wake, ended.set))
    remote.start()
    try:
        await ended.wait()
    except BaseException:
        if not shielded:
            remote.cancel()
        await _until_set(ended, is_asyncio=here is not None)
        remote.drop()
        raise
    try:
        result: T = remote.take()
        return result
    finally:
        # The traceback of an error holds this frame: hold nothing that was opened.
        del remote


def run_blocking(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``function()`` on the I/O loop, and block this thread until it has ended.

    Works in synchronous code, and in a thread with a running event loop (a notebook). An interrupt
    cancels the work and waits for its end.
    """
    loop = io_loop()
    here = running_loop()
    if here is loop:
        raise RuntimeError(
            "a blocking call on aioxarray's own I/O loop would wait for itself: "
            "await the coroutine (the name that ends in _async) instead"
        )
    # Callbacks for the caller; None marks the end.
    inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    context = contextvars.copy_context()
    context.run(_deliver.set, inbox.put)
    if here is not None:
        context.run(_blocked_loops.set, (*_blocked_loops.get(), here))
    remote = _BlockingRemote(loop, function, context, lambda: inbox.put(None))
    with call_scope(remote, context):
        try:
            remote.start()
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


# A signal that arrives just before a thread blocks on a lock does not wake it: Python hands over
# the GIL in between, which takes milliseconds while other threads compete for it.
_SIGNAL_S = 0.5


def _serve(inbox: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while True:
        try:
            function = inbox.get(timeout=_SIGNAL_S)
        except queue.Empty:
            continue
        if function is None:
            return
        function()


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return the blocking version, called ``name``, of a coroutine function ``name_async``."""
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
                # Python's message names the coroutine function, which the user did not call.
                names = signature.parameters
                unknown = next((each for each in kwargs if each not in names), None)
                hint = "" if unknown is None else did_you_mean(unknown, names)
                raise TypeError(f"{name}() {error}{hint}") from None
            raise

    call.__name__ = name
    call.__qualname__ = function.__qualname__.removesuffix("_async")
    summary, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
    call.__doc__ = (
        f"{summary}\n\n"
        f"Blocking version of `{function.__name__}`, for any thread, even while an event loop\n"
        f"runs in it (as in a notebook). An interrupt (Ctrl-C) cancels the call.\n\n{rest}"
    )
    return call
