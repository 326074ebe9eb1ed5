"""Sources: stores that are read with blocking calls, in worker threads, instead of coroutines."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zarr.storage import LocalStore, MemoryStore, ObjectStore

from aioxarray._runtime.threads.scratch import scratch
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.clients import client_of, held_here
from aioxarray._zarr.stores.observing.observed_source import ObservedSource
from aioxarray._zarr.stores.observing.observers import listeners
from aioxarray._zarr.stores.request import Request, send, send_again
from aioxarray._zarr.stores.retries.attempts import Attempts
from aioxarray._zarr.stores.servers.hosts import host_of
from aioxarray._zarr.stores.servers.measured import Measured
from aioxarray._zarr.stores.servers.pacing import pace_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from aioxarray._runtime.budget import Share
    from aioxarray._zarr.stores.clients import Held
    from aioxarray._zarr.stores.limited import Check
    from aioxarray._zarr.stores.servers.room import Room

T = TypeVar("T")


# Takes a key and returns its value; None if there is none.
ReadSmall = Callable[[str], Any | None]


class Source(Protocol):
    """A store that is best read with blocking calls."""

    # Whether a read is only a lookup in memory.
    instant: bool
    # Whether a read waits for a server, so that more threads than cores are useful.
    remote: bool

    def read(self, key: str) -> Any | None:
        """Return the value at ``key``, valid until the next call in this thread.

        None if there is none.
        """

    def small_reads(self, most: int) -> AbstractContextManager[ReadSmall]:
        """Open a function that reads values one after the other.

        They usually have at most ``most`` bytes, and stay valid. One of a file may be cut short,
        though hardly ever: then `read` reads it to its end.
        """

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        """Read the value at ``key`` into ``dest``, and return its length.

        None if there is none. If it does not fit, the result is any number larger than ``dest``.
        """


# Takes the start and the end (exclusive) of a byte range, and returns the bytes, valid until the
# next read in this thread. A negative start counts from the end of the value; the end is None then.
# The result is shorter if the value ends before the range does, and None if there is no value.
ReadPart = Callable[[int, int | None], Any | None]


class LocalSource(Source, Protocol):
    """A store whose byte ranges are also best read with blocking calls."""

    def opened(self, key: str) -> AbstractContextManager[ReadPart]:
        """Open a function that reads byte ranges of the value at ``key``."""


def source_of(store: Store, check: Check | None = None) -> LocalSource | ObjectSource | None:
    """Return the source that reads ``store``, or None if its coroutines are the better way.

    A remote source calls ``check`` with each value; see `LimitedStore.get`.
    Types must match exactly: a subclass or a wrapper may change what ``get`` returns.
    """
    local: LocalSource | None = None
    if type(store) is LocalStore:
        local = FileSource(store)
    elif type(store) is MemoryStore:
        local = MemorySource(store)
    if local is not None:
        observers = listeners()
        return ObservedSource(local, store, observers) if observers else local
    if type(store) is ObjectStore:
        return ObjectSource(store, check)
    return None


class MemorySource:
    """A source for a memory store: buffers in a dictionary."""

    instant = True
    remote = False

    def __init__(self, store: MemoryStore) -> None:
        # Private, because zarr 3.1 has no synchronous read (zarr 3.2 has ``get_sync``).
        self._buffers = store._store_dict

    def read(self, key: str) -> Any | None:
        buffer = self._buffers.get(key)
        return None if buffer is None else buffer.as_numpy_array()

    @contextmanager
    def small_reads(self, most: int) -> Iterator[ReadSmall]:
        def read(key: str) -> Any | None:
            data = self.read(key)
            return None if data is None else data.data

        yield read

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        return _put(self.read(key), dest)

    @contextmanager
    def opened(self, key: str) -> Iterator[ReadPart]:
        data = self.read(key)
        yield lambda start, stop: None if data is None else data[start:stop]


class FileSource:
    """A source for a local store: files in a directory.

    They usually come from the page cache, so that reading is CPU-bound, as decoding is: more
    threads than cores would only slow each other down.
    """

    instant = False
    remote = False

    def __init__(self, store: LocalStore) -> None:
        self._root = os.path.join(store.root, "")
        self._first_read = tuning.FIRST_READ_BYTES

    def read(self, key: str) -> Any | None:
        return self._from_file(key, self._read_growing)

    def _read_growing(self, file: int) -> Any:
        # Most chunks are read by one call.
        buffer = scratch("file", self._first_read)
        count = _fill(file, buffer)
        if count == len(buffer):
            size = max(os.fstat(file).st_size, count) + 1
            larger = scratch("large file", size)
            larger[:count] = buffer
            count += _fill(file, larger[count:], count)
            buffer = larger
            # The chunks of an array usually have similar lengths.
            self._first_read = min(size + size // 4, tuning.LONGEST_FIRST_READ_BYTES)
        return buffer[:count].data

    @contextmanager
    def small_reads(self, most: int) -> Iterator[ReadSmall]:
        def read(file: int) -> bytes:
            data = more = os.read(file, most + 1)
            # If it is shorter, the file has ended. Another read to see that takes a microsecond.
            while more and len(data) > most:
                more = os.read(file, len(data))
                data = data + more if more else data
            return data

        yield lambda key: self._from_file(key, read)

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        return self._from_file(key, lambda file: _copy(file, dest.reshape(-1)))

    def _from_file(self, key: str, read: Callable[[int], T]) -> T | None:
        """Return ``read(file)`` for the file at ``key``; None if there is none."""
        file = _open(self._root + key)
        if file is None:
            return None
        try:
            return read(file)
        except IsADirectoryError:
            return None
        finally:
            os.close(file)

    @contextmanager
    def opened(self, key: str) -> Iterator[ReadPart]:
        file = _open(self._root + key)
        if file is None:
            yield lambda start, stop: None
            return
        try:
            size = os.fstat(file).st_size

            def read(start: int, stop: int | None) -> Any | None:
                first = max(0, size + start) if start < 0 else start
                last = size if stop is None else min(stop, size)
                buffer = scratch("part", max(0, last - first))
                try:
                    return buffer[: _fill(file, buffer, first)].data
                except IsADirectoryError:
                    return None

            yield read
        finally:
            os.close(file)


class ObjectSource:
    """A source for an object store: obstore's blocking calls.

    In a few threads, these make four times as many requests per second as its coroutines, as long
    as the server is nearby; for a distant server, hundreds of coroutines are faster.

    Attributes
    ----------
    client
        The process-wide state of the store's client.
    shortest_s
        The shortest time in seconds that `read` has taken. It is measured in the waiting thread,
        because a busy event loop would notice the answer late.
    """

    instant = False
    remote = True

    def __init__(self, store: ObjectStore[Any], check: Check | None = None) -> None:
        self._store = store
        self._check = check
        self.client = client_of(store.store)
        host = host_of(store)
        self._measured = Measured() if host is None else host.measured
        self.shortest_s = math.inf

    def read(self, key: str) -> Any | None:
        held = held_here.get()
        request = Request("get", self._store, key)
        places = None if held is None else held.requests
        pace = pace_of(self._store, places)
        if held is not None and pace is not None and pace.is_bounded:
            return held.run_in_place(partial(self._by_coroutine, request, None))
        begun = monotonic()
        try:
            if pace is None:
                return self._ask(request, held)
            with pace.counted():
                return self._ask(request, held)
        except Exception as error:
            attempts = Attempts(request, places)
            if not attempts.goes_on(error, last=held is None) or held is None:
                raise
        finally:
            self.shortest_s = min(self.shortest_s, monotonic() - begun)
            self.client.heard()
        return held.run_in_place(partial(self._by_coroutine, request, attempts))

    def _ask(self, request: Request, held: Held | None) -> Any | None:
        with request:
            key = request.key
            begun = monotonic()
            data = self._get(key) if held is None else held.ask(self._get, key)
            request.nbytes = 0 if data is None else len(data)
            self._measured.answered(begun, monotonic(), request.nbytes)
            if data is not None and self._check is not None:
                self._check(data)
            return data

    def _get(self, key: str) -> Any | None:
        try:
            return memoryview(obstore().get(self.client.store, key).bytes())
        except _MISSING:
            return None

    async def _by_coroutine(
        self, request: Request, attempts: Attempts | None, places: Share, room: Room
    ) -> Any | None:
        """Make a request of a thread with coroutines, which can wait for it.

        ``attempts`` are those that have failed in the thread, if any.
        """

        async def ask() -> Any | None:
            try:
                answer = await obstore().get_async(self.client.store, request.key)
                data = memoryview(await answer.bytes_async())
            except _MISSING:
                return None
            request.nbytes = len(data)
            if self._check is not None:
                self._check(data)
            return data

        if attempts is None:
            return await send(request, places, ask, room.size, room)
        return await send_again(request, places, ask, attempts, room.size, room)

    @contextmanager
    def small_reads(self, most: int) -> Iterator[ReadSmall]:
        yield self.read

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        return _put(self.read(key), dest)


def _put(data: Any | None, dest: NDArray[np.uint8]) -> int | None:
    """Copy ``data`` to ``dest``, if it fits exactly, and return its length."""
    if data is None:
        return None
    if len(data) == dest.size:
        dest.reshape(-1).data[:] = data
    return len(data)


# The errors that zarr takes for a missing chunk.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@cache
def obstore() -> Any:
    """Return the obstore package, which is optional."""
    return importlib.import_module("obstore")


_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def _open(path: str) -> int | None:
    try:
        return os.open(path, _FLAGS)
    except _MISSING:
        return None


def _fill(file: int, buffer: NDArray[np.uint8], first: int = 0) -> int:
    """Read from byte ``first`` until ``buffer`` is full or the file ends; return the count."""
    view = buffer.data
    done = _read(file, view, first)
    while 0 < done < len(view):
        count = _read(file, view[done:], first + done)
        if count == 0:
            break
        done += count
    return done


def _copy(file: int, dest: NDArray[np.uint8]) -> int:
    """Read a file into ``dest``, newly allocated memory, and return the length of the file.

    The kernel is slow to copy into untouched pages: a buffer that stays in the CPU cache halves the
    time. If the file does not fit, any number larger than ``dest`` is returned.
    """
    # One byte more, to detect files that do not fit.
    buffer = scratch("copy", min(dest.size, tuning.COPIED_BYTES) + 1)
    done = 0
    while done <= dest.size:
        count = _fill(file, buffer, done)
        fitting = min(count, dest.size - done)
        dest[done : done + fitting] = buffer[:fitting]
        done += count
        if count < len(buffer):
            break
    return done


if hasattr(os, "preadv"):

    def _read(file: int, view: memoryview, first: int) -> int:
        return os.preadv(file, [view], first)

else:  # Windows

    def _read(file: int, view: memoryview, first: int) -> int:
        os.lseek(file, first, os.SEEK_SET)
        data = os.read(file, len(view))
        view[: len(data)] = data
        return len(data)
