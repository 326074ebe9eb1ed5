"""Reads of stores by plain calls, in the threads that decode."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from zarr.storage import LocalStore, MemoryStore

from aioxarray._zarr.decoders import scratch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from zarr.abc.store import Store

# Chunks are longer than this at times; then it takes a second read.
_FIRST_READ = 64 << 10


class Source(Protocol):
    """A store that is read best by plain calls."""

    # Reading from it is no more than looking it up.
    instant: bool

    def read(self, key: str) -> Any | None:
        """Return the bytes at ``key``, to be used before the next call in this thread.

        None if there are none.
        """

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        """Read the bytes at ``key`` into ``dest``, and return how many there are.

        None if there are none. Where there are more than fit, any larger number.
        """


def source_of(store: Store) -> Source | None:
    """Return how ``store`` is read by plain calls, or None if its coroutines serve it better.

    By exact type: a class derived from one of these, or a wrapper around one, may change what
    ``get`` returns.
    """
    if type(store) is LocalStore:
        return FileSource(store)
    if type(store) is MemoryStore:
        return MemorySource(store)
    return None


class MemorySource:
    """Buffers in a dictionary."""

    instant = True

    def __init__(self, store: MemoryStore) -> None:
        # Private, as zarr 3.1 has no plain function to read one (zarr 3.2 has ``get_sync``).
        self._buffers = store._store_dict

    def read(self, key: str) -> Any | None:
        buffer = self._buffers.get(key)
        return None if buffer is None else buffer.as_numpy_array()

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        data = self.read(key)
        if data is None:
            return None
        if len(data) == dest.size:
            dest.reshape(-1)[...] = data
        return len(data)


class FileSource:
    """Files in a directory.

    They come from the page cache, mostly, so that reading is work for a processor like decoding:
    more threads than processors would only get in each other's way.
    """

    instant = False

    def __init__(self, store: LocalStore) -> None:
        self._root = os.path.join(store.root, "")

    def read(self, key: str) -> Any | None:
        file = _open(self._root + key)
        if file is None:
            return None
        try:
            # Most chunks are read by one call.
            buffer = scratch("file", _FIRST_READ)
            count = _fill(file, buffer)
            if count == len(buffer):
                size = max(os.fstat(file).st_size, count) + 1
                larger = scratch("large file", size)
                larger[:count] = buffer
                count += _fill(file, larger[count:])
                buffer = larger
            return buffer[:count].data
        except IsADirectoryError:
            return None
        finally:
            os.close(file)

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        file = _open(self._root + key)
        if file is None:
            return None
        try:
            count = _fill(file, dest.reshape(-1))
            return count + len(os.read(file, 1)) if count == dest.size else count
        except IsADirectoryError:
            return None
        finally:
            os.close(file)


_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def _open(path: str) -> int | None:
    try:
        return os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        # What zarr takes for a missing chunk.
        return None


def _fill(file: int, buffer: NDArray[np.uint8]) -> int:
    """Read until ``buffer`` is full or the file ends; return how many bytes that were."""
    view = buffer.data
    done = 0
    while done < len(view):
        count = os.readv(file, [view[done:]])
        if count == 0:
            break
        done += count
    return done
