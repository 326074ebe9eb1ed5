"""The sessions of fsspec's filesystems, which fsspec leaves to the garbage collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from zarr.abc.store import Store

S = TypeVar("S", bound="Store")

_filesystems: list[Any] = []


def closed_later(store: S) -> S:
    """Return ``store``; a fixture of this folder closes its session after the test."""
    filesystem = getattr(store, "fs", None)
    if filesystem is not None:
        _filesystems.append(filesystem)
    return store


async def close_all() -> None:
    """Close the sessions of the stores given to `closed_later`; on the I/O loop."""
    while _filesystems:
        filesystem = _filesystems.pop()
        if (s3 := getattr(filesystem, "_s3creator", None)) is not None:
            await s3.__aexit__(None, None, None)
        elif (session := getattr(filesystem, "_session", None)) is not None:
            await session.close()
