"""The maximum of numbers that come and go."""

from __future__ import annotations

import heapq


class Largest:
    """The maximum of a changing multiset of numbers, updated in logarithmic time."""

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        # The numbers, negated; those that are removed stay until they reach the top.
        self._heap: list[float] = []
        self.largest: float = 0

    def add(self, number: float) -> bool:
        """Add ``number``; return whether it is larger than all others."""
        count = self._counts.get(number, 0)
        self._counts[number] = count + 1
        if count == 0:
            heapq.heappush(self._heap, -number)
        if number <= self.largest:
            return False
        self.largest = number
        return True

    def remove(self, number: float) -> bool:
        """Remove ``number``; return whether the largest number has changed."""
        self._counts[number] -= 1
        if self._counts[number]:
            return False
        before = self.largest
        del self._counts[number]
        while self._heap and -self._heap[0] not in self._counts:
            heapq.heappop(self._heap)
        self.largest = -self._heap[0] if self._heap else 0
        return self.largest != before
