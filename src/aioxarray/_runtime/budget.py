"""Bounds that hold for the whole process, over loops and threads, shared fairly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator


class Budget:
    """A bound on what is in use at once in this process: requests, or bytes.

    Each load takes a `Share` of it, with a bound of its own. What all shares use together
    never exceeds the largest bound among the open shares, so that loads which all keep to
    the configured bound keep to it together; what one share uses never exceeds its own bound.
    An amount larger than its share's bound is let in alone in the share, one larger than all
    bounds alone in the budget.

    Waiting is fair among the shares: each free place goes to the next share in turn, in a
    share to the one that has waited longest. Where a large amount has its turn, places are kept
    until they suffice for it. It may be awaited from any asyncio loop.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._reset()
        _budgets.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # The first has the next turn.
        self._shares: deque[Share] = deque()
        # The first share waits for more than is free, so that nobody else is let in.
        self._kept = False
        self.in_use = 0

    def __repr__(self) -> str:
        waiting = sum(len(share.waiting) for share in self._shares)
        return f"<Budget: {self.in_use} {self.unit} in use, {waiting} waiting>"

    @contextlib.contextmanager
    def share(self, bound: float) -> Iterator[Share]:
        """Open a share of at most ``bound`` (``math.inf`` for none)."""
        share = Share(self, bound)
        with self._lock:
            self._shares.append(share)
        try:
            yield share
        finally:
            with self._lock:
                self._shares.remove(share)
                self._let_in()

    def _free(self) -> float:
        return max((share.bound for share in self._shares), default=0) - self.in_use

    def _let_in(self) -> None:
        """Hand free places to those who wait; the lock is held."""
        self._kept = False
        idle = 0
        while idle < len(self._shares):
            share = self._shares[0]
            if not share._has_turn():
                idle += 1
            elif share._fits(share.waiting[0][0]):
                share._let_in_next()
                idle = 0
            else:
                self._kept = True
                return
            self._shares.rotate(-1)


_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()


def _reset_after_fork() -> None:
    # What was in use or waited for belongs to the parent's loops and threads.
    for budget in _budgets:
        budget._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


class Share:
    """One load's part of a `Budget`."""

    def __init__(self, budget: Budget, bound: float) -> None:
        self.bound = bound
        self.in_use = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._budget = budget

    def _allows(self, amount: int) -> bool:
        """Say whether the share's own bound has room for ``amount``."""
        return amount <= self.bound - self.in_use or self.in_use == 0

    def _fits(self, amount: int) -> bool:
        """Say whether the budget has room for ``amount``."""
        return amount <= self._budget._free() or self._budget.in_use == 0

    def _has_turn(self) -> bool:
        """Say whether somebody waits who would be let in if the budget had room."""
        while self.waiting and self.waiting[0][1].cancelled():
            self.waiting.popleft()
        return bool(self.waiting) and self._allows(self.waiting[0][0])

    def _let_in_next(self) -> None:
        amount, place = self.waiting.popleft()
        try:
            place.get_loop().call_soon_threadsafe(self._grant, amount, place)
        except RuntimeError:
            # That loop was closed while the place was waited for: nobody is there to take it.
            return
        self._take(amount)

    def _grant(self, amount: int, place: asyncio.Future[None]) -> None:
        if place.cancelled():
            self.release(amount)
        else:
            place.set_result(None)

    def _take(self, amount: int) -> None:
        self.in_use += amount
        self._budget.in_use += amount

    def release(self, amount: int = 1) -> None:
        """Let go of ``amount``; from any thread."""
        budget = self._budget
        with budget._lock:
            self._take(-amount)
            budget._let_in()

    def is_wanted(self) -> bool:
        """Say whether somebody waits in another share, who may get what this one lets go of."""
        budget = self._budget
        with budget._lock:
            return any(share is not self and share._has_turn() for share in budget._shares)

    @contextlib.asynccontextmanager
    async def hold(self, amount: int = 1) -> AsyncIterator[None]:
        """Wait until ``amount`` is free, and hold it for the duration of the context."""
        await self.acquire(amount)
        try:
            yield
        finally:
            self.release(amount)

    async def acquire(self, amount: int = 1) -> None:
        """Wait until ``amount`` is free, and hold it until `release`.

        For those who let go elsewhere than they took hold; everybody else uses `hold`.
        """
        budget = self._budget
        with budget._lock:
            at_once = not self.waiting and not budget._kept
            if at_once and self._allows(amount) and self._fits(amount):
                self._take(amount)
                return
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append((amount, place))
            budget._let_in()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                # Places may have been kept for this one.
                with budget._lock:
                    budget._let_in()
            else:
                self.release(amount)
            raise
