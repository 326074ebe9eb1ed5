"""The default indexes of a dataset, made where its values are read, as it is opened."""

from __future__ import annotations

import xarray as xr


def with_default_indexes(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with an index for each coordinate that names its dimension.

    As `xarray.open_dataset` makes them of what an engine returns without, but in this thread, and
    without the alignment of the new coordinates with the dataset that they come from. They are read
    one by one.
    """
    names = [
        name
        for name, coord in dataset.coords.items()
        if coord.dims == (name,) and name not in dataset.xindexes
    ]
    coords = xr.Coordinates({name: dataset.variables[name] for name in names})
    # Private: public ways to add coordinates align them, merge them and copy all variables, which
    # takes twice as long as to make the indexes.
    indexed = dataset._replace(
        variables={**dataset._variables, **coords.variables},
        indexes={**dataset._indexes, **coords.xindexes},
    )
    indexed.set_close(dataset._close)
    return indexed
