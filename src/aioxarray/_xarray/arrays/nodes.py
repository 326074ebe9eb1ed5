"""Trees of lazy arrays that are joined, transposed, cast, filled or stacked to one.

A tree records what `xarray.combine_by_coords` and `xarray.combine_nested` do to a variable of many
files, or the windows of a batch. Plain functions find which part of which array a selection needs,
and where it goes; `aioxarray._xarray.arrays.joined` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from aioxarray._xarray.arrays.selectors import (
    Positions,
    Selector,
    Values,
    as_selector,
    differing_along_one,
    moved,
    overlap,
    positions_of,
    take,
)


@dataclass(frozen=True, eq=False)
class Leaf:
    """An array that can be read: a lazy xarray array or a numpy array."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.array.dtype
        return dtype


@dataclass(frozen=True, eq=False)
class Joined:
    """Nodes joined along an existing dimension."""

    parts: tuple[JoinedNode, ...]
    axis: int

    @cached_property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        # numpy's own choice: strings of different lengths, for example, get the longest length.
        dtype: np.dtype[Any] = np.concatenate(
            [np.empty(0, each.dtype) for each in self.parts]
        ).dtype
        return dtype


@dataclass(frozen=True, eq=False)
class Permuted:
    """A node with its dimensions permuted, as by `numpy.transpose`."""

    part: JoinedNode
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.part.shape[axis] for axis in self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.part.dtype


@dataclass(frozen=True, eq=False)
class Repeated:
    """A node repeated along new leading dimensions."""

    part: JoinedNode
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes + self.part.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.part.dtype


@dataclass(frozen=True, eq=False)
class Cast:
    """A node cast to another dtype."""

    part: JoinedNode
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.part.shape


@dataclass(frozen=True, eq=False)
class Reindexed:
    """A node reindexed by position along one dimension, with a fill value for missing positions.

    Attributes
    ----------
    index
        For each position here, the position in ``part``; -1 if it is missing there.
    fill
        The fill value: a 0-d array of the dtype of ``part``.
    """

    part: JoinedNode
    axis: int
    index: Selector
    fill: Values

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.part.shape[: self.axis], len(self.index), *self.part.shape[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.part.dtype


@dataclass(frozen=True, eq=False)
class Stacked:
    """Windows of a leaf, all of one shape, stacked along a new leading dimension.

    Attributes
    ----------
    starts
        The first position of each window along each dimension of ``part``: an array of the number
        of windows by the number of dimensions, which is at least 1.
    sizes
        The shape of a window.
    """

    part: Leaf
    starts: Positions
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.starts), *self.sizes)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.part.dtype


JoinedNode = Leaf | Joined | Permuted | Repeated | Cast | Reindexed | Stacked


@dataclass(frozen=True)
class Piece:
    """A part of a leaf that a selection needs.

    Attributes
    ----------
    array, selection
        The leaf's array, and the selection of it that is needed.
    place
        Where the part goes in the result, along each of its dimensions.
    axes
        For each dimension of the leaf, its dimension in the result; -1 if its positions are those
        of several windows, and so are spread over two dimensions.
    fit
        Converts values of the leaf to the dimensions and dtype of the result.
    """

    array: Any
    selection: tuple[Selector, ...]
    place: tuple[Selector, ...]
    axes: tuple[int, ...]
    fit: Callable[[Values], Values]


def pieces(node: JoinedNode, selection: Sequence[Selector]) -> Iterator[Piece]:
    """Return the parts of leaves that make up ``selection`` of ``node``."""
    if not all(len(selector) for selector in selection):
        return iter(())
    place = tuple(range(len(selector)) for selector in selection)
    return _pieces(node, tuple(selection), place, tuple(range(len(place))), lambda values: values)


def _pieces(
    node: JoinedNode,
    selection: tuple[Selector, ...],
    place: tuple[Selector, ...],
    axes: tuple[int, ...],
    fit: Callable[[Values], Values],
) -> Iterator[Piece]:
    """Yield the pieces of a node whose dimension ``i`` is dimension ``axes[i]`` of the result."""
    match node:
        case Leaf(array):
            yield Piece(array, selection, place, axes, fit)
        case Cast(part, dtype):
            yield from _pieces(
                part, selection, place, axes, lambda values: fit(values.astype(dtype))
            )
        case Permuted(part, order):
            before = np.argsort(order)
            yield from _pieces(
                part,
                tuple(selection[axis] for axis in before),
                place,
                tuple(axes[axis] for axis in before),
                lambda values: fit(values.transpose(order)),
            )
        case Repeated(part, sizes):
            repeats = tuple(len(selector) for selector in selection[: len(sizes)])
            yield from _pieces(
                part,
                selection[len(sizes) :],
                place,
                axes[len(sizes) :],
                lambda values: fit(np.broadcast_to(values, repeats + values.shape)),
            )
        case Joined(parts, axis):
            start = 0
            for part in parts:
                size = part.shape[axis]
                inside, at = overlap(selection[axis], start, size)
                start += size
                if len(inside) == 0:
                    continue
                target = axes[axis]
                yield from _pieces(
                    part,
                    (*selection[:axis], inside, *selection[axis + 1 :]),
                    (*place[:target], take(place[target], at), *place[target + 1 :]),
                    axes,
                    fit,
                )
        case Reindexed(part, axis, index, fill):
            wanted = positions_of(take(index, selection[axis]))
            filled = Leaf(np.broadcast_to(fill, node.shape))
            places = positions_of(selection[axis])
            for source, mask, positions in (
                (part, wanted >= 0, wanted),
                (filled, wanted < 0, places),
            ):
                if not mask.any():
                    continue
                target = axes[axis]
                taken = take(place[target], as_selector(np.flatnonzero(mask)))
                yield from _pieces(
                    source,
                    (*selection[:axis], as_selector(positions[mask]), *selection[axis + 1 :]),
                    (*place[:target], taken, *place[target + 1 :]),
                    axes,
                    fit,
                )
        case Stacked():
            yield from _windows(node, selection, place, axes, fit)


def _windows(
    node: Stacked,
    selection: tuple[Selector, ...],
    place: tuple[Selector, ...],
    axes: tuple[int, ...],
    fit: Callable[[Values], Values],
) -> Iterator[Piece]:
    """Yield a piece for windows that differ along one dimension, so that they are read together.

    A position that several windows share is read once.
    """
    starts = node.starts[positions_of(selection[0])]
    along, groups = differing_along_one(starts)
    inside = positions_of(selection[1 + along])
    for members in groups:
        positions, inverse = np.unique(
            starts[members, along][:, np.newaxis] + inside, return_inverse=True
        )
        chosen = [
            moved(selector, int(start))
            for selector, start in zip(selection[1:], starts[members[0]], strict=True)
        ]
        chosen[along] = as_selector(positions)
        inverse = inverse.reshape(len(members), len(inside))
        taken = take(place[axes[0]], as_selector(members))
        yield Piece(
            node.part.array,
            tuple(chosen),
            (*place[: axes[0]], taken, *place[axes[0] + 1 :]),
            (*axes[1 : 1 + along], -1, *axes[2 + along :]),
            partial(_unstacked, along, inverse, fit),
        )


def _unstacked(
    along: int, inverse: Values, fit: Callable[[Values], Values], values: Values
) -> Values:
    if np.array_equal(inverse.ravel(), np.arange(values.shape[along])):
        shape = values.shape
        split = values.reshape(*shape[:along], *inverse.shape, *shape[along + 1 :])
    else:
        split = values.take(inverse, axis=along)
    return fit(np.moveaxis(split, along, 0))
