"""Execution of a read plan for chunks: on the event loop, in threads, or with coroutines.

If blocking calls read the store best, chunks are read in runs: a thread fetches and decodes each
run straight into the result. From other stores, coroutines fetch as many chunks at once as the
load's budget allows, and threads decode them as they arrive.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.batches import Batches
from aioxarray._runtime.tasks import gather
from aioxarray._zarr.chunks.placing import Placer
from aioxarray._zarr.chunks.plan import INLINE_BYTES, ReadPlan
from aioxarray._zarr.chunks.small_chunks import SMALL_BYTES, SmallChunks
from aioxarray._zarr.chunks.turns import Turns
from aioxarray._zarr.selection import in_runs
from aioxarray._zarr.stores.clients import FETCHERS, Nearness
from aioxarray._zarr.stores.grants import Grants, is_long
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sharing import Lead, Sharing, Table
from aioxarray._zarr.stores.sources import ObjectSource, Source

if TYPE_CHECKING:
    from aioxarray._zarr.selection import Chunk

# A hop to a thread costs about as much as decoding this many bytes.
_BATCH_BYTES = 1 << 20
# The bytes of a run that a thread takes at once when nothing is shared.
_RUN_BYTES = 2 << 20
# Fewer requests than this are as fast with coroutines, however near the server.
_FEW_CHUNKS = 8
# A store is nearby if it answers within this time plus that for the bytes. With a slower one,
# coroutines make more requests per second than threads, although each costs more.
_AT_ONCE_S = 0.005
_BYTES_A_SECOND = 100e6
# At the start of a load the I/O loop is busy, and notices an answer later by up to this time.
_PATIENCE_S = 0.015
# Stands in for a flight, for chunks that are not shared.
_ALONE = nullcontext()


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
class Job:
    """The execution of a plan, with a method for each way; each returns which chunks exist.

    Attributes
    ----------
    plan
        The plan.
    table
        The chunks that are shared with other jobs; None if nothing is shared.
    advance
        Called with the number of further chunks that are done.
    """

    plan: ReadPlan
    limited: LimitedStore
    placer: Placer
    grants: Grants
    table: Table | None
    advance: Callable[[int], None]

    @property
    def chunks(self) -> Iterable[Chunk]:
        """The chunks of the plan."""
        return self.plan.chunks

    @property
    def count(self) -> int:
        """The number of chunks."""
        return self.plan.count

    @property
    def size(self) -> int:
        """The decoded bytes of each chunk."""
        return self.plan.chunk_nbytes

    def _of(self, chunks: Iterable[Chunk], count: int) -> Job:
        """Return the job of reading ``chunks``, a part of the plan."""
        return replace(self, plan=replace(self.plan, chunks=chunks, count=count))

    @cached_property
    def sharing(self) -> Sharing[Chunk, bool]:
        """The access to chunks that other jobs are reading, and to the cache."""
        return Sharing(self.table, self.placer, self.grants.keeps)

    def at_once(self, source: Source) -> list[bool]:
        """Read chunks in memory on the event loop: faster than a hop to a thread."""
        found = []
        for chunk in self.chunks:
            with chunk_noted(chunk[0], self.limited):
                found.append(self.placer.read(source, chunk))
        return found

    @property
    def held(self) -> int:
        """The bytes held for each chunk while it is read: encoded and, possibly, decoded."""
        return self.size * (2 if self.sharing.keeps else self.placer.held_chunks)

    async def by_plain_calls(self, source: Source) -> list[bool]:
        """Read in threads, each of which fetches and decodes chunks with blocking calls."""
        stop = threading.Event()
        remote = isinstance(source, ObjectSource)
        if not (self.sharing.shares or remote):
            return await self._straight(source, stop)
        decoding = self.grants.decoding if remote else _ALONE
        together = self._together(source, decoding)

        def read(led: Sequence[Lead[Chunk]]) -> list[bool]:
            found = []
            for lead in led:
                if stop.is_set():
                    break
                chunk, flight = lead
                with chunk_noted(chunk[0], self.limited), flight or _ALONE:
                    data = source.read(chunk[0])
                    if stop.is_set():
                        break
                    with decoding:
                        found.append(self.sharing.put(data, lead))
            return found

        async def in_thread(led: Sequence[Lead[Chunk]]) -> list[bool]:
            work, held = partial(read, led), self.held
            if together is not None:
                work, held = partial(together.read, led, stop), together.held
            if not isinstance(source, ObjectSource):
                alone = self.size <= SMALL_BYTES
                return await self.grants.in_thread(work, held, stop.set, alone=alone)
            found = await self.grants.fetch(source.client, work, held, stop.set)
            if found is None:
                # Nothing was requested.
                found = await gather([partial(self._fetch, lead) for lead in led])
            return found

        def noting(chunk: Chunk) -> chunk_noted:
            return chunk_noted(chunk[0], self.limited)

        width = FETCHERS if remote else self.grants.thread_count
        return await self._run_by_run(lambda run: self.sharing.read(run, in_thread, noting), width)

    async def _straight(self, source: Source, stop: threading.Event) -> list[bool]:
        """Read chunks that are not shared with other jobs."""
        together = self._together(source, _ALONE)
        if together is not None:

            def read_together(run: Sequence[Chunk]) -> list[bool]:
                return together.read([(chunk, None) for chunk in run], stop)

            return await self.by_turns(read_together, together.held, stop)

        read = self.one_by_one(partial(self.placer.read, source), stop)
        return await self.by_turns(read, self.held, stop, alone=self.size <= SMALL_BYTES)

    def _together(
        self, source: Source, decoding: AbstractContextManager[Any]
    ) -> SmallChunks | None:
        """Return a reader that decodes many chunks with one call; None if that does not help."""
        if not SmallChunks.can_read(self.placer, self.sharing, self.size):
            return None
        return SmallChunks(self.limited, source, self.placer, self.sharing, self.size, decoding)

    def one_by_one(
        self, read: Callable[[Chunk], bool], stop: threading.Event
    ) -> Callable[[Sequence[Chunk]], list[bool]]:
        """Return a function that reads a run with ``read``, and ends early once ``stop`` is set."""

        def read_run(run: Sequence[Chunk]) -> list[bool]:
            found = []
            for chunk in run:
                if stop.is_set():
                    break
                with chunk_noted(chunk[0], self.limited):
                    found.append(read(chunk))
            return found

        return read_run

    async def by_turns(
        self,
        read: Callable[[Sequence[Chunk]], list[bool]],
        held: int,
        stop: threading.Event,
        *,
        alone: bool = False,
    ) -> list[bool]:
        """Read runs of chunks that are not shared, in threads that are held until others wait.

        ``read`` reads a run, with ``held`` bytes; it returns early once ``stop`` is set.
        """
        width = self.grants.thread_count
        runs = in_runs(self.chunks, self.count, self.size, width, _RUN_BYTES)
        return await Turns(runs, read, self.advance).take_all(self.grants, held, stop, alone=alone)

    async def _run_by_run(
        self, read: Callable[[Sequence[Chunk]], Awaitable[list[bool]]], width: int
    ) -> list[bool]:
        """Await ``read`` for each run of chunks, up to ``width`` of them concurrently."""
        present: dict[int, list[bool]] = {}
        todo = iter(enumerate(in_runs(self.chunks, self.count, self.size, width)))

        async def work() -> None:
            for number, run in todo:
                present[number] = await read(run)
                self.advance(len(run))

        await gather([work] * width)
        return [there for number in range(len(present)) for there in present[number]]

    async def by_coroutines(self) -> list[bool]:
        """Fetch chunks with the store's coroutines, and decode them in threads as they arrive."""
        return await self.side_by_side(self._read)

    async def _read(self, chunk: Chunk) -> bool:
        (there,) = await self.sharing.read([chunk], self._fetch_all)
        self.advance(1)
        return there

    async def _fetch_all(self, led: Sequence[Lead[Chunk]]) -> list[bool]:
        found = []
        for lead in led:
            found.append(await self._fetch(lead))
        return found

    @cached_property
    def _batches(self) -> Batches[tuple[Any, Lead[Chunk]]]:
        """Decodes in threads, in batches, the chunks that have arrived."""

        def put(batch: Sequence[tuple[Any, Lead[Chunk]]]) -> list[Exception | None]:
            errors: list[Exception | None] = []
            for data, lead in batch:
                try:
                    self.sharing.put(data, lead)
                except Exception as error:  # noqa: BLE001 - raised by the chunk's own worker
                    errors.append(error)
                else:
                    errors.append(None)
            return errors

        grants = self.grants
        return Batches(grants.decoders, grants.thread_count, _BATCH_BYTES, put, is_long)

    def _is_decoded_here(self, there: bool) -> bool:
        """Return whether a chunk, which exists if ``there``, is decoded on the event loop.

        For many chunks, the time would add up.
        """
        if not there:
            return self.size <= INLINE_BYTES
        return self.size * self.count <= INLINE_BYTES and not self.placer.by_zarr

    async def _fetch(self, lead: Lead[Chunk]) -> bool:
        """Fetch a chunk with the store's coroutine and decode it; return whether it exists."""
        chunk, flight = lead
        grants = self.grants
        long = is_long(self.held)
        with chunk_noted(chunk[0], self.limited), flight or _ALONE:
            async with grants.memory.hold(self.held, long=long):
                data: Any = await self.limited.get(chunk[0], chunk[1].prototype, long=long)
                there = data is not None
                if there and not self.placer.by_zarr:
                    data = data.as_numpy_array()
                if self._is_decoded_here(there):
                    self.sharing.put(data, lead)
                else:
                    await self._batches.add((data, lead), self.size)
        return there

    async def by_what_answers(self, source: ObjectSource) -> list[bool]:
        """Read with blocking calls if the store answers quickly, otherwise with coroutines.

        The first such read of a load measures the time with its first chunk. The others wait for
        the outcome, but hardly longer than a nearby store takes.
        """
        remaining = iter(self.chunks)
        present: list[bool] = []
        # Cached chunks do not show how fast the store answers.
        for chunk in remaining:
            known = self.sharing.known(chunk)
            if known is None:
                remaining = itertools.chain([chunk], remaining)
                break
            present += known
            self.advance(1)
            await self.sharing.breathe()
        rest = self._of(remaining, self.count - len(present))
        return present + await rest._by_nearness(source)

    async def _by_nearness(self, source: ObjectSource) -> list[bool]:
        client = source.client
        if self.count < _FEW_CHUNKS or not self.grants.can_fetch(client):
            return await self.by_coroutines()
        nearness = self.grants.nearness.get(client)
        if nearness is not None:
            return await self._as_near(source, nearness)
        nearness = self.grants.nearness[client] = Nearness()
        remaining = iter(self.chunks)
        head = self._of([next(remaining)], 1)
        tail = self._of(remaining, self.count - 1)

        async def first() -> list[bool]:
            found = await head.by_plain_calls(source)
            nearness.tell(source.shortest_s <= self._near_s())
            return found

        one, rest = await gather([first, lambda: tail._as_near(source, nearness)])
        return one + rest

    async def _as_near(self, source: ObjectSource, nearness: Nearness) -> list[bool]:
        if await nearness.within(_PATIENCE_S + self._near_s()):
            return await self.by_plain_calls(source)
        return await self.by_coroutines()

    def _near_s(self) -> float:
        """Return the longest time in seconds that a nearby store takes for a chunk."""
        return _AT_ONCE_S + self.size / _BYTES_A_SECOND

    async def side_by_side(
        self, read: Callable[[Chunk], Awaitable[bool]], width: float | None = None
    ) -> list[bool]:
        """Await ``read`` for each chunk, up to ``width`` of them concurrently.

        The default is the bound on requests in flight.
        """
        width = self.grants.requests.bound if width is None else width
        if self.count == 1:
            (chunk,) = self.chunks
            with chunk_noted(chunk[0], self.limited):
                return [await read(chunk)]
        return await self._by_workers(read, int(min(self.count, width)))

    async def _by_workers(self, read: Callable[[Chunk], Awaitable[bool]], width: int) -> list[bool]:
        present: dict[int, bool] = {}
        # A fixed number of workers, not a task per chunk: waiting tasks cost memory.
        todo = iter(enumerate(self.chunks))

        async def work() -> None:
            for number, chunk in todo:
                with chunk_noted(chunk[0], self.limited):
                    present[number] = await read(chunk)

        await gather([work] * width)
        return [present[number] for number in range(len(present))]
