"""Groups whose dask arrays are named after them, though ``xarray.open_groups`` names no group.

`xarray.open_groups` makes the names of dask arrays of the file, the arguments and the variable:
the same variable of every group gets the same name, and computing two of them at once gives the
values of one for both. (``xarray.open_datatree`` passes the path of each node on.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xarray as xr

from aioxarray._xarray.dask.names import named_after


def name_after_groups(groups: Mapping[str, xr.Dataset]) -> None:
    """Have the dask arrays that ``xarray.open_groups`` makes of ``groups`` named after the group.

    The datasets become those of a class that xarray's last step turns into plain ones again.
    """
    for path, dataset in groups.items():
        # Private: what closes the dataset. xarray hands it on to the dataset that it returns.
        closer = _Closer(path, dataset._close)
        dataset.__class__ = _Group
        dataset._close = closer


@dataclass(frozen=True)
class _Closer:
    """What closes the group at ``path``, for a `_Group` to be told its path by."""

    path: str
    close: Callable[[], None] | None

    def __call__(self) -> None:
        if self.close is not None:
            self.close()


class _Group(xr.Dataset):
    """A group on its way through ``xarray.open_groups``.

    A backend is not told that dask arrays will be made, nor asked for their names. Setting what
    closes a dataset is xarray's last step with it, chunked or not. Can go when
    ``xarray.open_groups`` names groups itself, as it does nodes of trees.
    """

    __slots__ = ()

    def set_close(self, close: Callable[[], None] | None) -> None:
        self.__class__ = xr.Dataset  # type: ignore[assignment]
        if isinstance(close, _Closer):
            for variable in self._variables.values():
                # Private: the data, which only a variable that is no index may have in chunks.
                if variable.chunks is not None:
                    variable._data = named_after(variable._data, close.path)
            close = close.close
        xr.Dataset.set_close(self, close)
