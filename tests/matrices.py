"""The part of a wide matrix of parameters that the fast set of tests runs.

Most faults need one value of a parameter, or two values together. A small part of the matrix has
all pairs of values. If each case takes seconds, as those that start processes do, one is enough.
The rest is marked as slow: CI runs it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

# The values of the parameters of one test, each as a number, by the names of the parameters.
Case = Mapping[str, int]


def covering(cases: Sequence[Case], together: int) -> set[int]:
    """Return the indices of cases that have all combinations of ``together`` values.

    Those are the combinations of values of different parameters that occur in ``cases``. The next
    case taken is one with the most combinations that are new, and of several one with values that
    were taken least. If ``together`` is 0, the first case is taken.
    """
    rest = [set(combinations(sorted(case.items()), min(together, len(case)))) for case in cases]
    missing = set().union(*rest)
    taken = set()
    uses: Counter[tuple[str, int]] = Counter()

    def gain(index: int) -> tuple[int, int]:
        return len(rest[index] & missing), -sum(uses[value] for value in cases[index].items())

    while missing:
        index = max(range(len(cases)), key=gain)
        taken.add(index)
        missing -= rest[index]
        uses.update(cases[index].items())
    return taken


def mark_rest(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what is not needed of tests marked ``matrix``."""
    matrices: dict[str, list[Any]] = {}
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        if item.get_closest_marker("matrix") is not None and not is_slow:
            matrices.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in matrices.values():
        marker = cases[0].get_closest_marker("matrix")
        # Values may be of any type; those of one parametrization are the same objects each time.
        params = [each.callspec.params for each in cases]
        values = [{name: id(value) for name, value in each.items()} for each in params]
        taken = covering(values, marker.kwargs["together"])
        for index, item in enumerate(cases):
            if index not in taken:
                item.add_marker(pytest.mark.slow)
