"""The fast part of a matrix has each value, or each pair of values."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest

from tests.matrices import covering


def matrix(**lengths: int) -> list[dict[str, int]]:
    """Return all combinations of parameters with so many values each."""
    return [
        dict(zip(lengths, values, strict=True)) for values in product(*map(range, lengths.values()))
    ]


@pytest.mark.parametrize(("together", "count"), [(0, 1), (1, 7), (2, 21), (3, 42)])
def test_all_combinations_of_so_many_values_are_in_it(together: int, count: int) -> None:
    cases = matrix(options=7, way=3, zarr_format=2)
    taken = covering(cases, together)
    for names in combinations(cases[0], together):
        wanted = {tuple(case[name] for name in names) for case in cases}
        assert {tuple(cases[index][name] for name in names) for index in taken} == wanted
    # No more than the parameters with the most values need.
    assert len(taken) == count


def test_each_value_is_taken_about_as_often_as_the_others() -> None:
    cases = matrix(store=9, way=3)
    taken = covering(cases, 1)
    assert Counter(cases[index]["way"] for index in taken) == {0: 3, 1: 3, 2: 3}


def test_combinations_left_out_of_the_product_are_not_missed() -> None:
    cases = [case for case in matrix(kind=3, way=3) if case["kind"] <= case["way"]]
    assert covering(cases, 2) == set(range(len(cases)))
    assert len(covering(cases, 1)) == 3


def test_fewer_parameters_than_are_combined() -> None:
    assert covering(matrix(way=3), 2) == {0, 1, 2}
    assert covering([{}], 2) == {0}
