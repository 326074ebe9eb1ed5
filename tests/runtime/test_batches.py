"""`Batches` handles each item once, many together when they gather, errors one by one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from aioxarray._runtime.batches import Batches
from aioxarray._runtime.threads.pool import Pool
from tests.runtime.helpers import PATIENCE_S, settle


class Handler:
    """Handles batches at a gate, and keeps what it was given."""

    def __init__(self, errors: dict[str, Exception] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self._errors = errors or {}

    def __call__(self, items: Sequence[str]) -> Sequence[Exception | None]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.may_end.acquire(timeout=PATIENCE_S)
        return [self._errors.get(item) for item in items]

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S)


async def add(batches: Batches[str], names: str, weight: int = 1) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(batches.add(name, weight)) for name in names]
    await settle()
    return tasks


def test_items_that_arrive_meanwhile_are_handled_together() -> None:
    async def main() -> None:
        handler = Handler()
        batches: Batches[str] = Batches(Pool("own", 4), 1, 100, handler)
        first = await add(batches, "a")
        await handler.has_begun()
        rest = await add(batches, "bcd")
        handler.may_end.release(2)
        await asyncio.gather(*first, *rest)
        assert handler.batches == [["a"], ["b", "c", "d"]]
        assert threading.get_ident() not in handler.threads

    asyncio.run(main())


def test_a_batch_is_full_at_its_weight() -> None:
    async def main() -> None:
        handler = Handler()
        batches: Batches[str] = Batches(Pool("own", 4), 1, 10, handler)
        tasks = await add(batches, "a") + await add(batches, "bcdef", weight=4)
        handler.may_end.release(10)
        await asyncio.gather(*tasks)
        assert handler.batches == [["a"], ["b", "c", "d"], ["e", "f"]]

    asyncio.run(main())


def test_no_more_batches_at_once_than_its_width() -> None:
    async def main() -> None:
        handler = Handler()
        batches: Batches[str] = Batches(Pool("own", 8), 2, 1, handler)
        tasks = await add(batches, "abcde")
        await handler.has_begun()
        await handler.has_begun()
        assert sorted(handler.batches) == [["a"], ["b"]]
        handler.may_end.release()
        await handler.has_begun()
        assert handler.batches[2] == ["c"]
        handler.may_end.release(10)
        await asyncio.gather(*tasks)
        assert sorted(name for batch in handler.batches for name in batch) == list("abcde")

    asyncio.run(main())


def test_an_item_gets_its_own_error() -> None:
    async def main() -> None:
        error = ZeroDivisionError("c")
        handler = Handler({"c": error})
        batches: Batches[str] = Batches(Pool("own", 1), 1, 100, handler)
        handler.may_end.release(10)
        tasks = await add(batches, "abcd")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results == [None, None, error, None]
        # And what comes later is handled.
        await asyncio.gather(*await add(batches, "e"))

    asyncio.run(main())


def test_when_handling_itself_fails_all_of_the_batch_are_told() -> None:
    def fail(items: Sequence[str]) -> Sequence[Exception | None]:
        raise ZeroDivisionError

    async def main() -> None:
        batches: Batches[str] = Batches(Pool("own", 1), 1, 100, fail)
        for task in await add(batches, "abc"):
            with pytest.raises(ZeroDivisionError):
                await task

    asyncio.run(main())


def test_a_cancelled_item_is_not_handled_if_its_batch_has_not_begun() -> None:
    async def main() -> None:
        handler = Handler()
        batches: Batches[str] = Batches(Pool("own", 1), 1, 100, handler)
        tasks = await add(batches, "a")
        await handler.has_begun()
        tasks += await add(batches, "bcd")
        for index in (0, 2):
            tasks[index].cancel()
        await settle()
        # At once, though a thread is at it.
        assert tasks[0].cancelled()
        assert tasks[2].cancelled()
        handler.may_end.release(2)
        await asyncio.gather(tasks[1], tasks[3])
        assert handler.batches == [["a"], ["b", "d"]]

    asyncio.run(main())


def test_it_goes_on_after_all_that_waited_were_cancelled() -> None:
    async def main() -> None:
        handler = Handler()
        batches: Batches[str] = Batches(Pool("own", 1), 1, 100, handler)
        tasks = await add(batches, "a")
        await handler.has_begun()
        tasks += await add(batches, "bc")
        for task in tasks:
            task.cancel()
        await settle()
        handler.may_end.release(2)
        await asyncio.gather(*await add(batches, "d"))
        assert handler.batches == [["a"], ["d"]]

    asyncio.run(main())
