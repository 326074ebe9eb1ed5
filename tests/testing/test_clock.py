"""Virtual time passes exactly as the waiting says, and never while a thread is at work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from aioxarray.testing import (
    DeadlockError,
    GatedStore,
    LatencyStore,
    RecordingStore,
    VirtualClock,
)

PROTOTYPE = default_buffer_prototype()


def test_requests_side_by_side_take_one_latency_and_serial_ones_their_sum() -> None:
    store = RecordingStore(LatencyStore(MemoryStore(), 1.0))
    clock = VirtualClock()

    async def side_by_side(count: int) -> None:
        await asyncio.gather(*(store.get(f"a/{i}", PROTOTYPE) for i in range(count)))

    async def serial(count: int) -> None:
        for i in range(count):
            await store.get(f"a/{i}", PROTOTYPE)

    clock.run(side_by_side, 100)
    assert clock.elapsed_s == 1.0
    assert store.log.most_in_flight == 100
    store.log.clear()
    clock.run(serial, 100)
    assert clock.elapsed_s == 100.0
    assert store.log.most_in_flight == 1


def test_the_sum_of_many_waits_is_exact() -> None:
    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(0.05)
        assert clock.elapsed_s == 50.0
        await asyncio.sleep(86400 * 365)

    clock = VirtualClock()
    clock.run(main)
    assert clock.elapsed_s == 50.0 + 86400 * 365


def test_timers_fire_in_order_and_at_their_time() -> None:
    async def main() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, clock.elapsed_s))

        await asyncio.gather(wait("c", 3), wait("a", 0.001), wait("b", 2))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        with anyio.move_on_after(0.5) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        return seen

    clock = VirtualClock()
    assert clock.run(main) == [("a", 0.001), ("b", 2.0), ("c", 3.0)]
    assert clock.elapsed_s == 4.5


@pytest.mark.parametrize("own_pool", [False, True])
def test_time_stands_still_while_a_job_is_at_work(own_pool: bool) -> None:
    async def main() -> list[str]:
        order: list[str] = []
        go_on, at_work = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def job() -> None:
            loop.call_soon_threadsafe(at_work.set)
            assert go_on.wait(30)
            order.append("job")

        async def timer() -> None:
            await asyncio.sleep(1.0)
            order.append("timer")

        async def release() -> None:
            await at_work.wait()
            for _ in range(1000):  # the loop goes round and round, and the timer is not due
                await asyncio.sleep(0)
            assert clock.elapsed_s == 0.0
            go_on.set()

        with ThreadPoolExecutor() as pool:
            jobs = loop.run_in_executor(pool if own_pool else None, job)
            await asyncio.gather(timer(), release(), jobs)
        return order

    clock = VirtualClock()
    assert clock.run(main) == ["job", "timer"]
    assert clock.elapsed_s == 1.0


def test_a_job_still_at_work_after_its_cancellation_holds_time() -> None:
    async def main() -> None:
        go_on, ended = threading.Event(), threading.Event()
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def job() -> None:
            loop.call_soon_threadsafe(started.set)
            go_on.wait(30)
            ended.set()

        task = asyncio.create_task(asyncio.to_thread(job))
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        go_on.set()
        await asyncio.sleep(1)
        assert ended.is_set()

    VirtualClock().run(main)


def test_requests_with_jobs_in_between_take_their_round_trips() -> None:
    store = LatencyStore(MemoryStore(), 1.0)

    async def fetch_and_decode(i: int) -> None:
        await store.get(f"index/{i}", PROTOTYPE)
        await asyncio.to_thread(sum, range(10_000))
        await store.get(f"a/{i}", PROTOTYPE)
        await asyncio.to_thread(sum, range(10_000))

    async def main() -> None:
        await asyncio.gather(*(fetch_and_decode(i) for i in range(100)))

    for _ in range(3):
        clock = VirtualClock()
        clock.run(main)
        assert clock.elapsed_s == 2.0


def test_a_job_that_waits_for_the_loop_lets_time_pass() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def job(seconds: float) -> float:
            waiting = asyncio.run_coroutine_threadsafe(asyncio.sleep(seconds, seconds), loop)
            return waiting.result(30) + asyncio.run_coroutine_threadsafe(
                asyncio.sleep(seconds, seconds), loop
            ).result(30)

        assert await asyncio.gather(*(asyncio.to_thread(job, s) for s in (1.0, 2.5))) == [2.0, 5.0]

    clock = VirtualClock()
    clock.run(main)
    assert clock.elapsed_s == 5.0


def test_an_error_in_a_job_and_a_pool_that_is_shut_arrive() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        pool = ThreadPoolExecutor()
        pool.shutdown()
        with pytest.raises(RuntimeError, match="shutdown"):
            await asyncio.get_running_loop().run_in_executor(pool, int)
        await asyncio.sleep(1)  # held by neither

    clock = VirtualClock()
    clock.run(main)
    assert clock.elapsed_s == 1.0


def test_hold_is_for_threads_the_loop_does_not_know() -> None:
    async def main() -> None:
        answer: concurrent.futures.Future[str] = concurrent.futures.Future()
        go_on = threading.Event()
        held = threading.Event()

        def work() -> None:
            with clock.hold():
                held.set()
                assert go_on.wait(30)
                answer.set_result("done")

        thread = threading.Thread(target=work)
        thread.start()
        held.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
        async with asyncio.timeout(1):
            assert await asyncio.wrap_future(answer) == "done"
        thread.join()

    clock = VirtualClock()
    clock.run(main)
    assert clock.elapsed_s == 0.0
    with pytest.raises(RuntimeError, match="not running"):
        clock.hold()


def test_a_gate_in_virtual_time_opens_from_another_thread() -> None:
    store = GatedStore(LatencyStore(MemoryStore(), 1.0))

    def release() -> None:
        store.wait_requested("a")
        store.release("a")

    async def main() -> None:
        await store.get("a", PROTOTYPE)

    thread = threading.Thread(target=release)
    thread.start()
    clock = VirtualClock()
    clock.run(main)
    thread.join()
    assert clock.elapsed_s == 1.0


def test_a_deadlock_is_reported() -> None:
    async def wait_in_vain() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait_in_vain(), name="lost")

    with pytest.raises(DeadlockError, match=r"lost: .*wait.*\.py:\d+"):
        VirtualClock(patience_s=0.01).run(main)


def test_the_loop_is_the_io_loop_of_the_library_while_it_runs() -> None:
    from aioxarray._runtime.loops import io_loop, run_blocking, run_on

    async def request() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(1)
        return asyncio.get_running_loop()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert io_loop() is loop
        assert await run_on(io_loop(), request) is loop
        # A blocking call in a thread sends its work to this loop, and time passes for it.
        assert await asyncio.to_thread(run_blocking, request) is loop

    clock = VirtualClock()
    clock.run(main)
    assert clock.elapsed_s == 2.0


def test_leftover_tasks_are_cancelled_and_are_not_the_runs_time() -> None:
    ended: list[str] = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(5)
            ended.append("lingers")

    async def main() -> str:
        task = asyncio.create_task(lingers())
        await asyncio.sleep(1)
        return task.get_name()

    clock = VirtualClock()
    assert clock.elapsed_s == 0.0
    clock.run(main)
    assert clock.elapsed_s == 1.0
    assert ended == ["lingers"]
