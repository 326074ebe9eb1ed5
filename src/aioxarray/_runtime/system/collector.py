"""Suspending Python's garbage collector: for HDF5 and netCDF-C, and while much is made that stays.

A collection runs in whichever thread allocates next, and finalizes objects there. A netCDF4 file is
then closed in that thread, even while another thread is in netCDF-C. An h5py object waits for
h5py's lock, while the thread that holds it may wait, in HDF5, for the collecting thread to read
from a file object (h5py/h5py#2019). So no collection runs while one of our threads is in them.

A collection also stops all threads while it traverses the objects. For a tree of thousands of
variables, whose objects all stay alive, it does so again and again, for tenths of a second.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from aioxarray._runtime.threads.forks import after_fork

# The time between two checks whether a collection has ended; most last milliseconds.
_LOOK_SECONDS = 0.0005
# The number of checks. A finalizer that takes longer may wait for the checking thread.
_LOOKS = 4000


class Collector:
    """Suspends the garbage collector of the process. The only instance is `collector`.

    Only for threads of this package, in which signal handlers never raise.
    """

    def __init__(self) -> None:
        # Reentrant: a finalizer may take it in a collection that starts under the lock.
        self._lock = threading.RLock()
        self._holders = 0
        self._was_enabled = False
        # How many full collections there had been at the last `_promote`.
        self._promoted_at = -1
        after_fork(self._renew)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which no automatic collection runs in any thread.

        Enter it before acquiring a lock that finalizers need, and after acquiring any other lock
        that may take long. Explicit calls of `gc.collect` still run.
        """
        with self._lock:
            if not self._holders:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._holders += 1
            # If the collector was disabled already, no automatic collection can be in progress.
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

    @contextmanager
    def building(self) -> Iterator[None]:
        """Return a context for code that makes very many objects to stay, and waits for nothing.

        No automatic collection runs in it. Afterwards, the new objects count as old ones that have
        survived collections, which would otherwise have traversed them.
        """
        with self.held():
            yield
            with self._lock:
                if self._was_enabled and self._holders == 1:
                    self._promote()

    def _promote(self) -> None:
        """Move all objects into the oldest generation, unless that could delay freeing garbage.

        Python has no function for this, but one that moves them out of all generations, and one
        that moves those into the oldest. Neither traverses them. Until the next full collection has
        run, this is not done again: if it were, a loop of such code might never see one.
        """
        full = gc.get_stats()[-1]["collections"]
        # The collector of 3.14 traverses a part of the objects at a time. Objects that the user's
        # code has taken out of the generations stay there.
        if sys.version_info < (3, 14) and not gc.get_freeze_count() and full > self._promoted_at:
            self._promoted_at = full
            gc.freeze()
            gc.unfreeze()

    def _renew(self) -> None:
        # The threads that suspended it do not exist in the child.
        if self._holders and self._was_enabled:
            gc.enable()
        self._lock = threading.RLock()
        self._holders = 0


def _wait_for_the_present_one() -> None:
    """Wait for the end of a collection in progress in another thread, if there is one."""
    for _ in range(_LOOKS):
        if not _is_under_way():
            return
        time.sleep(_LOOK_SECONDS)


class _Cycle:
    """A reference cycle: garbage once it is dropped."""

    def __init__(self) -> None:
        self.myself = self


def _is_under_way() -> bool:
    """Return whether a collection is in progress, in another thread or lower on this stack.

    `gc.collect` then silently does nothing, so we check whether it frees a piece of garbage. A
    function in `gc.callbacks` would do, but would swallow the exception of any signal handler that
    runs in it.
    """
    seen = weakref.ref(_Cycle())
    # The youngest generation has some hundred objects, which takes microseconds.
    gc.collect(0)
    return seen() is not None


collector = Collector()
