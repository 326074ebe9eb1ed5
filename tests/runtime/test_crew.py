"""Crews: as many workers as the bound, divided among the lists of work."""

from __future__ import annotations

import asyncio
import math

import pytest

from aioxarray._runtime.crew import Crew, Team
from aioxarray._runtime.tasks import gather
from aioxarray.testing.clock import VirtualClock


class Work:
    """A list of pieces that each take ``seconds``, and how many were under way."""

    def __init__(self, count: int, seconds: float = 1.0) -> None:
        self.count = count
        self.seconds = seconds
        self.begun = self.now = self.most = 0

    async def step(self) -> None:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1

    async def done_by(self, crew: Crew) -> None:
        await Team(crew, self.count, self.step).work()


@pytest.mark.parametrize(("bound", "most"), [(1, 1), (4, 4), (100, 10), (math.inf, 10)])
def test_a_list_has_up_to_the_bound(bound: float, most: int) -> None:
    work = Work(10)
    VirtualClock().run(lambda: work.done_by(Crew(bound)))
    assert work.begun == 10
    assert work.most == most


def test_lists_share_the_workers_equally() -> None:
    works = [Work(200, 1.0), Work(200, 3.0)]
    seen: list[tuple[int, ...]] = []

    async def look() -> None:
        for _ in range(8):
            await asyncio.sleep(1.5)
            seen.append(tuple(work.now for work in works))

    async def main() -> None:
        crew = Crew(10)
        await gather([look, *(lambda each=each: each.done_by(crew) for each in works)])

    VirtualClock().run(main)
    # The first takes all workers at first, and gives up those that the second one wants.
    assert seen[-1] in [(6, 6), (5, 7), (7, 5)]
    assert [work.begun for work in works] == [200, 200]


def test_workers_go_to_the_list_that_is_left() -> None:
    short, long = Work(4), Work(40)

    async def main() -> None:
        crew = Crew(8)
        await gather([lambda: short.done_by(crew), lambda: long.done_by(crew)])

    VirtualClock().run(main)
    assert long.most == 8


def test_a_wider_crew_takes_up_work_at_once() -> None:
    work = Work(40)

    async def main() -> None:
        crew = Crew(2)
        task = asyncio.create_task(work.done_by(crew))
        await asyncio.sleep(0.5)
        assert work.now == 2
        crew.widen(16)
        await asyncio.sleep(0.25)
        assert work.now == 16
        crew.widen(4)
        await task

    VirtualClock().run(main)
    assert work.most == 16


def test_an_error_ends_its_list_and_leaves_the_workers_to_others() -> None:
    good, bad = Work(30), Work(30)

    async def fail() -> None:
        await bad.step()
        if bad.begun >= 6:
            raise ValueError("broken")

    async def main() -> None:
        crew = Crew(6)
        task = asyncio.create_task(good.done_by(crew))
        with pytest.raises(ValueError, match="broken"):
            await Team(crew, 30, fail).work()
        assert bad.now == 0
        await asyncio.sleep(1.5)
        assert good.now == 6
        await task

    VirtualClock().run(main)
    assert good.begun == 30


def test_cancelling_ends_all_and_leaves_the_workers_to_others() -> None:
    one, other = Work(30), Work(12)

    async def main() -> None:
        crew = Crew(6)
        task = asyncio.create_task(one.done_by(crew))
        # Also before its workers have started.
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        task = asyncio.create_task(one.done_by(crew))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert one.now == 0
        await other.done_by(crew)

    VirtualClock().run(main)
    assert other.most == 6
