"""A placeholder for lazy data while xarray combines datasets, which records the operations.

xarray would load a lazy array to combine it. The placeholder is numpy-like enough to be
concatenated, stacked, transposed and cast, and refuses any operation that needs values. The dtype
of each result is the one that numpy gives to the same operation on empty arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from aioxarray._xarray.arrays.nodes import Cast, Joined, JoinedNode, Leaf, Permuted, Repeated


class CannotCombineLazily(ValueError):
    """Raised when combining datasets needs the values of a variable that is not loaded."""


class Placeholder(np.lib.mixins.NDArrayOperatorsMixin):
    """A numpy-like array that stands for lazy data.

    Parameters
    ----------
    node
        The lazy data.
    name
        The name of its variable, for error messages.
    """

    def __init__(self, node: JoinedNode, name: Hashable) -> None:
        self.node = node
        self.name = name

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

    def astype(self, dtype: Any, **_: Any) -> Placeholder:
        # xarray asks for strings of no particular length (``np.str_``). numpy derives the length
        # from the old dtype, but for objects it would have to look at the values.
        new = _model(self).astype(dtype).dtype
        if new.kind in "SU" and self.dtype.kind not in "SUbiufcmM":
            raise refusal(self, "converting to text")
        return self if new == self.dtype else Placeholder(Cast(self.node, new), self.name)

    def transpose(self, axes: Sequence[int] | None = None) -> Placeholder:
        order = tuple(axes) if axes is not None else tuple(range(self.ndim))[::-1]
        if order == tuple(range(self.ndim)):
            return self
        return Placeholder(Permuted(self.node, order), self.name)

    def __getitem__(self, key: Any) -> Placeholder:
        keys = key if isinstance(key, tuple) else (key,)
        new = 0
        while new < len(keys) and keys[new] is None:
            new += 1
        if not all(each is Ellipsis or _is_full(each) for each in keys[new:]):
            raise refusal(self, "selecting from")
        return Placeholder(Repeated(self.node, (1,) * new), self.name) if new else self

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise refusal(self, "loading")

    def __array_ufunc__(self, ufunc: Any, *args: Any, **kwargs: Any) -> Any:
        raise refusal(self, _COMPARISONS.get(ufunc, f"applying {ufunc.__name__} to"))

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        handler = _FUNCTIONS.get(function)
        if handler is None:
            raise refusal(self, _COMPARISONS.get(function, f"applying {function.__name__} to"))
        return handler(*args, **kwargs)


# The functions that xarray uses to test arrays for equality.
_COMPARISONS: dict[Any, str] = dict.fromkeys(
    (np.equal, np.not_equal, np.isnan, np.isnat, np.isclose, np.full_like), "comparing"
)


def refusal(array: Placeholder, what: str) -> CannotCombineLazily:
    """Return the error that says why ``array`` cannot stay lazy, with workarounds."""
    name = array.name
    return CannotCombineLazily(
        f"combining these datasets means {what} the variable {name!r}, which is not loaded, and "
        "loading is what chunks=None never does behind your back. Ways out: take variables "
        "without the concatenated dimension from the first dataset (data_vars='minimal', "
        "coords='minimal', compat='override'); load the variable as each file is opened "
        f"(preprocess=lambda ds: ds.assign({{{name!r}: ds[{name!r}].load()}})), or leave it out "
        f"(drop_variables={name!r}); or use dask arrays (chunks={{}})."
    )


def _is_full(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _model(array: Any) -> Any:
    """Return an empty numpy array in place of a placeholder, and anything else unchanged."""
    return np.empty(0, array.dtype) if isinstance(array, Placeholder) else array


def _node(array: Any) -> JoinedNode:
    return array.node if isinstance(array, Placeholder) else Leaf(np.asarray(array))


def _name(arrays: Sequence[Any]) -> Hashable:
    return next(each.name for each in arrays if isinstance(each, Placeholder))


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Placeholder:
    nodes = tuple(_node(array) for array in arrays)
    return Placeholder(Joined(nodes, axis % len(nodes[0].shape)), _name(arrays))


def _stack(arrays: Sequence[Any], axis: int = 0) -> Placeholder:
    name = _name(arrays)
    if axis != 0:
        raise refusal(
            next(each for each in arrays if isinstance(each, Placeholder)), "moving axes of"
        )
    return _concatenate([Placeholder(Repeated(_node(array), (1,)), name) for array in arrays])


def _broadcast_to(array: Placeholder, shape: Sequence[int]) -> Placeholder:
    new = len(shape) - array.ndim
    if tuple(shape[new:]) != array.shape:
        raise refusal(array, "broadcasting")
    return Placeholder(Repeated(array.node, tuple(shape[:new])), array.name) if new else array


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: _concatenate,
    np.stack: _stack,
    np.transpose: lambda array, axes=None: array.transpose(axes),
    np.broadcast_to: _broadcast_to,
    np.result_type: lambda *arrays: np.result_type(*map(_model, arrays)),
    np.ndim: lambda array: array.ndim,
    np.shape: lambda array: array.shape,
}
