"""Fetches the parts of a shard side by side where zarr would ask for one after the other.

Needed for zarr before 3.3, which has no ``Store.get_ranges``; can go with support for it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest, Store
from zarr.codecs import ShardingCodec

from aioxarray._runtime.tasks import gather

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter, ByteRequest
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.core.indexing import SelectorTuple


async def with_parts(
    codec: Any, getter: ByteGetter, selection: SelectorTuple, spec: ArraySpec
) -> ByteGetter:
    """Return ``getter``, or one that has all that ``codec`` will ask it for ``selection``."""
    if hasattr(Store, "get_ranges") or not isinstance(codec, ShardingCodec):
        return getter
    # Private: which inner chunks a selection touches. The codec itself works it out with these,
    # which later releases have no longer.
    from zarr.core.chunk_grids import RegularChunkGrid
    from zarr.core.indexing import get_indexer

    inner: Any = codec
    per_shard = inner._get_chunks_per_shard(spec)
    grid = RegularChunkGrid(chunk_shape=codec.chunk_shape)
    chunks = get_indexer(selection, shape=spec.shape, chunk_grid=grid)
    wanted = {coordinates for coordinates, *_ in chunks}
    if inner._is_total_shard(wanted, per_shard):
        # It is read as a whole, in one request.
        return getter
    known = _Known(getter)
    index = await inner._load_shard_index_maybe(known, per_shard)
    if index is not None:
        slices = [index.get_chunk_slice(coordinates) for coordinates in wanted]
        ranges = [RangeByteRequest(*each) for each in slices if each]
        await gather([partial(known.get, spec.prototype, each) for each in ranges])
    return known


class _Known:
    """The parts of a shard that were fetched, each once, in the place of its getter."""

    def __init__(self, getter: Any) -> None:
        self._getter = getter
        self._parts: dict[ByteRequest | None, Buffer | None] = {}

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if byte_range not in self._parts:
            self._parts[byte_range] = await self._getter.get(prototype, byte_range)
        return self._parts[byte_range]
