"""Running coroutines concurrently on the I/O loop, without leaving any of them behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import TypeVar

from anyio.lowlevel import checkpoint

T = TypeVar("T")

# How long work may block the loop between two checkpoints.
_STEP_S = 0.002


async def gather(functions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await all ``functions()`` concurrently, and return their results in order.

    The first error cancels the others and, once they have ended, is raised unchanged:
    ``asyncio.gather`` would leave the others running, and ``asyncio.TaskGroup`` would wrap the
    error in a group. Cancelling cancels all and waits for their end.
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
        # ``from None``, because the group in the traceback would add nothing.
        raise first_error(errors) from None
    return [results[index] for index in range(len(listed))]


async def in_steps(work: Iterable[object]) -> None:
    """Iterate over ``work``, and yield to the event loop, of any library, every few milliseconds.

    Shorter work does not yield at all.
    """
    until = perf_counter() + _STEP_S
    for _ in work:
        if perf_counter() >= until:
            await checkpoint()
            until = perf_counter() + _STEP_S


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group of errors, or of groups of them."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
