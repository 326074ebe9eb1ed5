"""The private names of zarr that this package uses: why, and when each can go.

Every other module imports them from here, so that a new release of zarr is a change in one place.
"""

from __future__ import annotations

from typing import Any

# --- buffers ----------------------------------------------------------------------------------
# The types in the signatures of zarr's public ``Store`` and ``CodecPipeline`` have no public names,
# and only their classes say whether they are in the processor's own memory.
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer, cpu, default_buffer_prototype

# --- arrays, groups and metadata --------------------------------------------------------------
# zarr makes an array or a group from a store only, by requests. These make them of metadata that
# are known. Can go when an array can be opened with given metadata and a pipeline of the caller's
# choice.
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.group import ConsolidatedMetadata, GroupMetadata
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

# How format 2 is decoded: the codec says by which codecs of numcodecs.
from zarr.codecs import _v2

# --- codecs and selections --------------------------------------------------------------------
# The default pipeline, of which ours change reading and writing: the public base class has no codec
# logic. zarr-developers/zarr-python#3859 asks for public concurrent reads.
from zarr.core import codec_pipeline
from zarr.core.codec_pipeline import BatchedCodecPipeline

# What a selection touches of a shard where it is no block, the type of shards' indexes, and what
# ``AsyncArray.vindex`` returns. Can go when zarr's sharding codec reads what it is told to through
# a store of the caller's choice (zarr-developers/zarr-python#3859).
from zarr.core import chunk_grids
from zarr.core.dtype import UInt64
from zarr.core.indexing import AsyncVIndex, SelectorTuple, get_indexer

# --- stores -----------------------------------------------------------------------------------
# How zarr makes a store of a path, a URL, a mapping or another library's object.
# ``zarr.open_group`` does that and opens in one step, but a store has to be wrapped between.
from zarr.storage._common import make_store_path

# How zarr writes a file so that it is there whole or not at all. Public is only the coroutine
# around it, which takes a thread of its own for each file.
from zarr.storage._local import _put

# --- the loop ---------------------------------------------------------------------------------
# zarr has no public name for the loop on which its synchronous calls run. fsspec
# filesystems that those calls opened are bound to it, so requests have to run there too
# (zarr-developers/zarr-python#3487). Can go when zarr offers it, as #3997 proposes.
from zarr.core.sync import _get_loop

__all__ = [
    "ArrayConfig",
    "ArraySpec",
    "ArrayV2Metadata",
    "ArrayV3Metadata",
    "AsyncArray",
    "AsyncVIndex",
    "BatchedCodecPipeline",
    "Buffer",
    "BufferPrototype",
    "ConsolidatedMetadata",
    "GroupMetadata",
    "NDBuffer",
    "SelectorTuple",
    "UInt64",
    "_get_loop",
    "_put",
    "_v2",
    "cpu",
    "default_buffer_prototype",
    "fill_value_or_default",
    "get_indexer",
    "make_store_path",
    "regular_grid",
]

# The fill value of chunks, for old arrays without one. From zarr 3.4 on the module only imports it.
_codec_pipeline: Any = codec_pipeline
fill_value_or_default = _codec_pipeline.fill_value_or_default


def regular_grid(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Any:
    """Return the regular grid of chunks of an array, in the class of this line of zarr."""
    grids: Any = chunk_grids
    if hasattr(grids.ChunkGrid, "from_sizes"):
        return grids.ChunkGrid.from_sizes(shape, tuple(chunk_shape))
    # zarr before 3.2.
    return grids.RegularChunkGrid(chunk_shape=chunk_shape)
