"""xarray's h5netcdf engine over files that look up each piece of metadata only once.

Local files are kept in xarray's own cache of open files, as with plain xarray.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import h5netcdf

from aioxarray._runtime.loops import run_blocking
from aioxarray._runtime.threads.package_threads import in_package_thread
from aioxarray._xarray.arrays.read import in_hdf5
from aioxarray._xarray.arrays.remote_files import ReadAheadFile
from aioxarray._xarray.compat import (
    CachingFileManager,
    H5netcdfBackendEntrypoint,
    H5NetCDFStore,
    NodePath,
    PickleableFileManager,
    StoreBackendEntrypoint,
    _emit_phony_dims_warning,
    _iter_nc_groups,
    _normalize_path,
    close_on_error,
    is_remote_uri,
)
from aioxarray._xarray.hdf5.files import MetadataCachingFile
from aioxarray._xarray.hdf5.layouts import Found, LaterFile, Layouts, LayoutStore
from aioxarray._xarray.hdf5.scanning import Scan, scan

if TYPE_CHECKING:
    import xarray as xr

    from aioxarray._xarray.compat import FileManager

# Options that xarray's engine passes to h5netcdf, with its default values.
_OF_FILE = {"invalid_netcdf": None, "decode_vlen_strings": True}
# Options that make it open the file in another way, with the values for which it does not.
_OTHERWISE = {
    "format": "NETCDF4",
    "lock": None,
    "driver": None,
    "driver_kwds": None,
    "storage_options": None,
    "open_kwargs": None,
}
_KNOWN = inspect.signature(H5netcdfBackendEntrypoint.open_dataset).parameters


class _Variable(h5netcdf.Variable):  # type: ignore[misc]
    """A variable that caches properties that do not change."""

    _h5ds = cached_property(h5netcdf.Variable._h5ds.fget)
    shape = cached_property(h5netcdf.Variable.shape.fget)
    dtype = cached_property(h5netcdf.Variable.dtype.fget)
    datatype = cached_property(h5netcdf.Variable.datatype.fget)


class _Group(h5netcdf.Group):  # type: ignore[misc]
    # Private: the hooks with which h5netcdf's own "legacy" interface substitutes its classes.
    _variable_cls = _Variable

    @property
    def _group_cls(self) -> type[_Group]:
        return _Group


class _File(_Group, h5netcdf.File):  # type: ignore[misc]
    pass


def _open_file(source: Any, mode: str, **options: Any) -> Any:
    """Open a file with h5netcdf; at module level because file managers pickle this function."""
    if not in_package_thread():
        # Unpickling a manager may open its file in any thread.
        return run_blocking(lambda: in_hdf5(lambda: _open_file(source, mode, **options)))
    cached = MetadataCachingFile(source)
    try:
        return _in_netcdf(cached, **options)
    except BaseException:
        cached.close()
        raise


def _in_netcdf(cached: MetadataCachingFile, **options: Any) -> Any:
    """Return a file of h5netcdf that looks into ``cached``, and closes it."""
    file = _File(cached, "r", **options)
    # Private: h5netcdf would not close the HDF5 file otherwise, since it did not open it.
    file._close_h5file = True
    return file


def can_cache_metadata(source: Any, options: Mapping[str, Any]) -> bool:
    """Return whether `open_caching_metadata` can open ``source``.

    It opens local files and those of `ReadAheadFile`, by h5py.
    """
    local = isinstance(source, str | os.PathLike) and not is_remote_uri(os.fspath(source))
    usual = all(options.get(name, value) == value for name, value in _OTHERWISE.items())
    by_h5py = "H5NETCDF_READ_BACKEND" not in os.environ
    # xarray's engine itself rejects options that it does not know.
    return (
        (local or isinstance(source, ReadAheadFile))
        and usual
        and by_h5py
        and options.keys() <= {*_KNOWN}
    )


def open_caching_metadata(
    source: Any,
    options: Mapping[str, Any],
    *,
    deep: bool,
    store_of: Callable[..., H5NetCDFStore] = H5NetCDFStore,
    layouts: Layouts | None = None,
) -> xr.Dataset | dict[str, xr.Dataset]:
    """Open ``source`` as xarray's engine does; in HDF5's lane.

    With ``deep``, open all groups. ``store_of`` makes a store from the file manager. ``layouts``
    are those of other files, from one of which it may be opened.
    """
    of_store = (*_OF_FILE, *_OTHERWISE, "group", "phony_dims")
    decoding = {name: value for name, value in options.items() if name not in of_store}
    group, phony_dims = options.get("group"), options.get("phony_dims")
    of_file = {name: options.get(name, value) for name, value in _OF_FILE.items()}
    of_file["phony_dims"] = "access" if phony_dims is None else phony_dims
    file = source if isinstance(source, ReadAheadFile) else _normalize_path(source)
    look = _Look(_open_file, None, None)
    if layouts is not None and layouts.are_worthwhile and not deep and group in (None, "", "/"):
        look = _look(file, of_file, layouts)
    found = look.found
    manager_of = PickleableFileManager if isinstance(source, ReadAheadFile) else CachingFileManager
    manager: FileManager[Any] = manager_of(look.opener, file, mode="r", kwargs=of_file)
    store = (
        store_of(manager, group=group, mode="r") if found is None else LayoutStore(manager, found)
    )
    with close_on_error(store), manager.acquire_context() as opened_file:
        engine = StoreBackendEntrypoint()
        opened = (
            {
                path: engine.open_dataset(each, **decoding)
                for path, each in _all_groups(store, NodePath("/") / NodePath(group or ""))
            }
            if deep
            else engine.open_dataset(store, **decoding)
        )
        if found is None and phony_dims is None and opened_file._phony_dim_count:
            _emit_phony_dims_warning()
        if found is None and layouts is not None and look.seen is not None:
            layouts.add(look.seen, store, tuple(of_file.items()))
    return opened


class _Look(NamedTuple):
    """How to open a file, what was seen in it, and what is known about it from another file."""

    opener: Callable[..., Any]
    seen: Scan | None
    found: Found | None


def _look(source: Any, of_file: Mapping[str, Any], layouts: Layouts) -> _Look:
    """Open a file, and look for its layout in ``layouts``."""
    cached = MetadataCachingFile(source)
    try:
        seen = scan(cached)
        found = None if seen is None else layouts.find(seen, cached, tuple(of_file.items()))

        def in_netcdf(opened: MetadataCachingFile) -> Any:
            return _in_netcdf(opened, **of_file)

        file = in_netcdf(cached) if found is None else LaterFile(cached, in_netcdf)
    except BaseException:
        cached.close()
        raise
    return _Look(_Opened(file), seen, found)


class _Opened:
    """A stand-in for `_open_file` whose first call returns a file that is open already."""

    def __init__(self, file: Any) -> None:
        self._files = [file]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._files.pop() if self._files else _open_file(*args, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opener, ()

    # xarray finds open files by the function that opens them: copies share them.
    def __eq__(self, other: object) -> bool:
        return other is _open_file or isinstance(other, _Opened)

    def __hash__(self) -> int:
        return hash(_open_file)


def _opener() -> Callable[..., Any]:
    return _open_file


def _all_groups(store: Any, parent: NodePath) -> Iterator[tuple[str, Any]]:
    """Yield the relative paths and the stores of the group ``parent`` and all groups below it."""
    for path in _iter_nc_groups(store.ds, parent=parent):
        relative = str(NodePath(path).relative_to(parent)) if parent.name else path
        yield relative, H5NetCDFStore(store._manager, group=path, mode="r")
