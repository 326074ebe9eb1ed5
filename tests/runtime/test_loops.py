"""Work passes between loops whole: its result, its errors, its context, its cancellation."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest

from aioxarray._runtime.loops import (
    blocking,
    deliver,
    io_loop,
    run_blocking,
    run_on,
    running_loop,
    use_io_loop,
)
from tests.runtime.helpers import PATIENCE_S, settle, until

Loop = asyncio.AbstractEventLoop
Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]

variable = contextvars.ContextVar("variable", default="unset")

CALLERS: dict[str, Run] = {
    "asyncio": functools.partial(anyio.run, backend="asyncio"),
    "uvloop": functools.partial(anyio.run, backend="asyncio", backend_options={"use_uvloop": True}),
    "trio": functools.partial(anyio.run, backend="trio"),
}


@pytest.fixture(params=CALLERS)
def run(request: pytest.FixtureRequest) -> Run:
    """How the caller's own loop is run."""
    return CALLERS[request.param]


async def thread_id() -> int:
    return threading.get_ident()


# --- run_on --------------------------------------------------------------------------------


def test_work_runs_on_the_other_loop_and_its_result_comes_back(run: Run, remote_loop: Loop) -> None:
    async def where() -> tuple[Loop | None, int]:
        await asyncio.sleep(0)
        return running_loop(), threading.get_ident()

    async def main() -> None:
        loop, thread = await run_on(remote_loop, where)
        assert loop is remote_loop
        assert thread != threading.get_ident()

    run(main)


def test_on_the_same_loop_work_is_awaited_in_place() -> None:
    async def current() -> object:
        return asyncio.current_task()

    async def main() -> None:
        assert await run_on(asyncio.get_running_loop(), current) is asyncio.current_task()

    asyncio.run(main())


def test_an_error_is_the_very_same(run: Run, remote_loop: Loop) -> None:
    error = ZeroDivisionError("original")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            await run_on(remote_loop, fail)
        assert caught.value is error
        assert (error.__cause__, error.__context__) == (None, None)

    run(main)


def test_work_sees_the_callers_context_and_leaves_it_alone(run: Run, remote_loop: Loop) -> None:
    async def change() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    async def main() -> None:
        variable.set("the caller's")
        assert await run_on(remote_loop, change) == "the caller's"
        assert variable.get() == "the caller's"

    run(main)


class Stubborn:
    """Work that takes its time to end when it is cancelled."""

    def __init__(self) -> None:
        self.started, self.cleaning = threading.Event(), threading.Event()
        self.ended = False
        self.cancellations = 0

    async def __call__(self) -> None:
        self._may_end = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaning.set()
            await self._may_end.wait()
            self.ended = True

    def let_end(self) -> None:
        self._loop.call_soon_threadsafe(self._may_end.set)


def test_cancelling_returns_when_the_work_has_ended(run: Run, remote_loop: Loop) -> None:
    async def main() -> None:
        work = Stubborn()
        returned = False

        async def call() -> None:
            nonlocal returned
            try:
                await run_on(remote_loop, work)
            finally:
                returned = True
                assert work.ended

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            assert await anyio.to_thread.run_sync(work.started.wait, PATIENCE_S)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert await anyio.to_thread.run_sync(work.cleaning.wait, PATIENCE_S)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert not returned
                work.let_end()
        assert returned

    run(main)


def test_cancelling_a_task_again_still_waits_for_the_end(remote_loop: Loop) -> None:
    async def main() -> None:
        work = Stubborn()
        task = asyncio.create_task(run_on(remote_loop, work))
        await until(work.started)
        task.cancel()
        await until(work.cleaning)
        for _ in range(3):
            # As when a timeout and the end of a task group meet.
            task.cancel()
            await settle()
            assert not task.done()
        work.let_end()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.ended

    asyncio.run(main())


def test_a_timeout_of_the_callers_own_cancels_the_work(remote_loop: Loop) -> None:
    async def main() -> None:
        work = Stubborn()

        async def let_end() -> None:
            await until(work.cleaning)
            work.let_end()

        ending = asyncio.create_task(let_end())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await run_on(remote_loop, work)
        # Cancelled before it began, or during: over in either case.
        assert work.ended or not work.started.is_set()
        work.cleaning.set()
        if not work.started.is_set():
            ending.cancel()
        await asyncio.wait([ending])

    asyncio.run(main())


def test_cancelling_before_the_work_has_begun_ends_it(remote_loop: Loop) -> None:
    async def main() -> None:
        began = []
        go_on = threading.Event()
        busy = threading.Event()

        def occupy() -> None:
            busy.set()
            assert go_on.wait(PATIENCE_S)

        async def work() -> None:
            began.append(1)
            await asyncio.Event().wait()

        remote_loop.call_soon_threadsafe(occupy)
        await until(busy)
        task = asyncio.create_task(run_on(remote_loop, work))
        await settle()
        task.cancel()
        await settle()
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_the_works_own_cancellation_is_not_the_callers(run: Run, remote_loop: Loop) -> None:
    async def give_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def main() -> None:
        with pytest.raises(concurrent.futures.CancelledError):
            await run_on(remote_loop, give_up)
        # The caller goes on as if nothing was.
        assert await run_on(remote_loop, thread_id) != threading.get_ident()

    run(main)


def test_deliver_calls_on_the_callers_loop_in_order_and_before_the_end(
    run: Run, remote_loop: Loop
) -> None:
    async def work() -> None:
        for number in range(10):
            deliver(functools.partial(seen.append, (number, None)))
            deliver(lambda number=number: seen.append((number, threading.get_ident())))  # type: ignore[misc]

    seen: list[tuple[int, int | None]] = []

    async def main() -> None:
        await run_on(remote_loop, work)
        here = threading.get_ident()
        assert seen == [(n, thread) for n in range(10) for thread in (None, here)]

    run(main)


def test_deliver_without_a_caller_calls_at_once() -> None:
    seen: list[int] = []
    deliver(lambda: seen.append(1))
    assert seen == [1]


# --- run_blocking --------------------------------------------------------------------------


def test_a_blocking_call_in_plain_code(remote_loop: Loop) -> None:
    assert run_blocking(thread_id) != threading.get_ident()
    assert io_loop() is remote_loop


def test_a_blocking_call_while_a_loop_runs_in_this_thread(run: Run, remote_loop: Loop) -> None:
    async def main() -> None:
        assert run_blocking(thread_id) != threading.get_ident()
        # And the loop is as it was.
        await anyio.lowlevel.checkpoint()

    run(main)


def test_blocking_calls_of_four_threads_at_once(remote_loop: Loop) -> None:
    async def meet() -> int:
        # Passed only by four that are there together.
        async with asyncio.timeout(PATIENCE_S):
            await barrier.wait()
        return 1

    async def make() -> asyncio.Barrier:
        return asyncio.Barrier(4)

    barrier = run_blocking(make)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(run_blocking, meet) for _ in range(4)]
        assert [call.result(PATIENCE_S) for call in calls] == [1] * 4


def test_a_blocking_call_on_the_io_loop_itself_is_an_error(remote_loop: Loop) -> None:
    async def work() -> None:
        with pytest.raises(RuntimeError, match="would wait for itself"):
            run_blocking(thread_id)

    run_blocking(work)


def test_waiting_for_a_loop_that_waits_for_this_call_is_an_error(remote_loop: Loop) -> None:
    async def main() -> None:
        here = asyncio.get_running_loop()

        async def back() -> int:
            return await run_on(here, thread_id)

        with pytest.raises(RuntimeError, match="waits for this very call"):
            run_blocking(back)
        # From a task of its own, nothing is blocked.
        assert await run_on(remote_loop, back) == threading.get_ident()

    asyncio.run(main())


def test_the_error_of_a_blocking_call_is_the_very_same(remote_loop: Loop) -> None:
    error = ZeroDivisionError("original")

    async def fail() -> None:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        run_blocking(fail)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)


def test_a_blocking_call_sees_the_context(remote_loop: Loop) -> None:
    async def change() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    def call() -> None:
        variable.set("the caller's")
        assert run_blocking(change) == "the caller's"
        assert variable.get() == "the caller's"

    contextvars.copy_context().run(call)


def test_deliver_calls_in_the_thread_that_waits_in_order(remote_loop: Loop) -> None:
    async def work() -> str:
        for number in range(10):
            deliver(lambda number=number: seen.append((number, threading.get_ident())))  # type: ignore[misc]
        return "result"

    seen: list[tuple[int, int]] = []
    assert run_blocking(work) == "result"
    assert seen == [(number, threading.get_ident()) for number in range(10)]


def test_an_interrupt_cancels_the_work_and_waits_for_its_end(remote_loop: Loop) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread == threading.get_ident()
    work = Stubborn()

    def interrupt() -> None:
        assert work.started.wait(PATIENCE_S)
        signal.pthread_kill(main_thread, signal.SIGINT)
        assert work.cleaning.wait(PATIENCE_S)
        work.let_end()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_blocking(work)
    assert work.ended
    thread.join()


def test_the_twin_of_a_coroutine_function_has_its_name_and_documentation(
    remote_loop: Loop,
) -> None:
    async def thing_async(a: int, *, b: int = 2) -> tuple[int, int]:
        """Do the thing."""
        return a, b

    thing = blocking(thing_async)
    assert thing(1, b=3) == (1, 3)
    assert thing(1) == (1, 2)
    assert thing.__name__ == "thing"
    assert thing.__qualname__.endswith("thing")
    assert thing.__doc__ is not None
    assert "Do the thing." in thing.__doc__
    assert "thing_async" in thing.__doc__


def test_the_io_loop_of_a_context_ends_with_it() -> None:
    before = io_loop()
    loop = asyncio.new_event_loop()
    with use_io_loop(loop):
        assert io_loop() is loop
    assert io_loop() is before
    loop.close()
