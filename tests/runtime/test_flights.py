"""Single flight: one call works, all get what came of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from aioxarray._runtime.flights import Flights, Party


class Call:
    """A call that wants values, and what it was given."""

    def __init__(self) -> None:
        self.got: dict[str, int] = {}

    def deliver(self, key: str, value: int) -> None:
        self.got[key] = value


def end(party: Party[str, int], key: str, value: int) -> int:
    """End the work on ``key``; return how many followed."""
    others = party.close(key)
    for other in others:
        other.hand(key, value)
    return len(others)


def test_one_leads_and_the_others_get_the_value() -> None:
    async def main() -> None:
        flights: Flights[str, int] = Flights()
        calls = [Call() for _ in range(3)]
        with (
            flights.party(calls[0].deliver) as first,
            flights.party(calls[1].deliver) as second,
            flights.party(calls[2].deliver) as third,
        ):
            assert first.lead("a")
            assert not second.lead("a")
            assert not third.lead("a")
            assert third.lead("b"), "another key is other work"
            assert end(first, "a", 1) == 2
            assert await second.rest() == []
            assert calls[1].got == calls[2].got == {"a": 1}
            assert calls[0].got == {}, "who leads has the value without being told"
        assert repr(flights) == "<Flights: 0 under way>"

    asyncio.run(main())


def test_closed_work_is_forgotten() -> None:
    async def main() -> None:
        flights: Flights[str, int] = Flights()
        with flights.party(Call().deliver) as first, flights.party(Call().deliver) as second:
            assert first.lead("a")
            assert list(first.close("a")) == []
            assert second.lead("a")
            assert list(first.close("a")) == [], "it is the second one's now"
            assert not first.lead("a")

    asyncio.run(main())


@pytest.mark.parametrize("followers", [1, 3])
def test_who_follows_takes_over_what_was_given_up(followers: int) -> None:
    async def main() -> None:
        flights: Flights[str, int] = Flights()
        calls = [Call() for _ in range(followers)]

        async def follow(call: Call) -> int:
            led = 0
            with flights.party(call.deliver) as party:
                todo = ["a"]
                while todo:
                    for key in todo:
                        if party.lead(key):
                            led += 1
                            await asyncio.sleep(0)
                            end(party, key, 5)
                            call.deliver(key, 5)
                    todo = await party.rest()
            return led

        with flights.party(Call().deliver) as first:
            assert first.lead("a")
            tasks = [asyncio.create_task(follow(call)) for call in calls]
            await asyncio.sleep(0)
            assert len(flights._followers["a"]) == followers
        # It left without a value: it was cancelled, say.
        assert sum(await asyncio.gather(*tasks)) == 1
        assert all(call.got == {"a": 5} for call in calls)

    asyncio.run(main())


def test_a_follower_that_leaves_hurts_nobody() -> None:
    async def main() -> None:
        flights: Flights[str, int] = Flights()
        left, stays = Call(), Call()
        with flights.party(Call().deliver) as first, flights.party(stays.deliver) as third:
            assert first.lead("a")
            with flights.party(left.deliver) as second:
                assert not second.lead("a")
            assert not third.lead("a")
            assert end(first, "a", 1) == 1
            assert await third.rest() == []
        assert stays.got == {"a": 1}
        assert left.got == {}

    asyncio.run(main())


def test_an_error_reaches_all_and_is_forgotten() -> None:
    async def main() -> None:
        flights: Flights[str, int] = Flights()
        with flights.party(Call().deliver) as first, flights.party(Call().deliver) as second:
            assert first.lead("a")
            assert not second.lead("a")
            for other in first.close("a"):
                other.fail("a", OSError("broken"))
            with pytest.raises(OSError, match="broken"):
                await second.rest()
        with flights.party(Call().deliver) as again:
            assert again.lead("a")

    asyncio.run(main())


def test_an_error_of_one_who_is_given_the_value_is_its_own() -> None:
    def refuse(key: str, value: int) -> None:
        raise ValueError("no room")

    async def main() -> None:
        flights: Flights[str, int] = Flights()
        call = Call()
        with (
            flights.party(Call().deliver) as first,
            flights.party(refuse) as second,
            flights.party(call.deliver) as third,
        ):
            assert first.lead("a")
            assert not second.lead("a")
            assert not third.lead("a")
            end(first, "a", 1)
            assert await third.rest() == []
            assert call.got == {"a": 1}
            with pytest.raises(ValueError, match="no room"):
                await second.rest()

    asyncio.run(main())


def test_over_loops_and_threads() -> None:
    flights: Flights[str, int] = Flights()
    call = Call()
    leads, follows = threading.Event(), threading.Event()

    async def lead() -> None:
        with flights.party(Call().deliver) as party:
            assert party.lead("a")
            leads.set()
            await asyncio.to_thread(follows.wait)
            # As a decoding thread does it.
            assert await asyncio.to_thread(end, party, "a", 3) == 1

    async def follow() -> None:
        await asyncio.to_thread(leads.wait)
        with flights.party(call.deliver) as party:
            assert not party.lead("a")
            follows.set()
            assert await party.rest() == []

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for main in (lead, follow)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert call.got == {"a": 3}


def test_many_threads_do_each_work_once() -> None:
    flights: Flights[int, int] = Flights()
    keys = list(range(40))
    together = threading.Barrier(6)
    results: list[dict[int, int]] = []
    errors: list[BaseException] = []

    async def main() -> None:
        got: dict[int, int] = {}
        with flights.party(got.__setitem__) as party:
            todo = keys
            while todo:
                for key in todo:
                    if party.lead(key):
                        got[key] = key * key
                        for other in party.close(key):
                            other.hand(key, key * key)
                todo = await party.rest()
        results.append(got)

    def run() -> None:
        together.wait()
        try:
            for _ in range(20):
                asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(got == {key: key * key for key in keys} for got in results)
    assert repr(flights) == "<Flights: 0 under way>"


def test_a_child_starts_anew() -> None:
    async def main() -> None:
        flights: Flights[str, Any] = Flights()
        with flights.party(Call().deliver) as party:
            assert party.lead("a")
            flights._lock.acquire()  # as a thread that stays behind may hold it
            flights._reset()  # what runs in the child
            with flights.party(Call().deliver) as other:
                assert other.lead("a")

    asyncio.run(main())
