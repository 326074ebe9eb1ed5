"""Combining lazy datasets with xarray's own functions, without loading them.

A `Placeholder` takes the place of each lazy array. Two steps of xarray would apply a mask as large
as the data: aligning datasets with different indexes, and filling in variables that some datasets
lack. Here these become `Reindexed` nodes and broadcast fill values.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from aioxarray._xarray.arrays.nodes import Cast, Leaf, Reindexed
from aioxarray._xarray.arrays.selectors import as_selector
from aioxarray._xarray.lazy.composed import lazy_array, lazy_data_of
from aioxarray._xarray.opening.placeholders import Placeholder


def combine_by_coords(datasets: Iterable[xr.Dataset], options: Mapping[str, Any]) -> xr.Dataset:
    """Combine datasets like `xarray.combine_by_coords`, keeping lazy data lazy.

    Raises
    ------
    CannotCombineLazily
        If combining needs values that are not loaded.
    """
    combined: Any = xr.combine_by_coords([_with_placeholders(each) for each in datasets], **options)
    return _as_lazy(combined)


def combine_nested(datasets: list[Any], concat_dim: Any, options: Mapping[str, Any]) -> xr.Dataset:
    """Combine nested lists of datasets like `xarray.combine_nested`, keeping lazy data lazy.

    Raises
    ------
    CannotCombineLazily
        If combining needs values that are not loaded.
    """
    combined: Any = datasets
    dims = concat_dims(concat_dim)
    if len(_shape(datasets) or ()) != len(dims):
        # Let xarray raise its own error.
        combined = xr.combine_nested(datasets, concat_dim=concat_dim, **options)
        return _as_lazy(combined)
    for dim in dims:
        combined = _combine_along(dim, combined, options)
    return _as_lazy(combined)


def _combine_along(dim: Any, nested: list[Any], options: Mapping[str, Any]) -> Any:
    """Combine along the outermost list, which is where xarray begins."""
    if isinstance(nested[0], list):
        columns = zip(*nested, strict=True)
        return [_combine_along(dim, list(column), options) for column in columns]
    datasets = [_with_placeholders(each) for each in nested]
    if dim is not None:
        datasets = _with_absent(datasets, dim, options)
    return xr.combine_nested(datasets, concat_dim=[dim], **options)


def concat_dims(concat_dim: Any) -> list[Any]:
    """Return the ``concat_dim`` of `xarray.combine_nested` as a list."""
    if isinstance(concat_dim, str | xr.DataArray) or concat_dim is None:
        return [concat_dim]
    return list(concat_dim)


def _shape(nested: Any) -> tuple[int, ...] | None:
    """Return the shape of nested lists; None if they are ragged or empty."""
    if not isinstance(nested, list):
        return ()
    shapes = {_shape(each) for each in nested}
    inner = shapes.pop() if len(shapes) == 1 else None
    return None if inner is None else (len(nested), *inner)


# --- variables that only some datasets have ---------------------------------------------------


def _with_absent(
    datasets: list[xr.Dataset], dim: Any, options: Mapping[str, Any]
) -> list[xr.Dataset]:
    """Return ``datasets`` with fill values for lazy variables that only some of them have.

    `xarray.concat` would align datasets, concatenate the existing variables and reindex the result.
    """
    label = _label(dim)
    names = dict.fromkeys(name for each in datasets for name in each.data_vars)
    if all(name in each.variables for name in names for each in datasets):
        return datasets
    join = {"join": options["join"]} if "join" in options else {}
    datasets = list(xr.align(*datasets, exclude=[label], copy=False, **join))
    for name in names:
        if _is_filled(name, datasets, label, options["data_vars"]):
            datasets = _filled(name, datasets, label)
    return datasets


def _label(dim: Any) -> Hashable:
    """Return the name of the dimension to concatenate along, as xarray chooses it."""
    if isinstance(dim, xr.DataArray):
        return dim.dims[0]
    if isinstance(dim, Hashable):
        return dim
    return "concat_dim" if dim.name is None else dim.name


def _is_filled(name: Hashable, datasets: list[xr.Dataset], label: Hashable, data_vars: Any) -> bool:
    """Return whether `xarray.concat` fills in a lazy variable that some datasets lack."""
    having = [each for each in datasets if name in each.variables]
    if any(name in each.coords for each in having):
        # xarray raises an error.
        return False
    if not any(isinstance(each.variables[name]._data, Placeholder) for each in having):
        return False
    if not any(each.sizes.get(label, 1) for each in datasets if name not in each.variables):
        # The datasets without it have length 0 along the dimension.
        return False
    if any(label in each.variables[name].dims for each in having):
        return True
    if isinstance(data_vars, list | tuple | set):
        return name in data_vars
    if data_vars in ("all", "minimal", "different"):
        return bool(data_vars == "all")
    # The default, or None.
    return not any(label in each.dims or label in each.variables for each in datasets)


def _filled(name: Hashable, datasets: list[xr.Dataset], label: Hashable) -> list[xr.Dataset]:
    """Return ``datasets`` with the variable in each of them, in a common dtype."""
    having = [each for each in datasets if name in each.variables]
    inner = {dim for each in having for dim in each.variables[name].dims if dim != label}
    size = min(
        (each.sizes[dim] for each in datasets for dim in inner if dim in each.dims), default=1
    )
    fill = _fill_value(
        *((each.variables[name].dtype, min(size * each.sizes.get(label, 1), 1)) for each in having)
    )
    first = having[0].variables[name]
    # A scalar, which xarray broadcasts.
    missing = xr.Variable((), fill, first.attrs, first.encoding)

    def cast(variable: xr.Variable) -> xr.Variable:
        data: Any = variable._data
        return xr.Variable(
            variable.dims, data.astype(fill.dtype), variable.attrs, variable.encoding
        )

    return [
        each.assign({name: cast(each.variables[name]) if name in each.variables else missing})
        for each in datasets
    ]


@functools.lru_cache(256)
def _fill_value(*models: tuple[np.dtype[Any], int]) -> Any:
    """Return xarray's fill value next to arrays of these dtypes, as a 0-d array.

    Its dtype is the common dtype of the result. xarray has special rules for empty arrays, so each
    dtype comes with the size of a model array: zero or one element.
    """
    arrays = [xr.Variable("d", np.zeros(size, dtype)) for dtype, size in models]
    model = xr.Variable.concat(arrays, "d")
    filled: Any = xr.DataArray(model, {"d": np.arange(model.size)}).reindex(d=[-1]).data
    return filled.reshape(())


# --- alignment ----------------------------------------------------------------------------------


class _Aligning(xr.Dataset):
    """A dataset that reindexes its placeholders itself when xarray aligns it with others.

    Concatenating keeps the class of the datasets. Merging does not.
    """

    __slots__ = ()

    # Private: the hook that alignment calls on each object, as the public `reindex` does.
    def _reindex_callback(
        self,
        aligner: Any,
        dim_pos_indexers: Any,
        variables: Any,
        indexes: Any,
        fill_value: Any,
        exclude_dims: Any,
        exclude_vars: Any,
    ) -> Any:
        lazy = {
            name: variable
            for name, variable in self._variables.items()
            if isinstance(variable._data, Placeholder)
            and name not in variables
            and name not in exclude_vars
        }
        rest = (fill_value, exclude_dims, exclude_vars)
        if not dim_pos_indexers or not lazy:
            return super()._reindex_callback(aligner, dim_pos_indexers, variables, indexes, *rest)
        # Small variables keep the order.
        places = dict.fromkeys(lazy, xr.Variable("\0aioxarray", np.zeros(1)))
        without = self._replace(variables={**self._variables, **places})
        aligned: Any = xr.Dataset._reindex_callback(
            without, aligner, dim_pos_indexers, variables, indexes, *rest
        )
        reindexed = {
            name: _reindexed(name, variable, dim_pos_indexers) for name, variable in lazy.items()
        }
        return aligned._replace_with_new_dims({**aligned._variables, **reindexed})


def _reindexed(name: Hashable, variable: xr.Variable, indexers: Mapping[Any, Any]) -> xr.Variable:
    """Return ``variable`` reindexed by position along its dimensions, where -1 means missing.

    The fill value is xarray's default: `xarray.open_mfdataset` has no argument for another.
    """
    data: Any = variable._data
    along = {
        axis: np.asarray(indexers[dim], dtype=np.int64)
        for axis, dim in enumerate(variable.dims)
        if dim in indexers
    }
    node = data.node
    fill = np.zeros((), node.dtype)
    if any((index < 0).any() for index in along.values()):
        fill = _fill_value((node.dtype, min(data.size, 1)))
        if fill.dtype != node.dtype:
            node = Cast(node, fill.dtype)
    for axis, index in along.items():
        if not np.array_equal(index, np.arange(node.shape[axis])):
            selector = index if (index < 0).any() else as_selector(index)
            node = Reindexed(node, axis, selector, fill)
    return xr.Variable(variable.dims, Placeholder(node, name), variable.attrs, variable.encoding)


# --- placeholders --------------------------------------------------------------------------------


def _with_placeholders(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with its lazy arrays replaced by placeholders."""
    return _exchange(dataset, _placeholder, _Aligning)


def _as_lazy(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with its placeholders turned back into lazy arrays."""
    return _exchange(dataset, _lazy, xr.Dataset)


def _exchange(
    dataset: xr.Dataset, function: Callable[[Hashable, Any], Any], kind: type[xr.Dataset]
) -> xr.Dataset:
    variables = {name: variable.copy(deep=False) for name, variable in dataset.variables.items()}
    for name, variable in variables.items():
        if not isinstance(variable, xr.IndexVariable):
            # Private: no public method replaces lazy data without loading it.
            variable._data = function(name, variable._data)
    # Private: the constructor would rebuild the indexes and reorder the variables.
    return kind._construct_direct(
        variables,
        set(dataset._coord_names),
        dict(dataset._dims),
        copy.copy(dataset._attrs),
        dict(dataset._indexes),
        copy.copy(dataset._encoding),
        dataset._close,
    )


def _placeholder(name: Hashable, data: Any) -> Any:
    lazy = lazy_array(data)
    return data if lazy is None else Placeholder(Leaf(lazy), name)


def _lazy(_: Hashable, data: Any) -> Any:
    return lazy_data_of(data.node) if isinstance(data, Placeholder) else data
