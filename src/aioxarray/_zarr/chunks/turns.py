"""Has threads take runs of chunks by themselves, one after the other, while nobody else waits.

A hop to the event loop and back takes a thread about a millisecond while all cores are busy: time
for some MB. So a thread that has a turn keeps it, and only hears at its end, every few
milliseconds, whether another load waits for what it has.
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

# How long others may wait for a thread. What a turn costs is little beside it.
_TURN_S = 0.01


class Turns:
    """Runs of chunks, for threads to take.

    Parameters
    ----------
    runs
        The chunks.
    read
        Reads a run; returns which of its chunks were there. It returns early once ``stop`` is set.
    advance
        Told on the loop, after each turn, how many more chunks are done.
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
        """Have the runs read in the threads of ``grants``; say which chunks were there.

        Each thread has ``size`` bytes in flight; for ``stop`` and ``alone`` see
        `Grants.in_thread`.
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
            # Only who has a run waits for a thread to read it.
            while (run := self._next()) is not None:
                await grants.in_thread(partial(work, run), size, stop.set, alone=alone)

        await gather([worker] * grants.thread_count)
        return [there for number in range(len(self._present)) for there in self._present[number]]

    def _turn(self, run: _Run | None, stop: threading.Event) -> int:
        """Read ``run``, and others for a moment; return how many chunks they had."""
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
        # Iterators that are Python code must not be asked by two threads at once.
        with self._lock:
            return next(self._runs, None)
