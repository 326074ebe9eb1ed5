"""Which stores hold the same data: to share what is read of it, and to know what a write changes.

The two ask for different care. `same` tells two stores apart unless they surely give the same
values; `Place.meets` takes a write for one to another store's data unless it surely is not.
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
    """Return what stores of the same data have in common, and the object it names by its address.

    Equality of stores does not tell: those in memory are equal where their values are. By exact
    type, as in `source_of`: a wrapper may give other values than what it wraps.
    """
    if type(store) is LocalStore:
        return ("local", os.path.abspath(store.root)), None
    if type(store) is MemoryStore:
        # Private, as in `MemorySource`: what two stores on one dictionary have in common.
        return ("memory", id(store._store_dict)), store._store_dict
    if type(store) is ObjectStore:
        return ("obstore", id(store.store)), store.store
    if type(store) is FsspecStore:
        return ("fsspec", id(store.fs), store.path), store.fs
    return ("other", id(store)), store


@dataclass(frozen=True)
class Place:
    """Where a store keeps its data, as far as that can be told.

    Attributes
    ----------
    kind
        Of store: what is written to one kind is not in another.
    path
        For kinds with directories, where one store may lie in another.
    """

    kind: Hashable
    path: PurePosixPath | None = None

    @classmethod
    def of(cls, store: Any) -> Place:
        """Return the place of ``store``; wrappers do not matter here."""
        while isinstance(store, WrapperStore):
            store = store._store
        if isinstance(store, MemoryStore):
            return cls(("memory", id(store._store_dict)))
        # Links and different clients may lead to the same files and objects.
        if isinstance(store, LocalStore):
            return cls("path", PurePosixPath(os.path.realpath(store.root)))
        if isinstance(store, FsspecStore):
            return cls("path", PurePosixPath("/", store.path))
        if isinstance(store, ObjectStore):
            return cls(("obstore", type(store.store)))
        return cls(("other", type(store)))

    def meets(self, other: Place) -> bool:
        """Say whether a write to one may change what the other gives."""
        if self.kind != other.kind or self.path is None or other.path is None:
            return self.kind == other.kind
        return self.path.is_relative_to(other.path) or other.path.is_relative_to(self.path)


def below(key: str, prefix: str) -> bool:
    """Say whether ``key`` is below the path ``prefix``."""
    return prefix == "" or key.startswith(f"{prefix}/")


@dataclass(frozen=True)
class Position:
    """A place in what a store stands for, whoever made the store, to read or to write.

    zarr's own comparison of stores tells those that are read-only from those that are not, and a
    store from one that begins further down. What stores keep the same things in an unknown way
    are different places.
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
            # Private: a memory store that is made read-only shares it with the original.
            return cls(id(store._store_dict), path)
        return cls(store.store if isinstance(store, ObjectStore) else store, path)

    def below(self, path: str) -> Position:
        """Return a position below this one."""
        return Position(self.keeper, f"{self.path}/{path.strip('/')}".strip("/"))

    def is_in(self, other: Position) -> bool:
        """Say whether this is ``other``, or below it."""
        if self.keeper != other.keeper:
            return False
        return self.path == other.path or below(self.path, other.path)
