"""The schedule of a read or a write: workers take runs of chunks until none is left."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from time import perf_counter
from typing import Generic, TypeVar

from aioxarray._runtime.crew import Crew, Team
from aioxarray._runtime.tasks import gather
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.grants import Grants

T = TypeVar("T")


class Schedule(Generic[T]):
    """Runs of chunks, which workers take one after another.

    A fixed number of workers, not a task per chunk: waiting tasks cost memory. The outcome of a
    chunk is whether it exists; a write has no outcomes.

    Parameters
    ----------
    runs
        The chunks; possibly an iterator, which is advanced by one worker at a time.
    advance
        Called on the loop with the number of further chunks that are done.
    """

    def __init__(
        self, runs: Iterable[Sequence[T]], advance: Callable[[int], None] = lambda count: None
    ) -> None:
        self._runs = iter(runs)
        self._advance = advance
        # A generator must not be advanced by two threads at once.
        self._lock = threading.Lock()
        # The number of chunks that have been taken.
        self._taken = 0
        # A byte for each chunk. With an object for each run of a million chunks, the garbage
        # collector would stop all threads for a tenth of a second, again and again.
        self._outcomes = bytearray()

    async def on_loop(
        self, width: int, handle: Callable[[Sequence[T]], Awaitable[Sequence[bool]]]
    ) -> list[bool]:
        """Await ``handle`` for each run, for up to ``width`` of them concurrently.

        ``handle`` returns an outcome for each chunk. The first error cancels the other workers.
        """

        async def worker() -> None:
            while (run := self._next()) is not None:
                first, chunks = run
                self._keep(first, await handle(chunks))
                self._advance(len(chunks))

        await gather([worker] * width)
        return self._in_order()

    async def by_crew(
        self,
        crew: Crew,
        count: int,
        handle: Callable[[T], Awaitable[bool]],
        most: float = math.inf,
    ) -> list[bool]:
        """Do the same as `on_loop` for ``count`` runs of one chunk, with workers of ``crew``.

        ``handle`` returns the outcome of its chunk, and ``most`` is the most workers.
        """

        async def step() -> None:
            run = self._next()
            assert run is not None, "the team takes no more than count runs"
            number, (chunk,) = run
            self._keep(number, (await handle(chunk),))
            self._advance(1)

        await Team(crew, count, step, most).work()
        return self._in_order()

    async def in_threads(
        self,
        grants: Grants,
        nbytes: int,
        handle: Callable[[Sequence[T]], Sequence[bool]],
        stop: threading.Event,
        *,
        exclusive: bool = False,
    ) -> list[bool]:
        """Call ``handle`` for each run in the threads of ``grants``.

        While all cores are busy, a hop to the event loop and back takes a thread about a
        millisecond, in which it could decode some MB. So a thread takes further runs by itself.
        Every few milliseconds it checks whether other work is waiting, and only then gives up its
        turn.

        Each thread holds ``nbytes`` bytes. ``handle`` returns early once ``stop`` is set; for
        ``stop`` and ``exclusive`` see `Grants.in_thread`.
        """
        loop = asyncio.get_running_loop()

        def work(run: tuple[int, Sequence[T]] | None) -> None:
            while run is not None and not stop.is_set():
                count = 0
                until = perf_counter() + tuning.TURN_S
                while run is not None:
                    first, chunks = run
                    self._keep(first, handle(chunks))
                    count += len(chunks)
                    if stop.is_set() or perf_counter() >= until:
                        break
                    run = self._next()
                loop.call_soon_threadsafe(self._advance, count)
                if grants.is_wanted():
                    break
                run = self._next()

        async def worker() -> None:
            # Take a run first, so that no worker waits for a thread without one.
            while (run := self._next()) is not None:
                await grants.in_thread(partial(work, run), nbytes, stop.set, exclusive=exclusive)

        await gather([worker] * grants.thread_count)
        return self._in_order()

    def _next(self) -> tuple[int, Sequence[T]] | None:
        """Return the next run and the number of chunks before it; None if there is no further."""
        with self._lock:
            run = next(self._runs, None)
            if run is None:
                return None
            first = self._taken
            self._taken += len(run)
            return first, run

    def _keep(self, first: int, outcomes: Sequence[bool]) -> None:
        """Keep the outcomes of a run, which begins with chunk ``first``."""
        end = first + len(outcomes)
        with self._lock:
            missing = end - len(self._outcomes)
            if missing > 0:
                self._outcomes.extend(bytes(missing))
            self._outcomes[first:end] = bytes(outcomes)

    def _in_order(self) -> list[bool]:
        return [outcome == 1 for outcome in self._outcomes]
