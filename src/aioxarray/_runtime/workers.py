"""Other people's blocking code in worker threads, with its own blocking calls into this package."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from aioxarray._runtime.loops import io_loop, run_on
from aioxarray._runtime.threads.leash import Leash
from aioxarray._runtime.threads.outcomes import Outcome, until_done
from aioxarray._runtime.threads.pool import Pool

T = TypeVar("T")

# Such code mostly waits, for requests that run on the I/O loop.
_THREADS = 32

# How long a cancelled function may take to end.
_UNWINDING_S = 0.5

# How deep the current code is in worker threads that wait for worker threads. Each depth has a
# pool of its own: in a shared one, waiting calls could take all threads from those they wait for.
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("aioxarray_depth", default=0)
_pools: dict[int, Pool] = {}


async def in_worker(function: Callable[[], T], discard: Callable[[T], object]) -> T:
    """Await ``function()`` in a worker thread, from any event loop.

    Cancelling cancels the requests that ``function`` waits for and returns when they have ended,
    and ``function`` with them: in any case if it called `be_awaited`, else unless it waits for
    something other than requests. What it still returns then is
    handed to ``discard``.
    """
    leash = Leash()
    # When the thread has done with it; none before it begins.
    ends: list[Future[None]] = []
    depth = _depth.get()
    pool = _pools.setdefault(depth, Pool(f"aioxarray-worker-{depth}", _THREADS))
    # Popped, so that the thread holds nothing of it when this returns.
    functions = [function]
    outcome: Outcome[T] = Outcome()

    def work() -> None:
        _depth.set(depth + 1)
        ended: Future[None] = Future()
        ends.append(ended)
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
            # Without its requests it comes to its end, mostly; not in the middle of other code.
            for ended in ends:
                await _end_of(ended, None if leash.awaited else _UNWINDING_S)
            if outcome.has_result:
                # Cancelled in the moment in which it came.
                await until_done(pool.start(throw_away))
            raise
        return outcome.take()

    return await run_on(io_loop(), wait)


async def _end_of(call: Future[None], patience_s: float | None = None) -> None:
    """Wait for ``call``, however often this task is cancelled; without a hold on it.

    With ``patience_s``, it is waited for no longer than that.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    waiting = asyncio.ensure_future(ended.wait())
    await until_done(asyncio.ensure_future(asyncio.wait([waiting], timeout=patience_s)))
    waiting.cancel()
