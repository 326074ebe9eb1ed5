"""Deferred encoding: stand-ins for a variable's values, encoded block by block when written.

xarray encodes (fills, scales, casts) each variable as a whole before it writes any, and loads it
for that. Numbers are encoded element by element, so encoding them by blocks gives the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from aioxarray._xarray.compat import ExplicitlyIndexed
from aioxarray._zarr import tuning

Encode = Callable[[xr.Variable], xr.Variable]


@dataclass(frozen=True)
class Deferred:
    """A duck array of the encoded values of ``variable``, which are computed when written.

    Attributes
    ----------
    variable
        The user's variable, in memory or lazy, with the encoding to save it in.
    encode
        Encodes a part of the variable.
    dtype
        The dtype of the encoded values.
    order
        For each axis of this array, the corresponding axis of the variable.
    """

    variable: xr.Variable
    encode: Encode
    dtype: np.dtype[Any]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape[axis] for axis in self.order)

    @property
    def ndim(self) -> int:
        return len(self.order)

    @property
    def size(self) -> int:
        return int(self.variable.size)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def transpose(self, axes: Sequence[int] | None = None) -> Deferred:
        """Return this array with its axes permuted."""
        axes = range(self.ndim)[::-1] if axes is None else axes
        order = tuple(self.order[axis] for axis in axes)
        return Deferred(self.variable, self.encode, self.dtype, order)

    def part(self, selection: Sequence[slice]) -> xr.Variable:
        """Return the part of the variable behind ``selection`` of this array; it stays lazy."""
        key: list[Any] = [slice(None)] * self.ndim
        for axis, each in zip(self.order, selection, strict=True):
            key[axis] = each
        return self.variable[tuple(key)]

    def encoded(self, part: xr.Variable) -> Any:
        """Return the values of this array for a part of the variable that is in memory."""
        # Private: the data of a variable.
        values = self.encode(part)._data
        return np.asarray(values).transpose(self.order)

    # These make it a duck array for xarray, which never computes with it.
    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return NotImplemented

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return NotImplemented

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("the values of a deferred array are there only while they are written")


def defers(variable: xr.Variable) -> bool:
    """Return whether it is possible and worthwhile to encode ``variable`` block by block."""
    data: Any = variable._data
    if isinstance(variable, xr.IndexVariable) or variable.size == 0:
        return False
    # How times, strings and objects are encoded depends on all of their values.
    if variable.dtype.kind not in "biufc" or variable.nbytes <= tuning.DEFERRED_BYTES:
        return False
    return type(data) is np.ndarray or isinstance(data, ExplicitlyIndexed)


def encoded_or_deferred(variable: xr.Variable, encode: Encode) -> xr.Variable:
    """Return ``variable`` encoded, with its values deferred if `defers` allows it."""
    if not defers(variable):
        return encode(variable)
    one = np.zeros((1,) * variable.ndim, variable.dtype)
    new = encode(xr.Variable(variable.dims, one, variable.attrs, variable.encoding))
    deferred: Any = Deferred(variable, encode, new.dtype, tuple(range(variable.ndim)))
    # Private: every public way to set the data converts or inspects it.
    new._data = deferred
    return new
