"""The codec pipeline for saves, which writes all chunks of a selection under one budget.

Worker threads encode the chunks, with plain functions if possible and otherwise with zarr's own
code. This module makes the requests, as many at once as the budget of the save allows. Local files
are written by the thread that encodes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.storage import StorePath

from aioxarray._runtime.batches import Batches, one_by_one
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.arrays import with_pipeline
from aioxarray._zarr.chunks.forms import chunk_keys, chunk_spec
from aioxarray._zarr.chunks.schedule import Schedule
from aioxarray._zarr.chunks.selected import regular_block
from aioxarray._zarr.codecs.encoders import Encoder, prepare_encoder
from aioxarray._zarr.codecs.inline import run_inline
from aioxarray._zarr.compat import BatchedCodecPipeline
from aioxarray._zarr.selection import byte_count, in_runs
from aioxarray._zarr.stores.fork import usable_after_fork
from aioxarray._zarr.stores.grants import Grants, is_long
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.local_writes import LocalFiles
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.sharing import forget

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import ByteRequest, ByteSetter, Store

    from aioxarray._zarr.compat import ArraySpec, Buffer, BufferPrototype, NDBuffer, SelectorTuple
    from aioxarray._zarr.selection import Block

    ChunkWrite = tuple[ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]

    # Returns the new value of a chunk, for a request and the value that the store has.
    Encode = Callable[[ChunkWrite, Buffer | None], Buffer | None]

    # Returns whether the chunk with a key is to be written.
    Wanted = Callable[[str], bool]


def writable(
    array: zarr.Array[Any],
    store: Any,
    grants: Grants,
    *,
    fresh: bool,
    wanted: Wanted | None = None,
) -> Any:
    """Return an asynchronous array like ``array`` that writes to ``store`` under ``grants``.

    Parameters
    ----------
    array
        An array, which may exist only in a `WriteBehindStore`.
    store
        The store to which its chunks are written.
    grants
        The grants of the save.
    fresh
        Whether the store has no chunk of the array: then none is read, and none deleted.
    wanted
        Whether the chunk with a key is to be written; None for all. With ``fresh``, the store has
        no chunk of those that are.
    """
    limited = LimitedStore(usable_after_fork(store), grants.requests)
    return with_pipeline(array, limited, WritePipeline, grants=grants, fresh=fresh, wanted=wanted)


async def write_block(array: Any, region: Sequence[slice], values: Any) -> None:
    """Set ``region`` of ``array``, which is `writable`, to ``values``.

    Like ``setitem`` of the array, but for common arrays without zarr's indexing. For small chunks,
    zarr's indexing costs as much as encoding, and it builds a list of all chunks: thousands of
    them trigger a full garbage collection, which stops every thread for 100 ms.
    """
    block = regular_block(array, region)
    # From zarr 3.4 on: whether zarr has to correct the stored metadata before it writes.
    mends = getattr(array.metadata, "_stored_document", None) is not None
    if (
        block is not None
        and type(values) is np.ndarray
        and values.shape == block.shape
        and not mends
    ):
        spec = chunk_spec(array, block)
        value = spec.prototype.nd_buffer.from_numpy_array(values)
        pipeline: WritePipeline = array.codec_pipeline
        encoder = prepare_encoder(pipeline, spec, value, ())
        if encoder is not None:
            encode = functools.partial(_encode, pipeline, encoder, value, ())
            store = array.store_path.store
            await pipeline.write_chunks(
                _requests(array, block, spec), block.count, store, spec, encode
            )
            return
    await array.setitem(tuple(region) or ..., values)


def _requests(array: Any, block: Block, spec: ArraySpec) -> Iterator[ChunkWrite]:
    store = array.store_path.store
    key = chunk_keys(array)
    sizes = list(zip(array.metadata.shape, block.chunk_shape, strict=True))
    for at, inside, outside in block.parts():
        whole = tuple(
            slice(0, min(length, size - index * length), 1)
            for index, (size, length) in zip(at, sizes, strict=True)
        )
        yield StorePath(store, key(at)), spec, inside, outside, inside == whole


@dataclass(frozen=True)
class WritePipeline(BatchedCodecPipeline):
    """A codec pipeline that writes for one save.

    Attributes
    ----------
    grants
        The grants of the save. None only while zarr builds the pipeline.
    fresh, wanted
        As in `writable`.
    """

    grants: Grants | None = None
    fresh: bool = False
    wanted: Wanted | None = None

    async def write(
        self,
        batch_info: Iterable[ChunkWrite],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        """Encode the chunks of ``batch_info`` from ``value`` and write them."""
        requests = list(batch_info)
        if requests:
            setter, spec = requests[0][:2]
            encoder = prepare_encoder(self, spec, value, drop_axes)
            encode = functools.partial(_encode, self, encoder, value, drop_axes)
            store = setter.store if isinstance(setter, StorePath) else None
            await self.write_chunks(requests, len(requests), store, spec, encode)

    async def write_chunks(
        self,
        requests: Iterable[ChunkWrite],
        count: int,
        store: Store | None,
        spec: ArraySpec,
        encode: Encode,
    ) -> None:
        """Write ``count`` chunks, which ``encode`` encodes in worker threads.

        ``store`` is their store, or None if zarr names none; ``spec`` is that of one chunk.
        """
        if (wanted := self.wanted) is not None:
            requests = (each for each in requests if wanted(_key(each)))
        assert self.grants is not None
        self.grants.expect(count)
        try:
            if (files := LocalFiles.of(store)) is not None:
                await self._write_files(
                    requests,
                    count,
                    files,
                    byte_count(spec.shape, spec.dtype.to_native_dtype()),
                    encode,
                )
            else:
                await self._write_objects(requests, count, encode)
        finally:
            if store is not None:
                forget(store)

    async def _write_files(
        self,
        requests: Iterable[ChunkWrite],
        count: int,
        files: LocalFiles,
        size: int,
        encode: Encode,
    ) -> None:
        """Write runs of chunks, each in a thread that encodes and writes its chunks in turn."""
        assert self.grants is not None
        stop = threading.Event()

        def write_run(run: Sequence[ChunkWrite]) -> Sequence[bool]:
            for request in run:
                if stop.is_set():
                    break
                setter, spec, _, _, is_complete = request
                with _noted(setter):
                    key = _key(request)
                    old = None
                    if not (is_complete or self.fresh):
                        old = files.read(key, spec.prototype)
                    new = encode(request, old)
                    if new is not None or not self.fresh:
                        files.write(key, new)
            return ()

        runs = in_runs(requests, count, size, self.grants.thread_count, tuning.RUN_BYTES)
        schedule: Schedule[ChunkWrite] = Schedule(runs)
        await schedule.in_threads(self.grants, size, write_run, stop)

    async def _write_objects(
        self, requests: Iterable[ChunkWrite], count: int, encode: Encode
    ) -> None:
        """Encode chunks in threads, and write them with the store's coroutines."""
        assert self.grants is not None
        grants = self.grants

        def encode_chunk(chunk: _Chunk) -> None:
            chunk.data = encode(chunk.request, chunk.data)

        batches: Batches[_Chunk] = Batches(
            grants.decoders,
            grants.thread_count,
            tuning.BATCH_BYTES,
            one_by_one(encode_chunk),
            is_long,
        )

        async def write(run: Sequence[ChunkWrite]) -> Sequence[bool]:
            (request,) = run
            setter, spec, _, _, is_complete = request
            limited: LimitedStore = setter.store  # type: ignore[attr-defined]
            key = _key(request)
            size = byte_count(spec.shape, spec.dtype.to_native_dtype())
            with _noted(setter), grants.room(size) as room:
                chunk = _Chunk(request, size, batches)
                if is_complete or self.fresh:
                    await limited.turn_ahead(room)
                    room.content = chunk
                else:
                    chunk.data = await limited.get(key, spec.prototype, room=room)
                    room.keep()
                await chunk.make()
                if chunk.data is not None:
                    await limited.set_made(key, chunk.value, room)
                elif not self.fresh:
                    await limited.delete(key, room=room)
            return ()

        schedule: Schedule[ChunkWrite] = Schedule(zip(requests))
        await schedule.on_loop(int(min(count, grants.requests.bound)), write)


def _key(request: ChunkWrite) -> str:
    """Return the key of a chunk in its store."""
    key: str = request[0].path  # type: ignore[attr-defined]
    return key


@contextmanager
def _noted(setter: ByteSetter) -> Iterator[None]:
    """Add the place of a chunk to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in chunk {printable(setter)!r}")
        raise


class _Chunk:
    """A chunk to be encoded.

    ``data`` is first the value that the store has, if that is needed, and then the new value; None
    for no value.
    """

    def __init__(self, request: ChunkWrite, size: int, batches: Batches[_Chunk]) -> None:
        self.request = request
        self.data: Buffer | None = None
        self._size = size
        self._batches = batches

    async def make(self) -> None:
        """Encode the chunk."""
        await self._batches.add(self, self._size)

    def drop(self) -> None:
        """Drop the encoded value: it is made again when there is room for it."""
        self.data = None

    def value(self) -> Buffer:
        """Return the encoded value, of a chunk that has one."""
        assert self.data is not None
        return self.data


class _InMemory:
    """A stand-in for the place of a chunk in a store: zarr's code reads and writes ``data``."""

    def __init__(self, data: Buffer | None) -> None:
        self.data = data

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        assert byte_range is None, "zarr reads a chunk that it changes as a whole"
        return self.data

    async def set(self, value: Buffer) -> None:
        self.data = value

    async def delete(self) -> None:
        self.data = None


def _encode(
    pipeline: WritePipeline,
    plain: Encoder | None,
    value: NDBuffer,
    drop_axes: tuple[int, ...],
    request: ChunkWrite,
    old: Buffer | None,
) -> Buffer | None:
    """Return the new value of a chunk for which the store has ``old``; in a worker thread."""
    _, spec, inside, outside, _ = request
    if plain is not None and old is None and plain.takes(inside, outside):
        return plain.encode(spec, inside, outside)
    place = _InMemory(old)
    requests: Any = [(place, *request[1:])]
    run_inline(pipeline.write_batch(requests, value, drop_axes))
    return place.data
