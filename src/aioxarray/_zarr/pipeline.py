"""The codec pipeline with which loads read: all chunks of a selection under one budget.

zarr's own pipeline allows ten requests an array and decodes on its event loop's schedule. This
one fetches as many chunks as the load's budget lets it, over all arrays of the load, and
decodes in worker threads, several small chunks a hop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

# Private: the default pipeline, of which this one changes only reading; and its helper that
# knows the fill value of old arrays without one. The public base class has no codec logic.
# https://github.com/zarr-developers/zarr-python/issues/3859 asks for public concurrent reads.
from zarr.core.codec_pipeline import BatchedCodecPipeline, fill_value_or_default

from aioxarray._runtime.batches import Batches
from aioxarray._runtime.tasks import gather
from aioxarray._zarr.inline import run_inline
from aioxarray._zarr.local import file_reader
from aioxarray._zarr.reading import Reading
from aioxarray._zarr.shard_parts import with_parts

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.indexing import SelectorTuple

    ChunkRequest = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]

# A hop to a thread costs about as much as decoding this many bytes.
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class ReadPipeline(BatchedCodecPipeline):
    """zarr's pipeline, reading for one load.

    Attributes
    ----------
    reading
        What the load grants. None only while zarr builds the pipeline.
    report
        Told after each chunk how many of how many chunks are done.
    """

    reading: Reading | None = None
    report: Callable[[int, int], None] | None = None

    async def read(  # type: ignore[override]
        self,
        batch_info: Iterable[ChunkRequest],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[dict[str, Literal["present", "missing"]], ...]:
        """Fetch and decode the chunks of ``batch_info`` into ``out``.

        Returns, as zarr 3.3 and later want it, for each chunk whether it was there.
        """
        assert self.reading is not None
        reading = self.reading
        chunks = list(batch_info)
        present = [False] * len(chunks)
        done = 0
        batches: Batches[_Encoded] = Batches(
            reading.decoders,
            reading.decoder_count,
            _BATCH_BYTES,
            functools.partial(_decode_into, self, out, drop_axes),
        )
        # As many workers as can have requests in flight, not a task for each chunk: what
        # waits costs memory too.
        todo = iter(enumerate(chunks))

        async def from_chunk(chunk: ChunkRequest, size: int) -> bool:
            getter, spec, selection, out_selection, _ = chunk
            encoded = _Encoded(spec, selection, out_selection)
            if (read := file_reader(getter, spec.prototype)) is not None:
                encoded.read = read
                async with reading.requests.hold():
                    await batches.add(encoded, size)
            else:
                encoded.data = await getter.get(spec.prototype)
                await batches.add(encoded, size)
            return encoded.data is not None

        async def from_shard(chunk: ChunkRequest) -> bool:
            # zarr's own code reads its index and the ranges.
            getter, spec, selection, out_selection, _ = chunk
            parts = await with_parts(self.array_bytes_codec, getter, selection, spec)
            (part,) = await self.decode_partial_batch([(parts, selection, spec)])
            _put(out, out_selection, part, spec, drop_axes)
            return part is not None

        async def work() -> None:
            nonlocal done
            for index, chunk in todo:
                size = _byte_count(chunk[1])
                try:
                    async with reading.memory.hold(size):
                        present[index] = await (
                            from_shard(chunk)
                            if self.supports_partial_decode
                            else from_chunk(chunk, size)
                        )
                except Exception as error:
                    error.add_note(f"in chunk {_name(chunk[0])}")
                    raise
                done += 1
                if self.report is not None:
                    self.report(done, len(chunks))

        workers = int(min(len(chunks), reading.requests.bound))
        await gather([work] * workers)
        return tuple({"status": "present" if there else "missing"} for there in present)


@dataclass(slots=True)
class _Encoded:
    """A chunk to be decoded: where it belongs, and its bytes or what reads them.

    ``data`` is None if the chunk is missing.
    """

    spec: ArraySpec
    selection: SelectorTuple
    out_selection: SelectorTuple
    data: Buffer | None = None
    read: Callable[[], Buffer | None] | None = None


def _decode_into(
    pipeline: ReadPipeline, out: NDBuffer, drop_axes: tuple[int, ...], batch: Sequence[_Encoded]
) -> Sequence[Exception | None]:
    """Decode ``batch`` and put it into ``out``; in a worker thread."""
    try:
        for chunk in batch:
            if chunk.read is not None:
                chunk.data = chunk.read()
        arrays = run_inline(pipeline.decode_batch([(chunk.data, chunk.spec) for chunk in batch]))
        for chunk, array in zip(batch, arrays, strict=True):
            part = None if array is None else array[chunk.selection]
            _put(out, chunk.out_selection, part, chunk.spec, drop_axes)
    except Exception as error:  # noqa: BLE001 - raised by the chunk's own worker
        if len(batch) == 1:
            return [error]
        # Which of them it was, a batch does not say.
        singly = [_decode_into(pipeline, out, drop_axes, [chunk]) for chunk in batch]
        return [errors[0] for errors in singly]
    return [None] * len(batch)


def _put(
    out: NDBuffer,
    out_selection: SelectorTuple,
    part: NDBuffer | None,
    spec: ArraySpec,
    drop_axes: tuple[int, ...],
) -> None:
    if part is None:
        out[out_selection] = fill_value_or_default(spec)
    else:
        out[out_selection] = part.squeeze(axis=drop_axes) if drop_axes else part


def _byte_count(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize


def _name(getter: Any) -> str:
    # A StorePath for chunks in a store; inside a shard read as a whole, a place in it.
    path, store = getattr(getter, "path", None), getattr(getter, "store", None)
    return repr(getter) if path is None else f"{path!r} of {getattr(store, '_store', store)!r}"
