"""The caller's own arrays that variables are loaded into: which they are, and copying into them.

Values are read straight into such an array where that is possible, and otherwise copied into it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from aioxarray._runtime.threads.lent import Lent
from aioxarray._xarray.compat import ExplicitlyIndexed, is_chunked_array
from aioxarray._xarray.lazy.find import each_variable
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Destination
from aioxarray.errors import did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]

# DLPack's numbers for memory that the CPU reads as its own: ordinary, and page-locked by CUDA or
# ROCm.
_ON_CPU = (1, 3, 11)
# How many steps of a search decide whether two interleaved arrays share an element.
_SEARCH = 100_000


class Destinations:
    """The caller's arrays for variables of an object, checked.

    Parameters
    ----------
    obj
        A Variable, DataArray or Dataset.
    out
        For a Dataset a mapping of names of variables to arrays, otherwise one array.

    Attributes
    ----------
    lent
        The permission to write into the arrays.

    Raises
    ------
    TypeError, ValueError
        If an array does not fit its variable, or overlaps another one.
    """

    def __init__(self, obj: Any, out: Any) -> None:
        self.lent = Lent()
        self._arrays: dict[int, Destination] = {}
        named: list[tuple[str, Array]] = []
        for label, variable, given in _pairs(obj, out):
            array = _view(given, label)
            _check(array, variable, label)
            self._arrays[id(variable)] = Destination(array, self.lent)
            named.append((label, array))
        _check_overlap(named)
        in_memory = [
            (f"the values of {each.label}, which are in memory", each.variable._data)
            for each in each_variable(obj)
            if isinstance(each.variable._data, np.ndarray) and self.of(each.variable) is None
        ]
        for pair in itertools.product(named, in_memory):
            _check_pair(*pair)

    def of(self, variable: xr.Variable) -> Destination | None:
        """Return where the values of ``variable`` go; None if the caller has not said."""
        return self._arrays.get(id(variable))


def _pairs(obj: Any, out: Any) -> Iterator[tuple[str, xr.Variable, Any]]:
    """Yield the name in errors of each array, its variable, and the array as it was given."""
    if isinstance(obj, xr.Variable | xr.DataArray):
        if isinstance(out, Mapping):
            raise TypeError(
                f"out is a mapping, but the values of a {type(obj).__name__} go into one array: "
                "pass that array"
            )
        yield "out", obj if isinstance(obj, xr.Variable) else obj.variable, out
    elif isinstance(obj, xr.Dataset):
        if not isinstance(out, Mapping):
            raise TypeError(
                "out must be a mapping of names of variables to arrays for a Dataset, got "
                f"{type(out).__name__}"
            )
        for name, array in out.items():
            yield f"out[{name!r}]", _named(obj, name), array
    else:
        raise TypeError(
            "out has the arrays for one Variable, DataArray or Dataset, and obj is a "
            f"{type(obj).__name__}: load its groups or items one by one"
        )


def _named(obj: xr.Dataset, name: Hashable) -> xr.Variable:
    if name not in obj.variables:
        close = did_you_mean(str(name), map(str, obj.variables))
        raise ValueError(f"out has an array for {name!r}, and there is no such variable{close}")
    return obj.variables[name]


def _view(given: Any, label: str) -> Array:
    """Return ``given`` as a numpy array with the same memory."""
    if isinstance(given, np.ma.MaskedArray | np.generic):
        raise TypeError(f"{label} is a {type(given).__name__}; pass a plain numpy array")
    if isinstance(given, np.ndarray) or hasattr(given, "__array_interface__"):
        return np.asarray(given)
    if hasattr(given, "__dlpack__"):
        return _view_of_dlpack(given, label)
    try:
        return np.asarray(memoryview(given))
    except (TypeError, ValueError):
        raise TypeError(
            f"{label} must be an array whose memory numpy can write into (of numpy, or with a "
            f"buffer, __array_interface__ or DLPack), got {type(given).__name__}"
        ) from None


def _view_of_dlpack(given: Any, label: str) -> Array:
    try:
        device = int(given.__dlpack_device__()[0])
        view = np.from_dlpack(given) if device in _ON_CPU else None
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        # The libraries raise different errors for dtypes and devices that numpy lacks.
        raise TypeError(
            f"numpy has no view of {label}, a {type(given).__name__}: {error}"
        ) from error
    if view is None:
        raise TypeError(
            f"{label} is not in memory of the CPU (its DLPack device type is {device}): load into "
            "page-locked memory, and copy from there"
        )
    if not view.flags.writeable and hasattr(given, "__array__"):
        # DLPack before version 1.0 does not tell, and then numpy assumes the worst, as numpy 2.2
        # always does. Tensors of torch have a method of their own, too.
        array = np.asarray(given)
        if is_same_memory(array, view):
            return array
    return view


def _check(array: Array, variable: xr.Variable, label: str) -> None:
    if isinstance(variable, xr.IndexVariable):
        raise ValueError(
            f"{label} is for the coordinate of a dimension, whose index holds the values: leave it "
            "out, and copy its values"
        )
    data: Any = variable._data
    if not (isinstance(data, np.ndarray | ExplicitlyIndexed) or is_chunked_array(data)):
        raise TypeError(
            f"{label} is for values in memory of type {type(data).__name__}, and not of numpy"
        )
    if array.shape != variable.shape:
        raise ValueError(f"{label} has the shape {array.shape}, and its variable {variable.shape}")
    if array.dtype != variable.dtype:
        raise TypeError(
            f"{label} has the dtype {array.dtype}, and its variable {variable.dtype}: values are "
            "not converted"
        )
    if not array.flags.writeable:
        raise ValueError(f"{label} is read-only")
    # Such as an array that was broadcast.
    pairs = zip(array.shape, array.strides, strict=True)
    if array.size and any(length > 1 and stride == 0 for length, stride in pairs):
        raise ValueError(f"several elements of {label} share one place in memory")


def _check_overlap(named: Sequence[tuple[str, Array]]) -> None:
    # Sorted by address, so that hundreds of arrays are compared with their neighbours only.
    spans = sorted(((*_span(array), label, array) for label, array in named), key=lambda s: s[:2])
    open_spans: list[tuple[int, str, Array]] = []
    for start, end, label, array in spans:
        open_spans = [each for each in open_spans if each[0] > start]
        for _, other, before in open_spans:
            _check_pair((label, array), (other, before))
        open_spans.append((end, label, array))


def _span(array: Array) -> tuple[int, int]:
    """Return the addresses of the first byte of ``array``, and of that after its last."""
    start = end = array.__array_interface__["data"][0]
    if array.size == 0:
        return start, start
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            start += (length - 1) * stride
        else:
            end += (length - 1) * stride
    return start, end + array.itemsize


def _check_pair(one: tuple[str, Array], other: tuple[str, Array]) -> None:
    if not np.may_share_memory(one[1], other[1]):
        return
    # The stubs of some releases of numpy know only two values of ``max_work``.
    shares_memory: Any = np.shares_memory
    try:
        overlap = shares_memory(one[1], other[1], max_work=_SEARCH)
    except np.exceptions.TooHardError:
        overlap = True
    if overlap:
        raise ValueError(f"{one[0]} overlaps {other[0]} in memory")


def is_same_memory(data: Any, array: Array) -> bool:
    """Return whether ``data`` is a numpy array of the same elements in the same memory."""
    return data is array or (
        isinstance(data, np.ndarray)
        and data.dtype == array.dtype
        and data.shape == array.shape
        and data.strides == array.strides
        and data.__array_interface__["data"][0] == array.__array_interface__["data"][0]
    )


def put_into(
    destinations: Iterable[Destination],
    value: Any,
    finish: Callable[[Any], Any],
    label: str,
    stop: threading.Event,
) -> Array:
    """Copy ``finish(value)`` into each array that does not have it yet; return the first array.

    Parameters
    ----------
    destinations
        The arrays.
    value
        The values as they were read.
    finish
        Decodes them.
    label
        Names the variable in errors.
    stop
        Once it is set, the outcome has no meaning, and this ends early.
    """
    first, *others = destinations
    if _is_decoded_in_parts(value, first.array):
        length = max(1, tuning.DECODED_PART_BYTES // first.array[:1].nbytes)
        for start in range(0, len(first.array), length):
            if stop.is_set():
                break
            part = slice(start, start + length)
            _put(finish(value[part]), first.array[part], first, label)
    else:
        _put(finish(value), first.array, first, label)
    for each in others:
        _put(first.array, each.array, each, label)
    return first.array


def _is_decoded_in_parts(value: Any, array: Array) -> bool:
    """Return whether numbers are decoded element by element, so that parts of them can be.

    The CF conventions scale and mask numbers in this way. Dates are decoded by how large all of
    them are, and texts have another shape before.
    """
    return (
        isinstance(value, np.ndarray)
        and value.shape == array.shape
        and value.ndim > 0
        and array.nbytes > tuning.DECODED_PART_BYTES
        and value.dtype.kind in "biuf"
        and array.dtype.kind in "biuf"
        and not is_same_memory(value, array)
    )


def _put(value: Any, place: Array, destination: Destination, label: str) -> None:
    with destination.lent.writing() as may_write:
        if may_write and not is_same_memory(value, place):
            _copy(value, place, label)


def _copy(value: Any, array: Array, label: str) -> None:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{label} was loaded as a {type(value).__name__}, which cannot be put into the array "
            "in out"
        )
    # The declared dtype and shape were right; a backend may break its word.
    if value.dtype != array.dtype or value.shape != array.shape:
        raise TypeError(
            f"{label} was loaded with the dtype {value.dtype} and the shape {value.shape}; the "
            f"array in out has {array.dtype} and {array.shape}"
        )
    np.copyto(array, value)
