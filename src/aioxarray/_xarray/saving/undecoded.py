"""Which variables of a save are stored as their source is, so that their chunks can be moved.

A variable that is read lazily from a Zarr array, in whole chunks, and written to one with the same
codecs, data type, chunks and fill value, has the same bytes there. Its values are also the same for
xarray if the attributes by which it decodes them are the same.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xarray as xr
from zarr.storage import MemoryStore

from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.plan import Read, plan
from aioxarray._xarray.arrays.read import is_zarr, sound
from aioxarray._xarray.compat import VectorizedIndexer, is_chunked_array
from aioxarray._xarray.saving.deferred import Deferred, defers
from aioxarray._xarray.saving.moving import difference, first_chunk
from aioxarray._xarray.saving.recorder import SavedNode, Write, ZarrOptions, record
from aioxarray._zarr.chunks.forms import chunk_shape_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import zarr

# The attributes by which xarray decodes numbers.
_CODING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned", "dtype")
# The attribute `_FillValue` that xarray gives to floats without one, as it stores that in Zarr 3.
_NAN = base64.standard_b64encode(struct.pack("<d", math.nan)).decode()


@dataclass(frozen=True)
class Stored:
    """The Zarr array behind lazy data, and the selection of it, a slice for each axis."""

    array: zarr.Array[Any]
    selection: tuple[slice, ...]


@dataclass(frozen=True)
class Moves:
    """A write for which chunks can be moved.

    Attributes
    ----------
    source
        The array that has the chunks.
    first
        The grid coordinates there of the first chunk of the target.
    """

    source: zarr.Array[Any]
    first: tuple[int, ...]


def stored(variable: xr.Variable) -> Stored | str:
    """Return the stored array of ``variable``, or why it has no single one; reads nothing."""
    # Private: a public property of lazy data would load it.
    source = plan(variable._data).source
    if not isinstance(source, Read):
        return "it is in memory"
    array: Any = source.array
    if type(array) is JoinedArray:
        return "it is joined of several arrays"
    if not is_zarr(array):
        return "the source is no Zarr"
    key = sound(source).key
    if isinstance(key, VectorizedIndexer) or not all(isinstance(each, slice) for each in key.tuple):
        return "single positions are selected"
    return Stored(array._array, key.tuple)


def whole_axes(variable: xr.Variable) -> tuple[bool, ...]:
    """Return, for each dimension, whether all of its elements in a Zarr array are selected."""
    found = None if isinstance(variable, xr.IndexVariable) else stored(variable)
    if not isinstance(found, Stored):
        return (False,) * variable.ndim
    return tuple(
        part.indices(size) == (0, size, 1)
        for part, size in zip(found.selection, found.array.shape, strict=True)
    )


def moves(write: Write) -> Moves | str:
    """Return how the chunks of a write can be moved, or why they have to be decoded."""
    source, target = write.source, write.target
    if not isinstance(source, Deferred):
        return "it is encoded as a whole"
    found = stored(source.variable)
    if isinstance(found, str):
        return found
    if source.order != tuple(range(source.ndim)):
        return "its dimensions are in another order"
    if write.region != tuple(slice(0, size, 1) for size in target.shape):
        return "a part of the target is written"
    array = found.array
    lengths = chunk_shape_of(array.metadata)
    if lengths is None:
        return "its chunks have unequal lengths"
    first = first_chunk(array, found.selection)
    if first is None:
        unit = "shards" if array.shards is not None else "chunks"
        return f"the selection has parts of {unit}, which are {' x '.join(map(str, lengths))}"
    reason = difference(array, target) or _other_coding(array, target)
    if reason is not None:
        return reason
    return Moves(array, first)


def _other_coding(source: zarr.Array[Any], target: zarr.Array[Any]) -> str | None:
    old, new = source.attrs.asdict(), target.attrs.asdict()
    for name in _CODING:
        one, other = old.get(name), new.get(name)
        is_added = one is None and name == "_FillValue" and target.dtype.kind in "fc"
        # Floats that are NaN are missing with this attribute and without it.
        if one != other and not (is_added and other in (_NAN, [_NAN, _NAN])):
            return f"the copy has another attribute {name}"
    return None


def ways(dataset: xr.Dataset, options: ZarrOptions) -> Iterator[tuple[Hashable, str | None]]:
    """Yield, for each variable of a save, why it is decoded; None if its chunks are moved.

    Makes no request: the save is recorded for an empty store in memory.
    """
    lazy = {}
    for name, variable in dataset.variables.items():
        if is_chunked_array(variable._data) or not defers(variable):
            small = variable.dtype.kind in "biufc" and not isinstance(variable, xr.IndexVariable)
            yield name, "it is small" if small else "it is encoded as a whole"
        else:
            lazy[name] = variable
    nodes: Sequence[SavedNode] = [SavedNode(".", xr.Dataset(lazy), {})]
    if lazy:
        for write in record(nodes, MemoryStore(), options).writes:
            found = moves(write)
            yield write.target.path, found if isinstance(found, str) else None
