"""Selections of arrays along their axes, as the slicing tasks of a dask graph compose them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aioxarray._xarray.arrays.selectors import Selector, as_selector, positions_of

Grid = np.ndarray[Any, np.dtype[Any]]
"""An array of views, as the blocks of an array lie beside each other."""


class NoView(Exception):
    """Something other than a selection."""


@dataclass(frozen=True, slots=True)
class View:
    """A part of an array.

    Attributes
    ----------
    source
        The array, recognized by its identity.
    selectors
        For each axis of the array, the positions that are selected.
    axes
        For each axis of the view, the axis of the array; None for a new axis of length 1. Axes
        that are missing here have one position, and were dropped.
    """

    source: Any
    selectors: tuple[Selector, ...]
    axes: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(1 if axis is None else len(self.selectors[axis]) for axis in self.axes)

    @property
    def dropped(self) -> list[int]:
        """The axes of the array that the view does not have."""
        return [axis for axis in range(len(self.selectors)) if axis not in self.axes]


def whole(source: Any) -> View:
    """Return the view of all of ``source``."""
    return View(source, tuple(map(range, source.shape)), tuple(range(len(source.shape))))


def indexed(view: View, index: Any) -> View:
    """Return ``view[index]``, with the meaning that numpy gives to ``index``.

    Raises
    ------
    NoView
        If that does not select along each axis by itself.
    """
    parts = _expanded(index, len(view.axes))
    if sum(isinstance(part, np.ndarray) for part in parts) > 1 or (
        # numpy moves the axis of the array to the front then.
        any(isinstance(part, np.ndarray) for part in parts)
        and any(isinstance(part, int) for part in parts)
    ):
        raise NoView
    selectors = list(view.selectors)
    axes: list[int | None] = []
    remaining = iter(view.axes)
    for part in parts:
        if part is None:
            axes.append(None)
            continue
        axis = next(remaining)
        before = range(1) if axis is None else selectors[axis]
        after = _chosen(before, part)
        if axis is not None:
            selectors[axis] = after
        elif len(after) != 1:
            raise NoView
        if not isinstance(part, int):
            axes.append(axis)
    return View(view.source, tuple(selectors), tuple(axes))


def _expanded(index: Any, ndim: int) -> list[Any]:
    """Return a part for each axis: a slice, an int, an array of integers, or None."""
    parts = [_part(each) for each in (index if isinstance(index, tuple) else (index,))]
    places = [at for at, part in enumerate(parts) if part is Ellipsis]
    missing = ndim - sum(part is not None and part is not Ellipsis for part in parts)
    if len(places) > 1 or missing < 0:
        raise NoView
    at = places[0] if places else len(parts)
    return [*parts[:at], *[slice(None)] * missing, *parts[at + 1 :]]


def _part(part: Any) -> Any:
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, list | np.ndarray):
        array = np.asarray(part)
        if array.ndim == 1 and array.dtype.kind in "iu":
            return array.astype(np.int64)
        raise NoView
    if isinstance(part, bool | np.bool):
        raise NoView
    try:
        return operator.index(part)
    except TypeError:
        raise NoView from None


def _chosen(selector: Selector, part: slice | int | np.ndarray[Any, Any]) -> Selector:
    try:
        if isinstance(part, int):
            position = int(selector[part])
            return range(position, position + 1)
        if isinstance(part, slice):
            return selector[part]
        return as_selector(positions_of(selector)[part])
    except (IndexError, TypeError):
        # dask raises for it, in its own way.
        raise NoView from None


def transposed(view: View, order: Sequence[int] | None) -> View:
    """Return the view with its axes permuted, as by `numpy.transpose`."""
    ndim = len(view.axes)
    order = range(ndim)[::-1] if order is None else [axis % ndim for axis in order]
    return View(view.source, view.selectors, tuple(view.axes[axis] for axis in order))


def grid_of(shape: Sequence[int], views: Sequence[View]) -> Grid:
    """Return the grid of ``shape`` that has ``views`` in C order."""
    grid = np.empty(len(views), object)
    grid[:] = views
    return grid.reshape(shape)


def joined(grid: Grid) -> View | None:
    """Return the view that consists of the views of ``grid``; None if there is no such view."""
    first: View = grid.flat[0]
    if grid.size == 1:
        return first
    lines = [
        [grid[(0,) * axis + (at,) + (0,) * (grid.ndim - axis - 1)] for at in range(length)]
        for axis, length in enumerate(grid.shape)
    ]
    dropped = first.dropped
    for index, view in np.ndenumerate(grid):
        if view.source is not first.source or view.axes != first.axes:
            return None
        for axis, (at, line) in zip(view.axes, zip(index, lines, strict=True), strict=True):
            if axis is None:
                if at:
                    return None
            elif not is_same(view.selectors[axis], line[at].selectors[axis]):
                return None
        if any(not is_same(view.selectors[axis], first.selectors[axis]) for axis in dropped):
            return None
    selectors = list(first.selectors)
    for axis, line in zip(first.axes, lines, strict=True):
        if axis is not None:
            selectors[axis] = _in_a_row([view.selectors[axis] for view in line])
    return View(first.source, tuple(selectors), first.axes)


def is_same(one: Selector, other: Selector) -> bool:
    """Return whether two selectors are the same positions in the same order."""
    if isinstance(one, range) and isinstance(other, range):
        return one == other
    return len(one) == len(other) and np.array_equal(positions_of(one), positions_of(other))


def _in_a_row(parts: Sequence[Selector]) -> Selector:
    """Return the positions of ``parts``, one part after another."""
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    ranges = [part for part in parts if isinstance(part, range)]
    if len(ranges) == len(parts):
        first, second = ranges[:2]
        step = first.step if len(first) > 1 else second[0] - first[0]
        if step and all(
            after[0] == before[-1] + step and (len(after) == 1 or after.step == step)
            for before, after in itertools.pairwise(ranges)
        ):
            last = ranges[-1][-1]
            return range(first[0], last + (1 if step > 0 else -1), step)
    return as_selector(np.concatenate([positions_of(part) for part in parts]))


@dataclass(frozen=True, slots=True)
class Row:
    """Views, or rows of views, that lie beside each other along an axis."""

    parts: tuple[View | Row, ...]
    axis: int


def views_of(part: View | Row) -> Iterator[View]:
    """Yield the views that ``part`` consists of."""
    if isinstance(part, View):
        yield part
    else:
        for each in part.parts:
            yield from views_of(each)


def arranged(grid: Grid) -> View | Row:
    """Return the views of ``grid`` as few views that lie beside each other."""
    view = joined(grid)
    if view is not None:
        return view
    along = [axis for axis, length in enumerate(grid.shape) if length > 1]
    for axis in along:
        slabs = [joined(slab) for slab in _slabs(grid, axis)]
        if None not in slabs:
            parts = list(_runs([slab for slab in slabs if slab is not None], axis))
            return Row(tuple(parts), axis)
    for axis in along:
        # Slabs of the same arrays stay together.
        groups = [
            np.concatenate(list(slabs), axis)
            for _, slabs in itertools.groupby(_slabs(grid, axis), key=_sources)
        ]
        if len(groups) > 1:
            return Row(tuple(map(arranged, groups)), axis)
    axis = along[0]
    return Row(tuple(map(arranged, _slabs(grid, axis))), axis)


def _sources(grid: Grid) -> list[int]:
    return [id(view.source) for view in grid.flat]


def _slabs(grid: Grid, axis: int) -> Iterator[Grid]:
    for at in range(grid.shape[axis]):
        yield grid[(slice(None),) * axis + (slice(at, at + 1),)]


def _runs(views: Sequence[View], axis: int) -> Iterator[View]:
    """Yield the views, those that are parts of the same array as one."""
    run: list[View] = []
    for view in views:
        if run and joined(_line([run[-1], view], axis)) is None:
            yield _united(run, axis)
            run = []
        run.append(view)
    yield _united(run, axis)


def _united(run: Sequence[View], axis: int) -> View:
    view = joined(_line(run, axis))
    assert view is not None, "neighbours fit together, but not all of them"
    return view


def _line(views: Sequence[View], axis: int) -> Grid:
    ndim = len(views[0].axes)
    return grid_of([len(views) if each == axis else 1 for each in range(ndim)], views)
