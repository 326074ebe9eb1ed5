"""Daemon threads whose hanging calls delay neither other work nor the end of the interpreter.

The standard library's pool does not replace threads that hang, for example because a server does
not answer, and joins them when the interpreter ends.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.package_threads import mark_package_thread

# How long the end of the interpreter waits for calls in progress. Some libraries (Blosc, HDF5) tear
# down at exit what their calls are using.
_EXIT_S = 0.4

_Work = Callable[[], object]


class PoolThreads:
    """Daemon threads that take work from one queue, and are started if no thread is idle.

    Parameters
    ----------
    name
        The prefix of the threads' names.
    size
        The number of threads that work at once, without those that were given up.
    most_lost
        The number of threads that may be given up and replaced at once. Others keep their places.
    """

    def __init__(self, name: str, size: float, most_lost: float) -> None:
        self._name = name
        self._size = size
        self._most_lost = most_lost
        self._lock = threading.Lock()
        # None makes a thread end.
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._count = 0
        self._idle = 0
        self._lost = 0
        self._started = 0
        # Created by `end`, and set when no thread is working any more.
        self._at_rest: threading.Event | None = None

    def submit(self, work: _Work) -> None:
        """Have a thread call ``work``, which must not raise.

        Raises RuntimeError if the interpreter is ending.
        """
        with self._lock:
            if _ending:
                raise RuntimeError("no threads are to be had: the interpreter is ending")
            self._queue.put(work)
            if self._idle:
                self._idle -= 1
            elif self._count < self._size:
                try:
                    self._add()
                except RuntimeError:
                    if not self._count:
                        self._queue.get()
                        raise

    @property
    def is_full(self) -> bool:
        """Whether work that is submitted now has to wait for a thread."""
        with self._lock:
            return not self._idle and self._count >= self._size

    def _add(self) -> None:
        """Start a thread; the lock is held."""
        _at_exit()
        thread = threading.Thread(
            target=self._serve, name=f"{self._name}_{self._started}", daemon=True
        )
        self._count += 1
        self._started += 1
        try:
            thread.start()
        except RuntimeError:
            self._count -= 1
            raise
        _all_threads.add(self)

    def _serve(self) -> None:
        mark_package_thread()
        thread = _here.thread = PoolThread(self)
        work = self._queue.get()
        while work is not None:
            work()
            # Do not keep its objects alive until the next work arrives.
            del work
            with self._lock:
                if thread.lost:
                    self._lost -= 1
                    self._tell_rest()
                    return
                try:
                    work = self._queue.get_nowait()
                except queue.Empty:
                    self._idle += 1
                    self._tell_rest()
                    work = _NOTHING
            if work is _NOTHING:
                work = self._queue.get()
        with self._lock:
            self._count -= 1
            self._tell_rest()

    def _tell_rest(self) -> None:
        if self._at_rest is not None and not self._is_busy():
            self._at_rest.set()

    def _is_busy(self) -> bool:
        return self._count - self._idle + self._lost > 0

    def replace(self, thread: PoolThread) -> None:
        """Replace ``thread`` by another thread; it ends when its current work does."""
        with self._lock:
            if thread.lost or self._lost >= self._most_lost:
                return
            thread.lost = True
            self._count -= 1
            self._lost += 1
            if not self._queue.empty():
                # If no thread can be started, the next idle one takes the waiting work.
                with contextlib.suppress(RuntimeError):
                    self._add()

    def dismiss(self) -> None:
        """End the threads when all submitted work is done; nothing may be submitted afterwards."""
        with self._lock:
            for _ in range(self._count):
                self._queue.put(None)

    def end(self, seconds: float) -> None:
        """Drop waiting work, and wait at most ``seconds`` for running work, at interpreter exit."""
        with self._lock:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            if not self._is_busy():
                return
            self._at_rest = threading.Event()
        self._at_rest.wait(seconds)


def _no_work() -> None:
    """Do nothing: a placeholder for work that has not arrived yet."""


_NOTHING: _Work = _no_work


class PoolThread:
    """A thread of a pool, which `current` returns in that thread."""

    def __init__(self, threads: PoolThreads) -> None:
        self.lost = False
        self._threads = threads

    def replace(self) -> None:
        """Replace this thread by another one, because its work may hang for long."""
        self._threads.replace(self)


_here = threading.local()


def current() -> PoolThread | None:
    """Return the current thread if it belongs to a pool; otherwise None."""
    thread: PoolThread | None = getattr(_here, "thread", None)
    return thread


_all_threads: weakref.WeakSet[PoolThreads] = weakref.WeakSet()
_registered = False
_ending = False
# Functions that cancel waits that might be long.
_cancels: set[Callable[[], object]] = set()
_last_calls: set[Callable[[], object]] = set()
# The idents of threads in `exit_blocked` calls, during which the interpreter must not end.
_blocking_exit: set[int] = set()
_none_blocking = threading.Condition()


@contextmanager
def cancelled_at_exit(cancel: Callable[[], object]) -> Iterator[None]:
    """Have ``cancel`` called if the interpreter ends while the context is open."""
    _cancels.add(cancel)
    try:
        yield
    finally:
        _cancels.discard(cancel)


def called_at_exit(function: Callable[[], object]) -> None:
    """Have ``function`` called when the interpreter ends, after all `exit_blocked` calls."""
    _last_calls.add(function)
    _at_exit()


@contextmanager
def exit_blocked() -> Iterator[None]:
    """Keep the interpreter from ending while the context is open.

    For calls into libraries that crash or hang if they are torn down meanwhile. Waits inside them
    should be `cancelled_at_exit`. If they wait in other Python code, such as a file object, the end
    of the interpreter raises CancelledError there.
    """
    thread = threading.get_ident()
    with _none_blocking:
        _blocking_exit.add(thread)
    try:
        yield
    finally:
        with _none_blocking:
            _blocking_exit.discard(thread)
            _none_blocking.notify_all()


def is_ending() -> bool:
    """Whether the end of the interpreter has begun."""
    return _ending


def _at_exit() -> None:
    """Register `_end_all` on first use, so that the interpreter's end waits for threads briefly."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_end_all)


def _end_all() -> None:
    global _ending
    _ending = True
    for cancel in list(_cancels):
        cancel()
    with _none_blocking:
        if not _none_blocking.wait_for(lambda: not _blocking_exit, _EXIT_S):
            for thread in _blocking_exit:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(asyncio.CancelledError)
                )
        _none_blocking.wait_for(lambda: not _blocking_exit)
    for function in list(_last_calls):
        function()
    deadline = time.monotonic() + _EXIT_S
    for threads in list(_all_threads):
        threads.end(max(0.0, deadline - time.monotonic()))


@after_fork
def _forget() -> None:
    # The parent's threads do not exist in the child.
    global _none_blocking
    _all_threads.clear()
    _cancels.clear()
    _last_calls.clear()
    _blocking_exit.clear()
    _none_blocking = threading.Condition()
