"""Files of other formats in object stores: as file objects, and as Zarr arrays of byte ranges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.dtype import parse_dtype
from zarr.storage import StorePath

from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr import tuning
from aioxarray._zarr.compat import ArrayV2Metadata, AsyncArray
from aioxarray._zarr.stores.request import Request, send_alone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import Buffer, BufferPrototype


class Index(Protocol):
    """The byte ranges of an array's chunks in a file."""

    def find(self, number: int) -> tuple[int, int, int] | None:
        """Return offset, length and padding, in bytes, of the chunk ``number`` (in C order).

        None if the file does not have the chunk: its values are the fill value.
        """


@dataclass(frozen=True)
class ChunkIndex:
    """An index of chunks that each have an offset and a length of their own.

    Attributes
    ----------
    numbers
        The numbers of the chunks that exist, in ascending order.
    offsets, lengths
        The offset and length of each of them, in bytes.
    """

    numbers: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def find(self, number: int) -> tuple[int, int, int] | None:
        at = int(np.searchsorted(self.numbers, number))
        if at == len(self.numbers) or self.numbers[at] != number:
            return None
        return int(self.offsets[at]), int(self.lengths[at]), 0


@dataclass(frozen=True)
class ContiguousIndex:
    """An index of contiguous values, split into chunks of equal length.

    The last chunk may be shorter in the file; it is padded.
    """

    offset: int
    length: int
    chunk_length: int

    def find(self, number: int) -> tuple[int, int, int] | None:
        start = number * self.chunk_length
        length = min(self.chunk_length, self.length - start)
        return self.offset + start, length, self.chunk_length - length


def contiguous_chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the shape of chunks of about 4 MiB for values that are stored contiguously.

    Only the first axis longer than one is split, so that each chunk is one byte range.
    """
    axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
    if axis is None:
        return shape
    row_bytes = prod(shape[axis + 1 :]) * itemsize
    rows = min(shape[axis], max(1, tuning.CONTIGUOUS_CHUNK_BYTES // row_bytes))
    return (*shape[:axis], rows, *shape[axis + 1 :])


class FileChunks(Store):
    """A read-only store of the chunks of arrays in one object.

    It has no metadata documents: `array` adds and returns the arrays.

    Parameters
    ----------
    client
        An obstore store.
    path
        The path of the object in it.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, client: Any, path: str) -> None:
        super().__init__(read_only=True)
        # The attribute name of zarr's ``ObjectStore``, which `usable_after_fork` looks for.
        self.store = client
        self._path = path
        self._arrays: dict[str, tuple[tuple[int, ...], Index]] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Store.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def array(
        self,
        name: str,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunk_shape: tuple[int, ...],
        filters: tuple[Any, ...],
        fill_value: Any,
        index: Index,
    ) -> zarr.Array[Any]:
        """Add an array, and return it.

        Parameters
        ----------
        name
            The array's path in the store.
        shape, dtype, chunk_shape, fill_value
            As for any Zarr array.
        filters
            The numcodecs codecs that encoded the chunks, in the order of encoding.
        index
            The byte ranges of the chunks.
        """
        metadata = ArrayV2Metadata(
            shape=shape,
            dtype=parse_dtype(dtype, zarr_format=2),
            chunks=chunk_shape,
            fill_value=fill_value,
            order="C",
            filters=filters[:-1] or None,
            compressor=filters[-1] if filters else None,
        )
        grid = tuple(-(-size // chunk) for size, chunk in zip(shape, chunk_shape, strict=True))
        self._arrays[name] = grid, index
        return zarr.Array(AsyncArray(metadata, StorePath(self, name)))

    def _find(self, key: str) -> tuple[int, int, int] | None:
        """Return offset, length and padding, in bytes, of the chunk at ``key`` in the file.

        None if the file does not have it.
        """
        name, _, chunk = key.rpartition("/")
        if name not in self._arrays:
            return None
        grid, index = self._arrays[name]
        try:
            at = tuple(int(each) for each in chunk.split(".")) if grid else ()
            return index.find(int(np.ravel_multi_index(at, grid)) if grid else 0)
        except ValueError:
            # Not the key of a chunk: zarr sometimes asks for metadata documents.
            return None

    def length_of(self, key: str) -> int | None:
        """Return the bytes of the chunk at ``key`` in the file; None if the file does not have it.

        Without a request.
        """
        place = self._find(key)
        return None if place is None else place[1]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        place = self._find(key)
        if place is None:
            return None
        offset, length, padding = place
        first, last = _within(byte_range, length + padding)
        wanted = min(last, length) - first
        data = b""
        if wanted > 0:
            start = offset + first
            data = await self.store.get_range_async(self._path, start=start, length=wanted)
        buffer = prototype.buffer.from_bytes(data)
        missing = last - first - max(wanted, 0)
        return buffer + prototype.buffer.from_bytes(bytes(missing)) if missing else buffer

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        name, _, _ = key.rpartition("/")
        return name in self._arrays

    async def set(self, key: str, value: Buffer) -> None:
        raise _read_only(self)

    async def delete(self, key: str) -> None:
        raise _read_only(self)

    async def list(self) -> AsyncIterator[str]:
        for name in self._arrays:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in self._arrays:
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async for name in self.list_prefix(prefix):
            yield name


class ObjectFile:
    """An object in an obstore store, as a file for `ReadAheadFile`, which counts the requests.

    Parameters
    ----------
    client, key
        The obstore store, and the path of the object in it.
    name
        The ``repr``, which h5py and xarray take for the name of the file.
    """

    def __init__(self, client: Any, key: str, name: str) -> None:
        self._client = client
        self._key = key
        self._name = name
        self.size: int = run_blocking(self._size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._client, self._key, self._name)

    def __repr__(self) -> str:
        return self._name

    async def _size(self) -> int:
        request = Request("exists", self._client, self._key)
        found: Any = await send_alone(request, lambda: self._client.head_async(self._key))
        return int(found["size"])

    async def fetch_async(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` up to, but excluding, ``end``; on the I/O loop."""
        return bytes(await self._client.get_range_async(self._key, start=start, end=end))

    def close(self) -> None:
        """Do nothing: an obstore store holds no file open."""


def _within(byte_range: ByteRequest | None, length: int) -> tuple[int, int]:
    """Return the start and the (exclusive) end of ``byte_range`` in a chunk of ``length`` bytes."""
    match byte_range:
        case RangeByteRequest(start, end):
            return min(start, length), min(end, length)
        case OffsetByteRequest(offset):
            return min(offset, length), length
        case SuffixByteRequest(suffix):
            return max(0, length - suffix), length
        case _:
            return 0, length


def _read_only(store: Store) -> ValueError:
    return ValueError(f"{store!r} is part of a file and can only be read")
