"""An LRU cache with a limit in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """The state of a `Cache` at one moment: its entries, their bytes, and the limit in bytes."""

    entries: int
    nbytes: int
    limit: float


class Cache:
    """A thread-safe cache with a limit in bytes, which evicts the least recently used value first.

    Each value belongs to an owner; `drop` removes all values of one.

    Attributes
    ----------
    entries
        By owner and name, the value and its size in bytes; the next to be evicted is first.
    size
        The total size of all values in bytes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again with an empty cache of limit 0, and a new lock, as needed after a fork."""
        self._lock = threading.Lock()
        self.entries: OrderedDict[tuple[Hashable, Hashable], tuple[Any, int]] = OrderedDict()
        self._names: dict[Hashable, set[Hashable]] = {}
        self._limit: float = 0
        self.size = 0

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Cache: {now.nbytes} of {now.limit} bytes in {now.entries} entries>"

    def statistics(self) -> CacheStatistics:
        """Return the state of the cache at this moment; from any thread."""
        with self._lock:
            return CacheStatistics(len(self.entries), self.size, self._limit)

    def __len__(self) -> int:
        return len(self.entries)

    def resize(self, limit: float) -> None:
        """Set the limit to ``limit`` bytes, and evict values until they fit."""
        with self._lock:
            self._limit = limit
            gone = self._make_room()
        del gone

    def get(self, owner: Hashable, name: Hashable) -> tuple[Any] | None:
        """Return the value in a tuple; None if there is none."""
        key = (owner, name)
        with self._lock:
            entry = self.entries.get(key)
            if entry is None:
                return None
            self.entries.move_to_end(key)
            return (entry[0],)

    def peek(self, owner: Hashable, name: Hashable) -> tuple[Any] | None:
        """Do the same as `get`, but not count as a use of the value."""
        with self._lock:
            entry = self.entries.get((owner, name))
            return None if entry is None else (entry[0],)

    def put(self, owner: Hashable, name: Hashable, value: Any, size: int) -> None:
        """Add ``value`` with a size of ``size`` bytes, unless that exceeds the limit by itself."""
        with self._lock:
            if size > self._limit:
                return
            replaced = self._remove((owner, name))
            self.entries[owner, name] = (value, size)
            self._names.setdefault(owner, set()).add(name)
            self.size += size
            gone = self._make_room()
        # Evicted values are freed here, after the lock has been released.
        del replaced, gone

    def drop(self, owner: Hashable) -> None:
        """Remove all values of ``owner``."""
        with self._lock:
            gone = [self._remove((owner, name)) for name in list(self._names.get(owner, ()))]
        del gone

    def _make_room(self) -> list[Any]:
        gone = []
        while self.size > self._limit:
            key = next(iter(self.entries))
            gone.append((key, self._remove(key)))
        return gone

    def _remove(self, key: tuple[Hashable, Hashable]) -> Any:
        entry = self.entries.pop(key, None)
        if entry is not None:
            owner, name = key
            names = self._names[owner]
            names.discard(name)
            if not names:
                del self._names[owner]
            self.size -= entry[1]
        return entry
