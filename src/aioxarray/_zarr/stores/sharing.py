"""Sharing of reads: the cache of decoded chunks, and reads that wait for others in progress.

Each part of a store (a chunk, an inner chunk of a shard, the index of a shard) has a name in a
table for its store and decoding. There a read finds the decoded part in the cache, or follows
another read that is fetching it, or leads: then it fetches and decodes the part for its followers.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from aioxarray._runtime.flights import Flight, Flights, FlightStatistics, Follower
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.grants import cache
from aioxarray._zarr.stores.identity import Place, same
from aioxarray._zarr.stores.request import tell_shared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

W = TypeVar("W")
R = TypeVar("R")
W_contra = TypeVar("W_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

PartFlight = Flight[Hashable, Any]


class Lead(NamedTuple, Generic[W]):
    """A part that this read has to fetch, and the flight that other reads may follow.

    The flight is None if the part is not shared.
    """

    part: W
    flight: PartFlight | None


class Parts(Protocol[W_contra, R_co]):
    """A kind of parts, and how this read decodes them and puts them in its result.

    Attributes
    ----------
    keeps_missing
        Whether the cache also records that a part is missing.
    """

    keeps_missing: bool

    def name(self, part: W_contra) -> Hashable:
        """Return a name for ``part``, unique in its store and decoding."""

    def decoded(self, data: Any, part: W_contra) -> NDArray[Any]:
        """Decode ``data`` into a new array, which is not modified afterwards."""

    def put(self, data: Any | None, part: W_contra) -> R_co:
        """Decode ``data``, None for a missing part, and put the values in the result."""

    def put_decoded(self, array: NDArray[Any] | None, part: W_contra) -> R_co:
        """Put a decoded part, None if it is missing, in the result."""


class Table(Flights[Hashable, Any]):
    """The parts of one store, decoded in one way."""

    def __init__(self, place: Place, holds: object) -> None:
        super().__init__(cache)
        self.place = place
        # Kept alive, because its id is part of the key of this table.
        self._holds = holds


_lock = threading.Lock()
# By store and decoding. A table lives as long as a read or an entry of the cache refers to it.
_tables: weakref.WeakValueDictionary[Hashable, Table] = weakref.WeakValueDictionary()


def table_of(store: Store, decoding: Hashable) -> Table:
    """Return the table of the parts of ``store`` under ``decoding``."""
    name, holds = same(store)
    with _lock:
        table = _tables.get((name, decoding))
    if table is None:
        # Without the lock, since this may access the file system.
        place = Place.of(store)
        with _lock:
            table = _tables.setdefault((name, decoding), Table(place, (holds, store)))
    return table


def statistics() -> FlightStatistics:
    """Return what reads of this process have under way together, and how many reads follow them."""
    with _lock:
        tables = list(_tables.values())
    each = [table.statistics() for table in tables]
    return FlightStatistics(sum(one.flights for one in each), sum(one.followers for one in each))


def forget(store: Store) -> None:
    """Invalidate everything read from ``store`` so far, for reads that start from now on.

    Called after writes. Reads in progress go on, but get no new followers and are not cached.
    """
    with _lock:
        if not _tables:
            return
    place = Place.of(store)
    with _lock:
        gone = [(key, table) for key, table in _tables.items() if table.place.overlaps(place)]
        for key, _ in gone:
            del _tables[key]
    for _, table in gone:
        table.close()


class Sharing(Generic[W, R]):
    """The access of one read to shared reads and to the cache.

    Parameters
    ----------
    table
        The table for the store and decoding; None if nothing is shared.
    parts
        How the parts are decoded and put in the result.
    keeps
        Whether decoded parts are kept in the cache.
    """

    def __init__(self, table: Table | None, parts: Parts[W, R], keeps: bool) -> None:
        self._table = table
        self._parts = parts
        self._keeps = keeps and table is not None
        self._pace = 0

    @property
    def shares(self) -> bool:
        """Whether other reads may follow this one, and the cache may have parts."""
        return self._table is not None

    @property
    def keeps(self) -> bool:
        """Whether decoded parts are kept in the cache, and so each decoded into a new array."""
        return self._keeps

    def known(self, part: W) -> tuple[R] | None:
        """Put ``part`` in the result if the cache has it; return the outcome in a tuple."""
        if self._table is None:
            return None
        kept = self._table.known(self._parts.name(part))
        return None if kept is None else (self._put_known(kept[0], part),)

    async def read(
        self,
        parts: Sequence[W],
        lead: Callable[[Sequence[Lead[W]]], Awaitable[Sequence[R]]],
        noted: Callable[[W], AbstractContextManager[None]] | None = None,
    ) -> list[R]:
        """Put ``parts`` in the result, and return the outcome of each.

        ``lead`` reads the parts that are neither in the cache nor being read elsewhere. The latter
        are awaited afterwards, without holding places in budgets; the leading read puts them in the
        result. If it gives up, ``lead`` reads them, too. An error of another read is raised in the
        context ``noted(part)``; ``lead`` adds such notes itself.
        """
        if self._table is None:
            return list(await lead([Lead(part, None) for part in parts]))
        found: dict[int, R] = {}
        todo: Sequence[int] = range(len(parts))
        while todo:
            # The indices of the parts in ``led``; those of the others are in ``followed``.
            mine: list[int] = []
            led: list[Lead[W]] = []
            followed: list[tuple[int, Follower[Any, R]]] = []
            try:
                for index in todo:
                    part = parts[index]
                    joined = self._join(part)
                    if isinstance(joined, Flight):
                        mine.append(index)
                        led.append(Lead(part, joined))
                    elif isinstance(joined, tuple):
                        found[index] = self._put_known(joined[0], part)
                        await self.keep_pace()
                    else:
                        followed.append((index, joined))
                        tell_shared(self._parts.name(part))
                if led:
                    found.update(zip(mine, await lead(led), strict=True))
                todo = []
                for index, follower in followed:
                    with noted(parts[index]) if noted else nullcontext():
                        outcome = await follower.outcome()
                    if outcome is None:
                        todo.append(index)
                    else:
                        (found[index],) = outcome
            finally:
                for each in led:
                    if each.flight is not None:
                        each.flight.give_up()
                for _, follower in followed:
                    await follower.withdraw()
        return list(map(found.__getitem__, range(len(parts))))

    def _join(self, part: W) -> tuple[Any] | PartFlight | Follower[Any, R]:
        assert self._table is not None
        return self._table.join(self._parts.name(part), self._parts.put_decoded, part)

    def _put_known(self, decoded: NDArray[Any] | None, part: W) -> R:
        self._pace += tuning.PACE_PART_BYTES + (0 if decoded is None else decoded.nbytes)
        return self._parts.put_decoded(decoded, part)

    async def keep_pace(self) -> None:
        """Yield to the event loop if copying parts from the cache has kept it busy."""
        if self._pace > tuning.PACE_BYTES:
            self._pace = 0
            await asyncio.sleep(0)

    def put(self, data: Any | None, lead: Lead[W]) -> R:
        """Decode ``data``, put it in the results of this read and its followers, and cache it."""
        part, flight = lead
        if flight is None or self.is_unshared(lead):
            return self._parts.put(data, part)
        with flight:
            decoded = None if data is None else self._parts.decoded(data, part)
            flight.land(decoded, self._size(decoded))
        return self._parts.put_decoded(decoded, part)

    def is_unshared(self, lead: Lead[W]) -> bool:
        """Return whether only this read needs the part; if so, no read can follow it any more."""
        return lead.flight is None or not (self._keeps or lead.flight.close())

    def keep(self, data: Any | None, part: W) -> R:
        """Decode ``data`` that was fetched with other data, put it in the result, and cache it."""
        if not self._keeps:
            return self._parts.put(data, part)
        assert self._table is not None
        decoded = None if data is None else self._parts.decoded(data, part)
        size = self._size(decoded)
        if size is not None:
            self._table.keep(self._parts.name(part), decoded, size)
        return self._parts.put_decoded(decoded, part)

    def _size(self, array: NDArray[Any] | None) -> int | None:
        """Return the size in bytes of a cache entry for ``array``; None if it is not cached."""
        if not self._keeps or (array is None and not self._parts.keeps_missing):
            return None
        return tuning.CACHE_ENTRY_BYTES + (0 if array is None else _nbytes(array))


def _nbytes(array: NDArray[Any]) -> int:
    if array.dtype.hasobject:
        return array.nbytes + sum(sys.getsizeof(each) for each in array.flat)
    if array.dtype.kind == "T":
        # Longer strings are stored outside the array's buffer; short ones are counted twice.
        return array.nbytes + sum(len(text.encode()) for text in array.flat)
    return array.nbytes


@contextmanager
def failing(leads: Sequence[Lead[Any]]) -> Iterator[None]:
    """Make the followers of ``leads`` fail with any error that is raised in the body."""
    try:
        yield
    except Exception as error:
        for lead in leads:
            if lead.flight is not None:
                lead.flight.fail(error)
        raise


@after_fork
def _reset_after_fork() -> None:
    # Reads in progress and the cache belong to the parent.
    global _lock
    _lock = threading.Lock()
    _tables.clear()
    cache.reset()
