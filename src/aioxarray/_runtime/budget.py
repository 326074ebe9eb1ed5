"""Bounds that hold for the whole process, over loops and threads, shared fairly."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """The state of a `Budget` at one moment.

    Attributes
    ----------
    in_use
        What all shares use together.
    waiting
        How many wait, in all shares.
    bound
        The largest bound among the open shares; 0 if there is none.
    shares
        How many shares are open.
    """

    in_use: int
    waiting: int
    bound: float
    shares: int


def _nothing(bound: float) -> float:
    return 0


class Budget:
    """A bound on what is in use at once in this process: requests, or bytes.

    Each load takes a `Share` of it, with a bound of its own. What all shares use together
    never exceeds the largest bound among the open shares (but see ``beside``), so that loads
    which all keep to the configured bound keep to it together; what one share uses never exceeds
    its own bound. An amount larger than its share's bound is let in alone in the share, one
    larger than all bounds alone in the budget.

    Waiting is fair among the shares: each free place goes to the next share in turn, in a
    share to the one that has waited longest. Where a large amount has its turn, places are kept
    until they suffice for it. It may be awaited from any asyncio loop.

    Some hold their amount for long: while a chunk of hundreds of megabytes arrives, say. A budget
    can have a *lane* that is closed to them. The others, which hold for about a round trip, then
    never wait for the end of a long hold: their turn comes in the budget or in the lane, whichever
    is first. The cost of a call does not depend on how many shares are open or wait.

    Parameters
    ----------
    unit
        What is counted.
    apart
        Returns what part of a bound the lane has. An amount larger than the rest is let in
        alone among the long holds, beside what the lane has.
    beside
        Returns what the lane has beyond a bound. An amount larger than the lane is let into it
        alone.
    """

    def __init__(
        self,
        unit: str,
        *,
        apart: Callable[[float], float] = _nothing,
        beside: Callable[[float], float] = _nothing,
    ) -> None:
        self.unit = unit
        self._apart = apart
        self._beside = beside
        self._generation = 0
        self._reset()
        _budgets.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Shares of an earlier one are a forked parent's.
        self._generation += 1
        self._open: set[Share] = set()
        self._bounds = _Largest()
        # Shares in which somebody has a turn, each once; the first has the next one. And those in
        # which that somebody may use the lane. A share that has lost its turn meanwhile is dropped
        # when it is met.
        self._turns: deque[Share] = deque()
        self._lane_turns: deque[Share] = deque()
        # The first share waits for more than is free, so that nobody else is let in.
        self._kept = False
        self.in_use = 0
        self._long_in_use = 0
        self._resize()

    def _resize(self) -> None:
        """Note what the largest bound is now, and what of it long holds and the lane have."""
        self._bound = self._bounds.largest
        apart = self._apart(self._bound)
        self._for_long = self._bound - apart
        self._lane = apart + self._beside(self._bound)

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Budget: {now.in_use} {self.unit} in use, {now.waiting} waiting>"

    def statistics(self) -> BudgetStatistics:
        """Return what is in use and who waits at this moment; from any thread."""
        with self._lock:
            waiting = sum(share._count_waiting() for share in self._open)
            return BudgetStatistics(self.in_use, waiting, self._bound, len(self._open))

    def share(self, bound: float) -> Share:
        """Return a share of at most ``bound`` (``math.inf`` for none), open as a context."""
        return Share(self, bound)

    def _join(self, share: Share) -> None:
        with self._lock:
            self._open.add(share)
            if self._bounds.add(share.bound):
                self._resize()
                if self._kept:
                    # Its bound holds for all.
                    self._let_in()

    def _leave(self, share: Share) -> None:
        with self._lock:
            self._open.remove(share)
            if self._bounds.remove(share.bound):
                self._resize()
            self._let_in()

    def _fits(self, amount: int, long: bool) -> bool:
        """Return whether there is room for ``amount``."""
        if self.in_use == 0 or amount > self._bound - self.in_use:
            # With nobody, or with nobody but the lane's, more than the bound is let in, too.
            return self.in_use == 0 or (
                long
                and amount > self._for_long
                and self._long_in_use == 0
                and self.in_use <= self._lane
            )
        return not long or self._long_in_use == 0 or amount <= self._for_long - self._long_in_use

    def _fits_lane(self, amount: int) -> bool:
        """Return whether there is room in the lane for ``amount``, which is not held for long."""
        in_use = self.in_use - self._long_in_use
        return in_use == 0 or amount <= self._lane - in_use

    def _let_in(self) -> None:
        """Hand free places to those who wait; the lock is held."""
        self._let_in_by_turns()
        while self._kept and (share := self._first_for_lane()) is not None:
            self._lane_turns.popleft()
            share._in_lane = False
            share._let_in_next()
            if self._turns[0] is share:
                # What the places are kept for may be another amount now, or nothing.
                self._let_in_by_turns()

    def _let_in_by_turns(self) -> None:
        self._kept = False
        turns = self._turns
        while turns:
            share = turns[0]
            if share._has_turn():
                amount, long, _ = share.waiting[0]
                if not self._fits(amount, long):
                    self._kept = True
                    return
                turns.popleft()
                share._in_turns = False
                share._let_in_next()
            else:
                turns.popleft()
                share._in_turns = False

    def _first_for_lane(self) -> Share | None:
        """Return the share that is next in the lane, if there is room."""
        turns = self._lane_turns
        while turns:
            share = turns[0]
            if share._has_turn() and not share.waiting[0][1]:
                return share if self._fits_lane(share.waiting[0][0]) else None
            turns.popleft()
            share._in_lane = False
        return None


class _Largest:
    """The largest of numbers that come and go, at a cost that hardly grows with their count."""

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        # All that are counted and, until they come up, some that no longer are.
        self._heap: list[float] = []
        self.largest: float = 0

    def add(self, number: float) -> bool:
        """Count ``number``; say whether it is larger than all others."""
        count = self._counts.get(number, 0)
        self._counts[number] = count + 1
        if count == 0:
            heapq.heappush(self._heap, -number)
        if number <= self.largest:
            return False
        self.largest = number
        return True

    def remove(self, number: float) -> bool:
        """Count ``number`` no longer; say whether the largest is another one now."""
        self._counts[number] -= 1
        if self._counts[number]:
            return False
        before = self.largest
        del self._counts[number]
        while self._heap and -self._heap[0] not in self._counts:
            heapq.heappop(self._heap)
        self.largest = -self._heap[0] if self._heap else 0
        return self.largest != before


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
        # The amount, whether it is held for long, and what tells that it was let in.
        self.waiting: deque[tuple[int, bool, asyncio.Future[None]]] = deque()
        self._budget = budget
        self._generation = budget._generation
        self._is_open = False
        # Whether the budget's turns, and those of its lane, have it.
        self._in_turns = False
        self._in_lane = False

    def __enter__(self) -> Share:
        self._is_open = True
        self._budget._join(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._is_current():
            self._budget._leave(self)

    def _is_current(self) -> bool:
        """Return whether this is a share of this process, not of one that it was forked from."""
        return self._generation == self._budget._generation

    def _allows(self, amount: int) -> bool:
        """Return whether the share's own bound has room for ``amount``."""
        return amount <= self.bound - self.in_use or self.in_use == 0

    def _has_turn(self) -> bool:
        """Return whether somebody waits who would be let in if the budget had room."""
        while self.waiting and self.waiting[0][2].cancelled():
            self.waiting.popleft()
        return self._is_open and bool(self.waiting) and self._allows(self.waiting[0][0])

    def _count_waiting(self) -> int:
        return sum(not place.cancelled() for _, _, place in self.waiting)

    def _line_up(self) -> None:
        """Take turns, if somebody waits for one."""
        if not self.waiting or not self._has_turn():
            return
        if not self._in_turns:
            self._in_turns = True
            self._budget._turns.append(self)
        if not self._in_lane and not self.waiting[0][1] and self._budget._lane > 0:
            self._in_lane = True
            self._budget._lane_turns.append(self)

    def _let_in_next(self) -> None:
        amount, long, place = self.waiting.popleft()
        try:
            place.get_loop().call_soon_threadsafe(self._grant, amount, long, place)
        except RuntimeError:
            # That loop was closed while the place was waited for: nobody is there to take it.
            pass
        else:
            self._take(amount, long)
        self._line_up()

    def _grant(self, amount: int, long: bool, place: asyncio.Future[None]) -> None:
        if place.cancelled():
            self.release(amount, long=long)
        else:
            place.set_result(None)

    def _take(self, amount: int, long: bool) -> None:
        self.in_use += amount
        self._budget.in_use += amount
        if long:
            self._budget._long_in_use += amount

    def release(self, amount: int = 1, *, long: bool = False) -> None:
        """Let go of ``amount``, which was taken with the same ``long``; from any thread."""
        budget = self._budget
        if not self._is_current():
            return
        with budget._lock:
            self._take(-amount, long)
            self._line_up()
            budget._let_in()

    def is_wanted(self) -> bool:
        """Return whether somebody waits in another share, who may get what this one lets go of."""
        budget = self._budget
        with budget._lock:
            turns = budget._turns
            has_own = False
            # Each is met once: those without a turn are dropped, and its own is there once.
            while turns and (turns[0] is self or not turns[0]._has_turn()):
                share = turns.popleft()
                share._in_turns = False
                has_own = has_own or share is self
            wanted = bool(turns)
            if has_own and self._has_turn():
                self._in_turns = True
                turns.appendleft(self)
            return wanted

    @contextlib.asynccontextmanager
    async def hold(self, amount: int = 1, *, long: bool = False) -> AsyncIterator[None]:
        """Wait until ``amount`` is free, and hold it for the duration of the context.

        ``long`` says that this may take much longer than a round trip.
        """
        await self.acquire(amount, long=long)
        try:
            yield
        finally:
            self.release(amount, long=long)

    async def acquire(self, amount: int = 1, *, long: bool = False) -> None:
        """Wait until ``amount`` is free, and hold it until `release`.

        For those who let go elsewhere than they took hold; everybody else uses `hold`.
        """
        budget = self._budget
        with budget._lock:
            at_once = not self.waiting and not budget._kept
            if at_once and self._allows(amount) and budget._fits(amount, long):
                self._take(amount, long)
                return
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append((amount, long, place))
            self._line_up()
            budget._let_in()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                # Places may have been kept for this one.
                with budget._lock:
                    self._line_up()
                    budget._let_in()
            else:
                self.release(amount, long=long)
            raise
