"""The result of a selection, into which chunks are decoded."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aioxarray._runtime.threads.lent import Lent
from aioxarray._zarr.codecs.by_zarr import ByZarr
from aioxarray._zarr.codecs.decoders import Decoder, Prepared
from aioxarray._zarr.codecs.steps import wrong_size
from aioxarray._zarr.compat import cpu, fill_value_or_default
from aioxarray._zarr.points import Inside, selection_of
from aioxarray._zarr.selection import with_slices
from aioxarray._zarr.stores.observing.observers import Observer, listeners
from aioxarray._zarr.stores.request import current_variable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import NDBuffer
    from aioxarray._zarr.selection import Chunk
    from aioxarray._zarr.stores.sources import Source


class Outline(NamedTuple):
    """The properties of a result on which the plan of a read depends, known before it has memory.

    Attributes
    ----------
    shape, dtype
        The shape and the dtype of the result.
    in_memory
        Whether the result is a numpy array, and not in the memory of a GPU.
    prepared
        Makes decoders of plain functions; None if zarr's own codecs decode.
    views
        Whether each chunk's place in the result is a view of it.
    filled_in_place
        Whether chunks can be decoded straight into the result.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    in_memory: bool
    prepared: Prepared | None
    views: bool
    filled_in_place: bool

    @property
    def by_zarr(self) -> bool:
        """Whether zarr's own codecs decode."""
        return self.prepared is None

    @property
    def held_chunks(self) -> int:
        """The number of copies held of each chunk being read: encoded and, possibly, decoded."""
        return 1 if self.filled_in_place else 2


class Destination(NamedTuple):
    """An array of the caller that values are read into, and the permission to write there."""

    array: NDArray[Any]
    lent: Lent


def chunk_name(chunk: Chunk, shard: str | None = None) -> Hashable:
    """Return a name for ``chunk``, in the shard of that key if any; unique in store and decoding.

    Reads share a chunk under this name.
    """
    return (chunk.key, chunk.spec.shape) if shard is None else (shard, chunk.key)


class Result:
    """The result of a selection: decodes chunks and puts the selected values in ``out``.

    It is the `Parts` for `Sharing` of chunks.

    Parameters
    ----------
    pipeline
        The codec pipeline of the array, with zarr's own codecs.
    prepared
        Makes decoders of plain functions; None if only zarr's own codecs can decode.
    out
        The buffer of the result.
    drop_axes
        Chunk axes that the result drops.
    basic
        Whether all chunks are selected by slices and integers only.
    shard
        The key of the shard whose inner chunks these are; None for chunks with keys of their own.

    Attributes
    ----------
    prepared
        As the parameter; also None if the result is not a numpy array.
    views
        Whether each chunk's place in the result is a view of it.
    in_memory
        Whether the result is a numpy array, and not in the memory of a GPU.
    keeps_missing
        Whether the cache records missing chunks; those of a shard are known from its index.
    lent
        The permission to write into ``out``, if that is memory of the caller.
    """

    lent: Lent | None = None

    def __init__(
        self,
        pipeline: Any,
        prepared: Prepared | None,
        out: NDBuffer,
        drop_axes: tuple[int, ...],
        basic: bool,
        shard: str | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._shard = shard
        self.keeps_missing = shard is None
        self.out = out
        self._drop_axes = drop_axes
        self.views = basic and not drop_axes
        self.in_memory = type(out) is cpu.NDBuffer and isinstance(out.as_ndarray_like(), np.ndarray)
        self.prepared = prepared if self.in_memory else None
        # The result as bytes, if chunks can be decoded straight into it.
        self._bytes: NDArray[np.uint8] | None = None
        self._order: tuple[int, ...] | None = None
        if self.in_memory:
            self._array: NDArray[Any] = out.as_numpy_array()
        if self.prepared is not None and self.views and self.prepared.dtype == self._array.dtype:
            self._bytes, self._order = _as_bytes(self._array, self.prepared)

    @cached_property
    def _by_zarr(self) -> ByZarr:
        """Decoding by zarr's codecs; created on first use, because most arrays do not need it."""
        return ByZarr(self._pipeline)

    @property
    def by_zarr(self) -> bool:
        """Whether zarr's own codecs decode, which take zarr's buffers."""
        return self.prepared is None

    @property
    def outline(self) -> Outline:
        """The properties on which the plan of a read into it depends."""
        in_place = self._bytes is not None
        out = self.out
        return Outline(out.shape, out.dtype, self.in_memory, self.prepared, self.views, in_place)

    def observed(self, lent: Lent | None = None) -> Result:
        """Return this result if there are no observers; else one that tells them of its decoding.

        Without observers, decoding a chunk takes no further step. With ``lent``, the result writes
        only while that permits it.
        """
        observers = listeners()
        if lent is not None:
            return LentResult(self, observers, lent)
        return ObservedResult(self, observers) if observers else self

    def tell_decoded(self, chunk: Chunk, chunks: int, nbytes: int, begun: float) -> None:
        """Notify the observers that ``chunks`` chunks from ``chunk`` on have been decoded."""

    def put(self, data: Any | None, chunk: Chunk) -> bool:
        """Decode ``data``, None for a missing chunk, into the result; return whether it exists."""
        if data is None:
            return self.put_decoded(None, chunk)
        if self.prepared is None:
            decoded = self._by_zarr.decode(data, chunk.spec)
            self.put_part(decoded[selection_of(chunk.inside)], chunk)
            return True
        decoder = self.prepared.decoder(chunk.spec.shape)
        dest = self._dest(decoder, chunk)
        if dest is not None:
            decoder.fill(data, dest)
            return True
        return self.put_decoded(decoder.array(data), chunk)

    def unencoded(self, chunk: Chunk) -> NDArray[np.uint8] | None:
        """Return the memory in the result for the stored bytes of ``chunk``.

        None if these are encoded, or are not stored as in the result.
        """
        if self.prepared is None or self._bytes is None:
            return None
        decoder = self.prepared.decoder(chunk.spec.shape)
        return self._dest(decoder, chunk) if decoder.copies else None

    def put_bytes(self, decoded: Any, decoder: Decoder, chunk: Chunk) -> None:
        """Put a chunk, decoded to bytes by ``decoder``, in the result."""
        dest = self._dest(decoder, chunk)
        if dest is not None:
            dest.reshape(-1).data[:] = decoded
        else:
            self.put_decoded(decoder.shaped(np.frombuffer(decoded, np.uint8)), chunk)

    def put_together(self, decoded: Any, decoder: Decoder, chunks: Sequence[Chunk]) -> bool:
        """Put ``chunks``, decoded as for `put_bytes`, in the result by one assignment.

        ``chunks`` are neighbours in C order. Returns False, and does nothing, unless they are whole
        and fill a block of the result.
        """
        if self._bytes is None or self._order is not None:
            return False
        begin, end, shape = chunks[0].outside, chunks[-1].outside, decoder.shape
        # An array without dimensions has a single chunk.
        if not shape or len(begin) != len(shape):
            return False
        grid, place = [], []
        for one, other, length in zip(begin, end, shape, strict=True):
            if one.stop - one.start != length or other.stop - other.start != length:
                return False
            grid.append((other.stop - one.start) // length)
            place.append(slice(one.start, other.stop))
        # Neighbours in C order with the first and the last chunk of a block are all of it if they
        # are as many: otherwise they leave and enter it again.
        if min(grid) < 1 or math.prod(grid) != len(chunks):
            return False
        flat = np.frombuffer(b"".join(decoded), np.uint8)
        ndim = len(shape)
        turned = [axis for first in range(ndim) for axis in (first, ndim + first)]
        values = flat.view(decoder.dtype).reshape(*grid, *shape).transpose(turned)
        target = self._array[tuple(place)]
        target[...] = values.reshape(target.shape)
        return True

    def name(self, chunk: Chunk) -> Hashable:
        """Return a name for ``chunk``, unique in its store and decoding."""
        return chunk_name(chunk, self._shard)

    def decoded(self, data: Any, chunk: Chunk) -> NDArray[Any]:
        """Decode ``data`` into a new, read-only array that several reads can share."""
        if self.prepared is None:
            array: NDArray[Any] = self._by_zarr.decode(data, chunk.spec).as_numpy_array()
            # It may be a view of memory that belongs to the store.
            array = array if array.flags.owndata else array.copy()
        else:
            decoder = self.prepared.decoder(chunk.spec.shape)
            array = decoder.array(data, np.empty(decoder.size, np.uint8))
        array.flags.writeable = False
        return array

    def put_decoded(self, array: NDArray[Any] | None, chunk: Chunk) -> bool:
        """Put the selected part of a decoded chunk, None if it is missing, in the result."""
        if array is None:
            self.put_part(None, chunk)
            return False
        inside, outside = chunk.inside, chunk.outside
        if not self.views:
            inside, outside = with_slices(inside), with_slices(outside)
        part = inside.take(array) if isinstance(inside, Inside) else array[inside]
        if array.dtype.hasobject:
            # The receiver may change the objects; and selecting a single one returns no array.
            part = copy.deepcopy(array[(*selection_of(inside), ...)])
        self._array[outside] = part.squeeze(self._drop_axes) if self._drop_axes else part
        return True

    def put_part(self, part: NDBuffer | None, chunk: Chunk) -> None:
        """Put the selected part of a chunk, None if the chunk is missing, in the result."""
        if part is None:
            self.out[chunk.outside] = fill_value_or_default(chunk.spec)
        else:
            self.out[chunk.outside] = (
                part.squeeze(axis=self._drop_axes) if self._drop_axes else part
            )

    def _dest(self, decoder: Decoder, chunk: Chunk) -> NDArray[np.uint8] | None:
        """Return the chunk's bytes in the result, if it can be decoded straight into them."""
        if self._bytes is None:
            return None
        outside = chunk.outside
        if self._order is not None:
            outside = tuple([outside[axis] for axis in self._order])
        place = self._bytes[outside]
        return place if place.nbytes == decoder.size and place.flags.c_contiguous else None


class ObservedResult(Result):
    """A result that notifies observers when chunks have been decoded.

    Parameters
    ----------
    result
        The result.
    observers
        The observers.
    """

    def __init__(self, result: Result, observers: tuple[Observer, ...]) -> None:
        self.__dict__.update(result.__dict__)
        self._observers = observers
        self._variable = current_variable()

    def tell_decoded(self, chunk: Chunk, chunks: int, nbytes: int, begun: float) -> None:
        ended = perf_counter()
        key = chunk.key if self._shard is None else self._shard
        for observer in self._observers:
            observer.decoded(key, self._variable, chunks, nbytes, begun, ended)

    def put(self, data: Any | None, chunk: Chunk) -> bool:
        begun = perf_counter()
        there = super().put(data, chunk)
        if data is not None:
            self.tell_decoded(chunk, 1, len(data), begun)
        return there

    def decoded(self, data: Any, chunk: Chunk) -> NDArray[Any]:
        begun = perf_counter()
        array = super().decoded(data, chunk)
        self.tell_decoded(chunk, 1, len(data), begun)
        return array


class LentResult(ObservedResult):
    """A result in memory of the caller, where a thread that is given up must not write later.

    After the end of the permission, nothing is written, and the outcomes have no meaning.

    Parameters
    ----------
    result
        The result.
    observers
        The observers.
    lent
        The permission to write.
    """

    def __init__(self, result: Result, observers: tuple[Observer, ...], lent: Lent) -> None:
        super().__init__(result, observers)
        self._permission = self.lent = lent

    def put(self, data: Any | None, chunk: Chunk) -> bool:
        with self._permission.writing() as may_write:
            return may_write and super().put(data, chunk)

    def put_bytes(self, decoded: Any, decoder: Decoder, chunk: Chunk) -> None:
        with self._permission.writing() as may_write:
            if may_write:
                super().put_bytes(decoded, decoder, chunk)

    def put_together(self, decoded: Any, decoder: Decoder, chunks: Sequence[Chunk]) -> bool:
        with self._permission.writing() as may_write:
            return not may_write or super().put_together(decoded, decoder, chunks)

    def put_decoded(self, array: NDArray[Any] | None, chunk: Chunk) -> bool:
        with self._permission.writing() as may_write:
            return may_write and super().put_decoded(array, chunk)

    def put_part(self, part: NDBuffer | None, chunk: Chunk) -> None:
        with self._permission.writing() as may_write:
            if may_write:
                super().put_part(part, chunk)


def read_chunk(source: Source, chunk: Chunk, result: Result) -> bool:
    """Read a chunk with a blocking call, and put it in ``result``; return whether it exists.

    To be called in a worker thread if decoding may take long.
    """
    dest = result.unencoded(chunk)
    if dest is None:
        return result.put(source.read(chunk.key), chunk)
    count = source.read_into(chunk.key, dest)
    if count is None:
        return result.put(None, chunk)
    if count != dest.nbytes:
        raise wrong_size(count, dest.nbytes)
    return True


def _as_bytes(
    array: NDArray[Any], prepared: Prepared
) -> tuple[NDArray[np.uint8] | None, tuple[int, ...] | None]:
    """Return ``array`` as bytes, with its axes in the order of storage in chunks, and that order.

    The bytes are None if the memory of ``array`` is in another order; the order is None for C.
    """
    order = prepared.order(array.ndim)
    if order is None:
        return None, None
    turned = array.transpose(order)
    if not turned.flags.c_contiguous:
        return None, None
    by_byte = turned.reshape(-1).view(np.uint8).reshape(*turned.shape, array.dtype.itemsize)
    return by_byte, None if order == tuple(range(array.ndim)) else order
