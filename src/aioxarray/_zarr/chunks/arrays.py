"""Reading selections of Zarr arrays, and arrays whose own reads and writes keep to a budget."""

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

from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray._zarr.chunks.plan import ReadPlan, plan_read
from aioxarray._zarr.chunks.result import Result, read_chunk
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
from aioxarray._zarr.stores.fork import usable_after_fork
from aioxarray._zarr.stores.grants import Grants
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sources import source_of
from aioxarray.config import cache_limit
from aioxarray.errors import DamagedDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import Codec
    from zarr.abc.store import Store

    from aioxarray._zarr.compat import BatchedCodecPipeline, Buffer
    from aioxarray._zarr.selection import Chunk


def readable(
    array: zarr.Array[Any], grants: Grants, report: Callable[[int, int], None]
) -> zarr.Array[Any]:
    """Return an array with the data of ``array`` whose asynchronous reads keep to ``grants``.

    ``report`` is called with the number of chunks of a selection that are done, and their total.
    Makes no request, and does not change ``array``.
    """
    store = usable_after_fork(array.store)
    return zarr.Array(with_pipeline(array, store, CodecPipeline, grants=grants, report=report))


def with_pipeline(
    array: zarr.Array[Any], store: Store, kind: type[BatchedCodecPipeline], **grants: Any
) -> Any:
    """Return an asynchronous array like ``array``, at the same path in ``store``.

    Its codec pipeline is a ``kind`` with the codecs of ``array``; ``grants`` are further
    attributes of the pipeline.
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


# As zarr defines them. If a subclass or a patch has replaced one, the replacement has to read:
# xarray's own tests count calls in this way.
_GETITEM = zarr.AsyncArray.getitem
_VINDEX = zarr.AsyncArray.vindex
_VINDEX_GETITEM = AsyncVIndex.getitem


async def read_block(
    array: zarr.Array[Any],
    selection: Sequence[int | slice],
    grants: Grants,
    report: Callable[[int, int], None],
) -> NDArray[Any] | None:
    """Read a block of ``array`` without zarr's own indexing.

    zarr's indexing costs as much per chunk as fetching and decoding a small one. ``grants`` and
    ``report`` are as in `readable`. Returns None, and requests nothing, if zarr's indexing is
    needed: the selection is not a block of a regular grid, missing chunks are errors, or
    ``getitem`` of the array is not zarr's.
    """
    inner = array._async_array
    if type(inner).getitem is not _GETITEM:
        return None
    form = _form_of(inner)
    selected = _select_block(inner, form, selection)
    return None if selected is None else await _read_selected(array, form, selected, grants, report)


async def read_points(
    array: zarr.Array[Any],
    coordinates: Sequence[NDArray[Any]],
    grants: Grants,
    report: Callable[[int, int], None],
) -> NDArray[Any] | None:
    """Read single points of ``array`` without zarr's own indexing.

    zarr's indexing sorts the coordinates of every axis on the event loop. Returns None, and
    requests nothing, in the cases of `read_block`, and for points outside the array.
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

    few = math.prod(np.broadcast_shapes(*(each.shape for each in coordinates))) <= tuning.FEW_POINTS
    points = find() if few else await grants.decoders.run(find)
    if points is None:
        return None
    selected = _select(inner, form, points, (math.prod(points.shape),), basic=False)
    return (await _read_selected(array, form, selected, grants, report)).reshape(points.shape)


def plan_block(array: zarr.Array[Any], selection: Sequence[int | slice]) -> ReadPlan | None:
    """Return the plan for reading a block of ``array``; None if zarr's indexing has to read it."""
    inner = array._async_array
    form = _form_of(inner)
    selected = _select_block(inner, form, selection)
    if selected is None:
        return None
    return plan_read(
        form.pipeline,
        usable_after_fork(array.store),
        selected.chunks,
        selected.count,
        form.spec,
        selected.result,
        keeps=cache_limit() > 0,
    )


async def _read_selected(
    array: zarr.Array[Any],
    form: _Form,
    selected: _Selected,
    grants: Grants,
    report: Callable[[int, int], None],
) -> NDArray[Any]:
    if selected.count:
        pipeline = replace(form.pipeline, grants=grants, report=report)
        store = usable_after_fork(array.store)
        await pipeline.read_chunks(
            store, selected.chunks, selected.count, form.spec, selected.result
        )
    return selected.values()


def prefetched_block(
    array: zarr.Array[Any], selection: Sequence[int | slice], values: Mapping[str, Buffer | None]
) -> NDArray[Any] | None:
    """Return a block of ``array`` whose encoded chunks are in ``values``, decoded in this thread.

    Returns None if a chunk is not in ``values`` or damaged, or if zarr's own code is needed.
    """
    inner = array._async_array
    selected = _select_block(inner, _form_of(inner), selection)
    if selected is None or selected.result.by_zarr:
        return None
    chunks = list(selected.chunks)
    if any(chunk.key not in values for chunk in chunks):
        return None
    for chunk in chunks:
        data = values[chunk.key]
        try:
            with chunk_noted(chunk.key, array.store):
                selected.result.put(None if data is None else data.as_numpy_array(), chunk)
        except DamagedDataError:
            # An ordinary read requests it once more.
            return None
    return selected.values()


def reads_by_plain_calls(array: zarr.Array[Any]) -> bool:
    """Return whether the store of ``array`` is in memory or consists of local files."""
    source = source_of(array.store)
    return source is not None and not source.remote


def read_small_block(
    array: zarr.Array[Any], selection: Sequence[int | slice]
) -> NDArray[Any] | None:
    """Read and decode a block of a few small chunks of a local store in this thread.

    Returns None, and reads nothing, if the chunks are larger or zarr's own code is needed.
    """
    inner = array._async_array
    form = _form_of(inner)
    selected = _select_block(inner, form, selection)
    if selected is None or selected.result.by_zarr:
        return None
    size = byte_count(form.spec.shape, selected.result.out.dtype)
    if selected.count * size > tuning.SMALL_BLOCK_BYTES:
        return None
    source: Any = source_of(array.store)
    for chunk in selected.chunks:
        with chunk_noted(chunk.key, array.store):
            read_chunk(source, chunk, selected.result)
    return selected.values()


@dataclass(frozen=True)
class _Form:
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


def _form_of(inner: Any) -> _Form:
    """Return the form of the chunks of an asynchronous array."""
    return _form(_Itself(inner.metadata), inner.config, default_buffer_prototype())


class _Itself:
    """A dictionary key that compares an object by identity: metadata objects have no hash."""

    __slots__ = ("object",)

    def __init__(self, object: Any) -> None:
        self.object = object

    def __hash__(self) -> int:
        return id(self.object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.object is other.object


# Helps many calls that each read a little of the same arrays. A load of thousands of arrays reads
# each of them once, so that keeping all of them would not help.
@functools.lru_cache(maxsize=256)
def _form(metadata: _Itself, config: Any, prototype: Any) -> _Form:
    of: Any = metadata.object
    chunk_shape = _chunk_shape(of)
    pipeline = CodecPipeline.from_codecs(_codecs(of))
    spec = _spec(of, config, prototype, of.shape if chunk_shape is None else chunk_shape)
    return _Form(pipeline, chunk_shape, spec, prepare(pipeline, spec))


@dataclass(frozen=True)
class _Selected:
    """The chunks that a selection touches, and the result that they are read into."""

    chunks: Iterator[Chunk]
    count: int
    result: Result

    def values(self) -> NDArray[Any]:
        """Return the result, once the chunks are in it."""
        return self.result.out.as_numpy_array()


def _select_block(inner: Any, form: _Form, selection: Sequence[int | slice]) -> _Selected | None:
    """Return the chunks of a block; None if zarr has to read it."""
    if form.chunk_shape is None or _missing_are_errors(inner):
        return None
    block = _block(inner, form.chunk_shape, selection)
    return None if block is None else _select(inner, form, block, block.shape, basic=True)


def _select(
    inner: Any, form: _Form, touched: Block | Points, shape: tuple[int, ...], *, basic: bool
) -> _Selected:
    """Return the chunks of ``touched``, to be read into an array of ``shape``."""
    spec = form.spec
    out = spec.prototype.nd_buffer.empty(
        shape=shape, dtype=spec.dtype.to_native_dtype(), order=spec.config.order
    )
    result = Result(form.pipeline, form.prepared, out, (), basic).observed()
    return _Selected(touched.chunks(chunk_keys(inner), spec), touched.count, result)


def _missing_are_errors(inner: Any) -> bool:
    # zarr has this option from 3.2 on.
    return getattr(inner.config, "read_missing_chunks", True) is False


def regular_block(inner: Any, selection: Sequence[int | slice]) -> Block | None:
    """Return the chunks of an asynchronous array that ``selection`` touches.

    Returns None if the chunks do not form a regular grid, or if a slice has a negative step.
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
