"""Python's collector of garbage cycles, held back while its finalizers could do harm.

A collection runs in whichever thread allocates next, and frees what it finds there: a file of
netCDF4 is then closed in that thread, whoever is in netCDF-C meanwhile; an object of h5py waits for
h5py's lock, whose holder may itself wait, in HDF5, for that very thread to read from a file object
(h5py/h5py#2019). So none runs while a thread of this package is in these libraries.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

# How long to wait between two looks at whether a collection has ended; most last milliseconds.
_LOOK_SECONDS = 0.0005
# How often to look. A finalizer that takes longer waits for something, for the one who looks maybe.
_LOOKS = 4000


class Collector:
    """The process's collector, and who holds it back. There is one: `collector`.

    To be used in threads of this package, where no signal raises an exception.
    """

    def __init__(self) -> None:
        # Taken again by the same thread if a finalizer, in a collection that began under it, does.
        self._lock = threading.RLock()
        self._holders = 0
        self._was_enabled = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which no collection runs, in any thread.

        To be entered before the lock is taken that finalizers want, and after any other that can
        take long to get. What is asked for with `gc.collect` runs all the same.
        """
        with self._lock:
            if not self._holders:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._holders += 1
            # Where it was disabled before, none is under way that was not asked for.
            may_be_under_way = self._was_enabled
        try:
            if may_be_under_way:
                _wait_for_the_present_one()
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders and self._was_enabled:
                    gc.enable()

    def _renew(self) -> None:
        # The threads that held it back stayed with the parent process.
        if self._holders and self._was_enabled:
            gc.enable()
        self._lock = threading.RLock()
        self._holders = 0


def _wait_for_the_present_one() -> None:
    """Wait until the collection that is under way in another thread, if any, has ended."""
    for _ in range(_LOOKS):
        if not _is_under_way():
            return
        time.sleep(_LOOK_SECONDS)


class _Cycle:
    """Garbage, once it is let go of."""

    def __init__(self) -> None:
        self.myself = self


def _is_under_way() -> bool:
    """Return whether a collection is under way, in another thread or further down in this one.

    `gc.collect` does nothing while one is, and says nothing of it: so a piece of garbage tells. A
    function in `gc.callbacks` would know, and would swallow the exception of every signal that
    arrives while it runs.
    """
    seen = weakref.ref(_Cycle())
    # The youngest objects: some hundred, which takes microseconds.
    gc.collect(0)
    return seen() is not None


collector = Collector()
