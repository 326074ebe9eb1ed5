"""Memory of the caller that worker threads write into, and that is the caller's again afterwards.

A call that is cancelled need not wait for all of its threads: one may wait for a server. Values
that such a thread still writes into an array of the call's own are discarded with that. The
caller's memory may be in use again by then, so the writing has to end with the call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from aioxarray._runtime.threads.outcomes import until_done


class Lent:
    """The permission to write into memory of the caller, until `end`; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers = 0
        # Set once the permission has ended; done once the last writer is.
        self._ended: Future[None] | None = None

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Return a context that tells whether its body may write; `end` waits for the body.

        The body must not wait for anything. It may enter such a context itself.
        """
        with self._lock:
            may_write = self._ended is None
            self._writers += may_write
        try:
            yield may_write
        finally:
            if may_write:
                with self._lock:
                    self._writers -= 1
                    ended = self._ended if self._writers == 0 else None
                if ended is not None:
                    ended.set_result(None)

    async def end(self) -> None:
        """Allow no more writing, and wait for that in progress, even if cancelled meanwhile."""
        with self._lock:
            if self._ended is None:
                self._ended = Future()
                if self._writers == 0:
                    self._ended.set_result(None)
            ended = self._ended
        if not ended.done():
            await until_done(asyncio.wrap_future(ended))
