"""What a request holds while it is made: its turn at the server, memory, and a place.

It takes them in this order, so that a server which refuses much does not hold up others: requests
that wait for their turn hold neither memory nor a place among the requests of all servers.

Only those that write a chunk which was read before hold memory while they wait. They never wait for
requests that have their turn and wait for memory, because these may wait for that memory; see
`Pace.stand_aside`.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.budget import Share
from aioxarray._zarr.stores.servers.pacing import Pace, pace_of
from aioxarray._zarr.stores.servers.room import Room

if TYPE_CHECKING:
    from aioxarray._zarr.stores.request import Request
    from aioxarray._zarr.stores.retries.attempts import Attempts


def place(
    request: Request, places: Share, *, long: bool, room: Room | None = None
) -> AbstractAsyncContextManager[None]:
    """Return a context that waits for a place in ``places``, and holds it while it is open.

    Before that, under "auto", it waits for the request's turn at its server, and then for the bytes
    of ``room``. If there was an error, the bytes are given back at the end, unless they are kept.
    """
    pace = pace_of(request.store, places)
    if pace is not None:
        return _Turn(pace, places, request.attempts, long=long, room=room)
    return places.hold(long=long) if room is None else _InRoom(places, room, long=long)


def has_place_now(request: Request, places: Share, *, long: bool, room: Room | None) -> bool:
    """Take the bytes of ``room`` and a place in ``places`` if both are free at once.

    Returns whether they were. False under "auto", where a request needs its turn, too.
    """
    if pace_of(request.store, places) is not None:
        return False
    if room is not None and (room.is_void or not room.take_if_free()):
        return False
    # Bytes that were taken stay with the room: it then waits for a place, as in `_InRoom`.
    return places.acquire_if_free(long=long)


@dataclass(frozen=True, slots=True)
class TurnAhead:
    """A turn that was taken ahead of its request."""

    pace: Pace
    era: int
    loop: asyncio.AbstractEventLoop

    def give_up(self) -> None:
        """End the turn without a request."""
        self.pace.leave(self.era, self.loop, None, answered=False)


async def turn_ahead(store: Any, places: Share | None, room: Room) -> None:
    """Wait for the turn of a request to ``store`` that is made later, and the bytes of ``room``.

    The first request with ``room`` uses the turn.
    """
    pace = pace_of(store, places)
    if pace is None or places is None:
        if not room.take_if_free():
            await room.acquire()
        return
    loop = asyncio.get_running_loop()
    era = pace.turn_now(loop.time())
    if era is None:
        era = await pace.turn(places, again=False, needs_memory=True)
    if not room.take_if_free():
        await pace.stand_aside(era, room)
    room.turn = TurnAhead(pace, era, loop)


class _InRoom:
    """A context in which a request has the bytes of its room, and a place."""

    __slots__ = ("_long", "_places", "_room")

    def __init__(self, places: Share, room: Room, *, long: bool) -> None:
        self._places = places
        self._room = room
        self._long = long

    async def __aenter__(self) -> None:
        room = self._room
        if not room.take_if_free():
            await room.acquire()
        try:
            if room.is_void:
                await room.refill()
            await self._places.acquire(long=self._long)
        except BaseException:
            room.failed()
            raise

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        self._places.release(long=self._long)
        if error is not None:
            self._room.failed()


class _Turn:
    """A context in which a request has its turn at its server, its room, and a place."""

    __slots__ = ("_attempts", "_era", "_long", "_loop", "_pace", "_places", "_room")

    def __init__(
        self,
        pace: Pace,
        places: Share,
        attempts: Attempts | None,
        *,
        long: bool,
        room: Room | None,
    ) -> None:
        self._pace = pace
        self._places = places
        self._attempts = attempts
        self._long = long
        self._room = room

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._era = await self._take_turn()
        room = self._room
        if room is not None and not room.take_if_free():
            await self._pace.stand_aside(self._era, room)
        try:
            if room is not None and room.is_void:
                await room.refill()
            await self._places.acquire(long=self._long)
        except BaseException as error:
            if room is not None:
                room.failed()
            self._pace.leave(self._era, self._loop, error, answered=False)
            raise

    async def _take_turn(self) -> int:
        """Wait for the turn; return its era."""
        room = self._room
        if room is not None and room.turn is not None:
            ahead: TurnAhead = room.turn
            room.turn = None
            return ahead.era
        era = self._pace.turn_now(self._loop.time())
        if era is not None:
            return era
        needs_memory = room is not None and not room.is_held
        if self._attempts is None:
            return await self._pace.turn(self._places, again=False, needs_memory=needs_memory)
        try:
            async with asyncio.timeout(self._attempts.left_s):
                return await self._pace.turn(self._places, again=True, needs_memory=needs_memory)
        except TimeoutError:
            raise TimeoutError("the server had no room for another attempt in time") from None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._places.release(long=self._long)
        if error is not None and self._room is not None:
            self._room.failed()
        # A coroutine that was never finished may be closed in any thread.
        here = None if kind is GeneratorExit else self._loop
        self._pace.leave(self._era, here, error)
