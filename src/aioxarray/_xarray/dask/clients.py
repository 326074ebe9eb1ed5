"""Computing by the workers of a distributed client, and bringing the results here."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from aioxarray._runtime.loops import run_on
from aioxarray._runtime.tasks import gather
from aioxarray._xarray.arrays.read import blocking_pool
from aioxarray._xarray.dask.carried import Carried, current_client
from aioxarray._xarray.dask.carrying import with_settings
from aioxarray._xarray.dask.gathered import Gathered
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.calls import current_concurrency

# Options for the tasks, which a client takes in all its calls.
_FOR_TASKS = {"actors", "allow_other_workers", "fifo_timeout", "priority", "resources", "retries"}
_FOR_TASKS |= {"workers"}


def distributed_client(options: Mapping[str, Any]) -> Any | None:
    """Return the client that dask would use now, if any."""
    import dask.base

    scheduler = options.get("scheduler", dask.config.get("scheduler", None))
    return current_client() if scheduler in (None, "distributed", "dask.distributed") else None


async def compute_on_client(
    client: Any,
    arrays: Sequence[Any],
    options: Mapping[str, Any],
    gathered: Sequence[Gathered | None],
) -> list[Any]:
    """Compute dask ``arrays`` on the workers of ``client``, and return their values.

    Those that ``gathered`` has a place for are fetched block by block: neither this process nor a
    worker holds the blocks beside the whole result. Cancelling cancels the futures.
    """
    settings = Carried.here(current_concurrency())
    second = _SecondClient(client)
    try:
        if _is_on_the_callers_loop(client) and not _futures_of(arrays):
            client = await blocking_pool.run(second.open)
        work = _Work(client, options, gathered)
        await blocking_pool.run(partial(work.begin, arrays, settings))
        try:
            await gather([*[work.fetch_blocks] * tuning.FETCHED_TOGETHER, work.fetch_others])
        except BaseException:
            await asyncio.shield(run_on(client.loop.asyncio_loop, work.cancel))
            raise
        return work.values()
    finally:
        await asyncio.shield(blocking_pool.run(second.close))


def _is_on_the_callers_loop(client: Any) -> bool:
    # Private: whether the client was made with ``asynchronous=True``. Its public attribute tells
    # whether the code that asks runs on its loop.
    return bool(getattr(client, "_asynchronous", False))


def _futures_of(arrays: Sequence[Any]) -> list[Any]:
    import distributed

    return list(distributed.futures_of(arrays))


class _SecondClient:
    """A second client of the same scheduler, with distributed's own loop in a thread.

    A client reads the messages of its scheduler, a thousand at a time, and unpacks results, on its
    loop. For an asynchronous client that is the caller's, and would be blocked for that long.
    """

    def __init__(self, client: Any) -> None:
        self._like = client
        self._client: Any = None
        self._lock = threading.Lock()
        self._is_closed = False

    def open(self) -> Any:
        """Return the client; in a worker thread."""
        import distributed

        client = distributed.Client(
            self._like.scheduler.address,
            security=self._like.security,
            asynchronous=False,
            set_as_default=False,
        )
        with self._lock:
            self._client = client
            is_closed = self._is_closed
        if is_closed:
            # The call was cancelled meanwhile.
            client.close()
        return client

    def close(self) -> None:
        """Close the client, now or as soon as it is open; in a worker thread."""
        with self._lock:
            self._is_closed = True
            client = self._client
        if client is not None:
            client.close()


class _Work:
    """One computation by a cluster."""

    def __init__(
        self, client: Any, options: Mapping[str, Any], gathered: Sequence[Gathered | None]
    ) -> None:
        self._client = client
        self._optimizes = options.get("optimize_graph", True)
        self._options = {
            k: v for k, v in options.items() if k not in ("optimize_graph", "scheduler")
        }
        fits = self._options.keys() <= _FOR_TASKS
        self._gathered = [each if fits else None for each in gathered]
        # Futures of blocks that are fetched together, with their places. A batch is emptied when it
        # is here, so that the workers forget it.
        self._batches: deque[list[tuple[Gathered, tuple[int, ...], Any]]] = deque()
        self._fetching: list[list[tuple[Gathered, tuple[int, ...], Any]]] = []
        # The futures of whole results, by their index.
        self._others: dict[int, Any] = {}
        self._computed: dict[int, Any] = {}

    def begin(self, arrays: Sequence[Any], settings: Carried) -> None:
        """Send the graphs; in a worker thread.

        Graphs are optimized and serialized for seconds, which the client does in the thread that
        calls. Its own loop may be the caller's.
        """
        from dask.base import optimize

        ready = optimize(*arrays) if self._optimizes else arrays
        pending = with_settings(ready, settings)
        places = {i: each for i, each in enumerate(self._gathered) if each is not None}
        others = [i for i in range(len(pending)) if i not in places]
        if places:
            kept = self._client.persist(
                [pending[i] for i in places], optimize_graph=False, **self._options
            )
            for place, array in zip(places.values(), kept, strict=True):
                self._batches.extend(_batches(place, array))
        if others:
            futures = self._client.compute(
                [pending[i] for i in others], optimize_graph=False, **self._options
            )
            self._others.update(zip(others, futures, strict=True))

    async def fetch_blocks(self) -> None:
        """Fetch batches of blocks, one after another, and put them in place."""
        while self._batches:
            batch = self._batches.popleft()
            self._fetching.append(batch)
            blocks = await self._fetched([future for *_, future in batch])
            await blocking_pool.run(partial(_put, batch, blocks))
            self._fetching.remove(batch)
            batch.clear()

    async def fetch_others(self) -> None:
        """Fetch the whole results."""
        values = await self._fetched(list(self._others.values()))
        self._computed.update(zip(self._others, values, strict=True))

    async def _fetched(self, futures: list[Any]) -> list[Any]:
        async def fetch() -> list[Any]:
            return list(await self._client.gather(futures, asynchronous=True))

        return await run_on(self._client.loop.asyncio_loop, fetch) if futures else []

    async def cancel(self) -> None:
        """Cancel what is not here yet; on the client's loop."""
        if self._client.status != "running":
            # The scheduler forgets the futures of a client that it has lost.
            return
        batches = [*self._batches, *self._fetching]
        futures = [*self._others.values(), *(each[-1] for batch in batches for each in batch)]
        await self._client.cancel(futures, asynchronous=True)

    def values(self) -> list[Any]:
        """Return all values."""
        return [
            self._computed[index] if into is None else into.values()
            for index, into in enumerate(self._gathered)
        ]


def _batches(place: Gathered, array: Any) -> Iterator[list[tuple[Gathered, tuple[int, ...], Any]]]:
    """Yield the blocks of an array that the workers keep, a few MiB of them together."""
    import distributed
    from dask.core import flatten

    futures = {future.key: future for future in distributed.futures_of(array)}
    batch, nbytes = [], 0
    keys = flatten(array.__dask_keys__())
    for key, block_id in zip(keys, np.ndindex(*array.numblocks), strict=True):
        batch.append((place, block_id, futures[key]))
        nbytes += place.nbytes_of(block_id)
        if nbytes >= tuning.FETCHED_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _put(batch: Sequence[tuple[Gathered, tuple[int, ...], Any]], blocks: list[Any]) -> None:
    for place, block_id, _ in batch:
        place.put(blocks[0], block_id)
        del blocks[0]
