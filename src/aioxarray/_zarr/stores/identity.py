"""Which stores hold the same data: for sharing reads, and for invalidating the cache after writes.

The two err on opposite sides. `same` only identifies stores that certainly return the same values;
`Place.meets` only rules out an overlap if stores certainly have none.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.storage import StorePath


def same(store: Store) -> tuple[Hashable, object]:
    """Return a key that stores of the same data share, and the object whose id is part of it.

    Store equality will not do: memory stores are equal if their values are. Types must match
    exactly, as in `source_of`: a wrapper may return other values than the store it wraps.
    """
    if type(store) is LocalStore:
        return ("local", os.path.abspath(store.root)), None
    if type(store) is MemoryStore:
        # Private, as in `MemorySource`: the dictionary, which two stores may share.
        return ("memory", id(store._store_dict)), store._store_dict
    if type(store) is ObjectStore:
        return ("obstore", id(store.store)), store.store
    if type(store) is FsspecStore:
        return ("fsspec", id(store.fs), store.path), store.fs
    return ("other", id(store)), store


@dataclass(frozen=True)
class Place:
    """The location of a store's data, precise enough to rule out most overlaps.

    Attributes
    ----------
    kind
        The kind of store. Stores of different kinds never overlap.
    path
        The directory, for kinds in which one store may lie inside another.
    """

    kind: Hashable
    path: PurePosixPath | None = None

    @classmethod
    def of(cls, store: Any) -> Place:
        """Return the place of ``store``, ignoring wrappers."""
        while isinstance(store, WrapperStore):
            store = store._store
        if isinstance(store, MemoryStore):
            return cls(("memory", id(store._store_dict)))
        # Symbolic links and different clients may lead to the same files and objects.
        if isinstance(store, LocalStore):
            return cls("path", PurePosixPath(os.path.realpath(store.root)))
        if isinstance(store, FsspecStore):
            return cls("path", PurePosixPath("/", store.path))
        if isinstance(store, ObjectStore):
            return cls(("obstore", type(store.store)))
        return cls(("other", type(store)))

    def meets(self, other: Place) -> bool:
        """Return whether a write to one place may change the data of the other."""
        if self.kind != other.kind or self.path is None or other.path is None:
            return self.kind == other.kind
        return self.path.is_relative_to(other.path) or other.path.is_relative_to(self.path)


def below(key: str, prefix: str) -> bool:
    """Return whether ``key`` is below the path ``prefix``."""
    return prefix == "" or key.startswith(f"{prefix}/")


@dataclass(frozen=True)
class Position:
    """A path in the storage behind a store, comparable between different stores of the same data.

    zarr's comparison of stores distinguishes read-only stores from others, and a store from one
    that starts at a directory inside it. Stores of unknown types only have positions in common with
    themselves.
    """

    keeper: Any
    path: str

    @classmethod
    def of(cls, place: StorePath) -> Position:
        """Return the position of a path in a store."""
        store, path = place.store, place.path
        while isinstance(store, WrapperStore):
            store = store._store
        if isinstance(store, LocalStore):
            real = os.path.realpath(store.root / path)
            return cls("the file system", Path(real).as_posix().strip("/"))
        if isinstance(store, FsspecStore):
            return cls(store.fs, f"{store.path.strip('/')}/{path}".strip("/"))
        if isinstance(store, MemoryStore):
            # Private: a read-only copy of a memory store shares the dictionary with the original.
            return cls(id(store._store_dict), path)
        return cls(store.store if isinstance(store, ObjectStore) else store, path)

    def below(self, path: str) -> Position:
        """Return a position below this one."""
        return Position(self.keeper, f"{self.path}/{path.strip('/')}".strip("/"))

    def is_in(self, other: Position) -> bool:
        """Return whether this position is ``other``, or below it."""
        if self.keeper != other.keeper:
            return False
        return self.path == other.path or below(self.path, other.path)
