"""Division of xarray objects into lazy pieces, and batches of them: `blocks`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import xarray as xr

from aioxarray._xarray.dividing.arguments import (
    Contents,
    Offsets,
    Stored,
    flag,
    grid_of,
    number,
    offsets_of,
)
from aioxarray._xarray.dividing.grid import Grid
from aioxarray._xarray.dividing.order import Order, Shuffle
from aioxarray._xarray.dividing.stacking import Stack

__all__ = ["Batches", "Blocks", "blocks"]

T = TypeVar("T", xr.Dataset, xr.DataArray, xr.DataTree)
P = TypeVar("P")


@overload
def blocks(
    obj: T,
    sizes: Mapping[Any, int | Stored] | Stored = ...,
    *,
    overlap: Mapping[Any, int] | None = ...,
    offsets: None = ...,
    drop_short: bool = ...,
) -> Blocks[T]: ...
@overload
def blocks(
    obj: T,
    sizes: Mapping[Any, int | Stored] | Stored = ...,
    *,
    overlap: Mapping[Any, int] | None = ...,
    offsets: Mapping[Any, Sequence[int]],
    drop_short: bool = ...,
) -> Blocks[tuple[T, ...]]: ...
def blocks(
    obj: Any,
    sizes: Mapping[Any, int | Stored] | Stored = "chunks",
    *,
    overlap: Mapping[Any, int] | None = None,
    offsets: Mapping[Any, Sequence[int]] | None = None,
    drop_short: bool = False,
) -> Blocks[Any]:
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
    offsets
        Makes each piece a tuple of objects: the windows at these numbers of positions from where
        the piece is. ``{"time": (0, 1)}`` gives pairs of a window and the one a step later. Several
        dimensions have equally many offsets, of which the first of each belong together, and so on.
        A window that leaves the dimension at one of them is no piece.
    drop_short
        Leave out the pieces that are shorter than the longest, such as the last of a dimension.

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

    *Overlap and offsets:* ``overlap`` decides where windows are; then each is moved by the offsets.
    With ``{"time": 4}``, an overlap of 3 and offsets of 0 and 1, the pairs begin at 0 and 1, 1 and
    2, 2 and 3, and so on.

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
    moves = offsets_of(offsets)
    grid = grid_of(
        Contents.of(obj), sizes, overlap, moves, drop_short=flag("drop_short", drop_short)
    )
    return Blocks(obj, grid, Order(grid.count, grid.groups), moves)


class Blocks(Sequence[P], Generic[P]):
    """The pieces of an object, which are made when they are taken; `blocks` makes the sequence.

    A slice of it is another such sequence.
    """

    def __init__(self, obj: Any, grid: Grid, order: Order, offsets: Offsets | None) -> None:
        self._obj = obj
        self._grid = grid
        self._order = order
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> P: ...
    @overload
    def __getitem__(self, index: slice) -> Blocks[P]: ...
    def __getitem__(self, index: int | slice) -> P | Blocks[P]:
        if isinstance(index, slice):
            return self._then(index)
        return self._piece(self._order[_place(index, len(self), "pieces")])

    def __iter__(self) -> Iterator[P]:
        for each in self._order.numbers:
            yield self._piece(int(each))

    def _piece(self, number: int) -> P:
        window = self._grid.window(number)

        def moved(by: Mapping[Hashable, int]) -> Any:
            return self._obj.isel(
                {
                    dim: slice(start + by.get(dim, 0), end + by.get(dim, 0))
                    for dim, (start, end) in window.items()
                }
            )

        return self._members(moved)

    def _stacked(self, places: range, dim: Hashable) -> P:
        """Return the pieces at some places in the order, stacked along a new dimension."""
        numbers = self._order.numbers[places.start : places.stop]
        windows = [self._grid.window(int(each)) for each in numbers]
        stack = Stack.of(windows, self._grid.split, dim)
        return self._members(lambda by: stack.moved(by).of_object(self._obj))

    def _members(self, make: Callable[[Mapping[Hashable, int]], Any]) -> P:
        """Return a piece, or a tuple of its members, each of which ``make`` makes where it is."""
        piece: Any = make({}) if self._offsets is None else tuple(map(make, self._offsets))
        result: P = piece
        return result

    def regions(self) -> list[dict[Hashable, slice]]:
        """Return the place of each piece in the object, as ``region`` of `to_zarr` takes it.

        The regions of all pieces have every element of the object once, so that each process of a
        job can write those of its part::

            for region in aioxarray.blocks(target, "shards").shard(rank, size).regions():
                aioxarray.to_zarr(compute(region), store, region=region, resume=True)

        Returns
        -------
        list of dict
            For each piece, in the order of the pieces, a slice for each dimension that is divided.

        Raises
        ------
        ValueError
            If pieces overlap, or have offsets: they have no place of their own.
        """
        bounds = (axis.division.all_bounds() for axis in self._grid.axes)
        overlap = any((starts[1:] < ends[:-1]).any() for starts, ends in bounds)
        if overlap or self._offsets is not None:
            raise ValueError(
                "pieces that overlap or have offsets have no region of their own, and would be "
                "written twice: divide the object without `overlap` and `offsets`"
            )
        return [
            {dim: slice(start, end) for dim, (start, end) in self._grid.window(int(each)).items()}
            for each in self._order.numbers
        ]

    def shuffle(self, seed: int, *, buffer: int = 256, epoch: int = 0) -> Blocks[P]:
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
        seed, epoch = number("seed", seed, 0), number("epoch", epoch, 0)
        return self._then(Shuffle(seed, epoch, number("buffer", buffer, 1)))

    def at_epoch(self, epoch: int) -> Blocks[P]:
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
        order = self._order.at_epoch(number("epoch", epoch, 0))
        return Blocks(self._obj, self._grid, order, self._offsets)

    def shard(self, rank: int, world: int) -> Blocks[P]:
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
        world = number("world", world, 1)
        rank = number("rank", rank, 0)
        if rank >= world:
            raise ValueError(f"rank must be less than world={world}; got {rank}")
        return self._then(slice(len(self) * rank // world, len(self) * (rank + 1) // world))

    def batch(self, n: int, *, drop_last: bool = False, dim: Hashable = "batch") -> Batches[P]:
        """Return batches of ``n`` pieces that follow each other, stacked along a new dimension.

        A batch is lazy, and loads in one go::

            batches = pieces.shuffle(seed=0).shard(rank, world).batch(8)
            with aioxarray.stream(batches) as loaded:
                for batch in loaded:
                    train(batch)

        Variables with a dimension that is divided get the new dimension, as their first. The others
        are the same in all pieces, and stay as they are. Whole dimensions (-1, or a single chunk)
        do not count as divided, unless all are whole. Coordinates are treated alike: those that get
        the new dimension keep their labels, and lose their index. All batches have the same
        variables and dimensions, whatever the order of the pieces. Pieces with offsets give a tuple
        of such batches.

        Parameters
        ----------
        n
            The number of pieces of a batch.
        drop_last
            Leave out the last batch if it has less than ``n`` pieces.
        dim
            The name of the new dimension.

        Returns
        -------
        Batches
            A sequence, like that of the pieces.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, if ``dim`` is a name in the object already, or if the pieces
            differ in shape; `blocks` leaves out shorter ones with ``drop_short=True``.

        Notes
        -----
        *Requests:* none. When a batch is loaded, pieces that differ along one dimension are read
        together, so that a stored chunk is requested and decoded once, however many of them need
        it. Of those that differ along several dimensions, the ones that differ along one are read
        together. All of these, and the members of a tuple, are read at once: chunks that they share
        are requested once, too, unless the store answers without waiting, as one in memory does.

        *Memory:* data that is in memory is copied when a batch is taken. Lazy data is read, and
        then put in the order of the batch: meanwhile it takes up to twice its size, and three times
        if it is packed.
        """
        size = number("n", n, 1)
        flag("drop_last", drop_last)
        contents = Contents.of(self._obj)
        if dim in contents.lengths or dim in contents.names:
            raise ValueError(
                f"the object has a dimension or variable {dim!r} already: give the new dimension "
                "another name, such as dim='sample'"
            )
        for along, (shortest, longest) in self._grid.lengths(self._order.numbers).items():
            if shortest != longest:
                raise ValueError(
                    f"pieces have {shortest} to {longest} positions along {along!r}, and only "
                    "equal ones can be stacked: leave out the shorter ones, with "
                    "blocks(…, drop_short=True)"
                )
        count = len(self) // size if drop_last else -(-len(self) // size)
        return Batches(self, size, dim, range(count))

    def _then(self, step: slice | Shuffle) -> Blocks[P]:
        return Blocks(self._obj, self._grid, self._order.then(step), self._offsets)

    def __repr__(self) -> str:
        dims = ", ".join(str(axis.dim) for axis in self._grid.axes)
        kind = type(self._obj).__name__
        if self._offsets is not None:
            kind += f", each at {len(self._offsets)} offsets,"
        return f"<Blocks: {len(self)} pieces of a {kind} along {dims}>"


class Batches(Sequence[P], Generic[P]):
    """Batches of pieces, which are made when they are taken; `Blocks.batch` makes the sequence.

    A slice of it is another such sequence.
    """

    def __init__(self, pieces: Blocks[P], n: int, dim: Hashable, numbers: range) -> None:
        self._pieces = pieces
        self._n = n
        self._dim = dim
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> P: ...
    @overload
    def __getitem__(self, index: slice) -> Batches[P]: ...
    def __getitem__(self, index: int | slice) -> P | Batches[P]:
        if isinstance(index, slice):
            return Batches(self._pieces, self._n, self._dim, self._numbers[index])
        begin = self._numbers[_place(index, len(self), "batches")] * self._n
        return self._pieces._stacked(
            range(begin, min(begin + self._n, len(self._pieces))), self._dim
        )

    def __repr__(self) -> str:
        return f"<Batches: {len(self)} batches of {self._n} along {self._dim!r}, of {self._pieces}>"


def _place(index: int, length: int, what: str) -> int:
    at = operator.index(index)
    if not -length <= at < length:
        raise IndexError(f"there are {length} {what}, and none with the index {at}")
    return at
