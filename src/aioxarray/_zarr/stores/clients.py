"""obstore clients that are read with blocking calls, and the threads that wait for them.

A blocking call cannot be cancelled: its thread waits until the server answers. So each client has a
few threads of its own, and other clients need not wait for them. A client whose server is silent,
or still holds calls that were given up, gets no threads: coroutines read it instead.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as CancelledFuture
from concurrent.futures import Future
from time import perf_counter
from typing import Any, TypeVar

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._runtime.threads.pool import Pool
from aioxarray._zarr.stores.servers.room import Room

T = TypeVar("T")

# Unbounded here: the places in `Client.turns` limit the number of threads.
fetchers = Pool("aioxarray-fetch", math.inf, math.inf)
# A nearby server, which usually answers in milliseconds, has stalled if it is silent this long.
_SILENT_S = 0.5
# How often a read that waits for a turn checks whether the client has stalled.
_LOOK_S = 0.1


class Client:
    """An obstore store, with a budget of threads and the state of its server.

    Attributes
    ----------
    store
        The obstore store itself.
    turns
        Budget of threads that wait for it.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.turns = Budget("fetchers", extra=lambda bound: 1)
        self._lock = threading.Lock()
        self._lost = 0
        self._heard_at = perf_counter()

    @property
    def is_stalled(self) -> bool:
        """Whether the server seems to have stopped answering."""
        if self._lost:
            return True
        return self.turns.in_use > 0 and perf_counter() - self._heard_at > _SILENT_S

    def heard(self) -> None:
        """Record an answer of the server, or the first request after a pause."""
        self._heard_at = perf_counter()

    async def take_turn(self, turns: Share, *, long: bool) -> bool:
        """Wait for a place in ``turns``, a share of the client's budget, unless it is stalled.

        Returns whether the place was acquired.
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
    """The places in budgets that one blocking call holds, from before it starts until it ends.

    Parameters
    ----------
    client
        The client that the call uses.
    requests
        The share in which the call's request has its place.
    memory
        The share in which the call has its memory.
    size
        The bytes that it takes there, for each value that it requests.
    long
        Whether the places are held for unusually long.

    Attributes
    ----------
    requests
        The same share.
    asked_at
        When the call made the request that it waits for, in the loop's time; None between requests.
    """

    def __init__(
        self, client: Client, requests: Share, memory: Share, size: int, *, long: bool
    ) -> None:
        self._client = client
        self.requests = requests
        self._memory = memory
        self._size = size
        self._long = long
        self._loop = asyncio.get_running_loop()
        self.asked_at: float | None = None
        self._is_taken_over = False
        # The retry of a request on the loop, for which the thread waits.
        self._retry: Future[Any] | None = None
        self._lock = threading.Lock()
        self._places: list[tuple[Share, int]] = []
        self._is_lost = False

    def add(self, share: Share, amount: int) -> None:
        """Add a place that was acquired."""
        self._places.append((share, amount))

    def lose(self) -> None:
        """Give the call up, but keep its places except that in the memory: its request goes on.

        While the server is silent no bytes are in memory, and a late answer is dropped.
        """
        with self._lock:
            if not self._places:
                return
            self._is_lost = True
            with self._client._lock:
                self._client._lost += 1
            gone = [place for place in self._places if place[0] is self._memory]
            self._places = [place for place in self._places if place[0] is not self._memory]
            retry = self._retry
        self._release(gone)
        if retry is not None:
            retry.cancel()

    def ask(self, function: Callable[[str], T], key: str) -> T:
        """Return ``function(key)``, a blocking request; in the thread.

        Raises CancelledError if it was taken over meanwhile.
        """
        self.asked_at = self._loop.time()
        try:
            return function(key)
        finally:
            with self._lock:
                self.asked_at = None
                if self._is_taken_over:
                    raise asyncio.CancelledError

    def take_over(self) -> bool:
        """Take the request in flight from the thread, which then does nothing more; on the loop.

        Returns whether there was one.
        """
        with self._lock:
            self._is_taken_over = self.asked_at is not None
            return self._is_taken_over

    def run_in_place(self, ask: Callable[[Share, Room], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop in place of the call's request, and wait for it; in a thread.

        The call's place among the requests and its memory are released for that time: ``ask`` gets
        the share and the room of the request. Raises CancelledError if the call is given up.
        """
        released = [(self.requests, 1), (self._memory, self._size)]
        with self._lock:
            if self._is_lost:
                raise asyncio.CancelledError
            for place in released:
                self._places.remove(place)
            retry = asyncio.run_coroutine_threadsafe(self._in_place(ask), self._loop)
            self._retry = retry
        self._release(released)
        try:
            return retry.result()
        except CancelledFuture:
            raise asyncio.CancelledError from None
        finally:
            self._retry = None

    async def _in_place(self, ask: Callable[[Share, Room], Coroutine[Any, Any, T]]) -> T:
        with Room(self._memory, self._size, long=self._long) as room:
            try:
                result = await ask(self.requests, room)
            except Exception:
                await self._take_back(room)
                raise
            await self._take_back(room)
            return result

    async def _take_back(self, room: Room) -> None:
        """Take over the bytes of ``room``, and acquire the place of the call's next request."""
        await room.acquire()
        await self.requests.acquire(1, long=self._long)
        with self._lock:
            if not self._is_lost:
                self.add(self.requests, 1)
                self.add(self._memory, self._size)
                room.hand_over()
                return
        self.requests.release(1, long=self._long)
        raise asyncio.CancelledError

    def release(self) -> None:
        """Release all places once the call has ended; thread-safe."""
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


# The places of the blocking call that this thread makes.
held_here: contextvars.ContextVar[Held | None] = contextvars.ContextVar(
    "aioxarray_held", default=None
)


class Nearness:
    """Whether a store is nearby, judged by its first answer in a load; used on the I/O loop."""

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._is_near = False

    def tell(self, is_near: bool) -> None:
        """Set whether the store is nearby; called once."""
        self._is_near = is_near
        self._told.set()

    async def within(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for `tell`, and return whether the store is nearby."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            # On a busy loop, `tell` may have been called all the same.
            pass
        return self._is_near


_lock = threading.Lock()
# By the id of the obstore store. An entry lives while a load reads from it or a thread waits.
_clients: weakref.WeakValueDictionary[int, Client] = weakref.WeakValueDictionary()


def client_of(store: Any) -> Client:
    """Return the `Client` of ``store``, an obstore store."""
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
