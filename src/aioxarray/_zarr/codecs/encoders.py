"""Encoding of chunks with plain functions, in worker threads.

zarr's pipeline makes coroutines, tasks and lists for each chunk and each codec; for small chunks
that costs ten times as much as encoding. Inside, the common codecs have plain functions, which
return exactly the same bytes. `prepare_encoder` returns None for arrays with other codecs, which
zarr's own code encodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs.compat import ensure_bytes
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from aioxarray._zarr.compat import _v2
from aioxarray._zarr.selection import is_basic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import CodecPipeline

    from aioxarray._zarr.compat import ArraySpec, Buffer, NDBuffer

# Types must match exactly: a subclass may behave differently.
_PLAIN = (TransposeCodec, BytesCodec, BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec)
# Numbers, times and fixed-width strings: no objects, no structured dtypes.
_KINDS = "biufcmMSU"


class Encoder:
    """An encoder for the chunks of one write.

    Parameters
    ----------
    encode
        Encodes the values of a chunk.
    values
        The values to write, in the dtype of the array.
    """

    def __init__(
        self, encode: Callable[[NDArray[Any], ArraySpec], Buffer | None], values: NDArray[Any]
    ) -> None:
        self._encode = encode
        self._values = values

    def takes(self, inside: Any, outside: Any) -> bool:
        """Return whether the selections of a chunk and of the values are both basic."""
        return all(
            type(each) is tuple and len(each) == self._values.ndim and is_basic(each)
            for each in (inside, outside)
        )

    def encode(self, spec: ArraySpec, inside: Any, outside: Any) -> Buffer | None:
        """Return the encoded chunk, which has no other values; None if it need not be stored."""
        # From 0-d arrays of strings, numpy selects a scalar.
        chunk = np.asarray(self._values[outside], self._values.dtype)
        fill: Any = spec.fill_value
        if fill is None:
            # Format 2 allows None; zarr then uses this.
            fill = spec.dtype.default_scalar()
        if chunk.shape != spec.shape:
            whole = np.full(spec.shape, fill, self._values.dtype)
            whole[inside] = chunk
            chunk = whole
        if not spec.config.write_empty_chunks and _is_empty(chunk, fill, spec):
            return None
        return self._encode(chunk, spec)


def _is_empty(chunk: NDArray[Any], fill: Any, spec: ArraySpec) -> bool:
    """Return whether all values are the fill value, by zarr's definition."""
    first = chunk[(0,) * chunk.ndim]
    # The first value rules out most chunks; zarr's comparison of all values takes as long as
    # compressing them. NaN and NaT, which do not equal themselves, are left to zarr.
    if first != fill and first == first:
        return False
    return spec.prototype.nd_buffer.from_numpy_array(chunk).all_equal(fill)


def prepare_encoder(
    pipeline: CodecPipeline, spec: ArraySpec, value: NDBuffer, drop_axes: tuple[int, ...]
) -> Encoder | None:
    """Return an encoder of ``value`` that uses plain functions; None if there is none."""
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
        # None of these codecs uses the shape in ``spec``, which a transposition would change.
        data: Any = spec.prototype.nd_buffer.from_numpy_array(chunk)
        for step in steps:
            data = step(data, spec)
        encoded: Buffer | None = data
        return encoded

    return encode


def _v2_steps(
    codec: Any, dtype: np.dtype[Any]
) -> Callable[[NDArray[Any], ArraySpec], Buffer | None]:
    # The same as zarr's codec, which has no plain function before zarr 3.2.
    steps = [each.encode for each in (*(codec.filters or ()), codec.compressor) if each is not None]

    def encode(chunk: NDArray[Any], spec: ArraySpec) -> Buffer | None:
        data: Any = chunk.astype(dtype, order=spec.order, copy=False)
        for step in steps:
            data = step(data)
        return spec.prototype.buffer.from_bytes(ensure_bytes(data))

    return encode
