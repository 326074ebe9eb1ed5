"""Loading of lazy xarray objects: `load`, `compute` and their coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import xarray as xr

from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._runtime.tasks import after_return, in_steps
from aioxarray._xarray.lazy.destinations import Destinations
from aioxarray._xarray.lazy.find import each_variable, find_variables, shallow_copy
from aioxarray._xarray.lazy.loader import Options, read_all
from aioxarray._xarray.lazy.sizes import Sizing
from aioxarray._xarray.lazy.variables import Assignment, Lazies
from aioxarray.config import Concurrency
from aioxarray.progress import Progress
from aioxarray.tracing import concluded

__all__ = ["compute", "compute_async", "load", "load_async"]

T = TypeVar(
    "T",
    bound=xr.Variable
    | xr.DataArray
    | xr.Dataset
    | xr.DataTree
    | list[Any]
    | tuple[Any, ...]
    | dict[Any, Any],
)


async def load_async(
    obj: T,
    *,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    max_bytes: int | str | None = None,
    out: Any = None,
) -> T:
    """Load the data of ``obj`` into memory, in place, and return ``obj``.

    All variables of all objects are read concurrently. The values are those of xarray's own
    ``load``. Data already in memory is left alone; if all of it is, nothing is awaited.

    Parameters
    ----------
    obj
        An xarray Variable, DataArray, Dataset or DataTree, or a (nested) list, tuple or dict of
        them, with data from any backend. Zarr is read asynchronously down to the store; a backend
        with ``async_getitem`` is awaited; any other backend is read in worker threads. Chunked
        (dask) data is computed in a worker thread or, with a distributed client, awaited.
    concurrency
        Maximum number of store requests in flight for this call; overrides the setting of the
        same name. Zero or below: no limit; "auto": as many as each server accepts. All calls
        together stay within the largest limit.
    timeout
        Seconds after which the call gives up, including the wait for its turn.
    progress
        True for a tqdm bar in bytes, or a callable that takes (done, total): decoded bytes of
        the loaded arrays. It is called on the caller's event loop or, from a blocking call, in
        the waiting thread. An error in it is logged and does not end the load. "verdict" for a
        bar, and after it a line on standard error that names the bottleneck, as `trace` finds it.
    max_bytes
        The most bytes to load, such as ``"2GiB"`` or a number; None for no limit. The
        decoded values of the lazy variables in ``obj`` count. Objects, strings of any length and
        dask arrays of unknown shape do not, since their size is not known beforehand.
    out
        An array of the caller that the values of a Variable or DataArray are read into, such as
        one in page-locked or shared memory, of the same shape and dtype. For a Dataset, a mapping
        of names of variables to arrays; the others are loaded as always. The loaded object uses
        that memory. Anything is an array here that numpy has a writable view of: by a buffer,
        ``__array_interface__`` or DLPack. Values in memory already are copied into it.

    Returns
    -------
    T
        ``obj`` itself.

    Raises
    ------
    TypeError
        If ``obj`` holds anything else, or an argument has the wrong type, or an array in ``out``
        another dtype than its variable.
    ValueError
        If an array in ``out`` has another shape than its variable, is read-only, or overlaps
        another array, or if its variable is the coordinate of a dimension. All of these errors are
        raised before any request.
    TooLargeError
        If there are more than ``max_bytes`` bytes to load; before any request.
    TimedOutError
        If ``timeout`` has passed. It is a TimeoutError.
    AioxarrayError
        If a request has failed for good. It is also of a builtin class, such as ConnectionError or
        PermissionError, and of that of the store's client; see `aioxarray.errors`.
    Exception
        The first error from a codec or backend, as it was raised. All errors have notes that name
        the variable, the chunk and the store.

    Notes
    -----
    *Requests:* one per chunk; for shards, one for the index and one per range of inner chunks. A
    missing chunk is the fill value. A chunk that another load is fetching, or that is in the
    cache (the setting ``cache``, off by default), is not requested again.

    *Order:* requests begin in the order of the variables, as the limits permit, and end in any
    order. All values are assigned together, at the end.

    *Memory:* the result, plus the bytes of chunks in flight that the setting ``memory`` allows;
    small chunks alongside large ones may take up to an eighth more. With thousands of variables,
    the number being read at once is bounded by the limit on requests in flight. With ``out``, a
    Zarr array whose values need no decoding by the CF conventions is read straight into its array,
    as are files that `open_mfdataset` has joined, and dask arrays block by block. Packed numbers
    are held besides until they are unpacked into it. All other values are read first, and then
    copied.

    *Cancelling:* after an error, a timeout or a cancellation, ``obj`` is as lazy as before. The
    requests in flight are cancelled and awaited. A worker thread in a blocking read finishes it;
    the result is discarded. Only reads by HDF5 or netCDF-C are awaited (by h5py from a URL or file
    object, for at most half a second), because the caller's code may use these libraries next.
    The arrays in ``out`` then have some of the values, and nothing writes into them any more.

    *Event loops:* asyncio or Trio; fetching and decoding happen on other threads.

    See Also
    --------
    compute_async : return new objects instead.
    """
    options = Options(concurrency, timeout, progress, max_bytes)
    await _load(obj, options, share=True, out=out)
    return obj


async def compute_async(
    obj: T,
    *,
    concurrency: Concurrency | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    max_bytes: int | str | None = None,
) -> T:
    """Return ``obj`` with its data loaded into memory; ``obj`` itself stays lazy.

    Parameters, errors, requests, order, memory and cancelling are those of `load_async`, which also
    has ``out``.

    Returns
    -------
    T
        A new object of the same kind, or a new list, tuple or dict of new objects. Data already
        in memory is shared with ``obj``, not copied.
    """
    return await computed(obj, Options(concurrency, timeout, progress, max_bytes))


load = blocking(load_async)
compute = blocking(compute_async)


async def load_into(obj: Any, options: Options) -> None:
    """Load the data of ``obj`` in place."""
    await _load(obj, options, share=True)


async def computed(obj: T, options: Options) -> T:
    """Return ``obj`` with its data loaded, without changing ``obj`` itself."""
    find_variables(obj)
    new: T = shallow_copy(obj)
    await _load(new, options, share=False)
    return new


async def _load(obj: Any, options: Options, *, share: bool, out: Any = None) -> None:
    options.check()
    destinations = None if out is None else Destinations(obj, out)
    lazies = Lazies()
    await in_steps(lazies.collecting(each_variable(obj), destinations))
    if lazies:
        limit = options.most_bytes()
        if limit is not None:
            sizing = Sizing(lazies)
            await in_steps(sizing.counting())
            sizing.check(limit, repr(options.max_bytes))
        with concluded(options.progress):
            read = partial(read_all, lazies, options)
            if destinations is not None:
                # Not always: a thousand calls that wait hold as many objects as they need.
                read = partial(_read_into, destinations, read)
            values = await run_on(io_loop(), read)
        assignment = Assignment(lazies, values, share=share)
        await in_steps(assignment.preparing())
        assignment.make()
        after_return(assignment.releasing())


async def _read_into(
    destinations: Destinations, read: Callable[[], Awaitable[list[Any]]]
) -> list[Any]:
    try:
        return await read()
    finally:
        await destinations.lent.end()
