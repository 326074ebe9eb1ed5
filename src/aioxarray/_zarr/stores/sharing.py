"""Sharing of reads: the cache of decoded chunks, and reads that wait for others in progress.

Each part of a store (a chunk, an inner chunk of a shard, the index of a shard) has a name in the
`Flights` for its store and decoding. There a read finds the decoded part in the cache, or follows
another read that is fetching it, or leads: then it gets a `Flight`, and fetches and decodes the
part for its followers.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aioxarray._runtime.flights import Flight, Flights, FlightStatistics, withdraw
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.window import Window
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.grants import cache
from aioxarray._zarr.stores.identity import Place, same
from aioxarray._zarr.stores.observing.observers import tell_cached, tell_shared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

W = TypeVar("W")
R = TypeVar("R")
W_contra = TypeVar("W_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


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


_lock = threading.Lock()
# By store and decoding. They live as long as a read or an entry of the cache refers to them.
_all: weakref.WeakValueDictionary[Hashable, Flights] = weakref.WeakValueDictionary()


def flights_of(store: Store, decoding: Hashable) -> Flights:
    """Return the flights, and the cached parts, of ``store`` under ``decoding``."""
    name, holds = same(store)
    with _lock:
        flights = _all.get((name, decoding))
    if flights is None:
        # Without the lock, since this may access the file system.
        place = Place.of(store)
        with _lock:
            flights = _all.setdefault((name, decoding), Flights(cache, place, (holds, store)))
    return flights


def existing_flights_of(store: Store, decoding: Hashable) -> Flights | None:
    """Return the flights of ``store`` under ``decoding``; None if nothing was read so far."""
    name, _ = same(store)
    with _lock:
        return _all.get((name, decoding))


def statistics() -> FlightStatistics:
    """Return what reads of this process have under way together, and how many reads follow them."""
    with _lock:
        listed = list(_all.values())
    each = [flights.statistics() for flights in listed]
    return FlightStatistics(sum(one.flights for one in each), sum(one.followers for one in each))


def forget(store: Store) -> None:
    """Invalidate everything read from ``store`` so far, for reads that start from now on.

    Called after writes. Reads in progress go on, but get no new followers and are not cached.
    """
    with _lock:
        if not _all:
            return
    place = Place.of(store)
    with _lock:
        gone = [(key, flights) for key, flights in _all.items() if flights.place.overlaps(place)]
        for key, _ in gone:
            del _all[key]
    for _, flights in gone:
        flights.close()


class Sharing:
    """The access of one read to shared reads and to the cache.

    Parameters
    ----------
    flights
        Those of the store and decoding; None if nothing is shared.
    keeps
        Whether decoded parts are kept in the cache.
    window
        Keeps parts for the known reads that need them; None if no other reads are known.
    """

    def __init__(self, flights: Flights | None, keeps: bool, window: Window | None = None) -> None:
        self._flights = flights
        self._keeps = keeps and flights is not None
        self._window = window
        self._pace = 0

    @property
    def shares(self) -> bool:
        """Whether other reads may follow this one, and the cache may have parts."""
        return self._flights is not None

    @property
    def keeps(self) -> bool:
        """Whether decoded parts are kept in the cache, and so each decoded into a new array."""
        return self._keeps

    def known(self, kind: Parts[W, R], part: W) -> tuple[R] | None:
        """Put ``part`` in the result if the cache has it; return the outcome in a tuple."""
        if self._flights is None:
            return None
        name = kind.name(part)
        kept = self._flights.known(name) or self._in_window(self._flights, name)
        return None if kept is None else (self._put_known(kind, name, kept[0], part),)

    def lead(self, kind: Parts[W, R], part: W) -> Flight[W] | None:
        """Return a flight for ``part``, which the caller ends, if only a request can provide it.

        None if it is in the cache or in the window, or if another read is fetching it; then call
        `read`, which for a single part costs several times as much.
        """
        if self._flights is None:
            return Flight(part)
        return None if self._window is not None else self._flights.lead(kind.name(part), part)

    async def read(
        self,
        kind: Parts[W, R],
        parts: Sequence[W],
        lead: Callable[[Sequence[Flight[W]]], Awaitable[list[R]]],
        noted: Callable[[W], AbstractContextManager[None]] | None = None,
    ) -> list[R]:
        """Put ``parts`` in the result, and return the outcome of each.

        ``lead`` reads the parts that are neither in the cache nor being read elsewhere. The latter
        are awaited afterwards, without holding places in budgets; the leading read puts them in the
        result. If it gives up, ``lead`` reads them, too. An error of another read is raised in the
        context ``noted(part)``; ``lead`` adds such notes itself.
        """
        if self._flights is None:
            return await lead([Flight(part) for part in parts])
        found: dict[int, R] = {}
        todo: Sequence[int] = range(len(parts))
        while todo:
            # The indices of the parts in ``led``; those of the others are in ``followed``.
            mine: list[int] = []
            led: list[Flight[W]] = []
            followed: list[tuple[int, Future[tuple[R] | None]]] = []
            try:
                for index in todo:
                    part = parts[index]
                    name = kind.name(part)
                    joined = self._flights.join(name, part, kind.put_decoded)
                    # A flight lands only after its part is in the window, if it is kept there.
                    if isinstance(joined, Flight) and (
                        kept := self._in_window(self._flights, name, to_fetch=True)
                    ):
                        joined.land(kept[0])
                        joined = kept
                    if isinstance(joined, Flight):
                        mine.append(index)
                        led.append(joined)
                    elif isinstance(joined, tuple):
                        found[index] = self._put_known(kind, name, joined[0], part)
                        await self.keep_pace()
                    else:
                        followed.append((index, joined))
                        tell_shared(name)
                if led:
                    found.update(zip(mine, await lead(led), strict=True))
                todo = []
                for index, follower in followed:
                    with noted(parts[index]) if noted else nullcontext():
                        outcome = await asyncio.wrap_future(follower)
                    if outcome is None:
                        todo.append(index)
                    else:
                        (found[index],) = outcome
            finally:
                for flight in led:
                    flight.give_up()
                for _, follower in followed:
                    await withdraw(follower)
        return list(map(found.__getitem__, range(len(parts))))

    def _in_window(
        self, flights: Flights, name: Hashable, *, to_fetch: bool = False
    ) -> tuple[Any] | None:
        """Return a part in a tuple if the window keeps it.

        ``to_fetch`` tells that the caller fetches it if not.
        """
        if self._window is None:
            return None
        kept = self._window.get((flights, name))
        if kept is None and to_fetch:
            self._window.fetching((flights, name))
        return kept

    def _put_known(
        self, kind: Parts[W, R], name: Hashable, decoded: NDArray[Any] | None, part: W
    ) -> R:
        tell_cached(name)
        self._pace += tuning.PACE_PART_BYTES + (0 if decoded is None else decoded.nbytes)
        return kind.put_decoded(decoded, part)

    async def keep_pace(self) -> None:
        """Yield to the event loop if copying parts from the cache has kept it busy."""
        if self._pace > tuning.PACE_BYTES:
            self._pace = 0
            await asyncio.sleep(0)

    def put(self, kind: Parts[W, R], data: Any | None, flight: Flight[W]) -> R:
        """Decode ``data``, put it in the results of this read and its followers, and cache it."""
        if self.is_unshared(flight):
            return kind.put(data, flight.part)
        with flight:
            decoded = None if data is None else kind.decoded(data, flight.part)
            return self._put_array(kind, decoded, flight)

    def put_array(self, kind: Parts[W, R], array: NDArray[Any], flight: Flight[W]) -> R:
        """Do the same as `put` with a decoded part, which is not modified afterwards."""
        with flight:
            return self._put_array(kind, array, flight)

    def _put_array(self, kind: Parts[W, R], array: NDArray[Any] | None, flight: Flight[W]) -> R:
        if self._window is not None and self._flights is not None:
            self._window.keep((self._flights, flight.key), array)
        flight.land(array, self._size(kind, array))
        return kind.put_decoded(array, flight.part)

    def is_unshared(self, flight: Flight[Any]) -> bool:
        """Return whether only this read needs the part; if so, no read can follow it any more."""
        return not (self._keeps or self._is_needed(flight.key) or flight.close())

    def _is_needed(self, name: Hashable) -> bool:
        """Return whether the window should keep a part."""
        if self._window is None or self._flights is None:
            return False
        return self._window.needs((self._flights, name))

    def keep(self, kind: Parts[W, R], data: Any | None, part: W) -> R:
        """Decode ``data`` that was fetched with other data, put it in the result, and cache it."""
        name = kind.name(part)
        if not (self._keeps or self._is_needed(name)):
            return kind.put(data, part)
        assert self._flights is not None
        decoded = None if data is None else kind.decoded(data, part)
        if self._window is not None:
            self._window.keep((self._flights, name), decoded)
        size = self._size(kind, decoded)
        if size is not None:
            self._flights.keep(name, decoded, size)
        return kind.put_decoded(decoded, part)

    def _size(self, kind: Parts[Any, Any], array: NDArray[Any] | None) -> int | None:
        """Return the size in bytes of a cache entry for ``array``; None if it is not cached."""
        if not self._keeps or (array is None and not kind.keeps_missing):
            return None
        return tuning.CACHE_ENTRY_BYTES + (0 if array is None else _nbytes(array))


def _nbytes(array: NDArray[Any]) -> int:
    if array.dtype.hasobject:
        return array.nbytes + sum(sys.getsizeof(each) for each in array.flat)
    if array.dtype.kind == "T":
        # Longer strings are stored outside the array's buffer; short ones are counted twice.
        return array.nbytes + sum(len(text.encode()) for text in array.flat)
    return array.nbytes


@after_fork
def _reset_after_fork() -> None:
    # Reads in progress and the cache belong to the parent.
    global _lock
    _lock = threading.Lock()
    _all.clear()
    cache.reset()
