"""What reads may use: requests, bytes, threads and what is kept, shared by all of the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Semaphore
from typing import TypeVar

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.cache import Cache
from aioxarray._runtime.threads import Pool, usable_cores
from aioxarray._zarr.nearness import Nearness
from aioxarray.config import cache_limit, memory_limit, request_limit, thread_count

T = TypeVar("T")

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
fetching = Budget("fetchers", beside=_one_beside)
decoders = Pool("aioxarray-decode", usable_cores())
# For plain calls that wait for a server close by. More do not carry more requests.
FETCHERS = 8
fetchers = Pool("aioxarray-fetch", FETCHERS)
# Of decoded chunks; see `aioxarray._zarr.sharing`.
cache = Cache()


@dataclass(frozen=True)
class Reading:
    """What the reads of one load share.

    Attributes
    ----------
    requests
        Places for store requests in flight.
    memory
        Places for bytes of chunks that are fetched or decoded.
    threads, fetching
        Places in ``decoders`` and ``fetchers``: whoever has one need not wait in their queues,
        so that the turns are fair among loads.
    decoders
        The threads that decode.
    thread_count
        How many they are.
    decoding
        Taken by those who decode in other threads, so that no more than ``thread_count`` do.
    keeps
        Whether decoded chunks are kept in ``cache``.
    nearness
        What the load's reads know of how close stores are, by the ``id`` of a store's client.
    """

    requests: Share
    memory: Share
    threads: Share
    fetching: Share
    decoders: Pool
    thread_count: int
    decoding: Semaphore
    keeps: bool
    nearness: dict[int, Nearness] = field(default_factory=dict)

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
        remote: bool,
        *,
        alone: bool = False,
    ) -> T:
        """Await ``function()`` in a thread, with one request and ``size`` bytes in flight.

        ``alone`` keeps the other decoding threads free of such work meanwhile.

        Cancelling calls ``stop`` and waits for the end of ``function``; if it waits for a server
        (``remote``), which may take long, its places stay taken until then, but nobody waits.
        """
        turns, pool = (self.fetching, fetchers) if remote else (self.threads, decoders)
        count = self.thread_count if alone else 1
        long = is_long(size)
        held: list[tuple[Share, int]] = []

        def let_go() -> None:
            for share, amount in reversed(held):
                share.release(amount, long=long)

        def work() -> T:
            try:
                return function()
            finally:
                let_go()

        try:
            # The thread first: places that are held while waiting for one would be wasted.
            for share, amount in (
                (turns, count),
                (self.memory, size),
                (self.requests, 1),
            ):
                await share.acquire(amount, long=long)
                held.append((share, amount))
        except BaseException:
            let_go()
            raise
        return await pool.run_to_end(work, stop, wait=not remote, long=long)


@contextmanager
def reading(concurrency: int | None = None) -> Iterator[Reading]:
    """Open the shares of one load, by the settings of this moment.

    ``concurrency`` is its own limit on requests in flight; None for the setting.
    """
    count = thread_count()
    decoders.resize(count)
    kept = cache_limit()
    cache.resize(kept)
    with (
        requests.share(request_limit(concurrency)) as places,
        memory.share(memory_limit()) as room,
        threads.share(count) as turns,
        fetching.share(FETCHERS) as fetching_turns,
    ):
        yield Reading(
            places, room, turns, fetching_turns, decoders, count, Semaphore(count), kept > 0
        )
