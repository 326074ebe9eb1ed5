"""Detection of lazy data that a save would overwrite or delete before reading it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.nodes import pieces
from aioxarray._xarray.arrays.plan import plan
from aioxarray._xarray.compat import ZarrArrayWrapper
from aioxarray._xarray.lazy.find import find_variables
from aioxarray._xarray.lazy.variables import lazy_data
from aioxarray._zarr.metadata.hierarchy import join
from aioxarray._zarr.stores.identity import Place

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from aioxarray._xarray.saving.recorder import SavedNode


def read_from_targets(
    nodes: Sequence[SavedNode], group: Place, *, replaces: bool
) -> list[xr.Variable]:
    """Return the variables whose lazy data is read from arrays that a save of ``nodes`` writes.

    Parameters
    ----------
    nodes
        The datasets to save.
    group
        The group to save them to.
    replaces
        Whether the save first deletes the contents of the group.

    Raises
    ------
    ValueError
        If lazy data would be deleted with these contents.
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
            origin = Place.of(array.store, array.path)
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
    """Yield the Zarr arrays behind lazy data of xarray's Zarr backend; nothing for others."""
    array = getattr(plan(data).source, "array", None)
    if type(array) is ZarrArrayWrapper:
        yield array._array
    elif type(array) is JoinedArray:
        for piece in pieces(array.node, [range(size) for size in array.shape]):
            if not isinstance(piece.array, np.ndarray):
                yield from _origins(piece.array)
