"""Decodes chunks by zarr's own codecs, and refuses bombs before there is more than may be.

zarr's codecs unpack a chunk as a whole, whatever comes of it, and only then is it compared with
what the array says. What is packed outermost is looked at here before, or unpacked here up to a
limit.
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

# Filters may make more of a chunk: from integers of one byte such of eight, say.
_MOST_BY_FILTERS = 16
_SLACK = 64 << 10

# Unpacks bytes, but no more than so many and one.
_Unpack = Callable[[Any, int], bytes]


class ByZarr:
    """Decodes the chunks of an array.

    Parameters
    ----------
    pipeline
        zarr's pipeline of the array, with zarr's own codecs.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._outermost, rest = _split(pipeline)
        self._unpack = _bounded(self._outermost)
        self._rest = rest

    def decode(self, data: Any, spec: ArraySpec) -> NDBuffer:
        """Return the chunk that ``data`` decodes to, in a thread that is there to decode.

        Raises ValueError for one that is cut off, has another shape, or unpacks to far more
        bytes than it may have. Of texts and objects no array says how long they are.
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
    """Return the codec that is undone first, None if there is none, and a pipeline without it."""
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
    """Return what does as ``codec`` does, but no more than it is told; None if nothing does.

    By exact type: a class derived from one of these may do something else.
    """
    if type(codec) is wrapped.LZMA:
        codec = numcodecs.get_codec({"id": "lzma", **codec.codec_config})
    if type(codec) is numcodecs.LZMA:
        return _files(partial(lzma.LZMAFile, format=codec.format, filters=codec.filters))
    return _UNPACK.get(type(codec))


def _files(opened: Callable[[Any], Any]) -> _Unpack:
    """Return what unpacks as reading a file that is ``opened`` does."""

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
