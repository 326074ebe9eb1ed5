"""Threads that are known to run for this package: those of its pools, and of the loops it uses.

A finalizer runs in whichever thread drops or collects an object. What must not happen beside the
user's code is left, in one of these threads, for later.
"""

from __future__ import annotations

import threading

_here = threading.local()


def mark_own_thread() -> None:
    """Note that the current thread runs for this package, and not for the user."""
    _here.own = True


def in_own_thread() -> bool:
    """Whether that was noted of the current thread."""
    return getattr(_here, "own", False)
