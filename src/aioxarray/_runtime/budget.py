"""Budgets: process-wide limits, across event loops and threads, that are shared fairly."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aioxarray._runtime.largest import Largest
from aioxarray._runtime.loops import running_loop
from aioxarray._runtime.queueing import current_ticket
from aioxarray._runtime.threads.forks import after_fork


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """The state of a `Budget` at one moment.

    Attributes
    ----------
    in_use
        The amount in use in all shares together.
    waiting
        The number of waiting tasks in all shares.
    bound
        The largest bound among the open shares; 0 if there is none.
    shares
        The number of open shares.
    """

    in_use: int
    waiting: int
    bound: float
    shares: int


def _nothing(bound: float) -> float:
    return 0


class Budget:
    """A limit on an amount in use at once in this process, such as requests or bytes.

    Each load opens a `Share` with its own bound. The amount in use in one share never exceeds its
    bound, and that in all shares together never exceeds the largest bound among the open shares
    (but see ``extra``): loads that all use the configured bound keep to it together. An amount
    larger than its share's bound is admitted alone in the share, and one larger than all bounds
    alone in the budget.

    Waiting is fair: free places go to the shares in turn, and in a share to the task that has
    waited longest. When it is the turn of a large amount, free places are kept until there are
    enough. Tasks of any asyncio loop can wait.

    Some tasks hold their amount for long, for example while a chunk of hundreds of megabytes
    arrives. A budget can have a *reserve* that is closed to them. Other tasks, which hold it for
    about a round trip, then never wait for the end of a long hold: they are admitted to the budget
    or to the reserve, whichever is first. The cost of a call does not depend on how many shares
    there are.

    Parameters
    ----------
    unit
        The unit of the amounts, for the ``repr``.
    reserved
        Returns the part of a bound that is the reserve. An amount larger than the rest is admitted
        alone among the long holds, beside those in the reserve.
    extra
        Returns the size of the reserve beyond a bound. An amount larger than the reserve is
        admitted to it alone.
    begins
        Whether a call begins with its first place here, and leaves the queue of calls that wait
        for their turn.
    """

    def __init__(
        self,
        unit: str,
        *,
        reserved: Callable[[float], float] = _nothing,
        extra: Callable[[float], float] = _nothing,
        begins: bool = False,
    ) -> None:
        self.unit = unit
        self._begins = begins
        self._reserved = reserved
        self._extra = extra
        self._generation = 0
        self._reset()
        _budgets.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Shares of an earlier generation belong to the parent of a forked process.
        self._generation += 1
        self._open: set[Share] = set()
        self._bounds = Largest()
        # Queues of the shares with a task to admit next, as the keys: for the budget, and for the
        # reserve. A share that has no such task any more is dropped when it comes up.
        self._turns: OrderedDict[Share, None] = OrderedDict()
        self._reserve_turns: OrderedDict[Share, None] = OrderedDict()
        # Whether the first share waits for more than is free, so that no other is admitted.
        self._kept = False
        self.in_use = 0
        self._long_in_use = 0
        self._resize()

    def _resize(self) -> None:
        """Update the bound, and the parts of it for long holds and for the reserve."""
        self._bound = self._bounds.largest
        reserved = self._reserved(self._bound)
        self._for_long = self._bound - reserved
        self._reserve = reserved + self._extra(self._bound)

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Budget: {now.in_use} {self.unit} in use, {now.waiting} waiting>"

    def statistics(self) -> BudgetStatistics:
        """Return the amount in use and the number of waiting tasks; thread-safe."""
        with self._lock:
            waiting = sum(share._count_waiting() for share in self._open)
            return BudgetStatistics(self.in_use, waiting, self._bound, len(self._open))

    def share(self, bound: float) -> Share:
        """Return a share of at most ``bound`` (``math.inf`` for none), to open as a context."""
        return Share(self, bound)

    def _join(self, share: Share) -> None:
        with self._lock:
            self._open.add(share)
            if self._bounds.add(share.bound):
                self._resize()
                if self._kept:
                    # The larger bound applies to all shares.
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
            # More than the bound is admitted alone, or with nothing but holds in the reserve.
            return self.in_use == 0 or (
                long
                and amount > self._for_long
                and self._long_in_use == 0
                and self.in_use <= self._reserve
            )
        return not long or self._long_in_use == 0 or amount <= self._for_long - self._long_in_use

    def _fits_reserve(self, amount: int) -> bool:
        """Return whether there is room in the reserve for ``amount``, a short hold."""
        in_use = self.in_use - self._long_in_use
        return in_use == 0 or amount <= self._reserve - in_use

    def _let_in(self) -> None:
        """Admit waiting tasks to free places; the lock is held."""
        self._let_in_by_turns()
        while self._kept and (share := self._first_for_reserve()) is not None:
            del self._reserve_turns[share]
            share._let_in_next()
            if next(iter(self._turns)) is share:
                # The next amount, for which places are kept, may have changed.
                self._let_in_by_turns()

    def _let_in_by_turns(self) -> None:
        self._kept = False
        turns = self._turns
        while turns:
            share = next(iter(turns))
            has_turn = share._has_turn()
            if has_turn:
                amount, long, _ = share.waiting[0]
                if not self._fits(amount, long):
                    self._kept = True
                    return
            del turns[share]
            if has_turn:
                share._let_in_next()

    def _first_for_reserve(self) -> Share | None:
        """Return the share that is next in the reserve, if the reserve has room for it."""
        turns = self._reserve_turns
        while turns:
            share = next(iter(turns))
            if share._has_turn() and not share.waiting[0][1]:
                return share if self._fits_reserve(share.waiting[0][0]) else None
            del turns[share]
        return None


_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()


@after_fork
def _reset_after_fork() -> None:
    # Amounts in use and waiting tasks belong to the parent's loops and threads.
    for budget in _budgets:
        budget._reset()


# The amount, whether it is held for long, and the future that is set on admission.
_Waiting = tuple[int, bool, asyncio.Future[None]]
# Used by all shares without a waiting task: even an empty deque allocates room for 64 items.
_NOBODY: deque[_Waiting] = deque()


class Share:
    """One load's part of a `Budget`."""

    __slots__ = (
        "_budget",
        "_generation",
        "_is_open",
        "_ticket",
        "bound",
        "in_use",
        "waiting",
    )

    def __init__(self, budget: Budget, bound: float) -> None:
        self.bound = bound
        self.in_use = 0
        self.waiting = _NOBODY
        self._budget = budget
        self._generation = budget._generation
        self._is_open = False
        # That of the call, in the queue of calls; None once the call has begun.
        self._ticket = current_ticket()

    def __enter__(self) -> Share:
        self._is_open = True
        self._budget._join(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._is_current():
            self._budget._leave(self)

    def rebound(self, bound: float) -> None:
        """Change the bound; thread-safe. A smaller one takes effect as amounts are released."""
        budget = self._budget
        if not self._is_current():
            return
        with budget._lock:
            before, self.bound = self.bound, bound
            if not self._is_open:
                return
            budget._bounds.add(bound)
            budget._bounds.remove(before)
            budget._resize()
            self._line_up()
            budget._let_in()

    def _is_current(self) -> bool:
        """Return whether the share belongs to this process, and not to a parent that forked it."""
        return self._generation == self._budget._generation

    def _allows(self, amount: int) -> bool:
        """Return whether the share's own bound has room for ``amount``."""
        return amount <= self.bound - self.in_use or self.in_use == 0

    def _has_turn(self) -> bool:
        """Return whether a task waits that would be admitted if the budget had room."""
        while self.waiting and self.waiting[0][2].cancelled():
            self.waiting.popleft()
        return self._is_open and bool(self.waiting) and self._allows(self.waiting[0][0])

    def _count_waiting(self) -> int:
        return sum(not place.cancelled() for _, _, place in self.waiting)

    def _line_up(self) -> None:
        """Join the queues of the budget and the reserve, if a task waits."""
        if not self.waiting or not self._has_turn():
            return
        # A share that is in a queue keeps its place there.
        self._budget._turns[self] = None
        if not self.waiting[0][1] and self._budget._reserve > 0:
            self._budget._reserve_turns[self] = None

    def _let_in_next(self) -> None:
        amount, long, place = self.waiting.popleft()
        loop = place.get_loop()
        if loop is running_loop():
            # Waking a loop from itself would cost a system call, for each request of a load.
            place.set_result(None)
            self._take(amount, long)
            self._begin()
        else:
            try:
                loop.call_soon_threadsafe(self._grant, amount, long, place)
            except RuntimeError:
                # The loop was closed while the task waited.
                pass
            else:
                self._take(amount, long)
                self._begin()
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

    def _begin(self) -> None:
        """Take the call out of the queue of calls, if calls begin with a place here."""
        if self._ticket is not None and self._budget._begins:
            self._ticket.begin()
            self._ticket = None

    def release(self, amount: int = 1, *, long: bool = False) -> None:
        """Release ``amount``, which was acquired with the same ``long``; thread-safe."""
        budget = self._budget
        if not self._is_current():
            return
        with budget._lock:
            self._take(-amount, long)
            self._line_up()
            budget._let_in()

    def is_wanted(self) -> bool:
        """Return whether a task in another share waits for amounts that this one may hold."""
        budget = self._budget
        with budget._lock:
            turns = budget._turns
            has_own = False
            # Ends: shares without a waiting task are dropped, and this one is in the queue once.
            while turns and ((share := next(iter(turns))) is self or not share._has_turn()):
                del turns[share]
                has_own = has_own or share is self
            wanted = bool(turns)
            if has_own and self._has_turn():
                turns[self] = None
                turns.move_to_end(self, last=False)
            return wanted

    def take_if_free(self, amount: int = 1, *, long: bool = False) -> bool:
        """Hold ``amount`` until `release` if it is free and no task waits; return whether it is."""
        with self._budget._lock:
            if is_free := self._is_free(amount, long):
                self._take(amount, long)
            return is_free

    def _is_free(self, amount: int, long: bool) -> bool:
        """Return whether there is room for ``amount`` and nothing has waited longer for it."""
        budget = self._budget
        is_first = not self.waiting and not budget._kept
        return is_first and self._allows(amount) and budget._fits(amount, long)

    def hold(self, amount: int = 1, *, long: bool = False) -> _Hold:
        """Return a context that waits until ``amount`` is free, and holds it while it is open.

        ``long`` marks a hold that may take much longer than a round trip.
        """
        return _Hold(self, amount, long)

    def acquire_if_free(self, amount: int = 1, *, long: bool = False) -> bool:
        """Do the same as `take_if_free`, for the next place of a call, which may be its first.

        Raises `Overloaded` as `acquire` does.
        """
        with self._budget._lock:
            if not self._is_free(amount, long):
                return False
            if self._ticket is not None:
                self._ticket.check()
                self._begin()
            self._take(amount, long)
            return True

    async def acquire(self, amount: int = 1, *, long: bool = False) -> None:
        """Wait until ``amount`` is free, and hold it until `release`.

        For amounts that are released elsewhere; otherwise use `hold`. Raises `Overloaded` if the
        call would have to wait for its first turn, and more calls do than its queue may hold.
        """
        if self.acquire_if_free(amount, long=long):
            return
        budget = self._budget
        with budget._lock:
            if self._ticket is not None:
                self._ticket.wait()
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if not self.waiting:
                self.waiting = deque()
            self.waiting.append((amount, long, place))
            self._line_up()
            budget._let_in()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                # Places may have been kept for this task.
                with budget._lock:
                    self._line_up()
                    budget._let_in()
            else:
                self.release(amount, long=long)
            raise


class _Hold:
    """A context that holds an amount of a share.

    A class, because a generator costs more, and every waiting request has one.
    """

    __slots__ = ("_amount", "_long", "_share")

    def __init__(self, share: Share, amount: int, long: bool) -> None:
        self._share = share
        self._amount = amount
        self._long = long

    def __aenter__(self) -> Coroutine[Any, Any, None]:
        return self._share.acquire(self._amount, long=self._long)

    async def __aexit__(self, *_: object) -> None:
        self._share.release(self._amount, long=self._long)
