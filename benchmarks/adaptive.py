"""Benchmark of ``concurrency="auto"`` beside fixed values, at several latencies."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import aioxarray
from aioxarray.testing import LatencyStore
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, check_same
from benchmarks.rows import Row

if TYPE_CHECKING:
    import xarray as xr

TITLE = 'Time to load, in "load" with the best fixed concurrency, in "aioxarray" with "auto"'
TABLE = Row
LATENCIES_S = (0.005, 0.05, 0.2)
FIXED = (64, 128, 256, 512, 1024)
# The goal: times the time with the best fixed value.
MOST = 1.2


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    side = 10 if options.quick else 33
    dataset = data.many_variables(1, side)
    for latency_s in LATENCIES_S:
        took = _seconds(dataset, latency_s, options.runs)
        fixed = {limit: took[limit] for limit in FIXED}
        best = min(fixed, key=fixed.__getitem__)
        yield Row(
            f"{side * side} chunks, {latency_s * 1000:.0f} ms; best: {best}",
            "s",
            fixed[best],
            None,
            took["auto"],
            MOST * fixed[best],
        )


def _seconds(dataset: xr.Dataset, latency_s: float, runs: int) -> dict[Any, float]:
    """Return the medians of the times, by concurrency; all are measured in turn."""
    took: dict[Any, list[float]] = {limit: [] for limit in (*FIXED, "auto")}
    for _ in range(runs):
        for limit, times in took.items():
            # A new store: nothing is known of its server.
            store = LatencyStore(data.in_memory(dataset), 0)
            lazy = data.opened(store)
            store.latency_s = latency_s
            begun = perf_counter()
            loaded = aioxarray.load(lazy, concurrency=limit)
            times.append(perf_counter() - begun)
            check_same(loaded, dataset)
    return {limit: median(times) for limit, times in took.items()}
