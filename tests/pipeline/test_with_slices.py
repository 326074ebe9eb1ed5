"""Selections by arrays select the same once slices stand in for ranges."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aioxarray._zarr.selection import with_slices

SHAPE = (4, 5, 6)
VALUES = np.arange(120).reshape(SHAPE)


def positions(size: int) -> st.SearchStrategy[list[int]]:
    return st.one_of(
        st.lists(st.integers(-size, size - 1), max_size=6),
        st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda ends: [*range(*ends)]),
    )


@given(st.tuples(*map(positions, SHAPE)))
def test_the_same_is_selected(chosen: tuple[list[int], ...]) -> None:
    selection = np.ix_(*(np.array(each, dtype=np.int64) for each in chosen))
    np.testing.assert_array_equal(VALUES[with_slices(selection)], VALUES[selection])
    result, expected = np.zeros(SHAPE), np.zeros(SHAPE)
    part = np.random.default_rng(0).random(expected[selection].shape)
    pairs = zip(chosen, SHAPE, strict=True)
    if all(len({each % size for each in some}) == len(some) for some, size in pairs):
        result[with_slices(selection)] = part
        expected[selection] = part
        np.testing.assert_array_equal(result, expected)


def test_one_array_is_left_at_most() -> None:
    some = with_slices(np.ix_(np.array([1, 3]), np.arange(5), np.arange(2, 4)))
    assert [isinstance(each, slice) for each in some] == [False, True, True]
    assert with_slices(np.ix_([2], [0, 1], [5])) == (slice(2, 3), slice(0, 2), slice(5, 6))
    two = np.ix_([1, 3], [0, 2], [1])
    assert with_slices(two) is two


def test_points_stay_points() -> None:
    points = (np.array([0, 1]), np.array([2, 3]), np.array([4, 5]))
    assert with_slices(points) is points
    assert with_slices(slice(2)) == slice(2)
    slices = (slice(2), 1, slice(None))
    assert with_slices(slices) is slices
