"""The codec pipeline with which saves write: all chunks of a selection under one budget.

What a chunk becomes is zarr's own code, run in worker threads; the requests around it are made
here, as many side by side as the budget of the save lets it.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# Private, as in `aioxarray._zarr.pipeline`: the default pipeline, whose encoding this one uses.
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.storage import StorePath

from aioxarray._runtime.batches import Batches
from aioxarray._runtime.tasks import gather
from aioxarray._zarr.arrays import codecs_of
from aioxarray._zarr.fork import usable_here
from aioxarray._zarr.inline import run_inline
from aioxarray._zarr.local_writes import local_path, read_file, write_file
from aioxarray._zarr.reading import Reading
from aioxarray._zarr.sharing import forget
from aioxarray._zarr.store import LimitedStore

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from zarr.abc.store import ByteRequest, ByteSetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
    from zarr.core.indexing import SelectorTuple

    ChunkWrite = tuple[ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]

# A hop to a thread costs about as much as encoding this many bytes.
_BATCH_BYTES = 1 << 20


class LimitedWriteStore(LimitedStore):
    """Lets also each request that writes through when the save has a place for it."""

    async def set(self, key: str, value: Buffer) -> None:
        async with self._requests.hold():
            await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        async with self._requests.hold():
            await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        async with self._requests.hold():
            await self._store.delete_dir(prefix)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async with self._requests.hold():
            keys = [key async for key in self._store.list_prefix(prefix)]
        for key in keys:
            yield key


def writable(
    array: zarr.Array[Any],
    store: Any,
    writing: Reading,
    *,
    fresh: bool,
) -> Any:
    """Return an asynchronous array like ``array`` that writes to ``store`` under ``writing``.

    Parameters
    ----------
    array
        An array that may exist nowhere but in a `WriteBehindStore`.
    store
        Where its chunks go.
    writing
        What the save grants.
    fresh
        Whether the store has no chunk of it: then none is read, and none deleted.
    """
    # Private, as in `aioxarray._zarr.arrays`.
    inner = array._async_array
    path = inner.store_path.path
    ours = copy.copy(inner)
    limited = LimitedWriteStore(usable_here(store), writing.requests)
    object.__setattr__(ours, "store_path", StorePath(limited, path))
    plain = WritePipeline.from_codecs(codecs_of(array))
    pipeline = WritePipeline(
        array_array_codecs=plain.array_array_codecs,
        array_bytes_codec=plain.array_bytes_codec,
        bytes_bytes_codecs=plain.bytes_bytes_codecs,
        batch_size=plain.batch_size,
        writing=writing,
        fresh=fresh,
    )
    object.__setattr__(ours, "codec_pipeline", pipeline)
    return ours


@dataclass(frozen=True)
class WritePipeline(BatchedCodecPipeline):
    """zarr's pipeline, writing for one save.

    Attributes
    ----------
    writing
        What the save grants. None only while zarr builds the pipeline.
    fresh
        As in `writable`.
    """

    writing: Reading | None = None
    fresh: bool = False

    async def write(
        self,
        batch_info: Iterable[ChunkWrite],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        """Encode the chunks of ``batch_info`` from ``value`` and write them."""
        assert self.writing is not None
        writing = self.writing
        chunks = list(batch_info)
        batches: Batches[_Chunk] = Batches(
            writing.decoders,
            writing.thread_count,
            _BATCH_BYTES,
            functools.partial(_encode, self, value, drop_axes),
        )
        todo = iter(chunks)

        async def write_chunk(request: ChunkWrite, size: int) -> None:
            setter, spec, _, _, is_complete = request
            reads = not (is_complete or self.fresh)
            chunk = _Chunk(request, local_path(setter), reads, deletes=not self.fresh)
            if chunk.path is not None:
                async with writing.requests.hold():
                    await batches.add(chunk, size)
                return
            if reads:
                chunk.data = await setter.get(spec.prototype)
            await batches.add(chunk, size)
            if chunk.data is not None:
                await setter.set(chunk.data)
            elif not self.fresh:
                await setter.delete()

        async def work() -> None:
            for request in todo:
                size = _byte_count(request[1])
                try:
                    async with writing.memory.hold(size):
                        await write_chunk(request, size)
                except Exception as error:
                    error.add_note(f"in chunk {request[0]}")
                    raise

        workers = int(min(len(chunks), writing.requests.bound))
        try:
            await gather([work] * workers)
        finally:
            if chunks and isinstance(chunks[0][0], StorePath):
                forget(chunks[0][0].store)


class _Chunk:
    """A chunk to be encoded, in the place of its key in the store.

    ``data`` is first what the store has of it, as far as that matters, and then what it shall
    have; None for nothing. With a ``path`` it is read from that file, and written to it, where
    it is encoded.
    """

    def __init__(
        self, request: ChunkWrite, path: Path | None, reads: bool, *, deletes: bool
    ) -> None:
        self.request = request
        self.data: Buffer | None = None
        self.path = path
        self._reads = reads
        self._deletes = deletes

    def read_file(self) -> None:
        """Read what the file has, if it is one and that matters."""
        if self.path is not None and self._reads:
            self.data = read_file(self.path, self.request[1].prototype)

    def write_file(self) -> None:
        """Write what the file shall have, if it is one."""
        if self.path is not None and (self.data is not None or self._deletes):
            write_file(self.path, self.data)

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
    pipeline: WritePipeline, value: NDBuffer, drop_axes: tuple[int, ...], batch: Sequence[_Chunk]
) -> Sequence[Exception | None]:
    """Make of each chunk of ``batch`` what the store shall have of it; in a worker thread."""
    try:
        for chunk in batch:
            chunk.read_file()
        requests: Any = [(chunk, *chunk.request[1:]) for chunk in batch]
        run_inline(pipeline.write_batch(requests, value, drop_axes))
        for chunk in batch:
            chunk.write_file()
    except Exception as error:  # noqa: BLE001 - raised by the chunk's own worker
        # Which of them it was, a batch does not say; the save fails with all of them.
        return [error] * len(batch)
    return [None] * len(batch)


def _byte_count(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
