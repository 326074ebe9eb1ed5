"""Pauses in long work, so that threads that wait for Python's lock get it.

A waiting thread asks for the lock after `sys.getswitchinterval`, 5 ms, counted anew whenever it was
let go of. Work that reads files or calls codecs lets go of it all the time, each time for less than
it takes a waiting thread to wake up: that thread, the caller's event loop for one, could wait as
long as the work lasts.
"""

from __future__ import annotations

from time import perf_counter, sleep

# A thread wakes up in less than that, on a virtual machine too.
_PAUSE_S = 0.00005
_WORK_S = 0.003


class Pauses:
    """The pauses of one piece of work, in a thread that is not the caller's."""

    def __init__(self) -> None:
        self._due_s = perf_counter() + _WORK_S

    def pause(self) -> None:
        """Pause, unless the last pause was a moment ago; to be called often."""
        if perf_counter() >= self._due_s:
            sleep(_PAUSE_S)
            self._due_s = perf_counter() + _WORK_S
