"""Process-wide limits on reads: requests in flight, bytes in memory, threads, and the cache."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Semaphore
from typing import Self, TypeVar

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.cache import Cache
from aioxarray._runtime.crew import Crew
from aioxarray._runtime.system.cores import usable_cores
from aioxarray._runtime.system.old_objects import LeftOut, old_objects
from aioxarray._runtime.threads.pool import Pool
from aioxarray._runtime.window import Window
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.clients import Client, Held, Nearness, fetchers, held_here
from aioxarray._zarr.stores.retries.silence import SilentCall
from aioxarray._zarr.stores.servers.pacing import pace_of, request_share
from aioxarray._zarr.stores.servers.room import Room
from aioxarray.config import Concurrency, cache_limit, is_hedging, memory_limit, thread_count

T = TypeVar("T")


def is_long(size: int) -> bool:
    """Return whether a read or write of ``size`` bytes holds its places for unusually long."""
    return size > tuning.LONG_BYTES


def _reserved_requests(bound: float) -> float:
    # With very few places, none is reserved: that would slow large chunks by a third or more.
    return 0 if math.isinf(bound) or bound < 4 else max(1, bound // 8)


def _extra_bytes(bound: float) -> float:
    # On top of the bound: a part of it would mean one chunk less in flight if they just fit.
    return 0 if math.isinf(bound) else bound / 8


def _one_extra(bound: float) -> float:
    return 1


# One of each per process, since a limit only works if everything counts towards it. In each of
# them, small chunks need not wait until large ones have arrived and are decoded.
requests = Budget("requests", reserved=_reserved_requests, begins=True)
memory = Budget("bytes", extra=_extra_bytes)
threads = Budget("threads", extra=_one_extra)
# Threads in blocking calls to servers; `Client.turns` also limits the threads of each client.
fetching = Budget("fetchers", extra=_one_extra)
decoders = Pool("aioxarray-decode", usable_cores())
# Decoded chunks; see `aioxarray._zarr.stores.sharing`.
cache = Cache()


@dataclass(frozen=True)
class Grants:
    """The shares of the process-wide budgets that the reads of one load use, as a context.

    Attributes
    ----------
    requests
        Share of the requests in flight.
    memory
        Share of the bytes of chunks that are being fetched or decoded.
    thread_count
        The number of decoding threads.
    keeps
        Whether decoded chunks are kept in ``cache``.
    window
        Keeps decoded chunks for known reads beside this one; None if there are none.
    nearness
        For each client, whether the load has found it to be nearby.
    turns
        For each client, the load's share of the threads in blocking calls to it.
    """

    requests: Share
    memory: Share
    thread_count: int
    keeps: bool
    window: Window | None = None
    nearness: dict[Client, Nearness] = field(default_factory=dict)
    turns: dict[Client, Share] = field(default_factory=dict)
    # Other shares, which are opened on first use because small loads do not need them.
    _opened: list[Share] = field(default_factory=list)
    # The chunks that are expected so far, and the context of a load with very many of them.
    _expected: list[int] = field(default_factory=lambda: [0])
    _left_out: list[LeftOut] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.requests.__enter__()
        self.memory.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for share in (*self._opened, self.memory, self.requests):
            share.__exit__()
        for each in self._left_out:
            each.__exit__()

    def _open(self, share: Share) -> Share:
        self._opened.append(share.__enter__())
        return share

    def expect(self, chunks: int) -> None:
        """Prepare for ``chunks`` more chunks: with very many, garbage collections are kept short.

        Those of a stream do not count, which may go on for days.
        """
        self._expected[0] += chunks
        many = self._expected[0] >= tuning.MANY_CHUNKS
        if many and not self._left_out and self.window is None:
            self._left_out.append(old_objects.left_out().__enter__())

    @property
    def shares(self) -> bool:
        """Whether other reads need the same chunks so often that those at hand are shared, too."""
        return self.keeps or self.window is not None

    @cached_property
    def crew(self) -> Crew:
        """The workers that make requests by coroutines: as many as may be in flight."""
        return Crew(self.requests.bound)

    @property
    def decoders(self) -> Pool:
        """The pool of decoding threads."""
        return decoders

    @cached_property
    def threads(self) -> Share:
        """Share of the threads of ``decoders``.

        Holding a place means not waiting in the pool's queue, which makes waiting fair among loads.
        """
        return self._open(threads.share(self.thread_count))

    @cached_property
    def fetching(self) -> Share:
        """Share of the threads in blocking calls to servers.

        It is half of the share of requests, because a call that was given up keeps its place until
        the server answers.
        """
        return self._open(fetching.share(self.requests.bound / 2))

    @cached_property
    def decoding(self) -> Semaphore:
        """Limits decoding in other threads to ``thread_count`` of them."""
        return Semaphore(self.thread_count)

    @property
    def fetcher_count(self) -> int:
        """The most threads in blocking calls to one client, which then decode what they fetched.

        A few more than decode at once: the others wait for answers.
        """
        return max(tuning.FETCHERS, self.thread_count + self.thread_count // 2)

    def room(self, size: int) -> Room:
        """Return the room for an answer that takes ``size`` bytes, to open as a context."""
        return Room(self.memory, size, long=is_long(size))

    def is_wanted(self) -> bool:
        """Return whether other work waits for places that this load's threads hold; thread-safe."""
        return self.decoders.has_queue or any(
            share.is_wanted() for share in (self.threads, self.memory, self.requests)
        )

    async def in_thread(
        self,
        function: Callable[[], T],
        size: int,
        stop: Callable[[], object],
        *,
        exclusive: bool = False,
    ) -> T:
        """Await ``function()`` in a decoding thread, holding one request and ``size`` bytes.

        With ``exclusive``, the call takes the places of all decoding threads, so that no other such
        call runs beside it. ``function`` runs in the context of the caller. Cancelling calls
        ``stop`` and waits for its end.
        """
        count = self.thread_count if exclusive else 1
        long = is_long(size)
        # Each place is popped, so that it is released once: by the thread or, failing that, here.
        held: deque[tuple[Share, int]] = deque()

        def release() -> None:
            while held:
                share, amount = held.pop()
                share.release(amount, long=long)

        context = contextvars.copy_context()

        def work() -> T:
            try:
                return context.run(function)
            finally:
                release()

        try:
            # The thread first: other places would be held in vain while waiting for one.
            for share, amount in (
                (self.threads, count),
                (self.memory, size),
                (self.requests, 1),
            ):
                await share.acquire(amount, long=long)
                held.append((share, amount))
        except BaseException:
            release()
            raise
        try:
            return await decoders.run_to_end(work, stop, long=long)
        finally:
            release()

    def can_fetch(self, client: Client) -> bool:
        """Return whether threads may wait for ``client``; see `fetch`."""
        # A thread cannot take the first of two answers, as the setting ``hedge`` wants.
        if self.fetching.bound < 1 or client.is_stalled or is_hedging():
            return False
        # Nor can it be cancelled while it waits for its turn at a server that refuses requests.
        pace = pace_of(client.store, self.requests)
        return pace is None or not pace.is_bounded

    async def fetch(
        self, client: Client, function: Callable[[], object], size: int, stop: Callable[[], object]
    ) -> bool:
        """Await ``function()``, which makes one request at a time, in a thread for ``client``.

        The call holds ``size`` bytes, and runs in the context of the caller. Returns False if the
        client has stalled, or if no place in `fetching` is free: then coroutines should make the
        requests, since they can be cancelled.

        Cancelling calls ``stop`` and returns at once. A request in flight continues, and keeps its
        places, except those for bytes, until the server answers. So it does if it is silent; then
        this returns False, too, and the thread does nothing more.
        """
        long = is_long(size)
        held = Held(client, self.requests, self.memory, size, long=long)
        try:
            # The thread first: other places would be held in vain while waiting for one.
            turns = self._turns_of(client)
            if not await client.take_turn(turns, long=long):
                return False
            held.add(turns, 1)
            try:
                async with asyncio.timeout(tuning.FETCHER_PATIENCE_S):
                    await self.fetching.acquire(long=long)
            except TimeoutError:
                held.release()
                return False
            held.add(self.fetching, 1)
            for share, amount in ((self.memory, size), (self.requests, 1)):
                await share.acquire(amount, long=long)
                held.add(share, amount)
        except BaseException:
            held.release()
            raise

        context = contextvars.copy_context()
        context.run(held_here.set, held)

        def work() -> None:
            try:
                context.run(function)
            finally:
                held.release()

        silence = SilentCall(client.store, held, size)

        def stop_unless_silent() -> None:
            if not silence.is_taken_over:
                stop()

        try:
            with silence:
                await fetchers.run_to_end(work, stop_unless_silent, wait=False)
        except asyncio.CancelledError:
            held.lose()
            if silence.undo():
                return False
            raise
        except BaseException:
            # Perhaps no thread could be started; otherwise the function has released everything.
            held.release()
            raise
        return True

    def _turns_of(self, client: Client) -> Share:
        turns = self.turns.get(client)
        if turns is None:
            turns = self.turns[client] = self._open(client.turns.share(self.fetcher_count))
        return turns


def open_grants(
    concurrency: Concurrency | None = None,
    *,
    window: Window | None = None,
    most_bytes: float = math.inf,
) -> Grants:
    """Return the shares of one load, with the current configuration, to open as a context.

    Parameters
    ----------
    concurrency
        Its own limit on requests in flight; None for the configured one.
    window
        Keeps decoded chunks for known reads beside this one; None if there are none.
    most_bytes
        Its own limit on the bytes of chunks that are being fetched or decoded.
    """
    count = thread_count()
    decoders.resize(count)
    kept = cache_limit()
    cache.resize(kept)
    places = request_share(requests, concurrency)
    most = memory.share(min(memory_limit(), most_bytes))
    return Grants(places, most, count, kept > 0, window)
