"""What reads may use: requests, bytes, threads and what is kept, shared by all of the process."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Semaphore
from typing import Self, TypeVar

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.cache import Cache
from aioxarray._runtime.threads.pool import Pool, usable_cores
from aioxarray._zarr.stores.clients import FETCHERS, Client, Held, Nearness, fetchers
from aioxarray.config import cache_limit, memory_limit, request_limit, thread_count

T = TypeVar("T")

# How long a plain call waits for others to let go of `fetching`; then it is one for a coroutine.
_PATIENCE_S = 0.1
# To fetch and decode more bytes than this takes longer than a round trip to most stores.
_LONG_BYTES = 4 << 20


def is_long(size: int) -> bool:
    """Say whether who has ``size`` bytes in flight holds places for much longer than others."""
    return size > _LONG_BYTES


def _requests_apart(bound: float) -> float:
    # Of very few places none is kept: that would slow down large chunks by a third or more.
    return 0 if math.isinf(bound) or bound < 4 else max(1, bound // 8)


def _bytes_beside(bound: float) -> float:
    # Not a part of the bound: one chunk less of those that just fit would be in flight.
    return 0 if math.isinf(bound) else bound / 8


def _one_beside(bound: float) -> float:
    return 1


# One of each for the process: what limits means only something when everything counts. In each,
# small chunks need not wait until large ones have arrived and are decoded.
requests = Budget("requests", apart=_requests_apart)
memory = Budget("bytes", beside=_bytes_beside)
threads = Budget("threads", beside=_one_beside)
# Plain calls that wait for servers; those of one client are bounded besides.
fetching = Budget("fetchers", beside=_one_beside)
decoders = Pool("aioxarray-decode", usable_cores())
# Of decoded chunks; see `aioxarray._zarr.stores.sharing`.
cache = Cache()


@dataclass(frozen=True)
class Reading:
    """What the reads of one load share, as a context.

    Attributes
    ----------
    requests
        Places for store requests in flight.
    memory
        Places for bytes of chunks that are fetched or decoded.
    thread_count
        How many threads decode.
    keeps
        Whether decoded chunks are kept in ``cache``.
    nearness
        What the load's reads know of how close stores are, by a store's client.
    turns
        Places for plain calls that wait for a client, by client.
    """

    requests: Share
    memory: Share
    thread_count: int
    keeps: bool
    nearness: dict[Client, Nearness] = field(default_factory=dict)
    turns: dict[Client, Share] = field(default_factory=dict)
    # Besides ``requests`` and ``memory``: small loads have no use for others.
    _opened: list[Share] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.requests.__enter__()
        self.memory.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for share in (*self._opened, self.memory, self.requests):
            share.__exit__()

    def _open(self, share: Share) -> Share:
        self._opened.append(share.__enter__())
        return share

    @property
    def decoders(self) -> Pool:
        """The threads that decode."""
        return decoders

    @cached_property
    def threads(self) -> Share:
        """Places in ``decoders``.

        Whoever has one need not wait in its queue, so that the turns are fair among loads.
        """
        return self._open(threads.share(self.thread_count))

    @cached_property
    def fetching(self) -> Share:
        """Places for plain calls that wait for a server.

        They are at most half of those for requests: a call that was given up keeps its own until
        the server lets go of it.
        """
        return self._open(fetching.share(self.requests.bound / 2))

    @cached_property
    def decoding(self) -> Semaphore:
        """Taken by those who decode in other threads, so that no more than ``thread_count`` do."""
        return Semaphore(self.thread_count)

    def is_wanted(self) -> bool:
        """Say whether others wait for what this load's threads have; from any thread."""
        return self.decoders.has_queue or any(
            share.is_wanted() for share in (self.threads, self.memory, self.requests)
        )

    async def in_thread(
        self,
        function: Callable[[], T],
        size: int,
        stop: Callable[[], object],
        *,
        alone: bool = False,
    ) -> T:
        """Await ``function()`` in a decoding thread, with a request and ``size`` bytes in flight.

        ``alone`` keeps the other decoding threads free of such work meanwhile.

        Cancelling calls ``stop`` and waits for the end of ``function``.
        """
        count = self.thread_count if alone else 1
        long = is_long(size)
        # Popped: whoever comes first lets go, the thread or, where none could be had, the task.
        held: deque[tuple[Share, int]] = deque()

        def let_go() -> None:
            while held:
                share, amount = held.pop()
                share.release(amount, long=long)

        def work() -> T:
            try:
                return function()
            finally:
                let_go()

        try:
            # The thread first: places that are held while waiting for one would be wasted.
            for share, amount in (
                (self.threads, count),
                (self.memory, size),
                (self.requests, 1),
            ):
                await share.acquire(amount, long=long)
                held.append((share, amount))
        except BaseException:
            let_go()
            raise
        try:
            return await decoders.run_to_end(work, stop, long=long)
        finally:
            let_go()

    def can_fetch(self, client: Client) -> bool:
        """Say whether threads may wait for ``client``; see `fetch`."""
        return self.fetching.bound >= 1 and not client.is_stalled

    async def fetch(
        self, client: Client, function: Callable[[], T], size: int, stop: Callable[[], object]
    ) -> T | None:
        """Await ``function()`` in a thread that waits for ``client``, one request at a time.

        It holds ``size`` bytes. None where the client has stalled, or so many others have that no
        further thread should wait for a server: coroutines can do so, and be cancelled.

        Cancelling calls ``stop`` and returns. The request goes on, and keeps its place until the
        server lets go of it.
        """
        long = is_long(size)
        held = Held(client, long=long)
        try:
            # The thread first: places that are held while waiting for one would be wasted.
            turns = self._turns_of(client)
            if not await client.take_turn(turns, long=long):
                return None
            held.add(turns, 1)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self.fetching.acquire(long=long)
            except TimeoutError:
                held.let_go()
                return None
            held.add(self.fetching, 1)
            for share, amount in ((self.memory, size), (self.requests, 1)):
                await share.acquire(amount, long=long)
                held.add(share, amount)
        except BaseException:
            held.let_go()
            raise

        def work() -> T:
            try:
                return function()
            finally:
                held.let_go()

        try:
            return await fetchers.run_to_end(work, stop, wait=False)
        except asyncio.CancelledError:
            held.lose(self.memory)
            raise
        except BaseException:
            # No thread could be started, if this is not the function's own error.
            held.let_go()
            raise

    def _turns_of(self, client: Client) -> Share:
        turns = self.turns.get(client)
        if turns is None:
            turns = self.turns[client] = self._open(client.turns.share(FETCHERS))
        return turns


def reading(concurrency: int | None = None) -> Reading:
    """Return the shares of one load, by the settings of this moment; to be opened as a context.

    ``concurrency`` is its own limit on requests in flight; None for the setting.
    """
    count = thread_count()
    decoders.resize(count)
    kept = cache_limit()
    cache.resize(kept)
    places = requests.share(request_limit(concurrency))
    return Reading(places, memory.share(memory_limit()), count, kept > 0)
