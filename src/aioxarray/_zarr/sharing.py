"""What is wanted of a store: taken from what is kept, awaited from who reads it already, or read.

Each part of a store (a chunk, an inner chunk of a shard, the index of a shard) has a name in a
table of its store and decoding. There a read finds the decoded part in the cache, or follows
another read that is at it, or leads: then it reads and decodes it, for others too.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from aioxarray._runtime.flights import Flight, Flights, Follower
from aioxarray._zarr.identity import Place, same
from aioxarray._zarr.reading import cache

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

W = TypeVar("W")
R = TypeVar("R")
W_contra = TypeVar("W_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

PartFlight = Flight[Hashable, Any]
# A part that this read has to read, and the flight that others may follow.
Lead = tuple[W, PartFlight | None]

# What an entry of the cache takes besides the bytes of its array.
_ENTRY_BYTES = 512
# The loop is let go on after so many bytes from the cache; each part takes a while, too.
_PACE_BYTES = 1 << 20
_PART_BYTES = 4 << 10


class Parts(Protocol[W_contra, R_co]):
    """A kind of parts, and what this read does with them.

    Attributes
    ----------
    keeps_missing
        Whether it is kept, too, that a part is missing.
    """

    keeps_missing: bool

    def name(self, part: W_contra) -> Hashable:
        """Return what tells ``part`` from all others of its store and decoding."""

    def decoded(self, data: Any, part: W_contra) -> NDArray[Any]:
        """Decode ``data`` into memory of its own that nobody writes to."""

    def put(self, data: Any | None, part: W_contra) -> R_co:
        """Decode ``data``, None where it is missing, and put it in its place."""

    def put_decoded(self, array: NDArray[Any] | None, part: W_contra) -> R_co:
        """Put a decoded part in its place; None is a missing one."""


class Table(Flights[Hashable, Any]):
    """The parts of one store, decoded in one way."""

    def __init__(self, place: Place, holds: object) -> None:
        super().__init__(cache)
        self.place = place
        # What the key of this table names by its address: it must not be another's meanwhile.
        self._holds = holds


_lock = threading.Lock()
# By store and decoding. A table lives as long as reads that use it, and entries of the cache.
_tables: weakref.WeakValueDictionary[Hashable, Table] = weakref.WeakValueDictionary()


def table_of(store: Store, decoding: Hashable) -> Table:
    """Return the table of ``store``, as a ``decoding`` gives its parts."""
    name, holds = same(store)
    with _lock:
        table = _tables.get((name, decoding))
    if table is None:
        # Not under the lock: this may ask the file system.
        place = Place.of(store)
        with _lock:
            table = _tables.setdefault((name, decoding), Table(place, (holds, store)))
    return table


def forget(store: Store) -> None:
    """Have reads that begin from now on get nothing that was read of ``store`` before.

    After writes. Reads that began before it neither have followers among them nor keep anything.
    """
    with _lock:
        if not _tables:
            return
    place = Place.of(store)
    with _lock:
        gone = [(key, table) for key, table in _tables.items() if table.place.meets(place)]
        for key, _ in gone:
            del _tables[key]
    for _, table in gone:
        table.close()


class Sharing(Generic[W, R]):
    """One read's part in what is read once, and in what is kept.

    Parameters
    ----------
    table
        Of the store and decoding; None if nothing is shared.
    parts
        What is read.
    keeps
        Whether what is read is kept.
    """

    def __init__(self, table: Table | None, parts: Parts[W, R], keeps: bool) -> None:
        self._table = table
        self._parts = parts
        self._keeps = keeps and table is not None
        self._pace = 0

    @property
    def shares(self) -> bool:
        """Whether others follow, and something may be known."""
        return self._table is not None

    @property
    def keeps(self) -> bool:
        """Whether each part is decoded into memory of its own."""
        return self._keeps

    def known(self, part: W) -> tuple[R] | None:
        """Put ``part`` in its place if it is kept; return what came of it, in a tuple."""
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
        """Put ``parts`` in their places; return what came of each.

        What is not known is read by ``lead``, without what others are reading. That is awaited
        afterwards, while nothing is held, and put in its place by those who read it. What these
        give up is read by ``lead`` in the end. An error that others have met is raised in the
        context ``noted`` of its part; ``lead`` says itself which part failed.
        """
        if self._table is None:
            return list(await lead([(part, None) for part in parts]))
        found: dict[int, R] = {}
        todo: Sequence[int] = range(len(parts))
        while todo:
            # Indexes of ``parts``, and what is done about these.
            mine: list[int] = []
            led: list[Lead[W]] = []
            followed: list[tuple[int, Follower[Any, R]]] = []
            try:
                for index in todo:
                    part = parts[index]
                    joined = self._join(part)
                    if isinstance(joined, Flight):
                        mine.append(index)
                        led.append((part, joined))
                    elif isinstance(joined, tuple):
                        found[index] = self._put_known(joined[0], part)
                        await self.breathe()
                    else:
                        followed.append((index, joined))
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
                for _, flight in led:
                    if flight is not None:
                        flight.give_up()
                for _, follower in followed:
                    await follower.withdraw()
        return list(map(found.__getitem__, range(len(parts))))

    def _join(self, part: W) -> tuple[Any] | PartFlight | Follower[Any, R]:
        assert self._table is not None
        return self._table.join(self._parts.name(part), self._parts.put_decoded, part)

    def _put_known(self, decoded: NDArray[Any] | None, part: W) -> R:
        self._pace += _PART_BYTES + (0 if decoded is None else decoded.nbytes)
        return self._parts.put_decoded(decoded, part)

    async def breathe(self) -> None:
        """Let the loop go on if it was held up by putting known parts in their places."""
        if self._pace > _PACE_BYTES:
            self._pace = 0
            await asyncio.sleep(0)

    def put(self, data: Any | None, lead: Lead[W]) -> R:
        """Decode ``data`` and put it in its place, here and in the reads that follow; keep it."""
        part, flight = lead
        if flight is None or self.is_alone(lead):
            return self._parts.put(data, part)
        with flight:
            decoded = None if data is None else self._parts.decoded(data, part)
            flight.land(decoded, self._size(decoded))
        return self._parts.put_decoded(decoded, part)

    def is_alone(self, lead: Lead[W]) -> bool:
        """Say whether nobody else gets what comes of ``lead``: then nobody can follow any more."""
        _, flight = lead
        return flight is None or not (self._keeps or flight.close())

    def keep(self, data: Any | None, part: W) -> R:
        """Decode ``data``, which came by the way, put it in its place and keep it."""
        if not self._keeps:
            return self._parts.put(data, part)
        assert self._table is not None
        decoded = None if data is None else self._parts.decoded(data, part)
        size = self._size(decoded)
        if size is not None:
            self._table.keep(self._parts.name(part), decoded, size)
        return self._parts.put_decoded(decoded, part)

    def _size(self, array: NDArray[Any] | None) -> int | None:
        """Return what ``array`` counts for in the cache; None if it is not kept."""
        if not self._keeps or (array is None and not self._parts.keeps_missing):
            return None
        return _ENTRY_BYTES + (0 if array is None else _byte_count(array))


def _byte_count(array: NDArray[Any]) -> int:
    if array.dtype.hasobject:
        return array.nbytes + sum(sys.getsizeof(each) for each in array.flat)
    if array.dtype.kind == "T":
        # Longer texts lie elsewhere; some are counted twice.
        return array.nbytes + sum(len(text.encode()) for text in array.flat)
    return array.nbytes


@contextmanager
def failing(leads: Sequence[Lead[Any]]) -> Iterator[None]:
    """Let those who follow ``leads`` fail with an error in the body."""
    try:
        yield
    except Exception as error:
        for _, flight in leads:
            if flight is not None:
                flight.fail(error)
        raise


def _reset_after_fork() -> None:
    # What was under way, or kept, belongs to the parent.
    global _lock
    _lock = threading.Lock()
    _tables.clear()
    cache.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
