"""xarray engines whose data carries asynchronous reading: ``engine="aio"``, and any other's."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import xarray as xr

# Private: the arrays in which backends leave their data, and the choice of an engine for a file.
# The guide to backends tells engines to use the first; the second has no public name.
from xarray.backends import (
    BackendEntrypoint,
    H5netcdfBackendEntrypoint,
    NetCDF4BackendEntrypoint,
    ZarrBackendEntrypoint,
    plugins,
)
from xarray.backends.common import BackendArray, datatree_from_dict_with_io_cleanup
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core.indexing import ExplicitlyIndexed
from xarray.core.utils import close_on_error

from aioxarray._runtime.loops import be_awaited, run_blocking
from aioxarray._xarray.aio_array import AioArray, OpenFile, ReadTogether
from aioxarray._xarray.indexes import with_default_indexes
from aioxarray._xarray.known import KnownArray, open_known_dataset, open_known_groups
from aioxarray._xarray.read import in_hdf5, lane_of_hdf5
from aioxarray._xarray.remote_files import read_ahead
from aioxarray._zarr import reading
from aioxarray._zarr.groups import known_group
from aioxarray._zarr.opening import Opened, give_back, open_store

if TYPE_CHECKING:
    from zarr.abc.store import Store


class AioBackendEntrypoint(BackendEntrypoint):
    """Opens Zarr, and through xarray's other engines any other format, for reading by aioxarray.

    All metadata, the values that time decoding needs, and the index coordinates are each read
    together, over all variables and groups. The results are those of the engine that xarray
    would use.
    """

    description = "Open any data for reading by aioxarray: concurrent, limited, from any loop"
    url = "https://github.com/aioxarray/aioxarray"
    supports_groups = True

    # The engine whose results these are; None: found for each input.
    inner: BackendEntrypoint | None = None
    # Whether it is known that all index coordinates will be read. Who calls an engine through
    # xarray's functions may want none, of which xarray tells the engine nothing.
    reads_indexes = False

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return False: it is used where it is asked for."""
        return False

    def open_dataset(self, filename_or_obj: Any, **options: Any) -> xr.Dataset:
        """Open a dataset; the arguments are those of the inner engine."""
        opened: xr.Dataset = self._open("open_dataset", filename_or_obj, options, deep=False)
        return opened

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open a tree of groups; the arguments are those of the inner engine."""
        opened: xr.DataTree = self._open("open_datatree", filename_or_obj, options, deep=True)
        return opened

    def open_groups_as_dict(self, filename_or_obj: Any, **options: Any) -> dict[str, xr.Dataset]:
        """Open all groups; the arguments are those of the inner engine."""
        opened: dict[str, xr.Dataset] = self._open(
            "open_groups_as_dict", filename_or_obj, options, deep=True
        )
        return opened

    def _open(self, method: str, source: Any, options: dict[str, Any], *, deep: bool) -> Any:
        inner = self.inner or plugins.get_backend(inner_engine(source))
        call: Callable[..., Any] = getattr(inner, method)
        if isinstance(inner, _SERIAL):
            source, options = read_ahead(inner, source, options)
            opening = _opening(inner, method, source, options)
            # A worker thread that has opened it, and is cancelled, drops it, and with it closes it.
            be_awaited()
            return _open_in_lane(opening, indexes=self.reads_indexes)
        if type(inner) is not ZarrBackendEntrypoint or options.get("store") is not None:
            result = call(source, **options)
            _equip(_datasets(result))
            return result
        opened = _open_store(source, options, deep=deep, indexes=self.reads_indexes)
        group = None
        if opened.hierarchy is not None and options.get("mode", "r") == "r":
            group = known_group(opened.stand_in, opened.hierarchy)
        given = {**options, "storage_options": None, "consolidated": opened.consolidated}
        open_known: Callable[..., Any] = open_known_groups if deep else open_known_dataset
        result = open_known(inner, opened.stand_in, given, group)
        if method == "open_datatree":
            result = datatree_from_dict_with_io_cleanup(result)
        _equip(_datasets(result), give_back_to=opened.store, ahead=self.reads_indexes)
        return result


# Engines of libraries that bear one thread at a time, while opening too.
_SERIAL = (NetCDF4BackendEntrypoint, H5netcdfBackendEntrypoint)


def _opening(
    inner: BackendEntrypoint, method: str, source: Any, options: Mapping[str, Any]
) -> Callable[[], Any]:
    """Return what opens ``source`` as ``inner`` does, where its library's calls are made."""

    def call() -> Any:
        return getattr(inner, method)(source, **options)

    if type(inner) is not H5netcdfBackendEntrypoint:
        return call
    # Here, because h5netcdf need not be installed for anything else.
    from aioxarray._xarray.hdf5_engine import open_once, opens_once

    if not opens_once(source, options):
        return call

    def call_once() -> Any:
        opened: Any = open_once(source, options, deep=method != "open_dataset")
        if opened is None:
            return call()
        return datatree_from_dict_with_io_cleanup(opened) if method == "open_datatree" else opened

    return call_once


def _open_in_lane(opening: Callable[[], Any], *, indexes: bool) -> Any:
    """Open, and later close, where the library's reads happen too.

    With ``indexes`` a dataset has its default indexes: it is known that they are wanted, and so
    their coordinates are read in the same turn.
    """

    def open_and_equip() -> Any:
        result = opening()
        if indexes and isinstance(result, xr.Dataset):
            with close_on_error(result):
                result = with_default_indexes(result)
        for dataset in _datasets(result):
            # Private: what closes it; public is only the setter.
            closer = dataset._close
            if closer is not None:
                file = OpenFile(getattr(closer, "__self__", None), lane_of_hdf5())
                dataset.set_close(partial(_close_in_turn, closer))
                _equip([dataset], file=file)
        return result

    return run_blocking(lambda: in_hdf5(open_and_equip))


def _close_in_turn(closer: Callable[[], None]) -> None:
    lane_of_hdf5().call(closer)


def _open_store(source: Any, options: Mapping[str, Any], *, deep: bool, indexes: bool) -> Opened:
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str) and "://" not in source:
        source = os.path.abspath(os.path.expanduser(source))
    drop = options.get("drop_variables") or ()
    return run_blocking(
        lambda: open_store(
            source,
            group=options.get("group"),
            mode=options.get("mode", "r"),
            consolidated=options.get("consolidated"),
            zarr_format=options.get("zarr_format"),
            storage_options=options.get("storage_options"),
            deep=deep,
            times=options.get("decode_times", True) is not False,
            indexes=indexes,
            drop=[drop] if isinstance(drop, str) else drop,
            requests=reading.requests,
        )
    )


# xarray reads the names of the arguments off the signature, to know which decoders there are.
_SIGNATURE = inspect.signature(ZarrBackendEntrypoint.open_dataset)
AioBackendEntrypoint.open_dataset.__signature__ = _SIGNATURE  # type: ignore[attr-defined]


def inner_engine(source: Any, *, default: str | None = "zarr") -> str | type[BackendEntrypoint]:
    """Return the engine for ``source``, as xarray guesses it or, where it cannot, ``default``.

    Raises
    ------
    ValueError, FileNotFoundError
        If ``source`` is a path, xarray knows no engine for it, and there is no ``default``.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    is_file = isinstance(source, bytes | memoryview) or hasattr(source, "read")
    if not is_file and (not isinstance(source, str) or os.path.isdir(source)):
        # A store, a mapping, a session: what zarr takes and no other engine.
        return "zarr"
    try:
        return plugins.guess_engine(source)
    except (ValueError, FileNotFoundError):
        if isinstance(source, str) and "://" in source:
            # A URL without a known suffix is most likely the root of a store.
            return "zarr"
        if default is None or is_file:
            raise
        return default


@functools.cache
def engine_of(
    engine: str | type[BackendEntrypoint], *, reads_indexes: bool = False
) -> type[AioBackendEntrypoint]:
    """Return the engine that opens as ``engine`` does, for reading by aioxarray.

    With ``reads_indexes`` it fetches what indexes are made of with what time decoding needs.

    Raises
    ------
    ValueError
        If xarray knows no such engine.
    """
    inner = plugins.get_backend(engine)
    if isinstance(inner, AioBackendEntrypoint) and reads_indexes == inner.reads_indexes:
        return type(inner)

    class Equipped(AioBackendEntrypoint):
        supports_groups = inner.supports_groups
        open_dataset_parameters = inner.open_dataset_parameters

    Equipped.inner = inner.inner if isinstance(inner, AioBackendEntrypoint) else inner
    Equipped.reads_indexes = reads_indexes
    Equipped.__name__ = Equipped.__qualname__ = f"Aio[{type(inner).__name__}]"
    return Equipped


def _equip(
    datasets: list[Any],
    *,
    give_back_to: Store | None = None,
    ahead: bool = False,
    file: OpenFile | None = None,
) -> None:
    """Give the lazy data of datasets, or of nodes of a tree, its own reading, in place.

    ``give_back_to`` is the store that a stand-in was opened for, which with ``ahead`` has the
    index coordinates; ``file`` is what holds the data.
    """
    give_back_read = None
    if ahead and give_back_to is not None:
        give_back_read = partial(_give_back, store=give_back_to)
    together = ReadTogether(give_back_read)
    for dataset in datasets:
        for name, variable in dataset.variables.items():
            data = variable._data
            if isinstance(variable, xr.IndexVariable) or not isinstance(data, ExplicitlyIndexed):
                continue
            # xarray will make an index of it, and ask for all of its values.
            is_index = variable.dims == (name,)
            if give_back_to is not None and not (is_index and ahead):
                _give_back(data, give_back_to)
            variable._data = together.add(data, file) if is_index else AioArray(data, file)


def _datasets(result: Any) -> list[Any]:
    if isinstance(result, xr.Dataset):
        return [result]
    if isinstance(result, xr.DataTree):
        return list(result.subtree)
    return list(result.values())


def _give_back(data: Any, store: Store) -> None:
    owner = None
    while not isinstance(data, BackendArray):
        inside = getattr(data, "array", None)
        if not isinstance(inside, ExplicitlyIndexed):
            return
        owner, data = data, inside
    if isinstance(data, ZarrArrayWrapper):
        give_back(data._array, store)
        if isinstance(data, KnownArray) and owner is not None:
            owner.array = data.plain
