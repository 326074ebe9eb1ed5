"""`Cache`: what is least recently used goes first, and what belongs to an owner with it."""

from __future__ import annotations

import threading
import weakref

from aioxarray._runtime.cache import Cache


class Value:
    """Something whose end can be seen."""


def cache_of(limit: int, **sizes: int) -> Cache:
    cache = Cache()
    cache.resize(limit)
    for name, size in sizes.items():
        cache.put("owner", name, name.upper(), size)
    return cache


def kept(cache: Cache, names: str) -> str:
    return "".join(name for name in names if cache.get("owner", name) is not None)


def test_a_value_of_none_is_a_value() -> None:
    cache = cache_of(10)
    assert cache.get("owner", "a") is None
    cache.put("owner", "a", None, 1)
    assert cache.get("owner", "a") == (None,)


def test_begins_without_room() -> None:
    cache = Cache()
    cache.put("owner", "a", 1, 1)
    assert cache.get("owner", "a") is None


def test_the_least_recently_used_goes_first() -> None:
    cache = cache_of(3, a=1, b=1, c=1)
    assert cache.get("owner", "a") == ("A",)
    cache.put("owner", "d", "D", 2)
    assert kept(cache, "abcd") == "ad"
    assert cache.size == 3


def test_peeking_is_no_use() -> None:
    cache = cache_of(3, a=1, b=1, c=1)
    assert (cache.peek("owner", "a"), cache.peek("owner", "d")) == (("A",), None)
    cache.put("owner", "d", "D", 1)
    assert kept(cache, "abcd") == "bcd"


def test_a_value_that_does_not_fit_at_all_displaces_nothing() -> None:
    cache = cache_of(3, a=1, b=1)
    cache.put("owner", "c", "C", 4)
    assert kept(cache, "abc") == "ab"


def test_a_value_may_be_replaced() -> None:
    cache = cache_of(5, a=3)
    cache.put("owner", "a", "other", 1)
    assert cache.get("owner", "a") == ("other",)
    assert (len(cache), cache.size) == (1, 1)


def test_a_smaller_limit_makes_room() -> None:
    cache = cache_of(10, a=1, b=2, c=3)
    cache.resize(5)
    assert kept(cache, "abc") == "bc"
    cache.resize(0)
    assert (len(cache), cache.size) == (0, 0)


def test_dropping_affects_one_owner_only() -> None:
    cache = cache_of(10, a=1, b=1)
    cache.put("other", "a", 1, 1)
    cache.drop("owner")
    cache.drop("owner")
    assert kept(cache, "ab") == ""
    assert cache.get("other", "a") == (1,)
    assert (len(cache), cache.size) == (1, 1)


def test_nothing_else_holds_what_is_gone() -> None:
    cache = cache_of(10)
    owner, value = Value(), Value()
    ends = [weakref.ref(owner), weakref.ref(value)]
    cache.put(owner, "a", value, 1)
    del owner, value
    assert None not in [end() for end in ends]
    cache.resize(0)
    assert [end() for end in ends] == [None, None]


def test_from_several_threads() -> None:
    cache = cache_of(50)

    def work(number: int) -> None:
        for i in range(2000):
            cache.put(number % 2, i % 40, i, 1 + i % 7)
            cache.get(number % 2, (i * 7) % 40)
            if i % 100 == 0:
                cache.drop(number % 2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 <= cache.size <= 50
    cache.resize(0)
    assert (len(cache), cache.size) == (0, 0)
