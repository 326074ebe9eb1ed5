"""The stored chunks of variables along a dimension, as positions between which they end."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.plan import Read, plan
from aioxarray._xarray.arrays.read import is_zarr, sound
from aioxarray._xarray.arrays.selectors import Selector
from aioxarray._xarray.compat import VectorizedIndexer, is_chunked_array
from aioxarray._xarray.dividing.divisions import Numbers
from aioxarray._zarr.grid import read_edges, write_edges


def cuts(
    variables: Iterable[xr.Variable], dim: Hashable, *, shards: bool = False
) -> Numbers | None:
    """Return the positions along ``dim`` at which no stored chunk continues.

    Of the variables that have the dimension, and are stored in chunks, those with the most elements
    count: small ones, which often have longer chunks, are cheap to read again. A cut is a position
    at which a chunk begins in all of these, so that no two pieces between cuts share a chunk.

    Parameters
    ----------
    variables
        The variables. Those in memory do not count.
    dim
        The dimension.
    shards
        Whether shards count instead of their chunks, where there are any.

    Returns
    -------
    Numbers or None
        The cuts; None if no variable is known to be stored in chunks along the dimension.
    """
    having = [each for each in variables if dim in each.dims]
    for size in sorted({each.size for each in having}, reverse=True):
        layouts = [
            layout
            for each in having
            if each.size == size
            for layout in _layouts(each, dim, shards=shards)
        ]
        if layouts:
            length = next(each.sizes[dim] for each in having)
            return np.flatnonzero(~_continued(layouts, length)).astype(np.int64)
    return None


@dataclass(frozen=True)
class _Layout:
    """The chunks of a part of a variable along one axis.

    Attributes
    ----------
    ends
        The boundaries between the chunks of the stored array.
    stored
        The positions in the stored array.
    place
        The positions in the variable.
    """

    ends: tuple[int, ...]
    stored: Selector
    place: Selector


def _continued(layouts: Iterable[_Layout], length: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return, for each position, whether a chunk has elements both before and from it on."""
    # How many chunks begin to continue at a position, less those that end to.
    changes = np.zeros(length + 1, dtype=np.int64)
    seen: set[Hashable] = set()
    for each in layouts:
        if isinstance(each.stored, range) and isinstance(each.place, range):
            if each in seen:
                continue
            seen.add(each)
        chunks = np.searchsorted(each.ends, _positions(each.stored), side="right")
        place = _positions(each.place)
        same = chunks[1:] == chunks[:-1]
        # Positions may run backwards, or be apart.
        low, high = np.minimum(place[1:], place[:-1]), np.maximum(place[1:], place[:-1])
        np.add.at(changes, low[same] + 1, 1)
        np.add.at(changes, high[same] + 1, -1)
    continued: np.ndarray[Any, np.dtype[np.bool_]] = np.cumsum(changes)[:length] > 0
    return continued


def _layouts(variable: xr.Variable, dim: Hashable, *, shards: bool) -> Iterator[_Layout]:
    axis = variable.dims.index(dim)
    # Private: a public property of lazy data would load it.
    data: Any = variable._data
    if isinstance(variable, xr.IndexVariable):
        return
    if is_chunked_array(data):
        ends = tuple(itertools.accumulate(data.chunks[axis]))
        yield _Layout(ends, range(variable.shape[axis]), range(variable.shape[axis]))
        return
    yield from _of_lazy(data, axis, dim, variable.encoding, shards=shards)


def _of_lazy(
    data: Any, axis: int, dim: Hashable, encoding: Mapping[Any, Any], *, shards: bool
) -> Iterator[_Layout]:
    source = plan(data).source
    if not isinstance(source, Read):
        return
    array: Any = source.array
    key = sound(source).key
    if isinstance(key, VectorizedIndexer):
        # Elements of a transposed array, or points, may be anywhere.
        return
    if type(array) is JoinedArray:
        for part, piece in array.lazy_parts(key):
            if axis not in piece.axes:
                # It is repeated along this axis.
                continue
            place = piece.place[axis]
            own = piece.axes.index(axis)
            # A file that is not stored in chunks counts as one.
            whole = _Layout((), range(len(place)), range(len(place)))
            inside = list(_of_lazy(part, own, dim, encoding, shards=shards)) or [whole]
            for each in inside:
                yield _Layout(each.ends, each.stored, _taken(place, each.place))
        return
    # Axes that are indexed by a number are gone; others keep their order.
    kept = [at for at, part in enumerate(key.tuple) if isinstance(part, slice | np.ndarray)]
    if is_zarr(array):
        edges = write_edges if shards else read_edges
        ends = tuple(edges(array._array)[kept[axis]])
    else:
        sizes = _sizes(encoding, array.shape, kept[axis], dim)
        if sizes is None:
            return
        ends = sizes
    part = key.tuple[kept[axis]]
    length = array.shape[kept[axis]]
    stored = range(*part.indices(length)) if isinstance(part, slice) else part
    yield _Layout(ends, stored, range(len(stored)))


def _sizes(
    encoding: Mapping[Any, Any], shape: tuple[int, ...], axis: int, dim: Hashable
) -> tuple[int, ...] | None:
    """Return the boundaries of the chunks, as a backend's encoding tells; None if it does not."""
    by_axis = encoding.get("chunksizes")
    if by_axis is not None and len(by_axis) == len(shape):
        size = by_axis[axis]
    else:
        size = encoding.get("preferred_chunks", {}).get(dim)
    if isinstance(size, tuple | list):
        return tuple(itertools.accumulate(size))
    return tuple(range(int(size), shape[axis], int(size))) if size else None


def _taken(place: Selector, inside: Selector) -> Selector:
    if inside == range(len(place)):
        return place
    taken: Numbers = _positions(place)[_positions(inside)]
    return taken


def _positions(selector: Selector) -> Numbers:
    # Without the dtype, an empty range would become an array of floats, which is no index.
    return np.asarray(selector, dtype=np.int64)
