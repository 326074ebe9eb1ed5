"""Input and output for xarray, as fast as the network and the machine allow.

The layers, each importing only from those below it::

    cli, demo                     the command line
    loading, opening, accessors…  the public functions and methods
    _tracing                      the tables and pages of a trace
    _xarray                       arrays, dask, lazy, explaining, hdf5, opening, saving,
                                  streaming: xarray's internals
    _zarr                         stores, metadata, codecs, chunks: zarr's internals
    config, progress              settings, progress
    _runtime                      loops, threads, budgets; independent of xarray and zarr
    errors                        errors
    testing                       the public test kit: on _runtime; only the command line imports it
"""

from __future__ import annotations

from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray.accessors import Installation, aio, install, register
from aioxarray.config import config
from aioxarray.dividing import Batches, Blocks, blocks
from aioxarray.errors import ArrayChangedError, ForkError, Overloaded, TooLargeError
from aioxarray.explaining import (
    LoadPlan,
    OpenPhase,
    OpenPlan,
    VariablePlan,
    explain,
    explain_open,
    explain_open_async,
)
from aioxarray.loading import compute, compute_async, load, load_async
from aioxarray.monitoring import Statistics, statistics
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
    open_mfdataset,
    open_mfdataset_async,
    open_zarr,
    open_zarr_async,
)
from aioxarray.saving import to_netcdf, to_netcdf_async, to_zarr, to_zarr_async
from aioxarray.streaming import Stream, stream
from aioxarray.tracing import Trace, trace

__version__ = "0.1.0"

__all__ = [
    "ArrayChangedError",
    "Batches",
    "Blocks",
    "CodecPipeline",
    "ForkError",
    "Installation",
    "LoadPlan",
    "OpenPhase",
    "OpenPlan",
    "Overloaded",
    "Statistics",
    "Stream",
    "TooLargeError",
    "Trace",
    "VariablePlan",
    "aio",
    "blocks",
    "compute",
    "compute_async",
    "config",
    "explain",
    "explain_open",
    "explain_open_async",
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
    "statistics",
    "stream",
    "to_netcdf",
    "to_netcdf_async",
    "to_zarr",
    "to_zarr_async",
    "trace",
]

register()
del register


def __dir__() -> list[str]:
    return sorted([*__all__, "__all__", "__doc__", "__version__", "errors"])
