"""Plans for loading xarray's lazy arrays: what a backend has to read, and how to decode it.

Lazy data in xarray is a chain of adapters around a backend's array: indexing, caching, decoding.
A `Plan` splits the chain into one read at the bottom, which can be awaited, and one plain function
for all the rest, which a worker thread can run. xarray's own ``async_get_duck_array`` decodes on
the caller's loop, and some adapters do not have it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aioxarray._xarray.compat import (
    BackendArray,
    BasicIndexer,
    BoolTypeArray,
    CopyOnWriteArray,
    ExplicitIndexer,
    ExplicitlyIndexed,
    ImplicitToExplicitIndexingAdapter,
    IndexingAdapter,
    LazilyIndexedArray,
    LazilyVectorizedIndexedArray,
    MemoryCachedArray,
    NativeEndiannessArray,
    StackedBytesArray,
    _ElementwiseFunctionArray,
    _wrap_numpy_scalars,
    apply_indexer,
)

_DECODING = (_ElementwiseFunctionArray, NativeEndiannessArray, BoolTypeArray, StackedBytesArray)
# Everything that a chain may consist of.
_LAZY = (ExplicitlyIndexed, ImplicitToExplicitIndexingAdapter)


@dataclass(frozen=True, slots=True)
class Read:
    """A read of a backend's array: ``array[key]``."""

    array: BackendArray
    key: ExplicitIndexer


@dataclass(frozen=True, slots=True)
class Opaque:
    """An array that can only be read as a whole, by its own methods."""

    array: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load one lazy array.

    Attributes
    ----------
    source
        The data to read first; None if everything is in memory.
    finish
        Turns the data read into the loaded array. It takes time but makes no requests.
    decodes
        Whether ``finish`` makes new values, besides those read.
    """

    source: Read | Opaque | None
    finish: Callable[[Any], Any]
    decodes: bool = False


def plan(array: Any) -> Plan:
    """Return how to load ``array``, the data of a variable that is neither numpy nor chunked."""
    if isinstance(array, BackendArray):
        return Plan(Read(array, BasicIndexer((slice(None),) * array.ndim)), _as_read)
    kind = type(array)
    if kind in (LazilyIndexedArray, LazilyVectorizedIndexedArray):
        if isinstance(array.array, BackendArray):
            return Plan(Read(array.array, array.key), _wrapped)
        # Push the selection down through the decoding, as get_duck_array does.
        inner = plan(apply_indexer(array.array, array.key))
        return Plan(inner.source, lambda data: _wrapped(inner.finish(data)), inner.decodes)
    if kind in (CopyOnWriteArray, MemoryCachedArray, ImplicitToExplicitIndexingAdapter):
        return plan(array.array)
    if kind in _DECODING:
        inner = plan(array.array)
        return Plan(inner.source, lambda data: _decode(array, inner.finish(data)), decodes=True)
    if isinstance(array, IndexingAdapter):
        return Plan(None, lambda _: array.get_duck_array())
    if isinstance(array, ExplicitlyIndexed):
        inside = getattr(array, "aioxarray_chain", None)
        return Plan(Opaque(array), _as_read) if inside is None else plan(inside)
    return Plan(None, lambda _: array)


def base_of(array: Any) -> BackendArray | None:
    """Return the backend's array at the bottom of ``array``; None if there is none."""
    while isinstance(array, _LAZY):
        if isinstance(array, BackendArray):
            return array
        array = getattr(array, "array", None)
    return None


def lazy_inside(adapter: Any) -> Any:
    """Return the lazy array inside the data of a dask array: what its adapters protect."""
    lazy = adapter.array
    while type(lazy) in (CopyOnWriteArray, MemoryCachedArray):
        lazy = lazy.array
    return lazy


def settings_of(array: Any) -> Any | None:
    """Return the settings that have travelled with ``array`` to this process, if any."""
    while isinstance(array, _LAZY):
        settings = getattr(array, "settings", None)
        if settings is not None:
            return settings
        array = getattr(array, "array", None)
    return None


def _wrapped(data: Any) -> Any:
    # Most are arrays, and xarray's function asks much to see that.
    return data if type(data) is np.ndarray else _wrap_numpy_scalars(data)


def _as_read(data: Any) -> Any:
    return data


def _decode(adapter: Any, data: Any) -> Any:
    """Decode ``data`` as ``adapter`` would have decoded it after reading it."""
    here = copy.copy(adapter)
    here.array = _Loaded(data)
    return here.get_duck_array()


class _Loaded(ExplicitlyIndexed):
    """Data that was read, in place of the lazy array that it was read from."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)
