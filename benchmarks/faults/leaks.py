"""What a call leaves behind: requests, tasks, work in threads, budgets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aioxarray._runtime.loops import io_loop
from aioxarray._runtime.threads import pool
from aioxarray._zarr.stores import grants, sharing
from aioxarray.testing import ObjectServer

# A client may close the connection of a cancelled request a moment later.
GRACE_S = 2.0

_BUDGETS = (grants.requests, grants.memory, grants.threads, grants.fetching)


class Watch:
    """What there is before a call, to tell what it leaves behind.

    Parameters
    ----------
    server
        The server of the call.
    """

    def __init__(self, server: ObjectServer) -> None:
        self._server = server
        # A client keeps some for as long as it lives.
        self._before = _tasks()

    def left(self) -> list[str]:
        """Return what is left when the call has ended, some time having been given."""
        until = time.monotonic() + GRACE_S
        while (left := self._now()) and time.monotonic() < until:
            time.sleep(0.01)
        return left

    def _now(self) -> list[str]:
        found = []
        if count := self._server.log.in_flight:
            found.append(f"{count} requests at the server")
        tasks = _tasks() - self._before
        if tasks:
            names = sorted({_name(task) for task in tasks})
            found.append(f"{len(tasks)} tasks ({', '.join(names)})")
        for budget in _BUDGETS:
            now = budget.statistics()
            if now.in_use or now.waiting or now.shares:
                found.append(f"{budget.unit}: {now}")
        if flights := sharing.statistics().flights:
            found.append(f"{flights} shared reads")
        for each in tuple(pool._pools):
            if queued := each.statistics().queued:
                found.append(f"{queued} functions in the threads {each._name}")
        return found


def _tasks() -> set[asyncio.Task[object]]:
    return _on_io_loop(lambda: {each for each in asyncio.all_tasks() if not _is_own(each)})


def _on_io_loop(function: Callable[[], set[asyncio.Task[object]]]) -> set[asyncio.Task[object]]:
    async def call() -> set[asyncio.Task[object]]:
        return function()

    return asyncio.run_coroutine_threadsafe(call(), io_loop()).result()


def _is_own(task: asyncio.Task[object]) -> bool:
    return "_on_io_loop" in _name(task)


def _name(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", str(task.get_coro()))
