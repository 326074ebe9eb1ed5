"""The form of an array's chunks: their shape, keys and codecs, found from its metadata."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray._zarr.codecs.decoders import Prepared, prepare
from aioxarray._zarr.compat import (
    ArrayConfig,
    ArraySpec,
    ArrayV2Metadata,
    ArrayV3Metadata,
    _v2,
    default_buffer_prototype,
)

if TYPE_CHECKING:
    import zarr
    from zarr.abc.codec import Codec

    from aioxarray._zarr.selection import Block


@dataclass(frozen=True)
class Form:
    """The properties of an array's chunks, which do not depend on the selection.

    Attributes
    ----------
    pipeline
        The pipeline with the codecs.
    chunk_shape
        The shape of a chunk; None if the chunks do not form a regular grid.
    spec
        The specification of a chunk that zarr passes to codecs.
    prepared
        Makes decoders of plain functions; None if zarr's own codecs decode.
    """

    pipeline: CodecPipeline
    chunk_shape: tuple[int, ...] | None
    spec: ArraySpec
    prepared: Prepared | None


def form_of(inner: Any) -> Form:
    """Return the form of the chunks of an asynchronous array."""
    return _form(_Alike(inner.metadata), inner.config, default_buffer_prototype())


class _Alike:
    """A dictionary key that compares metadata, which have no hash, by what a form depends on.

    By identity: arrays of one open that differ only in their attributes have these objects in
    common, see `aioxarray._zarr.metadata.groups`.
    """

    __slots__ = ("metadata", "objects", "shape")

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.shape = metadata.shape
        of: tuple[Any, ...] = (metadata,)
        if isinstance(metadata, ArrayV3Metadata):
            of = (metadata.codecs, metadata.chunk_grid, metadata.data_type, metadata.fill_value)
        self.objects = of

    def __hash__(self) -> int:
        return hash((id(self.objects[0]), self.shape))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Alike)
            and self.shape == other.shape
            and len(self.objects) == len(other.objects)
            and all(map(operator.is_, self.objects, other.objects))
        )


# Helps many calls that each read a little of the same arrays. A load of thousands of arrays reads
# each of them once, so that keeping all of them would not help.
@functools.lru_cache(maxsize=256)
def _form(alike: _Alike, config: Any, prototype: Any) -> Form:
    of: Any = alike.metadata
    chunk_shape = chunk_shape_of(of)
    pipeline = CodecPipeline.from_codecs(_codecs(of))
    spec = _spec(of, config, prototype, of.shape if chunk_shape is None else chunk_shape)
    return Form(pipeline, chunk_shape, spec, prepare(pipeline, spec))


def chunk_shape_of(metadata: Any) -> tuple[int, ...] | None:
    """Return the shape of the chunks of an array; None if they do not form a regular grid."""
    if isinstance(metadata, ArrayV2Metadata):
        return metadata.chunks
    # The class has another name in each line of zarr, and other grids have other classes. For
    # sharded arrays, this is the shape of a shard.
    grid = metadata.chunk_grid
    if type(grid).__name__ not in ("RegularChunkGrid", "RegularChunkGridMetadata"):
        return None
    return tuple(grid.chunk_shape)


def chunk_spec(inner: Any, block: Block) -> ArraySpec:
    """Return the specification of each chunk of ``block``, in an asynchronous array, for codecs."""
    prototype = default_buffer_prototype()
    return _spec(inner.metadata, inner.config, prototype, block.chunk_shape)


def _spec(metadata: Any, config: Any, prototype: Any, shape: tuple[int, ...]) -> ArraySpec:
    if isinstance(metadata, ArrayV2Metadata):
        config = replace(config, order=metadata.order)
    return ArraySpec(
        shape=shape,
        dtype=metadata.dtype,
        fill_value=metadata.fill_value,
        config=config,
        prototype=prototype,
    )


def chunk_keys(inner: Any) -> Callable[[tuple[int, ...]], str]:
    """Return a function that maps the grid coordinates of a chunk to its key in the store."""
    path = inner.store_path.path
    prefix = f"{path}/" if path else ""
    encode = inner.metadata.encode_chunk_key
    return lambda at: prefix + encode(at)


def codecs_of(array: zarr.Array[Any]) -> tuple[Codec, ...]:
    """Return the codecs of ``array``, adapted to its data type as zarr does it."""
    return _codecs(array.metadata)


def _codecs(metadata: Any) -> tuple[Codec, ...]:
    codecs: tuple[Codec, ...]
    if isinstance(metadata, ArrayV2Metadata):
        codecs = (_v2.V2Codec(filters=metadata.filters, compressor=metadata.compressor),)
        config = ArrayConfig.from_dict({"order": metadata.order})
    else:
        codecs = tuple(metadata.codecs)
        config = ArrayConfig.from_dict({})
    # The codecs need only the data type: they get the shape with each chunk.
    spec = ArraySpec(
        shape=(1,) * len(metadata.shape),
        dtype=metadata.dtype,
        fill_value=metadata.fill_value,
        config=config,
        prototype=default_buffer_prototype(),
    )
    return tuple(codec.evolve_from_array_spec(spec) for codec in codecs)
