"""Decoding of chunks with plain functions, directly into existing memory.

zarr's codecs are coroutines that allocate a buffer for each step; for small chunks that costs ten
times as much as decoding. Common arrays do not need it: those of a fixed-size dtype whose codecs
`aioxarray._zarr.codecs.steps` supports. `prepare` returns a factory of `Decoder` objects for such
arrays, and None for all others, which zarr's own code decodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.codecs import BytesCodec, ShardingCodec, TransposeCodec

from aioxarray._runtime.threads.scratch import scratch
from aioxarray._zarr.codecs.steps import Step, copy, steps_of, without_step
from aioxarray._zarr.compat import _v2

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import CodecPipeline

    from aioxarray._zarr.compat import ArraySpec


class Decoder:
    """A decoder for chunks of one shape.

    Parameters
    ----------
    steps
        The decoding step of each codec, in the order of decoding.
    dtype
        The dtype of the stored elements, with their byte order.
    shape
        The shape of a chunk.
    order
        The axes of a chunk in the order in which they are stored.

    Attributes
    ----------
    size
        The size in bytes of a decoded chunk.
    """

    def __init__(
        self,
        steps: Sequence[Step],
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
        # The number of bytes that each step has to return; -1 if that is not known.
        sizes, size = [], self.size
        for step in reversed(steps):
            sizes.append(size)
            size = -1 if step.longer_by is None or size < 0 else size + step.longer_by
        self._sizes = sizes[::-1]
        # The usual case: a single step, which fills the result.
        self._only = steps[0].expand if len(steps) == 1 else None
        self._many = steps[0].expand_many if len(steps) == 1 else None

    @property
    def copies(self) -> bool:
        """Whether chunks are stored without encoding, so that decoding only copies."""
        return not self._steps

    def many(self, encoded: Sequence[Any]) -> Sequence[Any] | None:
        """Return the bytes of several chunks, decoded by one call that releases the GIL.

        None if they must be decoded one by one: the codec does not support it, or one is damaged.
        """
        return None if self._many is None else self._many(encoded, self.size)

    def fill(self, data: Any, dest: NDArray[np.uint8]) -> None:
        """Decode ``data`` into ``dest``, which is contiguous and has ``size`` bytes.

        Raises an error of the codec, or ValueError if the chunk has another size.
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
            copy(data, dest)

    def array(self, data: Any, into: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Decode ``data`` into the memory ``into``, and return it as a chunk.

        By default, decode into scratch memory of this thread, valid until the next call.
        """
        flat = scratch("decoded", self.size) if into is None else into
        self.fill(data, flat)
        return self.shaped(flat)

    def shaped(self, flat: NDArray[np.uint8]) -> NDArray[Any]:
        """Return ``flat``, the decoded bytes, as a chunk: an array of dtype and shape."""
        stored: NDArray[Any] = flat.view(self.dtype).reshape(self._stored_shape)
        return stored if self.as_stored else stored.transpose(self._inverse)


@dataclass(frozen=True)
class Prepared:
    """How to decode the chunks of an array without zarr's codecs.

    Attributes
    ----------
    name
        The names of the codecs, as in "bytes, zstd, crc32c".
    """

    name: str
    steps: tuple[Step, ...]
    dtype: np.dtype[Any]
    transposed: tuple[tuple[int, ...], ...] = ()
    fortran: bool = False
    # By chunk shape. Threads that make the same one at once do no harm.
    _decoders: dict[tuple[int, ...], Decoder] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def longer_by(self) -> int | None:
        """The number of bytes that encoding adds to a chunk; None if that varies."""
        each = [step.longer_by for step in self.steps]
        return None if None in each else sum(extra or 0 for extra in each)

    @property
    def decodes_many(self) -> bool:
        """Whether one call can decode many chunks."""
        return len(self.steps) == 1 and self.steps[0].expand_many is not None

    def decoder(self, shape: tuple[int, ...]) -> Decoder:
        """Return the decoder for chunks of ``shape``."""
        decoder = self._decoders.get(shape)
        if decoder is None:
            order = self.order(len(shape))
            assert order is not None
            decoder = self._decoders[shape] = Decoder(self.steps, self.dtype, shape, order)
        return decoder

    def order(self, ndim: int) -> tuple[int, ...] | None:
        """Return ``ndim`` axes in the order in which they are stored.

        None if a transposition has another number of axes, as when a caller has dropped some.
        """
        order = tuple(range(ndim))
        for each in self.transposed:
            if len(each) != ndim:
                return None
            order = tuple(order[axis] for axis in each)
        return order[::-1] if self.fortran else order


def prepare(pipeline: CodecPipeline, spec: ArraySpec) -> Prepared | None:
    """Return how to decode the chunks of an array with plain functions; None if impossible."""
    if obstacle(pipeline, spec) is not None:
        return None
    codecs: Any = pipeline
    dtype = spec.dtype.to_native_dtype()
    serializer = codecs.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        steps = steps_of(_chain(pipeline)[0])
        assert steps is not None
        name = ", ".join(step.name for step in steps[::-1]) or "none"
        return Prepared(f"v2: {name}", steps, dtype, fortran=spec.order == "F")
    transposes = codecs.array_array_codecs
    steps = steps_of(codecs.bytes_bytes_codecs)
    assert steps is not None
    # An enumeration before zarr 3.2, a string since then.
    endian: Any = getattr(serializer.endian, "value", serializer.endian)
    names = ["transpose"] * len(transposes) + ["bytes"] + [step.name for step in steps[::-1]]
    return Prepared(
        ", ".join(names),
        steps,
        dtype if endian is None else dtype.newbyteorder(endian),
        tuple(codec.order for codec in transposes),
    )


def obstacle(pipeline: CodecPipeline, spec: ArraySpec) -> str | None:
    """Return what keeps plain functions from decoding the chunks of an array; None for nothing.

    It is the name of a codec, or a dtype.
    """
    codecs: Any = pipeline
    dtype = spec.dtype.to_native_dtype()
    # The elements of object arrays and of numpy's variable-width strings are not plain bytes.
    if dtype.hasobject or dtype.kind == "T" or dtype.itemsize == 0:
        return f"dtype {dtype}"
    serializer = codecs.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        return _name(without_step(_chain(pipeline)[0]))
    if type(serializer) is not BytesCodec:
        return _name(serializer)
    # The fields of structured dtypes have their own byte orders, and zarr releases differ there.
    if dtype.fields is not None:
        return f"dtype {dtype}"
    filters = (codec for codec in codecs.array_array_codecs if type(codec) is not TransposeCodec)
    return _name(next(filters, None) or without_step(codecs.bytes_bytes_codecs))


def _name(codec: Any | None) -> str | None:
    return None if codec is None else type(codec).__name__


def decoding(pipeline: CodecPipeline, prepared: Prepared | None, spec: ArraySpec) -> Hashable:
    """Return a key that two pipelines share if they decode the same bytes to the same values.

    ``prepared`` is the result of `prepare` for the pipeline.
    """
    if prepared is not None:
        return prepared
    chain, is_v2 = _chain(pipeline)
    settings = [codec.get_config() if is_v2 else codec.to_dict() for codec in chain]
    # As text, because codecs need not be hashable. These are their settings in the metadata.
    text = json.dumps(settings, sort_keys=True, default=repr)
    return tuple(map(type, chain)), text, repr((spec.dtype, spec.fill_value, spec.order))


def describe(pipeline: CodecPipeline) -> str:
    """Describe, for the user, the codecs of a pipeline, and whether plain functions decode them."""
    codecs: Any = pipeline
    chain, is_v2 = _chain(pipeline)
    plain = steps_of(chain if is_v2 else codecs.bytes_bytes_codecs) is not None
    if not is_v2:
        plain = (
            plain
            and type(codecs.array_bytes_codec) in (BytesCodec, ShardingCodec)
            and all(type(codec) is TransposeCodec for codec in codecs.array_array_codecs)
        )
    names = ", ".join(type(codec).__name__ for codec in chain) or "no codecs"
    how = "plain functions, where the type allows" if plain else "zarr's own codecs"
    return f"{names}; decoded by {how}"


def _chain(pipeline: Any) -> tuple[tuple[Any, ...], bool]:
    """Return the codecs of a pipeline, and whether they are numcodecs' own, of format 2."""
    serializer = pipeline.array_bytes_codec
    if type(serializer) is _v2.V2Codec:
        return (*(serializer.filters or ()), *filter(None, [serializer.compressor])), True
    return tuple(pipeline), False
