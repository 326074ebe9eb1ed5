"""Lanes: the queues of calls into libraries that bear one thread at a time."""

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
from aioxarray._runtime.threads.crew import called_at_exit, cancelled_at_exit, is_ending, uncut
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.leash import Leash
from aioxarray._runtime.threads.outcomes import Outcome, until_done
from aioxarray._runtime.threads.own import in_own_thread
from aioxarray._runtime.threads.pool import Pool, finish

T = TypeVar("T")
_logger = logging.getLogger(__name__)

_lanes: weakref.WeakValueDictionary[Hashable, Lane] = weakref.WeakValueDictionary()


@after_fork
def _reset_after_fork() -> None:
    # The threads stayed with the parent, and its locks may have been held by one of them.
    for lane in list(_lanes.values()):
        lane._reset()


class Closes(Protocol):
    """What a lane's library has open."""

    def close(self) -> object: ...


class Lane:
    """The queue of calls into a library that works behind one lock: one runs at a time.

    Without it, such calls would fill the pool with threads that wait for each other.

    Parameters
    ----------
    pool
        The threads that make the calls.
    """

    def __init__(self, pool: Pool, is_uncut: bool = False) -> None:
        self._pool = pool
        self._is_uncut = is_uncut
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
    def of(cls, key: Hashable, pool: Pool, *, is_uncut: bool = False) -> Lane:
        """Return the lane for ``key`` (what identifies the lock); it lives while in use.

        If it ``is_uncut``, the end of the interpreter waits for the call under way: see `uncut`.
        """
        return _lanes.setdefault(key, cls(pool, is_uncut))

    async def run(self, function: Callable[[], T]) -> T:
        """Await ``function()`` after those before it, in the context of the caller.

        Cancelling returns at once: a call that waits is dropped, one that has begun runs on.
        """
        outcome: Outcome[T] = Outcome()
        await asyncio.wrap_future(self._queue(function, outcome))
        return outcome.take()

    async def run_to_end(self, function: Callable[[], T], patience_s: float | None = None) -> T:
        """Await ``function()`` as `run` does, and its end also when this is cancelled.

        Cancelling cancels the blocking calls that it makes. What it still returns is let go of in
        the lane. With ``patience_s``, its end is awaited no longer than that.
        """
        leash = Leash()
        outcome: Outcome[T] = Outcome()

        def leashed() -> T:
            with cancelled_at_exit(leash.pull):
                return leash.run(function)

        call = self._queue(leashed, outcome)
        ended = asyncio.wrap_future(call)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not call.cancel():
                leash.pull()
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
        """Return ``function()``, called in this thread, while nobody else is in the library."""
        try:
            with self._turn:
                return function()
        finally:
            self._tidy()

    def keep(self, obj: Closes) -> int:
        """Hold ``obj``, which the library has open, until `drop` is called with what this returns.

        What is held when the interpreter ends is closed: HDF5 would close it later, and call file
        objects of Python's for it, which are gone then.

        What is held from here is no garbage, of which Python would call the finalizers in any
        thread, when the objects that use it are.
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
        """Hold no longer what was kept, which others hold; at the interpreter's end, go on."""
        if not is_ending():
            del self._kept[key]

    def drop(self, key: int) -> None:
        """Let go of what was kept, which this may have the last reference to.

        That is done here and now, as if this were not here; but while somebody is in the library
        it is left to them, and in a thread that does not run for the user, which the garbage
        collector may be in at any time, to the caller for whom it works or, if there is none, to
        whoever is in the library next. No lock is waited for, except in the moment in which
        another thread takes its turn. At the end of the interpreter it is left to the end itself:
        HDF5 must not be closing a file in one thread while it is torn down in another.
        """
        if is_ending():
            return
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
        while True:
            with self._lock:
                if not self._calls:
                    self._busy = False
                    return
                call, function = self._calls.popleft()
            with uncut() if self._is_uncut else contextlib.nullcontext():
                finish(call, function)
            # Keep nothing of this call alive until the next one comes.
            del call, function
