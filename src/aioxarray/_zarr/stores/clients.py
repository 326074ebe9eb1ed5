"""The clients of stores that are read by plain calls, and the threads that wait for them.

A plain call cannot be cancelled: its thread waits for as long as the server likes. So each client
has a few threads of its own, which can keep nobody else waiting, and none while it is silent or
calls that were given up still wait for it: then it is read by coroutines.
"""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from time import perf_counter
from typing import Any

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.pool import Pool

# Threads that wait for one client. More do not carry more requests.
FETCHERS = 8
# As many as have turns; a thread is started for who has one and finds none idle.
fetchers = Pool("aioxarray-fetch", math.inf, math.inf)
# Of servers close by, which answer in milliseconds, one that is silent for so long has stalled.
_SILENT_S = 0.5
# How often those who wait for a turn look.
_LOOK_S = 0.1


class Client:
    """A store's client, as obstore has it, and what is known of its server.

    Attributes
    ----------
    store
        The client itself.
    turns
        Places for threads that wait for it.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.turns = Budget("fetchers", beside=lambda bound: 1)
        self._lock = threading.Lock()
        self._lost = 0
        self._heard_at = perf_counter()

    @property
    def is_stalled(self) -> bool:
        """Whether threads wait for it in vain, as far as can be told."""
        if self._lost:
            return True
        return self.turns.in_use > 0 and perf_counter() - self._heard_at > _SILENT_S

    def heard(self) -> None:
        """Note that it has answered, or that something has been asked of it after a pause."""
        self._heard_at = perf_counter()

    async def take_turn(self, turns: Share, *, long: bool) -> bool:
        """Wait for a place in ``turns``, a share of its own; say whether there was one.

        There is none while it is stalled.
        """
        while not self.is_stalled:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await turns.acquire(long=long)
            except TimeoutError:
                continue
            if self.turns.in_use == 1:
                self.heard()
            return True
        return False


class Held:
    """What one plain call has of the budgets, from before it begins until it has ended."""

    def __init__(self, client: Client, *, long: bool) -> None:
        self._client = client
        self._long = long
        self._lock = threading.Lock()
        self._places: list[tuple[Share, int]] = []
        self._is_lost = False

    def add(self, share: Share, amount: int) -> None:
        """Count a place that was taken."""
        self._places.append((share, amount))

    def lose(self, memory: Share) -> None:
        """Give the call up, whose request goes on: it keeps all but its places in ``memory``.

        No bytes are there while a server is silent, and what still comes is dropped.
        """
        with self._lock:
            if not self._places:
                return
            self._is_lost = True
            with self._client._lock:
                self._client._lost += 1
            gone = [place for place in self._places if place[0] is memory]
            self._places = [place for place in self._places if place[0] is not memory]
        self._release(gone)

    def let_go(self) -> None:
        """Let go of all; to be called when the call has ended, from any thread."""
        with self._lock:
            places, self._places = self._places, []
            if self._is_lost:
                self._is_lost = False
                with self._client._lock:
                    self._client._lost -= 1
        self._release(places)

    def _release(self, places: list[tuple[Share, int]]) -> None:
        for share, amount in reversed(places):
            share.release(amount, long=self._long)


class Nearness:
    """Whether a store is close by, as the first answer in a load has shown; on the I/O loop."""

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


_lock = threading.Lock()
# By the address of obstore's client. They live while a load reads of them, or a thread waits.
_clients: weakref.WeakValueDictionary[int, Client] = weakref.WeakValueDictionary()


def client_of(store: Any) -> Client:
    """Return what is known of ``store``, a client of obstore's."""
    with _lock:
        client = _clients.get(id(store))
        if client is None:
            client = _clients[id(store)] = Client(store)
        return client


@after_fork
def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _clients.clear()
