"""Loads lazy xarray objects: `load`, `compute` and their coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aioxarray._runtime.budget import Budget
from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._runtime.tasks import gather
from aioxarray._runtime.threads import Pool, usable_cores
from aioxarray._xarray.chunked import compute_chunked
from aioxarray._xarray.find import find_variables, shallow_copy
from aioxarray._xarray.lazy import Lazy, assign, lazy_data, load_data
from aioxarray._zarr.reading import Reading
from aioxarray.config import memory_limit, request_limit, thread_count
from aioxarray.progress import Meter, Progress, check_progress, meter

__all__ = ["compute", "compute_async", "load", "load_async"]

T = TypeVar("T")

_requests = Budget("requests")
_memory = Budget("bytes")
_decoders = Pool("aioxarray-decode", usable_cores())


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
    missing chunk is the fill value.

    *Memory:* the result, and as many bytes of chunks in flight as the setting ``memory`` allows.

    *Cancelling:* on an error, a timeout or a cancellation ``obj`` is as lazy as before; the
    requests in flight are cancelled and awaited. A worker thread that is in the middle of a
    blocking read finishes it unheard.

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

    Parameters, errors, requests, memory and cancelling are those of `load_async`.

    Returns
    -------
    T
        A new object of the same kind, or a new list, tuple or dict of new objects. What was in
        memory already is shared with ``obj``, not copied.
    """
    return await computed(obj, Options(concurrency, timeout, progress))


load = blocking(load_async)
compute = blocking(compute_async)


@dataclass(frozen=True)
class Options:
    """How one call loads; see `load_async`. ``dask`` is for ``dask.compute``."""

    concurrency: int | None = None
    timeout: float | None = None
    progress: Progress = None
    dask: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise for what no load could do, before anything is requested."""
        request_limit(self.concurrency)
        check_progress(self.progress)
        if self.timeout is None:
            return
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds or None, got {self.timeout!r}")
        if not self.timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {self.timeout!r}")


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
    lazies = lazy_data(find_variables(obj))
    if lazies:
        values = await run_on(io_loop(), lambda: _read_all(lazies, options))
        assign(lazies, values, share=share)


async def _read_all(lazies: Sequence[Lazy], options: Options) -> list[Any]:
    """Return the values of ``lazies``; on the I/O loop."""
    threads = thread_count()
    _decoders.resize(threads)
    total = sum(lazy.nbytes for lazy in lazies)
    with (
        meter(options.progress, total) as counter,
        _requests.share(request_limit(options.concurrency)) as requests,
        _memory.share(memory_limit()) as memory,
    ):
        reading = Reading(requests, memory, _decoders, threads)
        jobs = _jobs(lazies, reading, counter, options)
        try:
            async with asyncio.timeout(options.timeout) as limit:
                parts = await gather(jobs)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"not loaded within the timeout of {options.timeout} s: "
                f"{counter.done} of {total} bytes had arrived"
            ) from error
    values = {index: value for part in parts for index, value in part.items()}
    return [values[index] for index in range(len(lazies))]


def _jobs(
    lazies: Sequence[Lazy], reading: Reading, counter: Meter, options: Options
) -> list[Callable[[], Coroutine[Any, Any, dict[int, Any]]]]:
    """Return what to await: a job for each lazy array, and one for all chunked ones together."""

    def single(index: int, lazy: Lazy) -> Callable[[], Coroutine[Any, Any, dict[int, Any]]]:
        async def job() -> dict[int, Any]:
            try:
                report = counter.part(lazy.nbytes)
                return {index: await load_data(lazy, reading, _decoders, report)}
            except Exception as error:
                error.add_note(f"while loading {lazy.label}")
                raise

        return job

    async def all_chunked() -> dict[int, Any]:
        arrays = [lazies[index].data for index in chunked]
        try:
            values = await compute_chunked(arrays, options.dask)
        except Exception as error:
            labels = ", ".join(lazies[index].label for index in chunked)
            error.add_note(f"while computing chunked data: {labels}")
            raise
        counter.part(sum(lazies[index].nbytes for index in chunked))(1, 1)
        return dict(zip(chunked, values, strict=True))

    chunked = [index for index, lazy in enumerate(lazies) if lazy.chunked]
    jobs = [single(index, lazy) for index, lazy in enumerate(lazies) if not lazy.chunked]
    return [*jobs, all_chunked] if chunked else jobs
