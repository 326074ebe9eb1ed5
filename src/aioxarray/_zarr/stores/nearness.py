"""Whether a store is close by, found out once in a load, by the time of its first answer."""

from __future__ import annotations

import asyncio


class Nearness:
    """What the reads of one load know of a store's distance; on the I/O loop."""

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._is_near = False

    def tell(self, is_near: bool) -> None:
        """Say whether the store is close by, once."""
        self._is_near = is_near
        self._told.set()

    async def within(self, seconds: float) -> bool:
        """Say whether the store is close by; one that has not answered in so long is not."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            # On a busy loop the answer may be here all the same.
            pass
        return self._is_near
