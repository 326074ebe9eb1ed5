"""Execution of a read plan for shards: the index first, then only the byte ranges needed.

Inner chunks and indexes that are cached, or that another read is fetching, are not read again.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import RangeByteRequest, SuffixByteRequest

from aioxarray._runtime.batches import Batches, one_by_one
from aioxarray._runtime.flights import Flight, failing
from aioxarray._runtime.tasks import gather
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.chunk_reads import ChunkReads
from aioxarray._zarr.chunks.shards import INDEXES, ShardLayout, ShardPart
from aioxarray._zarr.stores.grants import is_long
from aioxarray._zarr.stores.limited import Check
from aioxarray._zarr.stores.sources import LocalSource, ReadPart

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray._zarr.chunks.shards import Index
    from aioxarray._zarr.selection import ByteRange, Chunk
    from aioxarray._zarr.stores.servers.room import Room
    from aioxarray._zarr.stores.sharing import Sharing

T = TypeVar("T")


class ShardReads(ABC):
    """The execution of a plan that reads shards.

    Parameters
    ----------
    reads
        The execution; its chunks are shards, and its flights share indexes and inner chunks.
    shards
        The layout of the array's shards.
    """

    def __init__(self, reads: ChunkReads, shards: ShardLayout) -> None:
        self.reads = reads
        self.grants = reads.grants
        self.shards = shards
        self.sharing = reads.sharing
        # Set to make the threads of this read stop.
        self.stop = threading.Event()

    @abstractmethod
    async def read_all(self) -> list[bool]:
        """Read the selected inner chunks of all shards; return which shards exist."""

    async def read(self, chunk: Chunk) -> bool:
        """Read the selected inner chunks of a shard; return whether the shard exists."""
        part = self.shards.part(chunk, self.reads.result)
        known = self.sharing.known(INDEXES, part)
        if known is not None and known[0] is None:
            part.missing()
            return False
        found = await self.sharing.read(part.result, part.inner, partial(self.lead, part))
        part.finish()
        if part.exists is None:
            part.exists = any(found) or await self.index(part) is not None
        return part.exists

    @abstractmethod
    async def lead(self, part: ShardPart, led: Sequence[Flight[Chunk]]) -> list[bool]:
        """Read inner chunks of a shard; return which of them exist."""

    async def index(self, part: ShardPart) -> Index | None:
        """Return the index of a shard; None if the shard does not exist."""
        (index,) = await self.sharing.read(INDEXES, [part], self.read_index)
        return index

    @abstractmethod
    async def read_index(self, led: Sequence[Flight[ShardPart]]) -> list[Index | None]:
        """Read the index of one shard."""

    def ranges(
        self,
        part: ShardPart,
        index: Index | None,
        led: Sequence[Flight[Chunk]],
    ) -> tuple[list[ByteRange], list[bool]]:
        """Return the byte ranges to read, and which inner chunks exist; fill the others."""
        part.exists = index is not None
        with failing(led):
            ranges, there = part.ranges(index, led, self.reads.plan.gaps(part.chunk.spec))
        for flight, exists in zip(led, there, strict=True):
            if not exists:
                self.sharing.put(part.result, None, flight)
        return ranges, there

    def put(self, part: ShardPart, data: Any | None, of: ByteRange) -> None:
        """Decode the inner chunks in ``data``, the bytes of the range ``of``."""
        _put(self.sharing, self.stop, part, data, of)


def _put(
    sharing: Sharing, stop: threading.Event, part: ShardPart, data: Any | None, of: ByteRange
) -> None:
    """Decode the inner chunks in ``data`` until ``stop`` is set; see `ShardReads.put`."""
    if data is None:
        # The shard was deleted after its index was read. zarr treats that as a missing shard.
        for span in of.spans:
            sharing.put(part.result, None, span.part)
        return
    if len(data) != of.stop - of.start:
        with failing([span.part for span in of.spans]):
            raise ValueError(f"the shard ends before byte {of.stop}: it is truncated")
    for start, end, flight in of.spans:
        if stop.is_set():
            return
        try:
            encoded = data[start - of.start : end - of.start]
            sharing.put(part.result, encoded, flight)
        except Exception as error:
            error.add_note(f"in inner chunk {flight.part.key}")
            raise


class ByPlainCalls(ShardReads):
    """Reads byte ranges of shards with blocking calls, in the threads that decode them."""

    def __init__(self, reads: ChunkReads, shards: ShardLayout, source: LocalSource) -> None:
        super().__init__(reads, shards)
        self._source = source
        self._exclusive = shards.inner_bytes <= tuning.SMALL_CHUNK_BYTES

    async def read_all(self) -> list[bool]:
        reads, threads = self.reads, self.grants.thread_count
        if self.sharing.shares:
            return await reads.each(self.read, threads)

        def read_run(run: Sequence[Chunk]) -> list[bool]:
            found = []
            for chunk in run:
                if self.stop.is_set():
                    break
                with reads.noted(chunk):
                    found.append(self._read_unshared(chunk))
            return found

        return await reads.in_runs(threads, tuning.READ_RUN_BYTES).in_threads(
            self.grants, reads.held, read_run, self.stop, exclusive=self._exclusive
        )

    def _read_unshared(self, chunk: Chunk) -> bool:
        """Read a shard without sharing its inner chunks; return whether it exists."""
        part = self.shards.part(chunk, self.reads.result)
        with self._source.opened(part.key) as read_part:
            index = self.sharing.put(INDEXES, read_part(*part.index_range()), Flight(part))
            if index is None:
                part.missing()
                return False
            led = [Flight(inner) for inner in part.inner]
            self._read_ranges(read_part, part, index, led)
        part.finish()
        return True

    async def lead(self, part: ShardPart, led: Sequence[Flight[Chunk]]) -> list[bool]:
        with failing(led):
            index = await self.index(part)
        return await self._in_thread(
            part, lambda read_part: self._read_ranges(read_part, part, index, led)
        )

    async def read_index(self, led: Sequence[Flight[ShardPart]]) -> list[Index | None]:
        (flight,) = led
        part = flight.part

        def read(read_part: ReadPart) -> Index | None:
            return self.sharing.put(INDEXES, read_part(*part.index_range()), flight)

        with flight:
            return [await self._in_thread(part, read)]

    async def _in_thread(self, part: ShardPart, read: Callable[[ReadPart], T]) -> T:
        """Call ``read`` in a thread with the opened shard."""

        def work() -> T:
            with self._source.opened(part.key) as read_part:
                return read(read_part)

        return await self.grants.in_thread(
            work, self.reads.held, self.stop.set, exclusive=self._exclusive
        )

    def _read_ranges(
        self,
        read_part: ReadPart,
        part: ShardPart,
        index: Index | None,
        led: Sequence[Flight[Chunk]],
    ) -> list[bool]:
        ranges, there = self.ranges(part, index, led)
        for each in ranges:
            if self.stop.is_set():
                break
            with failing([span.part for span in each.spans]):
                data = read_part(each.start, each.stop)
            self.put(part, data, each)
        return there


class ByCoroutines(ShardReads):
    """Fetches with the store's coroutines: a whole shard, or byte ranges concurrently."""

    async def read_all(self) -> list[bool]:
        return await self.reads.each(self.read)

    async def lead(self, part: ShardPart, led: Sequence[Flight[Chunk]]) -> list[bool]:
        if part.is_all(led):
            with self.grants.room(part.size(led)) as room:
                with failing(led):
                    check = partial(part.check_whole, wanted=led)
                    whole: Any = await self._get(part, None, check, room)
                    index = self.sharing.keep(INDEXES, part.cut_index(whole), part)
                ranges, there = self.ranges(part, index, led)
                # If the shard does not exist, there are no ranges.
                await self._decode(part, [(whole[each.start : each.stop], each) for each in ranges])
            return there
        with failing(led):
            index = await self.index(part)
        ranges, there = self.ranges(part, index, led)

        await gather([partial(self._read_range, part, each) for each in ranges])
        return there

    async def _read_range(self, part: ShardPart, of: ByteRange) -> None:
        """Fetch and decode the inner chunks in a range of a shard."""
        # No range holds memory while another one waits for it, or for its turn at the server.
        with self.grants.room(part.size(of.spans)) as room:
            with failing([span.part for span in of.spans]):
                wanted = RangeByteRequest(of.start, of.stop)
                data = await self._get(part, wanted, partial(part.check_range, of=of), room)
            await self._batches.add((part, data, of), room.size)

    async def read_index(self, led: Sequence[Flight[ShardPart]]) -> list[Index | None]:
        (flight,) = led
        start, stop = flight.part.index_range()
        wanted = SuffixByteRequest(-start) if stop is None else RangeByteRequest(start, stop)
        with flight:
            data = await self._get(flight.part, wanted, flight.part.check_index)
            return [self.sharing.put(INDEXES, data, flight)]

    async def _get(
        self, part: ShardPart, wanted: ByteRequest | None, check: Check, room: Room | None = None
    ) -> Any | None:
        prototype = part.chunk.spec.prototype
        data: Any = await self.reads.limited.get(
            part.key, prototype, wanted, room=room, check=check
        )
        return None if data is None else data.as_numpy_array()

    @cached_property
    def _batches(self) -> Batches[tuple[ShardPart, Any | None, ByteRange]]:
        """Decodes in threads, in batches, the ranges that have arrived."""
        # Not `self`, as in `ChunkReads`.
        sharing, stop = self.sharing, self.stop

        def put(arrived: tuple[ShardPart, Any | None, ByteRange]) -> None:
            _put(sharing, stop, *arrived)

        threads = self.grants.thread_count
        return Batches(self.grants.decoders, threads, tuning.BATCH_BYTES, one_by_one(put), is_long)

    async def _decode(self, part: ShardPart, fetched: Sequence[tuple[Any, ByteRange]]) -> None:
        def decode() -> None:
            for data, each in fetched:
                self.put(part, data, each)

        if fetched:
            long = is_long(self.reads.nbytes)
            await self.grants.decoders.run_to_end(decode, self.stop.set, long=long)
