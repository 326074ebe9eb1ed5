"""An HDF5 file that caches its metadata, because h5netcdf asks for it again and again.

h5netcdf looks up a variable's object by its path for each property: 260 times for a file of eight
variables. It also reads most attributes two or three times. That is most of the time that opening
such a file takes (h5netcdf/h5netcdf#195). h5netcdf also accepts an open file such as this one,
whose objects cache their answers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import h5py
from h5py import h5d, h5g, h5i, h5o, h5r


class MetadataCachingFile(h5py.File):  # type: ignore[misc]
    """A read-only HDF5 file that caches its objects; made, used and closed in HDF5's lane.

    Parameters
    ----------
    source
        A path or a file object.
    """

    def __init__(self, source: Any) -> None:
        super().__init__(source, "r")
        self._objects: dict[Any, Any] = {}
        # Objects that h5py has open already, by their paths.
        self.open_objects: dict[str, Any] = {}

    def __getitem__(self, name: Any) -> Any:
        """Return the object at a path from the root, or the target of a reference."""
        found = self._objects.get(name)
        if found is None:
            found = self._objects[name] = self._open(name)
        return found

    def _open(self, name: Any) -> Any:
        if isinstance(name, h5r.Reference):
            path = h5i.get_name(h5r.dereference(name, self.id))
            return super().__getitem__(name) if path is None else self[path.decode()]
        identifier = self.open_objects.get(name)
        if identifier is None:
            identifier = h5o.open(self.id, name.encode())
        if isinstance(identifier, h5d.DatasetID):
            return _Dataset(identifier, readonly=True)
        if isinstance(identifier, h5g.GroupID):
            return _Group(identifier, self, name)
        return super().__getitem__(name)

    @property
    def attrs(self) -> Any:
        return self["/"].attrs


class _Attributes(h5py.AttributeManager):  # type: ignore[misc]
    """Attributes that are each read only once."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        self._names = dict.fromkeys(super().__iter__())
        self._values: dict[Any, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: Any) -> bool:
        return name in self._names

    def __getitem__(self, name: Any) -> Any:
        if name not in self._values:
            self._values[name] = super().__getitem__(name)
        return self._values[name]

    def get(self, name: Any, default: Any = None) -> Any:
        # Most requested attributes do not exist, and HDF5 takes long to say so.
        return self[name] if name in self._names else default


class _Dimension:
    """A dimension of a dataset that caches the number of attached scales."""

    def __init__(self, dimension: Any) -> None:
        self._dimension = dimension
        self._scales = len(dimension)

    def __len__(self) -> int:
        return self._scales

    def __getitem__(self, item: Any) -> Any:
        return self._dimension[item]


class _Dataset(h5py.Dataset):  # type: ignore[misc]
    """A dataset that caches properties that do not change."""

    # h5netcdf tells the objects of h5py from those of h5pyd by the name of their module.
    __module__ = h5py.Dataset.__module__

    attrs = cached_property(_Attributes)
    name = cached_property(h5py.Dataset.name.fget)
    dtype = cached_property(h5py.Dataset.dtype.fget)
    maxshape = cached_property(h5py.Dataset.maxshape.fget)

    @cached_property
    def dims(self) -> list[_Dimension]:
        return [_Dimension(each) for each in super().dims]


class _Group(h5py.Group):  # type: ignore[misc]
    """A group that takes its members from the cache of its file."""

    attrs = cached_property(_Attributes)
    name = cached_property(h5py.Group.name.fget)

    def __init__(self, identifier: Any, file: MetadataCachingFile, path: str) -> None:
        super().__init__(identifier)
        # Weak, since the file holds its groups: in a cycle, a dropped file would stay open until
        # the garbage collector runs, in an arbitrary thread.
        self._file = weakref.ref(file)
        # Not ``name``: for a group behind an external link, that is its name in the other file.
        self._path = path.rstrip("/")

    def __getitem__(self, name: Any) -> Any:
        file = self._file()
        if file is None or not isinstance(name, str) or name.startswith("/"):
            return super().__getitem__(name)
        return file[f"{self._path}/{name}"]
