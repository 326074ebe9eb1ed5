"""Reads shards: the index first, then only the ranges that are needed, neighbours together.

Here is what to read, and where it goes; the pipeline does the reading. Works the same for both
lines of zarr, which differ in what they merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import ShardingCodec

# Private: what a shard's selection touches where it is no block, the codecs inside a shard as a
# pipeline, and the class of buffers. Can go when zarr's sharding codec reads what it is told to
# through a store of the caller's choice (zarr-developers/zarr-python#3859).
from zarr.core import chunk_grids
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.dtype import UInt64
from zarr.core.indexing import get_indexer

from aioxarray._zarr.chunks import Block, is_basic, merged
from aioxarray._zarr.decoders import Decoder, Prepared, prepare
from aioxarray._zarr.placing import Placer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import NDBuffer

    from aioxarray._zarr.chunks import Chunk, Range

_MISSING = 2**64 - 1
# An encoded chunk is not longer than this, whatever a damaged index says.
_SLACK = 64 << 10


@dataclass(frozen=True)
class _Index:
    """Where the index of a shard is, and what decodes it."""

    decoder: Decoder
    size: int


class ShardReader:
    """Knows how the shards of an array are read into ``out``.

    Parameters
    ----------
    codec
        The sharding codec.
    index
        What decodes its index.
    spec
        Of a shard.
    outer
        Puts parts of shards into the result.
    out
        The result.
    views
        Whether each shard's part of the result is a view of it.
    """

    def __init__(
        self,
        codec: ShardingCodec,
        index: Prepared,
        spec: ArraySpec,
        outer: Placer,
        out: NDBuffer,
        views: bool,
    ) -> None:
        self.codec = codec
        self.outer = outer
        self.at_start = getattr(codec.index_location, "value", codec.index_location) == "start"
        self._index = index
        self._out = out
        self._views = views
        self.inner_spec = replace(spec, shape=tuple(codec.chunk_shape))
        self.pipeline = BatchedCodecPipeline.from_codecs(codec.codecs)
        self.prepared = prepare(self.pipeline, self.inner_spec)
        self._indexes: dict[tuple[int, ...], _Index] = {}

    @classmethod
    def of(cls, pipeline: Any, spec: ArraySpec, outer: Placer, views: bool) -> ShardReader | None:
        """Return how shards are read, or None if zarr's own code has to."""
        codec = pipeline.array_bytes_codec
        if type(codec) is not ShardingCodec:
            return None
        index_spec = replace(spec, dtype=UInt64(endianness="little"), fill_value=_MISSING)
        index = prepare(BatchedCodecPipeline.from_codecs(codec.index_codecs), index_spec)
        if index is None or index.longer_by is None:
            return None
        return cls(codec, index, spec, outer, outer.out, views)

    @property
    def inner_bytes(self) -> int:
        """The bytes of an inner chunk, decoded."""
        spec = self.inner_spec
        return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize

    def index_of(self, shape: tuple[int, ...]) -> _Index:
        """Return the index of shards of ``shape``."""
        found = self._indexes.get(shape)
        if found is None:
            pairs = zip(shape, self.codec.chunk_shape, strict=True)
            counts = tuple(length // inner for length, inner in pairs)
            decoder = self._index.decoder((*counts, 2))
            assert self._index.longer_by is not None
            found = _Index(decoder, decoder.size + self._index.longer_by)
            self._indexes[shape] = found
        return found

    def part(self, chunk: Chunk) -> ShardPart:
        """Return what is wanted of the shard ``chunk``."""
        _, spec, inside, outside = chunk
        if self._views and is_basic(inside):
            block = Block(inside, spec.shape, self.codec.chunk_shape)
            array = self._out.as_ndarray_like()
            # The ellipsis makes it a view even where a single element is selected.
            view = array[(*outside, ...)]  # type: ignore[index]
            out = type(self._out).from_ndarray_like(view)
            chunks = list(block.chunks(lambda at: at, self.inner_spec))
            return ShardPart(self, chunk, chunks, out, basic=True)
        indexer: Any = get_indexer(inside, spec.shape, _grid(spec.shape, self.codec.chunk_shape))
        out = spec.prototype.nd_buffer.empty(
            shape=indexer.shape, dtype=spec.dtype.to_native_dtype(), order=spec.order
        )
        chunks = [
            (at, self.inner_spec, _as_tuple(inside), _as_tuple(outside))
            for at, inside, outside, *_ in indexer
        ]
        shape = getattr(indexer, "sel_shape", None)
        return ShardPart(self, chunk, chunks, out, basic=False, shape=shape)


class ShardPart:
    """What is wanted of one shard.

    Parameters
    ----------
    reader
        Of the array's shards.
    chunk
        The shard.
    chunks
        The inner chunks that are wanted; each has its coordinates for a key.
    out
        Where they go: a part of the result or, unless ``basic``, memory of their own.
    shape
        What ``out`` has to be reshaped to before it goes into the result; None for as it is.
    """

    def __init__(
        self,
        reader: ShardReader,
        chunk: Chunk,
        chunks: Sequence[Any],
        out: NDBuffer,
        basic: bool,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self._reader = reader
        self._chunk = chunk
        self._chunks = chunks
        self._out = out
        self._basic = basic
        self._shape = shape
        self._placer = Placer(reader.pipeline, reader.prepared, out, (), basic)
        self._index = reader.index_of(chunk[1].shape)
        self.whole = len({at for at, *_ in chunks}) == self._index.decoder.size // 16
        self.size = len(chunks) * reader.inner_bytes

    def index_range(self) -> tuple[int, int | None]:
        """Return where the index begins and ends; from the end of the shard if negative."""
        size = self._index.size
        return (0, size) if self._reader.at_start else (-size, None)

    def index(self, data: Any) -> NDArray[np.uint64]:
        """Decode the index."""
        if len(data) != self._index.size:
            raise ValueError(
                f"the shard's index has {len(data)} bytes instead of {self._index.size}: "
                "the shard is truncated"
            )
        return self._index.decoder.array(data).copy()

    def ranges(self, index: NDArray[np.uint64], max_gap: int, max_bytes: int) -> list[Range]:
        """Return which bytes to read and which inner chunks are in them.

        Inner chunks that are missing are filled here.
        """
        longest = None if self._reader.prepared is None else 2 * self._reader.inner_bytes + _SLACK
        found = []
        for chunk in self._chunks:
            start, length = map(int, index[chunk[0]])
            if start == _MISSING and length == _MISSING:
                self._placer.put(None, chunk)
                continue
            if longest is not None and length > longest:
                raise ValueError(
                    f"the shard's index is damaged: inner chunk {chunk[0]} has {length} bytes"
                )
            found.append((start, start + length, chunk))
        return merged(found, max_gap, max_bytes)

    def put(self, data: Any, of: Range, stopped: Callable[[], bool]) -> None:
        """Decode the inner chunks that are in ``data``, the bytes of the range ``of``."""
        start, stop, members = of
        if len(data) != stop - start:
            raise ValueError(f"the shard ends before byte {stop}: it is truncated")
        for first, last, chunk in members:
            if stopped():
                return
            try:
                self._placer.put(data[first - start : last - start], chunk)
            except Exception as error:
                error.add_note(f"in inner chunk {chunk[0]}")
                raise

    def finish(self) -> None:
        """Put what was read into the result, if it is not there yet."""
        if not self._basic:
            part = self._out if self._shape is None else self._out.reshape(self._shape)
            self._reader.outer.put_part(part, self._chunk)

    def missing(self) -> None:
        """Fill the shard's part of the result."""
        self._reader.outer.put_part(None, self._chunk)


def gaps() -> tuple[int, int]:
    """Return how far apart ranges may lie to be one request, and how long that may be.

    Settings of zarr from 3.3 on; here they hold for all.
    """
    return (
        int(zarr.config.get("array.sharding_coalesce_max_gap_bytes", 1 << 20)),
        int(zarr.config.get("array.sharding_coalesce_max_bytes", 16 << 20)),
    )


def _grid(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Any:
    grids: Any = chunk_grids
    if hasattr(grids.ChunkGrid, "from_sizes"):
        return grids.ChunkGrid.from_sizes(shape, tuple(chunk_shape))
    # zarr before 3.2.
    return grids.RegularChunkGrid(chunk_shape=chunk_shape)


def _as_tuple(selection: Any) -> tuple[Any, ...]:
    return selection if type(selection) is tuple else (selection,)
