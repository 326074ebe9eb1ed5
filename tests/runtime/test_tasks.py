"""`gather` ends all when one ends badly; long work lets others go on."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable

import pytest

from aioxarray._runtime.loops import use_io_loop
from aioxarray._runtime.tasks import gather, in_steps, without_waiting
from tests.runtime.helpers import settle


def test_results_come_in_order_whatever_ends_first() -> None:
    async def main() -> None:
        turns = [asyncio.Event() for _ in range(4)]
        turns[3].set()

        async def job(index: int) -> int:
            await turns[index].wait()
            if index:
                turns[index - 1].set()
            return index

        assert await gather([lambda i=i: job(i) for i in range(4)]) == [0, 1, 2, 3]  # type: ignore[misc]

    asyncio.run(main())


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count: int) -> None:
    async def main() -> None:
        async def job() -> str:
            return "result"

        assert await gather([job] * count) == ["result"] * count

    asyncio.run(main())


class Siblings:
    """Jobs that wait for ever, and take some turns of the loop to end when cancelled."""

    def __init__(self) -> None:
        self.began = self.ended = 0

    async def __call__(self) -> None:
        self.began += 1
        try:
            await asyncio.Event().wait()
        finally:
            await settle()
            self.ended += 1


@pytest.mark.parametrize("place", [0, 3, 6])
def test_the_first_error_cancels_and_awaits_the_others(place: int) -> None:
    error = ZeroDivisionError("the first")

    async def main() -> None:
        siblings = Siblings()

        async def fail() -> None:
            await settle()
            assert siblings.began == 6
            raise error

        jobs: list[Callable[[], Awaitable[None]]] = [siblings] * 6
        jobs.insert(place, fail)
        with pytest.raises(ZeroDivisionError) as caught:
            await gather(jobs)
        assert caught.value is error
        assert error.__cause__ is None
        assert error.__suppress_context__
        assert (siblings.began, siblings.ended) == (6, 6)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_the_first_of_several_errors_is_raised_also_through_two_levels() -> None:
    async def main() -> None:
        first = asyncio.Event()

        async def fail(error: Exception) -> None:
            if isinstance(error, KeyError):
                await first.wait()
            first.set()
            raise error

        async def wait_and_fail_too() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError("while being cancelled")

        async def inner() -> None:
            await gather([wait_and_fail_too, lambda: fail(KeyError("later"))])

        with pytest.raises(ValueError, match="the first"):
            await gather([inner, lambda: fail(ValueError("the first")), wait_and_fail_too])

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 5])
def test_cancelling_cancels_and_awaits_all(count: int) -> None:
    async def main() -> None:
        siblings = Siblings()
        task = asyncio.create_task(gather([siblings] * count))
        await settle()
        assert siblings.began == count
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert siblings.ended == count

    asyncio.run(main())


@pytest.mark.parametrize(("where", "most_ms"), [("caller", 5), ("io", 15)])
def test_work_in_steps_lets_the_loop_go_on(
    where: str, most_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seldom on the I/O loop, which would keep Python's lock if it let go of it often."""
    clock = itertools.count()
    monkeypatch.setattr("aioxarray._runtime.tasks.perf_counter", lambda: next(clock) / 1000)
    steps_ms: list[int] = []
    other = asyncio.new_event_loop()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        at_ms = next(clock)

        def turn() -> None:
            nonlocal at_ms
            now_ms = next(clock)
            steps_ms.append(now_ms - at_ms)
            at_ms = now_ms
            loop.call_soon(turn)

        loop.call_soon(turn)
        with use_io_loop(loop if where == "io" else other):
            await in_steps(range(100))

    asyncio.run(main())
    other.close()
    longest = max(steps_ms)
    assert longest <= most_ms
    assert (longest > sys.getswitchinterval() * 1000) == (where == "io")


async def _chained(value: str) -> str:
    async def inner() -> str:
        return value

    return await inner()


def test_a_coroutine_that_never_waits_needs_no_loop() -> None:
    assert without_waiting(_chained("result")) == "result"

    async def main() -> str:
        return without_waiting(_chained("in a loop"))

    assert asyncio.run(main()) == "in a loop"


def test_a_coroutine_that_waits_is_closed() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="waits"):
        without_waiting(waits())
    assert ended
