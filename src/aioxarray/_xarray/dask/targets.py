"""What dask stores chunked data into: an array whose parts are written by aioxarray."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.budget import Share
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.chunks.writing import writable, write_block
from aioxarray._zarr.grid import is_aligned, write_edges
from aioxarray._zarr.stores.grants import Reading, reading
from aioxarray.progress import Meter

if TYPE_CHECKING:
    import zarr


class Target:
    """An array to be stored into, in this process or, pickled, in a worker of a cluster.

    Setting a part of it returns when the part is in the store. No two parts that are set may share
    a chunk.

    Parameters
    ----------
    array
        The array, which may have no metadata in its store yet.
    fresh
        Whether the store has no chunk of it.

    Attributes
    ----------
    edges
        For each axis, the places between its chunks or shards, in ascending order.
    """

    def __init__(self, array: zarr.Array[Any], fresh: bool) -> None:
        self.array = array
        self.fresh = fresh
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = array.ndim
        self.edges = write_edges(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Target, (self.array, self.fresh)

    def __dask_tokenize__(self) -> str:
        # Two are never the same: each is for one save.
        return uuid.uuid4().hex

    def is_aligned(self, region: Any) -> bool:
        """Say whether no chunk is partly in ``region``."""
        return is_aligned(region, self.shape, self.edges)

    def __setitem__(self, region: Any, values: Any) -> None:
        run_blocking(lambda: self._write(region, values))

    async def _write(self, region: Any, values: Any) -> None:
        with reading() as grants:
            await self._write_with(grants, region, values)

    async def _write_with(self, grants: Reading, region: Any, values: Any) -> None:
        fresh = self.fresh and self.is_aligned(region)
        ours = writable(self.array, self.array.store, grants, fresh=fresh)
        await write_block(ours, region, values)


class ThreadTarget(Target):
    """A target for dask's threads: setting a part of it hands the part over and returns.

    Few threads compute, and they would only wait for the network.
    """

    def __init__(
        self, array: zarr.Array[Any], fresh: bool, grants: Reading, intake: Intake
    ) -> None:
        super().__init__(array, fresh)
        self._grants = grants
        self._intake = intake

    def __setitem__(self, region: Any, values: Any) -> None:
        run_blocking(lambda: self._intake.take(lambda: self._write(region, values), values.nbytes))

    async def _write(self, region: Any, values: Any) -> None:
        await self._write_with(self._grants, region, values)


class Intake:
    """Takes parts from threads and has them written, as many as fit into its share of memory.

    Parameters
    ----------
    tasks
        The group whose tasks write; when it ends, so does the taking.
    staged
        Places for bytes that were taken and not yet written.
    counter
        Told of the bytes that were written.
    """

    def __init__(self, tasks: asyncio.TaskGroup, staged: Share, counter: Meter) -> None:
        self._tasks = tasks
        self._staged = staged
        self._counter = counter
        # Of the save: its progress is told to who waits for it, not to the threads that compute.
        self._context = contextvars.copy_context()

    async def take(self, write: Callable[[], Awaitable[None]], nbytes: int) -> None:
        """Wait until there is a place, and have ``write()`` awaited; on the I/O loop."""
        admitted = asyncio.Event()

        async def run() -> None:
            try:
                async with self._staged.hold(nbytes):
                    admitted.set()
                    await write()
                    self._counter.part(nbytes)(1, 1)
            finally:
                admitted.set()

        running = run()
        try:
            self._tasks.create_task(running, context=self._context.copy())
        except RuntimeError as error:
            # The save has ended, by an error or a cancellation. Python 3.11 leaves it to us to
            # close what will not be awaited.
            running.close()
            raise asyncio.CancelledError from error
        await admitted.wait()
