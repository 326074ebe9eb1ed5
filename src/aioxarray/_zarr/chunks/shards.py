"""The inner chunks of shards that a selection needs, and their byte ranges.

`aioxarray._zarr.chunks.shard_reads` reads them. Byte ranges are merged in the same way with all
versions of zarr, whose own code differs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import ShardingCodec

from aioxarray._runtime.flights import Flight
from aioxarray._zarr.chunks.result import Result
from aioxarray._zarr.codecs.decoders import Decoder, Prepared, decoding, prepare
from aioxarray._zarr.codecs.steps import check_of
from aioxarray._zarr.compat import BatchedCodecPipeline, UInt64, get_indexer, regular_grid
from aioxarray._zarr.points import Points, selection_of
from aioxarray._zarr.selection import (
    Block,
    ByteRange,
    Chunk,
    Span,
    as_tuple,
    byte_count,
    is_basic,
    merged,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import ArraySpec, NDBuffer

    # The offset and length of each inner chunk.
    Index = NDArray[np.uint64]

_MISSING = 2**64 - 1
# An encoded chunk of more than twice its decoded bytes plus this means that the index is damaged.
_SLACK = 64 << 10


@dataclass(frozen=True)
class _Index:
    """The index of shards of one shape: its decoder, its bytes, and the number of inner chunks."""

    decoder: Decoder
    size: int
    count: int


class Inner(NamedTuple):
    """The inner chunks of a shard that a selection needs, and their destination.

    Attributes
    ----------
    chunks
        The inner chunks.
    out_shape
        The shape of a separate buffer for their values; None if these go straight into the result.
    shape
        The shape that this buffer gets before it goes into the result; None to keep its own.
    """

    chunks: list[Chunk]
    out_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None


class ShardLayout:
    """The split of the shards of an array into inner chunks.

    Parameters
    ----------
    codec
        The sharding codec.
    index
        Makes decoders for its indexes.
    spec
        The specification of a shard.
    """

    def __init__(self, codec: ShardingCodec, index: Prepared, spec: ArraySpec) -> None:
        self.codec = codec
        self.at_start = getattr(codec.index_location, "value", codec.index_location) == "start"
        self._index = index
        self.inner_spec = replace(spec, shape=tuple(codec.chunk_shape))
        self.pipeline = BatchedCodecPipeline.from_codecs(codec.codecs)
        self.prepared = prepare(self.pipeline, self.inner_spec)
        self.check = check_of(self.pipeline)
        self.check_index = check_of(BatchedCodecPipeline.from_codecs(codec.index_codecs))
        self._indexes: dict[tuple[int, ...], _Index] = {}

    @classmethod
    def of(cls, pipeline: Any, spec: ArraySpec) -> ShardLayout | None:
        """Return the layout of the shards, or None if zarr's own code has to read them."""
        codec = pipeline.array_bytes_codec
        if type(codec) is not ShardingCodec:
            return None
        index_spec = replace(spec, dtype=UInt64(endianness="little"), fill_value=_MISSING)
        index = prepare(BatchedCodecPipeline.from_codecs(codec.index_codecs), index_spec)
        if index is None or index.longer_by is None:
            return None
        return cls(codec, index, spec)

    @property
    def decoding(self) -> Hashable:
        """A key that is equal for readers that find and decode the same inner chunks."""
        inner = decoding(self.pipeline, self.prepared, self.inner_spec)
        return inner, self._index, self.at_start, self.inner_spec.shape

    @property
    def inner_bytes(self) -> int:
        """The decoded bytes of an inner chunk."""
        spec = self.inner_spec
        return byte_count(spec.shape, spec.dtype.to_native_dtype())

    def index_of(self, shape: tuple[int, ...]) -> _Index:
        """Return the index of shards of ``shape``."""
        found = self._indexes.get(shape)
        if found is None:
            pairs = zip(shape, self.codec.chunk_shape, strict=True)
            counts = tuple(length // inner for length, inner in pairs)
            decoder = self._index.decoder((*counts, 2))
            assert self._index.longer_by is not None
            found = _Index(decoder, decoder.size + self._index.longer_by, math.prod(counts))
            self._indexes[shape] = found
        return found

    def ranges(
        self, index: Index | None, wanted: Sequence[Flight[Chunk]], gaps: tuple[int, int]
    ) -> tuple[list[ByteRange], list[bool]]:
        """Return the byte ranges to read, each with its inner chunks, and which of these exist.

        ``gaps`` are the limits from the function `gaps`; without an ``index`` none exists.
        """
        if index is None or not wanted:
            return [], [False] * len(wanted)
        longest = None if self.prepared is None else 2 * self.inner_bytes + _SLACK
        found, there = [], []
        # One lookup for all: separate ones would each cost as much as decoding a small chunk.
        at = tuple(zip(*(each.part.key for each in wanted), strict=True))
        for flight, (start, length) in zip(wanted, index[at].reshape(-1, 2).tolist(), strict=True):
            exists = start != _MISSING or length != _MISSING
            there.append(exists)
            if not exists:
                continue
            if longest is not None and length > longest:
                raise ValueError(
                    "the shard's index is damaged: "
                    f"inner chunk {flight.part.key} has {length} bytes"
                )
            found.append(Span(start, start + length, flight))
        return merged(found, *gaps), there

    def has_all(self, keys: Sequence[Hashable], shape: tuple[int, ...]) -> bool:
        """Return whether ``keys`` has all inner chunks of a shard of ``shape``."""
        count = self.index_of(shape).count
        return len(keys) >= count and len(set(keys)) == count

    def inner(self, chunk: Chunk, *, views: bool) -> Inner:
        """Return the inner chunks of the shard ``chunk`` that are needed.

        ``views`` tells whether the shard's place in the result is a view of it.
        """
        shape = chunk.spec.shape
        inside = selection_of(chunk.inside)
        chunk_shape = self.codec.chunk_shape
        # Coordinates stand in for keys.
        if views and is_basic(inside):
            block = Block(inside, shape, chunk_shape)
            return Inner(list(block.chunks(lambda at: at, self.inner_spec)))
        if all(isinstance(each, np.ndarray) for each in inside):
            points = Points.of(inside, shape, chunk_shape)
            if points is not None:
                inner = list(points.chunks(lambda at: at, self.inner_spec))
                return Inner(inner, (math.prod(points.shape),), points.shape)
        indexer: Any = get_indexer(inside, shape, regular_grid(shape, chunk_shape))
        inner = [
            Chunk(at, self.inner_spec, as_tuple(within), as_tuple(outside))
            for at, within, outside, *_ in indexer
        ]
        return Inner(inner, indexer.shape, getattr(indexer, "sel_shape", None))

    def part(self, chunk: Chunk, result: Result) -> ShardPart:
        """Return the selected part of the shard ``chunk``, to be read into ``result``."""
        spec = chunk.spec
        inner = self.inner(chunk, views=result.views)
        if inner.out_shape is None:
            whole = result.out
            # The ellipsis makes it a view even if a single element is selected.
            view = whole.as_ndarray_like()[(*chunk.outside, ...)]  # type: ignore[index]
            out = type(whole).from_ndarray_like(view)
        else:
            out = spec.prototype.nd_buffer.empty(
                shape=inner.out_shape, dtype=spec.dtype.to_native_dtype(), order=spec.order
            )
        return ShardPart(self, chunk, result, inner, out)


class ShardPart:
    """The part of one shard that a selection needs.

    Parameters
    ----------
    layout
        The layout of the array's shards.
    chunk
        The shard.
    whole
        The result.
    needed
        The inner chunks that are needed.
    out
        Their destination: a part of the result, or a separate buffer.

    Attributes
    ----------
    inner
        The inner chunks that are needed.
    exists
        Whether the shard exists; None while that is unknown.
    """

    def __init__(
        self,
        layout: ShardLayout,
        chunk: Chunk,
        whole: Result,
        needed: Inner,
        out: NDBuffer,
    ) -> None:
        self.chunk = chunk
        self.key = chunk.key
        self.inner: Sequence[Chunk] = needed.chunks
        self.exists: bool | None = None
        self._is_separate = needed.out_shape is not None
        basic = not self._is_separate
        result = Result(layout.pipeline, layout.prepared, out, (), basic, chunk.key)
        self.result = result.observed(whole.lent)
        self.index = layout.index_of(chunk.spec.shape)
        self._layout = layout
        self._whole = whole
        self._out = out
        self._shape = needed.shape

    def size(self, wanted: Sequence[object]) -> int:
        """Return the decoded bytes of the inner chunks ``wanted``."""
        return len(wanted) * self._layout.inner_bytes

    def is_all(self, wanted: Sequence[Flight[Chunk]]) -> bool:
        """Return whether ``wanted`` has all inner chunks of the shard."""
        return self._layout.has_all([each.part.key for each in wanted], self.chunk.spec.shape)

    def index_range(self) -> tuple[int, int | None]:
        """Return the start and stop of the index, as in a slice of the shard."""
        size = self.index.size
        return (0, size) if self._layout.at_start else (-size, None)

    def cut_index(self, whole: Any | None) -> Any | None:
        """Return the bytes of the index in ``whole``, the shard; None if that is missing."""
        return None if whole is None else whole[slice(*self.index_range())]

    def ranges(
        self, index: Index | None, wanted: Sequence[Flight[Chunk]], gaps: tuple[int, int]
    ) -> tuple[list[ByteRange], list[bool]]:
        """Return the byte ranges to read, and which inner chunks exist; as the layout does."""
        return self._layout.ranges(index, wanted, gaps)

    def check_index(self, data: Any) -> None:
        """Verify the checksum of the index, ``data``; raises `DamagedDataError`."""
        # One of another size is truncated. Decoding it raises the error.
        if self._layout.check_index is not None and len(data) == self.index.size:
            self._layout.check_index(data)

    def check_range(self, data: Any, of: ByteRange) -> None:
        """Verify the checksums of the inner chunks in ``data``, the bytes of the range ``of``."""
        check = self._layout.check
        if check is not None and len(data) == of.stop - of.start:
            for start, stop, _ in of.spans:
                check(data[start - of.start : stop - of.start])

    def check_whole(self, data: Any, wanted: Sequence[Flight[Chunk]]) -> None:
        """Verify the checksums of the index and of the inner chunks ``wanted`` in the shard."""
        index = self.cut_index(data)
        self.check_index(index)
        if self._layout.check is not None:
            ranges, _ = self.ranges(self.index.decoder.array(index), wanted, gaps(self.chunk.spec))
            for each in ranges:
                self.check_range(data[each.start : each.stop], each)

    def finish(self) -> None:
        """Copy a separate buffer into the result."""
        if self._is_separate:
            part = self._out if self._shape is None else self._out.reshape(self._shape)
            self._whole.put_part(part, self.chunk)

    def missing(self) -> None:
        """Set the shard's part of the result to the fill value."""
        self._whole.put_part(None, self.chunk)


def index_name(shard: Chunk) -> Hashable:
    """Return a name for the index of ``shard``, unique in its store and decoding."""
    return shard.key, None, shard.spec.shape


class _Indexes:
    """The indexes of shards as `Parts` for `Sharing`, each given as a `ShardPart`."""

    keeps_missing = True

    def name(self, part: ShardPart) -> Hashable:
        return index_name(part.chunk)

    def decoded(self, data: Any, part: ShardPart) -> NDArray[Any]:
        index = part.index
        if len(data) != index.size:
            raise ValueError(
                f"the shard's index has {len(data)} bytes instead of {index.size}: "
                "the shard is truncated"
            )
        array = index.decoder.array(data).copy()
        array.flags.writeable = False
        return array

    def put(self, data: Any | None, part: ShardPart) -> Index | None:
        return None if data is None else self.decoded(data, part)

    def put_decoded(self, array: Index | None, part: ShardPart) -> Index | None:
        return array


INDEXES = _Indexes()


def gaps(spec: ArraySpec) -> tuple[int, int]:
    """Return the largest gap between byte ranges that are merged, and the largest merged range.

    Both in bytes. From zarr 3.3 on the array's configuration has them, before that zarr's.
    """
    return (
        _setting(spec, "sharding_coalesce_max_gap_bytes", 1 << 20),
        _setting(spec, "sharding_coalesce_max_bytes", 16 << 20),
    )


def _setting(spec: ArraySpec, name: str, default: int) -> int:
    found = getattr(spec.config, name, None)
    return int(zarr.config.get(f"array.{name}", default) if found is None else found)
