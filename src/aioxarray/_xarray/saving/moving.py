"""Copying stored chunks, or whole shards, to another array as they are, without decoding them."""

from __future__ import annotations

import functools
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.chunks.forms import chunk_keys, chunk_shape_of, codecs_of
from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray._zarr.codecs.steps import check_of
from aioxarray._zarr.compat import default_buffer_prototype
from aioxarray._zarr.metadata.prefetched import PrefetchedStore
from aioxarray._zarr.selection import byte_count
from aioxarray._zarr.stores.fork import usable_after_fork
from aioxarray._zarr.stores.grants import Grants, is_long
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.local_writes import LocalFiles
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sharing import forget

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

# The parts of the metadata of each version of Zarr on which the bytes of a chunk depend.
_PARTS = {
    2: {
        "dtype": "data type",
        "chunks": "chunks",
        "order": "order of the elements",
        "filters": "codecs",
        "compressor": "codecs",
        "fill_value": "fill value",
    },
    3: {
        "data_type": "data type",
        "chunk_grid": "chunks",
        "codecs": "codecs",
        "fill_value": "fill value",
        "storage_transformers": "storage transformers",
    },
}


def difference(source: zarr.Array[Any], target: zarr.Array[Any]) -> str | None:
    """Return why chunks of ``source`` are no chunks of ``target``; None if they are."""
    old, new = source.metadata, target.metadata
    if old.zarr_format != new.zarr_format:
        return f"the copy has Zarr format {new.zarr_format}, the source {old.zarr_format}"
    one, other = old.to_dict(), new.to_dict()
    for part, name in _PARTS[old.zarr_format].items():
        if _text(one.get(part)) != _text(other.get(part)):
            return f"the copy has {'other' if name.endswith('s') else 'another'} {name}"
    return None


def _text(value: Any) -> str:
    # As text, NaN equals NaN.
    return json.dumps(value, default=str, sort_keys=True)


def first_chunk(array: zarr.Array[Any], selection: Sequence[slice]) -> tuple[int, ...] | None:
    """Return the grid coordinates of the first of the chunks that a selection consists of.

    None if the selection has a part of a chunk. The chunks of a sharded array are its shards. Those
    at the end of an axis, which may go beyond it, are whole if all of their elements in the array
    are selected: the target has as many.
    """
    lengths = chunk_shape_of(array.metadata)
    assert lengths is not None, "the chunks form no regular grid"
    first = []
    for part, size, length in zip(selection, array.shape, lengths, strict=True):
        start, stop, step = part.indices(size)
        if step != 1 or start % length or (stop % length and stop != size):
            return None
        first.append(start // length)
    return tuple(first)


class Mover:
    """Writes stored chunks of one array to another under the grants of a save.

    Each chunk takes one request to read it and one to write it, with the retries of all requests,
    and memory for its decoded size: how many bytes are stored is known only when they are there.
    A checksum at the end of a chunk is verified.

    Parameters
    ----------
    source, target
        The arrays, between which there is no `difference`.
    store
        The store to which chunks of ``target`` are written.
    first
        The grid coordinates in ``source`` of the first chunk of ``target``.
    grants
        The grants of the save.
    fresh
        Whether the store has no chunk of ``target``: then none is deleted.
    """

    def __init__(
        self,
        source: zarr.Array[Any],
        target: zarr.Array[Any],
        store: Store,
        first: Sequence[int],
        grants: Grants,
        *,
        fresh: bool,
    ) -> None:
        # Private: the asynchronous array inside; ``Array.async_array`` is public from zarr 3.2 on
        # (pydata/xarray#11259). Can go with support for zarr 3.1.
        self._old_key = chunk_keys(source._async_array)
        self._new_key = chunk_keys(target._async_array)
        origin = usable_after_fork(source.store)
        if isinstance(origin, PrefetchedStore):
            # It counts requests itself.
            origin = origin.counted_elsewhere()
        self._old_limited = LimitedStore(origin, grants.requests)
        self._new_limited = LimitedStore(usable_after_fork(store), grants.requests)
        self._first = tuple(first)
        self._grants = grants
        self._fresh = fresh
        shape = chunk_shape_of(target.metadata)
        assert shape is not None, "the chunks form no regular grid"
        self._shape = shape
        self._nbytes = byte_count(shape, target.dtype)
        self._check = check_of(CodecPipeline.from_codecs(codecs_of(source)))
        self._new_files = LocalFiles.of(self._new_limited)
        self._old_files = LocalFiles.of(self._old_limited) if self._check is None else None
        self._prototype = default_buffer_prototype()

    async def move(self, region: Sequence[slice]) -> None:
        """Write the chunks in ``region`` of the target, which has whole chunks."""
        try:
            if self._new_files is not None and self._old_files is not None:
                await self._move_files(self._old_files, self._new_files, region)
            else:
                await self._move_objects(region)
        finally:
            forget(self._new_limited)

    def _keys(self, region: Sequence[slice]) -> Iterator[tuple[str, str]]:
        """Yield the keys in the source and in the target."""
        axes = [
            range(part.start // length, -(-part.stop // length))
            for part, length in zip(region, self._shape, strict=True)
        ]
        for at in itertools.product(*axes):
            old = tuple(index + first for index, first in zip(at, self._first, strict=True))
            yield self._old_key(old), self._new_key(at)

    async def _move_files(self, old: LocalFiles, new: LocalFiles, region: Sequence[slice]) -> None:
        stop = threading.Event()

        def work() -> None:
            for key, target in self._keys(region):
                if stop.is_set():
                    break
                with chunk_noted(key, self._old_limited):
                    data = old.read(key, self._prototype)
                    if data is not None or not self._fresh:
                        new.write(target, data)

        await self._grants.in_thread(work, self._nbytes, stop.set)

    async def _move_objects(self, region: Sequence[slice]) -> None:
        keys = self._keys(region)

        async def work() -> None:
            for key, target in keys:
                with chunk_noted(key, self._old_limited):
                    await self._move_object(key, target)

        count = 1
        for part, length in zip(region, self._shape, strict=True):
            count *= -(-part.stop // length) - part.start // length
        workers: list[Callable[[], Awaitable[None]]] = [work] * int(
            min(count, self._grants.requests.bound)
        )
        await gather(workers)

    async def _move_object(self, key: str, target: str) -> None:
        with self._grants.room(self._nbytes) as room:
            data = await self._old_limited.get(key, self._prototype, room=room, check=self._check)
            # The bytes stay while they are written, however many attempts that takes.
            room.keep()
            if data is None and self._fresh:
                return
            if self._new_files is not None:
                write = functools.partial(self._new_files.write, target, data)
                await self._grants.decoders.run(write, long=is_long(self._nbytes))
            elif data is None:
                await self._new_limited.delete(target, room=room)
            else:
                await self._new_limited.set_made(target, lambda: data, room)
