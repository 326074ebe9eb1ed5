"""A store wrapper that records writes in memory, to be flushed to the store later.

xarray's and zarr's own code creates groups and arrays in it with many small sequential writes, none
of which reaches the store. `aioxarray._zarr.metadata.flushing` then writes them in a safe order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aioxarray._zarr.metadata.prefetched import Answers, PrefetchedStore, part
from aioxarray._zarr.stores.identity import below

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store

    from aioxarray._zarr.compat import Buffer, BufferPrototype


@dataclass
class Changes:
    """The changes recorded by a `WriteBehindStore`.

    Attributes
    ----------
    values
        By key, the last value written, or None if the key was deleted.
    emptied
        Prefixes whose keys were all deleted, before the changes in ``values``.
    """

    values: dict[str, Buffer | None] = field(default_factory=dict)
    emptied: list[str] = field(default_factory=list)

    def empty(self, prefix: str) -> None:
        """Delete all keys below ``prefix``."""
        self.values = {key: value for key, value in self.values.items() if not below(key, prefix)}
        if not self.has_emptied(prefix):
            self.emptied = [each for each in self.emptied if not below(each, prefix)]
            self.emptied.append(prefix)

    def has_emptied(self, key: str) -> bool:
        """Return whether ``key``, with everything below it, is in an emptied prefix."""
        return any(key == prefix or below(key, prefix) for prefix in self.emptied)


class WriteBehindStore(PrefetchedStore):
    """A wrapper that records writes, and answers reads from them, from ``answers`` or the store.

    All copies that zarr makes of this wrapper share ``answers`` and ``changes``.

    Parameters
    ----------
    store
        The store, which is read but never written.
    answers
        The known values and listings; listings that are requested later are added.
    changes
        The record of writes.
    """

    def __init__(self, store: Store, answers: Answers, changes: Changes) -> None:
        super().__init__(store, answers, closes=False)
        self._changes = changes

    def _with_store(self, store: Store) -> WriteBehindStore:
        return type(self)(store, self._answers, self._changes)

    # --- reading ---------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        value: Buffer | None
        if key in self._changes.values:
            value = self._changes.values[key]
        elif self._changes.has_emptied(key) or self._answers.lacks(key):
            value = None
        else:
            return await super().get(key, prototype, byte_range)
        return None if value is None else part(value, byte_range)

    async def exists(self, key: str) -> bool:
        if key in self._changes.values:
            return self._changes.values[key] is not None
        if self._changes.has_emptied(key) or self._answers.lacks(key):
            return False
        return await super().exists(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        path = prefix.strip("/")
        names: dict[str, None] = {}
        if not (self._changes.has_emptied(path) or self._answers.lacks(path)):
            if path not in self._answers.listings:
                listed = [name async for name in self._store.list_dir(prefix)]
                self._answers.listings[path] = tuple(listed)
            names = dict.fromkeys(self._answers.listings[path])
        start = f"{path}/" if path else ""
        for name in list(names):
            key = start + name
            if self._changes.has_emptied(key) or self._changes.values.get(key, key) is None:
                del names[name]
        for key, value in self._changes.values.items():
            if value is not None and below(key, path):
                names[key[len(start) :].partition("/")[0]] = None
        for name in names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        path = prefix.strip("/")
        if not (self._changes.has_emptied(path) or self._answers.lacks(path)):
            async for key in self._store.list_prefix(prefix):
                if key not in self._changes.values and not self._changes.has_emptied(key):
                    yield key
        for key in self._written():
            if key == path or below(key, path):
                yield key

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def is_empty(self, prefix: str) -> bool:
        async for _ in self.list_dir(prefix):
            return False
        return True

    def _written(self) -> Iterator[str]:
        return (key for key, value in list(self._changes.values.items()) if value is not None)

    # --- writing ---------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        self._changes.values[key] = value

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self._check_writable()
        self._changes.values[key] = None

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        self._changes.empty(prefix.strip("/"))

    async def clear(self) -> None:
        await self.delete_dir("")
