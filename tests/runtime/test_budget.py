"""The bounds of `Budget` hold, fairly, and nothing that is taken is lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioxarray._runtime.budget import Budget, BudgetStatistics, Share
from tests.runtime.helpers import PATIENCE_S, run_script, settle


@contextmanager
def shares(*bounds: float) -> Iterator[tuple[Budget, list[Share]]]:
    budget = Budget("things")
    opened = [budget.share(bound) for bound in bounds]
    yield budget, [each.__enter__() for each in opened]
    for each in opened:
        each.__exit__(None, None, None)
    assert budget.in_use == 0
    assert repr(budget) == "<Budget: 0 things in use, 0 waiting>"


class Holders:
    """Tasks that take something and keep it until told."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, share: Share, amount: int = 1, *, long: bool = False) -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, share, amount, long))
        await settle()

    async def _hold(self, name: str, share: Share, amount: int, long: bool) -> None:
        async with share.hold(amount, long=long):
            self.order.append(name)
            await self._leave[name].wait()

    async def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
            await settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])
        await settle()

    async def leave_all(self) -> None:
        """Let all leave, one by one in the order they came in, until none is left."""
        while any(not task.done() for task in self.tasks.values()):
            inside = [name for name in self.order if not self._leave[name].is_set()]
            assert inside, f"stuck after {self.order}"
            await self.leave(inside[0])


def with_holders(test: Callable[[Holders], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test(Holders()))

    run.__name__ = test.__name__
    return run


@with_holders
async def test_a_share_keeps_to_its_bound_and_serves_in_order(holders: Holders) -> None:
    with shares(2) as (budget, (a,)):
        for name in "12345":
            await holders.add(name, a)
        assert holders.order == ["1", "2"]
        assert repr(budget) == "<Budget: 2 things in use, 3 waiting>"
        await holders.leave("2")
        assert holders.order == ["1", "2", "3"]
        await holders.leave("1", "3")
        assert holders.order == ["1", "2", "3", "4", "5"]
        await holders.leave_all()


@with_holders
async def test_shares_together_keep_to_the_largest_bound_and_each_to_its_own(
    holders: Holders,
) -> None:
    with shares(2, 5) as (budget, (small, large)):
        for index in range(4):
            await holders.add(f"small {index}", small)
        for index in range(8):
            await holders.add(f"large {index}", large)
        assert (small.in_use, large.in_use, budget.in_use) == (2, 3, 5)
        await holders.leave("small 0", "small 1")
        assert budget.in_use == 5
        assert small.in_use <= 2
        await holders.leave_all()


@with_holders
async def test_equal_shares_do_not_add_up(holders: Holders) -> None:
    with shares(3, 3, 3) as (budget, three):
        for index, share in enumerate(three):
            for number in range(3):
                await holders.add(f"{index} {number}", share)
        assert budget.in_use == 3
        await holders.leave_all()
        assert len(holders.order) == 9


@with_holders
async def test_an_own_bound_holds_while_the_budget_has_places(holders: Holders) -> None:
    with shares(1, math.inf) as (budget, (one, _)):
        await holders.add("1", one)
        await holders.add("2", one)
        assert (holders.order, budget.in_use) == (["1"], 1)
        await holders.leave_all()


@with_holders
async def test_infinity_is_no_limit(holders: Holders) -> None:
    with shares(math.inf) as (budget, (a,)):
        for index in range(200):
            await holders.add(str(index), a, 10**9)
        assert budget.in_use == 200 * 10**9
        await holders.leave_all()


@with_holders
async def test_tasks_are_admitted_when_a_larger_bound_comes_or_goes(holders: Holders) -> None:
    budget = Budget("things")
    with budget.share(1) as one, budget.share(1) as other:
        await holders.add("1", one)
        await holders.add("2", other)
        assert holders.order == ["1"]
        with budget.share(2):
            # Its bound holds for all.
            await settle()
            assert holders.order == ["1", "2"]
            await holders.leave("1")
            await holders.add("3", one)
            assert budget.in_use == 2
        await holders.leave("2", "3")
    assert budget.in_use == 0


@with_holders
async def test_free_places_go_to_shares_in_turn(holders: Holders) -> None:
    with shares(2, 2) as (_, (large, small)):
        for index in range(20):
            await holders.add(f"large {index}", large)
        for index in range(3):
            await holders.add(f"small {index}", small)
        await holders.leave_all()
        places = [index for index, name in enumerate(holders.order) if name.startswith("small")]
        # Two were inside before; from then on every other place is the small load's.
        assert places in ([2, 4, 6], [3, 5, 7])


@with_holders
async def test_many_shares_wait_in_turn(holders: Holders) -> None:
    with shares(*[1] * 5) as (_, five):
        for number in range(4):
            for index, share in enumerate(five):
                await holders.add(f"{index}.{number}", share)
        await holders.leave_all()
        # In each round each share has one, whichever comes first.
        rounds = [holders.order[start : start + 5] for start in range(0, 20, 5)]
        assert [sorted(name[0] for name in names) for names in rounds] == [list("01234")] * 4
        for index in range(5):
            own = [name for name in holders.order if name.startswith(str(index))]
            assert own == [f"{index}.{number}" for number in range(4)]


@with_holders
async def test_more_than_the_bound_is_let_in_alone(holders: Holders) -> None:
    with shares(10) as (budget, (a,)):
        await holders.add("small", a, 3)
        await holders.add("huge", a, 25)
        await holders.add("after", a, 1)
        assert holders.order == ["small"]
        await holders.leave("small")
        assert holders.order == ["small", "huge"]
        assert budget.in_use == 25
        await holders.leave("huge")
        assert holders.order == ["small", "huge", "after"]
        await holders.leave_all()


@pytest.mark.parametrize("amount", [6, 10, 25], ids=["part", "all", "oversize"])
def test_a_large_amount_is_not_starved_by_small_ones_of_others(amount: int) -> None:
    async def main() -> None:
        holders = Holders()
        with shares(10, 10) as (_, (small, large)):
            for index in range(60):
                await holders.add(f"small {index}", small, 2)
            await holders.add("large", large, amount)
            await holders.leave_all()
            # Five were inside before it came, and one more may have its turn.
            assert holders.order.index("large") <= 6

    asyncio.run(main())


@with_holders
async def test_a_newcomer_does_not_overtake_a_large_amount(holders: Holders) -> None:
    with shares(10, 10) as (_, (one, other)):
        await holders.add("first", one, 4)
        await holders.add("large", other, 8)
        await holders.add("newcomer", one, 4)
        assert holders.order == ["first"]
        await holders.leave("first")
        assert holders.order == ["first", "large"]
        await holders.leave_all()


@with_holders
async def test_a_share_at_its_own_bound_does_not_keep_others_out(holders: Holders) -> None:
    with shares(2, 10) as (budget, (narrow, wide)):
        for index in range(5):
            await holders.add(f"narrow {index}", narrow)
        for index in range(8):
            await holders.add(f"wide {index}", wide)
        assert (narrow.in_use, wide.in_use, budget.in_use) == (2, 8, 10)
        await holders.leave_all()


@with_holders
async def test_a_cancelled_large_amount_lets_small_ones_in(holders: Holders) -> None:
    with shares(10, 10) as (_, (one, other)):
        await holders.add("first", one, 4)
        await holders.add("large", other, 8)
        await holders.add("small", one, 2)
        await holders.cancel("large")
        await holders.leave("first")
        assert holders.order == ["first", "small"]
        await holders.leave_all()


@with_holders
async def test_a_cancelled_waiter_gives_its_turn_to_the_next(holders: Holders) -> None:
    with shares(1) as (budget, (a,)):
        for name in "1234":
            await holders.add(name, a)
        await holders.cancel("2")
        await holders.cancel("3")
        assert holders.order == ["1"]
        await holders.leave("1")
        assert holders.order == ["1", "4"]
        await holders.cancel("4")
        assert budget.in_use == 0
        await holders.add("5", a)
        assert holders.order == ["1", "4", "5"]
        await holders.leave_all()


@pytest.mark.parametrize("steps", range(5))
def test_cancelling_while_the_place_is_on_its_way_gives_it_back(steps: int) -> None:
    async def main() -> None:
        holders = Holders()
        with shares(1) as (budget, (a,)):
            await holders.add("1", a)
            await holders.add("2", a)
            holders._leave["1"].set()
            # The place is given back, on its way, or just taken.
            for _ in range(steps):
                await asyncio.sleep(0)
            await holders.cancel("2")
            await holders.add("3", a)
            assert holders.order[-1] == "3"
            assert budget.in_use == 1
            await holders.leave("3")

    asyncio.run(main())


def test_cancelling_while_another_thread_hands_over_gives_the_place_back() -> None:
    async def main() -> None:
        with shares(1) as (budget, (a,)):
            await a.acquire()
            waiting = asyncio.create_task(a.acquire())
            await settle()
            thread = threading.Thread(target=a.release)
            thread.start()
            # The loop stands still, so the task has not been told.
            thread.join()
            assert budget.in_use == 1
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await settle()
            assert budget.in_use == 0

    asyncio.run(main())


def test_an_error_inside_gives_the_place_back() -> None:
    async def fail(share: Share) -> None:
        async with share.hold():
            raise ZeroDivisionError

    async def main() -> None:
        with shares(1) as (budget, (a,)):
            with pytest.raises(ZeroDivisionError):
                await fail(a)
            assert budget.in_use == 0

    asyncio.run(main())


def test_the_bound_holds_over_threads_with_loops_of_their_own() -> None:
    lock = threading.Lock()
    inside = most = 0
    arrived, go_on = threading.Semaphore(0), threading.Event()

    async def hold(share: Share) -> None:
        nonlocal inside, most
        async with share.hold():
            with lock:
                inside += 1
                most = max(most, inside)
            arrived.release()
            if not go_on.is_set():
                await asyncio.to_thread(go_on.wait, PATIENCE_S)
            await asyncio.sleep(0)
            with lock:
                inside -= 1

    async def main() -> None:
        with budget.share(3) as share:
            await asyncio.gather(*(hold(share) for _ in range(50)))

    budget = Budget("things")
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(asyncio.run, main()) for _ in range(4)]
        for _ in range(3):
            assert arrived.acquire(timeout=PATIENCE_S)
        assert budget.in_use == 3
        go_on.set()
        for run in runs:
            run.result(PATIENCE_S)
    assert (most, inside, budget.in_use) == (3, 0, 0)


def test_a_loop_that_was_closed_while_it_waited_loses_its_turn() -> None:
    async def wait(share: Share) -> None:
        async with share.hold():
            raise AssertionError("the loop is closed")

    async def main() -> None:
        with shares(1) as (budget, (a,)):
            holders = Holders()
            await holders.add("1", a)

            def run_and_close() -> None:
                loop = asyncio.new_event_loop()
                task = loop.create_task(wait(a))
                loop.run_until_complete(settle())
                loop.close()
                # So that asyncio does not complain of it.
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                abandoned.append(task)

            abandoned: list[asyncio.Task[None]] = []
            await asyncio.to_thread(run_and_close)
            await holders.add("2", a)
            await holders.leave("1")
            assert holders.order == ["1", "2"]
            await holders.leave("2")
            assert budget.in_use == 0

    asyncio.run(main())


def quarter(bound: float) -> float:
    return 0 if math.isinf(bound) else bound // 4


@with_holders
async def test_a_short_hold_does_not_wait_for_the_end_of_long_ones(holders: Holders) -> None:
    budget = Budget("things", reserved=quarter)
    with budget.share(8) as large, budget.share(8) as small:
        for index in range(10):
            await holders.add(f"large {index}", large, 2, long=True)
        # A quarter is not for them.
        assert (budget.statistics().in_use, len(holders.order)) == (6, 3)
        for index in range(3):
            await holders.add(f"small {index}", small)
        assert holders.order[3:] == ["small 0", "small 1"]
        assert budget.statistics() == BudgetStatistics(in_use=8, waiting=8, bound=8, shares=2)
        await holders.leave("small 0")
        assert holders.order[5:] == ["small 2"]
        # Nor do the short ones keep the long ones out: what they let go of goes to those.
        await holders.leave("large 0")
        assert holders.order[6:] == ["large 3"]
        await holders.leave_all()


@with_holders
async def test_short_holds_go_beside_one_that_is_larger_than_the_bound(holders: Holders) -> None:
    budget = Budget("things", reserved=quarter)
    with budget.share(8) as large, budget.share(8) as small:
        await holders.add("small 0", small, 2)
        await holders.add("large 0", large, 50, long=True)
        await holders.add("large 1", large, 50, long=True)
        await holders.add("small 1", small)
        assert holders.order == ["small 0", "large 0"]
        await holders.leave("small 0")
        await holders.add("small 2", small)
        assert holders.order == ["small 0", "large 0", "small 1", "small 2"]
        await holders.leave("large 0")
        assert holders.order[4:] == ["large 1"]
        await holders.leave_all()


@with_holders
async def test_a_long_hold_is_not_starved_by_short_ones(holders: Holders) -> None:
    budget = Budget("things", reserved=quarter)
    with budget.share(8) as large, budget.share(8) as small:
        for index in range(60):
            await holders.add(f"small {index}", small)
        await holders.add("large", large, 50, long=True)
        await holders.leave_all()
        # Of the eight that are inside all but two have to leave, and two others may come in,
        # again and again while they do.
        assert holders.order.index("large") <= 8 + 2 * 6


@with_holders
async def test_the_extra_reserve_is_for_short_holds_beside_long_ones(
    holders: Holders,
) -> None:
    budget = Budget("things", extra=lambda bound: 1)
    with budget.share(2) as large, budget.share(2) as small:
        for index in range(4):
            await holders.add(f"small {index}", small)
        assert budget.in_use == 2
        await holders.leave_all()
        for index in range(4):
            await holders.add(f"large {index}", large, long=True)
        await holders.add("short", small)
        await holders.add("shorter", small)
        assert holders.order[4:] == ["large 0", "large 1", "short"]
        await holders.leave_all()


class Checked:
    """A budget, and a simple model of its rules for the tasks that hold and that wait."""

    def __init__(self, budget: Budget, reserve: Callable[[float], float]) -> None:
        self.budget = budget
        self.reserve = reserve
        # Whether more may be in use than a bound that was lowered meanwhile.
        self.has_shrunk = False
        self.shares: dict[int, tuple[Share, float, contextlib.ExitStack]] = {}
        self.inside: dict[int, tuple[int, int, bool]] = {}
        self.waiting: dict[int, tuple[int, int, bool]] = {}
        self.leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def open(self, number: int, bound: float) -> None:
        stack = contextlib.ExitStack()
        self.shares[number] = (stack.enter_context(self.budget.share(bound)), bound, stack)

    async def _hold(self, name: int, number: int, amount: int, long: bool) -> None:
        self.waiting[name] = (number, amount, long)
        try:
            async with self.shares[number][0].hold(amount, long=long):
                self.inside[name] = self.waiting.pop(name)
                await self.leave[name].wait()
        finally:
            self.waiting.pop(name, None)
            self.inside.pop(name, None)

    async def add(self, name: int, number: int, amount: int, long: bool) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, number, amount, long))
        await settle()

    async def let_go(self, name: int) -> None:
        self.leave[name].set()
        await settle()

    async def cancel(self, name: int) -> None:
        self.tasks[name].cancel()
        await settle()

    def close(self, number: int) -> None:
        self.has_shrunk = True
        self.shares.pop(number)[2].close()

    def check(self) -> None:
        """Compare the budget's state with the rules."""
        bounds = [bound for _, bound, _ in self.shares.values()]
        bound = max(bounds, default=0)
        used = sum(amount for _, amount, _ in self.inside.values())
        longs = [amount for _, amount, long in self.inside.values() if long]
        assert self.budget.statistics() == BudgetStatistics(
            used, len(self.waiting), bound, len(self.shares)
        )
        reserve = self.reserve(bound)
        short = used - sum(longs)
        if used > bound and not self.has_shrunk:
            # One that is larger than the bound, or than the reserve leaves, beside the reserve; or
            # one that is larger than the reserve in it.
            shorts = len(self.inside) - len(longs)
            assert len(self.inside) == 1 or reserve
            assert len(longs) <= 1 or sum(longs) <= bound - reserve
            assert shorts <= 1 or short <= reserve
        waiting: dict[int, tuple[int, bool]] = {}
        for number, amount, long in self.waiting.values():
            waiting.setdefault(number, (amount, long))
        able = []
        for number, (amount, long) in waiting.items():
            own = sum(amount for at, amount, _ in self.inside.values() if at == number)
            if own == 0 or own + amount <= self.shares[number][1]:
                able.append((amount, long))
        if not able:
            return
        # No task waits without need: one that has a turn does not fit, and all but the reserve is
        # kept for it; and those that could use the reserve have no room there.
        assert used > 0
        assert any(
            amount + used > bound or (long and amount + sum(longs) > bound - reserve)
            for amount, long in able
        )
        if reserve:
            able_short = [amount for amount, long in able if not long]
            assert not able_short or any(short and each + short > reserve for each in able_short)


amounts = st.integers(1, 12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), amounts, st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("reopen"), st.integers(0, 3), st.sampled_from([2, 5, 8, 8, math.inf])),
    ),
    max_size=40,
)


@pytest.mark.parametrize("with_reserve", [False, True])
@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_any_sequence_of_calls_keeps_the_rules(with_reserve: bool, steps: list[Any]) -> None:
    async def main() -> None:
        reserve: Callable[[float], float] = quarter if with_reserve else lambda bound: 0
        model = Checked(Budget("things", reserved=reserve), reserve)
        for number in range(4):
            model.open(number, 8)
        for name, (kind, *arguments) in enumerate(steps):
            if kind == "add":
                await model.add(name, *arguments)
            elif kind == "reopen":
                number, bound = arguments
                if all(
                    number != each[0] for each in [*model.inside.values(), *model.waiting.values()]
                ):
                    model.close(number)
                    await settle()
                    model.open(number, bound)
                    await settle()
            else:
                names = list(model.inside if kind == "leave" else model.waiting)
                if names:
                    chosen = names[arguments[0] % len(names)]
                    await (model.let_go if kind == "leave" else model.cancel)(chosen)
            model.check()
        while model.inside:
            await model.let_go(next(iter(model.inside)))
            model.check()
        # No task is forgotten.
        assert not model.waiting
        for number in range(4):
            model.close(number)
        assert model.budget.statistics() == BudgetStatistics(0, 0, 0, 0)

    asyncio.run(main())


def test_the_work_of_a_call_does_not_depend_on_how_many_others_wait() -> None:
    """A call looks at as many shares beside a thousand others as beside a hundred."""

    async def hold(budget: Budget) -> None:
        with budget.share(8) as share:
            async with share.hold():
                await asyncio.sleep(0)

    def looks(calls: int) -> float:
        count = 0
        has_turn = Share._has_turn

        def profile(frame: Any, event: str, _: object) -> None:
            nonlocal count
            count += event == "call" and frame.f_code is has_turn.__code__

        async def main() -> None:
            budget = Budget("things")
            await asyncio.gather(*(hold(budget) for _ in range(calls)))
            assert budget.statistics() == BudgetStatistics(0, 0, 0, 0)

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            asyncio.run(main())
        finally:
            sys.setprofile(before)
        return count / calls

    assert looks(1000) <= 1.2 * looks(100)


FORK = """
import asyncio, os
from aioxarray._runtime.budget import Budget

budget = Budget("things")

async def hold():
    with budget.share(1) as share:
        async with share.hold():
            return budget.in_use

async def main():
    with budget.share(1) as share:
        async with share.hold():
            child = os.fork()
            if child == 0:
                free = budget.in_use == 0
                # Not asyncio.run: a loop counts as running in this thread.
                asyncio._set_running_loop(None)
                held = asyncio.new_event_loop().run_until_complete(hold()) == 1
                os._exit(0 if free and held else 1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == 0, code
            assert budget.in_use == 1

asyncio.run(main())
assert budget.in_use == 0
print("fine")
"""


def test_a_forked_process_begins_with_nothing_in_use() -> None:
    assert run_script(FORK).splitlines()[-1] == "fine"
