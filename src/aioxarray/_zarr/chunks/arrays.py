"""Makes, of an array that is open, one that reads or writes under a budget; reads parts of it."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import StorePath

from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray._zarr.chunks.placing import Placer
from aioxarray._zarr.chunks.plan import ReadPlan, plan_read
from aioxarray._zarr.codecs.decoders import Prepared, prepare
from aioxarray._zarr.compat import (
    ArrayConfig,
    ArraySpec,
    ArrayV2Metadata,
    AsyncVIndex,
    _v2,
    default_buffer_prototype,
)
from aioxarray._zarr.points import Points
from aioxarray._zarr.selection import Block, byte_count
from aioxarray._zarr.stores.fork import usable_here
from aioxarray._zarr.stores.grants import Grants
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sources import source_of
from aioxarray.config import cache_limit

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import Codec
    from zarr.abc.store import Store

    from aioxarray._zarr.compat import BatchedCodecPipeline, Buffer, NDBuffer
    from aioxarray._zarr.selection import Chunk


def readable(
    array: zarr.Array[Any], grants: Grants, report: Callable[[int, int], None]
) -> zarr.Array[Any]:
    """Return an array with the data of ``array`` whose asynchronous reads keep to ``grants``.

    ``report`` is told, after each chunk, how many of how many of a selection are done. Nothing
    is requested and ``array`` stays as it is.
    """
    store = usable_here(array.store)
    return zarr.Array(with_pipeline(array, store, CodecPipeline, grants=grants, report=report))


def with_pipeline(
    array: zarr.Array[Any], store: Store, kind: type[BatchedCodecPipeline], **grants: Any
) -> Any:
    """Return an asynchronous array like ``array``, at its path in ``store``.

    Its pipeline is of the class ``kind``, with the codecs of ``array`` and the attributes
    ``grants``.
    """
    # Private: the asynchronous array inside; ``Array.async_array`` is public from zarr 3.2 on
    # (pydata/xarray#11259). Can go with support for zarr 3.1.
    inner = array._async_array
    ours = copy.copy(inner)
    pipeline = replace(kind.from_codecs(codecs_of(array)), **grants)
    # A frozen dataclass without a public way to replace these two.
    object.__setattr__(ours, "store_path", StorePath(store, inner.store_path.path))
    object.__setattr__(ours, "codec_pipeline", pipeline)
    return ours


# As zarr defines them. Where a derived class or a patch has put something else in their place, that
# is what reads: xarray's own tests count the calls so.
_GETITEM = zarr.AsyncArray.getitem
_VINDEX = zarr.AsyncArray.vindex
_VINDEX_GETITEM = AsyncVIndex.getitem
# Sorting less takes less time than a hop to a thread and back.
_FEW_POINTS = 1000


async def read_block(
    array: zarr.Array[Any],
    selection: Sequence[int | slice],
    grants: Grants,
    report: Callable[[int, int], None],
) -> NDArray[Any] | None:
    """Read a block of ``array`` without zarr's own indexing.

    That costs as much for each chunk as fetching and decoding a small one. ``grants`` and
    ``report`` are those of `readable`. Returns None, and requests nothing, where zarr's indexing
    is needed: the selection is no block of a regular grid, missing chunks are errors, or the array
    has a ``getitem`` that is not zarr's.
    """
    inner = array._async_array
    if type(inner).getitem is not _GETITEM:
        return None
    form = _form_of(inner)
    job = _block_job(inner, form, selection)
    return None if job is None else await _read_job(array, form, job, grants, report)


async def read_points(
    array: zarr.Array[Any],
    coordinates: Sequence[NDArray[Any]],
    grants: Grants,
    report: Callable[[int, int], None],
) -> NDArray[Any] | None:
    """Read single points of ``array`` without zarr's own indexing.

    That sorts the coordinates of every axis on the event loop. Returns None, and requests
    nothing, where `read_block` does, and for points outside of the array.
    """
    inner = array._async_array
    if type(inner).vindex is not _VINDEX or AsyncVIndex.getitem is not _VINDEX_GETITEM:
        return None
    form = _form_of(inner)
    chunk_shape = form.chunk_shape
    if chunk_shape is None or _missing_are_errors(inner):
        return None

    def find() -> Points | None:
        return Points.of(coordinates, inner.metadata.shape, chunk_shape)

    few = math.prod(np.broadcast_shapes(*(each.shape for each in coordinates))) <= _FEW_POINTS
    points = find() if few else await grants.decoders.run(find)
    if points is None:
        return None
    job = _job(inner, form, points, (math.prod(points.shape),), basic=False)
    return (await _read_job(array, form, job, grants, report)).reshape(points.shape)


def plan_block(array: zarr.Array[Any], selection: Sequence[int | slice]) -> ReadPlan | None:
    """Return the plan of reading a block of ``array``; None where zarr's own indexing reads it."""
    inner = array._async_array
    form = _form_of(inner)
    job = _block_job(inner, form, selection)
    if job is None:
        return None
    return plan_read(
        form.pipeline,
        usable_here(array.store),
        job.chunks,
        job.count,
        form.spec,
        job.placer,
        keeps=cache_limit() > 0,
    )


async def _read_job(
    array: zarr.Array[Any],
    form: _Form,
    job: _Job,
    grants: Grants,
    report: Callable[[int, int], None],
) -> NDArray[Any]:
    if job.count:
        pipeline = replace(form.pipeline, grants=grants, report=report)
        store = usable_here(array.store)
        await pipeline.read_chunks(store, job.chunks, job.count, form.spec, job.placer)
    return job.out.as_numpy_array()


def known_block(
    array: zarr.Array[Any], selection: Sequence[int | slice], values: Mapping[str, Buffer | None]
) -> NDArray[Any] | None:
    """Return a block of ``array`` of which all chunks are in ``values``, decoded right here.

    None where that is not so, or zarr's own code is needed.
    """
    inner = array._async_array
    job = _block_job(inner, _form_of(inner), selection)
    if job is None or job.placer.by_zarr:
        return None
    chunks = list(job.chunks)
    if any(chunk[0] not in values for chunk in chunks):
        return None
    for chunk in chunks:
        data = values[chunk[0]]
        with chunk_noted(chunk[0], array.store):
            job.placer.put(None if data is None else data.as_numpy_array(), chunk)
    return job.out.as_numpy_array()


# Of larger chunks decoding is more work than all that `read_small_block` spares.
_SMALL_BLOCK_BYTES = 64 << 10


def reads_by_plain_calls(array: zarr.Array[Any]) -> bool:
    """Say whether the store of ``array`` is at hand: in memory, or local files."""
    source = source_of(array.store)
    return source is not None and not source.remote


def read_small_block(
    array: zarr.Array[Any], selection: Sequence[int | slice]
) -> NDArray[Any] | None:
    """Read a block of few and small chunks of a store at hand, and decode it, right here.

    None, and nothing is read, where there are more bytes, or zarr's own code is needed.
    """
    inner = array._async_array
    form = _form_of(inner)
    job = _block_job(inner, form, selection)
    if job is None or job.placer.by_zarr:
        return None
    size = byte_count(form.spec.shape, job.out.dtype)
    if job.count * size > _SMALL_BLOCK_BYTES:
        return None
    source: Any = source_of(array.store)
    for chunk in job.chunks:
        with chunk_noted(chunk[0], array.store):
            job.placer.read(source, chunk)
    return job.out.as_numpy_array()


@dataclass(frozen=True)
class _Form:
    """What the chunks of an array are like, whatever is read of it.

    Attributes
    ----------
    pipeline
        Has the codecs.
    chunk_shape
        None where the chunks are no regular grid.
    spec
        What zarr tells codecs of each chunk.
    prepared
        What decodes by plain functions; None where zarr's own codecs do.
    """

    pipeline: CodecPipeline
    chunk_shape: tuple[int, ...] | None
    spec: ArraySpec
    prepared: Prepared | None


def _form_of(inner: Any) -> _Form:
    """Return the form of the chunks of an asynchronous array."""
    return _form(_Itself(inner.metadata), inner.config, default_buffer_prototype())


class _Itself:
    """An object as a key that is equal to no other object's: metadata have no hash."""

    __slots__ = ("object",)

    def __init__(self, object: Any) -> None:
        self.object = object

    def __hash__(self) -> int:
        return id(self.object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.object is other.object


# For many calls that read a little of the same arrays each. Arrays with thousands of variables
# are read one after the other: to keep them all would be of no use.
@functools.lru_cache(maxsize=256)
def _form(metadata: _Itself, config: Any, prototype: Any) -> _Form:
    of: Any = metadata.object
    chunk_shape = _chunk_shape(of)
    pipeline = CodecPipeline.from_codecs(_codecs(of))
    spec = _spec(of, config, prototype, of.shape if chunk_shape is None else chunk_shape)
    return _Form(pipeline, chunk_shape, spec, prepare(pipeline, spec))


@dataclass(frozen=True)
class _Job:
    """What reading a selection takes."""

    chunks: Iterator[Chunk]
    count: int
    placer: Placer
    out: NDBuffer


def _block_job(inner: Any, form: _Form, selection: Sequence[int | slice]) -> _Job | None:
    """Return what reading a block takes; None if zarr has to do it."""
    if form.chunk_shape is None or _missing_are_errors(inner):
        return None
    block = _block(inner, form.chunk_shape, selection)
    return None if block is None else _job(inner, form, block, block.shape, basic=True)


def _job(
    inner: Any, form: _Form, selected: Block | Points, shape: tuple[int, ...], *, basic: bool
) -> _Job:
    """Return what reading ``selected`` into an array of ``shape`` takes."""
    spec = form.spec
    out = spec.prototype.nd_buffer.empty(
        shape=shape, dtype=spec.dtype.to_native_dtype(), order=spec.config.order
    )
    placer = Placer(form.pipeline, form.prepared, out, (), basic)
    return _Job(selected.chunks(chunk_keys(inner), spec), selected.count, placer, out)


def _missing_are_errors(inner: Any) -> bool:
    # From zarr 3.2 on.
    return getattr(inner.config, "read_missing_chunks", True) is False


def regular_block(inner: Any, selection: Sequence[int | slice]) -> Block | None:
    """Return which chunks of an asynchronous array ``selection`` touches.

    None where its chunks are no regular grid, or ``selection`` goes backwards.
    """
    chunk_shape = _chunk_shape(inner.metadata)
    return None if chunk_shape is None else _block(inner, chunk_shape, selection)


def _block(
    inner: Any, chunk_shape: tuple[int, ...], selection: Sequence[int | slice]
) -> Block | None:
    if any(isinstance(each, slice) and (each.step or 1) < 1 for each in selection):
        return None
    return Block(selection, inner.metadata.shape, chunk_shape)


def _chunk_shape(metadata: Any) -> tuple[int, ...] | None:
    """Return the shape of the chunks of an array; None for no regular grid."""
    if isinstance(metadata, ArrayV2Metadata):
        return metadata.chunks
    # A class of its own name in each line of zarr, and others for other grids. Its chunks are
    # the shards, if there are any.
    grid = metadata.chunk_grid
    if type(grid).__name__ not in ("RegularChunkGrid", "RegularChunkGridMetadata"):
        return None
    return tuple(grid.chunk_shape)


def chunk_spec(inner: Any, block: Block) -> ArraySpec:
    """Return what zarr tells codecs of each chunk of ``block``, of an asynchronous array."""
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
    """Return what makes the key in the store of the place of a chunk of an asynchronous array."""
    path = inner.store_path.path
    prefix = f"{path}/" if path else ""
    encode = inner.metadata.encode_chunk_key
    return lambda at: prefix + encode(at)


def codecs_of(array: zarr.Array[Any]) -> tuple[Codec, ...]:
    """Return the codecs of ``array``, each knowing the type of what it works on."""
    return _codecs(array.metadata)


def _codecs(metadata: Any) -> tuple[Codec, ...]:
    codecs: tuple[Codec, ...]
    if isinstance(metadata, ArrayV2Metadata):
        codecs = (_v2.V2Codec(filters=metadata.filters, compressor=metadata.compressor),)
        config = ArrayConfig.from_dict({"order": metadata.order})
    else:
        codecs = tuple(metadata.codecs)
        config = ArrayConfig.from_dict({})
    # The codecs want to know the type; shapes they are told with each chunk.
    spec = ArraySpec(
        shape=(1,) * len(metadata.shape),
        dtype=metadata.dtype,
        fill_value=metadata.fill_value,
        config=config,
        prototype=default_buffer_prototype(),
    )
    return tuple(codec.evolve_from_array_spec(spec) for codec in codecs)
