"""Running blocking code of other libraries in worker threads, where it may call this package."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from aioxarray._runtime.loops import io_loop, run_on
from aioxarray._runtime.queueing import current_ticket
from aioxarray._runtime.threads.cancel_scope import CancelScope
from aioxarray._runtime.threads.outcomes import Outcome, until_done
from aioxarray._runtime.threads.pool import Pool

T = TypeVar("T")

# Such code mostly waits for requests on the I/O loop.
_THREADS = 32

# How long to wait for a cancelled function to return.
_UNWINDING_S = 0.5

# The nesting depth of worker threads that wait for other worker threads. Each depth has its own
# pool: in a shared one, waiting calls could leave no threads for the calls that they wait for.
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("aioxarray_depth", default=0)
_pools: dict[int, Pool] = {}


def _drop(result: object) -> None:
    """Discard a result that has nothing to close."""


async def in_worker(function: Callable[[], T], discard: Callable[[T], object] = _drop) -> T:
    """Await ``function()`` in a worker thread, from any event loop.

    Cancelling cancels the requests that ``function`` waits for, and returns when they and
    ``function`` have ended. Unless it has called `be_awaited`, the wait for ``function`` itself is
    limited to half a second. A result that it still returns is passed to ``discard``.
    """
    scope = CancelScope()
    # One future, done when the thread is; empty before it starts.
    ends: list[Future[None]] = []
    depth = _depth.get()
    pool = _pools.setdefault(depth, Pool(f"aioxarray-worker-{depth}", _THREADS))
    # Popped, so that the thread holds no reference to it when this returns.
    functions = [function]
    outcome: Outcome[T] = Outcome()

    def work() -> None:
        _depth.set(depth + 1)
        if (ticket := current_ticket()) is not None:
            ticket.serve()
        ended: Future[None] = Future()
        ends.append(ended)
        try:
            outcome.of(lambda: scope.run(functions.pop()))
            if scope.cancelled:
                throw_away()
        finally:
            ended.set_result(None)

    def throw_away() -> None:
        for result in outcome.results():
            discard(result)

    async def wait() -> T:
        ticket = current_ticket()
        if ticket is not None and pool.is_full:
            ticket.wait()
        try:
            await pool.run(work)
        except asyncio.CancelledError:
            for call in scope.cancel():
                await _end_of(call)
            # Without its requests it usually ends soon, unless it waits for something else.
            for ended in ends:
                await _end_of(ended, None if scope.awaited else _UNWINDING_S)
            if outcome.has_result:
                # Cancelled at the moment when the result arrived.
                await until_done(pool.start(throw_away))
            raise
        return outcome.take()

    return await run_on(io_loop(), wait)


async def _end_of(call: Future[None], patience_s: float | None = None) -> None:
    """Wait until ``call`` is done, even if this task is cancelled repeatedly.

    With ``patience_s``, wait at most that many seconds. ``call`` itself is not cancelled.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    waiting = asyncio.ensure_future(ended.wait())
    await until_done(asyncio.ensure_future(asyncio.wait([waiting], timeout=patience_s)))
    waiting.cancel()
