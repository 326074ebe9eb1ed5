"""Thread pools in which calls that hang can be given up."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.outcomes import until_done
from aioxarray._runtime.threads.pool_threads import (
    PoolThread,
    PoolThreads,
    current,
)

T = TypeVar("T")
_logger = logging.getLogger(__name__)

# Blocking backends wait more than they compute, and a waiting thread costs little.
BLOCKING_THREADS = 16
# The default number of hanging threads that are replaced; each of them costs little.
MOST_LOST = 64


class _Abandonable(Generic[T]):
    """A function for a pool to call once, which can be given up while it is running."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread: PoolThread | None = None

    def __call__(self) -> T:
        with self._lock:
            self._thread = current()
        try:
            return self._function()
        finally:
            with self._lock:
                self._thread = None

    def give_up(self) -> None:
        """Replace the thread that is running the function, if there is one."""
        with self._lock:
            if self._thread is not None:
                self._thread.replace()


def _soon(give_up: Callable[[], None]) -> None:
    # Later, so that waiting calls that are cancelled together with this do not start instead.
    asyncio.get_running_loop().call_soon(give_up)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The state of a `Pool` at one moment.

    Attributes
    ----------
    size
        The number of calls that may run at once.
    queued
        The calls that wait for a thread.
    long
        The long calls that were started and have not ended.
    """

    size: float
    queued: int
    long: int


class Pool(Executor):
    """A thread pool that is created on first use and again after a fork, and can be resized.

    A thread whose call was given up is replaced, so that calls that hang do not block others. The
    end of the interpreter waits for the threads only briefly.

    Parameters
    ----------
    name
        The prefix of the threads' names.
    size
        The number of calls that run at once, without those that were given up.
    most_lost
        The number of given-up calls that are replaced while they still run. Threads cannot be
        killed; without this limit, every timeout could add some.
    """

    def __init__(self, name: str, size: float, most_lost: float = MOST_LOST) -> None:
        self._name = name
        self._size = size
        self._most_lost = most_lost
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._threads: PoolThreads | None = None
        self._spare: Pool | None = None
        self._queue: set[object] = set()
        # The number of long functions that were started and have not ended.
        self._long = 0

    def statistics(self) -> PoolStatistics:
        """Return the state of the pool at this moment; from any thread."""
        with self._lock:
            return PoolStatistics(self._size, len(self._queue), self._long)

    def resize(self, size: int) -> None:
        """Use ``size`` threads for functions that are submitted from now on."""
        with self._lock:
            if size != self._size:
                self._size = size
                threads, self._threads = self._threads, None
                if threads is not None:
                    threads.dismiss()

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
            if self._threads is None:
                self._threads = PoolThreads(self._name, self._size, self._most_lost)
            self._threads.submit(work)
        return future

    async def run(self, function: Callable[[], T], *, long: bool = False) -> T:
        """Await ``function()`` on one of the threads, in the context of the caller.

        Cancelling returns at once. If the function is running, it goes on and its result is
        discarded; its thread is replaced.
        """
        context = contextvars.copy_context()
        call = _Abandonable(lambda: context.run(function))
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
        """Await ``function()`` on one of the threads; cancelling does not abandon it.

        Cancelling calls ``stop``, which should make ``function`` return soon, and waits until it
        has. Without ``wait``, cancelling returns at once, and the thread is replaced.
        """
        call = _Abandonable(function)
        future = self.start(call, long=long)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop()
            if wait:
                await until_done(future)
            else:
                _soon(call.give_up)
            # Retrieve an error, so that asyncio does not log it.
            future.add_done_callback(lambda ended: ended.exception())
            raise

    def start(self, function: Callable[[], T], *, long: bool = False) -> asyncio.Future[T]:
        """Start ``function()`` on one of the threads; its future belongs to the running loop.

        ``long`` marks one that may take long; while such fill all threads, others get a spare one.
        """
        place = object()
        # Popped, so that the thread holds no reference to it once the future is done.
        functions = [function]

        def begin() -> T:
            self._queue.discard(place)
            return functions.pop()()

        with self._lock:
            self._queue.add(place)
            pool = self._for(long)
            self._long += long
        future = asyncio.get_running_loop().run_in_executor(pool, begin)
        # Also called for a function that was cancelled before it started, and never runs.
        future.add_done_callback(lambda _: self._end(place, long))
        return future

    @property
    def is_full(self) -> bool:
        """Whether a function that is submitted now has to wait for a thread."""
        threads = self._threads
        return threads is not None and threads.is_full

    def _end(self, place: object, long: bool) -> None:
        self._queue.discard(place)
        with self._lock:
            self._long -= long

    @property
    def has_queue(self) -> bool:
        """Whether a function is waiting for a thread."""
        return bool(self._queue)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@after_fork
def _reset_after_fork() -> None:
    # The parent's threads do not exist here, and one of them may have held a lock.
    for pool in _pools:
        pool._reset()


def finish(call: Future[Any], function: Callable[[], Any]) -> None:
    """Call ``function`` unless ``call`` was cancelled, and set its outcome on ``call``."""
    if not call.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
        call.set_exception(error)
        # Break a reference cycle: the error's traceback, this frame, the future, the error.
        del call
    else:
        call.set_result(result)
