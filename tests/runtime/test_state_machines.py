"""Budget, flights, cache and retries under random calls and cancellations, exact after each step.

Each machine keeps a model of what it tests, worked out in the plainest way, and compares the two
after every step. Its loop has a virtual clock, so waits take no time.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.budget import Budget, BudgetStatistics, Share
from aioxarray._runtime.cache import Cache, CacheStatistics
from aioxarray._runtime.flights import Flight, Flights, FlightStatistics, withdraw
from aioxarray._runtime.loops import use_io_loop
from aioxarray._zarr.stores.request import Request, send
from aioxarray._zarr.stores.retries import attempts as retrying
from aioxarray.testing.clock import _VirtualLoop
from tests.runtime.helpers import settle

SETTINGS = hypothesis.settings(deadline=None, stateful_step_count=40)


class OnALoop(RuleBasedStateMachine):
    """A machine whose coroutines run on one loop, until nothing is ready after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=lambda: _VirtualLoop(5.0))
        loop = self.runner.get_loop()
        self._on_this_loop: AbstractContextManager[None] = use_io_loop(loop)
        self._on_this_loop.__enter__()
        self.tasks: dict[int, asyncio.Task[Any]] = {}

    def settle(self) -> None:
        self.runner.run(settle())

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> int:
        """Start a task, and return its name."""
        name = len(self.tasks)
        self.tasks[name] = self.runner.get_loop().create_task(coroutine)
        self.settle()
        return name

    def cancel(self, name: int) -> None:
        self.tasks[name].cancel()
        self.settle()
        assert self.tasks[name].cancelled()

    def assert_nothing_left(self) -> None:
        """Assert that what the machine tests has let go of everything."""

    def teardown(self) -> None:
        for name, task in self.tasks.items():
            if not task.done():
                self.cancel(name)
            elif not task.cancelled():
                task.exception()
        try:
            self.assert_nothing_left()
        finally:
            self._on_this_loop.__exit__(None, None, None)
            self.runner.close()


# --- the budget ----------------------------------------------------------------------------------


class ModelShare:
    def __init__(self, share: Share) -> None:
        self.share = share
        self.waiting: list[tuple[int, int]] = []

    def used(self, inside: dict[int, tuple[ModelShare, int]]) -> int:
        return sum(amount for share, amount in inside.values() if share is self)


class BudgetMachine(OnALoop):
    """The places, and who gets them next: shares in turn, and in each the one who came first."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget("things")
        self.shares: list[ModelShare] = []
        # Those who should be inside, and those who are.
        self.inside: dict[int, tuple[ModelShare, int]] = {}
        self.admitted: list[int] = []
        self.expected: list[int] = []
        self.leave: dict[int, asyncio.Event] = {}
        self.turns: list[ModelShare] = []

    @property
    def bound(self) -> float:
        return max((each.share.bound for each in self.shares), default=0)

    def has_turn(self, of: ModelShare) -> bool:
        if of not in self.shares or not of.waiting:
            return False
        used = of.used(self.inside)
        return used == 0 or used + of.waiting[0][1] <= of.share.bound

    def let_in(self, *lined_up: ModelShare) -> None:
        for share in lined_up:
            if self.has_turn(share) and share not in self.turns:
                self.turns.append(share)
        while self.turns:
            share = self.turns[0]
            if not self.has_turn(share):
                self.turns.pop(0)
                continue
            name, amount = share.waiting[0]
            used = sum(amount for _, amount in self.inside.values())
            if used and used + amount > self.bound:
                return
            self.turns.pop(0)
            share.waiting.pop(0)
            self.inside[name] = share, amount
            self.expected.append(name)
            if self.has_turn(share):
                self.turns.append(share)

    async def hold(self, name: int, share: Share, amount: int) -> None:
        async with share.hold(amount):
            self.admitted.append(name)
            await self.leave[name].wait()

    # Like bounds make shares wait for each other, and not only for themselves.
    @initialize(bounds=st.lists(st.sampled_from([3, 5]), min_size=2, max_size=3))
    def begin(self, bounds: list[int]) -> None:
        for bound in bounds:
            self.open(bound)

    @rule()
    @precondition(lambda self: len(self.shares) == 3)
    def open_without_bound(self) -> None:
        """Rarely: then nothing waits for another share."""
        self.open(math.inf)

    @rule(bound=st.sampled_from([1, 2, 3, 5]))
    @precondition(lambda self: len(self.shares) < 3)
    def open_with_bound(self, bound: int) -> None:
        self.open(bound)

    def open(self, bound: float) -> None:
        share = ModelShare(self.budget.share(bound))
        share.share.__enter__()
        self.shares.append(share)
        self.let_in()
        self.settle()

    @rule(index=st.integers(0, 3))
    def close(self, index: int) -> None:
        idle = [each for each in self.shares if not each.waiting and not each.used(self.inside)]
        if idle:
            share = idle[index % len(idle)]
            self.shares.remove(share)
            share.share.__exit__()
            self.let_in()
            self.settle()

    @rule(index=st.integers(0, 3), amounts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    @precondition(lambda self: self.shares)
    def acquire(self, index: int, amounts: list[int]) -> None:
        share = self.shares[index % len(self.shares)]
        for amount in amounts:
            name = len(self.tasks)
            self.leave[name] = asyncio.Event()
            share.waiting.append((name, amount))
            self.let_in(share)
            assert self.start(self.hold(name, share.share, amount)) == name

    @rule(index=st.integers(0, 20), cancels=st.booleans())
    @precondition(lambda self: self.inside)
    def release(self, index: int, *, cancels: bool) -> None:
        name = sorted(self.inside)[index % len(self.inside)]
        share, _ = self.inside.pop(name)
        self.let_in(share)
        if cancels:
            self.cancel(name)
        else:
            self.leave[name].set()
            self.settle()

    @rule(index=st.integers(0, 20))
    @precondition(lambda self: self.inside)
    def hand_over_in_vain(self, index: int) -> None:
        """Cancel a task that has got a place, before it has run."""
        name = sorted(self.inside)[index % len(self.inside)]
        share, _ = self.inside.pop(name)
        known = len(self.expected)
        self.let_in(share)
        gone = self.expected[known:][:1]
        for each in gone:
            self.expected.remove(each)
            share, _ = self.inside.pop(each)
            self.let_in(share)

        async def cancel() -> None:
            for each in gone:
                self.tasks[each].cancel()

        self.leave[name].set()
        self.runner.run(cancel())
        self.settle()
        assert all(self.tasks[each].cancelled() for each in gone)

    @rule(index=st.integers(0, 20))
    @precondition(lambda self: any(each.waiting for each in self.shares))
    def give_up(self, index: int) -> None:
        waiting = [(name, share) for share in self.shares for name, _ in share.waiting]
        name, share = waiting[index % len(waiting)]
        share.waiting = [place for place in share.waiting if place[0] != name]
        self.let_in(share)
        self.cancel(name)

    @invariant()
    def same(self) -> None:
        waiting = sum(len(each.waiting) for each in self.shares)
        used = sum(amount for _, amount in self.inside.values())
        assert self.budget.statistics() == BudgetStatistics(
            used, waiting, self.bound, len(self.shares)
        )
        assert self.admitted == self.expected

    def assert_nothing_left(self) -> None:
        for each in self.shares:
            each.share.__exit__()
        assert self.budget.statistics() == BudgetStatistics(0, 0, 0, 0)


# --- flights and the cache -----------------------------------------------------------------------


class ModelFlights:
    """A table of flights: by key, the one who leads, and those who follow."""

    def __init__(self, cache: Cache) -> None:
        self.flights: Flights = Flights(cache)
        self.open: dict[str, list[int]] = {}


class FlightsMachine(OnALoop):
    """Who leads, who follows, what each gets, and what the cache keeps."""

    LIMIT = 10

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()
        self.cache.resize(self.LIMIT)
        self.table = ModelFlights(self.cache)
        self.tables = [self.table]
        # For each read, what it has got and should have got.
        self.got: dict[int, Any] = {}
        self.expected: dict[int, Any] = {}
        self.answers: dict[int, asyncio.Future[tuple[int, int | None]]] = {}
        self.kept: OrderedDict[tuple[int, str], tuple[int, int]] = OrderedDict()
        self.count = 0

    async def read(self, flights: Flights, name: int, key: str) -> None:
        while True:
            match flights.join(key, name, lambda value, part: (value, part)):
                case Future() as follower:
                    try:
                        outcome = await asyncio.wrap_future(follower)
                    except OSError as error:
                        self.got[name] = str(error)
                        return
                    finally:
                        await withdraw(follower)
                    if outcome is not None:
                        value, part = outcome[0]
                        assert part == name
                        self.got[name] = value
                        return
                case Flight() as flight:
                    with flight:
                        self.answers[name] = asyncio.get_running_loop().create_future()
                        value, size = await self.answers[name]
                        flight.land(value, size)
                    self.got[name] = value
                    return
                case (value,):
                    self.got[name] = value
                    return

    def flying(self) -> list[tuple[ModelFlights, str]]:
        return [(table, key) for table in self.tables for key in sorted(table.open)]

    @rule(key=st.sampled_from("abc"), count=st.integers(1, 3))
    def join(self, key: str, count: int) -> None:
        for _ in range(count):
            self.join_once(key)

    def join_once(self, key: str) -> None:
        name = len(self.tasks)
        entry = self.kept.get((id(self.table), key))
        if entry is not None:
            self.kept.move_to_end((id(self.table), key))
            self.expected[name] = entry[0]
        else:
            self.table.open.setdefault(key, []).append(name)
        assert self.start(self.read(self.table.flights, name, key)) == name

    @rule(index=st.integers(0, 9), size=st.sampled_from([None, 1, 3, 7, 11]))
    @precondition(lambda self: self.flying())
    def land(self, index: int, size: int | None) -> None:
        flying = self.flying()
        table, key = flying[index % len(flying)]
        names = table.open.pop(key)
        self.count += 1
        for name in names:
            self.expected[name] = self.count
        if size is not None and table is self.table:
            self.put(key, size)
        self.answers[names[0]].set_result((self.count, size))
        self.settle()

    @rule(index=st.integers(0, 9))
    @precondition(lambda self: self.flying())
    def fail(self, index: int) -> None:
        flying = self.flying()
        table, key = flying[index % len(flying)]
        names = table.open.pop(key)
        for name in names[1:]:
            self.expected[name] = "broken"
        self.answers[names[0]].set_exception(OSError("broken"))
        self.settle()
        with pytest.raises(OSError, match="broken"):
            self.tasks[names[0]].result()

    @rule(index=st.integers(0, 2), who=st.integers(0, 2))
    @precondition(lambda self: self.flying())
    def give_up(self, index: int, who: int) -> None:
        flying = self.flying()
        table, key = flying[index % len(flying)]
        names = table.open[key]
        leads = who % len(names) == 0
        # If it led, the first of those who followed leads now.
        name = names.pop(who % len(names))
        entry = self.kept.get((id(table), key))
        if leads and names and entry is not None:
            # But for a value that was kept meanwhile.
            self.kept.move_to_end((id(table), key))
            while names:
                self.expected[names.pop()] = entry[0]
        if not names:
            del table.open[key]
        self.cancel(name)

    def put(self, key: str, size: int) -> None:
        if size <= self.LIMIT:
            self.kept[id(self.table), key] = self.count, size
            self.kept.move_to_end((id(self.table), key))
            while sum(each for _, each in self.kept.values()) > self.LIMIT:
                self.kept.popitem(last=False)

    @rule(sizes=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([1, 3, 7, 11]))))
    def keep(self, sizes: list[tuple[str, int]]) -> None:
        """Keep values without flights."""
        for key, size in sizes:
            self.count += 1
            self.put(key, size)
            self.table.flights.keep(key, self.count, size)

    @rule(key=st.sampled_from("abcd"))
    def use(self, key: str) -> None:
        """Take a value from the cache, where it then stays for longer."""
        entry = self.kept.get((id(self.table), key))
        if entry is not None:
            self.kept.move_to_end((id(self.table), key))
        assert self.table.flights.known(key) == (None if entry is None else entry[:1])

    @rule()
    def forget(self) -> None:
        """As a write to the store does: reads under way go on, and later ones begin anew."""
        self.table.flights.close()
        for key in [each for each in self.kept if each[0] == id(self.table)]:
            del self.kept[key]
        self.table = ModelFlights(self.cache)
        self.tables.append(self.table)

    @invariant()
    def same(self) -> None:
        assert self.got == self.expected
        for table in self.tables:
            followers = sum(len(names) - 1 for names in table.open.values())
            assert table.flights.statistics() == FlightStatistics(len(table.open), followers)
        size = sum(each for _, each in self.kept.values())
        assert self.cache.statistics() == CacheStatistics(len(self.kept), size, self.LIMIT)
        # In the order in which they will be evicted.
        assert [key for _, key in self.cache.entries] == [key for _, key in self.kept]
        # Those who lead, and only they, have begun to work.
        leading = {names[0] for table in self.tables for names in table.open.values()}
        assert leading == {name for name, answer in self.answers.items() if not answer.done()}

    def assert_nothing_left(self) -> None:
        for table in self.tables:
            assert table.flights.statistics() == FlightStatistics(0, 0)


# --- retries -------------------------------------------------------------------------------------


class Status(OSError):
    """An error with an HTTP status, as clients raise it, and the wait that the server asks for."""

    def __init__(self, status: int, asked_s: int | None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = {} if asked_s is None else {"Retry-After": str(asked_s)}


class RetriesMachine(OnALoop):
    """How often each request is made and when, and the places that it holds meanwhile."""

    PLACES, ATTEMPTS = 2, 3
    # No multiple of a step, nor with what the server asks for, as waits have random parts.
    DEADLINE_S = 95
    STEP_S, BACKOFF_S, LONGEST_BACKOFF_S = 10, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self._settings = aioxarray.config.set(
            {
                "retry.attempts": self.ATTEMPTS,
                "retry.deadline": self.DEADLINE_S,
                "retry.backoff_s": self.BACKOFF_S,
            }
        )
        self._settings.__enter__()
        self._clock = retrying.clock
        retrying.clock = self.runner.get_loop().time
        self.budget = Budget("requests")
        self.share = self.budget.share(self.PLACES)
        self.share.__enter__()
        self.store = MemoryStore()
        # At the server: all attempts, and the answers that it owes.
        self.attempts: dict[int, int] = {}
        self.answers: dict[int, asyncio.Future[str]] = {}
        # Attempts that have failed, and when the first has.
        self.failed: dict[int, int] = {}
        self.first_failed_at: dict[int, float] = {}
        # Until when requests wait for their next attempt, at most.
        self.resting: dict[int, float] = {}
        self.over: set[int] = set()

    async def request(self, name: int) -> str:
        async def ask() -> str:
            self.attempts[name] = self.attempts.get(name, 0) + 1
            answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self.answers[name] = answer
            try:
                return str(await answer)
            finally:
                del self.answers[name]

        answer: str = await send(Request("get", self.store, f"key {name}"), self.share, ask)
        return answer

    def active(self) -> set[int]:
        """Return the requests that have a place or wait for one."""
        return set(self.tasks) - self.over - self.resting.keys()

    @property
    def now(self) -> float:
        return self.runner.get_loop().time()

    @rule()
    @precondition(lambda self: len(self.active()) < 6)
    def ask(self) -> None:
        self.start(self.request(len(self.tasks)))

    def answered(self, index: int) -> int:
        # Those first that have failed most often, so that some run out of attempts.
        names = sorted(self.answers, key=lambda name: (-self.failed.get(name, 0), name))
        return names[index % len(names)]

    @rule(index=st.integers(0, 5))
    @precondition(lambda self: self.answers)
    def succeed(self, index: int) -> None:
        name = self.answered(index)
        self.answers[name].set_result("fine")
        self.over.add(name)
        self.settle()
        assert self.tasks[name].result() == "fine"

    @rule(
        index=st.integers(0, 2),
        status=st.sampled_from([429, 503, 503, 404]),
        asked_s=st.sampled_from([None, 17, 100]),
    )
    @precondition(lambda self: self.answers)
    def fail(self, index: int, status: int, asked_s: int | None) -> None:
        name = self.answered(index)
        self.failed[name] = self.failed.get(name, 0) + 1
        begun = self.first_failed_at.setdefault(name, self.now)
        in_time = self.now - begun + (asked_s or 0) <= self.DEADLINE_S
        goes_on = status in (429, 503) and self.failed[name] < self.ATTEMPTS and in_time
        if goes_on:
            self.resting[name] = self.now + (asked_s or self.LONGEST_BACKOFF_S)
        else:
            self.over.add(name)
        self.answers[name].set_exception(Status(status, asked_s))
        self.settle()
        if not goes_on:
            error = self.tasks[name].exception()
            assert getattr(error, "status", None) == status or "status" in str(error)

    @rule()
    @precondition(lambda self: set(self.tasks) - self.over)
    def wait(self) -> None:
        """Let time pass, in which some of the requests end their waits."""
        self.runner.run(asyncio.sleep(self.STEP_S))
        self.settle()
        for name, until in list(self.resting.items()):
            if until <= self.now:
                del self.resting[name]

    @rule(index=st.integers(0, 20))
    @precondition(lambda self: set(self.tasks) - self.over)
    def give_up(self, index: int) -> None:
        alive = sorted(set(self.tasks) - self.over)
        name = alive[index % len(alive)]
        self.resting.pop(name, None)
        self.over.add(name)
        self.cancel(name)

    @invariant()
    def same(self) -> None:
        active = self.active()
        under_way = min(len(active), self.PLACES)
        # No place is held while a request waits for its next attempt. All waits that are over by
        # now have ended, and no other.
        assert len(self.answers) == under_way
        assert self.answers.keys() <= active
        now = self.budget.statistics()
        assert (now.in_use, now.waiting) == (under_way, len(active) - under_way)
        for name in self.tasks:
            made, failed = self.attempts.get(name, 0), self.failed.get(name, 0)
            assert made <= self.ATTEMPTS
            if name in self.resting:
                assert made == failed
            elif name in self.answers:
                assert made == failed + 1

    def assert_nothing_left(self) -> None:
        self._settings.__exit__(None, None, None)
        retrying.clock = self._clock
        self.share.__exit__()
        assert not self.answers
        assert self.budget.statistics() == BudgetStatistics(0, 0, 0, 0)


TestBudget = pytest.mark.slow(BudgetMachine.TestCase)
TestFlights = pytest.mark.slow(FlightsMachine.TestCase)
TestRetries = pytest.mark.slow(RetriesMachine.TestCase)
for _case in (TestBudget, TestFlights, TestRetries):
    _case.settings = SETTINGS
