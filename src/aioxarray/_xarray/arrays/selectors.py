"""Selections along single dimensions, as plain positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Positions = np.ndarray[Any, np.dtype[np.int64]]

Selector = range | Positions
"""The positions of the selected elements along one dimension, in order."""

Values = np.ndarray[Any, np.dtype[Any]]


def overlap(selector: Selector, start: int, size: int) -> tuple[Selector, Selector]:
    """Return the positions in a part, relative to its start, and their indices in ``selector``."""
    if isinstance(selector, range):
        step = selector.step
        first = max(0, -(-(start - selector.start) // step))
        last = min(len(selector), -(-(start + size - selector.start) // step))
        here = selector[first : max(first, last)]
        return range(here.start - start, here.stop - start, step), range(first, max(first, last))
    at = np.flatnonzero((selector >= start) & (selector < start + size))
    return selector[at] - start, at


def take(selector: Selector, at: Selector) -> Selector:
    """Return the positions of ``selector`` at the indices ``at``."""
    if isinstance(selector, range) and isinstance(at, range) and at.step > 0:
        return selector[at.start : at.stop : at.step]
    taken: Selector = positions_of(selector)[positions_of(at)]
    return taken


def positions_of(selector: Selector) -> Positions:
    """Return the positions as an array."""
    if isinstance(selector, range):
        return np.arange(selector.start, selector.stop, selector.step, dtype=np.int64)
    return np.asarray(selector, dtype=np.int64)


def as_selector(positions: Values) -> Selector:
    """Return a range if positions are evenly spaced and ascending, since it is read as a slice."""
    if len(positions) == 0:
        return range(0)
    first, last = int(positions[0]), int(positions[-1])
    step = int(positions[1]) - first if len(positions) > 1 else 1
    if step > 0 and bool(np.all(np.diff(positions) == step)):
        return range(first, last + 1, step)
    return positions.astype(np.int64)


def as_index(selectors: Sequence[Selector]) -> tuple[Any, ...]:
    """Return a numpy index that applies each of ``selectors`` along its own dimension."""
    if sum(not isinstance(selector, range) for selector in selectors) <= 1:
        # With slices, numpy copies rows; with `numpy.ix_`, element by element: 20 times slower.
        return tuple(
            as_slice(selector) if isinstance(selector, range) else positions_of(selector)
            for selector in selectors
        )
    return np.ix_(*(positions_of(selector) for selector in selectors))


def as_slice(selector: Selector) -> slice:
    """Return the slice that selects a range of positions."""
    assert isinstance(selector, range)
    return slice(selector.start, max(selector.start, selector.stop), selector.step)


def moved(selector: Selector, by: int) -> Selector:
    """Return the positions, each plus ``by``."""
    if isinstance(selector, range):
        return range(selector.start + by, selector.stop + by, selector.step)
    return selector + by


def selector_of(key: Any, size: int) -> Selector:
    """Return the positions that one part of an indexer selects from a dimension of ``size``."""
    if isinstance(key, slice):
        return range(*key.indices(size))
    if isinstance(key, np.ndarray):
        return key.astype(np.int64)
    position = int(key) + (size if key < 0 else 0)
    return range(position, position + 1)


def differing_along_one(
    starts: Positions,
) -> tuple[int, list[Positions]]:
    """Return a dimension, and groups of windows that only differ along it: as few as possible.

    Parameters
    ----------
    starts
        The first position of each window, of which there is at least one, along each dimension.
    """
    varying = np.flatnonzero((starts != starts[0]).any(axis=0))
    if len(varying) < 2:
        along = int(varying[0]) if len(varying) else 0
        return along, [np.arange(len(starts), dtype=np.int64)]
    best: tuple[int, list[Positions]] | None = None
    for axis in varying:
        others = starts[:, varying[varying != axis]]
        _, numbers = np.unique(others, axis=0, return_inverse=True)
        numbers = numbers.ravel()
        if best is None or numbers.max() + 1 < len(best[1]):
            groups = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
            best = int(axis), groups
    assert best is not None
    return best
