"""Running coroutines concurrently on the I/O loop, without leaving any of them behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from time import perf_counter
from typing import Any, TypeVar

from aioxarray._runtime.loops import io_loop, running_loop, waker

T = TypeVar("T")

# How long a step may block the caller's loop.
_STEP_S = 0.002
# How long a step may block the I/O loop. Longer than the 5 ms after which another thread requests
# the GIL: a loop that releases it more often takes it back before the other threads wake up.
_OWN_STEP_S = 0.01


async def gather(functions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await all ``functions()`` concurrently, and return their results in order.

    The first error cancels the others and, once they have ended, is raised unchanged:
    ``asyncio.gather`` would leave the others running, and ``asyncio.TaskGroup`` would wrap the
    error in a group. Cancelling cancels all and waits for their end.
    """
    listed = list(functions)
    if len(listed) == 1:
        return [await listed[0]()]
    results: dict[int, T] = {}

    async def run(index: int, function: Callable[[], Awaitable[T]]) -> None:
        results[index] = await function()

    try:
        async with asyncio.TaskGroup() as group:
            for index, function in enumerate(listed):
                group.create_task(run(index, function))
    except BaseExceptionGroup as errors:
        # With its own cause, because the group would add nothing to the traceback.
        first = first_error(errors)
        raise first from first.__cause__
    return [results[index] for index in range(len(listed))]


async def checkpoint() -> None:
    """Yield to the event loop, of any library."""
    if running_loop() is not None and asyncio.current_task() is not None:
        await asyncio.sleep(0)
        return
    from anyio import lowlevel

    await lowlevel.checkpoint()


async def in_steps(work: Iterable[object]) -> None:
    """Iterate over ``work``, and yield to the event loop, of any library, every few milliseconds.

    Shorter work does not yield at all.
    """
    step_s = _OWN_STEP_S if running_loop() is io_loop() else _STEP_S
    until = perf_counter() + step_s
    for _ in work:
        if perf_counter() >= until:
            await checkpoint()
            until = perf_counter() + step_s


def after_return(work: Iterator[object]) -> None:
    """Iterate over ``work`` for a few milliseconds, and then in callbacks of the running loop.

    For work that has to run in this thread, but that no call needs to await (if it did, the work
    could be cancelled halfway). Work that remains when the loop ends is not done.

    On the I/O loop, all work is done before this returns: that loop has its own thread, and the
    caller's thread may next use a library that is not thread-safe.
    """
    if running_loop() is io_loop():
        for _ in work:
            pass
        return
    soon = waker(running_loop())

    def go_on() -> None:
        until = perf_counter() + _STEP_S
        for _ in work:
            if perf_counter() >= until:
                soon(go_on)
                return

    go_on()


def without_waiting(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``coroutine``, which never waits; with or without a running loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits for something")


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group of errors, or of groups of them."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
