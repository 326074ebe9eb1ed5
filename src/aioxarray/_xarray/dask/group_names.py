"""Distinct dask names for the groups that ``xarray.open_groups`` opens.

`xarray.open_groups` derives the names of dask arrays from the file, the arguments and the
variable, but not from the group. The same variable of two groups gets the same name, and computing
both at once gives the values of one for both. (``xarray.open_datatree`` includes the node's path.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xarray as xr

from aioxarray._xarray.dask.names import named_after


def name_after_groups(groups: Mapping[str, xr.Dataset]) -> None:
    """Make ``xarray.open_groups`` name the dask arrays of ``groups`` after their group.

    The datasets get a class that xarray's last step with them turns back into `xarray.Dataset`.
    """
    for path, dataset in groups.items():
        # Private: the close callback, which xarray passes to ``set_close`` of its result.
        closer = _Closer(path, dataset._close)
        dataset.__class__ = _Group
        dataset._close = closer


@dataclass(frozen=True)
class _Closer:
    """The close callback of a group, which also tells `_Group.set_close` the group's path."""

    path: str
    close: Callable[[], None] | None

    def __call__(self) -> None:
        if self.close is not None:
            self.close()


class _Group(xr.Dataset):
    """A group's dataset on its way through ``xarray.open_groups``.

    xarray does not tell a backend that it will make dask arrays, nor ask it for their names.
    ``set_close`` is xarray's last step with a dataset, chunked or not. Can go when
    ``xarray.open_groups`` names groups itself, as ``open_datatree`` does nodes.
    """

    __slots__ = ()

    def set_close(self, close: Callable[[], None] | None) -> None:
        self.__class__ = xr.Dataset  # type: ignore[assignment]
        if isinstance(close, _Closer):
            for variable in self._variables.values():
                # Private: the data. Index variables, which are immutable, are never chunked.
                if variable.chunks is not None:
                    variable._data = named_after(variable._data, close.path)
            close = close.close
        xr.Dataset.set_close(self, close)
