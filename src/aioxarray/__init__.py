"""Input and output for xarray at the limit of the network and of the machine.

The layers, each importing only from those below it::

    cli, demo                     the command line
    accessors                     .aio, DataTree.load_async, install()
    loading, opening, saving      the public verbs
    config, errors, progress      settings, errors, progress
    _xarray                       arrays, dask, lazy, hdf5, opening, saving: xarray's internals
    _zarr                         stores, metadata, codecs, chunks: zarr's internals
    _runtime                      loops, threads, budgets; knows nothing of arrays
    testing                       the test kit, public
"""

from __future__ import annotations

from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray.accessors import Installation, install, register
from aioxarray.config import config
from aioxarray.errors import ForkError
from aioxarray.loading import compute, compute_async, load, load_async
from aioxarray.opening import (
    load_dataarray,
    load_dataarray_async,
    load_dataset,
    load_dataset_async,
    load_datatree,
    load_datatree_async,
    open_dataarray,
    open_dataarray_async,
    open_dataset,
    open_dataset_async,
    open_datatree,
    open_datatree_async,
    open_groups,
    open_groups_async,
    open_zarr,
    open_zarr_async,
)
from aioxarray.opening_many import open_mfdataset, open_mfdataset_async
from aioxarray.saving import to_netcdf, to_netcdf_async, to_zarr, to_zarr_async

__version__ = "0.1.0"

__all__ = [
    "CodecPipeline",
    "ForkError",
    "Installation",
    "compute",
    "compute_async",
    "config",
    "install",
    "load",
    "load_async",
    "load_dataarray",
    "load_dataarray_async",
    "load_dataset",
    "load_dataset_async",
    "load_datatree",
    "load_datatree_async",
    "open_dataarray",
    "open_dataarray_async",
    "open_dataset",
    "open_dataset_async",
    "open_datatree",
    "open_datatree_async",
    "open_groups",
    "open_groups_async",
    "open_mfdataset",
    "open_mfdataset_async",
    "open_zarr",
    "open_zarr_async",
    "to_netcdf",
    "to_netcdf_async",
    "to_zarr",
    "to_zarr_async",
]

register()
del register
