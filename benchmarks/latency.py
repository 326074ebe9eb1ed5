"""Benchmark of loading from a store that takes 50 ms, or 5 ms, per request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import aioxarray
from aioxarray.testing import LatencyStore
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import (
    Objects,
    Options,
    copies,
    measure,
    plain_load,
    plain_load_async,
)
from benchmarks.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

TITLE = "Time to load, 50 ms per request"
TABLE = Row
LATENCY_S = 0.05
LATENCY_OF_POINTS_S = 0.005


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    side, nodes, many, each = (3, 4, 8, 4) if options.quick else (10, 13, 70, 40)
    yield _row(
        f"10 variables of {side * side} chunks, concurrency=100",
        data.many_variables(10, side),
        options,
        goal=0.75,
        concurrency=100,
    )
    yield _row(f"a tree of {nodes} nodes, 4 variables each", data.tree(nodes, 4), options, goal=0.2)
    yield _row(f"{many} variables", data.many_variables(many), options, goal=0.2)
    yield _row(
        f"5 datasets in a list, {each} variables each, c.=400",
        [data.many_variables(each, prefix=f"d{i}v") for i in range(5)],
        options,
        goal=0.25,
        concurrency=400,
    )
    # No goal. Plain zarr 3.1 makes one request per range inside a shard.
    yield _row(
        "parts of 9 shards, 72 byte ranges",
        data.many_variables(1, 12),
        options,
        concurrency=100,
        shards=True,
        part={"y": np.arange(10, 600, 100)},
    )
    yield from _points(options)


def _points(options: Options) -> Iterator[Row]:
    """Measure points, and a grid of points, at 5 ms, so that the cost of indexing shows too."""
    count = options.scaled(1_000_000)
    chance = np.random.default_rng(0)
    plane = data.many_variables(1, 32)
    places = chance.integers(0, 1600, (2, count))
    points = {dim: xr.DataArray(at, dims="p") for dim, at in zip("yx", places, strict=True)}
    for what, large, shards in (
        ("1024 chunks", None, False),
        ("64 shards", None, True),
        ("4 chunks of 2.6 MB", (800, 800), False),
    ):
        yield _row(
            f"{count} points in {what}, 5 ms per request",
            plane,
            options,
            goal=0.7,
            shards=shards,
            chunks=large,
            part=points,
            latency_s=LATENCY_OF_POINTS_S,
        )
    cube = xr.Dataset({"v": (("z", "y", "x"), data.smooth(160, 160, 160, dtype="float32"))})
    within = chance.integers(0, 160, (3, count))
    yield _row(
        f"{count} points in 512 chunks of a cube, 5 ms per request",
        cube,
        options,
        goal=0.7,
        chunks=(20, 20, 20),
        part={dim: xr.DataArray(at, dims="p") for dim, at in zip("zyx", within, strict=True)},
        latency_s=LATENCY_OF_POINTS_S,
    )
    # For information: zarr's indexing finds these, and decoding takes most of the time.
    side = options.scaled(1000)
    rows, columns = (np.sort(chance.choice(1600, side, replace=False)) for _ in "yx")
    yield _row(
        f"{side} rows x {side} columns of 1024 chunks, 5 ms per request",
        plane,
        options,
        part={"y": rows, "x": columns},
        latency_s=LATENCY_OF_POINTS_S,
    )


def _row(
    what: str,
    objects: Objects,
    options: Options,
    goal: float | None = None,
    concurrency: int | None = None,
    shards: bool = False,
    part: Mapping[str, NDArray[Any] | xr.DataArray] | None = None,
    latency_s: float = LATENCY_S,
    chunks: tuple[int, ...] | None = None,
) -> Row:
    lazy, stores = _stored(objects, shards, chunks)
    if part is not None:
        lazy = lazy.isel(part)
    expected = plain_load(copies(lazy))
    for store in stores:
        store.latency_s = latency_s

    def seconds(way: Callable[[Any], Any]) -> float:
        return measure(way, lazy, expected, options).seconds

    return Row(
        what,
        "s",
        seconds(plain_load),
        "none" if isinstance(lazy, xr.DataTree) else seconds(plain_load_async),
        seconds(lambda obj: aioxarray.load_async(obj, concurrency=concurrency)),
        goal,
    )


def _stored(
    objects: Objects, shards: bool, chunks: tuple[int, ...] | None = None
) -> tuple[Objects, list[LatencyStore]]:
    """Store and open ``objects``, at first without latency."""
    if isinstance(objects, list):
        pairs = [_stored(one, shards) for one in objects]
        return [lazy for lazy, _ in pairs], [store for _, stores in pairs for store in stores]
    store = LatencyStore(data.in_memory(objects, shards, chunks), 0)
    tree = isinstance(objects, xr.DataTree)
    return data.opened_tree(store) if tree else data.opened(store), [store]
