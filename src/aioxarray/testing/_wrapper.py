"""Base class of the wrappers in `stores`: every store method as requests through one hook."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zarr.abc.store import Store
from zarr.storage import WrapperStore

from aioxarray.testing._log import Request

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

__all__ = ["RequestStore"]

T = TypeVar("T")

# zarr 3.1 has no Store.get_ranges; the type checker sees either version.
_AnyStore: Any = Store


class RequestStore(WrapperStore[Store]):
    """Store wrapper that passes every request through `_request`.

    Methods that zarr's base class builds from others (`get_ranges`, `_get_many`, …) are built
    here from this wrapper's methods: `WrapperStore` forwards them to the wrapped store, whose
    requests would bypass `_request`.
    """

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        """Carry out one request; the hook for subclasses."""
        return await send()

    # zarr's `with_read_only` and `__enter__` rebuild a wrapper around another store through this
    # private hook; without it, the subclass's state would be lost.
    # Can go when zarr-developers/zarr-python makes the hook public.
    def _with_store(self, store: Store) -> Self:
        other = copy.copy(self)  # shallow: the copies share their state
        other._store = store
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store!r})"

    # --- reading ---------------------------------------------------------------------------

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self._request(
            Request("get", key, byte_range),
            partial(self._store.get, key, prototype, byte_range),
        )

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        tasks = [asyncio.ensure_future(self.get(key, prototype, part)) for key, part in key_ranges]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # Otherwise a failed request would leave the others running.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    if hasattr(Store, "get_ranges"):  # not in zarr 3.1

        def get_ranges(
            self,
            key: str,
            byte_ranges: Sequence[ByteRequest | None],
            *,
            prototype: BufferPrototype,
            **options: int | None,
        ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
            # The options are max_concurrency, max_gap_bytes and max_coalesced_bytes. In
            # WrapperStore None means "the default"; Store's own method does not accept None.
            given = {name: value for name, value in options.items() if value is not None}
            ranges: AsyncIterator[Sequence[tuple[int, Buffer | None]]] = _AnyStore.get_ranges(
                self, key, byte_ranges, prototype=prototype, **given
            )
            return ranges

    # Private; zarr reads many keys with it. WrapperStore would bypass `get`.
    # Can go when WrapperStore stops forwarding it.
    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        async for item in Store._get_many(self, requests):
            yield item

    # Synchronous reads and writes would bypass `_request`. None makes
    # `isinstance(store, SupportsGetSync)` false in zarr 3.1 and 3.4. zarr 3.4 also checks the
    # private property, which can go when zarr checks only the methods.
    get_sync = None  # type: ignore[assignment,unused-ignore]
    set_sync = None  # type: ignore[assignment,unused-ignore]
    delete_sync = None  # type: ignore[assignment,unused-ignore]

    @property
    def _supports_sync_io(self) -> bool:
        return False

    async def exists(self, key: str) -> bool:
        return await self._request(Request("exists", key), partial(self._store.exists, key))

    async def getsize(self, key: str) -> int:
        return await self._request(Request("getsize", key), partial(self._store.getsize, key))

    # --- listing: one request each, which ends with the listing and not with its consumer -----

    def list(self) -> AsyncIterator[str]:
        return self._listed(Request("list", ""), self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(
            Request("list_prefix", prefix), partial(self._store.list_prefix, prefix)
        )

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(Request("list_dir", prefix), partial(self._store.list_dir, prefix))

    async def _listed(
        self, request: Request, listing: Callable[[], AsyncIterator[str]]
    ) -> AsyncIterator[str]:
        async def names() -> tuple[str, ...]:
            return tuple([name async for name in listing()])

        for name in await self._request(request, names):
            yield name

    async def is_empty(self, prefix: str) -> bool:
        return await Store.is_empty(self, prefix)

    # --- writing ---------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        await self._request(Request("set", key), partial(self._store.set, key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._request(
            Request("set_if_not_exists", key),
            partial(self._store.set_if_not_exists, key, value),
        )

    # Private in zarr; as with `_get_many`.
    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await Store._set_many(self, values)

    async def delete(self, key: str) -> None:
        await self._request(Request("delete", key), partial(self._store.delete, key))

    async def delete_dir(self, prefix: str) -> None:
        innermost: Store = self._store
        while isinstance(innermost, RequestStore):
            innermost = innermost._store
        if type(innermost).delete_dir is Store.delete_dir:
            # Store's own method lists the keys and deletes each: those are the requests.
            await Store.delete_dir(self, prefix)
        else:
            await self._request(
                Request("delete_dir", prefix), partial(self._store.delete_dir, prefix)
            )

    async def clear(self) -> None:
        await self._request(Request("clear", ""), self._store.clear)
