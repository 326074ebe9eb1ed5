"""Execution of a read plan for chunks: on the event loop, in threads, or with coroutines.

If blocking calls read the store best, chunks are read in runs: a thread fetches and decodes each
run straight into the result. From other stores, coroutines fetch as many chunks at once as the
load's budget allows, and threads decode them as they arrive.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from aioxarray._runtime.batches import Batches, one_by_one
from aioxarray._runtime.crew import Crew
from aioxarray._runtime.flights import Flight, Flights
from aioxarray._runtime.tasks import gather
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.plan import ReadPlan
from aioxarray._zarr.chunks.result import Result, read_chunk
from aioxarray._zarr.chunks.schedule import Schedule
from aioxarray._zarr.chunks.small_chunks import SmallChunks
from aioxarray._zarr.selection import in_runs
from aioxarray._zarr.stores.clients import Nearness
from aioxarray._zarr.stores.grants import Grants, is_long
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.servers.following import FollowingShare, most_at_once
from aioxarray._zarr.stores.servers.hosts import host_of
from aioxarray._zarr.stores.sharing import Sharing
from aioxarray._zarr.stores.sources import ObjectSource, Source

if TYPE_CHECKING:
    from aioxarray._zarr.selection import Chunk
    from aioxarray._zarr.stores.servers.measured import Measured

# Stands in for a limit on decoding.
_NOTHING = nullcontext()


class Advance:
    """Counts the chunks that are done, and reports the count and the total."""

    __slots__ = ("_count", "_done", "_report")

    def __init__(self, report: Callable[[int, int], None] | None, count: int) -> None:
        self._report = report
        self._count = count
        self._done = 0

    def __call__(self, number: int) -> None:
        self._done += number
        if self._report is not None:
            self._report(self._done, self._count)


@dataclass(frozen=True)
class ChunkReads:
    """The execution of a plan, with a method for each way; each returns which chunks exist.

    Attributes
    ----------
    plan
        The plan.
    limited
        The store, under the limit on requests.
    result
        The result that the chunks are read into.
    grants
        The grants of the load.
    flights
        Those that share chunks with other reads; None if nothing is shared.
    advance
        Called with the number of further chunks that are done.
    """

    plan: ReadPlan
    limited: LimitedStore
    result: Result
    grants: Grants
    flights: Flights | None
    advance: Callable[[int], None]

    @property
    def nbytes(self) -> int:
        """The decoded bytes of each chunk."""
        return self.plan.chunk_nbytes

    @property
    def held(self) -> int:
        """The bytes held for each chunk while it is read: encoded and, possibly, decoded."""
        return self.plan.held

    @cached_property
    def sharing(self) -> Sharing:
        """The access to parts that other reads are fetching, and to the cache."""
        return Sharing(self.flights, self.grants.keeps, self.grants.window)

    def noted(self, chunk: Chunk) -> chunk_noted:
        """Return a context that adds the key of ``chunk`` and the store to an error."""
        return chunk_noted(chunk.key, self.limited)

    def in_runs(self, width: int, run_bytes: int) -> Schedule[Chunk]:
        """Return the schedule of the chunks in runs for ``width`` threads."""
        plan = self.plan
        runs = in_runs(plan.chunks, plan.count, plan.chunk_nbytes, width, run_bytes)
        return Schedule(runs, self.advance)

    async def each(
        self, read: Callable[[Chunk], Awaitable[bool]], width: float | None = None
    ) -> list[bool]:
        """Await ``read`` for each chunk, for up to ``width`` of them concurrently.

        By default, as many are as the load's crew has workers for them.
        """
        if self.plan.count == 1:
            # Of a thousand calls that wait, the objects of a schedule would be a quarter of all.
            (chunk,) = self.plan.chunks
            with self.noted(chunk):
                found = [await read(chunk)]
            self.advance(1)
            return found

        async def read_one(chunk: Chunk) -> bool:
            with self.noted(chunk):
                return await read(chunk)

        if width is None:
            crew, most, advance = self.grants.crew, self._most_at_once(), self._following()
        else:
            crew, most, advance = Crew(width), math.inf, self.advance
        schedule: Schedule[Chunk] = Schedule(zip(self.plan.chunks), advance)
        return await schedule.by_crew(crew, self.plan.count, read_one, most)

    @property
    def _followed(self) -> tuple[FollowingShare, Measured] | None:
        """The share whose bound follows the latency of the server; None if it is fixed."""
        places = self.grants.requests
        host = host_of(self.limited.inner) if isinstance(places, FollowingShare) else None
        return None if host is None else (cast(FollowingShare, places), host.measured)

    def _most_at_once(self) -> float:
        """Return the most chunks to request at once: few if they are large."""
        followed = self._followed
        return math.inf if followed is None else most_at_once(followed[1], self.nbytes)

    def _following(self) -> Callable[[int], None]:
        """Let the bound on requests follow the server now, and while chunks arrive.

        Returns what to call with the number of further chunks that are done.
        """
        followed = self._followed
        if followed is None:
            return self.advance
        (places, measured), crew = followed, self.grants.crew
        arrived = 0

        def follow() -> None:
            places.follow(measured, self.nbytes)
            crew.widen(places.bound)

        def advance(count: int) -> None:
            nonlocal arrived
            if arrived % tuning.FOLLOWED_EVERY == 0:
                follow()
            arrived += count
            self.advance(count)

        follow()
        return advance

    # --- on the loop, and by plain calls in threads ------------------------------------------

    def inline(self, source: Source) -> list[bool]:
        """Read chunks in memory on the event loop: faster than a hop to a thread."""
        return self._read_unshared(source, self.plan.chunks)

    def _read_unshared(
        self, source: Source, chunks: Iterable[Chunk], stop: threading.Event | None = None
    ) -> list[bool]:
        found = []
        for chunk in chunks:
            if stop is not None and stop.is_set():
                break
            with self.noted(chunk):
                found.append(read_chunk(source, chunk, self.result))
        return found

    async def by_plain_calls(self, source: Source) -> list[bool]:
        """Read in threads, each of which fetches and decodes chunks with blocking calls."""
        stop = threading.Event()
        decoding = self.grants.decoding if source.remote else _NOTHING
        # Appends to the list, for each chunk that is done, whether it exists.
        read: Callable[[Sequence[Flight[Chunk]], list[bool]], None]
        are_small = SmallChunks.can_read(
            self.result.prepared, self.nbytes, keeps=self.sharing.keeps
        )
        if are_small:
            together = SmallChunks(
                self.limited, source, self.result, self.sharing, self.nbytes, decoding
            )
            read, held, exclusive = partial(together.read, stop=stop), together.held, False
        else:
            read = partial(self._read_in_thread, source, decoding, stop=stop)
            held, exclusive = self.held, self.nbytes <= tuning.SMALL_CHUNK_BYTES

        if not (self.sharing.shares or source.remote):

            def read_unshared(run: Sequence[Chunk]) -> list[bool]:
                if are_small:
                    return together.read_unshared(run, stop)
                return self._read_unshared(source, run, stop)

            schedule = self.in_runs(self.grants.thread_count, tuning.READ_RUN_BYTES)
            return await schedule.in_threads(
                self.grants, held, read_unshared, stop, exclusive=exclusive
            )

        async def lead(led: Sequence[Flight[Chunk]]) -> list[bool]:
            found: list[bool] = []
            work = partial(read, led, found)
            if not isinstance(source, ObjectSource):
                await self.grants.in_thread(work, held, stop.set, exclusive=exclusive)
            elif not await self.grants.fetch(source.client, work, held, stop.set):
                rest = led[len(found) :]
                found += await gather([partial(self._fetch, each) for each in rest])
            return found

        width = self._fetchers if source.remote else self.grants.thread_count
        return await self.in_runs(width, tuning.RUN_BYTES).on_loop(
            width, lambda run: self.sharing.read(self.result, run, lead, self.noted)
        )

    @property
    def _fetchers(self) -> int:
        """The number of threads that fetch from a nearby server, and decode what they fetched."""
        # Small chunks mostly run Python code, which further threads would not speed up.
        is_small = self.nbytes <= tuning.SMALL_CHUNK_BYTES
        return tuning.FETCHERS if is_small else self.grants.fetcher_count

    async def by_engine(self, source: Source) -> list[bool]:
        """Read with TensorStore, and by plain calls what it leaves.

        Which of the chunks that it reads exist is unknown: all are said to.
        """
        plan = self.plan
        assert plan.engine is not None
        done = await plan.engine.read(self.result, self.grants, self.advance, plan.store)
        rest: list[bool] = []
        if done < plan.count:
            remaining = itertools.islice(plan.chunks, done, None)
            rest = await self._of(remaining, plan.count - done).by_plain_calls(source)
        return [True] * done + rest

    def _read_in_thread(
        self,
        source: Source,
        decoding: Any,
        led: Sequence[Flight[Chunk]],
        found: list[bool],
        stop: threading.Event,
    ) -> None:
        for flight in led:
            if stop.is_set():
                break
            chunk = flight.part
            with self.noted(chunk), flight:
                data = source.read(chunk.key)
                if stop.is_set():
                    break
                with decoding:
                    found.append(self.sharing.put(self.result, data, flight))

    # --- by coroutines -----------------------------------------------------------------------

    async def by_coroutines(self) -> list[bool]:
        """Fetch chunks with the store's coroutines, and decode them in threads as they arrive."""

        async def read(chunk: Chunk) -> bool:
            flight = self.sharing.lead(self.result, chunk)
            if flight is not None:
                return await self._fetch(flight)
            (there,) = await self.sharing.read(self.result, [chunk], self._fetch_one)
            return there

        return await self.each(read)

    async def _fetch_one(self, led: Sequence[Flight[Chunk]]) -> list[bool]:
        return [await self._fetch(flight) for flight in led]

    async def _fetch(self, flight: Flight[Chunk]) -> bool:
        """Fetch a chunk with the store's coroutine and decode it; return whether it exists."""
        chunk = flight.part
        with self.noted(chunk), flight, self.grants.room(self.held) as room:
            data: Any = await self.limited.get(
                chunk.key, chunk.spec.prototype, room=room, check=self.plan.check
            )
            there = data is not None
            if there and not self.result.by_zarr:
                data = data.as_numpy_array()
            if self._is_decoded_here(there):
                self.sharing.put(self.result, data, flight)
            else:
                await self._batches.add((data, flight), self.nbytes)
        return there

    def _is_decoded_here(self, there: bool) -> bool:
        """Return whether a chunk, which exists if ``there``, is decoded on the event loop.

        For many chunks, the time would add up.
        """
        if not there:
            return self.nbytes <= tuning.INLINE_BYTES
        if self.result.by_zarr:
            return False
        return self.nbytes <= tuning.SMALL_CHUNK_BYTES or self.plan.nbytes <= tuning.INLINE_BYTES

    @cached_property
    def _batches(self) -> Batches[tuple[Any, Flight[Chunk]]]:
        """Decodes in threads, in batches, the chunks that have arrived."""
        # Not `self`, which holds these batches: the result of a read would live until a collection
        # of garbage.
        sharing, result = self.sharing, self.result

        def put(arrived: tuple[Any, Flight[Chunk]]) -> None:
            sharing.put(result, *arrived)

        threads = self.grants.thread_count
        return Batches(self.grants.decoders, threads, tuning.BATCH_BYTES, one_by_one(put), is_long)

    # --- by whichever suits the distance of the server ---------------------------------------

    async def by_first_answer(self, source: ObjectSource) -> list[bool]:
        """Read with blocking calls if the store answers quickly, otherwise with coroutines.

        The first such read of a load measures the time with its first chunk. The others wait for
        the outcome, but hardly longer than a nearby store takes.
        """
        remaining = iter(self.plan.chunks)
        present: list[bool] = []
        # Cached chunks do not show how fast the store answers.
        for chunk in remaining:
            known = self.sharing.known(self.result, chunk)
            if known is None:
                remaining = itertools.chain([chunk], remaining)
                break
            present += known
            self.advance(1)
            await self.sharing.keep_pace()
        rest = self._of(remaining, self.plan.count - len(present))
        return present + await rest._by_nearness(source)

    def _of(self, chunks: Iterable[Chunk], count: int) -> ChunkReads:
        """Return the reads of ``chunks``, a part of the plan."""
        return replace(self, plan=replace(self.plan, chunks=chunks, count=count))

    async def _by_nearness(self, source: ObjectSource) -> list[bool]:
        client, count = source.client, self.plan.count
        if count < tuning.FEW_CHUNKS or not self.grants.can_fetch(client):
            return await self.by_coroutines()
        nearness = self.grants.nearness.get(client)
        if nearness is not None:
            return await self._as_near(source, nearness)
        nearness = self.grants.nearness[client] = Nearness()
        remaining = iter(self.plan.chunks)
        head = self._of([next(remaining)], 1)
        tail = self._of(remaining, count - 1)

        async def first() -> list[bool]:
            found = await head.by_plain_calls(source)
            nearness.tell(source.shortest_s <= self._near_s())
            return found

        one, rest = await gather([first, lambda: tail._as_near(source, nearness)])
        return one + rest

    async def _as_near(self, source: ObjectSource, nearness: Nearness) -> list[bool]:
        if await nearness.within(tuning.LATE_S + self._near_s()):
            return await self.by_plain_calls(source)
        return await self.by_coroutines()

    def _near_s(self) -> float:
        """Return the longest time in seconds that a nearby store takes for a chunk."""
        return tuning.NEARBY_S + self.nbytes / tuning.NEARBY_BYTES_A_SECOND
