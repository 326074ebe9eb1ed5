"""Targets for dask to store into: Zarr arrays whose regions are written by aioxarray."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.budget import Share
from aioxarray._runtime.loops import run_blocking
from aioxarray._settings.brought import brought
from aioxarray._xarray.dask.carried import Carried
from aioxarray._zarr.chunks.writes.present import Absent, Present
from aioxarray._zarr.chunks.writes.writing import writable, write_block
from aioxarray._zarr.grid import is_aligned, write_edges
from aioxarray._zarr.stores.grants import Grants, open_grants
from aioxarray.progress import Meter

if TYPE_CHECKING:
    import zarr


class Target:
    """A Zarr array to store into, in this process or, pickled, in a worker of a cluster.

    Setting a region returns once the region is in the store. No two of the regions may share a
    chunk.

    Parameters
    ----------
    array
        The array, whose metadata may not be in its store yet.
    fresh
        Whether the store has no chunks of it yet.
    present
        The chunks that are there, and are not written; None if that is not known.
    settings
        The settings of the process whose save it is, of which each worker of a cluster has a share.

    Attributes
    ----------
    edges
        For each axis, the boundaries between its chunks or shards, in ascending order.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        fresh: bool,
        present: Present | None = None,
        settings: Carried | None = None,
    ) -> None:
        self.array = array
        self.fresh = fresh
        self.present = present
        self.settings = settings
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = array.ndim
        self.edges = write_edges(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Target, (self.array, self.fresh, self.present, self.settings)

    def __dask_tokenize__(self) -> str:
        # Every instance is unique: it is for one save.
        return uuid.uuid4().hex

    def is_aligned(self, region: Any) -> bool:
        """Return whether ``region`` consists of whole chunks."""
        return is_aligned(region, self.shape, self.edges)

    def skip(self, count: int) -> None:
        """Count elements that are not computed, because their chunks are there."""

    def __setitem__(self, region: Any, values: Any) -> None:
        run_blocking(lambda: self._write(region, values))

    async def _write(self, region: Any, values: Any) -> None:
        share = None if self.settings is None else await self.settings.share()
        with brought(share), open_grants() as grants:
            await self._write_with(grants, region, values)

    async def _write_with(self, grants: Grants, region: Any, values: Any) -> None:
        fresh = self.fresh and self.is_aligned(region)
        wanted = None if self.present is None else Absent(self.array, self.present)
        ours = writable(self.array, self.array.store, grants, fresh=fresh, wanted=wanted)
        await write_block(ours, region, values)


class ThreadTarget(Target):
    """A target for dask's threads: setting a region hands it over for writing and returns.

    dask computes in few threads, which would otherwise be waiting for the network.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        fresh: bool,
        present: Present | None,
        settings: Carried | None,
        grants: Grants,
        intake: Intake,
    ) -> None:
        super().__init__(array, fresh, present, settings)
        self._grants = grants
        self._intake = intake

    def skip(self, count: int) -> None:
        self._intake.skip(count * self.dtype.itemsize)

    def __setitem__(self, region: Any, values: Any) -> None:
        run_blocking(lambda: self._intake.take(lambda: self._write(region, values), values.nbytes))

    async def _write(self, region: Any, values: Any) -> None:
        await self._write_with(self._grants, region, values)


class Intake:
    """The handover of regions from dask's threads to tasks that write them, bounded by memory.

    Parameters
    ----------
    tasks
        The task group that writes; once it has ended, no more regions are taken.
    staged
        The budget for bytes that were taken but are not yet written.
    counter
        The progress meter, which counts the bytes that were written.
    """

    def __init__(self, tasks: asyncio.TaskGroup, staged: Share, counter: Meter) -> None:
        self._tasks = tasks
        self._staged = staged
        self._counter = counter
        # Progress is reported in the context of the save, to its caller, not to dask's threads.
        self._context = contextvars.copy_context()

    def skip(self, nbytes: int) -> None:
        """Count bytes that need not be written; in any thread."""
        self._context.copy().run(self._counter.add, nbytes)

    async def take(self, write: Callable[[], Awaitable[None]], nbytes: int) -> None:
        """Have a task await ``write()``; return once the budget admits it. On the I/O loop."""
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
            # The save has failed or was cancelled. Python 3.11 does not close the coroutine.
            running.close()
            raise asyncio.CancelledError from error
        await admitted.wait()
