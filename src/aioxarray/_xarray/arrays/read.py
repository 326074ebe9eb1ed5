"""Reading the source of a plan, in the best way that its backend offers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Awaitable, Callable, Hashable
from contextlib import ExitStack
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from aioxarray._runtime.lanes import Lane
from aioxarray._runtime.queueing import beginning, current_ticket
from aioxarray._runtime.system.collector import collector
from aioxarray._runtime.tasks import without_waiting
from aioxarray._runtime.threads.pool import BLOCKING_THREADS, Pool
from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.plan import Opaque, Read
from aioxarray._xarray.arrays.prefetched_array import PrefetchedArray
from aioxarray._xarray.arrays.remote_files import cancellable
from aioxarray._xarray.compat import (
    HDF5_LOCK,
    NETCDFC_LOCK,
    BackendArray,
    BasicIndexer,
    CombinedLock,
    ExplicitIndexer,
    ExplicitlyIndexedNDArrayMixin,
    OuterIndexer,
    PickleableFileManager,
    SerializableLock,
    VectorizedIndexer,
    ZarrArrayWrapper,
)
from aioxarray._zarr.chunks.arrays import (
    plan_block,
    plan_lists,
    plan_points,
    planning,
    read_block,
    read_lists,
    read_points,
    readable,
)
from aioxarray._zarr.selection import is_basic
from aioxarray._zarr.stores.grants import Grants

if TYPE_CHECKING:
    import zarr

    from aioxarray._zarr.chunks.plan import ReadPlan
    from aioxarray._zarr.chunks.result import Destination

T = TypeVar("T")

blocking_pool = Pool("aioxarray-blocking", BLOCKING_THREADS)


class Means(Enum):
    """The code that reads a source, chosen without I/O."""

    BLOCK = auto()
    """Zarr by chunks: a block. If it is none for `read_block`, then `ZARR_INDEXING`."""
    POINTS = auto()
    """Zarr by chunks: single points, in the same way."""
    LISTS = auto()
    """Zarr by chunks: lists of positions along dimensions, in the same way."""
    ZARR_INDEXING = auto()
    """Zarr by chunks, which zarr's own indexing finds."""
    JOINED = auto()
    """Other lazy arrays."""
    ASYNCHRONOUS = auto()
    """Its own coroutine, and a worker thread if that is not implemented."""
    THREAD = auto()
    """Its own blocking method, in a worker thread."""


def means_of(source: Read | Opaque) -> Means:
    """Return the means by which `read` reads ``source``."""
    array: Any = source.array
    if isinstance(source, Opaque):
        has_own = type(array).async_get_duck_array is not _no_async_array
        return Means.ASYNCHRONOUS if has_own else Means.THREAD
    if is_zarr(array):
        key = source.key.tuple
        if isinstance(source.key, VectorizedIndexer):
            has_slices = any(isinstance(part, slice) for part in key)
            return Means.ZARR_INDEXING if has_slices else Means.POINTS
        if is_basic(key):
            return Means.BLOCK
        return Means.LISTS if isinstance(source.key, OuterIndexer) else Means.ZARR_INDEXING
    if type(array) is JoinedArray:
        return Means.JOINED
    has_own = type(array).async_getitem is not BackendArray.async_getitem
    return Means.ASYNCHRONOUS if has_own else Means.THREAD


async def read(
    source: Read | Opaque,
    grants: Grants,
    report: Callable[[int, int], None],
    load: Callable[[Any], Awaitable[Any]],
    into: Destination | None = None,
) -> Any:
    """Read ``source``; on the I/O loop.

    ``report`` is called with the number of parts that are done and their total. ``load`` loads the
    lazy arrays that ``source`` is composed of, if any. The values are in the array of ``into``, if
    they can be read straight into it; if not, in another one.
    """
    array: Any = source.array
    means = means_of(source)
    if isinstance(source, Opaque):
        if means is Means.ASYNCHRONOUS:
            try:
                return await array.async_get_duck_array()
            except NotImplementedError:
                # An adapter around an array that cannot be read asynchronously.
                pass
        return await _in_any_thread(array.get_duck_array)
    source = sound(source)
    match means:
        case Means.POINTS:
            part = await read_points(array._array, source.key.tuple, grants, report, into)
        case Means.BLOCK:
            part = await read_block(array._array, source.key.tuple, grants, report, into)
        case Means.LISTS:
            part = await read_lists(array._array, _as_integers(source.key), grants, report, into)
        case Means.ZARR_INDEXING:
            part = None
        case Means.JOINED:
            return await array.read(source.key, load, None if into is None else into.array)
        case Means.ASYNCHRONOUS:
            try:
                return await array.async_getitem(source.key)
            except NotImplementedError:
                # The backend does not support it for this key or in its present state.
                pass
            return await _read_in_thread(partial(operator.getitem, array, source.key), array)
        case Means.THREAD:
            return await _read_in_thread(partial(operator.getitem, array, source.key), array)
    if part is not None:
        return part
    return await _by_zarr_indexing(source, readable(array._array, grants, report))


async def _by_zarr_indexing(source: Read, array: zarr.Array[Any]) -> Any:
    """Read ``source`` with zarr's own indexing of ``array``, which replaces its array."""
    ours: Any = copy.copy(source.array)
    ours._array = array
    return await ours.async_getitem(_without_scalars(source.key))


def each_plan(source: Read, take: Callable[[ReadPlan], None], *, shares: bool = False) -> None:
    """Call ``take`` with the plans by which `read` would read ``source``, a Zarr array.

    Makes no request. Usually there is one plan; there is none for a selection without values.
    ``shares`` tells whether known reads beside it need the same chunks.
    """
    array: Any = source.array
    source = sound(source)
    plan = None
    match means_of(source):
        case Means.POINTS:
            plan = plan_points(array._array, source.key.tuple, shares=shares)
        case Means.BLOCK:
            plan = plan_block(array._array, source.key.tuple, shares=shares)
        case Means.LISTS:
            plan = plan_lists(array._array, _as_integers(source.key), shares=shares)
    if plan is not None:
        take(plan)
    else:
        planner = planning(array._array, take, shares=shares)
        without_waiting(_by_zarr_indexing(source, planner))


def is_zarr(array: BackendArray) -> bool:
    """Return whether ``array`` reads a Zarr array, its attribute ``_array``."""
    return type(array) in (ZarrArrayWrapper, PrefetchedArray)


def sound(source: Read) -> Read:
    """Return ``source`` with its empty slices replaced by ``slice(0, 0)``.

    xarray decomposes slices for backends, and fails on empty ones with a negative step.
    """
    array: Any = source.array
    key = source.key
    parts = zip(key.tuple, array.shape, strict=False)
    empty = [isinstance(p, slice) and not range(*p.indices(size)) for p, size in parts]
    if isinstance(key, VectorizedIndexer) or not any(empty):
        return source
    parts = zip(key.tuple, empty, strict=True)
    return Read(array, type(key)(tuple(slice(0, 0) if is_empty else p for p, is_empty in parts)))


def _as_integers(key: ExplicitIndexer) -> list[Any]:
    """Return the parts of a key with integers of Python in place of numpy's."""
    return [part if isinstance(part, slice | np.ndarray) else int(part) for part in key.tuple]


def _without_scalars(key: ExplicitIndexer) -> ExplicitIndexer:
    """Return a key that selects the same from a Zarr array, but a single element as an array.

    For a basic selection of a single element, zarr's asynchronous arrays return a scalar, which
    loses the length of a string dtype and the byte order; its blocking arrays keep them.
    """
    parts = key.tuple
    if not isinstance(key, BasicIndexer) or not parts or any(isinstance(p, slice) for p in parts):
        return key
    return OuterIndexer(parts)


_no_async_array = ExplicitlyIndexedNDArrayMixin.async_get_duck_array


async def _in_any_thread(function: Callable[[], Any]) -> Any:
    """Await ``function()``, which reads without requests of this package, in a worker thread."""
    ticket = current_ticket()
    if ticket is not None and blocking_pool.is_full:
        ticket.wait()
    return await blocking_pool.run(beginning(function))


async def _read_in_thread(function: Callable[[], Any], array: Any) -> Any:
    key = _lock_key(_lock_of(array))
    if key is None:
        return await _in_any_thread(function)
    if key == HDF5_LOCK.token:
        # Private: the file manager of an xarray store, and the arguments of its file.
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
    """Return the key of the lane in which blocking calls read ``array``.

    None if there is no lane, or if the array can be read asynchronously.
    """
    if type(array).async_getitem is not BackendArray.async_getitem:
        return None
    return _lock_key(_lock_of(array))


async def in_lane(key: Hashable, function: Callable[[], T]) -> T:
    """Await ``function()`` in the lane for a key from `lane_key`; on the I/O loop."""
    if key == HDF5_LOCK.token:
        return await in_hdf5(function)
    return await Lane.of(key, blocking_pool).run(function)


def read_by_plain_call(source: Read) -> Any:
    """Read ``source`` in this thread, which must be in its lane (see `lane_key`)."""
    array: Any = source.array
    return array[sound(source).key]


_PATIENCE_S = 0.5

# Kept forever: if the user's thread dropped a lane, its finalizer would run Python code there.
# It blocks the exit, at which HDF5 is torn down even if a thread is inside, and h5py waits for its
# own lock.
_lane_of_hdf5 = Lane.of(HDF5_LOCK.token, blocking_pool, blocks_exit=True)


def lane_of_hdf5() -> Lane:
    """Return the lane that HDF5 and netCDF-C share."""
    return _lane_of_hdf5


async def in_hdf5(function: Callable[[], T], *, by_python: bool = False) -> T:
    """Await ``function()``, which calls HDF5 or netCDF-C, in their lane; on the I/O loop.

    The user's own code may call these libraries whenever no call of this package is in progress:
    plain xarray takes no lock to read metadata. So cancelling waits until ``function`` has ended.
    Meanwhile no garbage is collected, because finalizers may close files.

    With ``by_python``, HDF5 reads a Python file object, which may wait for a server forever. Then
    cancelling waits only briefly: only h5py reads such files, and it has its own lock.
    """

    def call() -> T:
        with collector.held():
            return function()

    return await _lane_of_hdf5.run_to_end(call, _PATIENCE_S if by_python else None)


def reads_hdf5(array: Any) -> bool:
    """Return whether HDF5 or netCDF-C reads a backend's array, through an xarray store."""
    has_store = getattr(array, "datastore", None) is not None
    return has_store and _lock_key(_lock_of(array)) == HDF5_LOCK.token


def _lock_of(array: Any) -> Any:
    """Return the lock under which ``array`` reads: its own or, usually, that of its store."""
    for owner in (array, getattr(array, "datastore", None)):
        lock = getattr(owner, "lock", None)
        if lock is not None:
            return lock
    return None


def _lock_key(lock: Any) -> Hashable | None:
    """Return a key that two locks share if one waits for the other; None for no lock."""
    locks = list(lock.locks) if isinstance(lock, CombinedLock) else [lock]
    # A file being written has its own lock besides the library's: the library's decides. The lock
    # of netCDF-C, which its remote access takes alone, counts as that of HDF5: only one thread can
    # be in these libraries. A copy of a lock, from a pickle, is recognized by its token.
    shared = (HDF5_LOCK.token, NETCDFC_LOCK.token)
    if any(isinstance(each, SerializableLock) and each.token in shared for each in locks):
        return HDF5_LOCK.token
    lock = locks[0] if locks else None
    if isinstance(lock, SerializableLock):
        return lock.token
    # A lock of another kind (``threading.Lock``) has ``acquire``; xarray's dummy needs no lane.
    is_real = hasattr(lock, "acquire") and type(lock).__name__ != "DummyLock"
    return id(lock) if is_real else None
