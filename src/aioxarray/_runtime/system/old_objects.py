"""Keeping collections of garbage short while a call makes very many objects.

Requests in flight are thousands of objects, so that a call with hundreds of thousands of chunks
makes Python collect the garbage of the whole process again and again. Each of these collections
looks at every object that the program has, and stops all threads for a tenth of a second or more.
While such a call runs, the objects that were there before it are left out (`gc.freeze`): garbage
among them waits for the end of the call, and that of the call itself is found in milliseconds.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import TracebackType
from typing import Self

from aioxarray._runtime.threads.forks import after_fork


class OldObjects:
    """The objects of the process that are older than the calls in progress.

    The only instance is `old_objects`.
    """

    def __init__(self) -> None:
        # Reentrant: a finalizer may take it in a collection that starts under the lock.
        self._lock = threading.RLock()
        self._holders = 0
        self._is_frozen = False
        after_fork(self._renew)

    def left_out(self) -> LeftOut:
        """Return a context in which automatic collections do not look at older objects.

        Those of the first of overlapping contexts are left out until the last of them ends. Nothing
        is changed if the user has disabled the collector, or has frozen objects.
        """
        return LeftOut(self)

    def hold(self) -> None:
        with self._lock:
            if not self._holders:
                self._is_frozen = _can_freeze()
                if self._is_frozen:
                    # It moves three lists, however many objects there are.
                    gc.freeze()
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._thaw()

    def _thaw(self) -> None:
        if self._is_frozen:
            self._is_frozen = False
            gc.unfreeze()

    def _renew(self) -> None:
        # The calls that left them out do not exist in the child.
        self._lock = threading.RLock()
        self._holders = 0
        self._thaw()


class LeftOut:
    """A context for `OldObjects.left_out`."""

    def __init__(self, objects: OldObjects) -> None:
        self._objects = objects

    def __enter__(self) -> Self:
        self._objects.hold()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._objects.release()


def _can_freeze() -> bool:
    # Without the GIL, freezing stops all threads and marks every object.
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return has_gil and gc.isenabled() and gc.get_freeze_count() == 0


old_objects = OldObjects()
