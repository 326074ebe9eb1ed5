"""Splitting arrays into blocks of chunks, for reading, encoding and writing them piece by piece."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def blocks(
    region: Sequence[slice],
    edges: Sequence[Sequence[int]],
    itemsize: int,
    wanted_bytes: int,
) -> Iterator[tuple[slice, ...]]:
    """Yield the blocks of ``region``, which have whole chunks except at the ends of ``region``.

    Parameters
    ----------
    region
        The region of the array that is written.
    edges
        For each axis, the boundaries between its chunks, in ascending order.
    itemsize
        The number of bytes of an element.
    wanted_bytes
        The most bytes in a block, unless a single chunk is larger. Chunks are added along the last
        axis first, doubling their number.
    """
    cuts = [_cuts(each, at) for each, at in zip(region, edges, strict=True)]
    # The number of chunks of a block along each axis.
    counts = [1] * len(cuts)
    for axis in reversed(range(len(cuts))):
        others = math.prod(_longest(cuts[i], counts[i]) for i in range(len(cuts)) if i != axis)
        while counts[axis] < len(cuts[axis]) - 1:
            longer = _longest(cuts[axis], counts[axis] * 2)
            if others * longer * itemsize > wanted_bytes:
                break
            counts[axis] *= 2
        if counts[axis] < len(cuts[axis]) - 1:
            break
    pieces = [
        [slice(a, b) for a, b in itertools.pairwise([*at[:-1:count], at[-1]])]
        for at, count in zip(cuts, counts, strict=True)
    ]
    yield from itertools.product(*pieces)


def _cuts(region: slice, edges: Sequence[int]) -> list[int]:
    inside = [edge for edge in edges if region.start < edge < region.stop]
    return [region.start, *inside, region.stop] if region.stop > region.start else [region.start]


def _longest(cuts: Sequence[int], count: int) -> int:
    ends = [*cuts[count::count], cuts[-1]]
    return max((b - a for a, b in zip(cuts[::count], ends, strict=False)), default=0)


def aligned(
    sizes: Sequence[Sequence[int]], region: Sequence[slice], edges: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...] | None:
    """Return block sizes for which no two blocks share a chunk; None if ``sizes`` need no change.

    Parameters
    ----------
    sizes
        The sizes of the blocks of ``region`` along each axis.
    region, edges
        As in `blocks`.
    """
    new = []
    for lengths, each, at in zip(sizes, region, edges, strict=True):
        ends = list(itertools.accumulate(lengths, initial=each.start))
        allowed = {each.start, *at, each.stop}
        if allowed.issuperset(ends):
            new.append(tuple(lengths))
            continue
        lower = [each.start, *(edge for edge in at if each.start < edge < each.stop)]
        # Move each end down to the start of a chunk.
        moved = sorted({lower[bisect_right(lower, end) - 1] for end in ends[:-1]} | {each.stop})
        new.append(tuple(b - a for a, b in itertools.pairwise(moved)))
    return None if all(tuple(a) == b for a, b in zip(sizes, new, strict=True)) else tuple(new)


def boxes(wanted: NDArray[np.bool_], most: int) -> list[tuple[slice, ...]]:
    """Return boxes that together have each element of ``wanted`` that is True, and none twice.

    They have no other elements unless that would take more than ``most`` boxes.
    """
    found = list(_boxes(wanted))
    return found if len(found) <= most else list(_coarse(wanted))


def _boxes(wanted: NDArray[np.bool_]) -> Iterator[tuple[slice, ...]]:
    if wanted.ndim == 0 or wanted.all():
        if wanted.all():
            yield tuple(slice(0, size) for size in wanted.shape)
    elif wanted.any():
        others = tuple(range(1, wanted.ndim))
        whole = wanted.all(axis=others)
        for start, stop in _runs(whole):
            yield slice(start, stop), *(slice(0, size) for size in wanted.shape[1:])
        for at in np.flatnonzero(wanted.any(axis=others) & ~whole).tolist():
            for rest in _boxes(wanted[at]):
                yield slice(at, at + 1), *rest


def _coarse(wanted: NDArray[np.bool_]) -> Iterator[tuple[slice, ...]]:
    """Yield boxes of whole rows along the first axis."""
    if wanted.ndim == 0:
        yield from _boxes(wanted)
        return
    rest = tuple(slice(0, size) for size in wanted.shape[1:])
    for start, stop in _runs(wanted.any(axis=tuple(range(1, wanted.ndim)))):
        yield slice(start, stop), *rest


def _runs(wanted: Any) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the runs of True."""
    changes = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0))
    yield from zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True)
