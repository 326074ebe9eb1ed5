"""Reads what a plan asks for, by the best way its backend has."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Hashable
from contextlib import ExitStack
from typing import Any, TypeVar

# Private: backends' arrays and locks have no public names. ``BackendArray.async_getitem`` is the
# extension point, as xarray's guide to backends has it; that of xarray's own Zarr backend goes
# past every limit (pydata/xarray#10622), so for that one the array is exchanged.
from xarray.backends.common import BackendArray
from xarray.backends.file_manager import PickleableFileManager
from xarray.backends.locks import HDF5_LOCK, NETCDFC_LOCK, CombinedLock, SerializableLock
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core.indexing import (
    BasicIndexer,
    ExplicitIndexer,
    ExplicitlyIndexedNDArrayMixin,
    OuterIndexer,
    VectorizedIndexer,
)

from aioxarray._runtime.collector import collector
from aioxarray._runtime.lanes import Lane
from aioxarray._runtime.threads import BLOCKING_THREADS, Pool
from aioxarray._xarray.joined import JoinedArray
from aioxarray._xarray.known import KnownArray
from aioxarray._xarray.plan import Opaque, Read
from aioxarray._xarray.remote_files import cancellable
from aioxarray._zarr.arrays import read_block, read_points, readable
from aioxarray._zarr.chunks import is_basic
from aioxarray._zarr.reading import Reading

T = TypeVar("T")

blocking_pool = Pool("aioxarray-blocking", BLOCKING_THREADS)


async def read(
    source: Read | Opaque,
    reading: Reading,
    report: Callable[[int, int], None],
    load: Callable[[Any], Awaitable[Any]],
) -> Any:
    """Read ``source`` on the I/O loop.

    ``report`` is told how many of how many parts are done; ``load`` loads the lazy arrays that
    ``source`` is made of, if it is.
    """
    array: Any = source.array
    if isinstance(source, Read):
        source = Read(array, _sound(source.key, array.shape))
    if isinstance(source, Opaque):
        if type(array).async_get_duck_array is not _no_async_array:
            try:
                return await array.async_get_duck_array()
            except NotImplementedError:
                # An adapter around something that cannot.
                pass
        return await blocking_pool.run(array.get_duck_array)
    if is_zarr(array):
        array = copy.copy(array)
        array._array = readable(array._array, reading, report)
        part = None
        if isinstance(source.key, VectorizedIndexer):
            if not any(isinstance(each, slice) for each in source.key.tuple):
                part = await read_points(array._array, source.key.tuple, reading)
        elif is_basic(source.key.tuple):
            part = await read_block(array._array, source.key.tuple)
        if part is not None:
            return part
        return await array.async_getitem(_without_scalars(source.key))
    if type(array) is JoinedArray:
        return await array.read(source.key, load)
    if type(array).async_getitem is not BackendArray.async_getitem:
        try:
            return await array.async_getitem(source.key)
        except NotImplementedError:
            # It has the method, but not for this key or in this state.
            pass
    return await _read_in_thread(lambda: array[source.key], array)


def is_zarr(array: BackendArray) -> bool:
    """Say whether ``array`` reads a Zarr array, its attribute ``_array``."""
    return type(array) in (ZarrArrayWrapper, KnownArray)


def _sound(key: ExplicitIndexer, shape: tuple[int, ...]) -> ExplicitIndexer:
    """Return ``key`` with empty slices that go forward.

    xarray takes slices apart for backends, and fails on empty ones that go backward.
    """
    parts = zip(key.tuple, shape, strict=False)
    empty = [isinstance(p, slice) and not range(*p.indices(size)) for p, size in parts]
    if isinstance(key, VectorizedIndexer) or not any(empty):
        return key
    return type(key)(
        tuple(slice(0, 0) if is_empty else p for p, is_empty in zip(key.tuple, empty, strict=True))
    )


def _without_scalars(key: ExplicitIndexer) -> ExplicitIndexer:
    """Return a key for a Zarr array that selects what ``key`` does, one element as an array.

    Asked for one element in the basic way, zarr's asynchronous arrays return a scalar, which has
    lost the length of a string type and the byte order; its blocking ones do not.
    """
    parts = key.tuple
    if not isinstance(key, BasicIndexer) or not parts or any(isinstance(p, slice) for p in parts):
        return key
    return OuterIndexer(parts)


_no_async_array = ExplicitlyIndexedNDArrayMixin.async_get_duck_array


async def _read_in_thread(function: Callable[[], Any], array: Any) -> Any:
    key = _lock_key(_lock_of(array))
    if key is None:
        return await blocking_pool.run(function)
    if key == HDF5_LOCK.token:
        # Private: the manager of the file that xarray reads, and what the file was opened with.
        store: Any = getattr(array, "datastore", None)
        manager = getattr(store, "_manager", None)
        if not isinstance(manager, PickleableFileManager):
            return await in_hdf5(function)
        files = manager._args

        def read_file() -> Any:
            with ExitStack() as stack:
                for file in files:
                    stack.enter_context(cancellable(file))
                return function()

        kept = _lane_of_hdf5.keep(store)
        try:
            return await in_hdf5(read_file, by_python=True)
        finally:
            _lane_of_hdf5.forget(kept)
    return await in_lane(key, function)


def lane_key(array: BackendArray) -> Hashable | None:
    """Return the key of the lane in which ``array`` is read by plain calls.

    None where there is no lane, or the array has a better way.
    """
    if type(array).async_getitem is not BackendArray.async_getitem:
        return None
    return _lock_key(_lock_of(array))


async def in_lane(key: Hashable, function: Callable[[], T]) -> T:
    """Await ``function()`` in the lane for a key that `lane_key` gives; on the I/O loop."""
    if key == HDF5_LOCK.token:
        return await in_hdf5(function)
    return await Lane.of(key, blocking_pool).run(function)


def read_by_plain_call(source: Read) -> Any:
    """Read ``source`` here, in its lane (see `lane_key`)."""
    array: Any = source.array
    return array[_sound(source.key, array.shape)]


_PATIENCE_S = 0.5

# Held for good: the end of a lane that the user's thread lets go of would run Python code there.
# HDF5 is torn down by the end of the process, whoever is in it; h5py waits for its own lock.
_lane_of_hdf5 = Lane.of(HDF5_LOCK.token, blocking_pool, is_uncut=True)


def lane_of_hdf5() -> Lane:
    """Return the lane of HDF5, and with it of netCDF-C."""
    return _lane_of_hdf5


async def in_hdf5(function: Callable[[], T], *, by_python: bool = False) -> T:
    """Await ``function()``, which calls HDF5 or netCDF-C, in their lane; on the I/O loop.

    The user's own code may be in these libraries whenever no call of this package is under way:
    plain xarray takes no lock where it reads metadata. So cancelling waits until ``function`` has
    ended, and no garbage is collected meanwhile, whose finalizers close files.

    With ``by_python`` HDF5 reads a file object of Python's, which may wait for a server for ever.
    Its end is then awaited for a moment only: h5py, alone in reading such files, has a lock.
    """

    def call() -> T:
        with collector.held():
            return function()

    return await _lane_of_hdf5.run_to_end(call, _PATIENCE_S if by_python else None)


def reads_hdf5(array: Any) -> bool:
    """Say whether a backend's array is read by HDF5 or netCDF-C, in a store of its own."""
    has_store = getattr(array, "datastore", None) is not None
    return has_store and _lock_key(_lock_of(array)) == HDF5_LOCK.token


def _lock_of(array: Any) -> Any:
    """Return the lock under which ``array`` reads: its own or, as most have it, its store's."""
    for owner in (array, getattr(array, "datastore", None)):
        lock = getattr(owner, "lock", None)
        if lock is not None:
            return lock
    return None


def _lock_key(lock: Any) -> Hashable | None:
    """Return what two locks have in common when one waits for the other; None for no lock."""
    locks = list(lock.locks) if isinstance(lock, CombinedLock) else [lock]
    # A file being written has a lock of its own besides the library's: the library's decides.
    # That of netCDF-C, which its own access to servers has alone, counts as that of HDF5: a thread
    # can be in one of these libraries only.
    # A copy of a lock, from a pickle, is told by its token.
    shared = (HDF5_LOCK.token, NETCDFC_LOCK.token)
    if any(isinstance(each, SerializableLock) and each.token in shared for each in locks):
        return HDF5_LOCK.token
    lock = locks[0] if locks else None
    if isinstance(lock, SerializableLock):
        return lock.token
    # A lock of another kind (``threading.Lock``) has ``acquire``; xarray's dummy needs no lane.
    return id(lock) if hasattr(lock, "acquire") and not _is_dummy(lock) else None


def _is_dummy(lock: Any) -> bool:
    return type(lock).__name__ == "DummyLock"
