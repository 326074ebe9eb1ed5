"""Pieces of one shape stacked along a new dimension, with lazy data staying lazy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from aioxarray._xarray.arrays.nodes import Leaf, Stacked
from aioxarray._xarray.dividing.divisions import Numbers
from aioxarray._xarray.dividing.grid import Window
from aioxarray._xarray.lazy.composed import lazy_array, lazy_data_of


@dataclass(frozen=True)
class Stack:
    """Windows that become one object, with a new leading dimension.

    Attributes
    ----------
    dim
        The new dimension.
    starts
        The first position of each window along each dimension that is divided.
    sizes
        The length of all windows along these dimensions.
    """

    dim: Hashable
    starts: Mapping[Hashable, Numbers]
    sizes: Mapping[Hashable, int]

    @classmethod
    def of(cls, windows: Sequence[Window], split: frozenset[Hashable], dim: Hashable) -> Stack:
        """Return the stack of some windows, all of one shape, which differ along ``split``."""
        starts = {
            each: np.array([window[each][0] for window in windows], dtype=np.int64)
            for each in split
        }
        sizes = {each: windows[0][each][1] - windows[0][each][0] for each in split}
        return cls(dim, starts, sizes)

    def moved(self, by: Mapping[Hashable, int]) -> Stack:
        """Return the stack of windows moved by a number of positions along each dimension."""
        starts = {dim: starts + by.get(dim, 0) for dim, starts in self.starts.items()}
        return Stack(self.dim, starts, self.sizes)

    def of_object(self, obj: Any) -> Any:
        """Return the windows of a Dataset, DataArray or DataTree as one object."""
        if isinstance(obj, xr.DataTree):
            # With inherited coordinates: without an index, they are not inherited any more.
            nodes = {
                "/" if node is obj else node.relative_to(obj): self._of_dataset(node.to_dataset())
                for node in obj.subtree
            }
            return xr.DataTree.from_dict(nodes, name=obj.name)
        if isinstance(obj, xr.DataArray):
            return self._of_array(obj)
        return self._of_dataset(obj)

    def _of_array(self, array: xr.DataArray) -> xr.DataArray:
        # A name that no coordinate has.
        name = object()
        variables = {name: self._of_variable(array.variable)}
        stacked = xr.Dataset(variables, self._of_coordinates(array.coords))
        return stacked[name].rename(array.name)

    def _of_dataset(self, dataset: xr.Dataset) -> xr.Dataset:
        variables = {name: self._of_variable(dataset.variables[name]) for name in dataset.data_vars}
        stacked = xr.Dataset(variables, self._of_coordinates(dataset.coords), dataset.attrs)
        stacked.encoding = dict(dataset.encoding)
        return stacked

    def _of_coordinates(self, coords: Any) -> xr.Coordinates:
        variables = {name: self._of_variable(each.variable) for name, each in coords.items()}
        # An index has one dimension for each position, and so none of several windows.
        indexes = {
            name: index
            for name, index in coords.xindexes.items()
            if not any(
                self.starts.keys() & set(coords[other].dims)
                for other in coords.xindexes.get_all_coords(name)
            )
        }
        return xr.Coordinates(variables, indexes)

    def _of_variable(self, variable: xr.Variable) -> xr.Variable:
        if not self.starts.keys() & set(variable.dims):
            # It is the same in all windows. An index keeps its own variable.
            return variable.copy(deep=False)
        # Private: a public property of lazy data would load it.
        lazy = lazy_array(variable._data)
        if lazy is None:
            return self._of_values(variable.to_base_variable())
        count = len(next(iter(self.starts.values())))
        unmoved = np.zeros(count, dtype=np.int64)
        starts = np.stack([self.starts.get(dim, unmoved) for dim in variable.dims], axis=1)
        sizes = tuple(self.sizes.get(dim, size) for dim, size in variable.sizes.items())
        data = lazy_data_of(Stacked(Leaf(lazy), starts, sizes))
        return xr.Variable((self.dim, *variable.dims), data, variable.attrs, variable.encoding)

    def _of_values(self, variable: xr.Variable) -> xr.Variable:
        """Return the windows of a variable whose data is a numpy, dask or other whole array."""
        along = [dim for dim in variable.dims if dim in self.starts]
        windows = [
            variable.isel(
                {
                    dim: slice(int(start), int(start) + self.sizes[dim])
                    for dim, start in zip(along, starts, strict=True)
                }
            )
            for starts in zip(*(self.starts[dim] for dim in along), strict=True)
        ]
        stacked: xr.Variable = xr.Variable.concat(windows, self.dim)
        return stacked
