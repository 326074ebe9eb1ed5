"""What was used last, up to a number of bytes."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Values by key, the least recently used dropped where they weigh too much together.

    For any thread. A child after a fork starts with an empty one: a lock may have been held by a
    thread that stayed behind.

    Parameters
    ----------
    max_bytes
        What all values may weigh together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: float = 0) -> None:
        self.max_bytes = max_bytes
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._drops = 0
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Lru: {len(self)} values, {self.bytes_held} of {self.max_bytes} bytes>"

    def resize(self, max_bytes: float) -> None:
        """Hold at most ``max_bytes`` from now on."""
        with self._lock:
            self.max_bytes = max_bytes
            self._shrink()

    def get(self, key: K) -> V | None:
        """Return the value of ``key``, or None; it is then the one used last."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    @property
    def moment(self) -> int:
        """A mark to be taken before a value is looked up elsewhere; see `put`."""
        return self._drops

    def put(self, key: K, value: V, size: int, moment: int) -> bool:
        """Keep ``value`` of ``size`` bytes; say whether it is kept.

        It is not where it is larger than all that is held, and where anything was dropped by
        `drop` since ``moment``: it may be what a write has just replaced.
        """
        with self._lock:
            if moment != self._drops or size > self.max_bytes:
                return False
            old = self._entries.pop(key, None)
            if old is not None:
                self.bytes_held -= old[1]
            self._entries[key] = (value, size)
            self.bytes_held += size
            self._shrink()
            return True

    def drop(self, condition: Callable[[K], bool]) -> None:
        """Drop the values whose key meets ``condition``, also those that are on their way."""
        with self._lock:
            self._drops += 1
            for key in [key for key in self._entries if condition(key)]:
                self.bytes_held -= self._entries.pop(key)[1]

    def _shrink(self) -> None:
        while self.bytes_held > self.max_bytes:
            _, (_, size) = self._entries.popitem(last=False)
            self.bytes_held -= size


_all: weakref.WeakSet[Lru[Any, Any]] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for lru in _all:
        lru._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
