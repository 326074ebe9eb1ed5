"""`Flights`: work on a key is done once; who follows gets its value, its error, or the work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aioxarray._runtime.cache import Cache
from aioxarray._runtime.flights import Flight, Flights, Follower
from aioxarray.errors import Overloaded
from tests.runtime.helpers import PATIENCE_S, settle, until


def flights(room: int = 0) -> Flights[str, int]:
    cache = Cache()
    cache.resize(room)
    return Flights(cache)


def double(value: int, part: str = "") -> int:
    return 2 * value


def lead(of: Flights[str, int], key: str = "a") -> Flight[str, int]:
    flight = of.join(key, double, "part")
    assert isinstance(flight, Flight)
    return flight


def follow(
    of: Flights[str, int], key: str = "a", take: Callable[[int, str], int] = double
) -> Follower[int, int]:
    follower = of.join(key, take, "part")
    assert isinstance(follower, Follower)
    return follower


def raise_in(flight: Flight[str, int], error: BaseException) -> None:
    with flight:
        raise error


def test_who_follows_takes_the_value() -> None:
    async def main() -> None:
        several = flights()
        flight = lead(several)
        followers = [follow(several) for _ in range(3)]
        waiting = [asyncio.create_task(each.outcome()) for each in followers]
        await settle()
        assert not any(each.done() for each in waiting)
        flight.land(21)
        assert await asyncio.gather(*waiting) == [(42,)] * 3

    asyncio.run(main())


def test_what_has_ended_is_not_followed() -> None:
    several = flights()
    for end in (lambda flight: flight.land(1), Flight.give_up, lambda f: f.fail(OSError())):
        end(lead(several))
    assert not lead(several).close(), "nobody"
    lead(several)


def test_keys_do_not_meet() -> None:
    several = flights()
    lead(several, "a")
    lead(several, "b")


def test_closing_tells_whether_somebody_follows() -> None:
    async def main() -> None:
        several = flights()
        alone = lead(several)
        assert not alone.close()
        flight = lead(several)
        follower = follow(several)
        assert flight.close()
        lead(several)
        flight.land(1)
        assert await follower.outcome() == (2,)

    asyncio.run(main())


class Broken(Exception):
    """One that cannot be made of its arguments alone."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("error", [OSError("lost"), Broken(1, 2)])
def test_an_error_is_raised_in_each_with_notes_of_its_own(error: Exception) -> None:
    async def main() -> None:
        several = flights()
        error.add_note("of the work")
        cause = ValueError()
        error.__cause__ = cause
        flight = lead(several)
        followers = [follow(several) for _ in range(2)]
        with pytest.raises(type(error)):
            raise_in(flight, error)
        caught: list[Exception] = []
        for follower in followers:
            with pytest.raises(type(error), match=str(error)) as found:
                await follower.outcome()
            caught.append(found.value)
            assert found.value.__cause__ is cause
        if isinstance(error, OSError):
            caught[0].add_note("of the first")
            assert caught[1].__notes__ == error.__notes__ == ["of the work"]

    asyncio.run(main())


def test_what_is_given_up_is_left_to_who_follows() -> None:
    async def main() -> None:
        several = flights()
        with lead(several):
            followers = [follow(several) for _ in range(2)]
        for follower in followers:
            assert await follower.outcome() is None
        flight = lead(several)
        follower = follow(several)
        with pytest.raises(KeyboardInterrupt):
            raise_in(flight, KeyboardInterrupt())
        assert await follower.outcome() is None

    asyncio.run(main())


def test_the_refusal_of_one_call_leaves_the_work_to_the_followers() -> None:
    """`Overloaded` says nothing of the key: the followers' calls may have their turn already."""

    async def main() -> None:
        several = flights()
        flight = lead(several)
        follower = follow(several)
        with pytest.raises(Overloaded):
            raise_in(flight, Overloaded("too many"))
        assert await follower.outcome() is None

    asyncio.run(main())


def test_a_flight_ends_once() -> None:
    async def main() -> None:
        several = flights()
        flight = lead(several)
        follower = follow(several)
        flight.land(1)
        flight.fail(OSError())
        flight.give_up()
        other = lead(several)
        flight.give_up()
        assert await follower.outcome() == (2,)
        # What has ended does not end the next one on the key.
        assert await settled(several)
        other.land(1)

    async def settled(several: Flights[str, int]) -> bool:
        follower = several.join("a", double, "part")
        assert isinstance(follower, Follower)
        await follower.withdraw()
        return True

    asyncio.run(main())


def test_an_error_in_taking_is_the_followers_own() -> None:
    def fail(value: int, part: str) -> int:
        raise OSError("no place")

    async def main() -> None:
        several = flights()
        flight = lead(several)
        unlucky, other = follow(several, take=fail), follow(several)
        flight.land(1)
        with pytest.raises(OSError, match="no place"):
            await unlucky.outcome()
        assert await other.outcome() == (2,)

    asyncio.run(main())


def test_who_was_cancelled_takes_nothing() -> None:
    async def main() -> None:
        taken: list[int] = []
        several = flights()
        flight = lead(several)
        follower: Any = several.join("a", lambda value, part: taken.append(value), "part")
        waiting = asyncio.create_task(follower.outcome())
        await settle()
        waiting.cancel()
        await asyncio.wait([waiting])
        await follower.withdraw()
        flight.land(1)
        assert taken == []

    asyncio.run(main())


@pytest.mark.parametrize("again", [False, True])
def test_withdrawing_waits_until_nothing_is_being_taken(again: bool) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def take(value: int, part: str) -> int:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return value

    async def main() -> None:
        several = flights()
        flight = lead(several)
        follower = follow(several, take=take)
        landing = threading.Thread(target=flight.land, args=(1,))
        landing.start()
        await until(begun)
        withdrawing = asyncio.create_task(follower.withdraw())
        await settle()
        if again:
            withdrawing.cancel()
            await settle()
        assert not withdrawing.done()
        may_end.set()
        await asyncio.wait([withdrawing])
        landing.join()
        assert not withdrawing.cancelled()

    asyncio.run(main())


def test_over_loops() -> None:
    several = flights()
    flight = lead(several)
    outcomes: list[Any] = []
    joined = threading.Barrier(4)

    def wait() -> None:
        follower = follow(several)
        joined.wait(PATIENCE_S)
        outcomes.append(asyncio.run(follower.outcome()))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    joined.wait(PATIENCE_S)
    flight.land(4)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == [(8,)] * 3


# --- what is kept --------------------------------------------------------------------------------


def test_what_is_kept_is_known() -> None:
    several = flights(room=10)
    assert several.known("a") is None
    lead(several).land(1, size=4)
    assert several.join("a", double, "part") == (1,) == several.known("a")
    lead(several, "b").land(1)
    # Not kept unless it is asked for.
    lead(several, "b")
    several.keep("c", 3, 4)
    assert several.join("c", double, "part") == (3,)


def test_who_follows_gets_what_is_kept_too() -> None:
    async def main() -> None:
        several = flights(room=10)
        flight = lead(several)
        follower = follow(several)
        flight.land(1, size=4)
        assert await follower.outcome() == (2,)
        assert several.join("a", double, "part") == (1,)

    asyncio.run(main())


def test_tables_do_not_know_of_each_other() -> None:
    cache = Cache()
    cache.resize(10)
    one: Flights[str, int] = Flights(cache)
    other: Flights[str, int] = Flights(cache)
    lead(one).land(1, size=4)
    lead(other)


def test_after_closing_nothing_is_kept() -> None:
    async def main() -> None:
        several = flights(room=10)
        lead(several).land(1, size=4)
        flight = lead(several, "b")
        follower = follow(several, "b")
        several.close()
        assert several.known("a") is None
        flight.land(2, size=4)
        several.keep("c", 3, 4)
        assert await follower.outcome() == (4,)
        assert several.known("b") is None
        assert several.known("c") is None

    asyncio.run(main())
