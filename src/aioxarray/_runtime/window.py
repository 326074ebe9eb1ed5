"""Decoded parts of stores that several known reads need: each is kept until the last has it.

A part is a chunk, an inner chunk of a shard, or the index of a shard; see
`aioxarray._zarr.stores.sharing`. A stream announces the parts of each piece that it knows, so that
a part is fetched and decoded once for all pieces that need it, if there is room for it meanwhile.
"""

from __future__ import annotations

import math
import threading
from bisect import insort
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from aioxarray._runtime.flights import Flights

# Room is reserved for a part if one of so many next reads needs it. A part that is needed later is
# kept while there is room.
_NEAR = 32

# The flights of a store and decoding, and the name of a part there.
Key = tuple["Flights", Hashable]


class Part(NamedTuple):
    """A part that a read needs, and the bytes that it takes once it is decoded."""

    key: Key
    nbytes: int


@dataclass(frozen=True, slots=True)
class WindowStatistics:
    """The state of a `Window` at one moment.

    Attributes
    ----------
    fetched, repeated
        The announced parts that were fetched, and how many of them were fetched again, since there
        was no room to keep them.
    kept, nbytes
        The parts that are kept, and the bytes of these and of those in flight that will be.
    """

    fetched: int
    repeated: int
    kept: int
    nbytes: int


class _Entry:
    """A part: the reads that need it, and its value, if it is kept."""

    __slots__ = ("begun", "is_counted", "nbytes", "readers", "value", "was_left_out")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        # The serial numbers of the reads that are not done, and how many have begun: the first.
        self.readers: list[int] = []
        self.begun = 0
        self.value: tuple[Any] | None = None
        # Whether its bytes count: it is kept, or in flight with its room reserved.
        self.is_counted = False
        # Whether it was fetched, and there was no room for it.
        self.was_left_out = False

    @property
    def next(self) -> float:
        """The first of the reads that have not begun."""
        return self.readers[self.begun] if self.begun < len(self.readers) else math.inf


class Window:
    """The parts that known reads need, and those that are kept for them; thread-safe.

    Attributes
    ----------
    limit
        The most bytes of parts, including those in flight for several reads; a part beyond is not
        kept, and fetched again by the next read that needs it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry] = {}
        self._nbytes = 0
        # The read that has begun last.
        self._last = 0
        # The entries with a value.
        self._kept: dict[Key, _Entry] = {}
        self._fetched = self._repeated = 0
        self.limit: float = math.inf

    @property
    def nbytes(self) -> int:
        """The bytes of the parts that are kept, and of those in flight that will be."""
        return self._nbytes

    def statistics(self) -> WindowStatistics:
        """Return the state at this moment."""
        with self._lock:
            return WindowStatistics(self._fetched, self._repeated, len(self._kept), self._nbytes)

    # --- the reads, in order -----------------------------------------------------------------

    def announce(self, serial: int, parts: Sequence[Part]) -> None:
        """Add a read that will need ``parts``; ``serial`` grows in the order of the reads."""
        with self._lock:
            for key, nbytes in parts:
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._entries[key] = _Entry(nbytes)
                # Usually the last: a piece that is opened first is known late.
                insort(entry.readers, serial)
                self._count(entry)

    def cost(self, parts: Sequence[Part]) -> int:
        """Return the bytes that would count in addition if the next read, of ``parts``, began."""
        total = 0
        with self._lock:
            for key, _ in parts:
                entry = self._entries[key]
                after = entry.begun + 1
                if not entry.is_counted and after < len(entry.readers):
                    total += entry.nbytes if self._is_near(entry.readers[after]) else 0
        return total

    def begin(self, serial: int, parts: Sequence[Part]) -> None:
        """Count ``parts`` as needed by a read in progress, the one with ``serial``."""
        with self._lock:
            self._last = serial
            for key, _ in parts:
                entry = self._entries[key]
                entry.begun += 1
                self._count(entry)

    def end(self, serial: int, parts: Sequence[Part]) -> None:
        """Remove the read ``serial``, which has begun; drop ``parts`` that no other read needs."""
        # Here and below, dropped values are freed after the lock has been released.
        gone = []
        with self._lock:
            for key, _ in parts:
                entry = self._entries[key]
                entry.readers.remove(serial)
                entry.begun -= 1
                if not entry.readers:
                    del self._entries[key]
                    gone.append(self._drop(key, entry))
                else:
                    self._count(entry)
        del gone

    def make_room(self, nbytes: int, half: int, needed: Sequence[Part]) -> None:
        """Drop kept parts of ``nbytes`` bytes, those that are needed last first.

        Parts that reads in progress need, or the next read, which needs ``needed``, are kept; and
        ``half`` bytes for the reads soon after it.
        """
        with self._lock:
            gone = self._make_room(nbytes, half, {key for key, _ in needed}, 0)
        del gone

    def _make_room(
        self, nbytes: float, half: int, needed: Container[Key], after: float
    ) -> list[Any]:
        """Drop kept parts as `make_room` does, only those that are needed later than ``after``."""
        gone: list[Any] = []
        if nbytes <= 0:
            return gone
        idle = [
            (entry.next, key, entry)
            for key, entry in self._kept.items()
            if not entry.begun and entry.next > after and key not in needed
        ]
        idle.sort(key=lambda each: -each[0])
        for reader, key, entry in idle:
            if nbytes <= 0 or (self._is_near(reader) and self._nbytes <= half):
                break
            nbytes -= entry.nbytes
            entry.was_left_out = True
            gone.append(self._drop(key, entry))
        return gone

    def _is_near(self, serial: float) -> bool:
        return serial - self._last <= _NEAR

    def _count(self, entry: _Entry) -> None:
        """Have the bytes of a part count if it is, or will be, kept for another read."""
        counts = entry.value is not None or (entry.begun > 0 and self._is_near(entry.next))
        if counts != entry.is_counted:
            entry.is_counted = counts
            self._nbytes += entry.nbytes if counts else -entry.nbytes

    def _drop(self, key: Key, entry: _Entry) -> Any:
        value, entry.value = entry.value, None
        self._kept.pop(key, None)
        if entry.is_counted:
            entry.is_counted = False
            self._nbytes -= entry.nbytes
        return value

    # --- the parts, from any thread ----------------------------------------------------------

    def needs(self, key: Key) -> bool:
        """Return whether more than one read needs the part."""
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and len(entry.readers) > 1

    def get(self, key: Key) -> tuple[Any] | None:
        """Return the decoded part in a tuple if it is kept."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None else entry.value

    def fetching(self, key: Key) -> None:
        """Count that the part is fetched."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._fetched += 1
                self._repeated += entry.was_left_out
                entry.was_left_out = False

    def keep(self, key: Key, value: Any) -> None:
        """Keep the decoded part, if another read needs it and there is room."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.value is not None or len(entry.readers) < 2:
                return
            in_addition = 0 if entry.is_counted else entry.nbytes
            # In place of parts that are needed later.
            gone = self._make_room(self._nbytes + in_addition - self.limit, 0, (), entry.next)
            if self._nbytes + in_addition <= self.limit:
                entry.value = (value,)
                self._kept[key] = entry
                self._count(entry)
            else:
                entry.was_left_out = True
        del gone
