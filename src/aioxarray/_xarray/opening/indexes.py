"""Default indexes of a dataset, built during opening by the thread that reads the values."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

# Larger indexes are not kept for other files: the call would hold the values of all of them.
_KEPT_BYTES = 1 << 16
_KEPT = 64


class KnownIndexes:
    """Indexes of files that are opened together, most of which have the same coordinates."""

    def __init__(self) -> None:
        self._known: dict[Hashable, xr.indexes.PandasIndex] = {}

    def find(self, key: Hashable) -> xr.indexes.PandasIndex | None:
        """Return the index that was added with an equal ``key``."""
        return self._known.get(key)

    def add(self, key: Hashable, index: xr.Index) -> None:
        """Keep an index for other files, unless there are many."""
        if type(index) is xr.indexes.PandasIndex and len(self._known) < _KEPT:
            self._known[key] = index


def with_default_indexes(dataset: xr.Dataset, known: KnownIndexes | None = None) -> xr.Dataset:
    """Return ``dataset`` with an index for each coordinate that names its dimension.

    These are the indexes that `xarray.open_dataset` adds to the result of an engine. But they are
    built in this thread, and their coordinates are not aligned with the dataset they come from.
    The coordinates are read one by one. An index of the same values is taken from ``known``.
    """
    variables: dict[Hashable, xr.Variable] = {}
    indexes: dict[Hashable, xr.Index] = {}
    for name, coord in dataset.coords.items():
        if coord.dims != (name,) or name in dataset.xindexes:
            continue
        variable, key = dataset.variables[name], None
        if known is not None:
            values = variable.data
            # The index would be made of the values that are read again.
            variable = xr.Variable(variable.dims, values, variable.attrs, variable.encoding)
            key = _key(name, values)
        if known is not None and (index := known.find(key)) is not None:
            variables |= index.create_variables({name: variable})
            indexes[name] = index
            continue
        coords = xr.Coordinates({name: variable})
        variables |= coords.variables
        indexes |= coords.xindexes
        if known is not None and key is not None:
            known.add(key, coords.xindexes[name])
    # Private: the public ways to add coordinates align and merge them and copy all variables,
    # which takes twice as long as building the indexes.
    indexed = dataset._replace(
        variables={**dataset._variables, **variables}, indexes={**dataset._indexes, **indexes}
    )
    indexed.set_close(dataset._close)
    return indexed


def with_all_indexes(opened: Any) -> Any:
    """Do the same for the dataset, or each of a dict of datasets, that an engine has opened.

    On an error all of them are closed.
    """
    datasets = list(opened.values()) if isinstance(opened, dict) else [opened]
    try:
        indexed = [with_default_indexes(dataset) for dataset in datasets]
    except BaseException:
        for dataset in datasets:
            dataset.close()
        raise
    return dict(zip(opened, indexed, strict=True)) if isinstance(opened, dict) else indexed[0]


def _key(name: Hashable, values: object) -> Hashable:
    """Return what identifies an index of ``values``; None if it is not to be kept."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iufmM":
        return None
    return (name, values.dtype, values.tobytes()) if values.nbytes <= _KEPT_BYTES else None
