"""Store wrappers that make every request under the limit on requests in flight."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import WrapperStore

from aioxarray._runtime.budget import Share
from aioxarray._runtime.tasks import first_error, gather
from aioxarray._zarr.stores.clients import fetchers
from aioxarray._zarr.stores.printable import NamedAsWrapped
from aioxarray._zarr.stores.request import Kind, Request, send
from aioxarray._zarr.stores.servers.denials import check_snapshot, exists, is_icechunk
from aioxarray._zarr.stores.servers.turns import turn_ahead
from aioxarray.errors import DamagedDataError, WrongLengthError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray._zarr.compat import Buffer, BufferPrototype
    from aioxarray._zarr.stores.servers.room import Room

    # An alias, because ``list`` is a method of stores.
    _Values = list[Buffer | None]

T = TypeVar("T")

# Raises `DamagedDataError` if the bytes do not match their checksum.
Check = Callable[[Any], object]


@runtime_checkable
class Remembering(Protocol):
    """A store that may answer from memory."""

    def forget(self, key: str) -> None:
        """Ask the server the next time: the value in memory is damaged."""


class Places:
    """The share of requests of an open or a save; None once that has ended."""

    def __init__(self, requests: Share | None) -> None:
        self.requests = requests


class LimitedStore(NamedAsWrapped, WrapperStore[Store]):
    """A wrapper around a store whose requests each take a place in a share.

    Parameters
    ----------
    store
        The store.
    places
        The share in which requests take their places. Without a share (an open or a save has
        ended), requests are made without a place.
    """

    def __init__(self, store: Store, places: Share | Places) -> None:
        super().__init__(store)
        # zarr rebuilds wrappers freely, so the state is shared.
        self._places = places if isinstance(places, Places) else Places(places)

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._places)

    @property
    def inner(self) -> Store:
        """The wrapped store."""
        return self._store

    async def _send(self, kind: Kind, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        return await send(Request(kind, self._store, key), self._places.requests, ask)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
        *,
        room: Room | None = None,
        check: Check | None = None,
    ) -> Buffer | None:
        """Read a value, or a part of it, in the memory of ``room``, if given.

        ``check`` is called with the bytes. If it raises `DamagedDataError`, they are requested once
        more.
        """
        request = Request("get", self._store, key, byte_range)

        async def ask() -> Buffer | None:
            value = await self._store.get(key, prototype, byte_range)
            if value is None:
                await check_snapshot(self._store)
                request.nbytes = 0
            else:
                request.nbytes = len(value)
                _check_length(len(value), byte_range)
                if check is not None:
                    self._check(check, key, value)
            return value

        size = 0 if room is None else room.size
        return await send(request, self._places.requests, ask, size, room)

    def _check(self, check: Check, key: str, value: Buffer) -> None:
        try:
            check(value.as_numpy_array())
        except DamagedDataError:
            if isinstance(self._store, Remembering):
                self._store.forget(key)
            raise

    async def exists(self, key: str) -> bool:
        return await self._send("exists", key, lambda: exists(self._store, key))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> _Values:
        # One range at a time through ``get``: the wrapped store would not count its requests.
        return await gather(
            [functools.partial(self.get, key, prototype, part) for key, part in key_ranges]
        )

    async def get_documents(self, prototype: BufferPrototype, keys: Sequence[str]) -> _Values:
        """Read metadata documents: one request each, or one in total if one object has them all."""
        if is_icechunk(self._store):
            # It has all metadata in its snapshot: one call for many documents takes a tenth of the
            # time of a call for each. Of chunks, such a call reads only ten at a time.
            try:
                return await self._send(
                    "get",
                    keys[0] if keys else "",
                    lambda: self._store.get_partial_values(
                        prototype, [(key, None) for key in keys]
                    ),
                )
            except TypeError:
                # A document is missing; the error does not say which.
                pass
        return await gather([functools.partial(self.get, key, prototype) for key in keys])

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many ranges of one key, with one request for ranges that are close together.

        The wrapped store's own method would bypass ``get``. That of the base class merges ranges
        and calls ``get``; it exists from zarr 3.3 on, and earlier versions do not call this.
        """
        # zarr's default of 10 concurrent ranges would be a second, smaller limit beside the share.
        options = {"max_concurrency": max(1, len(byte_ranges)), **options}
        base: Any = Store
        try:
            async for group in base.get_ranges(self, key, byte_ranges, **options):
                yield group
        except BaseExceptionGroup as errors:
            # Raise the first error itself, as everywhere. But zarr expects FileNotFoundError, for a
            # missing shard, in a group.
            _, others = errors.split(FileNotFoundError)
            if others is None:
                raise
            first = first_error(others)
            raise first from first.__cause__

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the names below ``prefix``: one request."""
        for name in await self._listed(prefix, lambda: self._store.list_dir(prefix)):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys that begin with ``prefix``: one request."""
        for key in await self._listed(prefix, lambda: self._store.list_prefix(prefix)):
            yield key

    async def list(self) -> AsyncIterator[str]:
        """List all keys: one request."""
        for key in await self._listed("", self._store.list):
            yield key

    async def _listed(
        self, prefix: str, listing: Callable[[], AsyncIterator[str]]
    ) -> Sequence[str]:
        async def read() -> Sequence[str]:
            # icechunk's functions make requests, which block, before they return an iterator.
            iterator = await fetchers.run(listing) if is_icechunk(self._store) else listing()
            names = [name async for name in iterator]
            if not names:
                await check_snapshot(self._store)
            return names

        return await self._send("list", prefix, read)

    async def is_empty(self, prefix: str) -> bool:
        async def ask() -> bool:
            is_empty = await self._store.is_empty(prefix)
            if is_empty:
                await check_snapshot(self._store)
            return is_empty

        return await self._send("list", prefix, ask)

    async def turn_ahead(self, room: Room) -> None:
        """Wait for the turn of a request that is made later with ``room``, and for its bytes."""
        await turn_ahead(self._store, self._places.requests, room)

    async def set(self, key: str, value: Buffer) -> None:
        await self.set_made(key, lambda: value)

    async def set_made(
        self, key: str, value: Callable[[], Buffer], room: Room | None = None
    ) -> None:
        """Write the value that ``value`` returns, which is that of ``room``, if given."""
        nbytes = len(value())
        request = Request("set", self._store, key, nbytes=nbytes)
        await send(
            request,
            self._places.requests,
            lambda: self._store.set(key, value()),
            nbytes,
            room,
        )

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Not repeated: the value of an attempt whose answer was lost may be taken for another's.
        request = Request("set", self._store, key, nbytes=len(value), repeatable=False)
        await send(
            request, self._places.requests, lambda: self._store.set_if_not_exists(key, value)
        )

    async def delete(self, key: str, *, room: Room | None = None) -> None:
        request = Request("delete", self._store, key)
        ask = functools.partial(self._store.delete, key)
        await send(request, self._places.requests, ask, 0, room)

    async def delete_dir(self, prefix: str) -> None:
        await self._send("delete", prefix, lambda: self._store.delete_dir(prefix))

    @property
    def _supports_sync_io(self) -> bool:
        # zarr's fast path for stores with synchronous methods would bypass ``get``.
        return False


def _check_length(length: int, wanted: ByteRequest | None) -> None:
    """Check that an answer is not longer than the range that was asked for.

    It may be shorter: a range can go beyond the end of a value.
    """
    match wanted:
        case RangeByteRequest(start=start, end=end):
            most, name = end - start, f"the range {start} to {end}"
        case SuffixByteRequest(suffix=most):
            name = f"the last {most} bytes"
        case _:
            return
    if length > most:
        raise WrongLengthError(
            f"{length} bytes were received for {name}; perhaps the server ignores byte ranges"
        )


class ForeignStore(LimitedStore):
    """The store of an open or a save, for requests that xarray and zarr make themselves."""

    def __str__(self) -> str:
        # It stands in for the store in the errors of xarray and zarr.
        return str(self._store)

    def __repr__(self) -> str:
        return repr(self._store)
