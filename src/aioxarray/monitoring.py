"""Monitoring of a process: `statistics` of its limits, its cache and its shared reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

from aioxarray._runtime.budget import BudgetStatistics
from aioxarray._runtime.cache import CacheStatistics
from aioxarray._runtime.flights import FlightStatistics
from aioxarray._zarr.stores import grants, sharing
from aioxarray._zarr.stores.observing import records
from aioxarray._zarr.stores.observing.records import RecordStatistics
from aioxarray._zarr.stores.retries import silence
from aioxarray._zarr.stores.retries.silence import SilenceStatistics

__all__ = ["Statistics", "statistics"]


def statistics() -> Statistics:
    """Return how much of the limits is in use in this process, and the state of its cache.

    Returns
    -------
    Statistics
        The numbers at this moment.

    Notes
    -----
    *Requests:* none. It can be called from any thread, and takes microseconds.

    Examples
    --------
    An endpoint that a Prometheus server scrapes returns ``statistics().to_prometheus()``, with the
    content type ``text/plain; version=0.0.4``.
    """
    return Statistics(
        requests=grants.requests.statistics(),
        memory=grants.memory.statistics(),
        threads=grants.threads.statistics(),
        cache=grants.cache.statistics(),
        flights=sharing.statistics(),
        repeated=silence.statistics(),
        records=records.statistics(),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """The state of this process at one moment; `statistics` makes the object.

    Attributes
    ----------
    requests, memory, threads
        For the limits on requests in flight, on bytes of chunks in flight and on decoding threads:
        the amount ``in_use``, the number of tasks ``waiting``, the ``bound`` (0 while no call is
        under way), and the number of ``shares``, one for each call.
    cache
        The ``entries`` of the cache, their ``nbytes``, and its ``limit`` in bytes.
    flights
        The number of ``flights``, which are reads that others can share, and of ``followers``,
        which wait for one.
    repeated
        Since the start of the process, the number of requests that were made beside, or in place
        of, one that was ``silent`` or slow (``hedges``), and of those that were answered first
        (``won``).
    records
        Since the start of the process, the number of records of requests that traces have
        ``dropped``, as they had the most that they keep.
    """

    requests: BudgetStatistics
    memory: BudgetStatistics
    threads: BudgetStatistics
    cache: CacheStatistics
    flights: FlightStatistics
    repeated: SilenceStatistics
    records: RecordStatistics

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the numbers as nested dictionaries; no limit is ``math.inf``."""
        return dataclasses.asdict(self)

    def to_prometheus(self) -> str:
        """Return the numbers as text in Prometheus' exposition format, version 0.0.4."""
        return "".join(
            f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n{name} {_number(value)}\n"
            for name, kind, meaning, value in self._metrics()
        )

    def _metrics(self) -> Iterator[tuple[str, Literal["counter", "gauge"], str, float]]:
        """Yield the name, the type, the meaning and the value of each metric."""
        budgets = (
            ("requests", "", "Requests to stores", self.requests),
            ("memory", "_bytes", "Bytes of chunks that are being fetched or decoded", self.memory),
            ("threads", "", "Decoding threads", self.threads),
        )
        for name, unit, noun, now in budgets:
            of = f"aioxarray_{name}"
            yield f"{of}_in_use{unit}", "gauge", f"{noun}, in use.", now.in_use
            yield f"{of}_limit{unit}", "gauge", f"{noun}, at most; 0 while idle.", now.bound
            yield f"{of}_waiting", "gauge", f"Tasks that wait for a place: {noun}.", now.waiting
        cache = self.cache
        yield "aioxarray_cache_bytes", "gauge", "Bytes of cached chunks.", cache.nbytes
        yield "aioxarray_cache_limit_bytes", "gauge", "Bytes to cache at most.", cache.limit
        yield "aioxarray_cache_entries", "gauge", "Cached chunks and indexes.", cache.entries
        flights = self.flights
        yield "aioxarray_flights", "gauge", "Reads that others can share.", flights.flights
        yield "aioxarray_followers", "gauge", "Reads waiting for another.", flights.followers
        repeated = self.repeated
        for name, meaning, count in (
            ("silent", "Requests made because another was silent.", repeated.silent),
            ("hedge", "Requests made because another was slow.", repeated.hedges),
            ("won", "Silent or hedge requests answered first.", repeated.won),
        ):
            yield f"aioxarray_requests_{name}_total", "counter", meaning, count
        dropped = self.records.dropped
        yield "aioxarray_records_dropped_total", "counter", "Records dropped by traces.", dropped


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else f"{value:g}" if value % 1 else f"{value:.0f}"
