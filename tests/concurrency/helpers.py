"""What the tests of concurrency share: datasets in stores, states to wait for and to compare."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

from aioxarray._runtime.loops import io_loop, run_blocking
from aioxarray._zarr.stores import grants, sharing
from aioxarray._zarr.stores.observing.observers import Observer, observed
from aioxarray.testing import RecordingStore, Request
from aioxarray.testing._gate import Gate
from tests.samples import opened

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

# Only a bug waits this long.
PATIENCE_S = 30.0


def plain(variables: int, chunks: int, size: int = 8) -> xr.Dataset:
    """Return ``variables`` of ``chunks`` chunks of ``size`` numbers, in memory."""
    length = chunks * size
    ds = xr.Dataset(
        {f"v{i}": ("x", np.arange(length) + i * length) for i in range(variables)},
    )
    for variable in ds.variables.values():
        variable.encoding["chunks"] = (size,)
    return ds


def written(variables: int, chunks: int, size: int = 8, shard: int | None = None) -> MemoryStore:
    """Return a store that holds `plain`; the keys are ``v0/c/0`` and so on.

    With ``shard``, in shards of so many numbers.
    """
    ds = plain(variables, chunks, size)
    if shard is not None:
        for variable in ds.variables.values():
            variable.encoding["shards"] = (shard,)
    store = MemoryStore()
    ds.to_zarr(store, zarr_format=3, consolidated=False)
    return store


def lazily(store: Store) -> xr.Dataset:
    """Open what is in ``store`` by xarray's ordinary function."""
    return opened(store, consolidated=False)


def same(ds: xr.Dataset, variables: int, chunks: int, size: int = 8) -> None:
    """Assert that ``ds`` is in memory and holds `plain`."""
    assert all(variable._in_memory for variable in ds.variables.values())
    xr.testing.assert_identical(ds, plain(variables, chunks, size))


class CompletionStore(RecordingStore):
    """Tells, besides counting, when requests for chunks have completed."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        # Holds no key that there is.
        self._completions = Gate("/")

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        result = await super()._request(request, send)
        # Nothing is held here; the arrival is what counts.
        await self._completions.passage(request.key)
        return result

    async def completed(self, count: int, glob: str = "*/c/*") -> None:
        """Wait until ``count`` requests have completed since the store was made."""
        await self._completions.arrival(glob, count)


class _Followers(Observer):
    """An observer that waits for the number of chunks that loads follow."""

    def __init__(self) -> None:
        self._joined = threading.Condition()

    def shared(self, part: Hashable) -> None:
        with self._joined:
            self._joined.notify_all()

    def wait(self, count: int) -> None:
        with self._joined:
            enough = self._joined.wait_for(
                lambda: sharing.statistics().followers >= count, PATIENCE_S
            )
        assert enough, sharing.statistics()


async def followed(count: int) -> None:
    """Wait until loads follow ``count`` chunks that others are reading."""
    with observed(followers := _Followers()):
        await anyio.to_thread.run_sync(followers.wait, count)


def tasks_on_io_loop() -> set[asyncio.Task[Any]]:
    """Return the tasks that run on the I/O loop, whatever thread asks."""

    async def tasks() -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    return run_blocking(tasks)


def assert_idle(tasks_before: set[asyncio.Task[Any]]) -> None:
    """Assert that no load has left anything behind: places taken, shares open, tasks."""
    for budget in (grants.requests, grants.memory, grants.threads, grants.fetching):
        now = budget.statistics()
        assert (now.in_use, now.waiting, now.shares) == (0, 0, 0)
    left = tasks_on_io_loop() - tasks_before
    assert not left, left


def io_thread() -> int:
    """Return the identifier of the I/O loop's thread."""

    async def ident() -> int:
        return threading.get_ident()

    assert io_loop() is not None
    return run_blocking(ident)


def all_known(pieces: Iterable[xr.Dataset]) -> Iterator[Any]:
    """Yield an empty piece, and then ``pieces``; none begins before all have arrived."""
    have_arrived = threading.Event()

    def empty() -> xr.Dataset:
        assert have_arrived.wait(PATIENCE_S)
        return xr.Dataset()

    yield empty
    yield from pieces
    have_arrived.set()
