"""Worker threads take work in order, alone where they must, and let go of what is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable

import pytest

from aioxarray._runtime.lanes import Lane
from aioxarray._runtime.system.cores import usable_cores
from aioxarray._runtime.threads.pool import Pool
from tests.runtime.helpers import PATIENCE_S, run_script, settle, until

variable = contextvars.ContextVar("variable", default="unset")


class Gated:
    """A call that tells when it has begun and waits until it may go on."""

    def __init__(self, result: object = None) -> None:
        self.begun, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self._result = result

    def __call__(self) -> object:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.ended.set()
        return self._result


def test_usable_cores_are_at_least_one() -> None:
    assert usable_cores() >= 1


# --- Pool ----------------------------------------------------------------------------------


def test_a_pool_runs_in_its_own_threads_with_the_callers_context() -> None:
    async def main() -> None:
        variable.set("the caller's")
        name, seen = await Pool("own", 1).run(
            lambda: (threading.current_thread().name, variable.get())
        )
        assert name.startswith("own")
        assert seen == "the caller's"

    asyncio.run(main())


def test_long_calls_leave_a_thread_to_the_others() -> None:
    """As many long calls as there are threads, and more that wait: a short one still runs."""

    async def main() -> None:
        pool = Pool("own", 2)
        calls = [Gated() for _ in range(4)]
        long = [pool.start(call, long=True) for call in calls]
        for call in calls[:2]:
            await until(call.begun)
        assert await pool.run(lambda: "short") == "short"
        assert not calls[2].begun.is_set()
        for call in calls:
            call.may_end.set()
        await asyncio.gather(*long)
        # The threads are the pool's own again.
        name = await pool.run(lambda: threading.current_thread().name)
        assert "spare" not in name

    asyncio.run(main())


def test_without_long_calls_no_further_thread_is_used() -> None:
    async def main() -> None:
        pool = Pool("own", 1)
        first, second = Gated(), Gated()
        calls = [pool.start(first), pool.start(second)]
        await until(first.begun)
        assert not second.begun.is_set()
        first.may_end.set()
        second.may_end.set()
        await asyncio.gather(*calls)

    asyncio.run(main())


def test_the_error_of_a_call_is_the_very_same() -> None:
    error = ZeroDivisionError("original")

    def fail() -> None:
        raise error

    async def main() -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            await Pool("own", 1).run(fail)
        assert caught.value is error

    asyncio.run(main())


def test_a_pool_runs_as_many_at_once_as_it_has_threads() -> None:
    async def main() -> None:
        pool = Pool("own", 2)
        calls = [Gated(index) for index in range(3)]
        tasks = [asyncio.create_task(pool.run(call)) for call in calls]
        await until(calls[0].begun)
        await until(calls[1].begun)
        assert not calls[2].begun.is_set()
        calls[0].may_end.set()
        await until(calls[2].begun)
        for call in calls:
            call.may_end.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    asyncio.run(main())


def test_a_resized_pool_uses_the_new_size_and_ends_what_it_had_begun() -> None:
    async def main() -> None:
        pool = Pool("own", 1)
        old = Gated("old")
        old_task = asyncio.create_task(pool.run(old))
        await until(old.begun)
        pool.resize(2)
        calls = [Gated(index) for index in range(2)]
        tasks = [asyncio.create_task(pool.run(call)) for call in calls]
        for call in calls:
            await until(call.begun)
        pool.resize(2)
        for call in (old, *calls):
            call.may_end.set()
        assert await asyncio.gather(old_task, *tasks) == ["old", 0, 1]

    asyncio.run(main())


def test_cancelling_returns_at_once_and_the_call_ends_unheard() -> None:
    async def main() -> None:
        pool = Pool("own", 1)
        running, waiting = Gated(), Gated()
        tasks = [asyncio.create_task(pool.run(call)) for call in (running, waiting)]
        await until(running.begun)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert not running.ended.is_set()
        running.may_end.set()
        await until(running.ended)
        # What had not begun never does.
        assert await pool.run(lambda: "next") == "next"
        assert not waiting.begun.is_set()

    asyncio.run(main())


def test_threads_of_calls_that_were_given_up_are_replaced() -> None:
    async def main() -> None:
        pool = Pool("own", 2)
        hanging = [Gated() for _ in range(10)]
        for call in hanging:
            task = asyncio.create_task(pool.run(call))
            await until(call.begun)
            task.cancel()
            await asyncio.wait([task])
        # Two at once still, and not one of the ten has ended.
        calls = [Gated(index) for index in range(3)]
        tasks = [asyncio.create_task(pool.run(call)) for call in calls]
        await until(calls[0].begun)
        await until(calls[1].begun)
        assert not calls[2].begun.is_set()
        assert not any(call.ended.is_set() for call in hanging)
        for call in (*calls, *hanging):
            call.may_end.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    asyncio.run(main())


def test_a_waiting_call_gets_the_thread_of_a_call_that_was_given_up() -> None:
    async def main() -> None:
        pool = Pool("own", 1)
        hanging = Gated()
        task = asyncio.create_task(pool.run_to_end(hanging, lambda: None, wait=False))
        await until(hanging.begun)
        waiting = asyncio.create_task(pool.run(lambda: "done"))
        await settle()
        assert pool.has_queue
        task.cancel()
        assert await waiting == "done"
        assert not hanging.ended.is_set()
        hanging.may_end.set()

    asyncio.run(main())


def test_no_more_than_a_bounded_number_of_threads_is_replaced() -> None:
    async def main() -> None:
        pool = Pool("own", 1, most_lost=2)
        hanging = [Gated() for _ in range(3)]
        for call in hanging:
            task = asyncio.create_task(pool.run(call))
            await until(call.begun)
            task.cancel()
            await asyncio.wait([task])
        waiting = asyncio.create_task(pool.run(lambda: "done"))
        await settle()
        assert pool.has_queue
        hanging[2].may_end.set()
        assert await waiting == "done"
        for call in hanging[:2]:
            call.may_end.set()

    asyncio.run(main())


EXIT = """
import asyncio, threading
from aioxarray._runtime.threads.pool_threads import exit_blocked
from aioxarray._runtime.threads.pool import Pool

pool, never, begun = Pool("own", 2), threading.Event(), threading.Event()

def hang():
    begun.set()
    never.wait()

def finish():
    with exit_blocked():
        begun.set()
        threading.main_thread().join()
        print("to its end", flush=True)

async def main(function):
    task = asyncio.ensure_future(pool.run(function))
    await asyncio.to_thread(begun.wait)
    task.cancel()

asyncio.run(main(FUNCTION))
"""


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("function", ["hang", "finish"])
def test_the_end_of_the_process_waits_for_what_must_not_be_cut_off_only(function: str) -> None:
    output = run_script(EXIT.replace("FUNCTION", function), timeout_s=PATIENCE_S)
    assert output == ("" if function == "hang" else "to its end\n")


# --- Lane ----------------------------------------------------------------------------------


def test_a_lane_runs_one_call_at_a_time_in_order() -> None:
    async def main() -> None:
        lane = Lane.of("a lock", Pool("own", 8))
        lock = threading.Lock()
        order: list[int] = []

        def call(index: int) -> Callable[[], int]:
            def run() -> int:
                assert lock.acquire(blocking=False)
                order.append(index)
                lock.release()
                return index

            return run

        results = await asyncio.gather(*(lane.run(call(index)) for index in range(100)))
        assert results == order == list(range(100))

    asyncio.run(main())


def test_a_lane_takes_one_thread_of_the_pool_only() -> None:
    async def main() -> None:
        pool = Pool("own", 2)
        lane = Lane.of("a lock", pool)
        calls = [Gated() for _ in range(10)]
        tasks = [asyncio.create_task(lane.run(call)) for call in calls]
        await until(calls[0].begun)
        # The other thread is free, though ten calls are there.
        assert await pool.run(lambda: "free") == "free"
        assert await Lane.of("another lock", pool).run(lambda: "free too") == "free too"
        assert not calls[1].begun.is_set()
        for call in calls:
            call.may_end.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_there_is_one_lane_for_a_key_while_it_is_in_use() -> None:
    pool = Pool("own", 1)
    lane = Lane.of("a lock", pool)
    assert Lane.of("a lock", pool) is lane
    assert Lane.of("another lock", pool) is not lane


def test_a_cancelled_call_is_skipped_and_a_running_one_ends_unheard() -> None:
    async def main() -> None:
        lane = Lane.of("a lock", Pool("own", 1))
        calls = [Gated(index) for index in range(4)]
        tasks = [asyncio.create_task(lane.run(call)) for call in calls]
        await until(calls[0].begun)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.wait(tasks[:2])
        assert all(task.cancelled() for task in tasks[:2])
        calls[2].may_end.set()
        calls[3].may_end.set()
        await settle()
        # One at a time still: the first is not over.
        assert not calls[2].begun.is_set()
        calls[0].may_end.set()
        assert await asyncio.gather(*tasks[2:]) == [2, 3]
        assert not calls[1].begun.is_set()

    asyncio.run(main())


def test_an_error_reaches_its_own_call_and_the_lane_goes_on() -> None:
    error = ZeroDivisionError("original")

    def fail() -> None:
        raise error

    async def main() -> None:
        lane = Lane.of("a lock", Pool("own", 1))
        results = await asyncio.gather(
            lane.run(fail), lane.run(lambda: "next"), return_exceptions=True
        )
        assert results[0] is error
        assert results[1] == "next"
        assert await lane.run(lambda: "later") == "later"

    asyncio.run(main())


def test_a_thread_may_wait_for_its_turn_in_a_lane() -> None:
    async def main() -> None:
        lane = Lane.of("a lock", Pool("own", 1))
        before = Gated()
        first = asyncio.create_task(lane.run(before))
        await until(before.begun)
        waiting = asyncio.create_task(asyncio.to_thread(lane.call, lambda: "in turn"))
        failing = asyncio.create_task(asyncio.to_thread(lane.call, lambda: 1 / 0))
        before.may_end.set()
        await first
        assert await waiting == "in turn"
        with pytest.raises(ZeroDivisionError):
            await failing

    asyncio.run(main())


def test_a_lane_serves_several_loops() -> None:
    pool = Pool("own", 2)
    lane = Lane.of("a lock", pool)

    async def call(index: int) -> int:
        variable.set(str(index))
        return await lane.run(lambda: int(variable.get()))

    async def main() -> None:
        runs = (asyncio.to_thread(asyncio.run, call(index)) for index in range(8))
        assert await asyncio.gather(*runs) == list(range(8))

    asyncio.run(main())


FORK = """
import asyncio, os, threading
from aioxarray._runtime.lanes import Lane
from aioxarray._runtime.threads.pool import Pool

pool = Pool("own", 1)

async def main():
    lane = Lane.of("a lock", pool)
    begun, may_end = threading.Event(), threading.Event()

    def call():
        begun.set()
        may_end.wait()

    task = asyncio.create_task(lane.run(call))
    await asyncio.to_thread(begun.wait)
    child = os.fork()
    if child == 0:
        # The pool's only thread was busy. It is gone, and the one that would free the lane too.
        asyncio._set_running_loop(None)
        loop = asyncio.new_event_loop()
        first = loop.run_until_complete(pool.run(lambda: "pool"))
        second = loop.run_until_complete(Lane.of("a lock", pool).run(lambda: "lane"))
        os._exit(0 if (first, second) == ("pool", "lane") else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, code
    may_end.set()
    await task

asyncio.run(main())
print("fine")
"""


def test_a_forked_process_has_threads_of_its_own() -> None:
    assert run_script(FORK).splitlines()[-1] == "fine"
