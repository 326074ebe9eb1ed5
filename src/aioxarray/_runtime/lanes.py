"""Lanes: queues of calls into libraries that support only one thread at a time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol, TypeVar, cast

from aioxarray._runtime.loops import deliver_if_sent
from aioxarray._runtime.queueing import current_ticket
from aioxarray._runtime.threads.cancel_scope import CancelScope
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.outcomes import Outcome, until_done
from aioxarray._runtime.threads.package_threads import in_package_thread
from aioxarray._runtime.threads.pool import Pool, finish
from aioxarray._runtime.threads.pool_threads import (
    called_at_exit,
    cancelled_at_exit,
    exit_blocked,
    is_ending,
)

T = TypeVar("T")
_logger = logging.getLogger(__name__)

_lanes: weakref.WeakValueDictionary[Hashable, Lane] = weakref.WeakValueDictionary()


@after_fork
def _reset_after_fork() -> None:
    # The parent's threads do not exist here, and one of them may have held a lock.
    for lane in list(_lanes.values()):
        lane._reset()


class Closes(Protocol):
    """An object that a lane's library has open."""

    def close(self) -> object: ...


class Lane:
    """A queue of calls into a library with a global lock, which run one at a time.

    Without it, such calls would fill the pool with threads that wait for the lock.

    Parameters
    ----------
    pool
        The threads that make the calls.
    blocks_exit
        Whether the end of the interpreter waits for the call in progress: see `exit_blocked`.
    """

    def __init__(self, pool: Pool, blocks_exit: bool = False) -> None:
        self._pool = pool
        self._blocks_exit = blocks_exit
        self._kept: dict[int, list[object]] = {}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._busy = False
        # Held by the thread that is in the library.
        self._turn = threading.Lock()
        self._dropped: deque[list[object]] = deque()

    @classmethod
    def of(cls, key: Hashable, pool: Pool, *, blocks_exit: bool = False) -> Lane:
        """Return the lane for ``key``, which identifies the lock. A lane lives while it is used."""
        return _lanes.setdefault(key, cls(pool, blocks_exit))

    async def run(self, function: Callable[[], T]) -> T:
        """Await ``function()``, after earlier calls, in the context of the caller.

        Cancelling returns at once: a waiting call is dropped; a running one goes on.
        """
        outcome: Outcome[T] = Outcome()
        await asyncio.wrap_future(self._queue(function, outcome))
        return outcome.take()

    async def run_to_end(self, function: Callable[[], T], patience_s: float | None = None) -> T:
        """Await ``function()`` as `run` does, but wait for its end also when cancelled.

        Cancelling cancels the blocking calls that ``function`` makes, and waits for its end, at
        most ``patience_s`` seconds if given. If it still returns a result, it is freed in the lane.
        """
        scope = CancelScope()
        outcome: Outcome[T] = Outcome()

        def run() -> T:
            with cancelled_at_exit(scope.cancel):
                return scope.run(function)

        call = self._queue(run, outcome)
        ended = asyncio.wrap_future(call)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not call.cancel():
                scope.cancel()
                if patience_s is None:
                    await until_done(ended)
                else:
                    await until_done(
                        asyncio.ensure_future(asyncio.wait([ended], timeout=patience_s))
                    )
                if ended.done():
                    await until_done(asyncio.wrap_future(self._queue(outcome.drop, Outcome())))
                else:
                    call.add_done_callback(lambda _: self._queue(outcome.drop, Outcome()))
            raise
        return outcome.take()

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` in this thread while no other thread is in the library."""
        try:
            with self._turn:
                return function()
        finally:
            self._tidy()

    def keep(self, obj: Closes) -> int:
        """Keep a reference to ``obj``, which the library has open; return a key for `drop`.

        Objects that are still kept when the interpreter ends are closed: HDF5 would close them
        later, and call Python file objects that no longer exist.

        The reference from here also keeps ``obj`` from becoming garbage together with the objects
        that use it, since Python might then finalize it in any thread.
        """
        called_at_exit(self._close_kept)
        held: list[object] = [obj]
        self._kept[id(held)] = held
        return id(held)

    def _close_kept(self) -> None:
        for held in list(self._kept.values()):
            for obj in held:
                try:
                    cast(Closes, obj).close()
                except Exception as error:  # noqa: BLE001 - the end of the interpreter goes on
                    _logger.debug("a file could not be closed at the end: %s", type(error).__name__)

    def forget(self, key: int) -> None:
        """Remove a kept reference that is not the last one; do nothing at interpreter exit."""
        if not is_ending():
            del self._kept[key]

    def drop(self, key: int) -> None:
        """Remove a kept reference, which may be the last one.

        In the user's threads that happens at once, unless a thread is in the library: then that
        thread does it afterwards. This package's own threads, where the garbage collector may run
        at any time, leave it to the caller that they work for or, if there is none, to the next
        thread in the library. No lock is waited for, except at the moment when another thread takes
        its turn. At interpreter exit nothing is done: HDF5 must not close a file in one thread
        while it is torn down in another.
        """
        if is_ending():
            return
        self._dropped.append(self._kept.pop(key))
        self._tidy_for_the_user()

    def _tidy_for_the_user(self) -> None:
        if not in_package_thread():
            self._tidy()
        elif self._dropped and not self._turn.locked():
            deliver_if_sent(self._tidy_for_the_user)

    def _tidy(self) -> None:
        # A thread that has the turn checks this again after releasing it.
        while self._dropped and not self._turn.locked():
            with self._turn:
                self._release_dropped()

    def _release_dropped(self) -> None:
        while self._dropped:
            self._dropped.popleft().clear()

    def _queue(self, function: Callable[[], T], outcome: Outcome[T]) -> Future[None]:
        call: Future[None] = Future()
        context = contextvars.copy_context()
        ticket = current_ticket()
        # Popped, so that the thread holds no reference to it once the call is done.
        functions = [function]

        def take_turn() -> None:
            with self._turn:
                if ticket is not None:
                    ticket.begin()
                outcome.of(lambda: context.run(functions.pop()))
                self._release_dropped()
            self._tidy()

        with self._lock:
            if ticket is not None and self._busy:
                ticket.wait()
            self._calls.append((call, take_turn))
            start, self._busy = not self._busy, True
        if start:
            self._pool.submit(self._work)
        return call

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._busy = False
                    return
                call, function = self._calls.popleft()
            with exit_blocked() if self._blocks_exit else contextlib.nullcontext():
                finish(call, function)
            # Do not keep objects of this call alive until the next one.
            del call, function
