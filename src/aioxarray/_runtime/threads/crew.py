"""Threads that nobody waits for: what hangs in one holds up neither other work nor the exit.

The standard library's pool has as many threads as it has, however many hang in a server that does
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
from aioxarray._runtime.threads.own import mark_own_thread

# How long the end of the interpreter waits for calls under way. Some libraries tear down in it what
# their calls are using (Blosc, HDF5).
_EXIT_S = 0.4

_Work = Callable[[], object]


class Crew:
    """Daemon threads that take work from one queue, each started when there is no idle one.

    Parameters
    ----------
    name
        What their names begin with.
    size
        How many work at once, those that were given up not counted.
    most_lost
        How many may be given up at once and be replaced. Further ones keep their places.
    """

    def __init__(self, name: str, size: float, most_lost: float) -> None:
        self._name = name
        self._size = size
        self._most_lost = most_lost
        self._lock = threading.Lock()
        # None tells a thread to end.
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._members = 0
        self._idle = 0
        self._lost = 0
        self._started = 0
        # Set, once it is there, when no thread is at work any more.
        self._at_rest: threading.Event | None = None

    def submit(self, work: _Work) -> None:
        """Have a thread call ``work``, which must not raise.

        Raises RuntimeError where the interpreter is ending.
        """
        with self._lock:
            if _ending:
                raise RuntimeError("no threads are to be had: the interpreter is ending")
            self._queue.put(work)
            if self._idle:
                self._idle -= 1
            elif self._members < self._size:
                try:
                    self._add()
                except RuntimeError:
                    if not self._members:
                        self._queue.get()
                        raise

    def _add(self) -> None:
        """Start a thread; the lock is held."""
        _at_exit()
        thread = threading.Thread(
            target=self._serve, name=f"{self._name}_{self._started}", daemon=True
        )
        self._members += 1
        self._started += 1
        try:
            thread.start()
        except RuntimeError:
            self._members -= 1
            raise
        _crews.add(self)

    def _serve(self) -> None:
        mark_own_thread()
        member = _here.member = Member(self)
        work = self._queue.get()
        while work is not None:
            work()
            # Keep nothing of it alive until the next one comes.
            del work
            with self._lock:
                if member.lost:
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
            self._members -= 1
            self._tell_rest()

    def _tell_rest(self) -> None:
        if self._at_rest is not None and not self._is_busy():
            self._at_rest.set()

    def _is_busy(self) -> bool:
        return self._members - self._idle + self._lost > 0

    def replace(self, member: Member) -> None:
        """Let another thread have the place of ``member``, which ends with its work."""
        with self._lock:
            if member.lost or self._lost >= self._most_lost:
                return
            member.lost = True
            self._members -= 1
            self._lost += 1
            if not self._queue.empty():
                # Where no thread can be had, what waits is taken by the next one that is idle.
                with contextlib.suppress(RuntimeError):
                    self._add()

    def dismiss(self) -> None:
        """End the threads when all that was submitted is done; submit nothing from now on."""
        with self._lock:
            for _ in range(self._members):
                self._queue.put(None)

    def end(self, seconds: float) -> None:
        """Drop what waits, and wait a moment for what is under way; the interpreter is ending."""
        with self._lock:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            if not self._is_busy():
                return
            self._at_rest = threading.Event()
        self._at_rest.wait(seconds)


def _no_work() -> None:
    """Stand for work that is still to come."""


_NOTHING: _Work = _no_work


class Member:
    """A thread of a crew; in it, `current` returns it."""

    def __init__(self, crew: Crew) -> None:
        self.lost = False
        self._crew = crew

    def replace(self) -> None:
        """Let another thread have this one's place: it may hang for long in what it does."""
        self._crew.replace(self)


_here = threading.local()


def current() -> Member | None:
    """Return the thread that this runs in, if it is of a crew."""
    member: Member | None = getattr(_here, "member", None)
    return member


_crews: weakref.WeakSet[Crew] = weakref.WeakSet()
_registered = False
_ending = False
# What ends waits that could be long.
_cancels: set[Callable[[], object]] = set()
_last_calls: set[Callable[[], object]] = set()
# The threads of calls that the interpreter must not end in.
_uncut: set[int] = set()
_no_uncut = threading.Condition()


@contextmanager
def cancelled_at_exit(cancel: Callable[[], object]) -> Iterator[None]:
    """Have ``cancel`` called if the interpreter ends while the context is open."""
    _cancels.add(cancel)
    try:
        yield
    finally:
        _cancels.discard(cancel)


def called_at_exit(function: Callable[[], object]) -> None:
    """Have ``function`` called when the interpreter ends and no `uncut` call is under way."""
    _last_calls.add(function)
    _at_exit()


@contextmanager
def uncut() -> Iterator[None]:
    """Keep the interpreter from ending while the context is open.

    For calls of libraries that crash or hang when they are torn down meanwhile. What they wait for
    should be `cancelled_at_exit`. If they wait in other Python code, of a file object, say, the end
    of the interpreter raises CancelledError there.
    """
    thread = threading.get_ident()
    with _no_uncut:
        _uncut.add(thread)
    try:
        yield
    finally:
        with _no_uncut:
            _uncut.discard(thread)
            _no_uncut.notify_all()


def is_ending() -> bool:
    """Whether the end of the interpreter has begun."""
    return _ending


def _at_exit() -> None:
    """Have the end of the interpreter wait for the threads, a moment; once there are any."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_end_all)


def _end_all() -> None:
    global _ending
    _ending = True
    for cancel in list(_cancels):
        cancel()
    with _no_uncut:
        if not _no_uncut.wait_for(lambda: not _uncut, _EXIT_S):
            for thread in _uncut:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(asyncio.CancelledError)
                )
        _no_uncut.wait_for(lambda: not _uncut)
    for function in list(_last_calls):
        function()
    deadline = time.monotonic() + _EXIT_S
    for crew in list(_crews):
        crew.end(max(0.0, deadline - time.monotonic()))


@after_fork
def _forget() -> None:
    # The threads stayed with the parent.
    global _no_uncut
    _crews.clear()
    _cancels.clear()
    _last_calls.clear()
    _uncut.clear()
    _no_uncut = threading.Condition()
