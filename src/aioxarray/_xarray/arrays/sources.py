"""The reads of backends that a lazy array consists of, those of joined arrays one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from aioxarray._xarray.arrays.plan import Opaque, Read, plan
from aioxarray._xarray.arrays.read import Means, means_of, sound


def sources(data: Any) -> Iterator[tuple[Read | Opaque, bool]]:
    """Yield what is read for the lazy array ``data``, and whether it is decoded into another."""
    parts = plan(data)
    source = parts.source
    if source is None:
        return
    if isinstance(source, Read) and means_of(source) is Means.JOINED:
        joined: Any = source.array
        for part, _ in joined.lazy_parts(sound(source).key):
            yield from sources(part)
        return
    yield source, parts.decodes


def is_read_by_chunks(source: Read | Opaque) -> TypeGuard[Read]:
    """Return whether ``source`` is a read of a Zarr array."""
    return means_of(source) in (Means.BLOCK, Means.POINTS, Means.LISTS, Means.ZARR_INDEXING)
