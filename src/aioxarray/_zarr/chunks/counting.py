"""The requests that read plans would make now, counted without making any.

The stored sizes of chunks are unknown before they are read. So some counts are the most that can
be, and say so.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.flights import Flight, Flights
from aioxarray._zarr.chunks.plan import ReadPlan, Way
from aioxarray._zarr.chunks.result import chunk_name
from aioxarray._zarr.chunks.shards import ShardLayout, index_name
from aioxarray._zarr.chunks.small_chunks import SmallChunks
from aioxarray._zarr.codecs.decoders import obstacle
from aioxarray._zarr.selection import byte_count
from aioxarray._zarr.stores.file_chunks import FileChunks
from aioxarray._zarr.stores.identity import same
from aioxarray._zarr.stores.sharing import existing_flights_of

if TYPE_CHECKING:
    import numpy as np

    from aioxarray._zarr.codecs.decoders import Prepared
    from aioxarray._zarr.selection import Chunk


@dataclass(frozen=True)
class Count:
    """The requests of a plan, and the bytes that they move.

    Attributes
    ----------
    chunks, shards
        The chunks that the selection touches, inner chunks if there are shards; and the shards.
    shared
        Chunks for which no request is made: the cache has them, or another read brings them.
    requests, ranges
        All requests, and those for a part of a value; None if only zarr's own code knows them.
    wanted, fetched
        The bytes of the selected values, and of those requested; None if unknown: for values of any
        length, and those requested also if zarr's own codecs decode them.
    requests_are_exact, bytes_are_exact
        Whether ``requests`` and ``ranges``, and ``fetched``, are exact, if all chunks exist.
        Otherwise they are the most that can be.
    round_trips
        The requests that wait for one another.
    held
        The most bytes in memory for each read in progress, besides the result.
    reads
        The number of these reads.
    in_threads
        Whether decoding threads make the reads, so that there are no more of them at once.
    obstacle
        The codec or dtype because of which zarr's own codecs decode; None if plain functions do.
    """

    chunks: int
    shards: int
    shared: int
    requests: int | None
    ranges: int | None
    wanted: int | None
    fetched: int | None
    requests_are_exact: bool
    bytes_are_exact: bool
    round_trips: int | None
    held: int
    reads: int
    in_threads: bool
    obstacle: str | None


class Counter:
    """Counts the requests of the plans of one load, some of which may need the same chunks."""

    def __init__(self) -> None:
        self._counted: dict[Hashable, set[Hashable]] = {}
        # Objects whose ids are in the keys of these sets.
        self._holds: list[object] = []

    def count(self, plan: ReadPlan, *, overlaps: bool) -> Count:
        """Return the requests that ``plan`` makes beside those counted so far.

        ``overlaps`` tells whether the load reads the same array more than once.
        """
        if plan.way is Way.ZARR:
            return _by_zarr(plan)
        there = self._there(plan, overlaps)
        return _of_chunks(plan, there) if plan.shards is None else _of_shards(plan, there)

    def _there(self, plan: ReadPlan, overlaps: bool) -> _There | None:
        if plan.shared_as is None:
            return None
        flights = existing_flights_of(plan.store, plan.shared_as)
        counted = None
        if overlaps:
            name, holds = same(plan.store)
            self._holds.append(holds)
            counted = self._counted.setdefault((name, plan.shared_as), set())
        return None if flights is None and counted is None else _There(flights, counted)


class _There:
    """The parts of a store that a read need not request."""

    def __init__(self, flights: Flights | None, counted: set[Hashable] | None) -> None:
        self._flights = flights
        self._counted = counted

    def kept(self, name: Hashable) -> tuple[Any] | None:
        """Return the decoded part in a tuple if the cache has it."""
        return None if self._flights is None else self._flights.peek(name)

    def brings(self, name: Hashable) -> bool:
        """Return whether the cache, another load or a plan counted before brings a part.

        From then on, this plan does.
        """
        if self._flights is not None and (
            self._flights.is_open(name) or self._flights.peek(name) is not None
        ):
            return True
        if self._counted is None:
            return False
        if name in self._counted:
            return True
        self._counted.add(name)
        return False


def _wanted(plan: ReadPlan) -> int | None:
    outline = plan.outline
    return byte_count(outline.shape, outline.dtype) if _is_fixed(outline.dtype) else None


def _is_fixed(dtype: np.dtype[Any]) -> bool:
    """Return whether all elements have the same number of bytes."""
    return not (dtype.hasobject or dtype.kind == "T")


def _encoded(prepared: Prepared | None, nbytes: int) -> tuple[int, bool]:
    """Return the most stored bytes of a chunk of ``nbytes`` decoded ones; whether it is exact.

    It means nothing if zarr's own codecs decode (``prepared`` is None).
    """
    extra = None if prepared is None else prepared.longer_by
    # Data that does not compress becomes longer: with lz4 by n / 255 + 20 bytes, with zstd by
    # n / 256 + 64, with gzip and blosc by less.
    return (nbytes + nbytes // 128 + 128, False) if extra is None else (nbytes + extra, True)


# --- chunks ----------------------------------------------------------------------------------


def _of_chunks(plan: ReadPlan, there: _There | None) -> Count:
    prepared = plan.outline.prepared
    size, is_exact = _encoded(prepared, plan.chunk_nbytes)
    needed = requests = plan.count
    fetched, ranges = needed * size, 0
    file = plan.store if isinstance(plan.store, FileChunks) else None
    # Chunks that zarr's indexing found may have different shapes.
    if file is not None or there is not None or isinstance(plan.chunks, list):
        needed = requests = fetched = 0
        for chunk in plan.chunks:
            if there is not None and there.brings(chunk_name(chunk)):
                continue
            needed += 1
            nbytes = byte_count(chunk.spec.shape, plan.outline.dtype)
            stored = _encoded(prepared, nbytes)[0] if file is None else file.length_of(chunk.key)
            if stored is not None:
                requests += 1
                fetched += stored
    if file is not None:
        ranges, is_exact = requests, True
    is_known = prepared is not None or file is not None
    in_threads = plan.way in (Way.THREADS, Way.INLINE)
    held, reads = plan.held, requests
    if plan.engine is not None:
        held, reads = plan.engine.held, 1
    elif in_threads and SmallChunks.can_read(prepared, plan.chunk_nbytes, keeps=plan.keeps):
        held = SmallChunks.held_for(plan.chunk_nbytes)
    return Count(
        chunks=plan.count,
        shards=0,
        shared=plan.count - needed,
        requests=requests,
        ranges=ranges,
        wanted=_wanted(plan),
        fetched=fetched if is_known else None,
        requests_are_exact=True,
        bytes_are_exact=is_exact and is_known,
        round_trips=min(requests, 1),
        held=held,
        reads=reads,
        in_threads=in_threads,
        obstacle=None if prepared else obstacle(plan.pipeline, plan.spec),
    )


# --- shards ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The requests for one shard."""

    chunks: int
    shared: int
    requests: int = 0
    ranges: int = 0
    fetched: int = 0
    requests_are_exact: bool = True
    bytes_are_exact: bool = True
    round_trips: int = 0
    held: int = 0


def _of_shards(plan: ReadPlan, there: _There | None) -> Count:
    layout = plan.shards
    assert layout is not None
    # Most shards are read in the same way as others.
    alike: dict[Hashable, _Part] = {}
    chunks = shared = requests = ranges = fetched = round_trips = held = 0
    requests_are_exact = True
    prepared = layout.prepared
    bytes_are_exact = prepared is not None
    for chunk in plan.chunks:
        likeness = _likeness(chunk) if there is None else None
        part = None if likeness is None else alike.get(likeness)
        if part is None:
            part = _of_shard(plan, layout, chunk, there)
            if likeness is not None:
                alike[likeness] = part
        chunks += part.chunks
        shared += part.shared
        requests += part.requests
        ranges += part.ranges
        fetched += part.fetched
        requests_are_exact = requests_are_exact and part.requests_are_exact
        bytes_are_exact = bytes_are_exact and part.bytes_are_exact
        round_trips = max(round_trips, part.round_trips)
        held = max(held, part.held)
    in_threads = plan.way is Way.THREADS
    return Count(
        chunks=chunks,
        shards=plan.count,
        shared=shared,
        requests=requests,
        ranges=ranges,
        wanted=_wanted(plan),
        fetched=None if prepared is None else fetched,
        requests_are_exact=requests_are_exact,
        bytes_are_exact=bytes_are_exact,
        round_trips=round_trips,
        held=plan.held if in_threads else held,
        reads=plan.count if requests else 0,
        in_threads=in_threads,
        obstacle=None if prepared else obstacle(layout.pipeline, layout.inner_spec),
    )


def _likeness(chunk: Chunk) -> Hashable | None:
    """Return a key that shards share if the same is selected in them; None if they are unique."""
    inside = chunk.inside
    if not isinstance(inside, tuple):
        return None
    parts: list[Hashable] = [chunk.spec.shape]
    for part in inside:
        if isinstance(part, slice):
            parts.append((part.start, part.stop, part.step))
        elif isinstance(part, int):
            parts.append(part)
        else:
            return None
    return tuple(parts)


def _of_shard(plan: ReadPlan, layout: ShardLayout, shard: Chunk, there: _There | None) -> _Part:
    needed = layout.inner(shard, views=plan.outline.views).chunks
    name, shape = index_name(shard), shard.spec.shape
    kept = None if there is None else there.kept(name)
    if kept is not None and kept[0] is None:
        # It is known to be missing.
        return _Part(len(needed), shared=len(needed))
    led = needed
    if there is not None:
        led = [each for each in needed if not there.brings(chunk_name(each, shard.key))]
    part = _Part(len(needed), len(needed) - len(led), held=len(led) * layout.inner_bytes)
    if not led:
        return part
    size, is_exact = _encoded(layout.prepared, layout.inner_bytes)
    index = layout.index_of(shape)
    whole = index.size + index.count * size
    if plan.way is Way.COROUTINES and layout.has_all([each.key for each in led], shape):
        return replace(part, requests=1, fetched=whole, bytes_are_exact=is_exact, round_trips=1)
    gaps = plan.gaps(shard.spec)
    if kept is not None:
        ranges, _ = layout.ranges(kept[0], [Flight(each) for each in led], gaps)
        count, nbytes = len(ranges), sum(each.stop - each.start for each in ranges)
        trips = min(count, 1)
        return replace(part, requests=count, ranges=count, fetched=nbytes, round_trips=trips)
    # Where the inner chunks are is unknown: neighbours take one request, with the gap between them.
    nbytes = min(len(led) * size + (len(led) - 1) * gaps[0], whole)
    count = len(led)
    if there is None or not there.brings(name):
        nbytes += index.size
        count += 1
    is_one = len(led) == 1
    return replace(
        part,
        requests=count,
        ranges=count,
        fetched=nbytes,
        requests_are_exact=is_one,
        bytes_are_exact=is_exact and is_one,
        round_trips=2,
    )


def _by_zarr(plan: ReadPlan) -> Count:
    return Count(
        chunks=plan.count,
        shards=plan.count,
        shared=0,
        requests=None,
        ranges=None,
        wanted=_wanted(plan),
        fetched=None,
        requests_are_exact=False,
        bytes_are_exact=False,
        round_trips=None,
        held=plan.chunk_nbytes,
        reads=plan.count,
        in_threads=False,
        obstacle=None,
    )
