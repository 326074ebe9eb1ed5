"""Reads of stores by plain calls, in the threads that decode."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from aioxarray._runtime.scratch import scratch
from aioxarray._zarr.stores.clients import client_of
from aioxarray._zarr.stores.request import Request, is_observed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from zarr.abc.store import Store

# What is read of a file at once, until one was longer: then it takes a second read.
_FIRST_READ = 64 << 10
# More is not asked for at once because some file was that long.
_LONGEST_FIRST_READ = 4 << 20

# So much stays in a processor's cache for a moment; less takes more calls, each of which gives
# Python's lock away and waits to get it back.
_COPIED_AT_ONCE = 2 << 20


class Source(Protocol):
    """A store that is read best by plain calls."""

    # Reading from it is no more than looking it up.
    instant: bool
    # Reading from it is waiting for a server: more threads than processors are of use.
    remote: bool

    def read(self, key: str) -> Any | None:
        """Return the bytes at ``key``, to be used before the next call in this thread.

        None if there are none.
        """

    def read_small(self, key: str, most: int) -> Any | None:
        """Return the bytes at ``key``, mostly no more than ``most``, in memory of their own.

        None if there are none.
        """

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        """Read the bytes at ``key`` into ``dest``, and return how many there are.

        None if there are none. Where there are more than fit, any larger number.
        """


# Returns the bytes from the first to before the second, to be used before the next read of this
# thread. A negative first counts from the end, and the second is None then. Less bytes where they
# end before; None if there are none at all.
ReadPart = Callable[[int, int | None], Any | None]


class LocalSource(Source, Protocol):
    """A store of which parts of values are read best by plain calls, too."""

    def opened(self, key: str) -> AbstractContextManager[ReadPart]:
        """Give what reads parts of the bytes at ``key``."""


def source_of(store: Store) -> LocalSource | ObjectSource | None:
    """Return how ``store`` is read by plain calls, or None if its coroutines serve it better.

    By exact type: a class derived from one of these, or a wrapper around one, may change what
    ``get`` returns.
    """
    local: LocalSource | None = None
    if type(store) is LocalStore:
        local = FileSource(store)
    elif type(store) is MemoryStore:
        local = MemorySource(store)
    if local is not None:
        return ObservedSource(local, store) if is_observed() else local
    if type(store) is ObjectStore:
        return ObjectSource(store)
    return None


class MemorySource:
    """Buffers in a dictionary."""

    instant = True
    remote = False

    def __init__(self, store: MemoryStore) -> None:
        # Private, as zarr 3.1 has no plain function to read one (zarr 3.2 has ``get_sync``).
        self._buffers = store._store_dict

    def read(self, key: str) -> Any | None:
        buffer = self._buffers.get(key)
        return None if buffer is None else buffer.as_numpy_array()

    def read_small(self, key: str, most: int) -> Any | None:
        data = self.read(key)
        return None if data is None else data.data

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        data = self.read(key)
        if data is None:
            return None
        if len(data) == dest.size:
            dest.reshape(-1)[...] = data
        return len(data)

    @contextmanager
    def opened(self, key: str) -> Iterator[ReadPart]:
        data = self.read(key)
        yield lambda start, stop: None if data is None else data[start:stop]


class FileSource:
    """Files in a directory.

    They come from the page cache, mostly, so that reading is work for a processor like decoding:
    more threads than processors would only get in each other's way.
    """

    instant = False
    remote = False

    def __init__(self, store: LocalStore) -> None:
        self._root = os.path.join(store.root, "")
        self._first_read = _FIRST_READ

    def read(self, key: str) -> Any | None:
        file = _open(self._root + key)
        if file is None:
            return None
        try:
            # Most chunks are read by one call.
            buffer = scratch("file", self._first_read)
            count = _fill(file, buffer)
            if count == len(buffer):
                size = max(os.fstat(file).st_size, count) + 1
                larger = scratch("large file", size)
                larger[:count] = buffer
                count += _fill(file, larger[count:], count)
                buffer = larger
                # The chunks of an array are about as long as each other.
                self._first_read = min(size + size // 4, _LONGEST_FIRST_READ)
            return buffer[:count].data
        except IsADirectoryError:
            return None
        finally:
            os.close(file)

    def read_small(self, key: str, most: int) -> Any | None:
        file = _open(self._root + key)
        if file is None:
            return None
        try:
            data = more = os.read(file, most + 1)
            while more:
                more = os.read(file, max(most + 1, len(data)))
                data = data + more if more else data
            return data
        except IsADirectoryError:
            return None
        finally:
            os.close(file)

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        file = _open(self._root + key)
        if file is None:
            return None
        try:
            return _copy(file, dest.reshape(-1))
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


class ObservedSource:
    """A source at hand whose reads observers learn of.

    Without observers its reads make no `Request`: that costs as much as looking up a small chunk.
    """

    remote = False

    def __init__(self, source: LocalSource, store: Store) -> None:
        self.instant = source.instant
        self._source = source
        self._store = store

    def read(self, key: str) -> Any | None:
        with Request("get", self._store, key) as request:
            data = self._source.read(key)
            request.nbytes = 0 if data is None else len(data)
            return data

    def read_small(self, key: str, most: int) -> Any | None:
        with Request("get", self._store, key) as request:
            data = self._source.read_small(key, most)
            request.nbytes = 0 if data is None else len(data)
            return data

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        with Request("get", self._store, key) as request:
            count = self._source.read_into(key, dest)
            request.nbytes = count or 0
            return count

    @contextmanager
    def opened(self, key: str) -> Iterator[ReadPart]:
        with self._source.opened(key) as read_part:

            def read(start: int, stop: int | None) -> Any | None:
                wanted = (
                    SuffixByteRequest(-start) if stop is None else RangeByteRequest(start, stop)
                )
                with Request("get", self._store, key, wanted) as request:
                    data = read_part(start, stop)
                    request.nbytes = 0 if data is None else len(data)
                    return data

            yield read


class ObjectSource:
    """Objects read through obstore's plain calls.

    In a few threads those carry four times as many requests a second as its coroutines, as long
    as the server answers at once; from a distant one hundreds of coroutines are faster.

    Attributes
    ----------
    client
        What the process knows of the store's client.
    shortest_s
        The shortest time that `read` has taken. It is taken in the thread that waits: an event
        loop that has other work to do tells of an answer later.
    """

    instant = False
    remote = True

    def __init__(self, store: ObjectStore[Any]) -> None:
        self._store = store
        self.client = client_of(store.store)
        self.shortest_s = math.inf

    def read(self, key: str) -> Any | None:
        begun = perf_counter()
        try:
            with Request("get", self._store, key) as request:
                try:
                    data = memoryview(obstore().get(self.client.store, key).bytes())
                except _MISSING:
                    return None
                request.nbytes = len(data)
                return data
        finally:
            self.shortest_s = min(self.shortest_s, perf_counter() - begun)
            self.client.heard()

    def read_small(self, key: str, most: int) -> Any | None:
        return self.read(key)

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        data = self.read(key)
        if data is None:
            return None
        if len(data) == dest.size:
            dest.reshape(-1).data[:] = data
        return len(data)


# What zarr takes for a missing chunk.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def obstore() -> Any:
    """Return the package, which only those who have such a store have installed."""
    return importlib.import_module("obstore")


_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def _open(path: str) -> int | None:
    try:
        return os.open(path, _FLAGS)
    except _MISSING:
        return None


def _fill(file: int, buffer: NDArray[np.uint8], first: int = 0) -> int:
    """Read from byte ``first`` on until ``buffer`` is full or the file ends; return how many."""
    view = buffer.data
    done = _read(file, view, first)
    while 0 < done < len(view):
        count = _read(file, view[done:], first + done)
        if count == 0:
            break
        done += count
    return done


def _copy(file: int, dest: NDArray[np.uint8]) -> int:
    """Read a file into ``dest``, memory that nobody has touched yet; return how long it is.

    The kernel is slow to copy to there: through a buffer that stays in the processor's cache it
    takes half the time. Where there is more than fits, any larger number is returned.
    """
    # A byte more shows that there is more.
    buffer = scratch("copy", min(dest.size, _COPIED_AT_ONCE) + 1)
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
