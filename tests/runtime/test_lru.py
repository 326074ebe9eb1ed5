"""A cache counted in bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioxarray._runtime.lru import Lru


def put(lru: Lru[str, str], key: str, size: int) -> bool:
    return lru.put(key, key.upper(), size, lru.moment)


def test_what_was_used_last_is_kept() -> None:
    lru: Lru[str, str] = Lru(100)
    for key in "abc":
        assert put(lru, key, 30)
    assert lru.get("a") == "A"
    assert put(lru, "d", 30)
    assert [lru.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    assert repr(lru) == "<Lru: 3 values, 90 of 100 bytes>"


def test_what_is_larger_than_all_is_not_kept_and_drops_nothing() -> None:
    lru: Lru[str, str] = Lru(100)
    assert put(lru, "a", 60)
    assert not put(lru, "b", 101)
    assert lru.get("a") == "A"


def test_off_by_default_and_resized() -> None:
    lru: Lru[str, str] = Lru()
    assert not put(lru, "a", 1)
    lru.resize(10)
    assert put(lru, "a", 6)
    assert put(lru, "b", 4)
    lru.resize(5)
    assert [lru.get(key) for key in "ab"] == [None, "B"]
    lru.resize(0)
    assert lru.bytes_held == len(lru) == 0


def test_a_value_on_its_way_while_its_kind_is_dropped_is_not_kept() -> None:
    lru: Lru[str, str] = Lru(100)
    moment = lru.moment
    assert put(lru, "b", 1)
    lru.drop(lambda key: key == "a")
    assert not lru.put("a", "what a write replaced", 1, moment)
    assert lru.get("b") == "B"
    assert put(lru, "a", 1)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40))), st.integers(0, 100))
def test_never_more_than_allowed(puts: list[tuple[str, int]], limit: int) -> None:
    lru: Lru[str, str] = Lru(limit)
    sizes: dict[str, int] = {}
    for key, size in puts:
        if put(lru, key, size):
            sizes[key] = size
        held = sum(sizes[key] for key in sizes if lru.get(key) is not None)
        assert lru.bytes_held <= limit
        assert lru.bytes_held == held
