"""File descriptors: how many the process may open."""

from __future__ import annotations

import math


def spare_descriptors() -> float:
    """Return how many descriptors connections may use: half of those that the process may have.

    ``math.inf`` if there is no limit.
    """
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft // 2
