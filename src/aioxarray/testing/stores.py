"""Wrappers for any zarr store that count, delay, hold or fail requests.

They compose; the outermost sees a request first::

    RecordingStore(LatencyStore(MemoryStore(), 0.05))
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from aioxarray.testing._gate import Gate
from aioxarray.testing._log import Request, RequestLog
from aioxarray.testing._wrapper import RequestStore

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import BufferPrototype

__all__ = ["FaultyStore", "GatedStore", "LatencyStore", "RecordingStore"]

T = TypeVar("T")


class RecordingStore(RequestStore):
    """Store wrapper that counts all requests, across all copies that zarr makes of it.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store that answers.

    Attributes
    ----------
    log : RequestLog
        The requests, and how many were in flight.

    Examples
    --------
    >>> import xarray as xr
    >>> from zarr.storage import MemoryStore
    >>> store = RecordingStore(MemoryStore())
    >>> _ = xr.Dataset({"a": ("x", [1, 2, 3])}).to_zarr(store, consolidated=False)
    >>> store.log.clear()
    >>> _ = xr.open_zarr(store, chunks=None, consolidated=False).load()
    >>> store.log.count("get", "a/c/*")
    1
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.log = RequestLog()

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        with self.log.record(request):
            return await send()


class LatencyStore(RequestStore):
    """Store wrapper that delays each request.

    It waits with `asyncio.sleep` on the loop that runs the request. On the loop of a
    `VirtualClock` this takes no real time, and its length is exact.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store that answers.
    latency_s : float
        Delay of each request in seconds.
    """

    def __init__(self, store: Store, latency_s: float) -> None:
        super().__init__(store)
        self._shared = {"latency_s": latency_s}

    @property
    def latency_s(self) -> float:
        """Delay of each request in seconds. Setting it changes all copies."""
        return self._shared["latency_s"]

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._shared["latency_s"] = seconds

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(self.latency_s)
        return await send()


class GatedStore(RequestStore):
    """Store wrapper that holds each `get` until the test releases it.

    The test and the store's requests may run on different loops in different threads. In a
    glob ``*`` matches ``/`` too.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store that answers.
    keys : str, optional
        Hold requests for keys that match this glob; ``"*/c/*"`` holds the chunks of Zarr v3
        and lets metadata pass.
    methods : sequence of str, optional
        Hold requests of these methods, for example ``("set",)``.

    Examples
    --------
    Let the second chunk arrive first::

        store = GatedStore(MemoryStore(chunks))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load(store))
            await store.requested("t/c/1")
            store.release("t/c/1")
            store.release("t/c/0")
    """

    def __init__(self, store: Store, keys: str = "*", methods: Sequence[str] = ("get",)) -> None:
        super().__init__(store)
        self._gate = Gate(keys)
        self._methods = frozenset(methods)

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.method in self._methods:
            await self._gate.passage(request.key)
        return await send()

    @property
    def waiting(self) -> tuple[str, ...]:
        """The keys held now, in order of arrival; one entry per request."""
        return self._gate.waiting

    async def requested(self, glob: str = "*", count: int = 1) -> None:
        """Wait until matching keys have been requested, held or not, since the gate was built.

        Parameters
        ----------
        glob : str, optional
            The keys to wait for.
        count : int, optional
            The number of requests to wait for.
        """
        await self._gate.arrival(glob, count)

    def wait_requested(self, glob: str = "*", timeout_s: float = 10.0, count: int = 1) -> None:
        """Block this thread until matching keys have been requested.

        Parameters
        ----------
        glob, count
            As for `requested`.
        timeout_s : float, optional
            Give up after this many seconds.

        Raises
        ------
        TimeoutError
            If they were not requested in time. The message lists the held keys.
        """
        self._gate.wait_arrival(glob, count, timeout_s)

    def release(self, glob: str) -> None:
        """Let matching requests pass, both held and future ones."""
        self._gate.set_open(glob, True)

    def release_all(self) -> None:
        """Let all requests pass from now on."""
        self.release("*")

    def hold(self, glob: str = "*") -> None:
        """Hold matching requests from now on; the latest `hold` or `release` of a key counts."""
        self._gate.set_open(glob, False)


class _Faults:
    """Counter of requests, shared by all copies of a `FaultyStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = 0

    def __getstate__(self) -> int:
        return self._seen

    def __setstate__(self, seen: int) -> None:
        self._lock = threading.Lock()
        self._seen = seen

    def next_index(self) -> int:
        with self._lock:
            self._seen += 1
            return self._seen - 1

    def restart(self) -> None:
        with self._lock:
            self._seen = 0


def _never(index: int, request: Request) -> None:
    return None


class FaultyStore(RequestStore):
    """Store wrapper that fails requests, or answers them with damaged bytes.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store that answers the other requests.
    fail : callable
        ``fail(index, request)`` returns the exception to raise instead of the request, or
        ``None``. Requests are numbered from 0 in the order they start. It may be called from
        several threads.
    keys : str, optional
        Only requests for keys that match this glob are numbered and can fail.
    """

    def __init__(
        self,
        store: Store,
        fail: Callable[[int, Request], BaseException | None],
        keys: str = "*",
    ) -> None:
        super().__init__(store)
        self._fail = fail
        self._keys = keys
        self._faults = _Faults()
        self._transform: Callable[[bytes], bytes] | None = None

    @classmethod
    def kth(
        cls,
        store: Store,
        k: int,
        error: BaseException | type[BaseException] = OSError,
        keys: str = "*",
    ) -> FaultyStore:
        """Fail one request: number `k`, counting from 0. Repeating it succeeds.

        Parameters
        ----------
        store : zarr.abc.store.Store
            The store that answers the other requests.
        k : int
            Which request fails.
        error : exception or exception class, optional
            The error to raise.
        keys : str, optional
            Only requests for keys that match this glob are numbered and can fail.
        """

        def fail(index: int, request: Request) -> BaseException | None:
            if index != k:
                return None
            if isinstance(error, BaseException):
                return error
            return error(f"injected failure of request {k}: {request.method} {request.key!r}")

        return cls(store, fail, keys)

    @classmethod
    def corrupt(cls, store: Store, keys: str, transform: Callable[[bytes], bytes]) -> FaultyStore:
        """Damage the bytes that `get` returns.

        Parameters
        ----------
        store : zarr.abc.store.Store
            The store with the good bytes.
        keys : str
            The glob of the keys to damage.
        transform : callable
            Makes bad bytes from good ones, for example ``lambda data: data[:-1]``. For a
            request with a byte range it gets only that part.
        """
        faulty = cls(store, _never, keys)
        faulty._transform = transform
        return faulty

    def restart(self) -> None:
        """Number the next request 0."""
        self._faults.restart()

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if fnmatchcase(request.key, self._keys):
            error = self._fail(self._faults.next_index(), request)
            if error is not None:
                raise error
        return await send()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if value is None or self._transform is None or not fnmatchcase(key, self._keys):
            return value
        return prototype.buffer.from_bytes(self._transform(value.to_bytes()))
