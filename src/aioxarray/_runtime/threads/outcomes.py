"""Outcomes that are moved from thread to thread, so that only their taker holds them.

A future keeps its result, and the threads that it passed through keep the future for a moment after
the waiting thread has gone on. An object that the waiting thread drops in that moment would be
freed in another thread: a file of a library that bears one thread at a time would be closed there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """What a function returned or raised, until it is taken."""

    __slots__ = ("_errors", "_results")

    def __init__(self) -> None:
        # Their methods are atomic: one thread fills them, another one empties them.
        self._results: list[T] = []
        self._errors: list[BaseException] = []

    def of(self, function: Callable[[], T]) -> None:
        """Call ``function`` and keep what it returns or raises."""
        try:
            self._results.append(function())
        except BaseException as error:  # noqa: BLE001 - it belongs to the taker
            self._errors.append(error)

    async def of_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Await ``function()`` in a task, and keep what it returns or raises.

        That the task was cancelled is an error of `concurrent.futures` to whoever takes it.
        """
        try:
            self._results.append(await function())
        except asyncio.CancelledError:
            self._errors.append(concurrent.futures.CancelledError())
        except BaseException as error:  # noqa: BLE001 - it belongs to the taker
            self._errors.append(error)

    def fail(self, error: BaseException) -> None:
        """Keep ``error`` as what the function raised."""
        self._errors.append(error)

    def take(self) -> T:
        """Return or raise it, and keep nothing; to be called once."""
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()

    @property
    def has_result(self) -> bool:
        """Whether there is a result to be taken."""
        return bool(self._results)

    def results(self) -> Iterator[T]:
        """Yield the result that nobody has taken, if any, and keep nothing."""
        while True:
            try:
                result = self._results.pop()
            except IndexError:
                return
            yield result

    def drop(self) -> None:
        """Let go of it, in this thread."""
        self._errors.clear()
        self._results.clear()


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until ``future`` is done, however often this task is cancelled meanwhile."""
    while not future.done():
        # By a timeout and the group around it, say.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
