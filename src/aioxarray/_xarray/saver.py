"""Saves: reads what is lazy, encodes, writes chunks, then metadata, under the limits of loads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import xarray as xr
from zarr.storage import StorePath

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.tasks import gather
from aioxarray._runtime.threads import usable_cores
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray import loader
from aioxarray._xarray.blocks import Block, blocks
from aioxarray._xarray.chunked import is_chunked_array
from aioxarray._xarray.deferred import Deferred, defers
from aioxarray._xarray.find import find_variables
from aioxarray._xarray.lazy import Lazy, assign, lazy_data, load_data
from aioxarray._xarray.loader import Options, read_all
from aioxarray._xarray.recorder import (
    Job,
    Node,
    Recorded,
    ZarrOptions,
    as_nodes,
    normalized_store,
    record,
)
from aioxarray._zarr import flushing
from aioxarray._zarr.fork import usable_here
from aioxarray._zarr.grid import write_edges
from aioxarray._zarr.opening import give_back, give_back_group, store_path
from aioxarray._zarr.prefetched import Answers
from aioxarray._zarr.reading import Reading
from aioxarray._zarr.surveying import survey
from aioxarray._zarr.write_behind import Changes, WriteBehindStore
from aioxarray._zarr.writing import LimitedWriteStore, writable
from aioxarray.config import memory_limit, request_limit, thread_count
from aioxarray.progress import Meter, meter

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

# Decoded blocks between being read and being written. A budget of its own: who holds a place of
# this one waits for places for chunks, never the other way round.
staging = Budget("bytes")

# The part of the setting ``memory`` that these blocks may take: what is in flight of them, on the
# way in and on the way out, comes on top.
_STAGED_PART = 8
# A block is a read, a hop to a thread and a call of zarr's, whose cost it should outweigh.
_BLOCK_BYTES = 8 << 20


async def save(obj: Any, store: Any, options: ZarrOptions, how: Options) -> Any:
    """Save ``obj`` as xarray's ``to_zarr`` does; on the I/O loop."""
    threads = thread_count()
    loader.decoders.resize(threads)
    store = normalized_store(store, options.storage_options)
    try:
        async with asyncio.timeout(how.timeout) as limit:
            place = await store_path(store, mode=None, storage_options=options.storage_options)
            try:
                with (
                    loader.requests.share(request_limit(how.concurrency)) as requests,
                    loader.memory.share(memory_limit()) as memory,
                    staging.share(memory_limit() / _STAGED_PART) as staged,
                ):
                    grants = Reading(requests, memory, loader.decoders, threads)
                    saving = _Saving(obj, place, options, how, grants, staged)
                    return await saving.run()
            finally:
                if place.store is not store and options.compute:
                    place.store.close()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(f"not saved within the timeout of {how.timeout} s") from error


class _Saving:
    """One save under way."""

    def __init__(
        self,
        obj: Any,
        place: StorePath,
        options: ZarrOptions,
        how: Options,
        grants: Reading,
        staged: Share,
    ) -> None:
        self._obj = obj
        self._options = options
        self._how = how
        self._grants = grants
        self._staged = staged
        self._place = place
        self._store: Store = usable_here(place.store)
        self._limited = LimitedWriteStore(self._store, grants.requests)

    async def run(self) -> Any:
        options = self._options
        nodes = await in_worker(lambda: as_nodes(self._obj, options), lambda _: None)
        await self._load_small(nodes)
        answers = await self._survey()
        changes = Changes()
        stand_in = WriteBehindStore(self._limited, answers, changes)
        recorded = await in_worker(
            lambda: record(nodes, StorePath(stand_in, self._place.path), options),
            lambda _: None,
        )
        await flushing.delete_emptied(self._limited, changes, answers)
        await self._write_jobs(recorded.jobs, changes, answers)
        for wave in flushing.waves(changes, answers):
            await flushing.write(self._limited, wave)
        return self._result(recorded)

    async def _load_small(self, nodes: Sequence[Node]) -> None:
        """Load what xarray has to see as a whole."""
        found = find_variables([node.dataset for node in nodes])
        lazies = [
            each
            for each in lazy_data(found)
            if not each.chunked and not defers(each.holders[0][0])
        ]
        if lazies:
            assign(lazies, await read_all(lazies, Options(self._how.concurrency)), share=False)

    async def _survey(self) -> Answers:
        options = self._options
        path = f"{self._place.path}/{(options.group or '').strip('/')}".strip("/")
        consolidated: bool | None = options.consolidates
        if options.chosen_mode == "r+":
            consolidated = options.consolidated
        if not self._store.supports_consolidated_metadata:
            consolidated = False
        return await survey(
            self._limited,
            path,
            mode=options.chosen_mode,
            deep=isinstance(self._obj, xr.DataTree),
            consolidated=consolidated,
            zarr_format=options.zarr_format,
        )

    # --- values ----------------------------------------------------------------------------

    async def _write_jobs(
        self, jobs: Sequence[Job], changes: Changes, answers: Answers
    ) -> None:
        total = sum(job.nbytes for job in jobs)
        with meter(self._how.progress, total, what="save") as counter:
            pieces = iter([
                piece for job in jobs for piece in self._pieces(job, changes, answers, counter)
            ])

            async def work() -> None:
                for piece in pieces:
                    await piece()

            await gather([work] * 64)

    def _pieces(
        self, job: Job, changes: Changes, answers: Answers, counter: Meter
    ) -> Iterator[Callable[[], Any]]:
        source = job.source
        path = job.target.path
        fresh = changes.has_emptied(path) or answers.lacks(path)
        report = counter.part(job.nbytes)
        target = writable(job.target, self._store, self._grants, lambda _: None, fresh=fresh)
        if isinstance(source, Deferred):
            edges = write_edges(job.target)
            for block in blocks(job.region, edges, source.dtype.itemsize, _BLOCK_BYTES):
                yield partial(self._write_block, source, target, block, job.region)
        else:
            region: Any = job.region or ...
            yield partial(target.setitem, region, source)

    async def _write_block(self, source: Deferred, target: Any, block: Block, region: Block) -> None:
        own = [
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(block, region, strict=True)
        ]
        part = source.part(own)
        async with self._staged.hold(int(part.nbytes)):
            value = await load_data(
                Lazy(part._data, [], "", int(part.nbytes)),
                self._grants,
                loader.decoders,
                lambda done, total: None,
            )
            loaded = xr.Variable(part.dims, value, part.attrs, part.encoding)
            values = await loader.decoders.run(lambda: source.encoded(loaded))
            await target.setitem(tuple(block), values)

    def _result(self, recorded: Recorded) -> Any:
        store = recorded.store
        give_back_group(store.zarr_group, self._place.store)
        return store
