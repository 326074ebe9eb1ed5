"""A store wrapper that answers from prefetched documents while xarray opens a dataset."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import WrapperStore

from aioxarray._zarr.compat import default_buffer_prototype
from aioxarray._zarr.stores.limited import ForeignStore
from aioxarray._zarr.stores.printable import NamedAsWrapped

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray._zarr.compat import Buffer, BufferPrototype
    from aioxarray._zarr.metadata.hierarchy import Hierarchy


@dataclass
class Answers:
    """The values and listings of a store that are known.

    Attributes
    ----------
    values
        By key, the whole value, or None if the store has none.
    listings
        By prefix, the names directly below it.
    hierarchy
        The group that is opened, with all nodes below it; None if it is not the root, has format
        2, or is not known completely.
    """

    values: dict[str, Buffer | None] = field(default_factory=dict)
    listings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hierarchy: Hierarchy | None = None

    def lacks(self, key: str) -> bool:
        """Return whether the listings show that ``key`` does not exist, nor any key below it."""
        path = ""
        for name in key.split("/") if key else ():
            names = self.listings.get(path)
            if names is not None and name not in names:
                return True
            path = f"{path}/{name}" if path else name
        return self.listings.get(path) == ()


class PrefetchedStore(NamedAsWrapped, WrapperStore[Store]):
    """A store wrapper that answers from ``answers`` if possible, and otherwise asks ``store``.

    Parameters
    ----------
    store
        The store.
    answers
        The known values and listings; shared by all copies that zarr makes of this wrapper.
    closes
        Whether closing the wrapper closes ``store``.
    """

    def __init__(self, store: Store, answers: Answers, *, closes: bool) -> None:
        super().__init__(store)
        self._answers = answers
        self._closes = closes

    def _with_store(self, store: Store) -> PrefetchedStore:
        return type(self)(store, self._answers, closes=self._closes)

    @property
    def values(self) -> Mapping[str, Buffer | None]:
        """The known values by key; None for keys that do not exist."""
        return self._answers.values

    def forget(self, key: str) -> None:
        """Ask the store for ``key`` from now on, because the known value is damaged."""
        self._answers.values.pop(key, None)

    def counted_elsewhere(self) -> Store:
        """Return this wrapper around the unlimited store, for a reader that limits requests."""
        if not isinstance(self._store, ForeignStore):
            return self
        return self._with_store(self._store.inner)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        # zarr's own stores allow None; xarray relies on it to get the dimensions of NCZarr arrays.
        prototype = prototype or default_buffer_prototype()
        if key not in self._answers.values:
            return await self._store.get(key, prototype, byte_range)
        value = self._answers.values[key]
        return None if value is None else part(value, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # The base class's method (zarr 3.3 and later) calls ``get``.
        ranges: Any = vars(Store)["get_ranges"]
        async for group in ranges(self, key, byte_ranges, **options):
            yield group

    async def exists(self, key: str) -> bool:
        if key in self._answers.values:
            return self._answers.values[key] is not None
        return await self._store.exists(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        known = self._answers.listings.get(prefix.strip("/"))
        if known is not None:
            for name in known:
                yield name
            return
        async for name in self._store.list_dir(prefix):
            yield name

    @property
    def _supports_sync_io(self) -> bool:
        # zarr's fast path for stores with synchronous reads would bypass ``get``.
        return False

    def close(self) -> None:
        if self._closes:
            self._store.close()


def part(value: Buffer, byte_range: ByteRequest | None) -> Buffer:
    """Return the part of ``value`` that ``byte_range`` asks for."""
    match byte_range:
        case None:
            return value
        case RangeByteRequest(start=start, end=end):
            return value[start:end]
        case OffsetByteRequest(offset=offset):
            return value[offset:]
        case SuffixByteRequest(suffix=suffix):
            return value[max(0, len(value) - suffix) :]
    raise TypeError(f"unexpected byte range {byte_range!r}")
