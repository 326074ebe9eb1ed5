"""Which chunks of an array its store has, as a mask over the grid of the chunks.

A save that goes on takes a chunk that is there as written. That is sound only in a store whose
values appear whole or not at all (`writes_whole`).
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.chunks.forms import chunk_keys
from aioxarray._zarr.grid import write_edges
from aioxarray._zarr.stores.identity import unwrapped

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

    from aioxarray._zarr.stores.limited import LimitedStore

# How many keys a page of a listing has, and how many single questions cost as much as one.
_PAGE = 1000
_QUESTIONS = 4

# Protocols of fsspec whose uploads replace an object as a whole. Others may write in place.
_WHOLE = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "memory"}
)

# The temporary file that an interrupted write to a local file leaves beside it.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
# The names of documents without what zarr replaces by that.
_DOCUMENTS = frozenset({"zarr", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})


def writes_whole(store: Any) -> bool:
    """Return whether a value in ``store`` is always a whole one, also after a write was killed."""
    innermost = unwrapped(store)
    if isinstance(innermost, FsspecStore):
        protocol = innermost.fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return bool(names & _WHOLE)
    return isinstance(innermost, LocalStore | MemoryStore | ObjectStore)


class Present:
    """The chunks, or the shards, of an array that were in its store when they were looked up.

    Parameters
    ----------
    edges
        For each axis, the boundaries between the chunks, in ascending order.
    mask
        Whether the chunk at each place of the grid is there.
    """

    def __init__(self, edges: Sequence[Sequence[int]], mask: NDArray[np.bool_]) -> None:
        self._edges = edges
        self._mask = mask

    @classmethod
    def none(cls, array: zarr.Array[Any]) -> Present:
        """Return the state of an array without chunks."""
        edges = write_edges(array)
        return cls(edges, np.zeros([len(axis) + 1 for axis in edges], bool))

    def __bool__(self) -> bool:
        return bool(self._mask.any())

    @property
    def count(self) -> int:
        """The number of places in the grid."""
        return self._mask.size

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of places along each axis."""
        return self._mask.shape

    def add(self, at: tuple[int, ...]) -> None:
        """Record the chunk at a place of the grid."""
        self._mask[at] = True

    def places(self, region: Sequence[slice]) -> tuple[slice, ...]:
        """Return the places of the grid whose chunks ``region`` has a part of."""
        return tuple(
            slice(bisect_right(edges, part.start), bisect_left(edges, part.stop) + 1)
            for part, edges in zip(region, self._edges, strict=True)
        )

    def has(self, region: Sequence[slice]) -> bool:
        """Return whether all chunks of ``region`` are there."""
        return bool(self._mask[self.places(region)].all())

    def lacking(self, region: Sequence[slice]) -> NDArray[np.bool_]:
        """Return, for each chunk of ``region``, whether it is not there."""
        return ~self._mask[self.places(region)]

    def cut(self, region: Sequence[slice], box: Sequence[slice]) -> tuple[slice, ...]:
        """Return the part of ``region`` in a box of its chunks, numbered from its first one."""
        parts = []
        for part, at, edges in zip(region, box, self._edges, strict=True):
            first = bisect_right(edges, part.start)
            ends = [part.start, *edges[first : bisect_left(edges, part.stop)], part.stop]
            parts.append(slice(ends[at.start], ends[at.stop]))
        return tuple(parts)

    def has_at(self, at: tuple[int, ...]) -> bool:
        """Return whether the chunk at a place of the grid is there."""
        return bool(self._mask[at])

    def keys_beside(
        self, others: Present, array: zarr.Array[Any], region: Sequence[slice]
    ) -> list[str]:
        """Return the keys of the chunks of ``region`` that are here and not in ``others``."""
        places = self.places(region)
        found = np.argwhere(self._mask[places] & ~others._mask[places])
        keys = Keys(array)
        starts = [part.start for part in places]
        return [keys.key(tuple((at + starts).tolist())) for at in found]

    def blocks(self, region: Sequence[slice], sizes: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """Return, for each block of ``region``, whether all of its chunks are there.

        ``sizes`` are those of the blocks along each axis, no two of which share a chunk.
        """
        found: Any = self._mask
        for axis, (part, lengths, edges) in enumerate(zip(region, sizes, self._edges, strict=True)):
            ends = list(itertools.accumulate(lengths, initial=part.start))
            firsts = [bisect_right(edges, start) for start in ends[:-1]]
            stop = bisect_left(edges, part.stop) + 1
            whole = found.take(range(stop), axis)
            found = np.logical_and.reduceat(whole, firsts, axis)
        result: NDArray[np.bool_] = found
        return result


class Keys:
    """The keys of an array's chunks, and the places in the grid that they stand for.

    Parameters
    ----------
    array
        The array.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        # Private: see `with_pipeline`.
        inner = array._async_array
        path = inner.store_path.path
        self.prefix = f"{path}/" if path else ""
        self.key: Any = chunk_keys(inner)
        self._ndim = array.ndim
        self._shape = Present.none(array).shape
        self._start = len(self.prefix)

    def place(self, key: str) -> tuple[int, ...] | None:
        """Return the place of a chunk in the grid; None if the key is not that of a chunk."""
        numbers = re.findall(r"\d+", key[self._start :])
        at = tuple(map(int, numbers[: self._ndim]))
        if len(at) < self._ndim or any(n >= size for n, size in zip(at, self._shape, strict=True)):
            return None
        return at if self.key(at) == key else None


async def find_present(
    array: zarr.Array[Any], limited: LimitedStore, region: Sequence[slice]
) -> tuple[Present, list[str]]:
    """Return which chunks of ``region`` are in the store, and the remains of interrupted writes.

    Requests one listing of the array, or asks for each chunk if there are few compared with those
    that a listing would have.
    """
    keys = Keys(array)
    present = Present.none(array)
    places = present.places(region)
    chosen = [range(part.start, part.stop) for part in places]
    pages = math.ceil(present.count / _PAGE)
    if pages > 1 and math.prod(map(len, chosen)) <= _QUESTIONS * pages:
        wanted = list(itertools.product(*chosen))
        found = await gather([partial(limited.exists, keys.key(at)) for at in wanted])
        for place, is_there in zip(wanted, found, strict=True):
            if is_there:
                present.add(place)
        return present, []
    listed = [key async for key in limited.list_prefix(keys.prefix)]
    for key in listed:
        if (at := keys.place(key)) is not None:
            present.add(at)
    is_all = math.prod(map(len, chosen)) == present.count
    left = []
    for key in listed:
        if (base := written_for(key)) is None:
            continue
        if (at := keys.place(base)) is None:
            of_region = is_all and base.rpartition("/")[2] in _DOCUMENTS
        else:
            of_region = all(n in part for n, part in zip(at, chosen, strict=True))
        if of_region:
            left.append(key)
    return present, left


def written_for(key: str) -> str | None:
    """Return the key for which an interrupted write has left ``key``; None for any other key."""
    found = _PARTIAL.search(key)
    return key[: found.start()] if found else None


class Absent:
    """Whether a chunk, given its key, is to be written: a filter for the requests of a write."""

    def __init__(self, array: zarr.Array[Any], present: Present) -> None:
        self._keys = Keys(array)
        self._present = present

    def __call__(self, key: str) -> bool:
        at = self._keys.place(key)
        return at is None or not self._present.has_at(at)
