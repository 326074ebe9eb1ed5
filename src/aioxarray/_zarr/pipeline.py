"""The codec pipeline: a whole selection in one batch, read in few steps off the event loop.

zarr's own pipeline makes a task, buffers and specifications for every chunk, and decodes on its
event loop's schedule. This one reads chunks in runs where the store is best read by plain calls,
each run in a thread that fetches, decodes and puts the chunks straight into the result; from
other stores it fetches as many chunks as the load's budget lets it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from zarr.abc.store import RangeByteRequest, SuffixByteRequest

# Private: the default pipeline, of which this one changes only reading. The public base class
# has no codec logic. zarr-developers/zarr-python#3859 asks for public concurrent reads.
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline
from zarr.storage import StorePath

from aioxarray._runtime.batches import Batches
from aioxarray._runtime.tasks import gather
from aioxarray._zarr.chunks import in_runs, is_basic
from aioxarray._zarr.decoders import describe, prepare
from aioxarray._zarr.placing import Placer
from aioxarray._zarr.reading import FETCHERS, Reading, reading
from aioxarray._zarr.shards import ShardReader, gaps
from aioxarray._zarr.sharing import Sharing, forget
from aioxarray._zarr.sources import Source, source_of
from aioxarray._zarr.store import LimitedStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter, Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import NDBuffer
    from zarr.core.indexing import SelectorTuple

    from aioxarray._zarr.chunks import Chunk
    from aioxarray._zarr.sharing import Lead

    ChunkRequest = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
    Status = dict[str, Literal["present", "missing"]]

# A hop to a thread costs about as much as decoding this many bytes.
_BATCH_BYTES = 1 << 20
# Decoding less than this costs less than a hop to a thread and back.
_INLINE_BYTES = 16 << 10
# So few requests are as fast by coroutines, from wherever.
_FEW_CHUNKS = 8
# A store that answers within this time, and that for its bytes, is close by.
_AT_ONCE_S = 0.005
_BYTES_A_SECOND = 100e6
# Bytes between two inner chunks that are as well read as skipped, in a local file.
_PAGE = 4 << 10
# How much of a local shard is read at once.
_RANGE_BYTES = 4 << 20
# In place of a flight, for chunks that are not shared.
_ALONE = nullcontext()


@dataclass(frozen=True, repr=False)
class CodecPipeline(BatchedCodecPipeline):
    """zarr's codec pipeline, as fast as the machine.

    For any use of zarr, reading and writing, from plain and asynchronous code::

        zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"})

    Loads through aioxarray use it anyway. Values, stored keys and bytes are those of zarr's own
    pipeline.

    Notes
    -----
    *Requests:* one a chunk, none for one that another read in this process is fetching; for
    shards, one for the index and one a range of inner chunks.

    *Memory:* as many bytes of chunks in flight as the setting ``memory`` allows.

    *Cancelling:* the requests in flight are cancelled and awaited; a thread finishes the chunk
    that it is at.

    *Errors:* those of store and codec, with a note that names chunk and store; ValueError for a
    chunk that decodes to more or less bytes than the array says, before there are more.

    Which arrays are decoded by plain functions, and which by zarr's own codecs, the ``repr``
    says.
    """

    # What the load grants; None outside of loads, where the settings of the process hold.
    granted: Reading | None = None
    # Told after each run how many of how many chunks are done.
    report: Callable[[int, int], None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {describe(self)}>"

    async def read(  # type: ignore[override]
        self,
        batch_info: Iterable[ChunkRequest],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[Status, ...]:
        """Fetch and decode the chunks of ``batch_info`` into ``out``.

        Returns, as zarr 3.3 and later want it, for each chunk whether it was there.
        """
        requests = list(batch_info)
        if not requests:
            return ()
        getter = requests[0][0]
        if not isinstance(getter, StorePath):
            return await self._read_parts(requests, out, drop_axes)
        keys = (each.path for each, *_ in requests)  # type: ignore[attr-defined]
        chunks = _chunks(keys, requests)
        placer = self._placer(chunks, out, drop_axes)
        spec = requests[0][1]
        return _statuses(await self.read_chunks(getter.store, chunks, len(chunks), spec, placer))

    async def write(
        self,
        batch_info: Iterable[ChunkRequest],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        """Encode the chunks of ``batch_info`` from ``value`` and write them, as zarr does."""
        requests = list(batch_info)
        try:
            await super().write(requests, value, drop_axes)  # type: ignore[arg-type]
        finally:
            if requests and isinstance(requests[0][0], StorePath):
                forget(requests[0][0].store)

    def _placer(self, chunks: Sequence[Chunk], out: NDBuffer, drop_axes: tuple[int, ...]) -> Placer:
        basic = all(is_basic(inside) and is_basic(outside) for _, _, inside, outside in chunks)
        return Placer(self, prepare(self, chunks[0][1]), out, drop_axes, basic)

    async def read_chunks(
        self, store: Store, chunks: Iterable[Chunk], count: int, spec: ArraySpec, placer: Placer
    ) -> list[bool]:
        """Read ``count`` chunks of ``store`` by ``placer``; return which of them were there.

        ``spec`` is that of one of them.
        """
        with nullcontext(self.granted) if self.granted else reading() as granted:
            done = 0

            def advance(number: int) -> None:
                nonlocal done
                done += number
                if self.report is not None:
                    self.report(done, count)

            source = source_of(store)
            # What is close by is read again faster than it is shared.
            shared = not self.supports_partial_decode and (source is None or source.remote)
            sharing = Sharing(store, placer, shared)
            size = _byte_count(spec)
            job = _Job(store, chunks, count, size, placer, granted, sharing, advance)
            if self.supports_partial_decode:
                shards = ShardReader.of(self, spec, placer, placer.views)
                if shards is None:
                    return await job.side_by_side(self._by_zarr(job))
                if source is None or source.remote:
                    return await job.side_by_side(_shards_by_coroutines(job, shards))
                return await job.by_plain_calls(source, _shards_by_plain_calls(source, shards))
            if source is None:
                return await job.by_coroutines()
            if source.remote:
                return await job.by_what_answers(source)
            if source.instant and not placer.by_zarr and job.size * count <= _INLINE_BYTES:
                return job.at_once(source)
            return await job.by_plain_calls(source)

    def _by_zarr(self, job: _Job) -> Callable[[Chunk], Awaitable[bool]]:
        """Return what reads a shard by zarr's own code."""
        limited = LimitedStore(job.store, job.granted.requests)

        async def read(chunk: Chunk) -> bool:
            key, spec, inside, _ = chunk
            async with job.granted.memory.hold(job.size):
                getter = StorePath(limited, key)
                (part,) = await self.decode_partial_batch([(getter, inside, spec)])
            job.placer.put_part(part, chunk)
            job.advance(1)
            return part is not None

        return read

    async def _read_parts(
        self, requests: Sequence[ChunkRequest], out: NDBuffer, drop_axes: tuple[int, ...]
    ) -> tuple[Status, ...]:
        """Decode chunks that are in memory already: inner ones, of a shard that zarr reads."""
        data: list[Any] = [await getter.get(spec.prototype) for getter, spec, *_ in requests]
        chunks = _chunks(itertools.repeat(""), requests)
        placer = self._placer(chunks, out, drop_axes)
        if not placer.by_zarr:
            data = [None if each is None else each.as_numpy_array() for each in data]

        def put() -> list[bool]:
            return [placer.put(*each) for each in zip(data, chunks, strict=True)]

        # In a thread that decodes already, this is no hop to another one: see `run_inline`.
        present = await asyncio.to_thread(put)
        return _statuses(present)


def _chunks(keys: Iterable[str], requests: Sequence[ChunkRequest]) -> list[Chunk]:
    """Return ``requests`` as chunks at ``keys``."""
    return [
        (key, spec, _as_tuple(inside), _as_tuple(outside))
        for key, (_, spec, inside, outside, _) in zip(keys, requests, strict=False)
    ]


def _as_tuple(selection: Any) -> tuple[Any, ...]:
    return selection if type(selection) is tuple else (selection,)


def _statuses(present: Iterable[bool]) -> tuple[Status, ...]:
    return tuple({"status": "present" if there else "missing"} for there in present)


@dataclass(frozen=True)
class _Job:
    """Chunks to be read from a store, and the ways to do it; each says which were there.

    Attributes
    ----------
    size
        Bytes of a chunk, decoded.
    sharing
        Knows which chunks other jobs are reading at the moment.
    advance
        Told how many more chunks are done.
    """

    store: Store
    chunks: Iterable[Chunk]
    count: int
    size: int
    placer: Placer
    granted: Reading
    sharing: Sharing
    advance: Callable[[int], None]

    def at_once(self, source: Source) -> list[bool]:
        """Read what is in memory right here: it takes less time than a hop to a thread."""
        found = []
        for chunk in self.chunks:
            with noted(chunk, self.store):
                found.append(self.placer.read(source, chunk))
        return found

    async def by_plain_calls(
        self, source: Source, read: Callable[[Chunk, Callable[[], bool]], bool] | None = None
    ) -> list[bool]:
        """Read runs of chunks, each in a thread that fetches, decodes and places one by one."""
        present: dict[int, list[bool]] = {}
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True

        def read_one(lead: Lead) -> bool:
            chunk = lead[0]
            if read is not None:
                return read(chunk, lambda: stopped)
            if not source.remote:
                return self.placer.read(source, chunk)
            data = source.read(chunk[0])
            with self.granted.decoding:
                return self.sharing.put(data, lead)

        def read_led(led: Sequence[Lead]) -> list[bool]:
            found = []
            for lead in led:
                if stopped:
                    break
                chunk, flight = lead
                with noted(chunk, self.store), flight or _ALONE:
                    found.append(read_one(lead))
            return found

        held = self.size * self.placer.held_chunks

        async def in_thread(led: Sequence[Lead]) -> list[bool]:
            function = functools.partial(read_led, led)
            return await self.granted.in_thread(function, held, stop, source.remote)

        todo = iter(enumerate(in_runs(self.chunks, self.size)))

        async def work() -> None:
            for number, run in todo:
                present[number] = await self.sharing.read(run, in_thread)
                self.advance(len(run))

        width = FETCHERS if source.remote else self.granted.thread_count
        await gather([work] * width)
        return [there for number in range(len(present)) for there in present[number]]

    async def by_coroutines(self) -> list[bool]:
        """Fetch chunks by the store's coroutines, decode in threads what has arrived meanwhile."""
        placer, granted, store = self.placer, self.granted, self.store
        held = self.size * placer.held_chunks

        def put(batch: Sequence[tuple[Any, Lead]]) -> list[Exception | None]:
            errors: list[Exception | None] = []
            for data, lead in batch:
                try:
                    self.sharing.put(data, lead)
                except Exception as error:  # noqa: BLE001 - raised by the chunk's own worker
                    errors.append(error)
                else:
                    errors.append(None)
            return errors

        batches: Batches[tuple[Any, Lead]] = Batches(
            granted.decoders, granted.thread_count, _BATCH_BYTES, put
        )

        async def fetch(led: Sequence[Lead]) -> list[bool]:
            (lead,) = led
            chunk, flight = lead
            with flight or _ALONE:
                async with granted.memory.hold(held):
                    async with granted.requests.hold():
                        data: Any = await store.get(chunk[0], chunk[1].prototype)
                    there = data is not None
                    if there and not placer.by_zarr:
                        data = data.as_numpy_array()
                    await batches.add((data, lead), self.size)
            return [there]

        async def read(chunk: Chunk) -> bool:
            (there,) = await self.sharing.read([chunk], fetch)
            self.advance(1)
            return there

        return await self.side_by_side(read)

    async def by_what_answers(self, source: Source) -> list[bool]:
        """Read by plain calls if the store answers the first request at once, else by coroutines.

        That first one is a coroutine in any case, and the others wait for it a moment only.
        """
        if self.count < _FEW_CHUNKS:
            return await self.by_coroutines()
        remaining = iter(self.chunks)
        head = replace(self, chunks=[next(remaining)], count=1)
        tail = replace(self, chunks=remaining, count=self.count - 1)
        answered = asyncio.Event()

        async def first() -> list[bool]:
            present = await head.by_coroutines()
            answered.set()
            return present

        async def others() -> list[bool]:
            try:
                async with asyncio.timeout(_AT_ONCE_S + self.size / _BYTES_A_SECOND):
                    await answered.wait()
            except TimeoutError:
                return await tail.by_coroutines()
            return await tail.by_plain_calls(source)

        one, rest = await gather([first, others])
        return one + rest

    async def side_by_side(self, read: Callable[[Chunk], Awaitable[bool]]) -> list[bool]:
        """Await ``read`` for each chunk, as many at once as may have requests in flight."""
        present: dict[int, bool] = {}
        # That many workers, not a task for each chunk: what waits costs memory too.
        todo = iter(enumerate(self.chunks))

        async def work() -> None:
            for number, chunk in todo:
                with noted(chunk, self.store):
                    present[number] = await read(chunk)

        await gather([work] * int(min(self.count, self.granted.requests.bound)))
        return [present[number] for number in range(len(present))]


def _shards_by_plain_calls(
    source: Source, shards: ShardReader
) -> Callable[[Chunk, Callable[[], bool]], bool]:
    """Return what reads a shard in a thread, a few inner chunks at a time."""

    def read(chunk: Chunk, stopped: Callable[[], bool]) -> bool:
        key, part = chunk[0], shards.part(chunk)
        data = source.read_part(key, *part.index_range())
        if data is None:
            part.missing()
            return False
        for each in part.ranges(part.index(data), _PAGE, _RANGE_BYTES):
            data = source.read_part(key, each[0], each[1])
            part.put(data if data is not None else b"", each, stopped)
        part.finish()
        return True

    return read


def _shards_by_coroutines(job: _Job, shards: ShardReader) -> Callable[[Chunk], Awaitable[bool]]:
    """Return what reads a shard: as a whole, or its index and then the ranges side by side."""
    granted = job.granted

    async def read(chunk: Chunk) -> bool:
        key, spec = chunk[:2]
        part = shards.part(chunk)

        async def get(start: int, stop: int | None) -> Any | None:
            wanted = SuffixByteRequest(-start) if stop is None else RangeByteRequest(start, stop)
            async with granted.requests.hold():
                data: Any = await job.store.get(key, spec.prototype, wanted)
            return None if data is None else data.as_numpy_array()

        stopped = False

        def stop_decoding() -> None:
            nonlocal stopped
            stopped = True

        async with granted.memory.hold(part.size):
            if part.whole:
                async with granted.requests.hold():
                    buffer: Any = await job.store.get(key, spec.prototype)
                whole = None if buffer is None else buffer.as_numpy_array()
                index_data = None if whole is None else whole[slice(*part.index_range())]
            else:
                whole, index_data = None, await get(*part.index_range())
            if index_data is None:
                part.missing()
                job.advance(1)
                return False
            max_gap, max_bytes = gaps()
            ranges = part.ranges(part.index(index_data), max_gap, max_bytes)
            if whole is not None:
                parts = [whole[start:stop] for start, stop, _ in ranges]
            else:
                parts = await gather([functools.partial(get, *each[:2]) for each in ranges])

            def put() -> None:
                for data, each in zip(parts, ranges, strict=True):
                    part.put(data if data is not None else b"", each, lambda: stopped)
                part.finish()

            await granted.decoders.run_to_end(put, stop_decoding)
        job.advance(1)
        return True

    return read


# zarr finds pipelines by the name of their class.
CodecPipeline.__module__ = "aioxarray"
register_pipeline(CodecPipeline)


class noted:
    """Adds to an error in its body which chunk of which store it belongs to."""

    __slots__ = ("_chunk", "_store")

    def __init__(self, chunk: Chunk, store: Store) -> None:
        self._chunk = chunk
        self._store = store

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            error.add_note(f"in chunk {self._chunk[0]!r} of {self._store!r}")


def _byte_count(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
