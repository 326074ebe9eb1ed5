"""Values that may be wanted again, as many bytes of them as fit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Cache:
    """Keeps values up to a limit in bytes; the least recently used one goes first.

    Each value belongs to an owner, and goes with it: see `drop`. Any thread may use it.

    Attributes
    ----------
    entries
        By owner and name the value, and the bytes it counts for; the next to go first.
    size
        The bytes that all count for together.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, empty and without room: in a forked process, whose lock may be taken."""
        self._lock = threading.Lock()
        self.entries: OrderedDict[tuple[Hashable, Hashable], tuple[Any, int]] = OrderedDict()
        self._names: dict[Hashable, set[Hashable]] = {}
        self._limit: float = 0
        self.size = 0

    def __repr__(self) -> str:
        return f"<Cache: {self.size} of {self._limit} bytes in {len(self)} entries>"

    def __len__(self) -> int:
        return len(self.entries)

    def resize(self, limit: float) -> None:
        """Keep no more than ``limit`` bytes from now on."""
        with self._lock:
            self._limit = limit
            gone = self._make_room()
        del gone

    def get(self, owner: Hashable, name: Hashable) -> tuple[Any] | None:
        """Return the value, in a tuple, or None if there is none."""
        key = (owner, name)
        with self._lock:
            entry = self.entries.get(key)
            if entry is None:
                return None
            self.entries.move_to_end(key)
            return (entry[0],)

    def put(self, owner: Hashable, name: Hashable, value: Any, size: int) -> None:
        """Keep ``value``, which counts for ``size`` bytes, if it fits at all."""
        with self._lock:
            if size > self._limit:
                return
            replaced = self._remove((owner, name))
            self.entries[owner, name] = (value, size)
            self._names.setdefault(owner, set()).add(name)
            self.size += size
            gone = self._make_room()
        # Here, not under the lock, ends what nobody else holds.
        del replaced, gone

    def drop(self, owner: Hashable) -> None:
        """Keep nothing of ``owner``'s."""
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
