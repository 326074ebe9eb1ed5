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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

# Private: the default pipeline, of which this one changes only reading. The public base class
# has no codec logic. zarr-developers/zarr-python#3859 asks for public concurrent reads.
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.storage import StorePath

from aioxarray._runtime.batches import Batches
from aioxarray._runtime.tasks import gather
from aioxarray._zarr.chunks import in_runs, is_basic
from aioxarray._zarr.decoders import prepare
from aioxarray._zarr.placing import Placer
from aioxarray._zarr.reading import Reading, reading
from aioxarray._zarr.shard_parts import with_parts
from aioxarray._zarr.sources import Source, source_of
from aioxarray._zarr.store import LimitedStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter, Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import NDBuffer
    from zarr.core.indexing import SelectorTuple

    from aioxarray._zarr.chunks import Chunk

    ChunkRequest = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
    Status = dict[str, Literal["present", "missing"]]

# A hop to a thread costs about as much as decoding this many bytes.
_BATCH_BYTES = 1 << 20
# Decoding less than this costs less than a hop to a thread and back.
_INLINE_BYTES = 16 << 10


@dataclass(frozen=True)
class CodecPipeline(BatchedCodecPipeline):
    """zarr's codec pipeline, as fast as the machine.

    For any use of zarr, reading and writing, from plain and asynchronous code::

        zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"})

    Loads through aioxarray use it anyway. Values, stored keys and bytes are those of zarr's own
    pipeline.

    Notes
    -----
    *Requests:* one a chunk; for shards, one for the index and one a range of inner chunks.

    *Memory:* as many bytes of chunks in flight as the setting ``memory`` allows.

    *Cancelling:* the requests in flight are cancelled and awaited; a thread finishes the chunk
    that it is at.

    *Errors:* those of store and codec, with a note that names chunk and store.
    """

    # What the load grants; None outside of loads, where the settings of the process hold.
    granted: Reading | None = None
    # Told after each run how many of how many chunks are done.
    report: Callable[[int, int], None] | None = None

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

            size = _byte_count(spec)
            if self.supports_partial_decode:
                return await self._read_shards(store, chunks, count, placer, granted, advance)
            source = source_of(store)
            if source is None:
                return await _by_coroutines(store, chunks, count, size, placer, granted, advance)
            if source.instant and not placer.by_zarr and size * count <= _INLINE_BYTES:
                return [placer.read(source, chunk) for chunk in chunks]
            runs = in_runs(chunks, size)
            return await _by_plain_calls(store, source, runs, size, placer, granted, advance)

    async def _read_shards(
        self,
        store: Store,
        chunks: Iterable[Chunk],
        count: int,
        placer: Placer,
        granted: Reading,
        advance: Callable[[int], None],
    ) -> list[bool]:
        limited = LimitedStore(store, granted.requests)

        async def read(chunk: Chunk) -> bool:
            key, spec, inside, _ = chunk
            getter = StorePath(limited, key)
            async with granted.memory.hold(_byte_count(spec)):
                parts = await with_parts(self.array_bytes_codec, getter, inside, spec)
                (part,) = await self.decode_partial_batch([(parts, inside, spec)])
            placer.put_part(part, chunk)
            advance(1)
            return part is not None

        return await _side_by_side(store, chunks, count, read, granted)

    async def _read_parts(
        self, requests: Sequence[ChunkRequest], out: NDBuffer, drop_axes: tuple[int, ...]
    ) -> tuple[Status, ...]:
        """Decode chunks that are in memory already: inner ones, of a shard that zarr reads."""
        data = [await getter.get(spec.prototype) for getter, spec, *_ in requests]
        chunks = _chunks(itertools.repeat(""), requests)
        placer = self._placer(chunks, out, drop_axes)

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


async def _by_plain_calls(
    store: Store,
    source: Source,
    runs: Iterable[Sequence[Chunk]],
    size: int,
    placer: Placer,
    granted: Reading,
    advance: Callable[[int], None],
) -> list[bool]:
    """Read runs of chunks, each in a thread that fetches, decodes and places one by one."""
    present: dict[int, list[bool]] = {}
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True

    def read(run: Sequence[Chunk]) -> list[bool]:
        found = []
        for chunk in run:
            if stopped:
                break
            try:
                found.append(placer.read(source, chunk))
            except Exception as error:
                _note(error, chunk, store)
                raise
        return found

    todo = iter(enumerate(runs))

    async def work() -> None:
        for number, run in todo:
            function = functools.partial(read, run)
            present[number] = await granted.in_thread(function, size * placer.held_chunks, stop)
            advance(len(run))

    await gather([work] * granted.thread_count)
    return [there for number in range(len(present)) for there in present[number]]


async def _by_coroutines(
    store: Store,
    chunks: Iterable[Chunk],
    count: int,
    size: int,
    placer: Placer,
    granted: Reading,
    advance: Callable[[int], None],
) -> list[bool]:
    """Fetch chunks by the store's coroutines, decode in threads what has arrived meanwhile."""
    held = size * placer.held_chunks

    def put(batch: Sequence[tuple[Any, Chunk]]) -> list[Exception | None]:
        errors: list[Exception | None] = []
        for data, chunk in batch:
            try:
                placer.put(data, chunk)
            except Exception as error:  # noqa: BLE001 - raised by the chunk's own worker
                errors.append(error)
            else:
                errors.append(None)
        return errors

    batches: Batches[tuple[Any, Chunk]] = Batches(
        granted.decoders, granted.thread_count, _BATCH_BYTES, put
    )

    async def read(chunk: Chunk) -> bool:
        async with granted.memory.hold(held):
            async with granted.requests.hold():
                data: Any = await store.get(chunk[0], chunk[1].prototype)
            there = data is not None
            if there and not placer.by_zarr:
                data = data.as_numpy_array()
            await batches.add((data, chunk), size)
        advance(1)
        return there

    return await _side_by_side(store, chunks, count, read, granted)


async def _side_by_side(
    store: Store,
    chunks: Iterable[Chunk],
    count: int,
    read: Callable[[Chunk], Awaitable[bool]],
    granted: Reading,
) -> list[bool]:
    """Await ``read`` for each chunk, as many at once as may have requests in flight."""
    present: dict[int, bool] = {}
    # That many workers, not a task for each chunk: what waits costs memory too.
    todo = iter(enumerate(chunks))

    async def work() -> None:
        for number, chunk in todo:
            try:
                present[number] = await read(chunk)
            except Exception as error:
                _note(error, chunk, store)
                raise

    await gather([work] * int(min(count, granted.requests.bound)))
    return [present[number] for number in range(len(present))]


def _note(error: Exception, chunk: Chunk, store: Store) -> None:
    error.add_note(f"in chunk {chunk[0]!r} of {store!r}")


def _byte_count(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
