"""Execution of a read plan for shards: the index first, then only the byte ranges needed.

Inner chunks and indexes that are cached, or that another read is fetching, are not read again.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import RangeByteRequest, SuffixByteRequest

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.chunks.jobs import Job
from aioxarray._zarr.chunks.shards import Indexes, InnerChunks, ShardPart, ShardReader, gaps
from aioxarray._zarr.chunks.small_chunks import SMALL_BYTES
from aioxarray._zarr.stores.grants import is_long
from aioxarray._zarr.stores.sharing import Lead, Sharing, failing
from aioxarray._zarr.stores.sources import LocalSource, ReadPart

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray._zarr.chunks.shards import Index, Wanted
    from aioxarray._zarr.selection import Chunk, Range

T = TypeVar("T")

# In a local file, reading a gap of up to this many bytes between inner chunks costs nothing.
_PAGE = 4 << 10
# The most bytes of a local shard that are read at once.
_RANGE_BYTES = 4 << 20


class ShardJob(ABC):
    """A job that reads shards.

    Parameters
    ----------
    job
        The job; its chunks are shards, and its table shares indexes and inner chunks.
    shards
        The reader of the array's shards.
    """

    def __init__(self, job: Job, shards: ShardReader) -> None:
        self.job = job
        self.shards = shards
        self.indexes = Sharing(job.table, Indexes(), job.grants.keeps)
        self.inner = Sharing(job.table, InnerChunks(), job.grants.keeps)
        # Set to make the threads of this job stop.
        self.stop = threading.Event()

    @abstractmethod
    async def read_all(self) -> list[bool]:
        """Read the selected inner chunks of all shards; return which shards exist."""

    async def read(self, chunk: Chunk) -> bool:
        """Read the selected inner chunks of a shard; return whether the shard exists."""
        part = self.shards.part(chunk)
        known = self.indexes.known(part)
        if known is not None and known[0] is None:
            part.missing()
            part.exists = False
        else:
            wanted = [(part, inner) for inner in part.inner]
            found = await self.inner.read(wanted, partial(self.lead, part))
            part.finish()
            if part.exists is None:
                part.exists = any(found) or await self.index(part) is not None
        self.job.advance(1)
        return part.exists

    @abstractmethod
    async def lead(self, part: ShardPart, led: Sequence[Lead[Wanted]]) -> list[bool]:
        """Read inner chunks of a shard; return which of them exist."""

    async def index(self, part: ShardPart) -> Index | None:
        """Return the index of a shard; None if the shard does not exist."""
        (index,) = await self.indexes.read([part], self.read_index)
        return index

    @abstractmethod
    async def read_index(self, led: Sequence[Lead[ShardPart]]) -> list[Index | None]:
        """Read the index of one shard."""

    def ranges(
        self,
        part: ShardPart,
        index: Index | None,
        led: Sequence[Lead[Wanted]],
        gaps: tuple[int, int],
    ) -> tuple[list[Range], list[bool]]:
        """Return the byte ranges to read, and which inner chunks exist; fill the others."""
        part.exists = index is not None
        with failing(led):
            ranges, there = part.ranges(index, led, gaps)
        for lead, exists in zip(led, there, strict=True):
            if not exists:
                self.inner.put(None, lead)
        return ranges, there

    def put(self, data: Any | None, of: Range) -> None:
        """Decode the inner chunks in ``data``, the bytes of the range ``of``."""
        start, stop, leads = of
        if data is None:
            # The shard was deleted after its index was read. zarr treats that as a missing shard.
            for _, _, lead in leads:
                self.inner.put(None, lead)
            return
        if len(data) != stop - start:
            with failing([lead for _, _, lead in leads]):
                raise ValueError(f"the shard ends before byte {stop}: it is truncated")
        for first, last, lead in leads:
            if self.stop.is_set():
                return
            try:
                self.inner.put(data[first - start : last - start], lead)
            except Exception as error:
                error.add_note(f"in inner chunk {lead[0][1][0]}")
                raise


class ByPlainCalls(ShardJob):
    """Reads byte ranges of shards with blocking calls, in the threads that decode them."""

    def __init__(self, job: Job, shards: ShardReader, source: LocalSource) -> None:
        super().__init__(job, shards)
        self._source = source

    async def read_all(self) -> list[bool]:
        width = self.job.grants.thread_count
        if self.inner.shares:
            return await self.job.side_by_side(self.read, width)
        read = self.job.one_by_one(self._read_alone, self.stop)
        return await self.job.by_turns(read, self.job.held, self.stop, alone=self._alone)

    @property
    def _alone(self) -> bool:
        return self.shards.inner_bytes <= SMALL_BYTES

    def _read_alone(self, chunk: Chunk) -> bool:
        """Read a shard without sharing its inner chunks; return whether it exists."""
        part = self.shards.part(chunk)
        with self._source.opened(part.key) as read_part:
            index = self.indexes.put(read_part(*part.index_range()), (part, None))
            if index is None:
                part.missing()
                return False
            led = [((part, inner), None) for inner in part.inner]
            self._read_ranges(read_part, part, index, led)
        part.finish()
        return True

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await self.job.grants.in_thread(
            function, self.job.held, self.stop.set, alone=self._alone
        )

    async def lead(self, part: ShardPart, led: Sequence[Lead[Wanted]]) -> list[bool]:
        with failing(led):
            index = await self.index(part)

        def read() -> list[bool]:
            with self._source.opened(part.key) as read_part:
                return self._read_ranges(read_part, part, index, led)

        return await self._in_thread(read)

    async def read_index(self, led: Sequence[Lead[ShardPart]]) -> list[Index | None]:
        (lead,) = led
        part = lead[0]

        def read() -> Index | None:
            with self._source.opened(part.key) as read_part:
                return self.indexes.put(read_part(*part.index_range()), lead)

        return [await self._in_thread(read)]

    def _read_ranges(
        self,
        read_part: ReadPart,
        part: ShardPart,
        index: Index | None,
        led: Sequence[Lead[Wanted]],
    ) -> list[bool]:
        ranges, there = self.ranges(part, index, led, (_PAGE, _RANGE_BYTES))
        for each in ranges:
            if self.stop.is_set():
                break
            start, stop, leads = each
            with failing([lead for _, _, lead in leads]):
                data = read_part(start, stop)
            self.put(data, each)
        return there


class ByCoroutines(ShardJob):
    """Fetches with the store's coroutines: a whole shard, or byte ranges concurrently."""

    async def read_all(self) -> list[bool]:
        return await self.job.side_by_side(self.read)

    async def lead(self, part: ShardPart, led: Sequence[Lead[Wanted]]) -> list[bool]:
        memory, size = self.job.grants.memory, part.size(led)
        if part.is_all(led):
            async with memory.hold(size, long=is_long(size)):
                with failing(led):
                    whole: Any = await self._get(part, long=is_long(size))
                    index = self.indexes.keep(part.cut_index(whole), part)
                ranges, there = self.ranges(part, index, led, gaps(part.chunk[1]))
                # If the shard does not exist, there are no ranges.
                await self._decode([(whole[each[0] : each[1]], each) for each in ranges])
            return there
        with failing(led):
            index = await self.index(part)
        ranges, there = self.ranges(part, index, led, gaps(part.chunk[1]))

        async def fetch(each: Range) -> tuple[Any, Range]:
            start, stop, leads = each
            with failing([lead for _, _, lead in leads]):
                wanted = RangeByteRequest(start, stop)
                return await self._get(part, wanted, long=is_long(stop - start)), each

        async with memory.hold(size, long=is_long(size)):
            await self._decode(await gather([partial(fetch, each) for each in ranges]))
        return there

    async def read_index(self, led: Sequence[Lead[ShardPart]]) -> list[Index | None]:
        (lead,) = led
        part = lead[0]
        start, stop = part.index_range()
        wanted = SuffixByteRequest(-start) if stop is None else RangeByteRequest(start, stop)
        with failing(led):
            data = await self._get(part, wanted)
        return [self.indexes.put(data, lead)]

    async def _get(
        self, part: ShardPart, wanted: ByteRequest | None = None, *, long: bool = False
    ) -> Any | None:
        key, spec = part.chunk[:2]
        data: Any = await self.job.limited.get(key, spec.prototype, wanted, long=long)
        return None if data is None else data.as_numpy_array()

    async def _decode(self, fetched: Sequence[tuple[Any, Range]]) -> None:
        def decode() -> None:
            for data, each in fetched:
                self.put(data, each)

        if fetched:
            long = is_long(self.job.size)
            await self.job.grants.decoders.run_to_end(decode, self.stop.set, long=long)
