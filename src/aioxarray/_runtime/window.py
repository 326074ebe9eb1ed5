"""Decoded parts of stores that several known reads need: each is kept until the last has it.

A part is a chunk, an inner chunk of a shard, or the index of a shard; see
`aioxarray._zarr.stores.sharing`. A stream announces the parts of each piece that it knows, so that
a part is fetched and decoded once for all pieces that need it, if there is room for it meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from aioxarray._runtime.flights import Flights

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
        # The serial numbers of the reads that are not done, and how many of these have begun.
        self.readers: list[int] = []
        self.begun = 0
        self.value: tuple[Any] | None = None
        # Whether its bytes count: it is kept, or in flight and will be.
        self.is_counted = False
        # Whether it was fetched, and there was no room for it.
        self.was_left_out = False


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
                entry.readers.append(serial)
                self._count(entry)

    def cost(self, parts: Sequence[Part]) -> int:
        """Return the bytes that would count in addition if a read of ``parts`` began now."""
        with self._lock:
            return sum(
                entry.nbytes
                for entry in map(self._entries.__getitem__, (key for key, _ in parts))
                if not entry.is_counted and len(entry.readers) > 1
            )

    def begin(self, parts: Sequence[Part]) -> None:
        """Count ``parts`` as needed by a read in progress."""
        with self._lock:
            for key, _ in parts:
                entry = self._entries[key]
                entry.begun += 1
                self._count(entry)

    def end(self, serial: int, parts: Sequence[Part]) -> None:
        """Remove the read ``serial``, which has begun; drop ``parts`` that no other read needs."""
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
        # Freed after the lock has been released.
        del gone

    def make_room(self, nbytes: int, needed: Sequence[Part]) -> None:
        """Drop kept parts of ``nbytes`` bytes, those that are needed last first.

        Parts that reads in progress need, or the next read, which needs ``needed``, are kept.
        """
        gone = []
        with self._lock:
            keys = {key for key, _ in needed}
            idle = [
                (min(entry.readers), key, entry)
                for key, entry in self._kept.items()
                if not entry.begun and key not in keys
            ]
            idle.sort(key=lambda each: -each[0])
            for _, key, entry in idle:
                if nbytes <= 0:
                    break
                nbytes -= entry.nbytes
                entry.was_left_out = True
                gone.append(self._drop(key, entry))
        del gone

    def _count(self, entry: _Entry) -> None:
        """Have the bytes of a part count if it is, or will be, kept for another read."""
        counts = entry.value is not None or (entry.begun > 0 and len(entry.readers) > 1)
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
            beside = self._nbytes - (entry.nbytes if entry.is_counted else 0)
            if beside + entry.nbytes <= self.limit:
                entry.value = (value,)
                self._kept[key] = entry
                self._count(entry)
            else:
                entry.was_left_out = True
