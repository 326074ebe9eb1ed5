"""Decoding of chunks with zarr's own codecs, protected against decompression bombs.

zarr's codecs decompress a whole chunk, however large, before zarr checks its size. So the outermost
codec is treated here: the size in its header is checked first, or it is decoded up to a limit.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numcodecs
from zarr.codecs import GzipCodec
from zarr.codecs import numcodecs as wrapped

from aioxarray._zarr.codecs.inline import run_inline
from aioxarray._zarr.codecs.steps import announced
from aioxarray._zarr.compat import Buffer, _v2

if TYPE_CHECKING:
    from aioxarray._zarr.compat import ArraySpec, NDBuffer

# Encoding with filters may enlarge a chunk, for example from one-byte to eight-byte integers.
_MOST_BY_FILTERS = 16
_SLACK = 64 << 10

# Decompresses bytes, at most one byte more than the limit.
_Unpack = Callable[[Any, int], bytes]


class ByZarr:
    """A decoder for the chunks of an array.

    Parameters
    ----------
    pipeline
        The array's codec pipeline, with zarr's own codecs.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._outermost, rest = _split(pipeline)
        self._unpack = _bounded(self._outermost)
        self._rest = rest

    def decode(self, data: Any, spec: ArraySpec) -> NDBuffer:
        """Return the chunk that ``data`` decodes to; called in a decoding thread.

        Raises ValueError if the chunk is truncated, has another shape than ``spec``, or unpacks to
        far more bytes than expected. The latter is not checked for variable-width strings and
        objects.
        """
        buffer = data if isinstance(data, Buffer) else spec.prototype.buffer.from_bytes(data)
        pipeline = self._pipeline
        dtype = spec.dtype.to_native_dtype()
        if not (dtype.hasobject or dtype.kind == "T"):
            declared = math.prod(spec.shape) * dtype.itemsize
            most = _MOST_BY_FILTERS * declared + _SLACK
            encoded = buffer.as_numpy_array()
            if self._unpack is not None:
                unpacked = self._unpack(encoded, most)
                if len(unpacked) > most:
                    raise ValueError(
                        f"the chunk unpacks to more than {most} bytes; decoded it has {declared}"
                    )
                buffer, pipeline = spec.prototype.buffer.from_bytes(unpacked), self._rest
            elif self._outermost is not None:
                size = announced(self._outermost, encoded)
                if size is not None and size > most:
                    raise ValueError(
                        f"the chunk unpacks to {size} bytes; decoded it has {declared}"
                    )
        (array,) = run_inline(pipeline.decode_batch([(buffer, spec)]))
        if array.shape != spec.shape:
            raise ValueError(
                f"the chunk decodes to an array of shape {array.shape} instead of {spec.shape}"
            )
        found: NDBuffer = array
        return found


def _split(pipeline: Any) -> tuple[Any, Any]:
    """Return the codec that is decoded first, None if there is none, and a pipeline without it."""
    serializer = pipeline.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        if serializer.compressor is not None:
            outermost, rest = serializer.compressor, replace(serializer, compressor=None)
        elif serializer.filters:
            *filters, outermost = serializer.filters
            rest = replace(serializer, filters=tuple(filters) or None)
        else:
            return None, pipeline
        return outermost, replace(pipeline, array_bytes_codec=rest)
    if not pipeline.bytes_bytes_codecs:
        return None, pipeline
    *others, outermost = pipeline.bytes_bytes_codecs
    return outermost, replace(pipeline, bytes_bytes_codecs=tuple(others))


def _bounded(codec: Any) -> _Unpack | None:
    """Return a function that decodes as ``codec`` does, up to a limit; None if there is none.

    Types must match exactly: a subclass may behave differently.
    """
    if type(codec) is wrapped.LZMA:
        codec = numcodecs.get_codec({"id": "lzma", **codec.codec_config})
    if type(codec) is numcodecs.LZMA:
        return _files(partial(lzma.LZMAFile, format=codec.format, filters=codec.filters))
    return _UNPACK.get(type(codec))


def _files(opened: Callable[[Any], Any]) -> _Unpack:
    """Return a function that decompresses by reading from the file object ``opened(file)``."""

    def unpack(data: Any, most: int) -> bytes:
        with opened(io.BytesIO(data)) as file:
            content: bytes = file.read(most + 1)
        return content

    return unpack


def _zlib(data: Any, most: int) -> bytes:
    decoder = zlib.decompressobj()
    content = decoder.decompress(data, most + 1)
    if len(content) <= most and not decoder.eof:
        raise ValueError("the compressed chunk is truncated")
    return content


_gzip = _files(lambda packed: gzip.GzipFile(fileobj=packed))
_bz2 = _files(bz2.BZ2File)
_UNPACK: dict[type, _Unpack] = {
    GzipCodec: _gzip,
    numcodecs.GZip: _gzip,
    wrapped.GZip: _gzip,
    numcodecs.Zlib: _zlib,
    wrapped.Zlib: _zlib,
    numcodecs.BZ2: _bz2,
    wrapped.BZ2: _bz2,
}
