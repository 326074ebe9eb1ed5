"""Random pieces of random stores, streamed with little and much room, have the values of xarray."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray.testing import LatencyStore, RecordingStore
from tests.concurrency.helpers import lazily

SHAPE = (13, 17)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Return an encoding: chunks, possibly shards, and packing."""
    chunks = draw(st.tuples(st.integers(1, 13), st.integers(1, 17)))
    encoding: dict[str, Any] = {"chunks": chunks}
    if draw(st.booleans()):
        times = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        encoding["shards"] = tuple(c * n for c, n in zip(chunks, times, strict=True))
    if draw(st.booleans()):
        encoding |= {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -1}
    return encoding


@st.composite
def selections(draw: st.DrawFn) -> dict[str, Any]:
    """Return a selection along each dimension: a slice, a position or a list."""
    selected: dict[str, Any] = {}
    for dim, size in zip("ty", SHAPE, strict=True):
        kind = draw(st.sampled_from(["slice", "slice", "position", "list"]))
        at = draw(st.integers(0, size - 1))
        if kind == "slice":
            selected[dim] = slice(at, draw(st.integers(at, size)), draw(st.sampled_from([1, 1, 2])))
        elif kind == "position":
            selected[dim] = at
        else:
            selected[dim] = draw(st.lists(st.integers(0, size - 1), max_size=4))
    return selected


@pytest.mark.parametrize("kind", ["memory", "local", "remote"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    encoding=layouts(),
    chosen=st.lists(selections(), min_size=1, max_size=12),
    ahead=st.sampled_from([1, 60_000, 200_000, 1 << 29]),
    ordered=st.booleans(),
    cache=st.sampled_from([0, 1 << 20]),
)
def test_any_pieces(
    kind: str,
    encoding: dict[str, Any],
    chosen: list[dict[str, Any]],
    ahead: int,
    ordered: bool,
    cache: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store: Any = MemoryStore()
    if kind == "local":
        store = LocalStore(tmp_path_factory.mktemp("stored"))
    elif kind == "remote":
        store = LatencyStore(store, latency_s=0)
    log = RecordingStore(store)
    ds = xr.Dataset({"v": (("t", "y"), np.arange(221.0).reshape(SHAPE))})
    ds.to_zarr(log, encoding={"v": encoding}, consolidated=False, zarr_format=3)
    lazy = lazily(log)
    pieces = [lazy.isel(each) for each in chosen]
    expected = [each.compute() for each in pieces]
    log.log.clear()
    with (
        aioxarray.config.set(cache=cache),
        aioxarray.stream(pieces, ahead=ahead, ordered=ordered) as stream,
    ):
        got = list(stream)
        run_blocking(_settled)
        found = stream.statistics()
    if not ordered:
        got.sort(key=_as_bytes)
        expected.sort(key=_as_bytes)
    for one, other in zip(got, expected, strict=True):
        xr.testing.assert_identical(one, other)
    assert (found.pieces, found.nbytes, found.kept) == (0, 0, 0)
    if "shards" not in encoding and not cache:
        assert found.fetched == log.log.count("get", "*/c/*")


def _as_bytes(piece: xr.Dataset) -> tuple[tuple[int, ...], bytes]:
    return piece["v"].shape, piece["v"].values.tobytes()


async def _settled() -> None:
    """Let the I/O loop do what is due."""
    for _ in range(20):
        await asyncio.sleep(0)
