"""Advice for layouts that make a load slow, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aioxarray._xarray.lazy.sizes import size_text

# Smaller objects take more time for their requests than for their bytes.
_SMALL_BYTES = 64 << 10
# Fewer requests than this are made at once by default.
_MANY_REQUESTS = 256
_MANY_OBJECTS = 100_000
# A selection that reads this many times what it wants does not follow the chunks.
_OVER_READ = 8
_MUCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """The stored form of a variable, and what a load reads of it.

    Attributes
    ----------
    chunk_shape, chunk_bytes
        The shape of what one request reads, and its decoded bytes.
    is_sharded
        Whether there are shards.
    is_local
        Whether the store is in memory or consists of local files.
    requests
        The requests.
    chunks
        The chunks that are read, inner chunks of shards if there are these.
    wanted
        The bytes that are wanted; None if unknown.
    obstacle
        The codec or dtype because of which zarr's own codecs decode; None if there is none.
    """

    chunk_shape: tuple[int, ...]
    chunk_bytes: int
    is_sharded: bool
    is_local: bool
    requests: int
    chunks: int
    wanted: int | None
    obstacle: str | None


def advice(layout: Layout) -> Iterator[str]:
    """Yield sentences about what in ``layout`` costs much, and the way out."""
    size = size_text(layout.chunk_bytes)
    if not layout.is_sharded:
        if layout.requests >= _MANY_OBJECTS:
            yield (
                f"{layout.requests:,} requests, one for each object of {size}: store it in shards, "
                "or in larger chunks"
            )
        elif (
            layout.requests >= _MANY_REQUESTS
            and layout.chunk_bytes < _SMALL_BYTES
            and not layout.is_local
        ):
            yield (
                f"{layout.requests:,} requests for chunks of {size}: store it in chunks of some "
                "MiB, or in shards"
            )
    read = layout.chunks * layout.chunk_bytes
    if layout.wanted and read >= max(_MUCH_BYTES, _OVER_READ * layout.wanted):
        yield (
            f"reads {read / layout.wanted:,.0f} times the values that it wants, because the "
            f"selection takes a small part of each chunk of shape {layout.chunk_shape}: store it "
            "in chunks that follow such selections"
        )
    if layout.obstacle is not None and not layout.obstacle.startswith("dtype"):
        yield (
            f"zarr's own code decodes it, chunk by chunk, because of {layout.obstacle}: zstd, "
            "blosc, lz4, gzip, zlib, shuffle and crc32c have a faster way"
        )
