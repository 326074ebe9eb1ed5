"""The number of cores that this process may use: its affinity, and the limits of its cgroups.

In a container that may use 2 of 64 cores, the kernel stops all threads for the rest of a period
once they have used the time of two, so that more threads than that take turns at being stopped.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# The cgroups of this process, a line for each hierarchy: its number, controllers and path.
CGROUPS = "/proc/self/cgroup"
# Where Linux mounts them: all in one hierarchy (version 2), or a folder a controller (version 1).
MOUNT = "/sys/fs/cgroup"


def available_cores() -> int:
    """Return the number of cores on which this process may run (its affinity, if supported)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Return the number of cores whose time this process may use: at least one.

    The limits of cgroups are read once, at import: later, files would be read on an event loop. A
    part of a core counts as one.
    """
    available = available_cores()
    limit = _limit_once()
    return available if limit >= available else max(1, math.ceil(limit))


@functools.cache
def _limit_once() -> float:
    return core_limit(CGROUPS, MOUNT)


def core_limit(cgroups: str | Path, mount: str | Path) -> float:
    """Return the cores whose time cgroups grant to this process; ``math.inf`` for no limit.

    The limits of parent cgroups apply as well. A file that cannot be read sets no limit.

    Parameters
    ----------
    cgroups, mount
        The places of `CGROUPS` and `MOUNT`.
    """
    try:
        lines = Path(cgroups).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        # Not Linux, or hidden.
        return math.inf
    limit = math.inf
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            # Beside hierarchies of version 1, systemd mounts that of version 2 in a folder.
            for root in (Path(mount), Path(mount, "unified")):
                limit = min(limit, *map(_limit_v2, _upwards(root, path)), math.inf)
        elif "cpu" in controllers.split(","):
            # The folder has the name of the controllers, and perhaps a link with that of each.
            for root in {Path(mount, controllers), Path(mount, "cpu")}:
                limit = min(limit, *map(_limit_v1, _upwards(root, path)), math.inf)
    return limit


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield the folders of the cgroup ``path`` and those above it.

    In a container, the folder of its cgroup may be mounted as the root, and others are missing.
    """
    inside = PurePosixPath(path.lstrip("/"))
    if ".." not in inside.parts:
        yield root / inside
        yield from (root / above for above in inside.parents)
    else:
        yield root


def _limit_v2(folder: Path) -> float:
    """Return the limit of a cgroup of version 2: "quota period", or "max period" for none."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _limit_v1(folder: Path) -> float:
    """Return the limit of a cgroup of version 1; a quota of -1 is none."""
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    try:
        used, of = int(quota), int(period)
    except ValueError:
        # No limit ("max"), no such file, or a format that is not known.
        return math.inf
    return used / of if used > 0 and of > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
