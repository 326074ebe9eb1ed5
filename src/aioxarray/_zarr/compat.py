"""Private names of zarr that this package uses: why, and when each of them can go.

All other modules import them from here, so that changes in zarr affect only one place.
"""

from __future__ import annotations

from typing import Any

# --- buffers ----------------------------------------------------------------------------------
# The types in the signatures of zarr's public ``Store`` and ``CodecPipeline`` have no public names.
# The ``cpu`` classes identify buffers in host memory.
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer, cpu, default_buffer_prototype

# --- arrays, groups and metadata --------------------------------------------------------------
# zarr's public functions create an array or a group only from a store, with requests. These create
# it from metadata that is already known. Can go when an array can be opened with given metadata and
# a given codec pipeline.
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.group import ConsolidatedMetadata, GroupMetadata
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

# zarr's codec for format 2, whose public attributes are the numcodecs codecs.
from zarr.codecs import _v2

# --- codecs and selections --------------------------------------------------------------------
# The default codec pipeline. Ours override its reading and writing, since the public base class has
# no codec logic. zarr-developers/zarr-python#3859 asks for public concurrent reads.
from zarr.core import codec_pipeline
from zarr.core.codec_pipeline import BatchedCodecPipeline

# The indexers for selections of a shard other than blocks, the dtype of shard indexes, and the
# types of ``AsyncArray.vindex`` and ``oindex``. Can go when zarr's sharding codec can read selected
# inner chunks through a given store (zarr-developers/zarr-python#3859).
from zarr.core import chunk_grids
from zarr.core.dtype import UInt64
from zarr.core.indexing import AsyncOIndex, AsyncVIndex, SelectorTuple, get_indexer

# --- stores -----------------------------------------------------------------------------------
# Makes a store from a path, a URL, a mapping or an object of another library. The public
# ``zarr.open_group`` does that and opens in one step, but the store has to be wrapped in between.
from zarr.storage._common import make_store_path

# zarr's atomic write of a file. The public way is a coroutine around it, which hands each file to
# another thread.
from zarr.storage._local import _put

# --- the loop ---------------------------------------------------------------------------------
# The event loop on which zarr's synchronous calls run has no public name. fsspec filesystems that
# those calls opened are bound to it, so requests have to run there, too
# (zarr-developers/zarr-python#3487). Can go when zarr makes it public, as #3997 proposes.
from zarr.core.sync import _get_loop

# The fill value of chunks, also for old arrays without one. zarr 3.4 only re-exports it there.
_codec_pipeline: Any = codec_pipeline
fill_value_or_default = _codec_pipeline.fill_value_or_default


def regular_grid(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Any:
    """Return the regular chunk grid of an array, in the class of the installed zarr."""
    grids: Any = chunk_grids
    if hasattr(grids.ChunkGrid, "from_sizes"):
        return grids.ChunkGrid.from_sizes(shape, tuple(chunk_shape))
    # zarr before 3.2.
    return grids.RegularChunkGrid(chunk_shape=chunk_shape)
