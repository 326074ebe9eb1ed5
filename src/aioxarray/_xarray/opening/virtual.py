"""HDF5 files whose metadata HDF5 reads, and whose chunks are read as Zarr's: ``virtual=True``.

h5netcdf describes the file, so dimensions, attributes, types and encodings are those of plain
xarray. Where the values of a variable are chunks that Zarr can decode to exactly what HDF5 would
give, the variable is a Zarr array over these chunks. HDF5 itself reads all other variables.
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
from obstore.store import LocalStore, from_url

# Private: the store of xarray's h5netcdf engine, the array of its Zarr backend, and the adapter
# that every lazy variable has around its array. The guide to backends tells engines to use the
# latter; the others have no public names. ``plugins`` tells what arguments an engine takes.
from xarray.backends import H5netcdfBackendEntrypoint, H5NetCDFStore, plugins
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core.indexing import LazilyIndexedArray

from aioxarray._xarray.hdf5.engine import open_once, opens_once
from aioxarray._xarray.hdf5.remote_files import AheadFile
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
    """Opens netCDF4 and HDF5 files, whose chunks are then read as Zarr's."""

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
    """A file in which HDF5 and Zarr both read.

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
            self._client, self._key = LocalStore(), local.lstrip("/")
        self.chunks = FileChunks(self._client, self._key)

    def read_ahead(self) -> str | AheadFile:
        """Return what HDF5 opens: a path, or a file object whose ends are in memory."""
        if not self.is_remote:
            return self.path
        file = AheadFile(ObjectFile(self._client, self._key, self.path))
        file.read_ahead()
        return file


def _open(file: VirtualFile, source: str | AheadFile, options: Mapping[str, Any]) -> Any:
    """Open ``source``, which `VirtualFile.read_ahead` has given; where HDF5's calls are made.

    Raises
    ------
    TypeError
        If an option would have the file opened by other means than h5py.
    """
    if not opens_once(source, options):
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
    dataset = open_once(source, options, deep=False, store_of=store_of)
    assert isinstance(dataset, xr.Dataset)
    if not read_by_hdf5:
        dataset.close()
        dataset.set_close(None)
    return dataset


def _client_of(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Return obstore's store for the root of ``url``, and the key of the object in it."""
    parts = urlsplit(url)
    options = dict(storage_options or {})
    if parts.scheme == "http":
        # obstore refuses plain HTTP unless told otherwise; the URL says it is meant.
        options["client_options"] = {"allow_http": True, **options.get("client_options", {})}
    return from_url(f"{parts.scheme}://{parts.netloc}", **options), parts.path.lstrip("/")


class ChunkStore(H5NetCDFStore):
    """The store of xarray's h5netcdf engine, with Zarr arrays where they give the same values.

    Parameters
    ----------
    manager, **options
        As of `H5NetCDFStore`.
    chunks
        Where chunks are read from.
    drop
        Names of variables that will not be used, so that their chunks are not looked for.
    read_by_hdf5
        The names of variables that stay with HDF5 are added to it.
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
        # Private, both: h5netcdf's variable gives its HDF5 dataset and file in no other way.
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
    """Return an HDF5 dataset as a Zarr array, or None where that may give other values.

    ``shape`` is that of the variable: netCDF fills one that is shorter than its dimensions.
    """
    dtype = dataset.dtype
    created = dataset.id.get_create_plist()
    if (
        dataset.shape != shape
        or dataset.size == 0
        # Plain numbers, stored as numpy has them: not an enumeration, and not of fewer bits.
        or dtype.kind not in "iuf"
        or dataset.id.get_type() != h5t.py_create(dtype)
        or created.get_external_count()
        # The places of chunks are counted from the end of a user block, of those that have one.
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
        # Compact values lie in the file's metadata, virtual ones in other datasets.
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
    """Return the codecs that do what the filters of a dataset do; None if one has none."""
    codecs = []
    for number in range(created.get_nfilters()):
        code, _, values, _ = created.get_filter(number)
        make = _CODECS.get(code)
        if make is None:
            return None
        codecs.append(make(values, itemsize))
    return tuple(codecs)


# By the number of a filter, registered with the HDF Group: what makes the codec of its settings and
# of the bytes of an element. Settings that matter to encoding only are left out.
_CODECS: dict[int, Any] = {
    h5z.FILTER_DEFLATE: lambda values, itemsize: numcodecs.Zlib(),
    h5z.FILTER_SHUFFLE: lambda values, itemsize: Shuffle(values[0] if values else itemsize),
    h5z.FILTER_FLETCHER32: lambda values, itemsize: Fletcher32(),
    32001: lambda values, itemsize: numcodecs.Blosc(),
    32015: lambda values, itemsize: numcodecs.Zstd(),
}


def _chunk_index(dataset: h5py.Dataset) -> Index | None:
    """Return where the chunks of a dataset are; None if some were stored without the filters."""
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
                # Left over from before the dataset was made smaller.
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
