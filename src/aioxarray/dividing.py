"""Division of xarray objects into lazy pieces: `blocks`."""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import xarray as xr

from aioxarray._xarray.dividing.divisions import Division, Numbers, runs, windows
from aioxarray._xarray.dividing.order import Order, Shuffle
from aioxarray._xarray.dividing.stored import cuts
from aioxarray.errors import did_you_mean

__all__ = ["Blocks", "blocks"]

T = TypeVar("T", xr.Dataset, xr.DataArray, xr.DataTree)
Stored = Literal["chunks", "shards"]


def blocks(
    obj: T,
    sizes: Mapping[Any, int | Stored] | Stored = "chunks",
    *,
    overlap: Mapping[Any, int] | None = None,
) -> Blocks[T]:
    """Divide ``obj`` into lazy pieces.

    The pieces are a sequence: `stream` loads them ahead of their consumer, and any of them can be
    taken by its number::

        pieces = aioxarray.blocks(ds, {"time": 24}).shuffle(seed=0)
        with aioxarray.stream(pieces) as loaded:
            for piece in loaded:
                train(piece)

    Parameters
    ----------
    obj
        A Dataset, DataArray or DataTree.
    sizes
        The length of a piece along each dimension that is divided, -1 for all of it, or "chunks" or
        "shards": pieces that end where stored chunks (or shards) do. A single "chunks" or "shards"
        divides all dimensions along which there are any. The last piece of a dimension may be
        shorter.
    overlap
        How many positions along a dimension a piece shares with the next, for dimensions whose
        length of a piece is a number.

    Returns
    -------
    Blocks
        The pieces. The last dimension in ``sizes`` changes fastest.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or if no variable is known to be stored in chunks.

    Notes
    -----
    *Requests:* none.

    *Chunks:* of variables in different chunks, those with the most elements count; smaller ones are
    cheap to read again. Where they are of equal size, a piece ends where a chunk ends in all of
    them. Chunks of dask arrays count as stored ones.

    *Memory:* eight bytes for each piece that is shuffled; the pieces themselves are made when they
    are taken. They are pickled as ``obj`` and its division, with all values of ``obj`` that are in
    memory.

    See Also
    --------
    stream : loads the pieces ahead of their consumer.
    """
    if not isinstance(obj, xr.Dataset | xr.DataArray | xr.DataTree):
        raise TypeError(
            f"blocks() divides a Dataset, DataArray or DataTree; got {type(obj).__name__}"
        )
    variables, lengths = _contents(obj)
    chosen = _chosen(sizes, variables, lengths)
    for dim, positions in (overlap or {}).items():
        _check_overlap(dim, positions, chosen, lengths)
    axes = [
        _axis(dim, size, (overlap or {}).get(dim, 0), variables, lengths[dim])
        for dim, size in chosen.items()
    ]
    count = math.prod(len(axis.division) for axis in axes)
    return Blocks(obj, tuple(axes), Order(count, _Groups(tuple(axes))))


@dataclass(frozen=True)
class _Axis:
    """A dimension that is divided.

    Attributes
    ----------
    dim
        The dimension.
    division
        Its pieces.
    cuts
        The positions at which stored chunks end; None if that is unknown.
    """

    dim: Hashable
    division: Division
    cuts: tuple[int, ...] | None

    def groups(self) -> Numbers:
        """Return, for each piece, the number of the stored chunk in which it begins."""
        starts, _ = self.division.all_bounds()
        if self.cuts is None:
            return np.arange(len(starts), dtype=np.int64)
        return np.searchsorted(np.array(self.cuts, dtype=np.int64), starts, side="right")


@dataclass(frozen=True)
class _Groups:
    """Numbers that are equal for pieces that begin in the same stored chunks."""

    axes: tuple[_Axis, ...]

    def __call__(self, numbers: Numbers) -> Numbers:
        shape = tuple(len(axis.division) for axis in self.axes)
        total = np.zeros(len(numbers), dtype=np.int64)
        for axis, places in zip(self.axes, np.unravel_index(numbers, shape), strict=True):
            groups = axis.groups()
            total = total * (int(groups.max(initial=0)) + 1) + groups[places]
        return total


class Blocks(Sequence[T], Generic[T]):
    """The pieces of an object, which are made when they are taken; `blocks` makes the sequence.

    A slice of it is another such sequence.
    """

    def __init__(self, obj: T, axes: tuple[_Axis, ...], order: Order) -> None:
        self._obj: T = obj
        self._axes = axes
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Blocks[T]: ...
    def __getitem__(self, index: int | slice) -> T | Blocks[T]:
        if isinstance(index, slice):
            return self._then(index)
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"there are {len(self)} pieces, and none with the index {at}")
        return self._piece(self._order[at])

    def __iter__(self) -> Iterator[T]:
        for number in self._order.numbers:
            yield self._piece(int(number))

    def _piece(self, number: int) -> T:
        shape = tuple(len(axis.division) for axis in self._axes)
        places = np.unravel_index(number, shape)
        selection = {
            axis.dim: slice(*axis.division.bounds(int(place)))
            for axis, place in zip(self._axes, places, strict=True)
        }
        piece: T = self._obj.isel(selection)
        return piece

    def shuffle(self, seed: int, *, buffer: int = 256, epoch: int = 0) -> Blocks[T]:
        """Return the pieces in a random order, which is the same on every machine.

        Pieces that begin in the same stored chunk stay close, so that it is fetched once: the
        groups of such pieces are shuffled, and then the pieces in each run of ``buffer`` pieces.

        Parameters
        ----------
        seed, epoch
            Two numbers that determine the order, such as one of the training and one that rises.
        buffer
            The number of pieces that are shuffled among each other; 1 keeps groups in order.

        Raises
        ------
        TypeError, ValueError
            If one of them is no number, or negative, or ``buffer`` is 0.
        """
        seed, epoch = _number("seed", seed, 0), _number("epoch", epoch, 0)
        return self._then(Shuffle(seed, epoch, _number("buffer", buffer, 1)))

    def at_epoch(self, epoch: int) -> Blocks[T]:
        """Return the same pieces in the random order of another epoch.

        Parameters
        ----------
        epoch
            The number that replaces ``epoch`` of every `shuffle` that led to these pieces. Without
            a shuffle, the order stays as it is. Parts of a shuffled order then have other pieces.

        Raises
        ------
        TypeError, ValueError
            If it is no number, or negative.
        """
        order = self._order.at_epoch(_number("epoch", epoch, 0))
        return Blocks(self._obj, self._axes, order)

    def shard(self, rank: int, world: int) -> Blocks[T]:
        """Return part ``rank`` of ``world`` parts that follow each other, of nearly equal lengths.

        Parameters
        ----------
        rank
            The number of the part, from 0 on.
        world
            The number of all parts.

        Raises
        ------
        TypeError, ValueError
            If one of them is no number, or if there is no such part.
        """
        world = _number("world", world, 1)
        rank = _number("rank", rank, 0)
        if rank >= world:
            raise ValueError(f"rank must be less than world={world}; got {rank}")
        return self._then(slice(len(self) * rank // world, len(self) * (rank + 1) // world))

    def _then(self, step: slice | Shuffle) -> Blocks[T]:
        return Blocks(self._obj, self._axes, self._order.then(step))

    def __repr__(self) -> str:
        dims = ", ".join(map(str, (axis.dim for axis in self._axes)))
        return f"<Blocks: {len(self)} pieces of a {type(self._obj).__name__} along {dims}>"


def _contents(obj: xr.Dataset | xr.DataArray | xr.DataTree) -> tuple[list[xr.Variable], Any]:
    """Return the variables of ``obj``, and the length of each dimension."""
    datasets: list[Any] = []
    if isinstance(obj, xr.DataTree):
        datasets = [node.to_dataset(inherit=False) for node in obj.subtree]
    elif isinstance(obj, xr.Dataset):
        datasets = [obj]
    if isinstance(obj, xr.DataArray):
        variables = [obj.variable, *(each.variable for each in obj.coords.values())]
        return variables, dict(obj.sizes)
    lengths: dict[Hashable, int] = {}
    for dataset in datasets:
        for dim, length in dataset.sizes.items():
            if lengths.setdefault(dim, length) != length:
                raise ValueError(
                    f"the groups of the tree have different lengths of {dim!r}: "
                    f"{lengths[dim]} and {length}; divide the groups one by one"
                )
    return [variable for each in datasets for variable in each.variables.values()], lengths


def _chosen(
    sizes: Any, variables: Sequence[xr.Variable], lengths: Mapping[Hashable, int]
) -> dict[Hashable, int | Stored]:
    """Return the length of a piece for each dimension that is divided."""
    if isinstance(sizes, Mapping):
        if not sizes:
            raise ValueError("sizes names no dimension; for example {'time': 24}")
        return {dim: _size(dim, size, lengths) for dim, size in sizes.items()}
    if sizes not in ("chunks", "shards"):
        raise TypeError(f"sizes must be a mapping, 'chunks' or 'shards'; got {sizes!r}")
    found: dict[Hashable, int | Stored] = {
        dim: sizes for dim in lengths if _cuts(variables, dim, sizes) is not None
    }
    if not found:
        raise ValueError(
            f"no variable is known to be stored in chunks: give the lengths of the pieces, such as "
            f"{{{next(iter(lengths), 'time')!r}: 24}}, in place of {sizes!r}"
        )
    return found


def _size(dim: Hashable, size: Any, lengths: Mapping[Hashable, int]) -> int | Stored:
    if dim not in lengths:
        names = [str(each) for each in lengths]
        raise ValueError(
            f"there is no dimension {dim!r} to divide; there are {', '.join(map(repr, lengths))}"
            f"{did_you_mean(str(dim), names)}"
        )
    if size in ("chunks", "shards") and isinstance(size, str):
        chosen: Stored = "chunks" if size == "chunks" else "shards"
        return chosen
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(
            f"the length of a piece along {dim!r} must be a number, 'chunks' or 'shards'; "
            f"got {size!r}"
        )
    number = operator.index(size)
    if number != -1 and number < 1:
        raise ValueError(
            f"the length of a piece along {dim!r} must be at least 1, or -1 for all; got {size!r}"
        )
    return max(lengths[dim], 1) if number == -1 else number


def _check_overlap(
    dim: Any,
    positions: Any,
    chosen: Mapping[Hashable, int | Stored],
    lengths: Mapping[Hashable, int],
) -> None:
    if dim not in chosen:
        raise ValueError(f"overlap names the dimension {dim!r}, which sizes does not divide")
    size = chosen[dim]
    if isinstance(size, str):
        raise ValueError(f"pieces along {dim!r} end with {size}, and so cannot overlap")
    if _number(f"overlap along {dim!r}", positions, 0) >= size:
        raise ValueError(
            f"overlap along {dim!r} must be less than the length of a piece, {size}; "
            f"got {positions!r}"
        )


def _axis(
    dim: Hashable,
    size: int | Stored,
    overlap: int,
    variables: Sequence[xr.Variable],
    length: int,
) -> _Axis:
    if isinstance(size, str):
        found = _cuts(variables, dim, size)
        if found is None:
            raise ValueError(
                f"no variable is known to be stored in chunks along {dim!r}: give the length of a "
                f"piece in place of {size!r}"
            )
        return _Axis(dim, runs(found, 0, length), None)
    found = _cuts(variables, dim, "chunks")
    ends = None if found is None else tuple(found.tolist())
    return _Axis(dim, windows(0, length, size, overlap), ends)


def _cuts(variables: Sequence[xr.Variable], dim: Hashable, stored: Stored) -> Numbers | None:
    return cuts(variables, dim, shards=stored == "shards")


def _number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if (number := operator.index(value)) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number
