"""Measurement of how long an event loop was blocked."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

__all__ = ["StallMonitor"]


class StallMonitor:
    """Context manager that measures the worst stall of the running asyncio or Trio loop.

    A task sleeps repeatedly for a short time and records how late it wakes. The result depends on
    the machine and its load: print it in a demo or a benchmark, but do not assert on it.

    Parameters
    ----------
    interval_s : float, optional
        How long the task sleeps. Shorter stalls can be missed.
    now : callable, optional
        The clock, by default a real one. Do not use the monitor with a `VirtualClock`, whose time
        would advance with the monitor's sleeps and never stop.

    Attributes
    ----------
    worst_s : float
        The longest stall so far, in seconds.

    Examples
    --------
    >>> import asyncio
    >>> async def main():
    ...     async with StallMonitor() as stalls:
    ...         sum(range(1_000_000))  # a calculation that the loop has to wait for
    ...     return stalls.worst_s
    >>> asyncio.run(main()) > 0
    True
    """

    def __init__(
        self, interval_s: float = 0.001, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.worst_s = 0.0
        self._interval_s = interval_s
        self._now = now
        self._due_s = 0.0
        self._tasks: anyio.abc.TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<StallMonitor: worst {self.worst_s * 1000:.1f} ms>"

    def _note(self) -> None:
        self.worst_s = max(self.worst_s, self._now() - self._due_s)

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(self._interval_s)
            self._note()
            self._due_s = self._now() + self._interval_s

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("this monitor is already running: create another one")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._due_s = self._now() + self._interval_s
        self._tasks.start_soon(self._watch, name="stall monitor")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        self._note()  # a stall at the very end, which the task can no longer record
        tasks.cancel_scope.cancel()
        try:
            await tasks.__aexit__(exc_type, error, traceback)
        except BaseExceptionGroup:
            # The group wraps the body's error. Returning raises the original instead.
            if error is None:
                raise
