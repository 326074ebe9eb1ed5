"""Basic selections: the chunks they touch, and how reads of these are split and merged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from aioxarray._zarr import tuning
from aioxarray._zarr.positions import Positions, open_mesh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import ArraySpec
    from aioxarray._zarr.points import Inside

    # For one axis: the chunk's index, the selection inside it, and its selection in the result.
    AxisPart = tuple[int, int | slice | NDArray[np.intp], slice | NDArray[np.intp]]

T = TypeVar("T")

# The number of chunks along an axis that are combined with those of the other axes at a time.
_SLAB = 256


class Chunk(NamedTuple):
    """A chunk that a selection touches.

    Attributes
    ----------
    key
        Its key in the store; for an inner chunk of a shard, its indices in the grid of the shard.
    spec
        Its specification, which zarr passes to codecs.
    inside
        The selection in the chunk.
    outside
        The place of the selected values in the result.
    """

    key: Any
    spec: ArraySpec
    inside: tuple[Any, ...] | Inside
    outside: tuple[Any, ...]


class Run(NamedTuple):
    """Chunks of a block that follow each other, and together are a block.

    Attributes
    ----------
    chunks
        The number of chunks.
    inside
        The selection in the array: integers, and slices with both ends.
    outside
        The place of the selected values in the result.
    """

    chunks: int
    inside: tuple[int | slice, ...]
    outside: tuple[slice, ...]


class Span(NamedTuple):
    """A byte range with one wanted part of a value, which ends before ``stop``."""

    start: int
    stop: int
    part: Any


class ByteRange(NamedTuple):
    """A byte range to be read, and the wanted parts in it."""

    start: int
    stop: int
    spans: list[Span]


def byte_count(shape: Iterable[int], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array."""
    return math.prod(shape) * dtype.itemsize


def as_tuple(selection: Any) -> tuple[Any, ...]:
    """Return a selection of zarr's indexers as a tuple with an index for each axis."""
    return selection if type(selection) is tuple else (selection,)


def is_basic(selection: Iterable[Any]) -> bool:
    """Return whether ``selection`` has only slices and integers, so that it selects a view."""
    return all(type(part) is slice or isinstance(part, int) for part in selection)


def with_slices(selection: Any) -> Any:
    """Return a selection by arrays, as of `numpy.ix_`, with slices for those that are ranges.

    zarr selects in this way if a list of positions is selected along a dimension. numpy copies such
    a selection element by element; it is 20 times as fast if all but one of the arrays are slices.
    Other selections are returned as they are.
    """
    if not isinstance(selection, tuple):
        return selection
    parts: list[Any] = []
    arrays = 0
    for axis, each in enumerate(selection):
        if not isinstance(each, np.ndarray) or each.ndim != len(selection):
            return selection
        if each.size != each.shape[axis] or each.size == 0 or each.dtype.kind not in "iu":
            return selection
        positions = each.reshape(-1)
        first = int(positions[0])
        if first >= 0 and np.array_equal(positions, np.arange(first, first + each.size)):
            parts.append(slice(first, first + each.size))
        else:
            parts.append(positions)
            arrays += 1
    return tuple(parts) if arrays <= 1 else selection


def in_runs(
    chunks: Iterable[T],
    total: int,
    chunk_bytes: int,
    threads: int,
    run_bytes: int,
) -> Iterator[list[T]]:
    """Split ``chunks`` into runs, each of which one thread reads, or writes, sequentially.

    A run has at most ``run_bytes`` bytes. If there are few chunks (``total`` is their number),
    every one of the ``threads`` gets some. The last runs are short, so that the threads finish
    together.
    """
    size = max(1, chunk_bytes)
    most = max(1, min(tuning.RUN_CHUNKS, run_bytes // size))
    least = max(1, min(most, tuning.LEAST_RUN_BYTES // size, -(-total // threads)))
    remaining = iter(chunks)
    while run := list(itertools.islice(remaining, max(least, min(most, total // (2 * threads))))):
        total -= len(run)
        yield run


def merged(spans: Iterable[Span], max_gap: int, max_bytes: int) -> list[ByteRange]:
    """Return byte ranges that cover ``spans``, merging those that are close together.

    ``max_gap`` is the largest number of unwanted bytes between two merged spans, and ``max_bytes``
    the largest length of a merged range.
    """
    ranges: list[ByteRange] = []
    first = last = 0
    members: list[Span] = []
    for span in sorted(spans, key=lambda span: span[:2]):
        start, stop, _ = span
        if members and start - last <= max_gap and max(stop, last) - first <= max_bytes:
            members.append(span)
            last = max(stop, last)
            continue
        if members:
            ranges.append(ByteRange(first, last, members))
        first, last, members = start, stop, [span]
    if members:
        ranges.append(ByteRange(first, last, members))
    return ranges


class Block:
    """The chunks of a regular grid that a selection along each axis touches.

    Parameters
    ----------
    selection
        For each axis, an integer, a slice with a positive step, or `Positions`. With the latter,
        there must be no integer.
    shape, chunk_shape
        The shapes of the array and of its chunks.

    Attributes
    ----------
    shape
        The shape of the result; integers drop their axis.
    chunk_shape
        See the parameters.
    count
        The number of chunks.
    basic
        Whether slices and integers select in all chunks, and in the result.
    """

    def __init__(
        self,
        selection: Sequence[int | slice | Positions],
        shape: Sequence[int],
        chunk_shape: Sequence[int],
    ) -> None:
        self.chunk_shape = tuple(chunk_shape)
        self._parts = list(zip(selection, shape, chunk_shape, strict=True))
        self.shape = tuple(
            part.size if isinstance(part, Positions) else len(range(*part.indices(size)))
            for part, size in zip(selection, shape, strict=True)
            if not isinstance(part, int)
        )
        self._kept = [not isinstance(part, int) for part in selection]
        self.count = math.prod(_count(*each) for each in self._parts)
        listed = [part for part in selection if isinstance(part, Positions)]
        inside = sum(part.inside_by_array for part in listed)
        outside = sum(part.outside_by_array for part in listed)
        self.basic = inside == outside == 0
        # numpy would take several arrays for the coordinates of points.
        self._meshes = (inside > 1, outside > 1)

    @property
    def is_gapless(self) -> bool:
        """Whether it takes all values between its ends along each axis."""
        return all(
            isinstance(part, int) or (isinstance(part, slice) and (part.step or 1) == 1)
            for part, *_ in self._parts
        )

    def runs(self, most: int) -> Iterator[Run]:
        """Yield runs of up to ``most`` chunks, which follow each other in C order.

        The block must be gapless.
        """
        axes: list[list[tuple[int, int | slice, slice]]] = []
        for part, size, chunk_length in reversed(self._parts):
            assert not isinstance(part, Positions), "a block of listed positions has gaps"
            count = _count(part, size, chunk_length)
            # Of about equal length, so more than half of the most if there are several.
            length = max(1, -(-count // max(1, -(-count // most))))
            axes.append(list(_axis_runs(part, size, chunk_length, length)))
            # All of this axis, or one chunk of each axis before it.
            most //= length
        for run in itertools.product(*reversed(axes)):
            outside = itertools.compress((place for _, _, place in run), self._kept)
            counts = (count for count, _, _ in run)
            yield Run(math.prod(counts), tuple(inside for _, inside, _ in run), tuple(outside))

    def chunks(self, key: Callable[[tuple[int, ...]], Any], spec: ArraySpec) -> Iterator[Chunk]:
        """Yield the chunks in C order."""
        for at, inside, outside in self.parts():
            yield Chunk(key(at), spec, inside, outside)

    def parts(self) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]]:
        """Yield each chunk's indices in the grid, and the selections in it and in the result."""
        if not self._parts:
            yield (), (), ()
            return
        # The first axis with several chunks is generated lazily: with hundreds of thousands of
        # objects, the garbage collector would stop all threads for a tenth of a second.
        several = (axis for axis, part in enumerate(self._parts) if _count(*part) != 1)
        lazy = next(several, 0)
        remaining = _axis(*self._parts[lazy])
        axes = [[] if axis == lazy else list(_axis(*part)) for axis, part in enumerate(self._parts)]
        while slab := list(itertools.islice(remaining, _SLAB)):
            axes[lazy] = slab
            at, inside, outside = ([[part[k] for part in axis] for axis in axes] for k in range(3))
            yield from zip(
                itertools.product(*at),
                itertools.product(*self._meshed(inside, self._meshes[0])),
                # Axes that the result drops have one chunk.
                itertools.product(
                    *self._meshed(list(itertools.compress(outside, self._kept)), self._meshes[1])
                ),
                strict=True,
            )

    @staticmethod
    def _meshed(axes: list[list[Any]], is_mesh: bool) -> list[list[Any]]:
        if not is_mesh:
            return axes
        return [[open_mesh(each, n, len(axes)) for each in axis] for n, axis in enumerate(axes)]


def _count(part: int | slice | Positions, size: int, length: int) -> int:
    """Return the number of chunks that a selection touches along one axis."""
    if isinstance(part, Positions):
        return part.count
    if not isinstance(part, slice):
        return 1
    selected = range(*part.indices(size))
    if not selected or selected.step >= length:
        return len(selected)
    return selected[-1] // length - selected[0] // length + 1


def _axis_runs(
    part: int | slice, size: int, length: int, chunks: int
) -> Iterator[tuple[int, int | slice, slice]]:
    """Yield runs of ``chunks`` chunks along one axis: their number, and the two selections."""
    if not isinstance(part, slice):
        yield 1, part + size if part < 0 else part, slice(0, 1)
        return
    start, stop, _ = part.indices(size)
    count = _count(part, size, length)
    for first in range(0, count, chunks):
        at = start // length + first
        begin, end = max(start, at * length), min(stop, (at + chunks) * length)
        yield min(chunks, count - first), slice(begin, end), slice(begin - start, end - start)


def _axis(part: int | slice | Positions, size: int, length: int) -> Iterator[AxisPart]:
    """Yield the chunks that a selection touches along one axis."""
    if isinstance(part, Positions):
        yield from part.parts()
        return
    if not isinstance(part, slice):
        part = part + size if part < 0 else part
        if not 0 <= part < size:
            raise IndexError(f"index {part} is out of bounds for an axis of {size}")
        yield part // length, part % length, slice(0, 1)
        return
    start, stop, step = part.indices(size)
    if step < 1:
        raise ValueError(f"a block has slices with positive steps, not {part}")
    done = 0
    while start < stop:
        at, first = divmod(start, length)
        end = min(stop - at * length, length)
        count = len(range(first, end, step))
        yield at, slice(first, end, step), slice(done, done + count)
        done += count
        start += count * step
