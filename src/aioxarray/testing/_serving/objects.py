"""Objects for the object server: by key, in memory or in a directory."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DirectoryObjects", "Found", "MemoryObjects", "Objects"]


@dataclass(frozen=True, slots=True)
class Found:
    """An existing object; ``read(start, stop)`` returns only the requested bytes."""

    size: int
    etag: str
    read: Callable[[int, int], bytes | memoryview]


class Objects(MutableMapping[str, bytes]):
    """Objects by key: a mapping, plus lookups for the server."""

    def find(self, key: str) -> Found | None:
        """Return the object at ``key``, or None."""
        raise NotImplementedError

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below ``prefix`` ("" or "…/"); directories end in ``/``."""
        raise NotImplementedError

    def below(self, prefix: str) -> Sequence[str]:
        """Return the keys that begin with ``prefix``, sorted."""
        raise NotImplementedError

    def __getitem__(self, key: str) -> bytes:
        found = self.find(key)
        if found is None:
            raise KeyError(key)
        return bytes(found.read(0, found.size))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class MemoryObjects(Objects):
    """Objects in a dict."""

    def __init__(self) -> None:
        # The ETag is a number: a checksum would cost as much as receiving the object.
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._versions = itertools.count(1)
        # Sorted, so that looking up a prefix, as each 404 does, does not scan all keys.
        self._sorted: list[str] | None = None
        # Tests change objects from another thread than the server's.
        self._lock = threading.Lock()

    def find(self, key: str) -> Found | None:
        entry = self._objects.get(key)
        if entry is None:
            return None
        data, etag = entry

        def read(start: int, stop: int) -> bytes | memoryview:
            return data if stop - start == len(data) else memoryview(data)[start:stop]

        return Found(len(data), etag, read)

    def children(self, prefix: str) -> list[str]:
        names: dict[str, None] = {}
        for key in self.below(prefix):
            name, slash, _ = key[len(prefix) :].partition("/")
            names[name + slash] = None
        return list(names)

    def below(self, prefix: str) -> Sequence[str]:
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self._objects)
            keys = self._sorted
        first = bisect_left(keys, prefix)
        last = first
        while last < len(keys) and keys[last].startswith(prefix):
            last += 1
        return keys[first:last]

    def __setitem__(self, key: str, data: bytes) -> None:
        data = bytes(data)
        with self._lock:
            entry = (data, f'"{next(self._versions)}"')
            if key not in self._objects:
                self._sorted = None
            self._objects[key] = entry

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self._objects[key]
            self._sorted = None

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(tuple(self._objects))


class DirectoryObjects(Objects):
    """Objects in the files of a directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.fspath(root)

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if "" in parts or "." in parts or ".." in parts or "\\" in key or "\0" in key:
            raise KeyError(key)  # outside this directory, or not a normalized name
        # Not a `Path`: making one takes as long as the rest of an answer.
        return os.path.join(self._root, key)

    def find(self, key: str) -> Found | None:
        try:
            path = self._path(key)
            info = os.stat(path)
        except (KeyError, OSError):
            return None
        if not stat.S_ISREG(info.st_mode):
            return None

        def read(start: int, stop: int) -> bytes:
            # Unbuffered: a buffer would take as long as reading a small file.
            with open(path, "rb", buffering=0) as file:
                file.seek(start)
                return file.read(stop - start)

        return Found(info.st_size, f'"{info.st_mtime_ns:x}-{info.st_size}"', read)

    def children(self, prefix: str) -> list[str]:
        try:
            folder = self._path(prefix.removesuffix("/")) if prefix else self._root
            with os.scandir(folder) as entries:
                return sorted(entry.name + "/" * entry.is_dir() for entry in entries)
        except (KeyError, OSError):
            return []

    def below(self, prefix: str) -> Sequence[str]:
        try:
            folder = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self._root
        except KeyError:
            return []
        return sorted(key for key in self._walk(folder) if key.startswith(prefix))

    def __setitem__(self, key: str, data: bytes) -> None:
        path = Path(self._path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Atomic: a reader sees the old bytes or the new ones, never a part.
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(data)
        partial.replace(path)

    def __delitem__(self, key: str) -> None:
        try:
            os.unlink(self._path(key))
        except OSError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return self._walk(self._root)

    def _walk(self, top: str) -> Iterator[str]:
        for folder, _, names in os.walk(top):
            for name in names:
                yield Path(folder, name).relative_to(self._root).as_posix()
