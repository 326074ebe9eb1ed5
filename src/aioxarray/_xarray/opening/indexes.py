"""Default indexes of a dataset, built during opening by the thread that reads the values."""

from __future__ import annotations

from typing import Any

import xarray as xr


def with_default_indexes(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with an index for each coordinate that names its dimension.

    These are the indexes that `xarray.open_dataset` adds to the result of an engine. But they are
    built in this thread, and their coordinates are not aligned with the dataset they come from.
    The coordinates are read one by one.
    """
    names = [
        name
        for name, coord in dataset.coords.items()
        if coord.dims == (name,) and name not in dataset.xindexes
    ]
    coords = xr.Coordinates({name: dataset.variables[name] for name in names})
    # Private: the public ways to add coordinates align and merge them and copy all variables,
    # which takes twice as long as building the indexes.
    indexed = dataset._replace(
        variables={**dataset._variables, **coords.variables},
        indexes={**dataset._indexes, **coords.xindexes},
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
