"""The engine of a stream, which loads pieces on the I/O loop before they are asked for.

A worker thread advances the iterable. The pieces that it has brought wait, in order, until their
bytes fit; then each is loaded and transformed by a task, and handed to the consumer, who takes it
in its own thread. Only then do its bytes no longer count, and another piece may begin.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from aioxarray._runtime.loops import detached, io_loop
from aioxarray._runtime.queueing import queued
from aioxarray._runtime.threads.outcomes import until_done
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.lazy.variables import Allocate
from aioxarray._xarray.streaming.feed import Feed
from aioxarray._xarray.streaming.pieces import Piece, call_of_user, noted, size_of
from aioxarray._xarray.streaming.room import Room
from aioxarray._xarray.streaming.slots import Slot
from aioxarray._xarray.streaming.source import Position, Source
from aioxarray._xarray.streaming.stages import Stage, Stages
from aioxarray._zarr.stores.grants import Grants, open_grants
from aioxarray._zarr.stores.observing.observers import observed_here
from aioxarray.config import queue_limit, thread_count
from aioxarray.errors import ForkError

# How long an arrived piece waits before it begins, so that the next ones are known: they may need
# the same chunks.
_TOGETHER_S = 0.002
# How long the end of a stream waits for files to be closed: a read may be waiting for a server.
_CLOSING_S = 1.0
# How often an engine looks whether its consumer is still there. A finaliser would run at any
# moment, in any thread.
_WATCH_S = 2.0


class Engine:
    """Loads the pieces of one stream ahead of its consumer.

    Parameters
    ----------
    source
        The objects.
    position
        The pieces that the consumer has had.
    ahead
        The bytes that may be held for pieces that are not consumed.
    ordered
        Whether the pieces are handed out in order, or as they finish.
    transform
        Applied to each piece in a worker thread; None for nothing.
    consumer
        Returns the consumer; None once nothing refers to it any more, which ends the engine.
    allocate
        Makes the arrays that the pieces are read into, in worker threads; None for xarray's.
    """

    def __init__(
        self,
        source: Source,
        position: Position,
        *,
        ahead: int,
        ordered: bool,
        transform: Callable[[Any], Any] | None,
        consumer: Callable[[], object],
        allocate: Allocate | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._loop = io_loop()
        # All that the stream does on the loop: a worker's context has a cancel scope that ends with
        # the worker's function, and a consumer's is another in each of its threads.
        self._context = detached()
        self._ordered = ordered
        self._transform = transform
        self._consumer = consumer
        self._allocate = allocate
        self._main: asyncio.Task[None] | None = None
        # Filled on the loop, emptied by the consumer in any thread.
        self._ready: deque[Slot] = deque()
        self._is_ready = asyncio.Event()
        # On the loop only: the slots that wait to begin, and those that have begun, in order.
        self._waiting: deque[Slot] = deque()
        self._begun: deque[Slot] = deque()
        self._beginning: asyncio.TimerHandle | None = None
        self._waiting_consumers = 0
        self._has_begun = asyncio.Event()
        self._is_closed = False
        self._failure: BaseException | None = None
        self.room = Room(ahead)
        self.stages = Stages(thread_count())
        self._feed = Feed(
            source,
            position,
            window=self.room.window,
            most_bytes=ahead,
            allocates=allocate is not None,
            arrive=partial(self._soon, self._arrive),
        )

    # --- by the consumer, in any thread ------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether the engine is in this process, and not in the one that this was forked from."""
        return self._pid == os.getpid()

    def check_process(self) -> None:
        """Raise `ForkError` in a process that was forked since the stream was opened."""
        if not self.is_here:
            raise ForkError(
                "this process was forked after the stream was opened, and the stream loads in the "
                "other one: open a stream here"
            )

    @property
    def has_ready(self) -> bool:
        """Whether `take` has a slot to return at the moment."""
        return bool(self._ready)

    def take(self) -> Slot | None:
        """Return the next slot that is ready; None if there is none at the moment."""
        try:
            slot = self._ready.popleft()
        except IndexError:
            return None
        if slot.is_last:
            # For all threads that take slots, however often they do.
            self._ready.append(slot)
        else:
            self._soon(self._consume, slot.held)
        return slot

    def stop(self) -> None:
        """Have all that is running end soon; `until_ended` waits for it."""
        if self.is_here:
            self._soon(self._stop)

    # --- on the I/O loop ---------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to load."""
        if not self._is_closed:
            self._main = asyncio.create_task(self._run(), context=self._context)
            self._watch()

    async def until_ready(self) -> None:
        """Wait until `take` has a slot to return."""
        self._waiting_consumers += 1
        self._note_stage()
        try:
            await self._until_ready()
        finally:
            self._waiting_consumers -= 1
            self._note_stage()

    async def _until_ready(self) -> None:
        while not self._ready:
            if self._failure is not None:
                raise RuntimeError("the stream has stopped because of an error of its own") from (
                    self._failure
                )
            if self._is_closed:
                raise RuntimeError("the stream has ended, since its context was left")
            self._is_ready.clear()
            await self._is_ready.wait()

    def _note_stage(self) -> None:
        """Tell `Stages` what the consumer waits for, if it waits."""
        stage: Stage | None = None
        if self._waiting_consumers and not self._ready:
            first = next((each for each in self._begun if not each.is_done), None)
            if first is None and self._waiting:
                first = self._waiting[0]
            stage = "objects" if first is None else first.stage
        self.stages.waits(stage)

    async def until_ended(self) -> None:
        """Wait until nothing runs any more, after `stop`."""
        self._stop()
        if self._main is not None:
            await until_done(self._main)

    def _stop(self) -> None:
        self._is_closed = True
        self._ready.clear()
        self._is_ready.set()
        if self._main is not None:
            self._main.cancel()

    def _watch(self) -> None:
        """Stop once the consumer is gone."""
        if self._is_closed:
            return
        if self._consumer() is None:
            self._stop()
        else:
            self._loop.call_later(_WATCH_S, self._watch)

    def _soon(self, function: Callable[..., None], *args: Any) -> None:
        """Call ``function`` on the loop, from any thread; an error in it ends the stream."""
        # The loop may have ended; then nothing runs that would need the call.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._call, function, *args, context=self._context)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - raised by `until_ready`
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the stream, and tell the consumer why."""
        self._failure = self._failure or error
        self._is_ready.set()
        if self._main is not None:
            self._main.cancel()

    async def _run(self) -> None:
        length = queue_limit()
        try:
            with (
                nullcontext() if length is None else queued(length),
                observed_here(self.stages),
                open_grants(window=self.room.window, most_bytes=self.room.in_flight) as grants,
            ):
                self._grants: Grants = grants
                self._transforming = asyncio.Semaphore(thread_count())
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    self._feeding = group.create_task(self._until_all_begun())
        except Exception as error:  # noqa: BLE001 - raised by `until_ready`
            self._fail(error)
        finally:
            self._feed.has_all = True
            left = [slot.piece for slot in (*self._waiting, *self._begun) if slot.piece is not None]
            self._waiting.clear()
            self._begun.clear()
            await _closed([piece for piece in left if piece.is_open])

    async def _until_all_begun(self) -> None:
        """Have the iterable advanced, and wait until its last piece has begun."""
        await self._feed.run()
        # The group, in which pieces begin, ends with its last task.
        while self._waiting:
            self._has_begun.clear()
            await self._has_begun.wait()

    def _arrive(self, slot: Slot) -> None:
        if self._is_closed:
            return
        self._waiting.append(slot)
        if slot.function is not None:
            slot.task = self._group.create_task(self._open(slot, slot.function))
        self._feed.waits(slot)
        if self._beginning is None:
            self._beginning = self._loop.call_later(
                _TOGETHER_S, self._call, self._begin, context=self._context
            )

    async def _open(self, slot: Slot, function: Callable[[], Any]) -> None:
        await self._feed.open(slot, function)
        self._begin()

    def _begin(self) -> None:
        """Begin with the pieces that fit, in order."""
        if self._beginning is not None:
            self._beginning.cancel()
            self._beginning = None
        if self._is_closed:
            return
        while self._waiting and self._waiting[0].is_known:
            slot = self._waiting[0]
            if slot.piece is not None and not self.room.fits(slot.piece):
                break
            self._waiting.popleft()
            self._feed.begins(slot)
            self._has_begun.set()
            self.room.unconsumed += not slot.is_last
            self._begun.append(slot)
            if slot.piece is None:
                self._finish(slot)
                continue
            slot.held = self.room.begin(slot.serial, slot.piece)
            slot.task = self._group.create_task(self._load(slot, slot.piece))
        self._note_stage()

    async def _load(self, slot: Slot, piece: Piece) -> None:
        try:
            await piece.load(self._grants, self._allocate)
            self.room.end(slot.serial, piece)
            if piece.is_open:
                await in_worker(piece.close)
            slot.value = piece.obj
            self._hold(slot, piece.nbytes)
            if self._transform is not None:
                slot.stage = "transform"
                self._note_stage()
                async with self._transforming:
                    transform = partial(call_of_user, self._transform, piece.obj)
                    slot.value = await in_worker(transform)
                    size = size_of(slot.value)
                    self._hold(slot, piece.nbytes if size is None else size)
        except Exception as error:  # noqa: BLE001 - raised where the piece would be
            slot.value = None
            slot.error = noted(error, slot.number)
        # Not held here any longer, so that the consumer's reference is the only one.
        slot.piece = None
        self._finish(slot)

    def _hold(self, slot: Slot, nbytes: int) -> None:
        """Count ``nbytes`` as held for ``slot``."""
        self.room.hold(slot.held, nbytes)
        slot.held = nbytes

    def _finish(self, slot: Slot) -> None:
        """Hand ``slot`` to the consumer, or wait for those before it."""
        slot.is_done = True
        slot.task = None
        if slot.error is not None:
            self._end_after(slot)
        if self._ordered or slot.is_last:
            while self._begun and self._begun[0].is_done:
                self._hand_out(self._begun.popleft())
        else:
            self._begun.remove(slot)
            self._hand_out(slot)
            if self._begun and self._begun[0].is_done:
                # Only the end of the stream waits for others.
                self._hand_out(self._begun.popleft())
        self._begin()

    def _hand_out(self, slot: Slot) -> None:
        self._ready.append(slot)
        if slot.error is not None:
            # As a generator ends after it has raised an error.
            self._ready.append(Slot.last())
        self._note_stage()
        self._is_ready.set()

    def _end_after(self, failed: Slot) -> None:
        """Give up the pieces that are not handed out, since ``failed`` has an error."""
        self._feed.has_all = True
        self._feeding.cancel()
        gone = [*self._waiting]
        self._waiting.clear()
        while self._ordered and self._begun[-1] is not failed:
            gone.append(self._begun.pop())
        if not self._ordered:
            gone += [each for each in self._begun if each is not failed]
            self._begun = deque([failed])
        for slot in gone:
            if slot.task is not None:
                slot.task.cancel()
        self._group.create_task(_closed([each.piece for each in gone if each.piece is not None]))

    def _consume(self, held: int) -> None:
        if not self._is_closed:
            self.room.unconsumed -= 1
            self.room.hold(held, 0)
            self.stages.consumed()
            self._begin()


async def _closed(pieces: list[Piece]) -> None:
    """Close what was opened for ``pieces``; wait for it briefly."""
    pieces = [piece for piece in pieces if piece.is_open]
    if not pieces:
        return

    def close() -> None:
        for piece in pieces:
            piece.close()

    closing = asyncio.ensure_future(in_worker(close))
    await until_done(asyncio.ensure_future(asyncio.wait([closing], timeout=_CLOSING_S)))
