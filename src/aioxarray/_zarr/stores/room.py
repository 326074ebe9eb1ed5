"""Room: the bytes in memory of one answer, from its request until it is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from aioxarray._runtime.budget import Share


class Room:
    """Bytes of a share of the memory, for the answer to one request, as a context.

    Each attempt of the request takes the bytes when its turn at the server has come, and gives them
    back if it fails. So a request that waits for its server or for another attempt takes no memory
    from others. After an answer, the bytes are held until the context ends.

    Parameters
    ----------
    memory
        The share.
    size
        The number of bytes.
    long
        Whether they are held for unusually long.
    """

    __slots__ = ("_is_held", "_long", "_memory", "size")

    def __init__(self, memory: Share, size: int, *, long: bool) -> None:
        self.size = size
        self._memory = memory
        self._long = long
        self._is_held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def acquire(self) -> None:
        """Wait for the bytes, unless they are held."""
        if not self._is_held:
            await self._memory.acquire(self.size, long=self._long)
            self._is_held = True

    def take_if_free(self) -> bool:
        """Take the bytes if they are free and no task waits; return whether they are held."""
        if not self._is_held:
            self._is_held = self._memory.take_if_free(self.size, long=self._long)
        return self._is_held

    def release(self) -> None:
        """Give the bytes back, if they are held."""
        if self._is_held:
            self._is_held = False
            self._memory.release(self.size, long=self._long)

    def hand_over(self) -> None:
        """Leave it to the caller to release the bytes, which are held."""
        self._is_held = False
