"""Divisions of one dimension into pieces, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Windows:
    """Pieces of one size at equal distances, cut off at both ends of the divided range.

    Attributes
    ----------
    starts
        The starts of the pieces. The first may be before ``begin``.
    size
        The size of a piece that is not cut off.
    begin, end
        The range that is divided.
    """

    starts: range
    size: int
    begin: int
    end: int

    def __len__(self) -> int:
        return len(self.starts)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the first position of a piece, and the one after its last."""
        start = self.starts[index]
        return max(start, self.begin), min(start + self.size, self.end)

    def all_bounds(self) -> tuple[Numbers, Numbers]:
        """Return the bounds of all pieces: the first positions, and the ones after the last."""
        starts = np.arange(self.starts.start, self.starts.stop, self.starts.step, dtype=np.int64)
        return np.maximum(starts, self.begin), np.minimum(starts + self.size, self.end)


@dataclass(frozen=True)
class Runs:
    """Pieces of any sizes, one after the other.

    Attributes
    ----------
    starts, ends
        The first position of each piece, and the one after its last.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def size(self) -> int:
        """The size of the largest piece."""
        return max((end - start for start, end in zip(self.starts, self.ends, strict=True)))

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the first position of a piece, and the one after its last."""
        return self.starts[index], self.ends[index]

    def all_bounds(self) -> tuple[Numbers, Numbers]:
        """Return the bounds of all pieces: the first positions, and the ones after the last."""
        return np.array(self.starts, dtype=np.int64), np.array(self.ends, dtype=np.int64)


Division = Windows | Runs


def windows(begin: int, end: int, size: int, overlap: int = 0) -> Windows:
    """Divide a range into pieces of ``size``, of which neighbours share ``overlap`` positions.

    The last piece ends with the range. It is the first one that reaches its end, and so may be
    shorter than the others.
    """
    step = size - overlap
    # A start within the last ``overlap`` positions adds nothing, unless it is the only one.
    last = max(end - overlap, begin + 1) if end > begin else begin
    return Windows(range(begin, last, step), size, begin, end)


def runs(cuts: Numbers, begin: int, end: int) -> Division:
    """Divide a range at those of the ascending ``cuts`` that are inside it."""
    inside = cuts[(cuts > begin) & (cuts < end)]
    if len(inside) == 0:
        return windows(begin, end, max(end - begin, 1))
    edges = np.array([begin, *inside, end], dtype=np.int64)
    lengths = np.diff(edges)
    between = lengths[1:-1]
    size = int(between[0] if len(between) else lengths.max())
    if (between == size).all() and lengths[0] <= size and lengths[-1] <= size:
        # The first piece may start before the range.
        return Windows(range(int(inside[0]) - size, end, size), size, begin, end)
    return Runs(tuple(edges[:-1].tolist()), tuple(edges[1:].tolist()))


def inside(
    division: Division, length: int, offsets: Sequence[int] = (), *, only_full: bool = False
) -> Division:
    """Return those pieces of a division that stay in a dimension when they are moved.

    Parameters
    ----------
    division
        The division of the dimension.
    length
        The length of the dimension.
    offsets
        By how many positions the pieces are moved, each time from where they are.
    only_full
        Whether to leave out pieces that are shorter than the others.
    """
    starts, ends = division.all_bounds()
    lowest, highest = min(offsets, default=0), max(offsets, default=0)
    keep = (starts + lowest >= 0) & (ends + highest <= length)
    if only_full and len(starts):
        keep &= ends - starts == division.size
    if keep.all():
        return division
    if isinstance(division, Runs):
        return Runs(tuple(starts[keep].tolist()), tuple(ends[keep].tolist()))
    # Only pieces at the two ends can be cut off, or leave the dimension.
    places = np.flatnonzero(keep)
    first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    return replace(division, starts=division.starts[first:last])
