"""Layouts of netCDF4 files that are opened together, so that the second is opened from the first.

Files of one archive mostly differ in values and in a few attributes. h5netcdf and xarray still look
up the dimensions, the types and the chunks of each variable of each file. Here that is done for the
first file with a layout. In the others `scan` only finds out that they have the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import h5netcdf.attrs
import h5py
import numpy as np
import xarray as xr

from aioxarray._xarray.compat import (
    FrozenDict,
    H5NetCDFArrayWrapper,
    H5NetCDFStore,
    LazilyIndexedArray,
    _read_attributes,
)
from aioxarray._xarray.hdf5.files import MetadataCachingFile
from aioxarray._xarray.hdf5.scanning import RawAttribute, Scan

# How many more files with a layout of their own than others a call looks at.
_PATIENCE = 8


class Layouts:
    """The layouts of the files that one call has opened; used in HDF5's lane."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Layout] = {}
        # Attributes as xarray gives them.
        self._values: dict[Hashable, Any] = {}
        self._found = self._missed = 0

    @property
    def are_worthwhile(self) -> bool:
        """Whether it is worth looking for another file's layout: not if files seldom share one."""
        return self._missed <= self._found + _PATIENCE

    @property
    def counts(self) -> tuple[int, int]:
        """How many files had a known layout, and how many had not."""
        return self._found, self._missed

    def find(self, seen: Scan, file: MetadataCachingFile, options: Hashable) -> Found | None:
        """Return what is known about ``file``; None if its layout has to be looked up.

        ``options`` are the options of h5netcdf, which are part of the layout.
        """
        layout = self._known.get((options, seen.layout))
        if layout is None:
            self._missed += 1
            return None
        self._found += 1
        return Found(layout, self._attributes(seen, file))

    def add(self, seen: Scan, store: H5NetCDFStore, options: Hashable) -> None:
        """Remember the layout of a file that h5netcdf has opened."""
        self._known[options, seen.layout] = Layout.of(store)

    def _attributes(self, seen: Scan, file: MetadataCachingFile) -> dict[str | None, Any]:
        return {
            parent: {name: self._value(file, parent, name, raw) for name, raw in attributes.items()}
            for parent, attributes in seen.attributes.items()
        }

    def _value(self, file: Any, parent: str | None, name: str, raw: RawAttribute) -> Any:
        """Return an attribute as xarray's engine gives it."""
        key = (name, raw)
        if key not in self._values:
            h5attrs = file["/" if parent is None else parent].attrs
            attribute = h5netcdf.attrs.Attributes(h5attrs, None, h5py)[name]
            given = SimpleNamespace(attrs={name: attribute}, name=parent)
            value = _read_attributes(given)[name]
            if isinstance(attribute, bytes):
                # It may not be UTF-8, which is warned of each time.
                return value
            self._values[key] = value
        return _copied(self._values[key])


def _copied(value: Any) -> Any:
    """Return ``value``, or a copy of what a user could change in place."""
    return copy.copy(value) if isinstance(value, dict | list | set | np.ndarray) else value


@dataclass(frozen=True)
class Layout:
    """What h5netcdf and xarray have found out about a file, without its attributes and values."""

    variables: dict[str, _Variable]
    encoding: dict[str, Any]

    @classmethod
    def of(cls, store: H5NetCDFStore) -> Layout:
        """Return the layout of the file of ``store``."""
        variables = {}
        for name, variable in store.get_variables().items():
            stored = store.ds.variables[name]
            # Private: the array of h5py.
            whole = stored._h5ds.shape == stored.shape
            array: Any = variable._data
            variables[name] = _Variable(
                variable.dims, variable.shape, array.array.dtype, whole, dict(variable.encoding)
            )
        return cls(variables, store.get_encoding())


@dataclass(frozen=True)
class _Variable:
    """A variable of a layout.

    Attributes
    ----------
    whole
        Whether HDF5 has stored it in its full shape. The rest of another is filled by h5netcdf.
    """

    dims: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    whole: bool
    encoding: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A file with a known layout: the layout, and the attributes of the file."""

    layout: Layout
    attributes: dict[str | None, dict[str, Any]]


class LaterFile:
    """An open HDF5 file that h5netcdf looks into only if something asks for it.

    Parameters
    ----------
    h5file
        The file.
    open_netcdf
        Makes an `h5netcdf.File` of it, which closes it.
    """

    # It is a root group.
    parent = None

    def __init__(
        self, h5file: MetadataCachingFile, open_netcdf: Callable[[MetadataCachingFile], Any]
    ) -> None:
        self.h5file = h5file
        self._open_netcdf = open_netcdf
        self._file: Any = None

    @property
    def filename(self) -> str:
        return str(self.h5file.filename)

    def close(self) -> None:
        (self.h5file if self._file is None else self._file).close()

    def __getattr__(self, name: str) -> Any:
        if self._file is None:
            self._file = self._open_netcdf(self.h5file)
        return getattr(self._file, name)


class LayoutStore(H5NetCDFStore):
    """xarray's store for a file with a known layout."""

    __slots__ = ("_encoding", "_found")

    def __init__(self, manager: Any, found: Found) -> None:
        super().__init__(manager, group=None, mode="r")
        self._found: Found | None = found
        self._encoding = found.layout.encoding

    def load(self) -> Any:
        """Return variables and attributes; called once."""
        try:
            return super().load()  # type: ignore[no-untyped-call]
        finally:
            # They are not pickled with the arrays, which refer to this store.
            self._found = None

    def get_variables(self) -> Any:
        found = self._found
        if found is None:
            return super().get_variables()  # type: ignore[no-untyped-call]
        return FrozenDict(
            (name, self._variable(name, each, found.attributes[name]))
            for name, each in found.layout.variables.items()
        )

    def get_attrs(self) -> Any:
        if self._found is None:
            return super().get_attrs()  # type: ignore[no-untyped-call]
        return self._found.attributes[None]

    def get_encoding(self) -> Any:
        return {name: _copied(value) for name, value in self._encoding.items()}

    def _variable(self, name: str, known: _Variable, attributes: dict[str, Any]) -> xr.Variable:
        encoding = {key: _copied(value) for key, value in known.encoding.items()}
        encoding["source"] = self._filename
        data: Any = LazilyIndexedArray(_Array(name, self, known))
        return xr.Variable(known.dims, data, attributes, encoding)


class _Array(H5NetCDFArrayWrapper):
    """An array of a file with a known layout: it knows its shape without h5netcdf."""

    __slots__ = ("whole",)

    def __init__(self, name: str, store: LayoutStore, known: _Variable) -> None:
        self.datastore = store
        self.variable_name = name
        self.shape = known.shape
        self.dtype = known.dtype
        self.whole = known.whole

    def get_array(self, needs_lock: bool = True) -> Any:
        file = self.datastore._acquire(needs_lock)
        if self.whole and isinstance(file, LaterFile):
            # h5netcdf would do the same, after it has looked into the file.
            return file.h5file[self.variable_name]
        return file.variables[self.variable_name]
