"""A store wrapper that counts every request against the limit."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store
from zarr.storage import WrapperStore

from aioxarray._runtime.budget import Share
from aioxarray._runtime.tasks import first_error, gather
from aioxarray._zarr.printable import NamedAsWrapped

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class LimitedStore(NamedAsWrapped, WrapperStore[Store]):
    """Lets a read request through to ``store`` when ``requests`` has a place for it.

    It keeps no state of its own: zarr rebuilds wrappers freely, and the places are counted in
    ``requests``.
    """

    def __init__(self, store: Store, requests: Share) -> None:
        super().__init__(store)
        self._requests = requests

    def _with_store(self, store: Store) -> LimitedStore:
        return type(self)(store, self._requests)

    @property
    def inner(self) -> Store:
        """The store that is limited."""
        return self._store

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        async with self._requests.hold():
            return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        # Range by range through ``get``: the wrapped store would make its requests uncounted.
        return await gather(
            [functools.partial(self.get, key, prototype, part) for key, part in key_ranges]
        )

    async def get_documents(
        self, prototype: BufferPrototype, keys: Sequence[str]
    ) -> list[Buffer | None]:
        """Read metadata documents: one request each, or one where all of them are one object."""
        if _has_documents_in_one_object(self._store):
            try:
                async with self._requests.hold():
                    return await self._store.get_partial_values(
                        prototype, [(key, None) for key in keys]
                    )
            except TypeError:
                # So it fails where one is missing, and does not say which.
                pass
        return await gather([functools.partial(self.get, key, prototype) for key in keys])

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many ranges of one key, merged where they lie close, each merged one counted.

        The wrapped store's own method would go round ``get``; that of the base class (zarr 3.3
        and later, the only ones that call this) merges ranges and calls it.
        """
        # How many at once is for ``requests`` to say; zarr's default of 10 would be a second,
        # smaller limit.
        options = {"max_concurrency": max(1, len(byte_ranges)), **options}
        base: Any = Store
        try:
            async for group in base.get_ranges(self, key, byte_ranges, **options):
                yield group
        except BaseExceptionGroup as errors:
            # The first as it is, as everywhere; but a missing shard zarr looks for in a group.
            _, others = errors.split(FileNotFoundError)
            if others is None:
                raise
            raise first_error(others) from None

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the names below ``prefix``: one request."""
        async with self._requests.hold():
            names = [name async for name in self._store.list_dir(prefix)]
        for name in names:
            yield name

    @property
    def _supports_sync_io(self) -> bool:
        # zarr's fast path for stores that can be read without awaiting would go round ``get``.
        return False


def _has_documents_in_one_object(store: Store) -> bool:
    """Say whether ``store`` has all metadata in memory once it has answered anything.

    Icechunk has them in its snapshot. It answers for many keys in a tenth of the time that it
    takes to be asked for each; chunks not, of which it then reads ten at a time.
    """
    # Not imported: what was not, no store can be of.
    return type(store) is getattr(sys.modules.get("icechunk"), "IcechunkStore", None)
