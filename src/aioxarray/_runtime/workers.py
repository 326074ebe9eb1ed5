"""Other people's blocking code in worker threads, with its own blocking calls into this package."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from aioxarray._runtime.loops import Leash, io_loop, run_on
from aioxarray._runtime.outcomes import Outcome
from aioxarray._runtime.tasks import until_done
from aioxarray._runtime.threads import Pool

T = TypeVar("T")

# Such code mostly waits, for requests that run on the I/O loop.
_THREADS = 32

# How deep the current code is in worker threads that wait for worker threads. Each depth has a
# pool of its own: in a shared one, waiting calls could take all threads from those they wait for.
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("aioxarray_depth", default=0)
_pools: dict[int, Pool] = {}


async def in_worker(function: Callable[[], T], discard: Callable[[T], object]) -> T:
    """Await ``function()`` in a worker thread, from any event loop.

    Cancelling cancels the requests that ``function`` waits for and returns when they have ended, or
    when ``function`` has, if that called `be_awaited`; what ``function`` still returns then is
    handed to ``discard``.
    """
    leash = Leash()
    depth = _depth.get()
    pool = _pools.setdefault(depth, Pool(f"aioxarray-worker-{depth}", _THREADS))
    # Popped, so that the thread holds nothing of it when this returns.
    functions = [function]
    outcome: Outcome[T] = Outcome()

    ended: Future[None] = Future()

    def work() -> None:
        _depth.set(depth + 1)
        try:
            outcome.of(lambda: leash.run(functions.pop()))
            if leash.pulled:
                throw_away()
        finally:
            ended.set_result(None)

    def throw_away() -> None:
        for result in outcome.results():
            discard(result)

    async def wait() -> T:
        try:
            await pool.run(work)
        except asyncio.CancelledError:
            for call in leash.pull():
                await _end_of(call)
            if leash.awaited:
                await _end_of(ended)
            if outcome.has_result:
                # Cancelled in the moment in which it came.
                await until_done(pool.start(throw_away))
            raise
        return outcome.take()

    return await run_on(io_loop(), wait)


async def _end_of(call: Future[None]) -> None:
    """Wait for ``call``, however often this task is cancelled; without a hold on it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    while not ended.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await ended.wait()
