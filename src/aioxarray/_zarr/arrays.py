"""Makes, of an array that is open, one that reads under a load's budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zarr

# Private, all three: how zarr builds the codecs of an array from its metadata. zarr's own
# function for it takes the pipeline class from its global configuration, which is not ours to
# change. Can go when an array can be opened with a pipeline of the caller's choice.
from zarr.codecs import _v2
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata
from zarr.storage import StorePath

from aioxarray._zarr.chunks import Block
from aioxarray._zarr.decoders import prepare
from aioxarray._zarr.fork import usable_here
from aioxarray._zarr.pipeline import CodecPipeline, noted
from aioxarray._zarr.placing import Placer
from aioxarray._zarr.reading import Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.codec import Codec
    from zarr.core.buffer import Buffer, NDBuffer

    from aioxarray._zarr.chunks import Chunk


def readable(
    array: zarr.Array[Any], reading: Reading, report: Callable[[int, int], None]
) -> zarr.Array[Any]:
    """Return an array with the data of ``array`` whose asynchronous reads keep to ``reading``.

    ``report`` is told, after each chunk, how many of how many of a selection are done. Nothing
    is requested and ``array`` stays as it is.
    """
    # Private: the asynchronous array inside; ``Array.async_array`` is public from zarr 3.2 on
    # (pydata/xarray#11259). Can go with support for zarr 3.1.
    inner = array._async_array
    path = inner.store_path
    store = usable_here(path.store)
    ours = copy.copy(inner)
    # A frozen dataclass without a public way to replace these two.
    object.__setattr__(ours, "store_path", StorePath(store, path.path))
    object.__setattr__(ours, "codec_pipeline", _pipeline(array, reading, report))
    return zarr.Array(ours)


# What xarray's own tests count as asynchronous reads, of one chunk each, are calls of zarr's array.
_FEW_CHUNKS = 4


async def read_block(
    array: zarr.Array[Any], selection: Sequence[int | slice]
) -> NDArray[Any] | None:
    """Read a block of ``array``, which is `readable`, without zarr's own indexing.

    That costs as much for each chunk as fetching and decoding a small one. Returns None, and
    requests nothing, where zarr's indexing is needed (no block of a regular grid, or missing
    chunks are errors), and for so few chunks that it is as good.
    """
    inner = array._async_array
    pipeline: Any = inner.codec_pipeline
    job = _block(array, pipeline, selection, least=_FEW_CHUNKS)
    if job is None:
        return None
    store = inner.store_path.store
    await pipeline.read_chunks(store, job.chunks, job.count, job.spec, job.placer)
    return job.out.as_numpy_array()


def known_block(
    array: zarr.Array[Any], selection: Sequence[int | slice], values: Mapping[str, Buffer | None]
) -> NDArray[Any] | None:
    """Return a block of ``array`` of which all chunks are in ``values``, decoded right here.

    None where that is not so, or zarr's own code is needed.
    """
    job = _block(array, CodecPipeline.from_codecs(codecs_of(array)), selection, least=0)
    if job is None or job.placer.by_zarr:
        return None
    chunks = list(job.chunks)
    if any(chunk[0] not in values for chunk in chunks):
        return None
    for chunk in chunks:
        data = values[chunk[0]]
        with noted(chunk, array.store):
            job.placer.put(None if data is None else data.as_numpy_array(), chunk)
    return job.out.as_numpy_array()


@dataclass(frozen=True)
class _BlockJob:
    """What reading a block takes."""

    chunks: Iterator[Chunk]
    count: int
    spec: ArraySpec
    placer: Placer
    out: NDBuffer


def _block(
    array: zarr.Array[Any], pipeline: Any, selection: Sequence[int | slice], *, least: int
) -> _BlockJob | None:
    """Return what reading a block of at least so many chunks takes; None if zarr has to do it."""
    inner = array._async_array
    metadata = inner.metadata
    chunk_shape = _chunk_shape(metadata)
    forward = all(
        part.step is None or part.step > 0 for part in selection if isinstance(part, slice)
    )
    if chunk_shape is None or not forward:
        return None
    config = inner.config
    # From zarr 3.2 on.
    if getattr(config, "read_missing_chunks", True) is False:
        return None
    if isinstance(metadata, ArrayV2Metadata):
        config = replace(config, order=metadata.order)
    block = Block(selection, metadata.shape, chunk_shape)
    if block.count < least:
        return None
    prototype = default_buffer_prototype()
    dtype = metadata.dtype.to_native_dtype()
    out = prototype.nd_buffer.empty(shape=block.shape, dtype=dtype, order=config.order)
    spec = ArraySpec(
        shape=chunk_shape,
        dtype=metadata.dtype,
        fill_value=metadata.fill_value,
        config=config,
        prototype=prototype,
    )
    path = inner.store_path.path
    prefix = f"{path}/" if path else ""
    encode = metadata.encode_chunk_key
    chunks = block.chunks(lambda at: prefix + encode(at), spec)
    placer = Placer(pipeline, prepare(pipeline, spec), out, (), basic=True)
    return _BlockJob(chunks, block.count, spec, placer, out)


def _chunk_shape(metadata: Any) -> tuple[int, ...] | None:
    """Return the shape of all chunks, or of shards if there are; None if it varies."""
    if isinstance(metadata, ArrayV2Metadata):
        return metadata.chunks
    # A class of its own name in each line of zarr, and others for other grids.
    grid = metadata.chunk_grid
    regular = type(grid).__name__ in ("RegularChunkGrid", "RegularChunkGridMetadata")
    return tuple(grid.chunk_shape) if regular else None


def _pipeline(
    array: zarr.Array[Any], reading: Reading, report: Callable[[int, int], None]
) -> CodecPipeline:
    plain = CodecPipeline.from_codecs(codecs_of(array))
    return CodecPipeline(
        array_array_codecs=plain.array_array_codecs,
        array_bytes_codec=plain.array_bytes_codec,
        bytes_bytes_codecs=plain.bytes_bytes_codecs,
        batch_size=plain.batch_size,
        granted=reading,
        report=report,
    )


def codecs_of(array: zarr.Array[Any]) -> tuple[Codec, ...]:
    """Return the codecs of ``array``, each knowing the type of what it works on."""
    metadata = array.metadata
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
