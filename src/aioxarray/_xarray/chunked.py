"""Computes and stores chunked (dask) arrays without blocking anybody's event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# Private: how xarray finds the library behind a chunked array (dask, cubed, …). It has no public
# name; plain `xarray.Dataset.load` goes the same way.
from xarray.namedarray.parallelcompat import get_chunked_array_type
from xarray.namedarray.pycompat import is_chunked_array

from aioxarray._runtime.loops import is_cancelled, run_on
from aioxarray._xarray.read import blocking_pool

__all__ = [
    "compute_chunked",
    "is_chunked_array",
    "store_chunked",
    "store_later",
    "tasks_end_with_the_call",
]


async def compute_chunked(arrays: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    """Compute ``arrays`` together, ``options`` being for ``dask.compute``.

    With a distributed client the result is awaited on the client's own loop, and cancelling
    cancels its futures. Otherwise a worker thread computes; cancelling returns at once, and with
    dask's threaded scheduler no further task is begun.
    """
    manager: Any = get_chunked_array_type(*arrays)
    if not _is_dask(manager):
        return list(await blocking_pool.run(lambda: manager.compute(*arrays, **options)))
    return await _compute_with_dask(arrays, options)


async def store_chunked(
    sources: Sequence[Any],
    targets: Sequence[Any],
    regions: Sequence[Any],
    options: Mapping[str, Any],
) -> None:
    """Compute ``sources`` and set ``regions`` of ``targets`` to them, as `compute_chunked` does.

    ``options`` are xarray's ``chunkmanager_store_kwargs``. With a distributed client the targets
    are sent to its workers, which write.
    """
    manager: Any = get_chunked_array_type(*sources)
    if _is_dask(manager):
        later = await blocking_pool.run(lambda: store_later(sources, targets, regions, options))
        # An array for each source, whose blocks are stored when they are computed.
        await _compute_with_dask(list(later) if isinstance(later, tuple) else [later], options)
        return
    await blocking_pool.run(
        lambda: manager.store(
            sources, targets, lock=None, compute=True, flush=True, regions=regions, **options
        )
    )


def store_later(
    sources: Sequence[Any],
    targets: Sequence[Any],
    regions: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:
    """Return what does the same when it is computed."""
    manager: Any = get_chunked_array_type(*sources)
    return manager.store(
        sources, targets, lock=None, compute=False, flush=True, regions=regions, **options
    )


async def _compute_with_dask(arrays: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    import dask.base

    client = _distributed_client(options)
    if client is not None:
        return await _compute_on_client(client, arrays, options)
    stop = threading.Event()
    with_stop = {**_stoppable(arrays, options, stop), **options}
    try:
        return list(await blocking_pool.run(lambda: dask.base.compute(*arrays, **with_stop)))
    except asyncio.CancelledError:
        stop.set()
        raise


@contextmanager
def tasks_end_with_the_call() -> Iterator[None]:
    """Return a context in which dask begins no more tasks for this thread once it is cancelled."""
    if "dask" not in sys.modules:
        yield
        return
    from dask.callbacks import Callback

    here = threading.get_ident()

    def before_task(*_: Any) -> None:
        # Called in the thread that computes, for the computations of all threads.
        if threading.get_ident() == here and is_cancelled():
            raise asyncio.CancelledError

    with Callback(pretask=before_task):
        yield


def _is_dask(manager: Any) -> bool:
    return "dask" in sys.modules and type(manager).__name__ == "DaskManager"


def _distributed_client(options: Mapping[str, Any]) -> Any | None:
    """Return the client that dask would use now, if any."""
    import dask.base

    distributed = sys.modules.get("distributed")
    scheduler = options.get("scheduler", dask.config.get("scheduler", None))
    if distributed is None or scheduler not in (None, "distributed", "dask.distributed"):
        return None
    try:
        return distributed.Client.current(allow_global=True)
    except ValueError:
        return None


async def _compute_on_client(
    client: Any, arrays: Sequence[Any], options: Mapping[str, Any]
) -> list[Any]:
    from dask.base import optimize

    # Optimized here rather than on the client's loop, which may be the caller's own.
    if options.get("optimize_graph", True):
        arrays = await blocking_pool.run(lambda: optimize(*arrays))
    rest = {k: v for k, v in options.items() if k not in ("optimize_graph", "scheduler")}

    async def compute() -> list[Any]:
        futures = client.compute(list(arrays), optimize_graph=False, **rest)
        try:
            return list(await client.gather(futures, asynchronous=True))
        except asyncio.CancelledError:
            await client.cancel(futures, asynchronous=True)
            raise

    return await run_on(client.loop.asyncio_loop, compute)


def _stoppable(
    arrays: Sequence[Any], options: Mapping[str, Any], stop: threading.Event
) -> dict[str, Any]:
    """Return options that let ``stop`` end a computation of dask's threaded scheduler."""
    import dask.threaded
    from dask.callbacks import Callback

    get = dask.base.get_scheduler(scheduler=options.get("scheduler"), collections=arrays)
    if get is not dask.threaded.get or "callbacks" in options:
        return {}

    def before_task(*_: Any) -> None:
        if stop.is_set():
            raise asyncio.CancelledError

    # Callbacks given explicitly replace the active ones (a progress bar): keep those too.
    return {"callbacks": {*Callback.active, Callback(pretask=before_task)._callback}}
