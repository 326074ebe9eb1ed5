"""Makes, of an array that is open, one that reads under a load's budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
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

from aioxarray._zarr.fork import usable_here
from aioxarray._zarr.pipeline import ReadPipeline
from aioxarray._zarr.reading import Reading
from aioxarray._zarr.store import LimitedStore

if TYPE_CHECKING:
    from zarr.abc.codec import Codec


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
    store = LimitedStore(usable_here(path.store), reading.requests)
    ours = copy.copy(inner)
    # A frozen dataclass without a public way to replace these two.
    object.__setattr__(ours, "store_path", StorePath(store, path.path))
    object.__setattr__(ours, "codec_pipeline", _pipeline(array, reading, report))
    return zarr.Array(ours)


def _pipeline(
    array: zarr.Array[Any], reading: Reading, report: Callable[[int, int], None]
) -> ReadPipeline:
    plain = ReadPipeline.from_codecs(codecs_of(array))
    return ReadPipeline(
        array_array_codecs=plain.array_array_codecs,
        array_bytes_codec=plain.array_bytes_codec,
        bytes_bytes_codecs=plain.bytes_bytes_codecs,
        batch_size=plain.batch_size,
        reading=reading,
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
