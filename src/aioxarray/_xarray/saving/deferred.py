"""Stand-ins for the encoded values of a variable: encoded block by block while they are written.

xarray encodes (fills, scales, casts) each variable as a whole before it writes any, and loads it
for that. For numbers that is the same element by element, so blocks will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

# Private: the base class of lazy data.
from xarray.core.indexing import ExplicitlyIndexed

Encode = Callable[[xr.Variable], xr.Variable]

# Encoding a smaller variable as a whole costs less than the hops to threads.
_LARGE_BYTES = 256 << 10


@dataclass(frozen=True)
class Deferred:
    """The encoded values of ``variable``, none of which there is yet: a duck array of numpy.

    Attributes
    ----------
    variable
        The variable as the user has it, in memory or lazy, with the encoding it is saved in.
    encode
        Encodes a variable that is a part of it.
    dtype
        The type of the encoded values.
    order
        Which of the variable's axes are the axes of this array.
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
        """Return it with other axes."""
        axes = range(self.ndim)[::-1] if axes is None else axes
        order = tuple(self.order[axis] for axis in axes)
        return Deferred(self.variable, self.encode, self.dtype, order)

    def part(self, selection: Sequence[slice]) -> xr.Variable:
        """Return the part of the variable that becomes a part of this array; it stays lazy."""
        key: list[Any] = [slice(None)] * self.ndim
        for axis, each in zip(self.order, selection, strict=True):
            key[axis] = each
        return self.variable[tuple(key)]

    def encoded(self, part: xr.Variable) -> Any:
        """Return the values of this array for a part of the variable that is in memory."""
        # Private: what a variable holds.
        values = self.encode(part)._data
        return np.asarray(values).transpose(self.order)

    # What makes it a duck array to xarray. Nothing is computed with one.
    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return NotImplemented

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return NotImplemented

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("the values of a deferred array are there only while they are written")


def defers(variable: xr.Variable) -> bool:
    """Say whether the values of ``variable`` can be encoded block by block, and are worth it."""
    data: Any = variable._data
    if isinstance(variable, xr.IndexVariable) or variable.size == 0:
        return False
    # Times, texts and objects are encoded by what all of their values are.
    if variable.dtype.kind not in "biufc" or variable.nbytes <= _LARGE_BYTES:
        return False
    return type(data) is np.ndarray or isinstance(data, ExplicitlyIndexed)


def encoded_or_deferred(variable: xr.Variable, encode: Encode) -> xr.Variable:
    """Return ``variable`` encoded, its values deferred if that makes no difference to them."""
    if not defers(variable):
        return encode(variable)
    one = np.zeros((1,) * variable.ndim, variable.dtype)
    new = encode(xr.Variable(variable.dims, one, variable.attrs, variable.encoding))
    deferred: Any = Deferred(variable, encode, new.dtype, tuple(range(variable.ndim)))
    # Private: nothing else puts an array into a variable without looking into it.
    new._data = deferred
    return new
