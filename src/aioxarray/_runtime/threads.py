"""Worker threads: a few for decoding, more for calls that wait, lanes for serial libraries."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from aioxarray._runtime.loops import Leash, deliver_if_sent
from aioxarray._runtime.outcomes import Outcome
from aioxarray._runtime.own_threads import in_own_thread, mark_own_thread
from aioxarray._runtime.tasks import until_done

T = TypeVar("T")

# Blocking backends wait more than they compute; a thread costs little while it waits.
BLOCKING_THREADS = 16


def usable_cores() -> int:
    """Return how many cores this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """A thread pool that is made on first use, resized on demand, and anew after a fork."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._queue: set[object] = set()

    def resize(self, size: int) -> None:
        """Use ``size`` threads for what is submitted from now on."""
        with self._lock:
            if size != self._size:
                self._size = size
                executor, self._executor = self._executor, None
                if executor is not None:
                    executor.shutdown(wait=False)

    def _started(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._size, thread_name_prefix=self._name)
        return self._executor

    def submit(self, function: Callable[[], object]) -> None:
        """Run ``function``, which must not raise, on one of the threads."""
        with self._lock:
            self._started().submit(function)

    async def run(self, function: Callable[[], T]) -> T:
        """Await ``function()`` on one of the threads, in the context of the caller.

        Cancelling returns at once; a function that has begun runs on and is forgotten.
        """
        context = contextvars.copy_context()
        return await self.start(lambda: context.run(function))

    async def run_to_end(
        self, function: Callable[[], T], stop: Callable[[], object], *, wait: bool = True
    ) -> T:
        """Await ``function()`` on one of the threads, where it runs to its end in any case.

        Cancelling calls ``stop``, which should make ``function`` return soon, and waits until it
        has, unless told not to ``wait``.
        """
        future = self.start(function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop()
            while wait and not future.done():
                # Cancelled again meanwhile: by a timeout and the group around it, say.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            # Its error, if any, is no longer of interest, and must not be logged as unheard.
            future.add_done_callback(lambda ended: ended.exception())
            raise

    def start(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Start ``function()`` on one of the threads; its future belongs to the running loop."""
        place = object()
        # Popped, so that the thread holds nothing of it when it has told its outcome.
        functions = [function]

        def begin() -> T:
            mark_own_thread()
            self._queue.discard(place)
            return functions.pop()()

        with self._lock:
            self._queue.add(place)
            future = asyncio.get_running_loop().run_in_executor(self._started(), begin)
        # What is cancelled before it began never does.
        future.add_done_callback(lambda _: self._queue.discard(place))
        return future

    @property
    def has_queue(self) -> bool:
        """Whether a function that was started waits for a thread."""
        return bool(self._queue)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_lanes: weakref.WeakValueDictionary[Hashable, Lane] = weakref.WeakValueDictionary()


def _reset_after_fork() -> None:
    # The threads stayed with the parent, and its locks may have been held by one of them.
    for pool in _pools:
        pool._reset()
    for lane in list(_lanes.values()):
        lane._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


class Lane:
    """The queue of calls into a library that works behind one lock: one runs at a time.

    Without it, such calls would fill the pool with threads that wait for each other.

    Parameters
    ----------
    pool
        The threads that make the calls.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: dict[int, list[object]] = {}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._busy = False
        # Had by whoever is in the library.
        self._turn = threading.Lock()
        self._dropped: deque[list[object]] = deque()

    @classmethod
    def of(cls, key: Hashable, pool: Pool) -> Lane:
        """Return the lane for ``key`` (what identifies the lock); it lives while in use."""
        return _lanes.setdefault(key, cls(pool))

    async def run(self, function: Callable[[], T]) -> T:
        """Await ``function()`` after those before it, in the context of the caller.

        Cancelling returns at once: a call that waits is dropped, one that has begun runs on.
        """
        outcome: Outcome[T] = Outcome()
        await asyncio.wrap_future(self._queue(function, outcome))
        return outcome.take()

    async def run_to_end(self, function: Callable[[], T]) -> T:
        """Await ``function()`` as `run` does, and its end also when this is cancelled.

        Cancelling cancels the blocking calls that it makes. What it still returns is let go of in
        the lane.
        """
        leash = Leash()
        outcome: Outcome[T] = Outcome()
        call = self._queue(partial(leash.run, function), outcome)
        ended = asyncio.wrap_future(call)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not call.cancel():
                leash.pull()
                await until_done(ended)
                await until_done(asyncio.wrap_future(self._queue(outcome.drop, Outcome())))
            raise
        return outcome.take()

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()``, called in this thread, while nobody else is in the library."""
        try:
            with self._turn:
                return function()
        finally:
            self._tidy()

    def keep(self, obj: object) -> int:
        """Hold ``obj``, which the library has open, until `drop` is called with what this returns.

        What is held from here is no garbage, of which Python would call the finalizers in any
        thread, when the objects that use it are.
        """
        held = [obj]
        self._kept[id(held)] = held
        return id(held)

    def drop(self, key: int) -> None:
        """Let go of what was kept, which this may have the last reference to.

        That is done here and now, as if this were not here; but while somebody is in the library
        it is left to them, and in a thread that does not run for the user, which the garbage
        collector may be in at any time, to the caller for whom it works or, if there is none, to
        whoever is in the library next. No lock is waited for, except in the moment in which
        another thread takes its turn.
        """
        self._dropped.append(self._kept.pop(key))
        self._tidy_for_the_user()

    def _tidy_for_the_user(self) -> None:
        if not in_own_thread():
            self._tidy()
        elif self._dropped and not self._turn.locked():
            deliver_if_sent(self._tidy_for_the_user)

    def _tidy(self) -> None:
        # Somebody who has the turn looks here when they have given it up.
        while self._dropped and not self._turn.locked():
            with self._turn:
                self._let_go()

    def _let_go(self) -> None:
        while self._dropped:
            self._dropped.popleft().clear()

    def _queue(self, function: Callable[[], T], outcome: Outcome[T]) -> Future[None]:
        call: Future[None] = Future()
        context = contextvars.copy_context()
        # Popped, so that the thread holds nothing of it when it has told that it ended.
        functions = [function]

        def take_turn() -> None:
            with self._turn:
                outcome.of(lambda: context.run(functions.pop()))
                self._let_go()
            self._tidy()

        with self._lock:
            self._calls.append((call, take_turn))
            start, self._busy = not self._busy, True
        if start:
            self._pool.submit(self._work)
        return call

    def _work(self) -> None:
        mark_own_thread()
        while True:
            with self._lock:
                if not self._calls:
                    self._busy = False
                    return
                call, function = self._calls.popleft()
            _finish(call, function)
            # Keep nothing of this call alive until the next one comes.
            del call, function


def _finish(call: Future[Any], function: Callable[[], Any]) -> None:
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
