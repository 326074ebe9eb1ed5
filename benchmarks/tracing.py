"""Benchmark of the CPU time that a trace adds to a load of small chunks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from random import Random
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore
from benchmarks.data import Files
from benchmarks.measuring import Options
from benchmarks.rows import Row

TITLE = "Tracing: CPU time of a load of chunks of 4 KB (minima)"
LENGTH = 512
OVERHEAD = 1.03


class TracingRow(Row):
    """A row that compares a traced load with one that is not traced."""

    HEADER: ClassVar[Sequence[str]] = ["", "untraced", "", "traced", "ratio", "goal", ""]


TABLE = TracingRow


def run(options: Options, files: Files) -> Iterator[TracingRow]:
    """Yield the rows."""
    count = options.scaled(8192)
    ds = xr.Dataset({"v": ("x", np.arange(float(count * LENGTH)))})
    ds["v"].encoding["chunks"] = (LENGTH,)
    stores: dict[str, Any] = {
        "local": LocalStore(files.folder("tracing") / "v.zarr"),
        "memory": MemoryStore(),
        "coroutines": LatencyStore(MemoryStore(), 0),
    }
    for name, store in stores.items():
        ds.to_zarr(store, consolidated=False)
        lazy = aioxarray.open_zarr(store, consolidated=False)
        untraced, traced = _minima(lazy, 1 if options.quick else max(options.runs, 15))
        yield TracingRow(
            f"{count} chunks, {name}", "s", untraced, None, traced, untraced * OVERHEAD
        )


def _minima(lazy: xr.Dataset, runs: int) -> list[float]:
    """Return the least CPU seconds of loads without and with a trace, in random order."""
    ways: list[Callable[[], AbstractContextManager[Any]]] = [nullcontext, aioxarray.trace]
    seconds: list[list[float]] = [[], []]
    aioxarray.compute(lazy)
    draw = Random(0)
    for number in draw.sample(range(2 * runs), 2 * runs):
        way = number % 2
        # A full collection takes as long as thousands of chunks, in some runs and not in others. A
        # trace keeps no objects that would cause more of them.
        gc.collect()
        gc.disable()
        begun_s = time.process_time()
        with ways[way]():
            aioxarray.compute(lazy)
        seconds[way].append(time.process_time() - begun_s)
        gc.enable()
    return [min(each) for each in seconds]
