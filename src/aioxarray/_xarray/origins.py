"""Finds lazy data that a save would change or delete before it has read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

# Private, as in `aioxarray._xarray.read`: the array of xarray's Zarr backend.
from xarray.backends.zarr import ZarrArrayWrapper

from aioxarray._xarray.find import find_variables
from aioxarray._xarray.joined import JoinedArray, pieces
from aioxarray._xarray.lazy import lazy_data
from aioxarray._xarray.plan import plan
from aioxarray._zarr.hierarchy import join
from aioxarray._zarr.positions import Position

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from aioxarray._xarray.recorder import Node


def read_from_targets(
    nodes: Sequence[Node], group: Position, *, replaces: bool
) -> list[xr.Variable]:
    """Return the variables whose lazy data is read from arrays that a save of ``nodes`` writes.

    Parameters
    ----------
    nodes
        What is saved.
    group
        Where to.
    replaces
        Whether all that is there is deleted first.

    Raises
    ------
    ValueError
        If lazy data would be deleted with what is there.
    """
    targets = [
        group.below(join("" if node.path == "." else node.path, str(name)))
        for node in nodes
        for name in node.dataset.variables
    ]
    lazies = lazy_data(find_variables([node.dataset for node in nodes]))
    replaced: set[int] = set()
    for index, lazy in enumerate(lazies):
        origins = [] if lazy.chunked else list(_origins(lazy.data))
        for array in origins:
            origin = Position.of(array.store_path)
            if replaces and origin.is_in(group):
                raise ValueError(
                    f"{lazy.label} is read lazily from the store that mode='w' empties first: "
                    "load it before, or save to another place"
                )
            if any(origin == target for target in targets):
                replaced.add(index)
                break
    return [variable for index, variable, _ in lazies.holders() if index in replaced]


def _origins(data: Any) -> Iterator[zarr.Array[Any]]:
    """Yield the Zarr arrays that lazy data is read from; none of those behind other backends."""
    array = getattr(plan(data).source, "array", None)
    if type(array) is ZarrArrayWrapper:
        yield array._array
    elif type(array) is JoinedArray:
        for piece in pieces(array.node, [range(size) for size in array.shape]):
            if not isinstance(piece.array, np.ndarray):
                yield from _origins(piece.array)
