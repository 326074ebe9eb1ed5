"""The codec pipeline, which reads a whole selection in one batch, in few steps off the event loop.

zarr's own pipeline creates a task, buffers and specifications for every chunk, and its event loop
schedules the decoding. This pipeline makes a `ReadPlan` of the selection and executes it: see
`aioxarray._zarr.chunks.chunk_reads`, and `aioxarray._zarr.chunks.shard_reads` for shards.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from zarr.registry import register_pipeline
from zarr.storage import StorePath

from aioxarray._zarr.chunks.chunk_reads import Advance, ChunkReads
from aioxarray._zarr.chunks.plan import ReadPlan, Way, plan_read
from aioxarray._zarr.chunks.result import Result
from aioxarray._zarr.chunks.shard_reads import ByCoroutines, ByPlainCalls
from aioxarray._zarr.codecs.decoders import describe, prepare
from aioxarray._zarr.compat import BatchedCodecPipeline
from aioxarray._zarr.points import selection_of
from aioxarray._zarr.selection import Chunk, as_tuple, is_basic
from aioxarray._zarr.stores.grants import Grants, is_long, open_grants
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.sharing import flights_of, forget
from aioxarray.config import cache_limit

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter, Store

    from aioxarray._zarr.compat import ArraySpec, NDBuffer, SelectorTuple

    ChunkRequest = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
    Status = dict[str, Literal["present", "missing"]]


@dataclass(frozen=True, repr=False)
class CodecPipeline(BatchedCodecPipeline):
    """A faster codec pipeline for zarr.

    For any use of zarr, reading and writing, from synchronous and asynchronous code::

        zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"})

    Loads through aioxarray always use it. Values, stored keys and stored bytes are the same as
    with zarr's own pipeline. The ``repr`` tells whether plain functions or zarr's codecs decode.

    Notes
    -----
    *Requests:* one per chunk or whole shard; for a part of a shard, one for the index and one per
    range of inner chunks. None for chunks that another read in this process is fetching, or that
    the cache has (setting ``cache``): then writes by other programs or libraries go unnoticed.

    *Memory:* the setting ``memory`` bounds the bytes of chunks in flight.

    *Cancelling:* requests in flight are cancelled and awaited, except blocking calls to a server,
    which continue until it answers. A thread finishes its current chunk or batch of small chunks.

    *Errors:* those of the store and the codecs, with a note that names the chunk and the store;
    ValueError for a chunk that decodes to more or fewer bytes than the array says, raised before
    more are decoded.
    """

    # The grants of the load; None outside of loads, where the process-wide settings apply.
    grants: Grants | None = None
    # Called with the number of chunks that are done, and their total.
    report: Callable[[int, int], None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {describe(self)}>"

    async def read(  # type: ignore[override]
        self,
        batch_info: Iterable[ChunkRequest],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[Status, ...]:
        """Fetch and decode the chunks of ``batch_info`` into ``out``.

        Returns the status of each chunk, which zarr expects from 3.3 on.
        """
        requests = list(batch_info)
        if not requests:
            return ()
        getter = requests[0][0]
        if not isinstance(getter, StorePath):
            return await self._read_parts(requests, out, drop_axes)
        keys = (each.path for each, *_ in requests)  # type: ignore[attr-defined]
        chunks = _chunks(keys, requests)
        result = self._result(chunks, out, drop_axes)
        spec = requests[0][1]
        return _statuses(await self.read_chunks(getter.store, chunks, len(chunks), spec, result))

    async def write(
        self,
        batch_info: Iterable[ChunkRequest],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        """Encode the chunks of ``batch_info`` from ``value`` and write them, as zarr does."""
        requests = list(batch_info)
        place = requests[0][0] if requests else None
        if not isinstance(place, StorePath):
            await super().write(requests, value, drop_axes)  # type: ignore[arg-type]
            return
        with open_grants() as grants:
            limited = LimitedStore(place.store, grants.requests)
            limited_requests: Any = [
                (StorePath(limited, each.path), *rest)  # type: ignore[attr-defined]
                for each, *rest in requests
            ]
            try:
                await super().write(limited_requests, value, drop_axes)
            finally:
                forget(place.store)

    def _result(self, chunks: Sequence[Chunk], out: NDBuffer, drop_axes: tuple[int, ...]) -> Result:
        basic = all(
            is_basic(selection_of(chunk.inside)) and is_basic(chunk.outside) for chunk in chunks
        )
        return Result(self, prepare(self, chunks[0].spec), out, drop_axes, basic).observed()

    async def read_chunks(
        self, store: Store, chunks: Iterable[Chunk], count: int, spec: ArraySpec, result: Result
    ) -> list[bool]:
        """Read ``count`` chunks of ``store`` into ``result``; return which of them exist.

        ``spec`` is the specification of one of them.
        """
        keeps = cache_limit() > 0 if self.grants is None else self.grants.keeps
        shares = self._is_shared()
        outline = result.outline
        plan = plan_read(self, store, chunks, count, spec, outline, keeps=keeps, shares=shares)
        return await self.execute(plan, result)

    def _is_shared(self) -> bool:
        """Return whether known reads beside this one need the same chunks."""
        return self.grants is not None and self.grants.shares

    async def execute(self, plan: ReadPlan, result: Result) -> list[bool]:
        """Read the chunks of ``plan`` into ``result``; return which of them exist."""
        if self.grants is None:
            with open_grants() as grants:
                return await replace(self, grants=grants).execute(plan, result)
        self.grants.expect(plan.inner_count)
        flights = None if plan.shared_as is None else flights_of(plan.store, plan.shared_as)
        limited = LimitedStore(plan.store, self.grants.requests)
        advance = Advance(self.report, plan.count)
        return await self._execute(ChunkReads(plan, limited, result, self.grants, flights, advance))

    async def _execute(self, reads: ChunkReads) -> list[bool]:
        plan = reads.plan
        source: Any = plan.source
        match plan.way:
            case Way.ZARR:
                return await reads.each(partial(self._read_by_zarr, reads))
            case Way.COROUTINES if plan.shards is not None:
                return await ByCoroutines(reads, plan.shards).read_all()
            case Way.COROUTINES:
                return await reads.by_coroutines()
            case Way.THREADS if plan.shards is not None:
                return await ByPlainCalls(reads, plan.shards, source).read_all()
            case Way.THREADS:
                return await reads.by_plain_calls(source)
            case Way.FIRST_ANSWER:
                return await reads.by_first_answer(source)
            case Way.TENSORSTORE:
                return await reads.by_engine(source)
            case Way.INLINE:
                return reads.inline(source)

    async def _read_by_zarr(self, reads: ChunkReads, chunk: Chunk) -> bool:
        """Read a shard with zarr's own code; return whether it exists."""
        async with reads.grants.memory.hold(reads.nbytes, long=is_long(reads.nbytes)):
            getter = StorePath(reads.limited, chunk.key)
            selection = selection_of(chunk.inside)
            (part,) = await self.decode_partial_batch([(getter, selection, chunk.spec)])
        reads.result.put_part(part, chunk)
        return part is not None

    async def _read_parts(
        self, requests: Sequence[ChunkRequest], out: NDBuffer, drop_axes: tuple[int, ...]
    ) -> tuple[Status, ...]:
        """Decode chunks already in memory: the inner chunks of a shard that zarr's code reads."""
        data: list[Any] = [await getter.get(spec.prototype) for getter, spec, *_ in requests]
        chunks = _chunks(itertools.repeat(""), requests)
        result = self._result(chunks, out, drop_axes)
        if not result.by_zarr:
            data = [None if each is None else each.as_numpy_array() for each in data]

        def put() -> list[bool]:
            return [result.put(*each) for each in zip(data, chunks, strict=True)]

        # In a decoding thread, this runs in place instead: see `run_inline`.
        present = await asyncio.to_thread(put)
        return _statuses(present)


@dataclass(frozen=True, repr=False)
class PlanningPipeline(CodecPipeline):
    """A pipeline that makes the plans of reads, and hands them to ``take`` instead of executing.

    ``shares`` tells whether known reads beside these need the same chunks.
    """

    take: Callable[[ReadPlan], None] | None = None
    shares: bool = False

    def _is_shared(self) -> bool:
        return self.shares

    async def execute(self, plan: ReadPlan, result: Result) -> list[bool]:
        assert self.take is not None
        self.take(plan)
        return [False] * plan.count


def _chunks(keys: Iterable[str], requests: Sequence[ChunkRequest]) -> list[Chunk]:
    """Return ``requests`` as chunks with ``keys``."""
    return [
        Chunk(key, spec, as_tuple(inside), as_tuple(outside))
        for key, (_, spec, inside, outside, _) in zip(keys, requests, strict=False)
    ]


def _statuses(present: Iterable[bool]) -> tuple[Status, ...]:
    # Two shared dictionaries, because there may be a hundred thousand chunks.
    here: Status = {"status": "present"}
    gone: Status = {"status": "missing"}
    return tuple(here if there else gone for there in present)


# zarr's registry finds pipelines by the qualified name of their class.
CodecPipeline.__module__ = "aioxarray"
register_pipeline(CodecPipeline)
