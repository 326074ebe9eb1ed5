"""Tells whether two paths, of two objects that stand for stores, are the same place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

from aioxarray._zarr.write_behind import below

if TYPE_CHECKING:
    from zarr.storage import StorePath


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
