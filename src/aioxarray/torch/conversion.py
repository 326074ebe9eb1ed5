"""Tensors that share the memory of xarray objects and numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

__all__ = ["as_tensors"]


def as_tensors(obj: Any) -> Any:
    """Return ``obj`` with tensors in place of its arrays, which share their memory.

    Parameters
    ----------
    obj
        A DataArray, Variable or numpy array becomes a tensor; a Dataset becomes a dict of its data
        variables (not its coordinates) by name, and a DataTree a dict of such dicts by path. In
        lists, tuples and dicts, each item is converted. Tensors, and all that is not an array,
        stay as they are.

    Returns
    -------
    Any
        The tensors.

    Raises
    ------
    TypeError
        If torch has no such dtype: dates, time spans, texts, objects.

    Notes
    -----
    *Requests:* those of xarray, for data that is lazy. Load it first.

    *Memory:* tensors share it with the arrays, by DLPack. Arrays that are read-only, in the other
    byte order or reversed are copied. bfloat16 of the package ml_dtypes becomes torch's own.
    """
    return _converted(obj, "the array")


def _converted(obj: Any, label: str) -> Any:
    if isinstance(obj, xr.DataArray | xr.Variable):
        name = getattr(obj, "name", None)
        return _tensor(np.asarray(obj.data), label if name is None else f"variable {name!r}")
    if isinstance(obj, xr.Dataset):
        return {
            name: _tensor(np.asarray(array.data), f"variable {name!r}")
            for name, array in obj.data_vars.items()
        }
    if isinstance(obj, xr.DataTree):
        return {path: _converted(node.dataset, label) for path, node in obj.subtree_with_keys}
    if isinstance(obj, np.ndarray | np.generic):
        return _tensor(np.asarray(obj), label)
    return mapped(obj, lambda item: _converted(item, label))


def mapped(obj: Any, function: Callable[[Any], Any]) -> Any:
    """Return ``obj`` with ``function`` applied to the items of a list, tuple or dict."""
    if isinstance(obj, Mapping):
        return {key: function(item) for key, item in obj.items()}
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return type(obj)(*map(function, obj))
    if type(obj) in (list, tuple):
        return type(obj)(map(function, obj))
    return obj


def each_tensor(obj: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return ``obj`` with ``function`` applied to all tensors in it."""
    if isinstance(obj, torch.Tensor):
        return function(obj)
    return mapped(obj, lambda item: each_tensor(item, function))


def _tensor(array: np.ndarray[Any, Any], label: str) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        # numpy knows it only by ml_dtypes, and DLPack not from numpy.
        return _shared(array.view(np.int16), label).view(torch.bfloat16)
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"torch has no dtype for {label}, {array.dtype}: {_way_out(array.dtype)} in a "
            "transform, such as aioxarray.stream(…, transform=…)"
        )
    return _shared(array, label)


def _way_out(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "mM":
        return "convert it to numbers (.astype('int64') or .dt) or drop it"
    return "convert it to numbers or drop it (ds.drop_vars)"


def _shared(array: np.ndarray[Any, Any], label: str) -> torch.Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    elif not array.flags.writeable or any(
        stride < 0 or stride % array.itemsize for stride in array.strides
    ):
        # A tensor of it could be written to, or cannot be.
        array = array.copy()
    try:
        return torch.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"torch has no dtype for {label}, {array.dtype}: {error}") from error
