"""The plan of a read: the chunks that it requests, how, and why. Made without I/O."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from aioxarray._runtime.window import Part
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import chunk_name
from aioxarray._zarr.chunks.shards import ShardLayout, gaps, index_name
from aioxarray._zarr.codecs.decoders import decoding
from aioxarray._zarr.codecs.steps import check_of
from aioxarray._zarr.metadata.prefetched import PrefetchedStore
from aioxarray._zarr.selection import byte_count
from aioxarray._zarr.stores.sharing import flights_of
from aioxarray._zarr.stores.sources import LocalSource, ObjectSource, source_of

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._zarr.chunks.engines.by_tensorstore import Engine
    from aioxarray._zarr.chunks.result import Outline
    from aioxarray._zarr.compat import ArraySpec
    from aioxarray._zarr.selection import Chunk
    from aioxarray._zarr.stores.limited import Check


class Way(Enum):
    """How chunks are requested, and where they are decoded."""

    INLINE = "looked up and decoded on the event loop"
    THREADS = "read by plain calls in the decoding threads"
    FIRST_ANSWER = "requested by plain calls if the first answer is quick, else by coroutines"
    COROUTINES = "requested by coroutines, decoded in threads"
    TENSORSTORE = "read and decoded by the package tensorstore"
    ZARR = "read by zarr's own code"

    @property
    def label(self) -> str:
        """The name in lower case, for the user."""
        return self.name.lower().replace("_", " ")


class Planned(NamedTuple):
    """The request, or requests, for one key.

    Attributes
    ----------
    key
        The key in the store.
    part
        "all" for the whole value. "ranges" for the index of a shard, and then its inner chunks,
        with one request for neighbours; a shard that is needed completely is read with one.
    """

    key: str
    part: str


@dataclass(frozen=True)
class ReadPlan:
    """The steps of a read, apart from chunks that are cached or that another read is fetching.

    Attributes
    ----------
    pipeline
        The codec pipeline of the array.
    spec
        The specification of one of the chunks.
    store
        The store.
    source
        Reads the store with blocking calls; None if its coroutines are the better way.
    chunks
        The chunks or shards, with their selections; possibly an iterator.
    count
        The number of chunks.
    chunk_nbytes
        The decoded bytes of a chunk, or those needed of a shard.
    keeps
        Whether decoded chunks are kept for later reads.
    held
        The bytes held for each chunk while it is read: encoded and, possibly, decoded.
    outline
        The properties of the result that the chunks are read into.
    shards
        The layout of the shards; None if the chunks are not shards, or if zarr reads them.
    shared_as
        A key that is equal for reads that can share decoded chunks; None if nothing is shared.
    way, reason
        The way of reading, and why it was chosen.
    check
        Verifies the checksum of a chunk that is not a shard; None if it has none.
    engine
        The reads of TensorStore; None unless they are the way.
    """

    pipeline: Any
    spec: ArraySpec
    store: Store
    source: LocalSource | ObjectSource | None
    chunks: Iterable[Chunk]
    count: int
    chunk_nbytes: int
    keeps: bool
    held: int
    outline: Outline
    shards: ShardLayout | None
    shared_as: Hashable | None
    way: Way
    reason: str
    check: Check | None = None
    engine: Engine | None = None

    @property
    def nbytes(self) -> int:
        """The decoded bytes of all chunks."""
        return self.count * self.chunk_nbytes

    @property
    def inner_count(self) -> int:
        """The number of chunks, or about that of inner chunks if the chunks are shards."""
        if self.shards is None:
            return self.count
        return max(self.count, self.nbytes // max(1, self.shards.inner_bytes))

    def gaps(self, spec: ArraySpec) -> tuple[int, int]:
        """Return the largest gap and length of merged byte ranges of a shard, in bytes.

        ``spec`` is the specification of the shard.
        """
        if self.way is Way.THREADS:
            return tuning.LOCAL_GAP_BYTES, tuning.LOCAL_RANGE_BYTES
        return gaps(spec)

    def requests(self) -> Iterator[Planned]:
        """Yield the requests; iterates over `chunks`."""
        part = "all" if self.shards is None and self.way is not Way.ZARR else "ranges"
        for chunk in self.chunks:
            yield Planned(chunk.key, part)

    def parts(self) -> Iterator[Part]:
        """Yield the parts that reads share: chunks, or indexes and inner chunks of shards.

        There are none if nothing is shared, or if only zarr's own code knows them. Iterates over
        `chunks`.
        """
        if self.shared_as is None or self.way is Way.ZARR:
            return
        flights = flights_of(self.store, self.shared_as)
        for chunk in self.chunks:
            if self.shards is None:
                yield Part((flights, chunk_name(chunk)), self.chunk_nbytes)
                continue
            yield Part((flights, index_name(chunk)), self.shards.index_of(chunk.spec.shape).size)
            for inner in self.shards.inner(chunk, views=self.outline.views).chunks:
                yield Part((flights, chunk_name(inner, chunk.key)), self.shards.inner_bytes)


def plan_read(
    pipeline: Any,
    store: Store,
    chunks: Iterable[Chunk],
    count: int,
    spec: ArraySpec,
    outline: Outline,
    *,
    keeps: bool,
    shares: bool = False,
) -> ReadPlan:
    """Return the plan for reading ``count`` chunks of ``store``.

    Parameters
    ----------
    pipeline
        The codec pipeline of the array.
    spec
        The specification of one of the chunks.
    outline
        The properties of the result that the chunks are read into.
    keeps
        Whether decoded chunks are kept for later reads.
    shares
        Whether known reads beside this one need the same chunks.
    """
    if isinstance(store, PrefetchedStore):
        # It counts requests itself; a read that holds a place must not wait for a second one.
        store = store.counted_elsewhere()
    check = check_of(pipeline)
    source = source_of(store, check)
    partial: bool = pipeline.supports_partial_decode
    shards = ShardLayout.of(pipeline, spec) if partial else None
    # Reading memory or a local file again is faster than sharing the chunks.
    shared = (keeps or shares or source is None or source.remote) and outline.in_memory
    shared_as: Hashable | None = None
    if shared:
        shared_as = shards.decoding if shards else decoding(pipeline, outline.prepared, spec)
    nbytes = byte_count(spec.shape, spec.dtype.to_native_dtype())
    if shards is not None:
        # Only the selected inner chunks of a shard are read and held.
        wanted = byte_count(outline.shape, outline.dtype) // max(1, count)
        nbytes = min(nbytes, max(wanted, shards.inner_bytes))
    keeps = keeps and shared
    # For the cache, each chunk is decoded into a separate array.
    held = nbytes * (2 if keeps else outline.held_chunks)
    is_tiny = nbytes * count <= tuning.INLINE_BYTES and not outline.by_zarr and not shared
    way, reason = _way(source, is_sharded=partial, is_known=shards is not None, is_tiny=is_tiny)
    return ReadPlan(
        pipeline,
        spec,
        store,
        source,
        chunks,
        count,
        nbytes,
        keeps,
        held,
        outline,
        shards,
        shared_as,
        way,
        reason,
        check,
    )


def _way(
    source: LocalSource | ObjectSource | None, *, is_sharded: bool, is_known: bool, is_tiny: bool
) -> tuple[Way, str]:
    if is_sharded and not is_known:
        return Way.ZARR, "its inner chunks are encoded in a way that only zarr reads in part"
    if source is None:
        return (
            Way.COROUTINES,
            "its store has no plain calls, or a wrapper that must not be bypassed",
        )
    if isinstance(source, ObjectSource):
        if is_sharded:
            return Way.COROUTINES, "parts of remote shards are many small requests side by side"
        return Way.FIRST_ANSWER, "plain calls carry more requests of a server close by"
    if source.instant and is_tiny and not is_sharded:
        return Way.INLINE, "decoding so little takes less than a hop to a thread"
    return Way.THREADS, "the store is at hand"
