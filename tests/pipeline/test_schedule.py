"""Threads keep their turn while no other work waits, and give it away when some does."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from zarr.storage import LocalStore

import aioxarray
from aioxarray._runtime.threads.scratch import scratch
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.schedule import Schedule
from aioxarray._zarr.selection import Block
from aioxarray._zarr.stores.grants import decoders, memory, open_grants, requests, threads
from aioxarray._zarr.stores.sources import FileSource

# What is read is no matter here.
RUNS: Any = [["a"], ["b", "c"], ["d"]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """With one thread and turns of one run the order is certain."""
    monkeypatch.setattr(tuning, "TURN_S", 0.0)
    with aioxarray.config.set(threads=1):
        yield


def test_a_thread_takes_all_runs_while_no_other_work_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hops = 0
    start = decoders.start
    advanced: list[int] = []

    def counted(function: Any, **options: Any) -> Any:
        nonlocal hops
        hops += 1
        return start(function, **options)

    def read(run: Sequence[Any]) -> list[bool]:
        return [each != "b" for each in run]

    async def main() -> list[bool]:
        with open_grants() as grants:
            schedule: Schedule[str] = Schedule(iter(RUNS), advanced.append)
            return await schedule.in_threads(grants, 1, read, threading.Event())

    monkeypatch.setattr(decoders, "start", counted)
    assert asyncio.run(main()) == [True, False, True, True]
    assert hops == 1
    assert advanced == [1, 2, 1]


def test_places_are_let_go_of_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(function: Any, **options: Any) -> Any:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with open_grants() as grants:
            await grants.in_thread(lambda: None, 1, lambda: None)

    monkeypatch.setattr(decoders, "start", none)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        asyncio.run(main())
    for budget in (threads, memory, requests):
        assert budget.statistics().in_use == 0


def test_another_load_gets_the_thread_after_the_turn() -> None:
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def read(run: Sequence[Any]) -> list[bool]:
        order.append("".join(run))
        if run == ["a"]:
            begun.set()
            assert go_on.wait(60)
        return [True] * len(run)

    async def main() -> None:
        stop = threading.Event()
        with open_grants() as grants, open_grants() as others:
            ours = asyncio.create_task(Schedule[str](iter(RUNS)).in_threads(grants, 1, read, stop))
            await asyncio.to_thread(begun.wait, 60)
            assert not grants.is_wanted()
            theirs = asyncio.create_task(
                others.in_thread(lambda: order.append("other"), 1, stop.set)
            )
            await asyncio.sleep(0)
            assert grants.is_wanted()
            go_on.set()
            await asyncio.gather(ours, theirs)

    asyncio.run(main())
    assert order == ["a", "other", "bc", "d"]


def test_an_error_ends_the_load_and_no_run_is_taken_after_it() -> None:
    taken: list[Any] = []

    def read(run: Sequence[Any]) -> list[bool]:
        taken.append(run)
        raise ValueError("damaged")

    async def main() -> None:
        with open_grants() as grants:
            schedule: Schedule[str] = Schedule(iter(RUNS))
            await schedule.in_threads(grants, 1, read, threading.Event())

    with pytest.raises(ValueError, match="damaged"):
        asyncio.run(main())
    assert taken == [["a"]]


@pytest.mark.parametrize(
    ("selection", "shape", "expected"),
    [
        ([slice(None)], (10**12,), [(0,), (1,), (2,)]),
        ([5, slice(None), slice(None)], (10, 10**12, 2), [(5, 0, 0), (5, 0, 1), (5, 1, 0)]),
    ],
)
def test_an_axis_of_many_chunks_is_not_held(
    selection: Any, shape: tuple[int, ...], expected: Any
) -> None:
    parts = Block(selection, shape, (1,) * len(shape)).parts()
    assert [at for at, _, _ in itertools.islice(parts, 3)] == expected


@pytest.mark.parametrize("size", [1, 4096, 100_001, 9 << 20])
def test_scratch_memory_begins_with_a_page(size: int) -> None:
    memory = scratch("test", size)
    assert memory.size == size
    assert memory.ctypes.data % 4096 == 0


def test_files_longer_and_shorter_than_the_last_one_are_read_whole(tmp_path: Path) -> None:
    sizes = [10, 70_000, 5, 80_000, 200_000, 0, 5 << 20, 1, 6 << 20, 65_536]
    for size in sizes:
        (tmp_path / str(size)).write_bytes(bytes([size % 251]) * size)
    source = FileSource(LocalStore(tmp_path))
    for size in sizes:
        found = source.read(str(size))
        assert found is not None
        assert bytes(found) == bytes([size % 251]) * size
