"""Saving to Zarr: read and encode lazy data, write chunks, then metadata, limited like loads."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import xarray as xr
from zarr.storage import StorePath

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.tasks import gather
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.arrays.blocks import blocks
from aioxarray._xarray.compat import (
    _get_mappers,
    delayed_close_after_writes,
    is_chunked_array,
)
from aioxarray._xarray.dask.sessions import Forks
from aioxarray._xarray.lazy.find import find_variables
from aioxarray._xarray.lazy.loader import Options, read_all
from aioxarray._xarray.lazy.variables import Lazy, assign, lazy_data, load_data
from aioxarray._xarray.opening.error_notes import error_note
from aioxarray._xarray.saving import resuming
from aioxarray._xarray.saving.chunked import ChunkedWrites, forks
from aioxarray._xarray.saving.deferred import Deferred, defers
from aioxarray._xarray.saving.ledger import Ledger, without_metadata
from aioxarray._xarray.saving.moving import Mover
from aioxarray._xarray.saving.origins import read_from_targets
from aioxarray._xarray.saving.recorder import (
    Recorded,
    SavedNode,
    Write,
    ZarrOptions,
    as_nodes,
    record,
)
from aioxarray._xarray.saving.resuming import Resuming
from aioxarray._xarray.saving.unchanged import Unchanged
from aioxarray._xarray.saving.undecoded import Moves, moves
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.writes.writing import writable, write_block
from aioxarray._zarr.grid import write_edges
from aioxarray._zarr.metadata import flushing
from aioxarray._zarr.metadata.hierarchy import join
from aioxarray._zarr.metadata.opening import store_path
from aioxarray._zarr.metadata.prefetched import Answers
from aioxarray._zarr.metadata.surveying import survey
from aioxarray._zarr.metadata.write_behind import Changes, WriteBehindStore
from aioxarray._zarr.stores.calls import Call, calling
from aioxarray._zarr.stores.fork import is_transaction, usable_after_fork
from aioxarray._zarr.stores.grants import Grants, is_long, open_grants
from aioxarray._zarr.stores.identity import Place
from aioxarray._zarr.stores.limited import ForeignStore, LimitedStore, Places
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.request import for_variable
from aioxarray.config import memory_limit
from aioxarray.errors import ArrayChangedError
from aioxarray.progress import Meter, meter

if TYPE_CHECKING:
    from zarr.abc.store import Store

# Bytes of decoded blocks between reading and writing. A separate budget avoids deadlocks: its
# holders wait for the budgets of chunks, never the other way round.
staging = Budget("bytes")


async def save(
    obj: Any, store: Any, options: ZarrOptions, how: Options, ledger: Ledger | None = None
) -> Any:
    """Save ``obj`` as xarray's ``to_zarr`` does; on the I/O loop.

    With ``ledger``, the blocks in it are not read or written, and those that are written are added
    to it. Unless the mode is "w", what the same save has left there before is replaced. Chunks that
    are stored as the target stores them are then copied without decoding them.
    """
    note = f"while saving to {printable(store)!r}"
    with error_note(note, by_obstore=not options.storage_options):
        # As xarray; raises an error if ``storage_options`` do not apply to the store.
        _, store = _get_mappers(storage_options=options.storage_options, store=store)
        async with calling("saved", how.timeout, how.concurrency) as call:
            root = await store_path(store, mode=None, storage_options=options.storage_options)
            try:
                with (
                    open_grants(how.concurrency) as grants,
                    staging.share(memory_limit() / tuning.STAGED_PART) as staged,
                ):
                    saving = _Saving(obj, root, options, how, grants, staged, call, ledger)
                    return await saving.run()
            finally:
                if root.store is not store and options.compute:
                    root.store.close()


class _Saving:
    """A save in progress."""

    def __init__(
        self,
        obj: Any,
        root: StorePath,
        options: ZarrOptions,
        how: Options,
        grants: Grants,
        staged: Share,
        call: Call,
        ledger: Ledger | None,
    ) -> None:
        self._obj = obj
        self._ledger = ledger
        self._options = options
        self._how = how
        self._grants = grants
        self._staged = staged
        self._call = call
        self._root = root
        self._store: Store = usable_after_fork(root.store)
        self._limited = LimitedStore(self._store, grants.requests)
        self._unchanged = Unchanged()
        self._forks: Forks | None = None
        self._resuming: Resuming | None = None
        if options.resume:
            resuming.check(options, self._store)
            in_region = options.region is not None
            self._resuming = Resuming(self._limited, grants, in_region=in_region)

    async def run(self) -> Any:
        options = self._options
        nodes = await in_worker(self._recorded_nodes)
        self._forks = forks(self._store, nodes, options)
        if self._forks is not None:
            self._store = self._forks.store
            self._limited = LimitedStore(self._store, self._grants.requests)
        await self._load_first(nodes)
        answers = await self._survey()
        shown = self._hidden(answers, nodes)
        changes = Changes()
        foreign = ForeignStore(self._store, Places(self._grants.requests))
        stand_in = WriteBehindStore(foreign, shown, changes)
        path = self._root.path
        # A bare store if there is no path: zarr applies the mode to a store, not to a `StorePath`.
        place = StorePath(stand_in, path) if path else stand_in
        recorded = await in_worker(lambda: record(nodes, place, options))
        await flushing.delete_emptied(self._limited, changes, answers)
        writes: Sequence[Write] = [
            replace(each, fresh=changes.has_emptied(path) or answers.lacks(path))
            for each in recorded.writes
            for path in [each.target.path]
        ]
        if self._resuming is not None:
            writes = await self._run_resumed(self._resuming, changes, answers, nodes, writes)
            return await self._result(recorded, writes)
        waves = flushing.waves(changes, answers)
        if is_transaction(self._store):
            # Readers see all of it or nothing, but the store needs groups before arrays, and
            # arrays before chunks.
            await flushing.write_all(self._limited, reversed(waves))
            await self._write_values(writes)
            await self._unchanged.check_in(self._grants.decoders)
        else:
            await self._write_values(writes)
            await self._unchanged.check_in(self._grants.decoders)
            await flushing.write_or_restore(self._limited, waves, changes, answers)
        return await self._result(recorded, writes)

    async def _run_resumed(
        self,
        begun: Resuming,
        changes: Changes,
        answers: Answers,
        nodes: Sequence[SavedNode],
        writes: Sequence[Write],
    ) -> Sequence[Write]:
        """Write what the store does not have yet of a save that can be resumed.

        Returns the writes as they had to be made.
        """
        writes = await begun.begin(changes, answers, self._group, writes)
        # The labels of what is there decide whether it is of the same save.
        paths = resuming.index_paths(nodes, self._group)
        by_index: dict[bool, list[Write]] = {True: [], False: []}
        for each in writes:
            by_index[each.target.path in paths and _is_here(each)].append(each)
        indexes = by_index[True]
        await begun.check_indexes(indexes, self._store)
        first, rest = flushing.template_and_rest(changes, answers)
        await flushing.write_all(self._limited, first)
        await self._write_here(indexes, Meter(None, 0))
        try:
            await self._write_values(by_index[False])
            await self._unchanged.check_in(self._grants.decoders)
        except ArrayChangedError:
            await begun.forget(writes)
            raise
        await flushing.write_or_restore(self._limited, rest, changes, answers)
        return writes

    @property
    def _group(self) -> str:
        """The path in the store of the group that is written."""
        return f"{self._root.path}/{(self._options.group or '').strip('/')}".strip("/")

    def _recorded_nodes(self) -> Sequence[SavedNode]:
        """Return the datasets to write, and record those arrays that are encoded as a whole."""
        nodes = as_nodes(self._obj, self._options)
        for node in nodes:
            for name, variable in node.dataset.variables.items():
                if not defers(variable):
                    path = join("" if node.path == "." else node.path, str(name))
                    # Private: the data of a variable, of whatever kind.
                    self._unchanged.add(path, variable._data)
        return nodes

    def _chunked_writes(self) -> ChunkedWrites:
        begun = self._resuming
        return ChunkedWrites(
            self._store,
            self._options,
            self._grants,
            lambda write: None if begun is None else begun.present(write.target.path),
        )

    async def _load_first(self, nodes: Sequence[SavedNode]) -> None:
        """Load the data that xarray must see as a whole, and the data that this save overwrites."""
        group = Place.of(self._root.store, self._root.path).below(self._options.group or "")
        replaces = self._options.chosen_mode == "w"
        changed = {id(each) for each in read_from_targets(nodes, group, replaces=replaces)}
        lazies = lazy_data(find_variables([node.dataset for node in nodes]))
        first = {index: variable for index, variable, _ in reversed([*lazies.holders()])}
        lazies = lazies.chosen(
            [
                index
                for index, lazy in enumerate(lazies)
                if not lazy.chunked and (not defers(first[index]) or id(first[index]) in changed)
            ]
        )
        if lazies:
            assign(lazies, await read_all(lazies, Options(self._how.concurrency)), share=False)

    async def _survey(self) -> Answers:
        options = self._options
        consolidated: bool | None = options.consolidates
        if options.chosen_mode == "r+":
            consolidated = options.consolidated
        if not self._store.supports_consolidated_metadata:
            consolidated = False
        return await survey(
            self._limited,
            self._group,
            mode=options.chosen_mode,
            deep=isinstance(self._obj, xr.DataTree),
            consolidated=consolidated,
            zarr_format=options.zarr_format,
        )

    def _hidden(self, answers: Answers, nodes: Sequence[SavedNode]) -> Answers:
        """Return the answers for a save that may go on with an earlier one."""
        goes_on = self._ledger is not None and self._options.chosen_mode != "w"
        if not (goes_on or (self._resuming is not None and self._resuming.hides())):
            return answers
        for node in nodes:
            below = [self._options.group or "", "" if node.path == "." else node.path]
            group = "/".join(filter(None, (self._root.path, *below)))
            answers = without_metadata(answers, group, node.dataset.variables)
        return answers

    # --- values ----------------------------------------------------------------------------

    async def _write_values(self, writes: Sequence[Write]) -> None:
        here = [each for each in writes if _is_here(each)]
        chunked = [each for each in writes if is_chunked_array(each.source)]
        if not self._options.compute:
            chunked = []
        total = sum(each.nbytes for each in (*here, *chunked))
        async with meter(self._how.progress, total, "save") as counter:
            self._call.progress = lambda: f"{counter.done} of {total} bytes had been written"
            steps = [partial(self._write_here, here, counter)] if here else []
            if chunked:
                writes_chunked = self._chunked_writes().write
                steps.append(partial(writes_chunked, chunked, self._staged, counter, self._forks))
            if self._forks is None:
                await gather(steps)
            else:
                # The forks for the workers have what was written before.
                for step in steps:
                    await step()

    async def _write_here(self, writes: Sequence[Write], counter: Meter) -> None:
        """Write data that is in memory or lazy."""
        pieces = itertools.chain.from_iterable(self._pieces(each, counter) for each in writes)

        async def work() -> None:
            for piece in pieces:
                await piece()

        await gather([work] * int(min(self._grants.requests.bound, tuning.SAVED_PIECES)))

    def _pieces(self, each: Write, counter: Meter) -> Iterator[Callable[[], Awaitable[None]]]:
        """Yield coroutine functions that write the values of a write, to be called in any order."""
        source, region = each.source, each.region
        begun = self._resuming
        wanted = None if begun is None else begun.wanted(each)
        array = writable(each.target, self._store, self._grants, fresh=each.fresh, wanted=wanted)
        if not isinstance(source, Deferred):
            if begun is not None and begun.has(each, region):
                counter.add(each.nbytes)
                return
            yield partial(self._write_whole, each, array, counter)
            return
        edges = write_edges(each.target)
        path = each.target.path
        write = partial(self._write_block, each, array)
        size = tuning.SAVED_BLOCK_BYTES
        if self._ledger is not None:
            size = tuning.RECORDED_BLOCK_BYTES
            found = moves(each)
            if isinstance(found, Moves):
                mover = Mover(
                    found.source,
                    each.target,
                    self._store,
                    found.first,
                    self._grants,
                    fresh=each.fresh,
                )
                write = partial(self._move_block, each, mover)
        for block in blocks(region, edges, source.dtype.itemsize, size):
            if self._ledger is not None and self._ledger.has(path, block):
                counter.add(each.bytes_of(block))
                continue
            left = each.bytes_of(block)
            for part in [block] if begun is None else begun.missing(each, block):
                left -= each.bytes_of(part)
                yield partial(write, part, counter)
            counter.add(left)

    async def _write_whole(self, write: Write, array: Any, counter: Meter) -> None:
        with _error_note(write):
            await write_block(array, write.region, write.source)
        counter.part(write.nbytes)(1, 1)

    async def _write_block(
        self, write: Write, array: Any, block: tuple[slice, ...], counter: Meter
    ) -> None:
        source: Deferred = write.source
        starts = [whole.start for whole in write.region]
        part = source.part(
            [slice(each.start - at, each.stop - at) for each, at in zip(block, starts, strict=True)]
        )
        nbytes = int(part.nbytes)
        with _error_note(write):
            async with self._staged.hold(nbytes):
                values = await self._encoded(write, part)
                await write_block(array, block, values)
        self._written(write, block, counter)

    async def _move_block(
        self, write: Write, mover: Mover, block: tuple[slice, ...], counter: Meter
    ) -> None:
        # Those in flight are lost when the process is killed.
        async with self._staged.hold(write.bytes_of(block)):
            with _error_note(write):
                await mover.move(block)
            self._written(write, block, counter)

    def _written(self, write: Write, block: tuple[slice, ...], counter: Meter) -> None:
        if self._ledger is not None:
            self._ledger.add(write.target.path, block)
        counter.add(write.bytes_of(block))

    async def _encoded(self, write: Write, part: xr.Variable) -> Any:
        """Load ``part`` of the variable that is written, and return its encoded values."""
        source: Deferred = write.source
        lazy = Lazy(part._data, "", int(part.nbytes))
        value = await load_data(lazy, self._grants)
        loaded = xr.Variable(part.dims, value, part.attrs, part.encoding)

        def encode() -> Any:
            self._unchanged.add(write.target.path, part._data)
            return source.encoded(loaded)

        return await self._grants.decoders.run(encode, long=is_long(lazy.nbytes))

    async def _result(self, recorded: Recorded, writes: Sequence[Write]) -> Any:
        """Return the result of xarray's ``to_zarr``."""
        recorded.replace_store(self._root.store)
        if self._options.compute:
            return recorded.returned()
        chunked = [each for each in writes if is_chunked_array(each.source)]
        if not chunked:
            return delayed_close_after_writes(None, recorded.store)
        later = await self._chunked_writes().later(chunked)
        return delayed_close_after_writes(later, recorded.store)


def _is_here(write: Write) -> bool:
    """Return whether the values are in memory or lazy, and not chunked."""
    return not is_chunked_array(write.source)


@contextlib.contextmanager
def _error_note(write: Write) -> Iterator[None]:
    try:
        with for_variable(f"variable {write.target.path!r}"):
            yield
    except Exception as error:
        error.add_note(f"while saving variable {write.target.path!r}")
        raise
