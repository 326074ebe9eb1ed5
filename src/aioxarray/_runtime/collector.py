"""Python's collector of garbage cycles, held back while its finalizers could wait for us.

A thread that holds a library's lock and waits, with it, for another thread, is never done if that
one comes to free an object of the same library: the object's finalizer wants the lock. Which thread
frees a cycle of objects is chance, because a collection runs in whichever thread allocates next.
h5py has such a lock, and holds it while it reads from a file object (h5py/h5py#2019).
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# How long to wait between two looks at whether a collection has ended; most last milliseconds.
_LOOK_SECONDS = 0.0005


class Collector:
    """The process's collector, and who holds it back. There is one: `collector`."""

    def __init__(self) -> None:
        # Taken again by the same thread if a finalizer, in a collection that began under it, does.
        self._lock = threading.RLock()
        self._holders = 0
        self._was_enabled = False
        self._running_in: int | None = None
        gc.callbacks.append(self._note)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def hold(self) -> None:
        """Have no collection run, in any thread, until `release` is called as often as this.

        To be called before the lock is taken that finalizers want, and after any other that can
        take long to get. What is asked for with `gc.collect` runs all the same.
        """
        with self._lock:
            if not self._holders:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._holders += 1
        try:
            while self._running_in not in (None, threading.get_ident()):
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let collections run again, if they did before and nobody else holds them back."""
        with self._lock:
            self._holders -= 1
            if not self._holders and self._was_enabled:
                gc.enable()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which no collection runs."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def _note(self, phase: str, info: dict[str, Any]) -> None:
        # Called by ``gc`` when a collection starts and when it stops; one runs at a time.
        self._running_in = threading.get_ident() if phase == "start" else None

    def _renew(self) -> None:
        # The threads that held it back, or collected, stayed with the parent process.
        if self._holders and self._was_enabled:
            gc.enable()
        self._lock = threading.RLock()
        self._holders = 0
        self._running_in = None


collector = Collector()
