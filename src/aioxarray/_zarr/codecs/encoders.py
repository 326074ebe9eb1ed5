"""Encodes chunks by plain calls, in the thread that is there for it.

zarr's pipeline makes coroutines, tasks and lists for each chunk and each codec; for small chunks
that costs ten times the encoding itself. The codecs that are common have plain functions inside:
called one after the other, they give the very same bytes. `prepare_encoder` returns None for
all other arrays: zarr's own code encodes those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs.compat import ensure_bytes

# Private: ``_v2`` as in `aioxarray._zarr.codecs.decoders`; and the ``_encode_sync`` of the codecs,
# which is what their coroutines call in a thread (zarr 3.2 and later have it in a protocol,
# ``SupportsSyncCodec``). Can go when zarr has a public way to encode without a loop
# (zarr-developers/zarr-python#3885).
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    TransposeCodec,
    ZstdCodec,
    _v2,
)

from aioxarray._zarr.selection import is_basic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import CodecPipeline
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

# By exact type: a class derived from one of these may do something else.
_PLAIN = (TransposeCodec, BytesCodec, BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec)
# Numbers, times and texts of one length: no objects, no fields.
_KINDS = "biufcmMSU"


class Encoder:
    """Encodes chunks of one selection.

    Parameters
    ----------
    encode
        Makes of the values of a chunk what is stored.
    values
        What is written, of the type of the array.
    """

    def __init__(
        self, encode: Callable[[NDArray[Any], ArraySpec], Buffer | None], values: NDArray[Any]
    ) -> None:
        self._encode = encode
        self._values = values

    def takes(self, inside: Any, outside: Any) -> bool:
        """Return whether both selections, of a chunk and of the values, are plain ones."""
        return all(
            type(each) is tuple and len(each) == self._values.ndim and is_basic(each)
            for each in (inside, outside)
        )

    def encode(self, spec: ArraySpec, inside: Any, outside: Any) -> Buffer | None:
        """Return what is stored of a chunk without other values than these; None for nothing."""
        # Of texts and objects without dimensions, numpy selects the bare value.
        chunk = np.asarray(self._values[outside], self._values.dtype)
        fill: Any = spec.fill_value
        if fill is None:
            # Format 2 allows that; zarr takes this then.
            fill = spec.dtype.default_scalar()
        if chunk.shape != spec.shape:
            whole = np.full(spec.shape, fill, self._values.dtype)
            whole[inside] = chunk
            chunk = whole
        if not spec.config.write_empty_chunks and _is_empty(chunk, fill, spec):
            return None
        return self._encode(chunk, spec)


def _is_empty(chunk: NDArray[Any], fill: Any, spec: ArraySpec) -> bool:
    """Say what zarr says: whether all values are the fill value."""
    first = chunk[(0,) * chunk.ndim]
    # Most chunks differ in their first value, and zarr's comparison of all takes as long as
    # compressing them. NaN and NaT, which are not themselves, are left to it.
    if first != fill and first == first:
        return False
    return spec.prototype.nd_buffer.from_numpy_array(chunk).all_equal(fill)


def prepare_encoder(
    pipeline: CodecPipeline, spec: ArraySpec, value: NDBuffer, drop_axes: tuple[int, ...]
) -> Encoder | None:
    """Return what encodes chunks of ``value`` by plain calls, or None."""
    values: Any = value.as_ndarray_like()
    dtype = spec.dtype.to_native_dtype()
    if drop_axes or type(values) is not np.ndarray or values.ndim != spec.ndim:
        return None
    if values.dtype != dtype or dtype.kind not in _KINDS:
        return None
    codecs: Any = pipeline
    serializer = codecs.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        return Encoder(_v2_steps(serializer, dtype), values)
    chain = tuple(codecs)
    if any(type(codec) not in _PLAIN for codec in chain):
        return None
    return Encoder(_steps(chain), values)


def _steps(chain: tuple[Any, ...]) -> Callable[[NDArray[Any], ArraySpec], Buffer | None]:
    steps = [codec._encode_sync for codec in chain]

    def encode(chunk: NDArray[Any], spec: ArraySpec) -> Buffer | None:
        # None of these looks at the shape in the specification, which a transposition changes.
        data: Any = spec.prototype.nd_buffer.from_numpy_array(chunk)
        for step in steps:
            data = step(data, spec)
        encoded: Buffer | None = data
        return encoded

    return encode


def _v2_steps(
    codec: Any, dtype: np.dtype[Any]
) -> Callable[[NDArray[Any], ArraySpec], Buffer | None]:
    # What zarr's codec does, which before 3.2 has no plain function.
    steps = [each.encode for each in (*(codec.filters or ()), codec.compressor) if each is not None]

    def encode(chunk: NDArray[Any], spec: ArraySpec) -> Buffer | None:
        data: Any = chunk.astype(dtype, order=spec.order, copy=False)
        for step in steps:
            data = step(data)
        return spec.prototype.buffer.from_bytes(ensure_bytes(data))

    return encode
