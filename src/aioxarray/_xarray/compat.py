"""The private names of xarray that this package uses: why, and when each can go.

Every other module imports them from here, so that a new release of xarray is a change in one place.
"""

from __future__ import annotations

# --- backends' arrays and lazy data -----------------------------------------------------------
# xarray's guide to backends tells engines to use these, though they have no public names: the
# arrays of backends, the indexers that they are passed, and the adapters around them.
# ``BackendArray.async_getitem`` is the extension point for asynchronous reads. pydata/xarray#10622
# plans to make the adapters asynchronous throughout; then most of this can go.
from xarray.backends.common import BackendArray
from xarray.core.indexing import (
    BasicIndexer,
    CopyOnWriteArray,
    ExplicitIndexer,
    ExplicitlyIndexed,
    ExplicitlyIndexedNDArrayMixin,
    ImplicitToExplicitIndexingAdapter,
    IndexingAdapter,
    IndexingSupport,
    LazilyIndexedArray,
    LazilyVectorizedIndexedArray,
    MemoryCachedArray,
    OuterIndexer,
    VectorizedIndexer,
    _wrap_numpy_scalars,
    apply_indexer,
    as_indexable,
    async_explicit_indexing_adapter,
    decompose_indexer,
)

# The adapters that undo the encoding of lazy data. One that is not known here is read as a whole,
# in a thread.
from xarray.coding.common import _ElementwiseFunctionArray
from xarray.coding.strings import StackedBytesArray
from xarray.coding.variables import BoolTypeArray, NativeEndiannessArray

# How a variable takes in values, as in `xarray.Variable.load`.
from xarray.core.variable import as_compatible_data

# How xarray finds the library behind a chunked array (dask, cubed, …).
from xarray.namedarray.parallelcompat import get_chunked_array_type
from xarray.namedarray.pycompat import is_chunked_array

# --- engines ----------------------------------------------------------------------------------
# How xarray chooses an engine for a source, tells a URL from a path, and finds the files of
# ``open_mfdataset``, which cannot open them concurrently (pydata/xarray#7810). Can go when xarray
# has a public function that guesses an engine.
from xarray.backends import (
    BackendEntrypoint,
    H5netcdfBackendEntrypoint,
    H5NetCDFStore,
    NetCDF4BackendEntrypoint,
    StoreBackendEntrypoint,
    ZarrBackendEntrypoint,
    plugins,
)
from xarray.backends.common import (
    BACKEND_ENTRYPOINTS,
    _find_absolute_paths,
    datatree_from_dict_with_io_cleanup,
)
from xarray.core.utils import close_on_error, is_remote_uri

# --- the Zarr engine --------------------------------------------------------------------------
# Its array and store. The Zarr array inside is replaced by one that keeps to a limit on requests
# (pydata/xarray#10622). Metadata that is known is answered without zarr's loop; that can go when
# zarr does so for consolidated metadata (zarr-developers/zarr-python#3885).
from xarray.backends.zarr import ZarrArrayWrapper, ZarrStore
from xarray.core.treenode import NodePath

# The steps of ``to_zarr``, which writes one variable after the other (pydata/xarray#9455). Can go
# when xarray accepts a writer from its caller.
from xarray.backends.api import DATAARRAY_NAME, DATAARRAY_VARIABLE, delayed_close_after_writes
from xarray.backends.writers import _validate_dataset_names, dump_to_store
from xarray.backends.zarr import _choose_default_mode, _get_mappers

# --- HDF5 and netCDF-C ------------------------------------------------------------------------
# The lane of HDF5 is known by the lock that a backend reads under, and files are closed by their
# managers. Can go when backends say publicly which lock they read under.
from xarray.backends.file_manager import CachingFileManager, FileManager, PickleableFileManager
from xarray.backends.locks import HDF5_LOCK, NETCDFC_LOCK, CombinedLock, SerializableLock

# How the h5netcdf engine opens a file, whose metadata is looked up once here. Can go when h5netcdf
# itself looks it up once (h5netcdf/h5netcdf#195).
from xarray.backends.common import _iter_nc_groups, _normalize_path, _open_remote_file
from xarray.backends.h5netcdf_ import _emit_phony_dims_warning

# Its arrays and attributes, for files whose layout is known from another file. Can go when xarray
# opens files of the same layout in less time (pydata/xarray#7810).
from xarray.backends.h5netcdf_ import H5NetCDFArrayWrapper, _read_attributes
from xarray.core.utils import FrozenDict
