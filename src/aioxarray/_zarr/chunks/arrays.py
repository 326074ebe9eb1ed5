"""Reading selections of Zarr arrays, and arrays whose own reads and writes keep to a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import StorePath

from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.engines.by_tensorstore import with_engine
from aioxarray._zarr.chunks.forms import Form, codecs_of, form_of
from aioxarray._zarr.chunks.pipeline import CodecPipeline, PlanningPipeline
from aioxarray._zarr.chunks.plan import ReadPlan, plan_read
from aioxarray._zarr.chunks.result import Destination, Outline, Result, read_chunk
from aioxarray._zarr.chunks.selected import Selected, select_block, select_lists, select_points
from aioxarray._zarr.compat import AsyncOIndex, AsyncVIndex
from aioxarray._zarr.selection import byte_count
from aioxarray._zarr.stores.fork import usable_after_fork
from aioxarray._zarr.stores.grants import Grants
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sources import source_of
from aioxarray.config import cache_limit
from aioxarray.errors import DamagedDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from aioxarray._zarr.compat import BatchedCodecPipeline, Buffer


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
_OINDEX = zarr.AsyncArray.oindex
_OINDEX_GETITEM = AsyncOIndex.getitem


async def read_block(
    array: zarr.Array[Any],
    selection: Sequence[int | slice],
    grants: Grants,
    report: Callable[[int, int], None],
    into: Destination | None = None,
) -> NDArray[Any] | None:
    """Read a block of ``array`` without zarr's own indexing.

    zarr's indexing costs as much per chunk as fetching and decoding a small one. ``grants`` and
    ``report`` are as in `readable`. The values are read into ``into``, if its array has their shape
    and dtype, and otherwise into a new array. Returns None, and requests nothing, if zarr's
    indexing is needed: the selection is not a block of a regular grid, missing chunks are errors,
    or ``getitem`` of the array is not zarr's.
    """
    inner = array._async_array
    if type(inner).getitem is not _GETITEM:
        return None
    form = form_of(inner)
    selected = select_block(inner, form, selection)
    if selected is None:
        return None
    return await _read_selected(array, form, selected, grants, report, into)


async def read_points(
    array: zarr.Array[Any],
    coordinates: Sequence[NDArray[Any]],
    grants: Grants,
    report: Callable[[int, int], None],
    into: Destination | None = None,
) -> NDArray[Any] | None:
    """Read single points of ``array`` without zarr's own indexing.

    zarr's indexing sorts the coordinates of every axis on the event loop. ``into`` is as in
    `read_block`; its array must be contiguous, too. Returns None, and
    requests nothing, in the cases of `read_block`, and for points outside the array.
    """
    inner = array._async_array
    if type(inner).vindex is not _VINDEX or AsyncVIndex.getitem is not _VINDEX_GETITEM:
        return None
    form = form_of(inner)

    def select() -> Selected | None:
        return select_points(inner, form, coordinates)

    shape = np.broadcast_shapes(*(each.shape for each in coordinates))
    few = math.prod(shape) <= tuning.FEW_POINTS
    selected = select() if few else await grants.decoders.run(select)
    if selected is None:
        return None
    if into is not None:
        flat = into.array.flags.c_contiguous and into.array.shape == shape
        into = into._replace(array=into.array.reshape(-1)) if flat else None
    return (await _read_selected(array, form, selected, grants, report, into)).reshape(shape)


async def read_lists(
    array: zarr.Array[Any],
    selection: Sequence[int | slice | NDArray[Any]],
    grants: Grants,
    report: Callable[[int, int], None],
    into: Destination | None = None,
) -> NDArray[Any] | None:
    """Read a selection of ``array`` by lists of positions along some dimensions.

    zarr's indexing makes a list of all chunks. ``into`` is as in `read_block`. Returns None, and
    requests nothing, in the cases of `read_block`, and for positions outside the array.
    """
    inner = array._async_array
    if type(inner).oindex is not _OINDEX or AsyncOIndex.getitem is not _OINDEX_GETITEM:
        return None
    form = form_of(inner)

    def select() -> Selected | None:
        return select_lists(inner, form, selection)

    few = sum(each.size for each in selection if isinstance(each, np.ndarray)) <= tuning.FEW_POINTS
    selected = select() if few else await grants.decoders.run(select)
    if selected is None:
        return None
    if into is not None:
        axes = tuple(None if isinstance(each, int) else slice(None) for each in selection)
        fits = into.array.ndim == len(axes) - axes.count(None)
        into = into._replace(array=into.array[axes]) if fits else None
    values = await _read_selected(array, form, selected, grants, report, into)
    return values[tuple(0 if isinstance(each, int) else slice(None) for each in selection)]


def plan_block(
    array: zarr.Array[Any], selection: Sequence[int | slice], *, shares: bool = False
) -> ReadPlan | None:
    """Return the plan for reading a block of ``array``; None if zarr's indexing has to read it.

    ``shares`` tells whether known reads beside this one need the same chunks.
    """
    inner = array._async_array
    form = form_of(inner)
    return _plan(array, form, select_block(inner, form, selection), shares=shares)


def plan_points(
    array: zarr.Array[Any], coordinates: Sequence[NDArray[Any]], *, shares: bool = False
) -> ReadPlan | None:
    """Do the same as `plan_block` for single points."""
    inner = array._async_array
    form = form_of(inner)
    return _plan(array, form, select_points(inner, form, coordinates), shares=shares)


def plan_lists(
    array: zarr.Array[Any],
    selection: Sequence[int | slice | NDArray[Any]],
    *,
    shares: bool = False,
) -> ReadPlan | None:
    """Do the same as `plan_block` for lists of positions."""
    inner = array._async_array
    form = form_of(inner)
    return _plan(array, form, select_lists(inner, form, selection), shares=shares)


def planning(
    array: zarr.Array[Any], take: Callable[[ReadPlan], None], *, shares: bool = False
) -> zarr.Array[Any]:
    """Return an array like ``array`` that reads nothing, however it is indexed.

    Its asynchronous reads call ``take`` with their plan, and return meaningless values. For
    ``shares`` see `plan_block`.
    """
    store = usable_after_fork(array.store)
    return zarr.Array(with_pipeline(array, store, PlanningPipeline, take=take, shares=shares))


def _plan(
    array: zarr.Array[Any], form: Form, selected: Selected | None, *, shares: bool
) -> ReadPlan | None:
    """Return the plan for reading ``selected`` without memory for the result."""
    if selected is None:
        return None
    keeps = cache_limit() > 0
    return _planned(array, form, selected, selected.outline(), keeps=keeps, shares=shares)


def _planned(
    array: zarr.Array[Any],
    form: Form,
    selected: Selected,
    outline: Outline,
    *,
    keeps: bool,
    shares: bool,
    is_lent: bool = False,
) -> ReadPlan:
    store, chunks, count = usable_after_fork(array.store), selected.chunks, selected.count
    pipeline, spec = form.pipeline, form.spec
    plan = plan_read(pipeline, store, chunks, count, spec, outline, keeps=keeps, shares=shares)
    # A thread of an engine cannot ask for the permission to write in memory of the caller.
    if selected.block is None or is_lent:
        return plan
    return with_engine(plan, array._async_array, selected.block)


async def _read_selected(
    array: zarr.Array[Any],
    form: Form,
    selected: Selected,
    grants: Grants,
    report: Callable[[int, int], None],
    into: Destination | None,
) -> NDArray[Any]:
    result = selected.result(into)
    if selected.count:
        pipeline = replace(form.pipeline, grants=grants, report=report)
        keeps, shares = grants.keeps, grants.shares
        is_lent, outline = result.lent is not None, result.outline
        plan = _planned(array, form, selected, outline, keeps=keeps, shares=shares, is_lent=is_lent)
        await pipeline.execute(plan, result)
    return _values(result)


def prefetched_block(
    array: zarr.Array[Any], selection: Sequence[int | slice], values: Mapping[str, Buffer | None]
) -> NDArray[Any] | None:
    """Return a block of ``array`` whose encoded chunks are in ``values``, decoded in this thread.

    Returns None if a chunk is not in ``values`` or damaged, or if zarr's own code is needed.
    """
    inner = array._async_array
    selected = select_block(inner, form_of(inner), selection)
    if selected is None:
        return None
    result = selected.result()
    if result.by_zarr:
        return None
    chunks = list(selected.chunks)
    if any(chunk.key not in values for chunk in chunks):
        return None
    for chunk in chunks:
        data = values[chunk.key]
        try:
            with chunk_noted(chunk.key, array.store):
                result.put(None if data is None else data.as_numpy_array(), chunk)
        except DamagedDataError:
            # An ordinary read requests it once more.
            return None
    return _values(result)


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
    selected = _select_small_block(array, selection)
    if selected is None:
        return None
    result = selected.result()
    source: Any = source_of(array.store)
    for chunk in selected.chunks:
        with chunk_noted(chunk.key, array.store):
            read_chunk(source, chunk, result)
    return _values(result)


def is_small_block(array: zarr.Array[Any], selection: Sequence[int | slice]) -> bool:
    """Return whether `read_small_block` reads a block of ``array``."""
    return _select_small_block(array, selection) is not None


def _select_small_block(
    array: zarr.Array[Any], selection: Sequence[int | slice]
) -> Selected | None:
    inner = array._async_array
    form = form_of(inner)
    selected = select_block(inner, form, selection)
    if selected is None or form.prepared is None:
        return None
    size = byte_count(form.spec.shape, form.spec.dtype.to_native_dtype())
    return selected if selected.count * size <= tuning.SMALL_BLOCK_BYTES else None


def _values(result: Result) -> NDArray[Any]:
    return result.out.as_numpy_array()
