"""File descriptors: how many the process may open."""

from __future__ import annotations

import functools
import math
import os


def spare_descriptors() -> float:
    """Return how many descriptors can be used for connections; ``math.inf`` for no limit.

    A quarter of those that were free at the first call is left for files and other purposes.
    """
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    return (soft - _open_at_first()) * 3 // 4


@functools.cache
def _open_at_first() -> int:
    # Counted once: later, connections of this package that are open for reuse would count, too.
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0
