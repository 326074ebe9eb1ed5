"""A gate that holds requests; usable from any loop and thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Protocol

__all__ = ["Gate"]


class _Settable(Protocol):
    def set(self) -> None: ...


class _Signal(_Settable, Protocol):
    """A one-shot event, awaited on the loop that made it and set from any thread."""

    async def wait(self) -> None: ...


class _AsyncioSignal:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    def _finish(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def set(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nothing waits any more
            self._loop.call_soon_threadsafe(self._finish)

    async def wait(self) -> None:
        await self._future


class _TrioSignal:
    def __init__(self) -> None:
        import trio

        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._finished: type[Exception] = trio.RunFinishedError

    def set(self) -> None:
        with suppress(self._finished):
            self._token.run_sync_soon(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


def _signal() -> _Signal:
    """Return a signal for the running loop. Stores run on asyncio, their tests also on Trio."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _TrioSignal()
    return _AsyncioSignal(loop)


class Gate:
    """A gate that holds requests by key and reports when they arrive.

    Parameters
    ----------
    closed : str
        Glob of the keys to hold until they are released.
    """

    def __init__(self, closed: str) -> None:
        self._lock = threading.Lock()
        # The last matching rule decides; a key without a matching rule passes.
        self._rules: list[tuple[str, bool]] = [(closed, False)]
        self._arrived: list[str] = []
        self._held: list[tuple[str, _Signal]] = []
        self._watchers: list[tuple[str, int, _Settable]] = []
        # Signals to set when nothing is held.
        self._leavers: list[_Settable] = []

    def _is_open(self, key: str) -> bool:
        return next((is_open for glob, is_open in reversed(self._rules) if _match(key, glob)), True)

    def _has_arrived(self, glob: str, count: int) -> bool:
        return sum(_match(key, glob) for key in self._arrived) >= count

    @property
    def waiting(self) -> tuple[str, ...]:
        """The keys held now, in order of arrival."""
        with self._lock:
            return tuple(key for key, _ in self._held)

    def set_open(self, glob: str, is_open: bool) -> None:
        """Let matching keys pass from now on, or hold them from now on."""
        with self._lock:
            self._rules.append((glob, is_open))
            for key, signal in self._held:
                if self._is_open(key):
                    signal.set()

    async def passage(self, key: str) -> None:
        """Record the arrival of a request, and wait until its key is released."""
        with self._lock:
            self._arrived.append(key)
            for glob, count, watcher in self._watchers:
                if self._has_arrived(glob, count):
                    watcher.set()
            if self._is_open(key):
                return
            place = (key, _signal())
            self._held.append(place)
        try:
            await place[1].wait()
        finally:
            with self._lock:
                self._held.remove(place)
                if not self._held:
                    for leaver in self._leavers:
                        leaver.set()

    async def departure(self) -> None:
        """Wait until nothing is held: every held request was released or cancelled."""
        signal = _signal()
        with self._lock:
            if not self._held:
                return
            self._leavers.append(signal)
        try:
            await signal.wait()
        finally:
            with self._lock:
                self._leavers.remove(signal)

    @contextmanager
    def _watching(self, glob: str, count: int, watcher: _Settable) -> Iterator[None]:
        place = (glob, count, watcher)
        with self._lock:
            self._watchers.append(place)
            if self._has_arrived(glob, count):
                watcher.set()
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(place)

    async def arrival(self, glob: str, count: int) -> None:
        """Wait until `count` requests for matching keys have arrived."""
        signal = _signal()
        with self._watching(glob, count, signal):
            await signal.wait()

    def wait_arrival(self, glob: str, count: int, timeout_s: float) -> None:
        """Block this thread until `count` requests for matching keys have arrived."""
        event = threading.Event()
        with self._watching(glob, count, event):
            if event.wait(timeout_s):
                return
        with self._lock:
            seen = sum(_match(key, glob) for key in self._arrived)
        raise TimeoutError(
            f"{seen} of {count} requests for {glob!r} came within {timeout_s} s; "
            f"held: {', '.join(self.waiting) or 'none'}"
        )


def _match(key: str, glob: str) -> bool:
    return fnmatchcase(key, glob)
