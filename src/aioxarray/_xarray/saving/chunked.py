"""Writing chunked (dask) arrays: here as they are computed, by a cluster, or when asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.tasks import first_error
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.compat import is_chunked_array
from aioxarray._xarray.dask.chunked import store_chunked, store_later, writes_elsewhere
from aioxarray._xarray.dask.sessions import Forks, merged
from aioxarray._xarray.dask.targets import Intake, Target, ThreadTarget
from aioxarray._zarr.metadata.opening import replace_store
from aioxarray._zarr.stores.fork import is_transaction

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

    from aioxarray._runtime.budget import Share
    from aioxarray._xarray.saving.recorder import SavedNode, Write, ZarrOptions
    from aioxarray._zarr.chunks.writes.present import Present
    from aioxarray._zarr.stores.grants import Grants
    from aioxarray.progress import Meter


def forks(store: Store, nodes: Sequence[SavedNode], options: ZarrOptions) -> Forks | None:
    """Return forks of the icechunk session of ``store`` if the workers of a cluster write to it."""
    if not (options.compute and is_transaction(store)):
        return None
    chunked = [
        variable._data
        for node in nodes
        for variable in node.dataset.variables.values()
        if is_chunked_array(variable._data)
    ]
    elsewhere = writes_elsewhere(chunked, options.chunkmanager_store_kwargs or {})
    return Forks(store) if elsewhere else None


class ChunkedWrites:
    """The writes of a save whose values are chunked arrays.

    Parameters
    ----------
    store
        The store to write to.
    options
        The options of the save.
    grants
        Its grants.
    present
        Returns the chunks that are there already; None if none are known to be.
    """

    def __init__(
        self,
        store: Store,
        options: ZarrOptions,
        grants: Grants,
        present: Callable[[Write], Present | None],
    ) -> None:
        self._store = store
        self._how = options.chunkmanager_store_kwargs or {}
        self._grants = grants
        self._present = present

    async def write(
        self, writes: Sequence[Write], staged: Share, counter: Meter, forks: Forks | None
    ) -> None:
        """Compute the arrays, and write their blocks as they are computed.

        ``staged`` bounds the bytes of blocks that are not written yet. With ``forks``, workers
        write to these.
        """
        sources = [each.source for each in writes]
        regions = [each.region for each in writes]
        store = self._store if forks is None else await in_worker(forks.for_workers)
        try:
            async with asyncio.TaskGroup() as tasks:
                intake = Intake(tasks, staged, counter)
                targets = [
                    ThreadTarget(*self._target(each, store), self._grants, intake)
                    for each in writes
                ]
                reduce = None if forks is None else merged
                results = await store_chunked(sources, targets, regions, self._how, reduce)
            if forks is not None:
                await forks.merge(results)
        except BaseExceptionGroup as errors:
            first = first_error(errors)
            raise first from first.__cause__

    async def later(self, writes: Sequence[Write]) -> Any:
        """Return delayed objects that do the same when they are computed."""
        sources = [each.source for each in writes]
        targets = [Target(*self._target(each, self._store)) for each in writes]
        regions = [each.region for each in writes]
        return await in_worker(lambda: store_later(sources, targets, regions, self._how))

    def _target(self, write: Write, store: Store) -> tuple[zarr.Array[Any], bool, Present | None]:
        """Return the arguments of a `Target`. Its array uses ``store`` from now on."""
        replace_store(write.target, store)
        return write.target, write.fresh, self._present(write)
