"""Variables of an open that have the same Zarr document, which xarray decodes only once.

In a tree of a thousand groups, most variables have the document of a variable in another group.
To make and decode all of them takes xarray longer than all requests take.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr

from aioxarray._xarray.arrays.prefetched_array import PrefetchedArray
from aioxarray._xarray.compat import (
    BoolTypeArray,
    LazilyIndexedArray,
    NativeEndiannessArray,
    ZarrArrayWrapper,
    _ElementwiseFunctionArray,
)

if TYPE_CHECKING:
    import zarr

# The arguments that may be given for each variable by name.
_BY_NAME = (
    "mask_and_scale",
    "decode_times",
    "concat_characters",
    "decode_timedelta",
    "use_cftime",
)
# Adapters with one array inside, ``array``.
_ADAPTERS = (LazilyIndexedArray, _ElementwiseFunctionArray, NativeEndiannessArray, BoolTypeArray)
# Numbers. The dtype of times depends on their values.
_NUMBERS = "biufc"
# xarray warns of what it finds in some of these attributes, for each variable.
_WARNED_OF = frozenset(("missing_value", "_Unsigned"))


class _Template(NamedTuple):
    """A decoded variable, for others with the same document."""

    # Keeps the id alive that the template is found by.
    metadata: Any
    variable: xr.Variable
    wrapper: ZarrArrayWrapper
    # Whether attributes have to be copied deeply.
    nested: bool


class Templates:
    """The decoded variables of an open, by the metadata that their arrays share.

    Parameters
    ----------
    decoding
        The arguments of the open for decoding.
    """

    def __init__(self, decoding: Mapping[str, Any]) -> None:
        self._useful = not any(isinstance(decoding.get(name), Mapping) for name in _BY_NAME)
        # "all" also moves other attributes than ``coordinates``, and warns of what is missing.
        self._useful &= decoding.get("decode_coords", True) != "all"
        self._known: dict[int, _Template] = {}

    def apply_to(self, arrays: Iterable[zarr.Array[Any]]) -> bool:
        """Return whether a group of ``arrays`` can have templates, or take variables from them.

        Not if the decoding of one variable depends on another: xarray gives the bounds of a time
        coordinate the attributes of that coordinate, and joins characters to strings if no other
        variable has their dimension.
        """
        return self._useful and not any(
            array.dtype.kind == "S" or ("bounds" in array.metadata.attributes and _is_time(array))
            for array in arrays
        )

    def variable(self, array: zarr.Array[Any], values: Mapping[str, Any]) -> xr.Variable | None:
        """Return the decoded variable for ``array``; None if its document has no template.

        ``values`` are the chunks that were fetched, as in `PrefetchedArray`.
        """
        template = self._known.get(id(array.metadata))
        if template is None:
            return None
        wrapper = copy.copy(template.wrapper)
        wrapper._array = array
        like = template.variable
        encoding = dict(like.encoding)
        encoding["preferred_chunks"] = dict(encoding["preferred_chunks"])
        attributes = copy.deepcopy(like.attrs) if template.nested else dict(like.attrs)
        data = _rebased(like._data, PrefetchedArray(wrapper, values))
        return xr.Variable(like.dims, data, attributes, encoding, fastpath=True)

    def learn(self, array: zarr.Array[Any], variable: xr.Variable) -> None:
        """Keep ``variable``, decoded from ``array``, as a template."""
        data, metadata = variable._data, array.metadata
        base = _base(data)
        if (
            base is not None
            and array.dtype.kind in _NUMBERS
            and variable.dtype.kind in _NUMBERS
            and not _is_time(array)
            and _WARNED_OF.isdisjoint(metadata.attributes)
        ):
            attributes, encoding = dict(variable.attrs), dict(variable.encoding)
            nested = any(isinstance(value, list | dict) for value in attributes.values())
            # A variable of its own: the other one is the user's.
            kept = xr.Variable(
                variable.dims,
                data,
                copy.deepcopy(attributes) if nested else attributes,
                encoding,
                fastpath=True,
            )
            self._known[id(metadata)] = _Template(metadata, kept, base.plain, nested)


def _is_time(array: zarr.Array[Any]) -> bool:
    units = array.metadata.attributes.get("units")
    return isinstance(units, str) and "since" in units


def _base(data: Any) -> PrefetchedArray | None:
    """Return the array at the bottom of a chain of known adapters; None if one is not known."""
    while type(data) in _ADAPTERS:
        data = data.array
    return data if type(data) is PrefetchedArray else None


def _rebased(data: Any, base: PrefetchedArray) -> Any:
    """Return a chain of adapters like ``data``, around ``base``."""
    if type(data) is PrefetchedArray:
        return base
    adapter = copy.copy(data)
    adapter.array = _rebased(data.array, base)
    return adapter
