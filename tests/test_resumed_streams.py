"""Streams that are killed go on at the same piece, and endless ones keep their memory."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import signal
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray.testing import ObjectServer
from tests import resuming
from tests.resuming import EPOCHS, STEPS, Record, described
from tests.samples import opened, stored

CHILD_TIMEOUT_S = 60


def random_steps() -> xr.Dataset:
    """Steps of 8 KB, four to a chunk, which no codec makes smaller."""
    values = np.random.default_rng(0).normal(size=(STEPS, 1000))
    ds = xr.Dataset({"v": (("t", "x"), values)}, {"t": np.arange(STEPS)})
    ds["v"].encoding["chunks"] = (4, 1000)
    return ds


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("ordered", "kills"),
    [
        (True, 3),
        pytest.param(True, 20, marks=pytest.mark.slow),
        pytest.param(False, 20, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, ordered: bool, kills: int) -> None:
    random_steps().to_zarr(tmp_path / "steps.zarr")
    record = tmp_path / "record.json"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([resuming.__name__])
    chance = Random(1)
    total = EPOCHS * STEPS
    with ObjectServer(root=tmp_path) as server:
        for _ in range(kills):
            run(context, f"{server.url}/steps.zarr", ordered, record, chance.randrange(20))
        # The moments were such that much was done before each, and much was left after the last.
        assert 0 < len(Record.read(record).pieces) < total
        run(context, f"{server.url}/steps.zarr", ordered, record, None)

    got = Record.read(record).pieces
    expected = [described(random_steps().isel(t=[t])) for t in range(STEPS)]
    assert Counter(got) == Counter(EPOCHS * expected)
    if ordered:
        with resuming.streamed(str(tmp_path / "steps.zarr"), ordered, None) as pieces:
            assert got == list(pieces)


def run(
    context: multiprocessing.context.ForkServerContext,
    url: str,
    ordered: bool,
    record: Path,
    steps: int | None,
) -> None:
    """Have a process take pieces, and kill it after ``steps`` of what it does, or not at all."""
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=resuming.take, args=(url, ordered, record, its))
    process.start()
    its.close()
    try:
        last = None
        for _ in itertools.count() if steps is None else range(steps + 1):
            if not ours.poll(CHILD_TIMEOUT_S):
                pytest.fail(f"the process has done nothing after {last!r}")
            try:
                last = ours.recv()
            except EOFError:
                break
        if steps is None:
            process.join(CHILD_TIMEOUT_S)
            assert (last, process.exitcode) == ("ended", 0)
    finally:
        # Wherever it is: it has gone on while this was received.
        process.kill()
        process.join(CHILD_TIMEOUT_S)
        ours.close()
    if steps is not None:
        assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("ordered", "count"),
    [
        (True, 6_000),
        pytest.param(True, 20_000, marks=pytest.mark.slow),
        pytest.param(False, 20_000, marks=pytest.mark.slow),
    ],
)
def test_an_endless_stream_of_small_pieces_keeps_its_memory(ordered: bool, count: int) -> None:
    pieces = aioxarray.blocks(opened(stored(random_steps().isel(x=slice(4)))), {"t": 1})
    endless = itertools.cycle(list(pieces))
    with aioxarray.stream(endless, ahead="256KiB", ordered=ordered) as stream:
        pass_over(stream, 2_000)
        before = blocks_of_full(stream)
        pass_over(stream, count)
        grown = blocks_of_full(stream) - before
    # An object for each second piece would exceed it.
    assert grown < count // 2


def blocks_of_full(stream: aioxarray.Stream[xr.Dataset]) -> int:
    """Return the blocks of memory that are allocated once it holds all that it may, and waits."""

    async def is_full() -> bool:
        engine = stream._engine
        assert engine is not None
        return engine._feed._is_full() and all(slot.is_done for slot in engine._begun)

    while not run_blocking(is_full):
        pass
    gc.collect()
    return sys.getallocatedblocks()


def pass_over(stream: aioxarray.Stream[xr.Dataset], count: int) -> None:
    for _ in itertools.islice(stream, count):
        pass
