"""Batching of items that arrive one by one, to handle many of them per hop to a thread."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from aioxarray._runtime.threads.pool import Pool

T = TypeVar("T")


class Batches(Generic[T]):
    """Hands items to worker threads in batches.

    A hop to a thread and back costs more than decoding a small chunk. So while all workers are
    busy, items are queued, and the next hop takes many of them.

    Parameters
    ----------
    pool
        The threads.
    width
        The number of batches that may be in the threads at once.
    max_weight
        A batch is full when the weights of its items reach this sum, so that large items are
        spread over the threads.
    handle
        Handles a batch in a thread, and returns an error, or None, for each item.
    is_long
        Returns whether a batch of the given weight may take unusually long.
    """

    def __init__(
        self,
        pool: Pool,
        width: int,
        max_weight: int,
        handle: Callable[[Sequence[T]], Sequence[Exception | None]],
        is_long: Callable[[int], bool] = lambda weight: False,
    ) -> None:
        self._pool = pool
        self._width = width
        self._max_weight = max_weight
        self._handle = handle
        self._is_long = is_long
        self._gathered: deque[tuple[T, int, asyncio.Future[None]]] = deque()
        self._running = 0

    async def add(self, item: T, weight: int) -> None:
        """Have ``item`` handled, wait until that is done, and raise its error, if any."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gathered.append((item, weight, ended))
        if self._running < self._width:
            self._running += 1
            self._start()
        await ended

    def _start(self) -> None:
        items: list[T] = []
        ends: list[asyncio.Future[None]] = []
        weight = 0
        while self._gathered and weight < self._max_weight:
            item, item_weight, ended = self._gathered.popleft()
            if ended.cancelled():
                continue
            items.append(item)
            ends.append(ended)
            weight += item_weight
        if not items:
            self._running -= 1
            return
        batch = self._pool.start(lambda: self._handle(items), long=self._is_long(weight))
        batch.add_done_callback(functools.partial(self._end, ends))

    def _end(
        self, ends: list[asyncio.Future[None]], batch: asyncio.Future[Sequence[Exception | None]]
    ) -> None:
        failure = batch.exception()
        errors = [failure] * len(ends) if failure is not None else batch.result()
        for ended, error in zip(ends, errors, strict=True):
            if ended.done():
                continue
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)
        self._start()


def one_by_one(handle: Callable[[T], object]) -> Callable[[Sequence[T]], list[Exception | None]]:
    """Return a function that calls ``handle`` for each item of a batch, and returns the errors."""

    def handle_all(items: Sequence[T]) -> list[Exception | None]:
        errors: list[Exception | None] = []
        for item in items:
            try:
                handle(item)
            except Exception as error:  # noqa: BLE001 - raised where the item was added
                errors.append(error)
            else:
                errors.append(None)
        return errors

    return handle_all
