"""Takes xarray's lazy arrays apart: what a backend has to read, and what decodes it.

Lazy data in xarray is a chain of adapters around a backend's array: indexing, caching,
decoding. Here the chain becomes a `Plan`: one read at the bottom, which can be awaited, and one
plain function, which a worker thread can run, that does all the rest. xarray's own
``async_get_duck_array`` decodes on the caller's loop, and is missing from some adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Private, all of them: the adapters have no public names. They are what ``open_dataset`` makes
# (pydata/xarray#10622 has the plans for making them asynchronous throughout); an adapter that
# is not known here is read as a whole, in a thread.
from xarray.backends.common import BackendArray
from xarray.coding.common import _ElementwiseFunctionArray
from xarray.coding.strings import StackedBytesArray
from xarray.coding.variables import BoolTypeArray, NativeEndiannessArray
from xarray.core.indexing import (
    BasicIndexer,
    CopyOnWriteArray,
    ExplicitIndexer,
    ExplicitlyIndexed,
    ImplicitToExplicitIndexingAdapter,
    IndexingAdapter,
    LazilyIndexedArray,
    LazilyVectorizedIndexedArray,
    MemoryCachedArray,
    _wrap_numpy_scalars,
    apply_indexer,
)

_DECODING = (_ElementwiseFunctionArray, NativeEndiannessArray, BoolTypeArray, StackedBytesArray)
_AROUND = frozenset(
    (
        *_DECODING,
        LazilyIndexedArray,
        LazilyVectorizedIndexedArray,
        CopyOnWriteArray,
        MemoryCachedArray,
        ImplicitToExplicitIndexingAdapter,
    )
)


@dataclass(frozen=True, slots=True)
class Read:
    """What a backend has to read: ``array[key]``."""

    array: BackendArray
    key: ExplicitIndexer


@dataclass(frozen=True, slots=True)
class Opaque:
    """An array that only knows how to read itself as a whole."""

    array: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load one lazy array.

    Attributes
    ----------
    source
        What has to be read first; None if all is in memory.
    finish
        Makes the loaded array of what was read. Costs time, not requests.
    """

    source: Read | Opaque | None
    finish: Callable[[Any], Any]


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
        return Plan(inner.source, lambda data: _wrapped(inner.finish(data)))
    if kind in (CopyOnWriteArray, MemoryCachedArray, ImplicitToExplicitIndexingAdapter):
        return plan(array.array)
    if kind in _DECODING:
        inner = plan(array.array)
        return Plan(inner.source, lambda data: _decode(array, inner.finish(data)))
    if isinstance(array, IndexingAdapter):
        return Plan(None, lambda _: array.get_duck_array())
    if isinstance(array, ExplicitlyIndexed):
        inside = getattr(array, "aioxarray_chain", None)
        return Plan(Opaque(array), _as_read) if inside is None else plan(inside)
    return Plan(None, lambda _: array)


def base_of(array: Any) -> BackendArray | None:
    """Return the backend's array that is the source of ``array``; None if it is not known."""
    while not isinstance(array, BackendArray):
        if type(array) in _AROUND:
            array = array.array
        else:
            array = getattr(array, "aioxarray_chain", None)
            if array is None:
                return None
    return array


def _wrapped(data: Any) -> Any:
    # Most are arrays, and xarray's function asks much to see that.
    return data if type(data) is np.ndarray else _wrap_numpy_scalars(data)


def _as_read(data: Any) -> Any:
    return data


def _decode(adapter: Any, data: Any) -> Any:
    """Return what ``adapter`` makes of ``data`` where it would have read it."""
    here = copy.copy(adapter)
    here.array = _Loaded(data)
    return here.get_duck_array()


class _Loaded(ExplicitlyIndexed):
    """Data that was read, in the place of the lazy array that stands for it."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)
