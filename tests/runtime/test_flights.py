"""`Flights`: work on a key is done once; followers get its value, its error, or the work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from aioxarray._runtime.cache import Cache
from aioxarray._runtime.flights import Flight, Flights, failing, withdraw
from aioxarray.errors import Overloaded
from tests.runtime.helpers import PATIENCE_S, settle, until


def flights(room: int = 0) -> Flights:
    cache = Cache()
    cache.resize(room)
    return Flights(cache)


def double(value: int, part: str = "") -> int:
    return 2 * value


def lead(of: Flights, key: str = "a") -> Flight[str]:
    flight = of.join(key, "part", double)
    assert isinstance(flight, Flight)
    return flight


def follow(of: Flights, key: str = "a", take: Callable[[int, str], int] = double) -> Future[Any]:
    follower = of.join(key, "part", take)
    assert isinstance(follower, Future)
    return follower


async def outcome(follower: Future[Any]) -> tuple[int] | None:
    return await asyncio.wrap_future(follower)


def raise_in(flight: Flight[str], error: BaseException) -> None:
    with flight:
        raise error


def test_followers_take_the_value() -> None:
    async def main() -> None:
        several = flights()
        flight = lead(several)
        followers = [follow(several) for _ in range(3)]
        waiting = [asyncio.create_task(outcome(each)) for each in followers]
        await settle()
        assert not any(each.done() for each in waiting)
        flight.land(21)
        assert await asyncio.gather(*waiting) == [(42,)] * 3

    asyncio.run(main())


def test_a_flight_that_has_ended_is_not_followed() -> None:
    several = flights()
    for end in (lambda flight: flight.land(1), Flight.give_up, lambda f: f.fail(OSError())):
        end(lead(several))
    assert not lead(several).close()
    lead(several)


def test_an_open_flight_is_known_without_following_it() -> None:
    flights = Flights(Cache())
    flight = flights.join("a", None, lambda value, part: value)
    assert isinstance(flight, Flight)
    assert (flights.is_open("a"), flights.is_open("b")) == (True, False)
    assert flights.statistics().followers == 0
    flight.land(1)
    assert not flights.is_open("a")


def test_keys_do_not_meet() -> None:
    several = flights()
    lead(several, "a")
    lead(several, "b")


def test_a_flight_outside_of_flights_has_no_followers() -> None:
    flight = Flight("part")
    assert flight.part == "part"
    assert not flight.close()
    flight.land(1, size=4)
    flight.fail(OSError())
    flight.give_up()
    with pytest.raises(OSError, match="lost"):
        raise_in(flight, OSError("lost"))


def test_an_error_fails_all_flights_of_a_block() -> None:
    async def main() -> None:
        several = flights()
        led = [lead(several, key) for key in "ab"]
        followers = [follow(several, key) for key in "ab"]
        with pytest.raises(OSError, match="lost"), failing(led):
            raise OSError("lost")
        for follower in followers:
            with pytest.raises(OSError, match="lost"):
                await outcome(follower)

    asyncio.run(main())


def test_closing_tells_whether_there_are_followers() -> None:
    async def main() -> None:
        several = flights()
        alone = lead(several)
        assert not alone.close()
        flight = lead(several)
        follower = follow(several)
        assert flight.close()
        lead(several)
        flight.land(1)
        assert await outcome(follower) == (2,)

    asyncio.run(main())


class Broken(Exception):
    """One that cannot be made of its arguments alone."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("error", [OSError("lost"), Broken(1, 2)])
def test_an_error_is_raised_in_each_follower_with_separate_notes(error: Exception) -> None:
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
                await outcome(follower)
            caught.append(found.value)
            assert found.value.__cause__ is cause
        if isinstance(error, OSError):
            caught[0].add_note("of the first")
            assert caught[1].__notes__ == error.__notes__ == ["of the work"]

    asyncio.run(main())


def test_work_that_is_given_up_is_left_to_the_followers() -> None:
    async def main() -> None:
        several = flights()
        with lead(several):
            followers = [follow(several) for _ in range(2)]
        for follower in followers:
            assert await outcome(follower) is None
        flight = lead(several)
        follower = follow(several)
        with pytest.raises(KeyboardInterrupt):
            raise_in(flight, KeyboardInterrupt())
        assert await outcome(follower) is None

    asyncio.run(main())


def test_the_refusal_of_one_call_leaves_the_work_to_the_followers() -> None:
    """`Overloaded` says nothing of the key: the followers' calls may have their turn already."""

    async def main() -> None:
        several = flights()
        flight = lead(several)
        follower = follow(several)
        with pytest.raises(Overloaded):
            raise_in(flight, Overloaded("too many"))
        assert await outcome(follower) is None

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
        assert await outcome(follower) == (2,)
        # What has ended does not end the next one on the key.
        assert await settled(several)
        other.land(1)

    async def settled(several: Flights) -> bool:
        follower = several.join("a", "part", double)
        assert isinstance(follower, Future)
        await withdraw(follower)
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
            await outcome(unlucky)
        assert await outcome(other) == (2,)

    asyncio.run(main())


def test_a_cancelled_follower_takes_nothing() -> None:
    async def main() -> None:
        taken: list[int] = []
        several = flights()
        flight = lead(several)
        follower: Any = several.join("a", "part", lambda value, part: taken.append(value))
        waiting = asyncio.create_task(outcome(follower))
        await settle()
        waiting.cancel()
        await asyncio.wait([waiting])
        await withdraw(follower)
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
        withdrawing = asyncio.create_task(withdraw(follower))
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


def test_followers_on_several_loops_take_the_value() -> None:
    several = flights()
    flight = lead(several)
    outcomes: list[Any] = []
    joined = threading.Barrier(4)

    def wait() -> None:
        follower = follow(several)
        joined.wait(PATIENCE_S)
        outcomes.append(asyncio.run(outcome(follower)))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    joined.wait(PATIENCE_S)
    flight.land(4)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == [(8,)] * 3


# --- what is kept --------------------------------------------------------------------------------


def test_a_kept_value_is_known() -> None:
    several = flights(room=10)
    assert several.known("a") is None
    lead(several).land(1, size=4)
    assert several.join("a", "part", double) == (1,) == several.known("a")
    lead(several, "b").land(1)
    # Not kept unless it is asked for.
    lead(several, "b")
    several.keep("c", 3, 4)
    assert several.join("c", "part", double) == (3,)


def test_followers_get_a_kept_value_too() -> None:
    async def main() -> None:
        several = flights(room=10)
        flight = lead(several)
        follower = follow(several)
        flight.land(1, size=4)
        assert await outcome(follower) == (2,)
        assert several.join("a", "part", double) == (1,)

    asyncio.run(main())


def test_keys_of_different_flights_do_not_meet() -> None:
    cache = Cache()
    cache.resize(10)
    one: Flights = Flights(cache)
    other: Flights = Flights(cache)
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
        assert await outcome(follower) == (4,)
        assert several.known("b") is None
        assert several.known("c") is None

    asyncio.run(main())
