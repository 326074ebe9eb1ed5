"""Blocking calls made in another thread, so that the thread that waits for one can be let go.

A library that calls back into Python to read a file holds its locks meanwhile. If the file's
server stalls, the call cannot be ended, but the wait for it can: with an error, which the library
hands on as it gives up its locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Generic, TypeVar

from aioxarray._runtime.crew import cancelled_at_exit
from aioxarray._runtime.leash import on_leash
from aioxarray._runtime.threads import Call, Pool

T = TypeVar("T")


def detour(pool: Pool, function: Callable[[], T]) -> T:
    """Return ``function()``, called in a thread of ``pool``; block this thread till then.

    Raises CancelledError, with ``function`` going on unheard, when the task that this thread works
    for is cancelled, and when the interpreter ends.
    """
    way = _Detour(function)
    with on_leash(way), cancelled_at_exit(way.cancel):
        pool.submit(way.call)
        return way.outcome.result()


class _Detour(Generic[T]):
    """A call in another thread, as one that a leash can hold."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.outcome: Future[T] = Future()
        self.call = Call(self._work)
        self._function = function

    def _work(self) -> None:
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            self._fail(error)
        else:
            with suppress(InvalidStateError):
                self.outcome.set_result(result)

    def _fail(self, error: BaseException) -> None:
        # Whichever comes first, the end of the call or that of the wait.
        with suppress(InvalidStateError):
            self.outcome.set_exception(error)

    def cancel(self) -> None:
        """End the wait, from any thread."""
        self._fail(asyncio.CancelledError())
        self.call.give_up()
