"""Settings that travel to the workers of a cluster with the arrays that they read.

They come from the process whose work it is, and hold for all workers together: each takes its
share, so that a limit of 8 requests in flight means 8 over the whole cluster.
"""

from __future__ import annotations

import math
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from aioxarray._runtime.loops import run_on
from aioxarray.config import (
    Concurrency,
    config,
    is_adaptive,
    is_own,
    memory_limit,
    request_limit,
    value_of,
)

# A worker asks its scheduler for the others no more often than this.
_KNOWN_S = 5.0
# The addresses of all workers, sorted, and when they were asked for, by the own address.
_known: dict[str, tuple[float, list[str]]] = {}

# Process ids are those of a machine or a container; a fork has the same token, but its own id.
_TOKEN = uuid.uuid4().hex


def _this_process() -> str:
    return f"{_TOKEN}-{os.getpid()}"


@dataclass(frozen=True)
class Carried:
    """The settings of a process, for the workers that compute for it.

    Attributes
    ----------
    concurrency
        The limit on requests in flight over all workers; "auto" for each worker's own search, and
        None for no limit.
    memory
        The limit on bytes in flight over all workers; None for no limit.
    retry
        How failed requests are made again.
    process
        The process that they are from. Workers in it share its limits already.
    """

    concurrency: int | str | None
    memory: int | None
    retry: Mapping[str, Any]
    process: str = field(default_factory=_this_process)

    @classmethod
    def here(cls, concurrency: Concurrency | None = None) -> Carried:
        """Return the settings of this process, for a call with its own ``concurrency``."""
        limit, bound = request_limit(concurrency), memory_limit()
        return cls(
            "auto" if is_adaptive(concurrency) else None if math.isinf(limit) else int(limit),
            None if math.isinf(bound) else int(bound),
            dict(value_of("retry")),
        )

    async def share(self) -> Mapping[str, Any] | None:
        """Return the settings that hold in this worker of a cluster; None in other processes.

        A limit that the worker has of its own holds, too: the lower one counts. Of the settings of
        retries, its own ones count.
        """
        worker = _worker()
        if worker is None or self.process == _this_process():
            return None
        addresses = await _addresses(worker)
        count = len(addresses)
        place = addresses.index(worker.address) if worker.address in addresses else count - 1
        shares: dict[str, Any] = {}
        if isinstance(self.concurrency, int):
            shares["concurrency"] = max(1, _part(self.concurrency, place, count))
            if is_own("concurrency") and not is_adaptive():
                shares["concurrency"] = int(min(shares["concurrency"], request_limit()))
        elif not is_own("concurrency"):
            shares["concurrency"] = self.concurrency or 0
        if self.memory is not None:
            shares["memory"] = max(1, _part(self.memory, place, count))
            if is_own("memory"):
                shares["memory"] = int(min(shares["memory"], memory_limit()))
        elif not is_own("memory"):
            shares["memory"] = 0
        own = {key: value for key, value in config.get("retry").items() if is_own(f"retry.{key}")}
        shares["retry"] = {**self.retry, **own}
        return shares


def carried_from_here() -> Carried | None:
    """Return the settings of this process if it is the client of a cluster; None otherwise."""
    is_client = _worker() is None and current_client() is not None
    return Carried.here() if is_client else None


def current_client() -> Any | None:
    """Return the current client of dask.distributed, if any."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.Client.current(allow_global=True)
    except ValueError:
        return None


def is_in_cluster() -> bool:
    """Return whether a task of a cluster is calling."""
    return _worker() is not None


def _part(total: int, place: int, count: int) -> int:
    """Return how many of ``total`` things belong to one of ``count`` places, none left over."""
    each, rest = divmod(total, count)
    return each + (place < rest)


def _worker() -> Any | None:
    """Return the worker of dask.distributed that runs the current task, if any."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:
        return None


async def _addresses(worker: Any) -> list[str]:
    at, addresses = _known.get(worker.address, (-math.inf, []))
    if monotonic() - at > _KNOWN_S:
        # The number of cores by the address of each worker.
        cores = await run_on(worker.loop.asyncio_loop, worker.scheduler.ncores)
        addresses = sorted(cores) or [worker.address]
        _known[worker.address] = monotonic(), addresses
    return addresses
