"""Outcomes: results that move between threads, and are referenced only by their receiver.

A future keeps its result, and the threads that it passed through keep the future for a moment after
the waiting thread has gone on. If the waiting thread drops the result at that moment, it is freed
in another thread: a file of a library that supports only one thread would be closed there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """The result or error of a function, until it is taken."""

    __slots__ = ("_errors", "_results")

    def __init__(self) -> None:
        # Lists, whose methods are atomic: one thread fills them, another one empties them.
        self._results: list[T] = []
        self._errors: list[BaseException] = []

    def of(self, function: Callable[[], T]) -> None:
        """Call ``function``, and keep its result or error."""
        try:
            self._results.append(function())
        except BaseException as error:  # noqa: BLE001 - it belongs to the taker
            self._errors.append(error)

    async def of_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Await ``function()`` in a task, and keep its result or error.

        If the task is cancelled, the error is `concurrent.futures.CancelledError`.
        """
        try:
            self._results.append(await function())
        except asyncio.CancelledError:
            self._errors.append(concurrent.futures.CancelledError())
        except BaseException as error:  # noqa: BLE001 - it belongs to the taker
            self._errors.append(error)

    def fail(self, error: BaseException) -> None:
        """Keep ``error`` as the error of the function."""
        self._errors.append(error)

    def take(self) -> T:
        """Return the result or raise the error, and keep neither; to be called once."""
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()

    @property
    def has_result(self) -> bool:
        """Whether there is a result to take."""
        return bool(self._results)

    def results(self) -> Iterator[T]:
        """Yield the result if it has not been taken, and do not keep it."""
        while True:
            try:
                result = self._results.pop()
            except IndexError:
                return
            yield result

    def drop(self) -> None:
        """Free the result or error in this thread."""
        self._errors.clear()
        self._results.clear()


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until ``future`` is done, even if this task is cancelled repeatedly."""
    while not future.done():
        # Cancelled again, for example by a timeout and its task group.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
