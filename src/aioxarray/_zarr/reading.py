"""What reads may use: places for requests, bytes and threads, shared by all of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from aioxarray._runtime.budget import Budget, Share
from aioxarray._runtime.threads import Pool, usable_cores
from aioxarray.config import memory_limit, request_limit, thread_count

T = TypeVar("T")

# One of each for the process: what limits means only something when everything counts.
requests = Budget("requests")
memory = Budget("bytes")
threads = Budget("threads")
decoders = Pool("aioxarray-decode", usable_cores())


@dataclass(frozen=True)
class Reading:
    """What the reads of one load share.

    Attributes
    ----------
    requests
        Places for store requests in flight.
    memory
        Places for bytes of chunks that are fetched or decoded.
    threads
        Places in ``decoders``: whoever takes one there without waiting in its queue, so that
        the turns are fair among loads.
    decoders
        The threads that decode.
    thread_count
        How many they are.
    """

    requests: Share
    memory: Share
    threads: Share
    decoders: Pool
    thread_count: int

    async def in_thread(
        self, function: Callable[[], T], size: int, stop: Callable[[], object]
    ) -> T:
        """Await ``function()`` in a thread, with one request and ``size`` bytes in flight.

        Cancelling calls ``stop`` and waits for the end of ``function``.
        """
        # The thread first: places that are held while waiting for one would be wasted.
        async with self.threads.hold(), self.memory.hold(size), self.requests.hold():
            return await self.decoders.run_to_end(function, stop)


@contextmanager
def reading(concurrency: int | None = None) -> Iterator[Reading]:
    """Open the shares of one load, by the settings of this moment.

    ``concurrency`` is its own limit on requests in flight; None for the setting.
    """
    count = thread_count()
    decoders.resize(count)
    with (
        requests.share(request_limit(concurrency)) as places,
        memory.share(memory_limit()) as room,
        threads.share(count) as turns,
    ):
        yield Reading(places, room, turns, decoders, count)
