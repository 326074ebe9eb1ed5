"""The identity of stores: which hold the same data, lie in each other, or may overlap.

Reads are shared, and lazy data counts as overwritten, only between stores that certainly hold the
same data (`same`, `Place.is_in`). A write invalidates the cache of all stores that may overlap
(`Place.overlaps`).
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

if TYPE_CHECKING:
    from zarr.abc.store import Store


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


def layers(store: Store) -> Iterator[Store]:
    """Yield ``store`` and the stores that it wraps, the outermost first."""
    yield store
    while isinstance(store, WrapperStore):
        store = store._store
        yield store


def unwrapped(store: Any) -> Any:
    """Return the innermost of the stores that ``store`` wraps, or ``store`` itself."""
    *_, innermost = layers(store)
    return innermost


def libraries(obj: Any) -> set[str]:
    """Return the names of the packages that define the type of ``obj`` and its base classes.

    They identify objects of optional dependencies. ``_obstore`` counts as ``obstore``.
    """
    return {kind.__module__.partition(".")[0].lstrip("_") for kind in type(obj).__mro__}


def below(key: str, prefix: str) -> bool:
    """Return whether ``key`` is below the path ``prefix``."""
    return prefix == "" or key.startswith(f"{prefix}/")


# The kind of storage in which a path means the same in all stores. Symbolic links are resolved.
_PATHS = "paths"


@dataclass(frozen=True)
class Place:
    """A path in the storage behind a store, comparable between different stores of the same data.

    zarr's comparison of stores distinguishes read-only stores from others, and a store from one
    that starts at a directory inside it.

    Attributes
    ----------
    keeper
        The storage. Equal keepers certainly are the same one.
    kind
        The kind of storage. Different kinds certainly have no data in common.
    path
        The path in the storage, without a slash at either end.
    """

    keeper: Any
    kind: Hashable
    path: str

    @classmethod
    def of(cls, store: Any, path: str = "") -> Place:
        """Return the place of ``path`` in ``store``, ignoring wrappers."""
        store = unwrapped(store)
        if isinstance(store, LocalStore):
            real = os.path.realpath(store.root / path)
            return cls("the file system", _PATHS, Path(real).as_posix().strip("/"))
        if isinstance(store, FsspecStore):
            return cls(store.fs, _PATHS, str(PurePosixPath("/", store.path, path)).strip("/"))
        if isinstance(store, MemoryStore):
            # Private: a read-only copy of a memory store shares the dictionary with the original.
            keeper = ("memory", id(store._store_dict))
            return cls(keeper, keeper, path)
        if isinstance(store, ObjectStore):
            return cls(store.store, ("obstore", type(store.store)), path)
        return cls(store, ("other", type(store)), path)

    def below(self, path: str) -> Place:
        """Return a place below this one."""
        return replace(self, path=f"{self.path}/{path.strip('/')}".strip("/"))

    def is_in(self, other: Place) -> bool:
        """Return whether this place certainly is ``other``, or below it."""
        return self.keeper == other.keeper and (
            self.path == other.path or below(self.path, other.path)
        )

    def overlaps(self, other: Place) -> bool:
        """Return whether a write to one place may change the data of the other."""
        if self.kind != other.kind or self.kind != _PATHS:
            # Different clients of one kind may lead to the same objects, under different paths.
            return self.kind == other.kind
        one, another = self.path, other.path
        return one == another or below(one, another) or below(another, one)
