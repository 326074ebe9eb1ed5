"""Side-by-side work on the I/O loop in which nothing outlives an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import TypeVar

from anyio.lowlevel import checkpoint

T = TypeVar("T")

# How long a step may keep the loop.
_STEP_S = 0.002


async def gather(functions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await all of ``functions`` side by side and return their results in order.

    The first error cancels the others, waits for their end, and is raised as it is:
    ``asyncio.gather`` would leave the others running, ``asyncio.TaskGroup`` would wrap the
    error in a group. Cancelling cancels and awaits all.
    """
    listed = list(functions)
    if len(listed) == 1:
        return [await listed[0]()]
    return await _side_by_side(listed)


async def _side_by_side(listed: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    results: dict[int, T] = {}

    async def run(index: int, function: Callable[[], Awaitable[T]]) -> None:
        results[index] = await function()

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
    until = perf_counter() + _STEP_S
    for _ in work:
        if perf_counter() >= until:
            await checkpoint()
            until = perf_counter() + _STEP_S


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that came first in a group of errors or of groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
