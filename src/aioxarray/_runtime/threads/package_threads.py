"""Marking threads that run for this package: those of its pools, and of the I/O loop.

A finalizer runs in whichever thread drops or collects an object. In one of these threads, it defers
work that must not happen beside the user's code.
"""

from __future__ import annotations

import threading

_here = threading.local()


def mark_package_thread() -> None:
    """Mark the current thread as one that runs for this package, and not for the user."""
    _here.is_package_thread = True


def in_package_thread() -> bool:
    """Return whether the current thread is marked as one of this package."""
    return getattr(_here, "is_package_thread", False)
