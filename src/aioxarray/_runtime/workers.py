"""Other people's blocking code in worker threads, with its own blocking calls into this package."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from aioxarray._runtime.leash import Leash
from aioxarray._runtime.loops import io_loop, run_on
from aioxarray._runtime.threads import Pool

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
    and ``function`` with them, unless that waits for something else; what it still returns then is
    handed to ``discard``.
    """
    leash = Leash()
    # A result that nobody waits for any more is discarded, by whichever of the two sees it.
    results: deque[T] = deque()
    # When the thread has done with it; none before it begins.
    ends: list[Future[None]] = []
    depth = _depth.get()
    pool = _pools.setdefault(depth, Pool(f"aioxarray-worker-{depth}", _THREADS))

    def work() -> T:
        end: Future[None] = Future()
        ends.append(end)
        try:
            _depth.set(depth + 1)
            result = leash.run(function)
            results.append(result)
            if leash.pulled:
                throw_away()
                raise asyncio.CancelledError
            return result
        finally:
            end.set_result(None)

    def throw_away() -> None:
        try:
            result = results.pop()
        except IndexError:
            return
        discard(result)

    async def wait() -> T:
        try:
            result = await pool.run(work)
        except asyncio.CancelledError:
            for outcome in leash.pull():
                await _end_of(outcome)
            # Without its requests it comes to its end, mostly; not in the middle of other code.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNWINDING_S):
                    for end in ends:
                        await _end_of(end)
            if results:
                await asyncio.wait([pool.start(throw_away)])
            raise
        results.clear()
        return result

    return await run_on(io_loop(), wait)


async def _end_of(outcome: Future[Any]) -> None:
    """Wait for ``outcome``; unlike `asyncio.wrap_future`, without a hold on it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    outcome.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    await ended.wait()
