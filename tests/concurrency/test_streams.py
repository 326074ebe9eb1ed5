"""Streams hold no more than ``ahead``, and nothing of them runs on after they have ended."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._xarray.streaming import engine, feed, room
from aioxarray.testing import GatedStore, LatencyStore, RecordingStore
from tests.concurrency.helpers import PATIENCE_S, all_known, lazily, plain, written
from tests.loops import every_loop

PIECES = 12
# A piece is a chunk, which counts as its values and the objects of Python around them.
SIZE = 1 << 14
NBYTES = 8 * SIZE
COUNTED = NBYTES + (20 << 10)
CHUNKS = "*/c/*"


class Pieces:
    """Lazy objects of a chunk each, whose requests are held at a gate."""

    def __init__(self) -> None:
        self.log = RecordingStore(written(1, PIECES, SIZE))
        self.gate = GatedStore(self.log, keys=CHUNKS)
        ds = lazily(self.gate)
        self.log.log.clear()
        self.all = [ds.isel(x=slice(i * SIZE, (i + 1) * SIZE)) for i in range(PIECES)]

    def assert_quiet(self) -> None:
        """Assert that no request is in flight, at this very moment."""
        assert self.gate.waiting == ()
        assert self.log.log.in_flight == 0


def expected(index: int) -> xr.Dataset:
    return plain(1, PIECES, SIZE).isel(x=slice(index * SIZE, (index + 1) * SIZE))


def requested(pieces: Pieces) -> int:
    return len(pieces.gate.waiting)


async def _settled() -> None:
    """Let the I/O loop do what is due."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [1, 3])
def test_no_more_is_requested_than_ahead_allows(many: int) -> None:
    pieces = Pieces()
    with aioxarray.stream(pieces.all, ahead=many * COUNTED) as ahead:
        pieces.gate.wait_requested(CHUNKS, PATIENCE_S, count=many)
        run_blocking(_settled)
        assert requested(pieces) == many
        pieces.gate.release_all()
        assert len(list(ahead)) == PIECES


def test_a_slow_consumer_stops_the_fetching() -> None:
    pieces = Pieces()
    pieces.gate.release_all()
    with aioxarray.stream(pieces.all, ahead=4 * COUNTED) as ahead:
        for taken in range(PIECES):
            xr.testing.assert_identical(next(ahead), expected(taken))
            run_blocking(_settled)
            assert pieces.log.log.count("get") <= taken + 1 + 4


def test_a_piece_larger_than_ahead_is_loaded_alone() -> None:
    pieces = Pieces()
    with aioxarray.stream(pieces.all, ahead=1) as ahead:
        for index in range(PIECES):
            pieces.gate.wait_requested(f"v0/c/{index}", PATIENCE_S)
            run_blocking(_settled)
            assert pieces.gate.waiting == (f"v0/c/{index}",)
            pieces.gate.release(f"v0/c/{index}")
            xr.testing.assert_identical(next(ahead), expected(index))


def test_requests_run_across_the_borders_of_pieces() -> None:
    pieces = Pieces()
    with aioxarray.stream(pieces.all):
        pieces.gate.wait_requested(CHUNKS, PATIENCE_S, count=PIECES)


def test_pieces_are_known_ahead_to_a_bound_only() -> None:
    advanced = 0

    def endless() -> Iterator[xr.Dataset]:
        nonlocal advanced
        while True:
            advanced += 1
            yield xr.Dataset({"v": ("x", np.zeros(4))})

    with aioxarray.stream(endless(), ahead=1) as ahead:
        for taken in range(1, 1000):
            next(ahead)
            assert advanced <= taken + 1 + feed._KNOWN


# --- order ---------------------------------------------------------------------------------------


def test_the_order_is_kept_whichever_piece_arrives_first() -> None:
    pieces = Pieces()
    with aioxarray.stream(pieces.all) as ahead:
        pieces.gate.wait_requested(CHUNKS, PATIENCE_S, count=PIECES)
        for index in reversed(range(PIECES)):
            pieces.gate.release(f"v0/c/{index}")
        for index, piece in enumerate(ahead):
            xr.testing.assert_identical(piece, expected(index))


def test_with_a_free_order_the_first_to_arrive_is_handed_out() -> None:
    pieces = Pieces()
    with aioxarray.stream(pieces.all, ordered=False) as ahead:
        for index in reversed(range(PIECES)):
            pieces.gate.wait_requested(f"v0/c/{index}", PATIENCE_S)
            pieces.gate.release(f"v0/c/{index}")
            xr.testing.assert_identical(next(ahead), expected(index))


def test_transforms_run_in_worker_threads_side_by_side() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)
    threads = set()

    def transform(piece: xr.Dataset) -> None:
        threads.add(threading.get_ident())
        both.wait()

    pieces = Pieces()
    pieces.gate.release_all()
    with (
        aioxarray.config.set(threads=2),
        aioxarray.stream(pieces.all, transform=transform) as ahead,
    ):
        assert list(ahead) == [None] * PIECES
    assert threading.get_ident() not in threads


def test_threads_share_the_pieces() -> None:
    pieces = Pieces()
    pieces.gate.release_all()
    got: list[float] = []

    def consume() -> None:
        got.extend(float(piece.v0[0]) for piece in ahead)

    with aioxarray.stream(pieces.all) as ahead:
        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert sorted(got) == [float(index * SIZE) for index in range(PIECES)]


# --- ends ----------------------------------------------------------------------------------------


def test_leaving_early_cancels_the_requests() -> None:
    pieces = Pieces()
    with aioxarray.stream(pieces.all) as ahead:
        pieces.gate.wait_requested(CHUNKS, PATIENCE_S, count=PIECES)
        pieces.gate.release("v0/c/0")
        for _ in ahead:
            break
    pieces.assert_quiet()


def test_an_error_of_the_consumer_cancels_the_requests() -> None:
    pieces = Pieces()

    def consume() -> None:
        with aioxarray.stream(pieces.all):
            pieces.gate.wait_requested(CHUNKS, PATIENCE_S, count=PIECES)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    pieces.assert_quiet()


def test_an_error_of_a_piece_cancels_those_after_it() -> None:
    def fail() -> Any:
        raise ValueError("bad")

    pieces = Pieces()
    with aioxarray.stream([*pieces.all[:3], fail, *pieces.all[3:]]) as ahead:
        pieces.gate.release("v0/c/[012]")
        got = [next(ahead) for _ in range(3)]
        with pytest.raises(ValueError, match="bad"):
            next(ahead)
    pieces.assert_quiet()
    assert len(got) == 3


async def held(pieces: Pieces, entered: Callable[[], None] = lambda: None) -> None:
    async with aioxarray.stream(pieces.all) as ahead:
        entered()
        async for _ in ahead:
            pytest.fail("all requests are held")


@every_loop
async def test_cancelling_the_consumer_cancels_the_requests() -> None:
    pieces = Pieces()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(held, pieces)
        await pieces.gate.requested(CHUNKS, count=PIECES)
        tasks.cancel_scope.cancel()
    pieces.assert_quiet()


@every_loop
async def test_a_cancelled_context_is_left_with_nothing_running() -> None:
    pieces = Pieces()
    with anyio.CancelScope() as scope:
        async with aioxarray.stream(pieces.all):
            await pieces.gate.requested(CHUNKS, count=PIECES)
            # The end of the context is awaited in a scope that is cancelled already.
            scope.cancel()
    pieces.assert_quiet()


@every_loop
async def test_a_cancelled_entry_leaves_nothing_running() -> None:
    pieces = Pieces()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await held(pieces)
    pieces.assert_quiet()


def test_a_stream_that_nobody_has_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_WATCH_S", 0.0)
    pieces = Pieces()
    ahead = aioxarray.stream(pieces.all)
    ahead.__enter__()
    pieces.gate.wait_requested(CHUNKS, PATIENCE_S, count=PIECES)
    main = ahead._engine._main if ahead._engine is not None else None
    assert main is not None
    del ahead
    gc.collect()

    async def until_ended() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([main])

    run_blocking(until_ended)
    pieces.assert_quiet()


def test_a_failure_of_the_engine_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(room.Room, "fits", fail)
    pieces = Pieces()
    with (
        aioxarray.stream(pieces.all) as ahead,
        pytest.raises(RuntimeError, match="error of its own") as caught,
    ):
        next(ahead)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_iterable_that_blocks_does_not_block_other_calls() -> None:
    may_go_on = threading.Event()
    pieces = Pieces()
    pieces.gate.release_all()

    def blocking() -> Iterator[xr.Dataset]:
        yield pieces.all[0]
        may_go_on.wait(PATIENCE_S)
        yield pieces.all[1]

    with aioxarray.stream(blocking()) as ahead:
        xr.testing.assert_identical(next(ahead), expected(0))
        xr.testing.assert_identical(aioxarray.compute(pieces.all[2]), expected(2))
        may_go_on.set()
        xr.testing.assert_identical(next(ahead), expected(1))


# --- chunks that several pieces need ---------------------------------------------------------

STEPS, PER_CHUNK = 40, 8


def steps(store: Any) -> list[xr.Dataset]:
    """Write 40 steps of 1000 values, 8 to a chunk, into ``store``; return lazy pieces of a step."""
    values = np.random.default_rng(0).normal(size=(STEPS, 1000))
    ds = xr.Dataset({"v": (("time", "x"), values)})
    encoding = {"v": {"chunks": (PER_CHUNK, 1000)}}
    ds.to_zarr(store, encoding=encoding, consolidated=False, zarr_format=3)
    lazy = lazily(store)
    return [lazy.isel(time=i) for i in range(STEPS)]


def local(tmp_path: Path) -> Any:
    return LocalStore(tmp_path)


def memory(tmp_path: Path) -> Any:
    return MemoryStore()


def remote(tmp_path: Path) -> Any:
    return LatencyStore(MemoryStore(), latency_s=0)


@pytest.mark.parametrize("make", [local, memory, remote])
@pytest.mark.parametrize("order", ["ordered", "shuffled", "twice"])
def test_each_chunk_is_fetched_once_for_all_known_pieces(
    make: Callable[[Path], Any], order: str, tmp_path: Path
) -> None:
    log = RecordingStore(make(tmp_path))
    pieces = steps(log)
    if order == "shuffled":
        pieces = [pieces[i] for i in np.random.default_rng(1).permutation(STEPS)]
    elif order == "twice":
        pieces = pieces + pieces
    expected = [piece.compute() for piece in pieces]
    log.log.clear()
    with aioxarray.stream(all_known(pieces)) as ahead:
        xr.testing.assert_identical(next(ahead), xr.Dataset())
        for piece, value in zip(ahead, expected, strict=True):
            xr.testing.assert_identical(piece, value)
        run_blocking(_settled)
        found = ahead.statistics()
    assert log.log.count("get", CHUNKS) == STEPS // PER_CHUNK
    assert (found.fetched, found.repeated) == (STEPS // PER_CHUNK, 0)
    assert (found.kept, found.pieces, found.nbytes) == (0, 0, 0)


def test_chunks_are_fetched_again_if_there_is_no_room() -> None:
    log = RecordingStore(MemoryStore())
    pieces = steps(log)
    # Of three chunks, in turn; there is room for two of them besides a piece.
    order = [step for step in range(PER_CHUNK) for step in (step, step + 8, step + 16)]
    pieces = [pieces[i] for i in order]
    expected = [piece.compute() for piece in pieces]
    log.log.clear()
    chunk = PER_CHUNK * 1000 * 8
    limit = 2 * chunk + 4 * (1000 * 8 + (20 << 10))
    with aioxarray.stream(all_known(pieces), ahead=limit) as ahead:
        next(ahead)
        for piece, value in zip(ahead, expected, strict=True):
            xr.testing.assert_identical(piece, value)
            assert ahead.statistics().nbytes <= limit
        found = ahead.statistics()
    assert log.log.count("get", CHUNKS) == found.fetched
    assert found.repeated == found.fetched - 3
    assert 0 < found.repeated < len(pieces) - 3


def test_a_chunk_is_dropped_once_the_last_piece_that_needs_it_is_loaded() -> None:
    gate = GatedStore(MemoryStore(), keys=CHUNKS)
    gate.release_all()
    pieces = steps(gate)
    with aioxarray.stream(pieces) as ahead:
        # All pieces are loaded, and no chunk is left.
        while ahead.statistics().nbytes != STEPS * (1000 * 8 + (20 << 10)):
            run_blocking(_settled)
        for _ in ahead:
            pass
        run_blocking(_settled)
        assert ahead.statistics().nbytes == 0


def test_a_write_during_a_stream_is_not_hidden_by_kept_chunks() -> None:
    store = MemoryStore()
    pieces = steps(store)
    with aioxarray.stream(iter(pieces), ahead=1) as ahead:
        first = next(ahead)
        new = xr.Dataset({"v": (("time", "x"), np.zeros((STEPS, 1000)))})
        aioxarray.to_zarr(new, store, mode="r+", consolidated=False)
        # The piece after it may have been loaded before.
        later = list(ahead)[1:]
    xr.testing.assert_identical(first, pieces[0].isel().compute() * 0 + first)
    for piece in later:
        assert not piece["v"].values.any()


# --- the slow stage --------------------------------------------------------------------------


def test_the_consumer_is_the_slow_stage_if_all_pieces_are_there() -> None:
    pieces = Pieces()
    pieces.gate.release_all()
    with aioxarray.stream(pieces.all) as ahead:
        assert ahead.limiting().stage == "unclear"
        next(ahead)
        run_blocking(_settled)
        while ahead.statistics().pieces < PIECES - 1:
            run_blocking(_settled)
        for _ in ahead:
            pass
        found = ahead.limiting()
    assert found.waited_s + found.consumer_s > 0
    assert str(found).startswith(found.stage)
