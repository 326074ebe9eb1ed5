"""Reading runs of chunks in threads that keep their turn until other work waits for them.

While all cores are busy, a hop to the event loop and back takes a thread about a millisecond, in
which it could decode some MB. So a thread takes further runs by itself. Every few milliseconds it
checks whether other work is waiting, and only then gives up its turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.stores.grants import Grants

if TYPE_CHECKING:
    from aioxarray._zarr.selection import Chunk

    _Run = tuple[int, Sequence[Chunk]]

# How long other work may wait for a thread. The cost of a turn is small in comparison.
_TURN_S = 0.01


class Turns:
    """Runs of chunks, which threads take one after another.

    Parameters
    ----------
    runs
        The chunks.
    read
        Reads a run, and returns which of its chunks exist; ends early once ``stop`` is set.
    advance
        Called on the loop after each turn with the number of further chunks that are done.
    """

    def __init__(
        self,
        runs: Iterator[Sequence[Chunk]],
        read: Callable[[Sequence[Chunk]], list[bool]],
        advance: Callable[[int], None],
    ) -> None:
        self._runs = enumerate(runs)
        self._read = read
        self._advance = advance
        self._lock = threading.Lock()
        self._present: dict[int, list[bool]] = {}

    async def take_all(
        self, grants: Grants, size: int, stop: threading.Event, *, alone: bool = False
    ) -> list[bool]:
        """Read the runs in the threads of ``grants``; return which chunks exist.

        Each thread holds ``size`` bytes; for ``stop`` and ``alone`` see `Grants.in_thread`.
        """
        loop = asyncio.get_running_loop()

        def work(run: _Run | None) -> None:
            while run is not None and not stop.is_set():
                count = self._turn(run, stop)
                loop.call_soon_threadsafe(self._advance, count)
                if grants.is_wanted():
                    break
                run = self._next()

        async def worker() -> None:
            # Take a run first, so that no worker waits for a thread without one.
            while (run := self._next()) is not None:
                await grants.in_thread(partial(work, run), size, stop.set, alone=alone)

        await gather([worker] * grants.thread_count)
        return [there for number in range(len(self._present)) for there in self._present[number]]

    def _turn(self, run: _Run | None, stop: threading.Event) -> int:
        """Read ``run``, and further runs for `_TURN_S`; return the number of chunks."""
        count = 0
        until = perf_counter() + _TURN_S
        while run is not None:
            number, chunks = run
            self._present[number] = self._read(chunks)
            count += len(chunks)
            if stop.is_set() or perf_counter() >= until:
                break
            run = self._next()
        return count

    def _next(self) -> _Run | None:
        # A generator must not be advanced by two threads at once.
        with self._lock:
            return next(self._runs, None)
