"""Room: the bytes in memory that a chunk takes while it is read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from aioxarray._runtime.budget import Share
    from aioxarray._zarr.stores.servers.turns import TurnAhead


class Content(Protocol):
    """Bytes that are written, and that can be made again."""

    async def make(self) -> None:
        """Make the bytes."""

    def drop(self) -> None:
        """Drop the bytes, because they have no room any more."""


class Room:
    """Bytes of a share of the memory, for a chunk that is read or written, as a context.

    Each attempt of its request takes the bytes when its turn at the server has come, and gives them
    back if it fails. So a request that waits for its server or for another attempt takes no memory
    from others. After an answer, the bytes are held until the context ends.

    A chunk that is written is made in that turn: for the first attempt by the caller, after
    `turn_ahead` in `aioxarray._zarr.stores.servers.turns`, and for others from ``content``.

    Parameters
    ----------
    memory
        The share.
    size
        The number of bytes.
    long
        Whether they are held for unusually long.

    Attributes
    ----------
    size
        The number of bytes.
    is_held
        Whether they are held.
    turn
        A turn that was taken ahead of the request, and that no request has used so far.
    content
        What is written; None if nothing is.
    is_void
        Whether the content was dropped.
    """

    # Attributes of the class as long as they do not change: each chunk that is read has a room.
    is_held = False
    is_void = False
    turn: TurnAhead | None = None
    content: Content | None = None
    _is_kept = False

    def __init__(self, memory: Share, size: int, *, long: bool) -> None:
        self.size = size
        self._memory = memory
        self._long = long

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_held:
            self._memory.release(self.size, long=self._long)
        if self.turn is not None:
            self.turn.give_up()

    async def acquire(self) -> None:
        """Wait for the bytes, unless they are held."""
        if not self.is_held:
            await self._memory.acquire(self.size, long=self._long)
            self.is_held = True

    def take_if_free(self) -> bool:
        """Take the bytes if they are free and no task waits; return whether they are held."""
        if not self.is_held:
            self.is_held = self._memory.take_if_free(self.size, long=self._long)
        return self.is_held

    def release(self) -> None:
        """Give the bytes back, if they are held."""
        if self.is_held:
            self.is_held = False
            self._memory.release(self.size, long=self._long)

    def keep(self) -> None:
        """Hold the bytes until the context ends, even if a request fails."""
        self._is_kept = True

    def failed(self) -> None:
        """Give the bytes back after a failed attempt, unless they are kept."""
        if self._is_kept:
            return
        if self.content is not None:
            self.content.drop()
            self.is_void = True
        self.release()

    async def refill(self) -> None:
        """Make the content again, which was dropped."""
        assert self.content is not None
        await self.content.make()
        self.is_void = False

    def hand_over(self) -> None:
        """Leave it to the caller to release the bytes, which are held."""
        self.is_held = False
