"""Running the coroutines of codecs in a worker thread, without a real event loop.

zarr's codecs are coroutines that hand their work to a thread (``asyncio.to_thread``). In a decoding
thread that hop is unnecessary: here the work runs in place.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoFiles:
    """A selector for an event loop without files, which only waits for the next timer."""

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("a codec awaits something that never happens in a decoding thread")
        if timeout > 0:
            time.sleep(timeout)
        return []

    def close(self) -> None:
        pass


class _InlineLoop(asyncio.BaseEventLoop):
    """An event loop that opens no files, and runs functions for executors in place."""

    def __init__(self) -> None:
        super().__init__()
        # asyncio's base class leaves these two to the subclass.
        self._selector = _NoFiles()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - raised where the future is awaited
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def __del__(self) -> None:
        # The base class warns if a loop was not closed; this one has nothing to close.
        pass


_of_thread = threading.local()


def run_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine``, which must not wait for files or sockets, in this thread."""
    loop = getattr(_of_thread, "loop", None)
    if loop is None:
        loop = _of_thread.loop = _InlineLoop()
    result: T = loop.run_until_complete(coroutine)
    return result
