"""A stand-in for lazy data while xarray combines datasets: notes what is done to it.

xarray combines numpy-like arrays, and would load a lazy one. This is numpy-like enough for
joining, stacking, transposing and casting, and refuses whatever needs values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

# Private: the adapters that ``open_dataset`` puts around lazy data, as in `aioxarray._xarray.plan`.
from xarray.core.indexing import (
    CopyOnWriteArray,
    ExplicitlyIndexed,
    IndexingAdapter,
    LazilyIndexedArray,
    MemoryCachedArray,
)

from aioxarray._xarray.aio_array import AioArray
from aioxarray._xarray.joined import Cast, Joined, JoinedArray, Leaf, Node, Permuted, Repeated


class CannotCombineLazily(ValueError):
    """Combining these datasets needs the values of a variable that is not loaded."""


class Pending:
    """Lazy data in the shape of a numpy-like array.

    Parameters
    ----------
    node
        What it stands for.
    """

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.node.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def astype(self, dtype: Any, **_: Any) -> Pending:
        return Pending(Cast(self.node, np.dtype(dtype)))

    def __getitem__(self, key: Any) -> Pending:
        keys = key if isinstance(key, tuple) else (key,)
        new = 0
        while new < len(keys) and keys[new] is None:
            new += 1
        if any(each is not Ellipsis and each != slice(None) for each in keys[new:]):
            raise _refusal("selecting from")
        return Pending(Repeated(self.node, (1,) * new)) if new else self

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise _refusal("comparing or converting")

    def __array_ufunc__(self, ufunc: Any, *args: Any, **kwargs: Any) -> Any:
        raise _refusal(f"applying {ufunc.__name__} to")

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        handler = _FUNCTIONS.get(function)
        if handler is None:
            raise _refusal(f"applying {function.__name__} to")
        return handler(*args, **kwargs)


def _refusal(what: str) -> CannotCombineLazily:
    return CannotCombineLazily(
        f"combining these datasets means {what} variables that are not loaded, which "
        "chunks=None never does behind your back. Ways out: take variables without the "
        "concatenated dimension from the first dataset (data_vars='minimal', coords='minimal', "
        "compat='override'); load what has to be compared (preprocess=lambda ds: "
        "ds.assign_coords(lat=ds.lat.load())); use join='override' or 'exact' where indexes "
        "differ; or use dask arrays (chunks={})."
    )


def _node(array: Any) -> Node:
    return array.node if isinstance(array, Pending) else Leaf(np.asarray(array))


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Pending:
    nodes = tuple(_node(array) for array in arrays)
    return Pending(Joined(nodes, axis % len(nodes[0].shape)))


def _stack(arrays: Sequence[Any], axis: int = 0) -> Pending:
    if axis != 0:
        raise _refusal("stacking along an inner dimension of")
    return _concatenate([Pending(Repeated(_node(array), (1,))) for array in arrays])


def _transpose(array: Pending, axes: Sequence[int] | None = None) -> Pending:
    order = tuple(axes) if axes is not None else tuple(range(array.ndim))[::-1]
    return array if order == tuple(range(array.ndim)) else Pending(Permuted(array.node, order))


def _broadcast_to(array: Pending, shape: Sequence[int]) -> Pending:
    new = len(shape) - array.ndim
    if tuple(shape[new:]) != array.shape:
        raise _refusal("broadcasting")
    return Pending(Repeated(array.node, tuple(shape[:new]))) if new else array


def _result_type(*arrays: Any) -> Any:
    return np.result_type(*(each.dtype if isinstance(each, Pending) else each for each in arrays))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: _concatenate,
    np.stack: _stack,
    np.transpose: _transpose,
    np.broadcast_to: _broadcast_to,
    np.result_type: _result_type,
    np.ndim: lambda array: array.ndim,
    np.shape: lambda array: array.shape,
}


def as_pending(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with stand-ins for what of it is lazy."""
    return _exchange(dataset, _stand_in)


def as_lazy(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with lazy arrays for the stand-ins in it."""
    return _exchange(dataset, _lazy)


def _exchange(dataset: xr.Dataset, function: Callable[[Any], Any]) -> xr.Dataset:
    new = dataset.copy(deep=False)
    for variable in new.variables.values():
        if not isinstance(variable, xr.IndexVariable):
            # Private: there is no other way to exchange lazy data without loading it.
            variable._data = function(variable._data)
    return new


def _stand_in(data: Any) -> Any:
    lazy = data
    while isinstance(lazy, MemoryCachedArray | CopyOnWriteArray):
        lazy = lazy.array
    if not isinstance(lazy, ExplicitlyIndexed) or isinstance(lazy, IndexingAdapter):
        # In memory.
        return data
    return Pending(Leaf(lazy))


def _lazy(data: Any) -> Any:
    if not isinstance(data, Pending):
        return data
    array = (
        data.node.array
        if isinstance(data.node, Leaf)
        else AioArray(LazilyIndexedArray(JoinedArray(data.node)))
    )
    protected: Any = copy.copy(array)
    return MemoryCachedArray(CopyOnWriteArray(protected))
