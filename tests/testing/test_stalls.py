"""The monitor sees what kept the loop from running, and stays out of the body's way."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aioxarray.testing import StallMonitor

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class FakeTime:
    """Stands still, except when told."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.looked: anyio.Event | None = None

    def __call__(self) -> float:
        if self.looked is not None:
            self.looked.set()
        return self.seconds

    async def until_next_look(self) -> None:
        self.looked = anyio.Event()
        await self.looked.wait()


async def test_it_finds_the_worst_stall() -> None:
    now = FakeTime()
    async with StallMonitor(interval_s=0.001, now=now) as stalls:
        for stall_s in (0.05, 0.25, 0.01):
            now.seconds += stall_s  # as if a calculation took so long
            await now.until_next_look()
    assert stalls.worst_s == pytest.approx(0.249)
    assert repr(stalls) == "<StallMonitor: worst 249.0 ms>"


async def test_a_stall_at_the_end_of_the_body_counts() -> None:
    now = FakeTime()
    async with StallMonitor(interval_s=0.001, now=now) as stalls:
        now.seconds += 3
    assert stalls.worst_s == pytest.approx(2.999)


async def test_a_free_loop_has_no_stall() -> None:
    now = FakeTime()
    async with StallMonitor(now=now) as stalls:
        await now.until_next_look()
        with pytest.raises(RuntimeError, match="already"):
            await stalls.__aenter__()
    assert stalls.worst_s == 0.0


async def test_the_bodys_error_leaves_as_it_is() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with StallMonitor():
            raise error
    assert caught.value is error


async def test_the_body_can_be_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with StallMonitor():
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


def test_a_cancelled_task_is_cancelled() -> None:
    async def watched(started: asyncio.Event) -> None:
        async with StallMonitor():
            started.set()
            await asyncio.Event().wait()

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(watched(started))
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
