"""Decodes chunks by plain functions, straight into memory that is there already.

zarr's codecs are coroutines and make a buffer for each step; for small chunks that costs ten
times the decoding itself. What is common needs none of it: compressors and checksums of which
numcodecs has plain functions, and numbers whose bytes lie in the chunk as they will lie in the
result. `prepare` makes a `Decoder` for such arrays, and returns None for all others: zarr's own
code decodes those.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs
import numcodecs.blosc
import numcodecs.lz4
import numcodecs.zstd
import numpy as np
from numcodecs.shuffle import Shuffle

# Private: ``_v2`` has how zarr decodes format 2, and says with public attributes by which codecs
# of numcodecs. Can go when zarr itself decodes by plain functions into memory it is given
# (zarr-developers/zarr-python#3885).
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
    _v2,
)

try:
    import zstandard
except ImportError:
    # The extra "fast": numcodecs does the same, in three times the time for small chunks.
    _ZSTD_SMALL = -1
else:
    # numcodecs makes a context for each call, which costs more than decoding some KB. zstandard
    # uses one again, but cannot decode into memory that is there: for larger chunks that is dearer.
    _ZSTD_SMALL = 64 << 10

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import CodecPipeline
    from zarr.core.array_spec import ArraySpec

    Bytes = memoryview | bytes | NDArray[np.uint8]
    # Decodes bytes into ``dest``, which they must fill exactly.
    Expand = Callable[[Any, NDArray[np.uint8]], None]
    # Checks a checksum at the end of bytes and returns the bytes without it.
    Strip = Callable[[Any], Any]


def wrong_size(found: int, expected: int) -> ValueError:
    """Return the error for a chunk that is not as long as its array says."""
    return ValueError(f"the chunk decodes to {found} bytes instead of {expected}")


def _copy(data: Any, dest: NDArray[np.uint8]) -> None:
    source = np.frombuffer(data, np.uint8)
    if source.size != dest.size:
        raise wrong_size(source.size, dest.size)
    # A buffer's own copy is a quarter of the cost of numpy's assignment, for small ones.
    dest.reshape(-1).data[:] = source.data


# Where the size of the content is in the header of a zstd frame, by the frame's descriptor byte:
# offset, bytes, what is added.
def _zstd_size_field(descriptor: int) -> tuple[int, int, int] | None:
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    length = (single, 2, 4, 8)[flag]
    offset = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return (offset, length, 256 if flag == 1 else 0) if length else None


_ZSTD_SIZE_FIELDS = [_zstd_size_field(descriptor) for descriptor in range(256)]


def _zstd(data: Any, dest: NDArray[np.uint8]) -> None:
    # numcodecs takes a destination that is too large for what is in a frame that says its size.
    if len(data) > 5 and (field := _ZSTD_SIZE_FIELDS[data[4]]) is not None:
        offset, length, base = field
        size = int.from_bytes(data[offset : offset + length], "little") + base
        if size != dest.size:
            raise wrong_size(size, dest.size)
    if dest.size > _ZSTD_SMALL:
        numcodecs.zstd.decompress(data, dest)
        return
    try:
        content = _zstd_contexts.own.decompress(data, dest.size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        # What numcodecs, and so zarr, raises.
        raise RuntimeError(str(error)) from None
    _copy(content, dest)


class _ZstdContexts(threading.local):
    """A context for each thread."""

    @functools.cached_property
    def own(self) -> zstandard.ZstdDecompressor:
        """Made on first use: without the extra "fast" there is none."""
        return zstandard.ZstdDecompressor()


_zstd_contexts = _ZstdContexts()


def _blosc(data: Any, dest: NDArray[np.uint8]) -> None:
    # Its decoder trusts the sizes in the header.
    if len(data) < 16 or int.from_bytes(data[12:16], "little") > len(data):
        raise ValueError("the blosc chunk is truncated")
    size = int.from_bytes(data[4:8], "little")
    if size != dest.size:
        raise wrong_size(size, dest.size)
    numcodecs.blosc.decompress(data, dest)


def _lz4(data: Any, dest: NDArray[np.uint8]) -> None:
    size = int.from_bytes(data[:4], "little")
    if size != dest.size:
        raise wrong_size(size, dest.size)
    numcodecs.lz4.decompress(data, dest)


def _inflate(window_bits: int) -> Expand:
    def expand(data: Any, dest: NDArray[np.uint8]) -> None:
        flat = dest.reshape(-1)
        filled = 0
        rest = data
        # A gzip file may have several members.
        while True:
            decoder = zlib.decompressobj(window_bits)
            # One byte more than fits shows that there is more, without making more of it.
            part = decoder.decompress(rest, dest.size - filled + 1)
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


# One for each size, so that what is `Prepared` for two reads of an array is equal.
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
        raise ValueError("the chunk is too short for its checksum")
    content = data[:-4]
    stored = int.from_bytes(data[-4:], "little")
    computed = google_crc32c.value(np.frombuffer(content, np.uint8))
    if stored != computed:
        raise ValueError(f"the checksum is {computed:#010x}, the stored one {stored:#010x}")
    return content


@dataclass(frozen=True)
class _Step:
    """Undoes one codec. ``expand`` fills memory, ``strip`` gives a part of what it was given."""

    name: str
    expand: Expand | None = None
    strip: Strip | None = None
    # By how much the encoded bytes are longer; None if only they themselves know.
    longer_by: int | None = None


_SHRINKING: dict[str, Expand] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "gzip": _inflate(zlib.MAX_WBITS | 16),
    "zlib": _inflate(zlib.MAX_WBITS),
}
_OF_ZARR: dict[type, str] = {ZstdCodec: "zstd", BloscCodec: "blosc", GzipCodec: "gzip"}
_OF_NUMCODECS: dict[type, str] = {
    numcodecs.Zstd: "zstd",
    numcodecs.Blosc: "blosc",
    numcodecs.LZ4: "lz4",
    numcodecs.GZip: "gzip",
    numcodecs.Zlib: "zlib",
}


def _step(codec: Any) -> _Step | None:
    """Return what undoes ``codec``, of zarr or numcodecs, or None if no plain function does.

    By exact type: a class derived from one of these may do something else.
    """
    if (name := _OF_ZARR.get(type(codec)) or _OF_NUMCODECS.get(type(codec))) is not None:
        return _Step(name, expand=_SHRINKING[name])
    if type(codec) is Crc32cCodec:
        return _Step("crc32c", strip=_crc32c, longer_by=4)
    if type(codec) is Shuffle:
        return _Step("shuffle", expand=_unshuffle(codec.elementsize), longer_by=0)
    return None


class _Scratch(threading.local):
    """Memory of a thread's own for what has to be somewhere for a moment.

    Fresh memory for each chunk would cost more than decoding into it: the kernel clears it.
    """

    # More than this is not kept.
    KEPT = 8 << 20

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, purpose: str, size: int) -> NDArray[np.uint8]:
        kept = self._kept.get(purpose)
        if kept is None or kept.size < size:
            kept = np.empty(size, np.uint8)
            if size <= self.KEPT:
                self._kept[purpose] = kept
        return kept[:size]


scratch = _Scratch()


class Decoder:
    """Decodes the chunks of one shape.

    Parameters
    ----------
    steps
        What undoes the codecs, in the order of decoding.
    dtype
        Of the numbers as they are stored, byte order included.
    shape
        Of the chunk.
    order
        The axes of the chunk as they are stored.

    Attributes
    ----------
    size
        Bytes of the decoded chunk.
    """

    def __init__(
        self,
        steps: Sequence[_Step],
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        order: tuple[int, ...],
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.order = order
        self.size = math.prod(shape) * dtype.itemsize
        self.as_stored = order == tuple(range(len(shape)))
        self._inverse = tuple(int(axis) for axis in np.argsort(order))
        self._stored_shape = tuple(shape[axis] for axis in order)
        self._steps = steps
        # How many bytes each step has to give.
        sizes, size = [], self.size
        for step in reversed(steps):
            sizes.append(size)
            size = -1 if step.longer_by is None or size < 0 else size + step.longer_by
        self._sizes = sizes[::-1]
        # The usual: one step, which fills the result.
        self._only = steps[0].expand if len(steps) == 1 else None

    @property
    def copies(self) -> bool:
        """Whether the stored bytes are the chunk's own."""
        return not self._steps

    def fill(self, data: Any, dest: NDArray[np.uint8]) -> None:
        """Decode ``data`` into ``dest``: contiguous, of ``size`` bytes.

        Raises an error of the codec, or ValueError where the chunk has another size.
        """
        if self._only is not None:
            self._only(data, dest)
            return
        last = len(self._steps) - 1
        for index, (step, size) in enumerate(zip(self._steps, self._sizes, strict=True)):
            if step.strip is not None:
                data = step.strip(data)
            else:
                assert step.expand is not None
                into = dest if index == last else scratch("between" + "+" * (index % 2), size)
                step.expand(data, into)
                data = into
        if data is not dest:
            _copy(data, dest)

    def array(self, data: Any, into: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Decode ``data`` into the memory ``into``.

        Without it into memory of this thread, to be used before the next call.
        """
        flat = scratch("decoded", self.size) if into is None else into
        self.fill(data, flat)
        stored: NDArray[Any] = flat.view(self.dtype).reshape(self._stored_shape)
        return stored if self.as_stored else stored.transpose(self._inverse)


@dataclass(frozen=True)
class Prepared:
    """What decodes the chunks of an array without zarr's codecs.

    Attributes
    ----------
    name
        Of the codecs, as in "bytes, zstd, crc32c".
    """

    name: str
    steps: tuple[_Step, ...]
    dtype: np.dtype[Any]
    transposed: tuple[tuple[int, ...], ...] = ()
    fortran: bool = False

    @property
    def longer_by(self) -> int | None:
        """By how many bytes encoded chunks are longer; None if that varies."""
        each = [step.longer_by for step in self.steps]
        return None if None in each else sum(extra or 0 for extra in each)

    def decoder(self, shape: tuple[int, ...]) -> Decoder:
        """Return what decodes chunks of ``shape``."""
        order = self.order(len(shape))
        assert order is not None
        return Decoder(self.steps, self.dtype, shape, order)

    def order(self, ndim: int) -> tuple[int, ...] | None:
        """Return the axes of ``ndim`` in the order in which they are stored.

        None for less axes than chunks have, where some were left out.
        """
        order = tuple(range(ndim))
        for each in self.transposed:
            if len(each) != ndim:
                return None
            order = tuple(order[axis] for axis in each)
        return order[::-1] if self.fortran else order


def prepare(pipeline: CodecPipeline, spec: ArraySpec) -> Prepared | None:
    """Return what decodes the chunks of an array by plain functions, or None."""
    codecs: Any = pipeline
    dtype = spec.dtype.to_native_dtype()
    # Objects and numpy's variable strings are no bytes to be copied.
    if dtype.hasobject or dtype.kind == "T" or dtype.itemsize == 0:
        return None
    serializer = codecs.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        return _prepare_v2(serializer, dtype, spec.order)
    # The fields of structured types have byte orders of their own: zarr's lines differ there.
    if type(serializer) is not BytesCodec or dtype.fields is not None:
        return None
    transposes = codecs.array_array_codecs
    if any(type(codec) is not TransposeCodec for codec in transposes):
        return None
    steps = _steps(codecs.bytes_bytes_codecs)
    if steps is None:
        return None
    # An enumeration before zarr 3.2, a string since.
    endian: Any = getattr(serializer.endian, "value", serializer.endian)
    names = ["transpose"] * len(transposes) + ["bytes"] + [step.name for step in steps[::-1]]
    return Prepared(
        ", ".join(names),
        steps,
        dtype if endian is None else dtype.newbyteorder(endian),
        tuple(codec.order for codec in transposes),
    )


def decoding(pipeline: CodecPipeline, prepared: Prepared | None, spec: ArraySpec) -> Hashable:
    """Return what two pipelines have in common that make the same of the same bytes.

    ``prepared`` is what `prepare` makes of them.
    """
    if prepared is not None:
        return prepared
    codecs: Any = pipeline
    serializer = codecs.array_bytes_codec
    chain: tuple[Any, ...]
    if type(serializer) is _v2.V2Codec:
        chain = (*(serializer.filters or ()), *filter(None, [serializer.compressor]))
        settings = [codec.get_config() for codec in chain]
    else:
        chain = tuple(codecs)
        settings = [codec.to_dict() for codec in chain]
    # As text: codecs need not be hashable. This is what the array's metadata say of them.
    text = json.dumps(settings, sort_keys=True, default=repr)
    return tuple(map(type, chain)), text, repr((spec.dtype, spec.fill_value, spec.order))


def describe(pipeline: CodecPipeline) -> str:
    """Say which codecs a pipeline has, and what decodes them."""
    codecs: Any = pipeline
    serializer = codecs.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        chain = (*(serializer.filters or ()), *filter(None, [serializer.compressor]))
        plain = _steps(chain) is not None
    else:
        chain = tuple(codecs)
        plain = (
            type(serializer) in (BytesCodec, ShardingCodec)
            and all(type(codec) is TransposeCodec for codec in codecs.array_array_codecs)
            and _steps(codecs.bytes_bytes_codecs) is not None
        )
    names = ", ".join(type(codec).__name__ for codec in chain) or "no codecs"
    how = "plain functions, where the type allows" if plain else "zarr's own codecs"
    return f"{names}; decoded by {how}"


def _prepare_v2(codec: Any, dtype: np.dtype[Any], order: str) -> Prepared | None:
    filters = tuple(codec.filters or ())
    compressors = () if codec.compressor is None else (codec.compressor,)
    steps = _steps((*filters, *compressors))
    if steps is None:
        return None
    name = ", ".join(step.name for step in steps[::-1]) or "none"
    return Prepared(f"v2: {name}", steps, dtype, fortran=order == "F")


def _steps(codecs: Sequence[Any]) -> tuple[_Step, ...] | None:
    """Return what undoes ``codecs``, last one first; None where zarr's own code has to."""
    steps = [_step(codec) for codec in codecs]
    if None in steps:
        return None
    # What comes after a compressor must not need to know how long the compressed bytes are.
    known = True
    for step in steps:
        assert step is not None
        if not known and step.expand is not None:
            return None
        known = known and step.longer_by is not None
    return tuple(step for step in steps[::-1] if step is not None)
