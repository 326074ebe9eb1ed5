"""Worker threads: a few for decoding, more for calls that wait."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Generic, TypeVar

from aioxarray._runtime.threads.crew import (
    Crew,
    Member,
    current,
)
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.outcomes import until_done

T = TypeVar("T")
_logger = logging.getLogger(__name__)

# Blocking backends wait more than they compute; a thread costs little while it waits.
BLOCKING_THREADS = 16
# A thread that hangs takes little but its place.
MOST_LOST = 64


def usable_cores() -> int:
    """Return how many cores this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Call(Generic[T]):
    """A function for a pool to call once, which can be given up while it runs."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread: Member | None = None

    def __call__(self) -> T:
        with self._lock:
            self._thread = current()
        try:
            return self._function()
        finally:
            with self._lock:
                self._thread = None

    def give_up(self) -> None:
        """Have another thread take the place of the one that runs this, if one does."""
        with self._lock:
            if self._thread is not None:
                self._thread.replace()


def _soon(give_up: Callable[[], None]) -> None:
    # What waits for a thread, and is cancelled together with this, must not begin in its place.
    asyncio.get_running_loop().call_soon(give_up)


class Pool(Executor):
    """A thread pool that is made on first use, resized on demand, and anew after a fork.

    A thread whose call was given up is replaced: calls that hang take nobody's place. Nobody waits
    for the threads when the interpreter ends, except for a moment.

    Parameters
    ----------
    name
        What the names of the threads begin with.
    size
        How many calls run at once, those that were given up not counted.
    most_lost
        How many calls that were given up may still run before further ones keep their places: a
        thread cannot be killed, and without a bound they would be more with every timeout.
    """

    def __init__(self, name: str, size: float, most_lost: float = MOST_LOST) -> None:
        self._name = name
        self._size = size
        self._most_lost = most_lost
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._crew: Crew | None = None
        self._spare: Pool | None = None
        self._queue: set[object] = set()
        # How many that take long were started, and have not ended.
        self._long = 0

    def resize(self, size: int) -> None:
        """Use ``size`` threads for what is submitted from now on."""
        with self._lock:
            if size != self._size:
                self._size = size
                crew, self._crew = self._crew, None
                if crew is not None:
                    crew.dismiss()

    def _for(self, long: bool) -> Pool:
        """Return the pool for a function; the lock is held."""
        if long or self._long < self._size:
            return self
        if self._spare is None:
            self._spare = Pool(f"{self._name}-spare", 1)
        return self._spare

    def submit(  # type: ignore[override]  # the base class has names of its own for the arguments
        self, function: Callable[..., T], *args: Any
    ) -> Future[T]:
        """Run ``function`` on one of the threads."""
        future: Future[T] = Future()
        work = partial(finish, future, partial(function, *args) if args else function)
        with self._lock:
            if self._crew is None:
                self._crew = Crew(self._name, self._size, self._most_lost)
            self._crew.submit(work)
        return future

    async def run(self, function: Callable[[], T], *, long: bool = False) -> T:
        """Await ``function()`` on one of the threads, in the context of the caller.

        Cancelling returns at once; a function that has begun runs on and is forgotten, and another
        thread takes the place of its own.
        """
        context = contextvars.copy_context()
        call = Call(lambda: context.run(function))
        try:
            return await self.start(call, long=long)
        except asyncio.CancelledError:
            _soon(call.give_up)
            raise

    async def run_to_end(
        self,
        function: Callable[[], T],
        stop: Callable[[], object],
        *,
        wait: bool = True,
        long: bool = False,
    ) -> T:
        """Await ``function()`` on one of the threads, where it runs to its end in any case.

        Cancelling calls ``stop``, which should make ``function`` return soon, and waits until it
        has, unless told not to ``wait``: then another thread takes the place of its own.
        """
        call = Call(function)
        future = self.start(call, long=long)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop()
            if not wait:
                _soon(call.give_up)
            if wait:
                await until_done(future)
            # Its error, if any, is no longer of interest, and must not be logged as unheard.
            future.add_done_callback(lambda ended: ended.exception())
            raise

    def start(self, function: Callable[[], T], *, long: bool = False) -> asyncio.Future[T]:
        """Start ``function()`` on one of the threads; its future belongs to the running loop.

        ``long`` says that it may take much longer than others.
        """
        place = object()
        # Popped, so that the thread holds nothing of it when it has told its outcome.
        functions = [function]

        def begin() -> T:
            self._queue.discard(place)
            return functions.pop()()

        with self._lock:
            self._queue.add(place)
            pool = self._for(long)
            self._long += long
        future = asyncio.get_running_loop().run_in_executor(pool, begin)
        # What is cancelled before it began never does.
        future.add_done_callback(lambda _: self._end(place, long))
        return future

    def _end(self, place: object, long: bool) -> None:
        self._queue.discard(place)
        with self._lock:
            self._long -= long

    @property
    def has_queue(self) -> bool:
        """Whether a function that was started waits for a thread."""
        return bool(self._queue)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@after_fork
def _reset_after_fork() -> None:
    # The threads stayed with the parent, and its locks may have been held by one of them.
    for pool in _pools:
        pool._reset()


def finish(call: Future[Any], function: Callable[[], Any]) -> None:
    """Call ``function``, unless ``call`` was cancelled, and let ``call`` have its outcome."""
    if not call.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the call
        call.set_exception(error)
        # The error's traceback holds this frame: it would hold the outcome, and that the error.
        del call
    else:
        call.set_result(result)
