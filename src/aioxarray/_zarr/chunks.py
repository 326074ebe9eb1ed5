"""Which chunks a selection touches, and in which runs they are read; names the one that fails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from aioxarray._zarr.printable import printable

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.core.array_spec import ArraySpec

    from aioxarray._zarr.points import Inside

    # The key, what the chunk is like, what of it is wanted, and where in the result that goes.
    # Tuples, since at thousands of chunks objects cost more than decoding.
    Chunk = tuple[str, ArraySpec, tuple[Any, ...] | Inside, tuple[Any, ...]]

    # Which chunk along an axis, what of it is wanted, and where that goes.
    _AxisPart = tuple[int, int | slice, slice]

    # The first byte and the one after the last, and the same of each chunk that is in them.
    Range = tuple[int, int, list[tuple[int, int, Any]]]

T = TypeVar("T")

# A hop to a thread and back costs as much as reading some MB that are not compressed.
_RUN_BYTES = 16 << 20
_LEAST_BYTES = 2 << 20
# Nobody waits longer than for this many to be told of progress, or to have a thread.
_RUN_CHUNKS = 128


def is_basic(selection: Iterable[Any]) -> bool:
    """Say whether ``selection`` is of slices and integers: what it selects is a view."""
    return all(type(part) is slice or isinstance(part, int) for part in selection)


def in_runs(
    chunks: Iterable[T], total: int, chunk_bytes: int, threads: int, run_bytes: int = _RUN_BYTES
) -> Iterator[list[T]]:
    """Return ``chunks`` in runs, each of which one thread reads, or writes, one after the other.

    Of few chunks, ``total`` in all, every one of the ``threads`` gets its part; the last runs are
    short, so that the threads end together.
    """
    size = max(1, chunk_bytes)
    most = max(1, min(_RUN_CHUNKS, run_bytes // size))
    least = max(1, min(most, _LEAST_BYTES // size, -(-total // threads)))
    remaining = iter(chunks)
    while run := list(itertools.islice(remaining, max(least, min(most, total // (2 * threads))))):
        total -= len(run)
        yield run


def merged(parts: Iterable[tuple[int, int, Any]], max_gap: int, max_bytes: int) -> list[Range]:
    """Return ranges that hold ``parts``, those that lie close together as one.

    ``max_gap`` is how many unwanted bytes may lie between two, ``max_bytes`` how long a range of
    several may be.
    """
    ranges: list[Range] = []
    for part in sorted(parts, key=lambda part: part[:2]):
        start, stop, _ = part
        if ranges:
            first, last, members = ranges[-1]
            if start - last <= max_gap and max(stop, last) - first <= max_bytes:
                members.append(part)
                ranges[-1] = (first, max(stop, last), members)
                continue
        ranges.append((start, stop, [part]))
    return ranges


class noted:
    """Adds to an error in its body which chunk of which store it belongs to."""

    __slots__ = ("_chunk", "_store")

    def __init__(self, chunk: Chunk, store: Store) -> None:
        self._chunk = chunk
        self._store = store

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            note = f"in chunk {self._chunk[0]!r} of {printable(self._store)!r}"
            # Who follows another read's chunk may be handed an error that says so already.
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)


class Block:
    """The chunks of a regular grid that a block touches.

    Parameters
    ----------
    selection
        For each axis an integer or a slice with a positive step.
    shape, chunk_shape
        Of the array and its chunks.

    Attributes
    ----------
    shape
        Of what is selected; integers drop their axis.
    chunk_shape
        As it was given.
    count
        How many chunks.
    """

    def __init__(
        self,
        selection: Sequence[int | slice],
        shape: Sequence[int],
        chunk_shape: Sequence[int],
    ) -> None:
        self.chunk_shape = tuple(chunk_shape)
        self._parts = list(zip(selection, shape, chunk_shape, strict=True))
        self.shape = tuple(
            len(range(*part.indices(size)))
            for part, size in zip(selection, shape, strict=True)
            if isinstance(part, slice)
        )
        self._kept = [isinstance(part, slice) for part in selection]
        self.count = math.prod(_count(*each) for each in self._parts)

    def chunks(self, key: Callable[[tuple[int, ...]], Any], spec: ArraySpec) -> Iterator[Chunk]:
        """Return the chunks in C order, lazily."""
        for at, inside, outside in self.parts():
            yield key(at), spec, inside, outside

    def parts(self) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]]:
        """Return, for each chunk, where it is in the grid, what of it, and where that goes."""
        kept = self._kept
        if all(kept):
            for parts in self._combined():
                at, inside, outside = zip(*parts, strict=True) if parts else ((), (), ())
                yield at, inside, outside
        else:
            for parts in self._combined():
                at, inside, outside = zip(*parts, strict=True)
                yield at, inside, tuple(itertools.compress(outside, kept))

    def _combined(self) -> Iterator[tuple[_AxisPart, ...]]:
        # The first axis with several chunks is gone through, not held: hundreds of thousands of
        # objects would have the garbage collector stop all threads for a tenth of a second.
        several = (axis for axis, part in enumerate(self._parts) if _count(*part) != 1)
        index = next(several, len(self._parts))
        head = [part for each in self._parts[:index] for part in _axis(*each)]
        if index == len(self._parts):
            yield tuple(head)
            return
        rest = [list(_axis(*each)) for each in self._parts[index + 1 :]]
        for part in _axis(*self._parts[index]):
            for others in itertools.product(*rest):
                yield (*head, part, *others)


def _count(part: int | slice, size: int, length: int) -> int:
    """Return, for one axis, how many chunks there are."""
    if not isinstance(part, slice):
        return 1
    selected = range(*part.indices(size))
    if not selected or selected.step >= length:
        return len(selected)
    return selected[-1] // length - selected[0] // length + 1


def _axis(part: int | slice, size: int, length: int) -> Iterator[_AxisPart]:
    """Return, for one axis, which chunks there are, what of each, and where it goes."""
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
