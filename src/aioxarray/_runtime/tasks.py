"""Side-by-side work on the I/O loop in which nothing outlives an error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, TypeVar

from anyio.lowlevel import checkpoint

from aioxarray._runtime.loops import io_loop, running_loop, waker

T = TypeVar("T")

# How long a step may keep the caller's loop.
_STEP_S = 0.002
# How long it may keep the I/O loop. Longer than the 5 ms after which another thread asks for
# Python's lock: a loop that lets go of it more often takes it back before others are awake.
_OWN_STEP_S = 0.01


async def gather(functions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await all of ``functions`` side by side and return their results in order.

    The first error cancels the others, waits for their end, and is raised as it is:
    ``asyncio.gather`` would leave the others running, ``asyncio.TaskGroup`` would wrap the
    error in a group. Cancelling cancels and awaits all.
    """
    results: dict[int, T] = {}

    async def run(index: int, function: Callable[[], Awaitable[T]]) -> None:
        results[index] = await function()

    listed = list(functions)
    if len(listed) == 1:
        return [await listed[0]()]
    try:
        async with asyncio.TaskGroup() as group:
            for index, function in enumerate(listed):
                group.create_task(run(index, function))
    except BaseExceptionGroup as errors:
        # Its own context would show the group, which says nothing more.
        raise first_error(errors) from None
    return [results[index] for index in range(len(listed))]


async def in_steps(work: Iterable[object]) -> None:
    """Iterate over ``work``, and let the loop, any library's, go on every few milliseconds.

    What takes less is not interrupted.
    """
    step_s = _OWN_STEP_S if running_loop() is io_loop() else _STEP_S
    until = perf_counter() + step_s
    for _ in work:
        if perf_counter() >= until:
            await checkpoint()
            until = perf_counter() + step_s


def after_return(work: Iterator[object]) -> None:
    """Iterate over ``work``: a few milliseconds now, then in callbacks of the running loop.

    For what has to be done in this thread, and keeps nobody waiting: a call that awaited it could
    be cancelled in the middle. What is left when the loop ends is left undone.

    On the I/O loop all is done before this returns. That loop's thread is not the caller's, who
    may use, after the call, a library that bears one thread at a time.
    """
    if running_loop() is io_loop():
        for _ in work:
            pass
        return
    soon = waker()

    def go_on() -> None:
        until = perf_counter() + _STEP_S
        for _ in work:
            if perf_counter() >= until:
                soon(go_on)
                return

    go_on()


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until ``future`` is done, however often this task is cancelled meanwhile."""
    while not future.done():
        # By a timeout and the group around it, say.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that came first in a group of errors or of groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
