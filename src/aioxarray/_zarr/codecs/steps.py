"""Decoding steps for single codecs as plain functions: compressors, checksums, the shuffle filter.

A step fills existing memory, or verifies and removes a checksum. Encoded data may be damaged, so no
step writes or allocates more than the expected number of decoded bytes.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs
import numcodecs.blosc
import numcodecs.lz4
import numcodecs.zstd
import numpy as np
from numcodecs.checksum32 import Checksum32
from numcodecs.fletcher32 import Fletcher32
from numcodecs.shuffle import Shuffle
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from aioxarray._zarr.compat import _v2
from aioxarray.errors import DamagedDataError

try:
    import zstandard
except ImportError:
    # Part of the extra "fast". For small chunks, numcodecs takes three times as long.
    _ZSTD_SMALL = -1
else:
    # numcodecs creates a context for each call, which costs more than decoding some KB. zstandard
    # reuses one, but cannot decode into existing memory, which costs more for larger chunks.
    _ZSTD_SMALL = 64 << 10

_inflating: Any = zlib
try:
    # Also part of the extra "fast": does the same as zlib in half the time.
    from isal import isal_zlib as _inflating
except ImportError:
    pass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.stores.limited import Check

    # Decodes data into the given memory, which it must fill exactly.
    Expand = Callable[[Any, NDArray[np.uint8]], None]
    # Decodes several chunks to the given size each, without the GIL; None if that is not possible.
    ExpandMany = Callable[[Sequence[Any], int], Sequence[Any] | None]
    # Verifies the checksum at the end of data, and returns the data without it.
    Strip = Callable[[Any], Any]


def wrong_size(found: int, expected: int) -> ValueError:
    """Return the error for a chunk whose decoded size is wrong."""
    return ValueError(f"the chunk decodes to {found} bytes instead of {expected}")


def copy(data: Any, dest: NDArray[np.uint8]) -> None:
    """Copy ``data``, which is not encoded, into ``dest``."""
    # For bytes, creating an array would cost as much as copying a small chunk.
    source = data if type(data) is bytes else np.frombuffer(data, np.uint8).data
    if len(source) != dest.size:
        raise wrong_size(len(source), dest.size)
    # For small chunks, assigning to a memoryview costs a quarter of numpy's assignment.
    dest.reshape(-1).data[:] = source


# The field for the content size in the header of a zstd frame, by the frame's descriptor byte:
# offset, length, and a number to add to the value.
def _zstd_size_field(descriptor: int) -> tuple[int, int, int] | None:
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    length = (single, 2, 4, 8)[flag]
    offset = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return (offset, length, 256 if flag == 1 else 0) if length else None


_ZSTD_SIZE_FIELDS = [_zstd_size_field(descriptor) for descriptor in range(256)]
# The length of the header, whose last field is the content size.
_ZSTD_HEADER_BYTES = [
    5 + (not descriptor >> 5 & 1) + (0, 1, 2, 4)[descriptor & 3] + (field[1] if field else 0)
    for descriptor, field in enumerate(_ZSTD_SIZE_FIELDS)
]


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def _zstd_size(data: Any) -> int | None:
    # If this is not a frame at all, leave the error message to the decoder.
    if bytes(data[:4]) != _ZSTD_MAGIC or len(data) < 6:
        return None
    if (field := _ZSTD_SIZE_FIELDS[data[4]]) is not None:
        offset, length, base = field
        size: int = int.from_bytes(data[offset : offset + length], "little") + base
        return size
    return None


def _zstd(data: Any, dest: NDArray[np.uint8]) -> None:
    if dest.size > _ZSTD_SMALL:
        numcodecs.zstd.decompress(data, dest)
        return
    try:
        content = _zstd_contexts.own.decompress(data, dest.size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        # As numcodecs, and so zarr, does.
        raise RuntimeError(str(error)) from None
    copy(content, dest)


def _zstd_many(frames: Sequence[Any], size: int) -> Sequence[Any] | None:
    if size > _ZSTD_SMALL or not all(map(_zstd_is_single, frames)):
        return None
    # Its type stubs lack some of the accepted types.
    context: Any = _zstd_contexts.own
    try:
        many: Sequence[Any] = context.multi_decompress_to_buffer(
            frames, np.full(len(frames), size, np.uint64).data
        )
    except zstandard.ZstdError:
        # The error only has the number of the damaged chunk; decoding one by one tells more.
        return None
    return many


def _zstd_is_single(data: memoryview | bytes) -> bool:
    """Return whether ``data``, judging by its headers, is a single frame with no data after it.

    zstandard's function for many frames does not check that.
    """
    end = len(data)
    if end < 9 or data[:4] != _ZSTD_MAGIC:
        return False
    descriptor = data[4]
    at = _ZSTD_HEADER_BYTES[descriptor]
    while at + 3 <= end:
        block = int.from_bytes(data[at : at + 3], "little")
        # A run-length block stores one byte, whatever its size field says.
        at += 3 + (1 if block & 6 == 2 else block >> 3)
        if block & 1:
            return at + (descriptor & 4) == end
    return False


class _ZstdContexts(threading.local):
    """A decompression context for each thread."""

    @functools.cached_property
    def own(self) -> zstandard.ZstdDecompressor:
        """The context, created on first use because zstandard is optional."""
        return zstandard.ZstdDecompressor()


_zstd_contexts = _ZstdContexts()


def _blosc_size(data: Any) -> int:
    # blosc's decoder trusts the sizes in the header.
    if len(data) < 16 or int.from_bytes(data[12:16], "little") > len(data):
        raise ValueError("the blosc chunk is truncated")
    return int.from_bytes(data[4:8], "little")


def _lz4_size(data: Any) -> int:
    return int.from_bytes(data[:4], "little")


def _of_size(size: Callable[[Any], int | None], decompress: Expand) -> Expand:
    """Return ``decompress`` with a check of the size in the data's header, if there is one.

    The decoders themselves accept a destination that is too large for the data.
    """

    def expand(data: Any, dest: NDArray[np.uint8]) -> None:
        found = size(data)
        if found is not None and found != dest.size:
            raise wrong_size(found, dest.size)
        decompress(data, dest)

    return expand


def _inflate(window_bits: int) -> Expand:
    def expand(data: Any, dest: NDArray[np.uint8]) -> None:
        flat = dest.reshape(-1)
        filled = 0
        rest = data
        # A gzip file may have several members.
        while True:
            decoder = _inflating.decompressobj(window_bits)
            try:
                # One byte more than fits is enough to detect data that is too long.
                part = decoder.decompress(rest, dest.size - filled + 1)
            except _inflating.error as error:
                # As zarr does.
                raise zlib.error(str(error)) from None
            if filled + len(part) > dest.size:
                raise ValueError(f"the chunk decodes to more than {dest.size} bytes")
            if not decoder.eof:
                raise ValueError("the compressed chunk is truncated")
            flat[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
            rest = decoder.unused_data
            if window_bits <= zlib.MAX_WBITS or not rest.strip(b"\0"):
                break
        if filled != dest.size:
            raise wrong_size(filled, dest.size)

    return expand


# Cached, so that `Prepared` objects for two reads of an array are equal.
@functools.cache
def _unshuffle(element_size: int) -> Expand:
    codec = Shuffle(element_size)

    def expand(data: Any, dest: NDArray[np.uint8]) -> None:
        source = np.frombuffer(data, np.uint8)
        if source.size != dest.size:
            raise wrong_size(source.size, dest.size)
        if element_size <= 1:
            dest.reshape(-1)[...] = source
        else:
            codec.decode(source, out=dest.reshape(-1))

    return expand


def _crc32c(data: Any) -> Any:
    if len(data) < 4:
        raise DamagedDataError("the chunk is too short for its checksum")
    content = data[:-4]
    stored = int.from_bytes(data[-4:], "little")
    computed = google_crc32c.value(np.frombuffer(content, np.uint8))
    if stored != computed:
        raise DamagedDataError(f"the checksum is {computed:#010x}, the stored one {stored:#010x}")
    return content


@dataclass(frozen=True)
class Step:
    """The decoding step of one codec: ``expand`` fills memory, or ``strip`` removes a checksum."""

    name: str
    expand: Expand | None = None
    strip: Strip | None = None
    # The number of bytes that encoding adds; None if it depends on the data.
    longer_by: int | None = None
    expand_many: ExpandMany | None = None


# Compressors with the decoded size in a header.
_SIZES: dict[str, Callable[[Any], int | None]] = {
    "zstd": _zstd_size,
    "blosc": _blosc_size,
    "lz4": _lz4_size,
}
_COMPRESSORS = {
    "zstd": Step(
        "zstd",
        _of_size(_zstd_size, _zstd),
        # Needs zstandard, from the extra "fast".
        expand_many=_zstd_many if _ZSTD_SMALL >= 0 else None,
    ),
    "blosc": Step("blosc", _of_size(_blosc_size, numcodecs.blosc.decompress)),
    "lz4": Step("lz4", _of_size(_lz4_size, numcodecs.lz4.decompress)),
    "gzip": Step("gzip", _inflate(zlib.MAX_WBITS | 16)),
    "zlib": Step("zlib", _inflate(zlib.MAX_WBITS)),
}
# By the classes of zarr and of numcodecs.
_NAMES: dict[type, str] = {
    ZstdCodec: "zstd",
    BloscCodec: "blosc",
    GzipCodec: "gzip",
    numcodecs.Zstd: "zstd",
    numcodecs.Blosc: "blosc",
    numcodecs.LZ4: "lz4",
    numcodecs.GZip: "gzip",
    numcodecs.Zlib: "zlib",
}


def announced(codec: Any, data: Any) -> int | None:
    """Return the decoded size that the header of ``data`` gives for ``codec``; None if unknown.

    Raises ValueError if ``data`` is truncated so that the codec would read beyond its end.
    """
    size = _SIZES.get(_NAMES.get(type(codec), ""))
    return None if size is None else size(data)


def _step(codec: Any) -> Step | None:
    """Return the decoding step of ``codec``, of zarr or numcodecs; None if there is none.

    Types must match exactly: a subclass may behave differently.
    """
    if (name := _NAMES.get(type(codec))) is not None:
        return _COMPRESSORS[name]
    if type(codec) is Crc32cCodec:
        return Step("crc32c", strip=_crc32c, longer_by=4)
    if type(codec) is Shuffle:
        return Step("shuffle", expand=_unshuffle(codec.elementsize), longer_by=0)
    return None


def check_of(pipeline: Any) -> Check | None:
    """Return the function that verifies the checksum of a chunk; None if it does not end with one.

    Parameters
    ----------
    pipeline
        The codec pipeline of the chunk.
    """
    serializer = pipeline.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        chain = [*(serializer.filters or ()), serializer.compressor]
        outermost = next((codec for codec in chain[::-1] if codec is not None), None)
        if isinstance(outermost, Checksum32 | Fletcher32):
            return functools.partial(_check_by_decoding, outermost)
        return None
    last = pipeline.bytes_bytes_codecs[-1:]
    return _crc32c if last and type(last[0]) is Crc32cCodec else None


def _check_by_decoding(codec: Any, data: Any) -> None:
    try:
        codec.decode(np.frombuffer(data, np.uint8))
    except (RuntimeError, ValueError) as error:
        raise DamagedDataError(str(error)) from error


def steps_of(codecs: Sequence[Any]) -> tuple[Step, ...] | None:
    """Return the decoding steps of ``codecs``, last codec first; None if one has none."""
    if without_step(codecs) is not None:
        return None
    found = [_step(codec) for codec in codecs]
    return tuple(step for step in found[::-1] if step is not None)


def without_step(codecs: Sequence[Any]) -> Any | None:
    """Return the first of ``codecs`` that has no decoding step; None if all have one."""
    # Codecs applied after a compressor are decoded first, when the compressed size is not known.
    known = True
    for codec in codecs:
        step = _step(codec)
        if step is None or (not known and step.expand is not None):
            return codec
        known = known and step.longer_by is not None
    return None
