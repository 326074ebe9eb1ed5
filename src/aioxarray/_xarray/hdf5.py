"""An HDF5 file in which each object is opened once, however often it is asked for.

h5netcdf looks the object of a variable up, by its path, whenever it wants to know something of it:
260 times for a file of eight variables, which is more than half of the time that opening such a
file takes (h5netcdf/h5netcdf#195). It takes a file that is open already, and so one like this.
"""

from __future__ import annotations

from typing import Any

import h5py


class OnceFile(h5py.File):  # type: ignore[misc]
    """An HDF5 file, for reading; made, used and closed where HDF5's calls are made.

    Parameters
    ----------
    source
        A file object.
    """

    def __init__(self, source: Any) -> None:
        super().__init__(source, "r")
        self._source = source
        self._objects: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._source,)

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):
            # A reference to an object, without a path.
            return super().__getitem__(name)
        found = self._objects.get(name)
        if found is None:
            found = self._objects[name] = super().__getitem__(name)
        return found
