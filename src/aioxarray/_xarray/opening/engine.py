"""Backend engines whose data reads asynchronously: ``engine="aio"`` and wrappers of the others."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import xarray as xr

from aioxarray._runtime.loops import run_blocking
from aioxarray._runtime.system.collector import collector
from aioxarray._runtime.threads.cancel_scope import be_awaited, run_in_scope
from aioxarray._xarray.arrays.prefetched_array import PrefetchedArray
from aioxarray._xarray.arrays.read import in_hdf5, lane_of_hdf5
from aioxarray._xarray.arrays.remote_files import ReadAheadFile, read_ahead
from aioxarray._xarray.compat import (
    BackendArray,
    BackendEntrypoint,
    ExplicitlyIndexed,
    H5netcdfBackendEntrypoint,
    NetCDF4BackendEntrypoint,
    ZarrArrayWrapper,
    ZarrBackendEntrypoint,
    close_on_error,
    datatree_from_dict_with_io_cleanup,
    is_remote_uri,
    plugins,
)
from aioxarray._xarray.dask.group_names import name_after_groups
from aioxarray._xarray.hdf5.alike import shared
from aioxarray._xarray.lazy.aio_array import AioArray, OpenFile, ReadTogether
from aioxarray._xarray.opening.error_notes import Attempt, guess_engine_with_notes
from aioxarray._xarray.opening.groups.prefetched import open_prefetched
from aioxarray._xarray.opening.groups.trees import tree_of
from aioxarray._xarray.opening.indexes import KnownIndexes, with_all_indexes, with_default_indexes
from aioxarray._zarr.metadata.groups import known_groups
from aioxarray._zarr.metadata.opening import Opened, open_store, places, replace_store
from aioxarray._zarr.stores.limited import Places

if TYPE_CHECKING:
    from zarr.abc.store import Store


class AioBackendEntrypoint(BackendEntrypoint):
    """Backend engine for Zarr and, through xarray's other engines, for any other format.

    Its lazy data is read by aioxarray. For Zarr, metadata, the values needed to decode times, and
    index coordinates are each fetched together for all variables and groups. The results are those
    of the engine named by ``inner_engine`` or, by default, of the engine guessed for the input::

        xr.open_dataset(url, engine="aio", inner_engine="zarr")
    """

    description = "Open any data for reading by aioxarray: concurrent, limited, from any loop"
    url = "https://github.com/aioxarray/aioxarray"
    supports_groups = True

    # The wrapped engine; None: guessed for each input.
    inner: BackendEntrypoint | None = None
    # Its name, for error messages, and the argument that overrides it if it was guessed.
    inner_name: str | type[BackendEntrypoint] | None = None
    said_by: str | None = None
    # Whether all index coordinates are known to be read. xarray's own functions do not tell an
    # engine about ``create_default_indexes=False``.
    reads_indexes = False

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return False: this engine is used only if it is named."""
        return False

    def open_dataset(self, filename_or_obj: Any, **options: Any) -> xr.Dataset:
        """Open a dataset; the arguments are those of the inner engine."""
        opened: xr.Dataset = self._open("open_dataset", filename_or_obj, options)
        return opened

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open a tree of groups; the arguments are those of the inner engine."""
        opened: xr.DataTree = self._open("open_datatree", filename_or_obj, options)
        return opened

    def open_groups_as_dict(self, filename_or_obj: Any, **options: Any) -> dict[str, xr.Dataset]:
        """Open all groups; the arguments are those of the inner engine."""
        opened: dict[str, xr.Dataset] = self._open("open_groups_as_dict", filename_or_obj, options)
        name_after_groups(opened)
        return opened

    def _open(self, method: str, source: Any, options: dict[str, Any]) -> Any:
        attempt, inner = self._attempt(source, options)
        with attempt.error_notes():
            attempt.check_names(method.removesuffix("_as_dict"), method, own_options(method))
            options = dict(attempt.options)
            if options.get("group_filter") is None:
                options.pop("group_filter", None)
            elif type(inner) is not ZarrBackendEntrypoint:
                raise ValueError(
                    f"group_filter={options['group_filter']!r} selects groups of Zarr stores; "
                    f"engine {attempt.engine_name!r} opens all groups"
                )
            return self._open_with(inner, method, source, options)

    def _attempt(self, source: Any, options: dict[str, Any]) -> tuple[Attempt, BackendEntrypoint]:
        """Return the attempt with the named or guessed engine, and that engine."""
        if self.inner is not None and self.inner_name is not None:
            return Attempt(source, self.inner_name, options, self.said_by), self.inner
        options = dict(options)
        named = options.pop("inner_engine", None)
        engine = guess_engine_with_notes(source, options) if named is None else named
        inner = plugins.get_backend(engine)
        if isinstance(inner, AioBackendEntrypoint):
            raise ValueError(_NO_INNER_ENGINE)
        said_by = "inner_engine" if named is None else None
        return Attempt(source, engine, options, said_by), inner

    def _open_with(
        self, inner: BackendEntrypoint, method: str, source: Any, options: dict[str, Any]
    ) -> Any:
        if isinstance(inner, _SERIAL):
            source, options = read_ahead(inner, source, options)
            opening = _opening(inner, method, source, options)
            return open_in_lane(opening, source, indexes=self.reads_indexes)
        if not _is_plain_zarr(inner, options):
            result = getattr(inner, method)(source, **options)
            _wrap(_datasets(result))
            return result
        with places() as given:
            return run_in_scope(lambda: self._open_zarr(inner, method, source, options, given))

    def _open_zarr(
        self,
        inner: ZarrBackendEntrypoint,
        method: str,
        source: Any,
        options: dict[str, Any],
        given: Places,
    ) -> Any:
        deep = method != "open_dataset"
        opened = _open_store(source, options, given, deep=deep, indexes=self.reads_indexes)
        hierarchy = opened.hierarchy if options.get("mode", "r") == "r" else None
        many = hierarchy is not None and len(hierarchy.nodes) >= _MANY_NODES
        with opened.error_notes(), collector.building() if many else nullcontext():
            groups = None if hierarchy is None else known_groups(opened.stand_in, hierarchy)
            known = {**options, "storage_options": None, "consolidated": opened.consolidated}
            result = open_prefetched(inner, opened.stand_in, known, groups, deep=deep)
            _wrap(_datasets(result), store=opened.store, ahead=self.reads_indexes)
            if self.reads_indexes:
                result = with_all_indexes(result)
            return tree_of(result) if method == "open_datatree" else result


# With fewer groups and arrays, a full garbage collection takes no longer than without them.
_MANY_NODES = 1000


def _is_plain_zarr(
    inner: BackendEntrypoint | None, options: Mapping[str, Any]
) -> TypeGuard[ZarrBackendEntrypoint]:
    """Return whether this package opens the store itself, and xarray only decodes it."""
    return type(inner) is ZarrBackendEntrypoint and options.get("store") is None


def makes_indexes(engine: type[AioBackendEntrypoint], options: Mapping[str, Any]) -> bool:
    """Return whether what ``engine`` opens has its default indexes already."""
    return engine.reads_indexes and _is_plain_zarr(engine.inner, options)


_NO_INNER_ENGINE = "inner_engine names the engine that 'aio' opens with: another than itself"


def own_options(method: str) -> tuple[str, ...]:
    """Return the names of the arguments that xarray's engines lack, for a method of an engine."""
    return () if method == "open_dataset" else ("group_filter",)


# Engines of libraries that allow only one thread at a time, even for opening.
_SERIAL = (NetCDF4BackendEntrypoint, H5netcdfBackendEntrypoint)


def _opening(
    inner: BackendEntrypoint, method: str, source: Any, options: Mapping[str, Any]
) -> Callable[[], Any]:
    """Return a function that opens ``source`` as ``inner`` does, to be called in HDF5's lane."""

    def call() -> Any:
        return getattr(inner, method)(source, **options)

    if type(inner) is not H5netcdfBackendEntrypoint:
        return call
    # Imported here: h5netcdf is an optional dependency.
    from aioxarray._xarray.hdf5.engine import can_cache_metadata, open_caching_metadata
    from aioxarray._xarray.hdf5.layouts import Layouts

    if not can_cache_metadata(source, options):
        return call
    layouts = shared(Layouts)

    def call_caching() -> Any:
        deep = method != "open_dataset"
        opened: Any = open_caching_metadata(source, options, deep=deep, layouts=layouts)
        return datatree_from_dict_with_io_cleanup(opened) if method == "open_datatree" else opened

    return call_caching


def open_in_lane(opening: Callable[[], Any], source: Any, *, indexes: bool) -> Any:
    """Open ``source`` in HDF5's lane, where it is also read and later closed.

    With ``indexes``, a dataset gets its default indexes here, so that their coordinates are read
    in the same turn.
    """
    by_python = hasattr(source, "read")
    if not by_python or isinstance(source, ReadAheadFile):
        # A cancelled worker thread drops what it has opened, which closes the file: wait for it.
        be_awaited()

    known = shared(KnownIndexes)

    def open_and_wrap() -> Any:
        result = opening()
        if indexes and isinstance(result, xr.Dataset):
            with close_on_error(result):
                result = with_default_indexes(result, known)
        for dataset in _datasets(result):
            # Private: the close callback; only its setter is public.
            closer = dataset._close
            file = None
            if closer is not None:
                file = OpenFile(getattr(closer, "__self__", None), lane_of_hdf5())
                dataset.set_close(partial(_close_in_turn, closer))
            _wrap([dataset], file=file)
        return result

    return run_blocking(lambda: in_hdf5(open_and_wrap, by_python=by_python))


def _close_in_turn(closer: Callable[[], None]) -> None:
    lane_of_hdf5().call(closer)


def _open_store(
    source: Any, options: Mapping[str, Any], places: Places, *, deep: bool, indexes: bool
) -> Opened:
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str) and not is_remote_uri(source):
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
            groups=options.get("group_filter"),
            places=places,
        )
    )


# xarray learns the engine's decoding arguments from this signature.
_SIGNATURE = inspect.signature(ZarrBackendEntrypoint.open_dataset)
_SIGNATURE = _SIGNATURE.replace(
    parameters=[
        *_SIGNATURE.parameters.values(),
        inspect.Parameter("inner_engine", inspect.Parameter.KEYWORD_ONLY, default=None),
    ]
)
AioBackendEntrypoint.open_dataset.__signature__ = _SIGNATURE  # type: ignore[attr-defined]


def attempt_of(source: Any, options: dict[str, Any]) -> Attempt:
    """Return the attempt for a call of an xarray function; pops the engine from ``options``.

    If no engine is named, it is guessed.
    """
    engine, said_by = options.pop("engine", None), "engine"
    if engine == "aio" or engine is AioBackendEntrypoint:
        # Every engine is wrapped in this one anyway; ``inner_engine`` may name the engine inside.
        for_backend = options["backend_kwargs"] = dict(options.get("backend_kwargs") or {})
        engine, said_by = for_backend.pop("inner_engine", None), "inner_engine"
        engine = options.pop("inner_engine", engine)
        if engine == "aio":
            raise ValueError(_NO_INNER_ENGINE)
    given = {**options, **(options.get("backend_kwargs") or {})}
    given.pop("backend_kwargs", None)
    if engine is None:
        return Attempt(source, guess_engine_with_notes(source, given), given, said_by)
    return Attempt(source, engine, given, None)


@functools.cache
def engine_of(
    engine: str | type[BackendEntrypoint],
    *,
    reads_indexes: bool = False,
    said_by: str | None = None,
) -> type[AioBackendEntrypoint]:
    """Return an engine that opens as ``engine`` does, and whose data aioxarray reads.

    With ``reads_indexes``, it fetches index coordinates together with the values needed to decode
    times. ``said_by`` is the argument that overrides the engine, if the engine was guessed.

    Raises
    ------
    ValueError
        If xarray knows no such engine.
    """
    inner = plugins.get_backend(engine)
    if isinstance(inner, AioBackendEntrypoint) and (
        (reads_indexes, said_by) == (inner.reads_indexes, inner.said_by)
    ):
        return type(inner)

    class Wrapped(AioBackendEntrypoint):
        supports_groups = inner.supports_groups
        open_dataset_parameters = inner.open_dataset_parameters

    Wrapped.inner, Wrapped.inner_name = inner, engine
    if isinstance(inner, AioBackendEntrypoint):
        Wrapped.inner, Wrapped.inner_name = inner.inner, inner.inner_name
    Wrapped.reads_indexes, Wrapped.said_by = reads_indexes, said_by
    Wrapped.__name__ = Wrapped.__qualname__ = f"Aio[{type(inner).__name__}]"
    return Wrapped


def _wrap(
    datasets: list[Any],
    *,
    store: Store | None = None,
    ahead: bool = False,
    file: OpenFile | None = None,
) -> None:
    """Wrap the lazy data of datasets or tree nodes in `AioArray`, in place.

    ``store`` is the store behind the stand-in that the data was opened through; with
    ``ahead``, index coordinates use the stand-in until they are read. ``file`` holds the data.
    """
    after = partial(_replace_store, store=store) if ahead and store is not None else None
    together = ReadTogether(after)
    for dataset in datasets:
        for name, variable in dataset.variables.items():
            data = variable._data
            if isinstance(variable, xr.IndexVariable) or not isinstance(data, ExplicitlyIndexed):
                continue
            # xarray builds an index from it, and so reads all of its values.
            is_index = variable.dims == (name,)
            if store is not None and not (is_index and ahead):
                _replace_store(data, store)
            label = f"variable {name!r}"
            variable._data = (
                together.add(data, file, label) if is_index else AioArray(data, file, label=label)
            )


def _datasets(result: Any) -> list[Any]:
    if isinstance(result, xr.Dataset):
        return [result]
    if isinstance(result, xr.DataTree):
        return list(result.subtree)
    return list(result.values())


def _replace_store(data: Any, store: Store) -> None:
    """Make the Zarr array at the bottom of a chain of adapters use ``store`` itself."""
    owner = None
    while not isinstance(data, BackendArray):
        inside = getattr(data, "array", None)
        if not isinstance(inside, ExplicitlyIndexed):
            return
        owner, data = data, inside
    if isinstance(data, ZarrArrayWrapper):
        replace_store(data._array, store)
        if isinstance(data, PrefetchedArray) and owner is not None:
            owner.array = data.plain
