"""Decoding chunks into the result of a selection."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._zarr.codecs.by_zarr import ByZarr
from aioxarray._zarr.codecs.decoders import Decoder, Prepared
from aioxarray._zarr.codecs.steps import wrong_size
from aioxarray._zarr.compat import cpu, fill_value_or_default
from aioxarray._zarr.points import Inside, selection_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import NDBuffer
    from aioxarray._zarr.stores.sources import Source


class Placer:
    """Decodes chunks and puts the selected values into ``out``.

    Parameters
    ----------
    pipeline
        The codec pipeline of the array, with zarr's own codecs.
    prepared
        Makes decoders of plain functions; None if only zarr's own codecs can decode.
    out
        The result.
    drop_axes
        Chunk axes that the result drops.
    basic
        Whether all chunks are selected by slices and integers only.
    decoders
        Decoders by chunk shape, shared with other placers for the same codecs.

    Attributes
    ----------
    prepared
        As the parameter; also None if the result is not a numpy array.
    in_memory
        Whether the result is a numpy array, and not in the memory of a GPU.
    """

    keeps_missing = True

    def __init__(
        self,
        pipeline: Any,
        prepared: Prepared | None,
        out: NDBuffer,
        drop_axes: tuple[int, ...],
        basic: bool,
        decoders: dict[tuple[int, ...], Decoder] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self.out = out
        self._drop_axes = drop_axes
        # Whether each chunk's place in the result is a view of it.
        self.views = basic and not drop_axes
        self._decoders = {} if decoders is None else decoders
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
    def held_chunks(self) -> int:
        """The number of copies held of each chunk being read: encoded and, possibly, decoded."""
        return 2 if self._bytes is None else 1

    def read(self, source: Source, chunk: Any) -> bool:
        """Read a chunk, decode it and put it in the result; return whether it exists.

        To be called in a worker thread if decoding may take long.
        """
        key, spec, _, outside = chunk
        if self.prepared is None:
            return self.put(source.read(key), chunk)
        decoder = self.decoder(spec.shape)
        if decoder.copies and (dest := self._dest(decoder, outside)) is not None:
            count = source.read_into(key, dest)
            if count is None:
                self.out[outside] = fill_value_or_default(spec)
                return False
            if count != decoder.size:
                raise wrong_size(count, decoder.size)
            return True
        return self.put(source.read(key), chunk)

    def put(self, data: Any | None, chunk: Any) -> bool:
        """Decode ``data``, None for a missing chunk, into the result; return whether it exists."""
        _, spec, inside, outside = chunk
        if data is None:
            return self.put_decoded(None, chunk)
        if self.prepared is None:
            self.put_part(self._by_zarr.decode(data, spec)[selection_of(inside)], chunk)
            return True
        decoder = self.decoder(spec.shape)
        dest = self._dest(decoder, outside)
        if dest is not None:
            decoder.fill(data, dest)
            return True
        return self.put_decoded(decoder.array(data), chunk)

    def decoder(self, shape: tuple[int, ...]) -> Decoder:
        """Return the decoder for chunks of ``shape``; only if zarr's own codecs do not decode."""
        decoder = self._decoders.get(shape)
        if decoder is None:
            assert self.prepared is not None
            decoder = self._decoders[shape] = self.prepared.decoder(shape)
        return decoder

    def put_bytes(self, decoded: Any, decoder: Decoder, chunk: Any) -> None:
        """Put a chunk, decoded to bytes by ``decoder``, in the result."""
        dest = self._dest(decoder, chunk[3])
        if dest is not None:
            dest.reshape(-1).data[:] = decoded
        else:
            self.put_decoded(decoder.shaped(np.frombuffer(decoded, np.uint8)), chunk)

    def name(self, chunk: Any) -> Hashable:
        """Return the key of ``chunk`` in a table: its key in the store and its shape."""
        return chunk[0], chunk[1].shape

    def decoded(self, data: Any, chunk: Any) -> NDArray[Any]:
        """Decode ``data`` into a new, read-only array that several reads can share."""
        spec = chunk[1]
        if self.prepared is None:
            array: NDArray[Any] = self._by_zarr.decode(data, spec).as_numpy_array()
            # It may be a view of memory that belongs to the store.
            array = array if array.flags.owndata else array.copy()
        else:
            decoder = self.decoder(spec.shape)
            array = decoder.array(data, np.empty(decoder.size, np.uint8))
        array.flags.writeable = False
        return array

    def put_decoded(self, array: NDArray[Any] | None, chunk: Any) -> bool:
        """Put the selected part of a decoded chunk, None if it is missing, in the result."""
        _, spec, inside, outside = chunk
        if array is None:
            self.out[outside] = fill_value_or_default(spec)
            return False
        part = inside.take(array) if isinstance(inside, Inside) else array[inside]
        if array.dtype.hasobject:
            # The receiver may change the objects; and selecting a single one returns no array.
            part = copy.deepcopy(array[(*selection_of(inside), ...)])
        self._array[outside] = part.squeeze(self._drop_axes) if self._drop_axes else part
        return True

    def put_part(self, part: NDBuffer | None, chunk: Any) -> None:
        """Put the selected part of a chunk, None if the chunk is missing, in the result."""
        _, spec, _, outside = chunk
        if part is None:
            self.out[outside] = fill_value_or_default(spec)
        else:
            self.out[outside] = part.squeeze(axis=self._drop_axes) if self._drop_axes else part

    def _dest(self, decoder: Decoder, outside: tuple[Any, ...]) -> NDArray[np.uint8] | None:
        """Return the chunk's bytes in the result, if it can be decoded straight into them."""
        if self._bytes is None:
            return None
        if self._order is not None:
            outside = tuple([outside[axis] for axis in self._order])
        place = self._bytes[outside]
        return place if place.nbytes == decoder.size and place.flags.c_contiguous else None


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
