"""The arguments of `blocks`: checked, and turned into the grid of the pieces."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import xarray as xr

from aioxarray._xarray.dividing.divisions import Numbers, inside, runs, windows
from aioxarray._xarray.dividing.grid import Axis, Grid
from aioxarray._xarray.dividing.stored import cuts
from aioxarray.errors import did_you_mean

Stored = Literal["chunks", "shards"]
Offsets = tuple[Mapping[Hashable, int], ...]
"""For each member of a piece, by how many positions it is moved along some dimensions."""


@dataclass(frozen=True)
class Contents:
    """The properties of an object that `blocks` needs.

    Attributes
    ----------
    variables
        Its variables.
    lengths
        The length of each dimension.
    names
        The names of its coordinates and data variables.
    """

    variables: Sequence[xr.Variable]
    lengths: Mapping[Hashable, int]
    names: frozenset[Hashable]

    @classmethod
    def of(cls, obj: xr.Dataset | xr.DataArray | xr.DataTree) -> Contents:
        """Return the contents of an object.

        Raises
        ------
        ValueError
            If the groups of a tree have different lengths of a dimension.
        """
        if isinstance(obj, xr.DataArray):
            variables = [obj.variable, *(each.variable for each in obj.coords.values())]
            return cls(variables, dict(obj.sizes), frozenset(obj.coords))
        datasets = (
            [node.to_dataset(inherit=False) for node in obj.subtree]
            if isinstance(obj, xr.DataTree)
            else [obj]
        )
        lengths: dict[Hashable, int] = {}
        for dataset in datasets:
            for dim, length in dataset.sizes.items():
                if lengths.setdefault(dim, length) != length:
                    raise ValueError(
                        f"the groups of the tree have different lengths of {dim!r}: "
                        f"{lengths[dim]} and {length}; divide the groups one by one"
                    )
        return cls(
            [variable for each in datasets for variable in each.variables.values()],
            lengths,
            frozenset(name for each in datasets for name in each.variables),
        )


def grid_of(
    contents: Contents, sizes: Any, overlap: Any, offsets: Offsets | None, *, drop_short: bool
) -> Grid:
    """Return the grid of the pieces of an object; see `aioxarray.blocks` for the arguments."""
    variables, lengths = contents.variables, contents.lengths
    chosen = _chosen(sizes, variables, lengths)
    overlap = _mapping("overlap", overlap, "{'time': 6}")
    for dim, positions in overlap.items():
        _check_overlap(dim, positions, chosen)
    for dim in {dim: None for member in offsets or () for dim in member}:
        if dim not in chosen:
            raise ValueError(f"offsets names the dimension {dim!r}, which sizes does not divide")
        if chosen[dim] == -1:
            raise ValueError(f"pieces have all positions along {dim!r}, and cannot be moved")
    return Grid(
        tuple(
            _axis(
                contents,
                dim,
                size,
                overlap.get(dim, 0),
                tuple(member.get(dim, 0) for member in offsets or ()),
                drop_short=drop_short,
            )
            for dim, size in chosen.items()
        )
    )


def offsets_of(offsets: Any) -> Offsets | None:
    """Return the ``offsets`` of `aioxarray.blocks`, checked, for each member of a piece."""
    if offsets is None:
        return None
    given = _mapping("offsets", offsets, "{'time': (0, 1)}")
    if not given:
        raise ValueError("offsets names no dimension; for example {'time': (0, 1)}")
    checked: dict[Hashable, tuple[int, ...]] = {}
    for dim, moves in given.items():
        if isinstance(moves, str | bytes) or not isinstance(moves, Sequence):
            raise TypeError(
                f"offsets along {dim!r} must be several numbers, such as (0, 1); got {moves!r}"
            )
        checked[dim] = tuple(number(f"an offset along {dim!r}", each) for each in moves)
    counts = {dim: len(moves) for dim, moves in checked.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        told = ", ".join(f"{count} along {dim!r}" for dim, count in counts.items())
        raise ValueError(
            f"offsets gives one number for each member of a piece, along each dimension; got {told}"
        )
    members = range(next(iter(counts.values())))
    return tuple({dim: moves[at] for dim, moves in checked.items()} for at in members)


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
    length = operator.index(size)
    if length != -1 and length < 1:
        raise ValueError(
            f"the length of a piece along {dim!r} must be at least 1, or -1 for all; got {size!r}"
        )
    return length


def _check_overlap(dim: Any, positions: Any, chosen: Mapping[Hashable, int | Stored]) -> None:
    if dim not in chosen:
        raise ValueError(f"overlap names the dimension {dim!r}, which sizes does not divide")
    size = chosen[dim]
    if isinstance(size, str):
        raise ValueError(f"pieces along {dim!r} end with {size}, and so cannot overlap")
    shared = number(f"overlap along {dim!r}", positions, 0)
    if size == -1 and shared:
        raise ValueError(f"pieces have all positions along {dim!r}, and so cannot overlap")
    if shared >= size != -1:
        raise ValueError(
            f"overlap along {dim!r} must be less than the length of a piece, {size}; "
            f"got {positions!r}"
        )


def _axis(
    contents: Contents,
    dim: Hashable,
    size: int | Stored,
    overlap: int,
    offsets: tuple[int, ...],
    *,
    drop_short: bool,
) -> Axis:
    length = contents.lengths[dim]
    if size == -1:
        return Axis(dim, windows(0, length, max(length, 1)), None, is_whole=True)
    stored: Stored = "shards" if size == "shards" else "chunks"
    found = _cuts(contents.variables, dim, stored)
    if isinstance(size, str):
        if found is None:
            raise ValueError(
                f"no variable is known to be stored in chunks along {dim!r}: give the length of a "
                f"piece in place of {size!r}"
            )
        division, ends = runs(found, 0, length), None
        is_whole = len(division) == 1
    else:
        division = windows(0, length, size, overlap)
        ends = None if found is None else tuple(found.tolist())
        is_whole = False
    return Axis(dim, inside(division, length, offsets, only_full=drop_short), ends, is_whole)


def _cuts(variables: Sequence[xr.Variable], dim: Hashable, stored: Stored) -> Numbers | None:
    return cuts(variables, dim, shards=stored == "shards")


def _mapping(name: str, value: Any, example: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, such as {example}; got {value!r}")
    return value


def number(name: str, value: Any, least: int | None = None) -> int:
    """Return ``value`` as an integer; raise an error that begins with ``name`` for any other."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    checked = operator.index(value)
    if least is not None and checked < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return checked


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False; raise an error that begins with ``name`` if not."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value
