"""Computing and storing chunked (dask) arrays without blocking the caller's event loop."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.system.cores import usable_cores
from aioxarray._runtime.tasks import gather
from aioxarray._runtime.threads.cancel_scope import is_cancelled
from aioxarray._runtime.threads.pool import Pool
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.arrays.blocks import aligned, boxes
from aioxarray._xarray.arrays.read import blocking_pool
from aioxarray._xarray.compat import get_chunked_array_type
from aioxarray._xarray.dask.clients import compute_on_client, distributed_client
from aioxarray._xarray.dask.gathered import Gathered
from aioxarray._xarray.dask.names import with_distinct_names

if TYPE_CHECKING:
    from aioxarray._xarray.dask.targets import Target
    from aioxarray._zarr.chunks.result import Destination


async def compute_chunked(
    arrays: Sequence[Any],
    options: Mapping[str, Any],
    into: Mapping[int, Destination] | None = None,
) -> list[Any]:
    """Compute ``arrays`` together, with ``options`` for ``dask.compute``.

    The values of those whose indices ``into`` has are put there, if that can be done block by
    block.

    With a distributed client, the result is awaited on the client's own loop, and cancelling
    cancels its futures. Otherwise a worker thread computes. Cancelling then cancels the reads that
    the tasks of dask's threaded scheduler make through this package, starts no further tasks, and
    waits a moment for tasks that do something else.
    """
    distinct = await blocking_pool.run(lambda: with_distinct_names(arrays))
    values: dict[int, Any] = {}

    async def compute(manager: Any, indices: Sequence[int]) -> None:
        chosen = [distinct[index] for index in indices]
        if _is_dask(manager):
            targets = [(into or {}).get(index) for index in indices]
            computed = await _compute_with_dask(chosen, options, targets)
        else:
            computed = list(await blocking_pool.run(lambda: manager.compute(*chosen, **options)))
        values.update(zip(indices, computed, strict=True))

    await gather([partial(compute, *kind) for kind in _kinds(distinct)])
    return [values[index] for index in range(len(arrays))]


async def store_chunked(
    sources: Sequence[Any],
    targets: Sequence[Target],
    regions: Sequence[Any],
    options: Mapping[str, Any],
    reduce: Callable[[Any], Any] | None = None,
) -> list[Any]:
    """Compute ``sources`` as `compute_chunked` does, and store them in ``regions`` of ``targets``.

    ``options`` are xarray's ``chunkmanager_store_kwargs``. With a distributed client, the targets
    are sent to its workers, which write. ``reduce`` then makes, of an array of the targets that
    blocks were stored in, one of a single value; these values are returned.
    """
    stores = await blocking_pool.run(lambda: _stores(sources, targets, regions, options))
    results: list[Any] = []

    async def run(manager: Any, store: Callable[..., Any]) -> None:
        if _is_dask(manager):
            keep = {} if reduce is None else {"return_stored": True, "load_stored": False}
            later = await blocking_pool.run(lambda: store(compute=False, **keep))
            # One array per source; computing its blocks stores them.
            pending = list(later) if isinstance(later, tuple) else [later]
            if reduce is None:
                await _run_with_dask(pending, options)
            else:
                single = await blocking_pool.run(lambda: list(map(reduce, pending)))
                results.extend(await _run_with_dask(single, options))
        else:
            await blocking_pool.run(lambda: store(compute=True))

    await gather([partial(run, *store) for store in stores])
    return results


def writes_elsewhere(arrays: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Return whether `store_chunked` would have a distributed client's workers write ``arrays``."""
    return distributed_client(options) is not None and any(
        _is_dask(manager) for manager, _ in _kinds(arrays)
    )


def store_later(
    sources: Sequence[Any],
    targets: Sequence[Target],
    regions: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:
    """Return delayed objects that do the same as `store_chunked` when they are computed."""
    return [store(compute=False) for _, store in _stores(sources, targets, regions, options)]


def _stores(
    sources: Sequence[Any],
    targets: Sequence[Target],
    regions: Sequence[Any],
    options: Mapping[str, Any],
) -> list[tuple[Any, Callable[..., Any]]]:
    """Return, for each type of chunked array, its manager and a function that stores its arrays.

    The arrays are rechunked so that no two blocks share a chunk of a target: each would read it,
    change it, and write it back. Blocks whose chunks are all there are left out.
    """
    distinct = with_distinct_names(sources)
    stores: list[tuple[Any, Callable[..., Any]]] = []
    for manager, indices in _kinds(distinct):
        parts: list[tuple[Any, Target, Any]] = []
        for index in indices:
            source, target = distinct[index], targets[index]
            chunks = aligned(source.chunks, regions[index], target.edges)
            whole = source if chunks is None else manager.rechunk(source, chunks)
            parts.extend(_missing(whole, target, regions[index]))
        if not parts:
            continue
        blocks, into, places = zip(*parts, strict=True)
        store = partial(
            manager.store,
            list(blocks),
            list(into),
            lock=None,
            flush=True,
            regions=list(places),
            **options,
        )
        stores.append((manager, store))
    return stores


def _missing(source: Any, target: Target, region: Any) -> Iterator[tuple[Any, Target, Any]]:
    """Yield the parts of ``source`` whose chunks are not all there, with their regions."""
    if not target.present:
        yield source, target, region
        return
    done = target.present.blocks(region, source.chunks)
    ends = [[0, *itertools.accumulate(sizes)] for sizes in source.chunks]
    left = math.prod(source.shape)
    for box in boxes(~done, _MOST_PARTS):
        part = tuple(
            slice(at[each.start], at[each.stop]) for each, at in zip(box, ends, strict=True)
        )
        left -= math.prod(each.stop - each.start for each in part)
        moved = tuple(
            slice(whole.start + each.start, whole.start + each.stop, 1)
            for whole, each in zip(region, part, strict=True)
        )
        yield source[part], target, moved
    target.skip(left)


# Each is a selection in the graph, which takes a millisecond.
_MOST_PARTS = 1000


def _kinds(arrays: Sequence[Any]) -> list[tuple[Any, list[int]]]:
    """Return the managers of ``arrays``, each with the indices of the arrays of one type.

    Neither xarray nor dask computes different types together: `dask.array.Array` and the
    expressions of dask-array, for example (pydata/xarray#11382).
    """
    kinds: dict[type, list[int]] = {}
    for index, array in enumerate(arrays):
        kinds.setdefault(type(array), []).append(index)
    return [(get_chunked_array_type(arrays[indices[0]]), indices) for indices in kinds.values()]


async def _compute_with_dask(
    arrays: Sequence[Any], options: Mapping[str, Any], targets: Sequence[Destination | None]
) -> list[Any]:
    client = distributed_client(options)
    if client is None and not _shares_memory(arrays, options):
        return await _run_with_dask(arrays, options)
    gathered = [
        Gathered(array, target) if Gathered.helps(array) else None
        for array, target in zip(arrays, targets, strict=True)
    ]

    if client is not None:
        return await compute_on_client(client, arrays, options, gathered)

    def pending() -> list[Any]:
        pairs = zip(arrays, gathered, strict=True)
        return [array if into is None else into.pending() for array, into in pairs]

    computed = await _run_with_dask(await blocking_pool.run(pending), options)
    pairs = zip(computed, gathered, strict=True)
    return [value if into is None else into.values() for value, into in pairs]


def scheduler_of(arrays: Sequence[Any]) -> str:
    """Return the name of the scheduler with which dask would compute ``arrays`` now."""
    import dask.base
    import dask.local
    import dask.threaded

    if distributed_client({}) is not None:
        return "distributed"
    get = dask.base.get_scheduler(collections=arrays)
    names = {dask.threaded.get: "threads", dask.local.get_sync: "synchronous"}
    return names.get(get) or str(getattr(get, "__module__", get)).rpartition(".")[2]


def _shares_memory(arrays: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Return whether dask would compute ``arrays`` in threads of this process."""
    import dask.base
    import dask.local
    import dask.threaded

    get = dask.base.get_scheduler(scheduler=options.get("scheduler"), collections=arrays)
    return get in (dask.threaded.get, dask.local.get_sync)


async def _run_with_dask(arrays: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    import dask.base

    client = distributed_client(options)
    if client is not None:
        return await compute_on_client(client, arrays, options, [None] * len(arrays))
    with_threads = {**_by_threads_of_ours(arrays, options), **options}

    def compute() -> list[Any]:
        with tasks_end_with_the_call():
            return list(dask.base.compute(*arrays, **with_threads))

    return await in_worker(compute)


class _TaskThreads(Executor):
    """Threads for the tasks of one computation, whose reads and writes end with that computation.

    They are in the cancel scope of the thread that computes. At its exit, the interpreter joins
    dask's own threads, even if they wait for a stalled server; it does not join these.
    """

    def __init__(self, count: int) -> None:
        # The attribute in which dask looks up how many tasks to submit at once.
        self._max_workers = count

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        context = contextvars.copy_context()
        return _threads.submit(partial(context.run, function, *args, **kwargs))


# Without a limit: each computation in progress limits its own tasks.
_threads = Pool("aioxarray-dask", math.inf, math.inf)


def _by_threads_of_ours(arrays: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for dask's threaded scheduler; none for others or if the user set a pool."""
    import dask.base
    import dask.threaded

    get = dask.base.get_scheduler(scheduler=options.get("scheduler"), collections=arrays)
    given = options.get("pool") or dask.config.get("pool", None)
    if get is not dask.threaded.get or given is not None:
        return {}
    count = options.get("num_workers") or dask.config.get("num_workers", None)
    return {"pool": _TaskThreads(count or usable_cores())}


@contextmanager
def tasks_end_with_the_call() -> Iterator[None]:
    """Return a context in which dask starts no more tasks for this thread once it is cancelled."""
    if "dask" not in sys.modules:
        yield
        return
    from dask.callbacks import Callback

    here = threading.get_ident()

    def before_task(*_: Any) -> None:
        # The callback is global: other threads call it, too, for their own computations.
        if threading.get_ident() == here and is_cancelled():
            raise asyncio.CancelledError

    with Callback(pretask=before_task):
        yield


def _is_dask(manager: Any) -> bool:
    return "dask" in sys.modules and type(manager).__name__ == "DaskManager"
