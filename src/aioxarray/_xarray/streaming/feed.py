"""The iterable of a stream, which a worker thread advances while few of its pieces wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from aioxarray._runtime.threads.cancel_scope import is_cancelled
from aioxarray._runtime.window import Window
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.streaming.pieces import Piece, noted, opened_piece
from aioxarray._xarray.streaming.slots import Slot
from aioxarray._xarray.streaming.source import Number, Position, Source

# Pieces that are known before they may begin, and the parts of stores that they need. Lazy objects
# take some ten KB each, and a part five objects, which each collection of garbage looks at.
_KNOWN = 256
_KNOWN_PARTS = 1 << 13
# Of these, the objects that are opened or open: each may have files.
_OPENING = 16


class Feed:
    """Brings the pieces of a stream, so that enough of them are known before they begin.

    Its methods are called on the I/O loop.

    Parameters
    ----------
    source
        The objects.
    position
        The pieces that the consumer has had.
    window
        Is told the parts of stores that each piece needs.
    most_bytes
        Of pieces whose values are in memory, no more are known than have these bytes.
    allocates
        Whether the pieces are read into arrays that are made for them.
    arrive
        Called in a worker thread with the slot of each piece, in order.

    Attributes
    ----------
    has_all
        Whether the iterable has ended, or has failed.
    """

    def __init__(
        self,
        source: Source,
        position: Position,
        *,
        window: Window,
        most_bytes: int,
        allocates: bool,
        arrive: Callable[[Slot], None],
    ) -> None:
        self._source = source
        self._objects: Iterator[tuple[Number, Any]] = source.objects_from(position)
        self._window = window
        self._most_bytes = most_bytes
        self._allocates = allocates
        self._arrive = arrive
        self.has_all = False
        # How many slots the iterable has made, and how many of them do not wait any more. Of those
        # that wait, the parts of stores that they need, and the bytes that they have in memory.
        self._arrived = 0
        self._begun = 0
        self._parts = 0
        self._bytes = 0
        self._has_room = asyncio.Event()
        self._opening = asyncio.Semaphore(_OPENING)

    async def run(self) -> None:
        """Have the iterable advanced until it ends; wait while enough pieces wait."""
        while not self.has_all:
            await self.until_room()
            await in_worker(self._advance)

    async def until_room(self) -> None:
        """Wait until a further piece may come."""
        while self._is_full():
            self._has_room.clear()
            await self._has_room.wait()

    def _is_full(self) -> bool:
        """Return whether enough pieces wait; in any thread."""
        waiting = self._arrived - self._begun
        return waiting >= _KNOWN or (
            waiting > 0 and (self._parts >= _KNOWN_PARTS or self._bytes >= self._most_bytes)
        )

    def _advance(self) -> None:
        """Advance the iterable, in a worker thread, and pass each object on at once."""
        while not (self.has_all or self._is_full() or is_cancelled()):
            slot = self._next_slot()
            self.has_all = slot.is_last or slot.error is not None
            self._arrive(slot)

    def _next_slot(self) -> Slot:
        slot = Slot(self._arrived, self._source.number)
        self._arrived += 1
        try:
            slot.number, obj = next(self._objects)
            if callable(obj):
                slot.function = obj
            else:
                slot.piece = Piece(obj, allocates=self._allocates)
                self._window.announce(slot.serial, slot.piece.parts)
        except StopIteration:
            slot.is_last = True
        except BaseException as error:  # noqa: BLE001 - raised where the piece would be
            slot.error = noted(error, slot.number)
        return slot

    def waits(self, slot: Slot) -> None:
        """Count a slot, whose piece is known now, among those that wait."""
        if slot.piece is not None:
            self._parts += len(slot.piece.parts)
            self._bytes += slot.piece.present
            slot.stage = "loading"

    def begins(self, slot: Slot) -> None:
        """Count a slot as one that does not wait any more."""
        self._begun += 1
        if slot.piece is not None:
            self._parts -= len(slot.piece.parts)
            self._bytes -= slot.piece.present
        self._has_room.set()

    async def open(self, slot: Slot, function: Callable[[], Any]) -> None:
        """Open the piece of ``slot`` by the user's ``function``, in a worker thread."""
        try:
            async with self._opening:
                opened = partial(opened_piece, function, allocates=self._allocates)
                slot.piece = await in_worker(opened, Piece.close)
                self._window.announce(slot.serial, slot.piece.parts)
                self.waits(slot)
        except Exception as error:  # noqa: BLE001 - raised where the piece would be
            slot.error = noted(error, slot.number)
