"""Loads lazy xarray objects: `load`, `compute` and their coroutines."""

from __future__ import annotations

from typing import Any, TypeVar

from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._runtime.tasks import after_return, in_steps
from aioxarray._xarray.find import each_variable, find_variables, shallow_copy
from aioxarray._xarray.lazy import Assignment, Lazies
from aioxarray._xarray.loader import Options, read_all
from aioxarray.progress import Progress

__all__ = ["compute", "compute_async", "load", "load_async"]

T = TypeVar("T")


async def load_async(
    obj: T,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
) -> T:
    """Load the data of ``obj`` into memory, in place, and return ``obj``.

    All variables of all objects are read side by side, and the values are those of xarray's
    own ``load``. What is in memory already is not touched; if all is, nothing is awaited.

    Parameters
    ----------
    obj
        A Variable, DataArray, Dataset or DataTree of xarray, or a list, tuple or dict (nested)
        of them. Data of any backend: Zarr is read asynchronously down to the store, a backend
        with ``async_getitem`` by that, any other one in worker threads; chunked (dask) data is
        computed in a worker thread or, with a distributed client, awaited.
    concurrency
        Most store requests in flight for this call, instead of the setting of that name. Zero
        or below: no limit. All calls together keep to the largest limit among them.
    timeout
        Seconds after which the call gives up, waiting for its turn included.
    progress
        True for a tqdm bar in bytes, or a callable that gets (done, total): bytes of the
        loaded arrays, decoded. It is called on the caller's event loop, or in the thread that
        waits. An error in it is logged and does not end the load.

    Returns
    -------
    T
        ``obj`` itself.

    Raises
    ------
    TypeError
        If ``obj`` holds something else, or an argument is of a wrong type.
    TimeoutError
        If ``timeout`` has passed.
    Exception
        The first error of a store, codec or backend, as it was raised, with notes that name
        the variable, the chunk and the store.

    Notes
    -----
    *Requests:* one a chunk; for shards, one for the index and one a range of inner chunks. A
    missing chunk is the fill value. Nothing is requested that another load is fetching, or that
    is in the cache (the setting ``cache``, off by default).

    *Order:* requests begin in the order of the variables, as places become free, and end in any;
    all values are put in place together, at the end.

    *Memory:* the result, and as many bytes of chunks in flight as the setting ``memory`` allows;
    small chunks beside large ones up to an eighth more. Of thousands of variables only as many are
    in work as there may be requests in flight.

    *Cancelling:* on an error, a timeout or a cancellation ``obj`` is as lazy as before; the
    requests in flight are cancelled and awaited. A worker thread that is in the middle of a
    blocking read finishes it unheard; only a read by HDF5 or netCDF-C is waited for, unless it
    waits for a server itself, because the caller's own code may use these libraries next.

    *Event loops:* any, asyncio's or Trio's; fetching and decoding happen elsewhere.

    See Also
    --------
    compute_async : the same with new objects.
    """
    await load_into(obj, Options(concurrency, timeout, progress))
    return obj


async def compute_async(
    obj: T,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
) -> T:
    """Return ``obj`` with its data loaded into memory; ``obj`` itself stays lazy.

    Parameters, errors, requests, order, memory and cancelling are those of `load_async`.

    Returns
    -------
    T
        A new object of the same kind, or a new list, tuple or dict of new objects. What was in
        memory already is shared with ``obj``, not copied.
    """
    return await computed(obj, Options(concurrency, timeout, progress))


load = blocking(load_async)
compute = blocking(compute_async)


async def load_into(obj: Any, options: Options) -> None:
    """Load the data of ``obj`` in place."""
    await _load(obj, options, share=True)


async def computed(obj: T, options: Options) -> T:
    """Return ``obj`` with its data loaded, ``obj`` itself untouched."""
    find_variables(obj)
    new: T = shallow_copy(obj)
    await _load(new, options, share=False)
    return new


async def _load(obj: Any, options: Options, *, share: bool) -> None:
    options.check()
    lazies = Lazies()
    await in_steps(lazies.collecting(each_variable(obj)))
    if lazies:
        values = await run_on(io_loop(), lambda: read_all(lazies, options))
        assignment = Assignment(lazies, values, share=share)
        await in_steps(assignment.preparing())
        assignment.make()
        after_return(assignment.letting_go())
