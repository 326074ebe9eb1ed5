"""Opening HDF5 files so that their chunks are read as Zarr chunks: ``virtual=True``.

h5netcdf reads the metadata, so dimensions, attributes, dtypes and encodings are those of plain
xarray. If Zarr decodes the chunks of a variable to exactly the values that HDF5 would give, the
variable becomes a Zarr array over these chunks. HDF5 itself reads all other variables.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h5py
import numcodecs
import numpy as np
import xarray as xr
from h5py import h5d, h5t, h5z
from numcodecs.fletcher32 import Fletcher32
from numcodecs.shuffle import Shuffle
from obstore import store as object_stores

from aioxarray._xarray.arrays.remote_files import ReadAheadFile
from aioxarray._xarray.compat import (
    H5netcdfBackendEntrypoint,
    H5NetCDFStore,
    LazilyIndexedArray,
    ZarrArrayWrapper,
    plugins,
)
from aioxarray._xarray.hdf5.engine import can_cache_metadata, open_caching_metadata
from aioxarray._xarray.opening.engine import AioBackendEntrypoint, open_in_lane
from aioxarray._zarr.stores.file_chunks import (
    ChunkIndex,
    ContiguousIndex,
    FileChunks,
    Index,
    ObjectFile,
    contiguous_chunk_shape,
)

if TYPE_CHECKING:
    import zarr


class VirtualEntrypoint(AioBackendEntrypoint):
    """Backend engine for netCDF4 and HDF5 files whose chunks are read as Zarr chunks."""

    description = "Open netCDF4 and HDF5 files, reading their chunks as Zarr's"
    supports_groups = False
    open_dataset_parameters = plugins.detect_parameters(H5netcdfBackendEntrypoint.open_dataset)

    def open_dataset(self, filename_or_obj: Any, **options: Any) -> xr.Dataset:
        """Open a dataset; the arguments are those of the h5netcdf engine."""
        file = VirtualFile(filename_or_obj, options.pop("storage_options", None))
        source = file.read_ahead()
        opening = partial(_open, file, source, options)
        dataset: xr.Dataset = open_in_lane(opening, source, indexes=self.reads_indexes)
        return dataset


class VirtualFile:
    """A netCDF4 or HDF5 file that both HDF5 and Zarr read.

    Parameters
    ----------
    source
        A path or URL.
    storage_options
        For `obstore.store.from_url`: credentials, endpoint, ``client_options``.

    Raises
    ------
    TypeError
        If ``source`` is neither a path nor a URL.
    FileNotFoundError
        If there is no file at a path.
    """

    def __init__(self, source: Any, storage_options: Mapping[str, Any] | None) -> None:
        if not isinstance(source, str | os.PathLike):
            raise TypeError(f"virtual=True needs a path or a URL, got {type(source).__name__}")
        self.path = os.fspath(source)
        self._client: Any
        self.is_remote = "://" in self.path
        if self.is_remote:
            self._client, self._key = _client_of(self.path, storage_options)
        else:
            if storage_options:
                raise TypeError("storage_options are for URLs, not for a local file")
            local = os.path.abspath(os.path.expanduser(self.path))
            if not os.path.exists(local):
                raise FileNotFoundError(f"no such file: {self.path!r}")
            self._client, self._key = object_stores.LocalStore(), local.lstrip("/")
        self.chunks = FileChunks(self._client, self._key)

    def read_ahead(self) -> str | ReadAheadFile:
        """Return the input for HDF5: a path, or a file object whose ends are in memory."""
        if not self.is_remote:
            return self.path
        file = ReadAheadFile(ObjectFile(self._client, self._key, self.path))
        file.read_ahead()
        return file


def _open(file: VirtualFile, source: str | ReadAheadFile, options: Mapping[str, Any]) -> Any:
    """Open ``source``, the result of `VirtualFile.read_ahead`; in HDF5's lane.

    Raises
    ------
    TypeError
        If an option asks to open the file in another way than with h5py's defaults.
    """
    if not can_cache_metadata(source, options):
        raise TypeError(
            "virtual=True takes the arguments of the h5netcdf engine but for driver, driver_kwds, "
            f"format, lock and open_kwargs; got {', '.join(options)}"
        )
    drop = options.get("drop_variables") or ()
    read_by_hdf5: set[str] = set()
    store_of = partial(
        ChunkStore,
        chunks=file.chunks,
        drop=[drop] if isinstance(drop, str) else drop,
        read_by_hdf5=read_by_hdf5,
    )
    dataset = open_caching_metadata(source, options, deep=False, store_of=store_of)
    assert isinstance(dataset, xr.Dataset)
    if not read_by_hdf5:
        dataset.close()
        dataset.set_close(None)
    return dataset


def _client_of(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Return an obstore store for the root of ``url``, and the key of the object in it."""
    parts = urlsplit(url)
    options = dict(storage_options or {})
    if parts.scheme == "http":
        # obstore refuses plain HTTP by default; here the URL asks for it.
        options["client_options"] = {"allow_http": True, **options.get("client_options", {})}
    return object_stores.from_url(f"{parts.scheme}://{parts.netloc}", **options), parts.path.lstrip(
        "/"
    )


class ChunkStore(H5NetCDFStore):
    """xarray's h5netcdf store, with Zarr arrays for variables where they give the same values.

    Parameters
    ----------
    manager, **options
        As for `H5NetCDFStore`.
    chunks
        The store to read chunks from.
    drop
        Names of variables that will be dropped; their chunks are not looked up.
    read_by_hdf5
        A set to which the names of variables left to HDF5 are added.
    """

    __slots__ = ("_chunks", "_drop", "_read_by_hdf5")

    def __init__(
        self,
        manager: Any,
        *,
        chunks: FileChunks,
        drop: Iterable[str],
        read_by_hdf5: set[str],
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._chunks = chunks
        self._drop = frozenset(drop)
        self._read_by_hdf5 = read_by_hdf5

    def open_store_variable(self, name: str, var: Any) -> xr.Variable:
        variable: xr.Variable = super().open_store_variable(name, var)  # type: ignore[no-untyped-call]
        if name in self._drop:
            return variable
        # Private: h5netcdf offers no public access to a variable's HDF5 dataset and file.
        dataset, file = var._h5ds, var._root._h5file
        array = None
        # An external link leads to a dataset in another file.
        if dataset.file.filename == file.filename:
            array = _as_zarr(self._chunks, dataset, var.shape)
        if array is None:
            self._read_by_hdf5.add(name)
            return variable
        data = LazilyIndexedArray(ZarrArrayWrapper(array))
        return xr.Variable(variable.dims, data, variable.attrs, variable.encoding, fastpath=True)


def _as_zarr(
    chunks: FileChunks, dataset: h5py.Dataset, shape: tuple[int, ...]
) -> zarr.Array[Any] | None:
    """Return an HDF5 dataset as a Zarr array; None if that might give other values.

    ``shape`` is the variable's: netCDF pads a dataset that is shorter than its dimensions.
    """
    dtype = dataset.dtype
    created = dataset.id.get_create_plist()
    if (
        dataset.shape != shape
        or dataset.size == 0
        # Only plain numbers as numpy stores them: no enumerations, no reduced precision.
        or dtype.kind not in "iuf"
        or dataset.id.get_type() != h5t.py_create(dtype)
        or created.get_external_count()
        # HDF5 counts the offsets of chunks from the end of the user block.
        or dataset.file.userblock_size
        or created.fill_value_defined() == h5d.FILL_VALUE_UNDEFINED
    ):
        return None
    layout = created.get_layout()
    if layout == h5d.CHUNKED:
        filters = _codecs(created, dtype.itemsize)
        index = _chunk_index(dataset)
        chunk_shape = dataset.chunks
    elif layout == h5d.CONTIGUOUS:
        filters = ()
        chunk_shape = contiguous_chunk_shape(shape, dtype.itemsize)
        index = _contiguous_index(dataset, chunk_shape)
    else:
        # Compact data is inside the file's metadata, virtual data in other datasets.
        return None
    if filters is None or index is None:
        return None
    return chunks.array(
        dataset.name.strip("/"),
        shape=shape,
        dtype=dtype,
        chunk_shape=chunk_shape,
        filters=filters,
        fill_value=dataset.fillvalue,
        index=index,
    )


def _codecs(created: Any, itemsize: int) -> tuple[Any, ...] | None:
    """Return the codecs equivalent to the filters of a dataset; None if a filter has none."""
    codecs = []
    for number in range(created.get_nfilters()):
        code, _, values, _ = created.get_filter(number)
        make = _CODECS.get(code)
        if make is None:
            return None
        codecs.append(make(values, itemsize))
    return tuple(codecs)


# Filter number (registered with the HDF Group) -> a function that makes the codec from the filter's
# settings and the itemsize. Settings that only affect encoding are ignored.
_CODECS: dict[int, Any] = {
    h5z.FILTER_DEFLATE: lambda values, itemsize: numcodecs.Zlib(),
    h5z.FILTER_SHUFFLE: lambda values, itemsize: Shuffle(values[0] if values else itemsize),
    h5z.FILTER_FLETCHER32: lambda values, itemsize: Fletcher32(),
    32001: lambda values, itemsize: numcodecs.Blosc(),
    32015: lambda values, itemsize: numcodecs.Zstd(),
}


def _chunk_index(dataset: h5py.Dataset) -> Index | None:
    """Return the positions of a dataset's chunks; None if some were stored without the filters."""
    grid = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    places: list[tuple[int, int, int]] = []
    unfiltered = False

    def note(chunk: Any) -> None:
        nonlocal unfiltered
        unfiltered = unfiltered or chunk.filter_mask != 0
        at = [start // size for start, size in zip(chunk.chunk_offset, dataset.chunks, strict=True)]
        number = 0
        for position, count in zip(at, grid, strict=True):
            if position >= count:
                # Left over from before the dataset was shrunk.
                return
            number = number * count + position
        places.append((number, chunk.byte_offset, chunk.size))

    dataset.id.chunk_iter(note)
    if unfiltered:
        return None
    places.sort()
    columns = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return ChunkIndex(*(np.ascontiguousarray(column) for column in columns))


def _contiguous_index(dataset: h5py.Dataset, chunk_shape: tuple[int, ...]) -> Index | None:
    offset = dataset.id.get_offset()
    if offset is None:
        # Nothing was written: all values are the fill value.
        return ChunkIndex(*(np.zeros(0, np.int64) for _ in range(3)))
    itemsize = dataset.dtype.itemsize
    if dataset.id.get_storage_size() != dataset.size * itemsize:
        return None
    return ContiguousIndex(offset, dataset.size * itemsize, math.prod(chunk_shape) * itemsize)
