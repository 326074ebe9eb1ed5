"""Denials: answers of clients that say "there is nothing", though the server has failed.

Callers would open too little, or take missing chunks for the fill value.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore

from aioxarray._zarr.stores.identity import unwrapped
from aioxarray._zarr.stores.retries.errors import transient

if TYPE_CHECKING:
    from zarr.abc.store import Store


def is_icechunk(store: Store) -> bool:
    """Return whether ``store`` is one of icechunk's."""
    # If icechunk has not been imported, the store cannot be icechunk's.
    return type(store) is getattr(sys.modules.get("icechunk"), "IcechunkStore", None)


async def exists(store: Store, key: str) -> bool:
    """Return whether ``store`` has ``key``; raise the error of a server that is overloaded.

    fsspec takes every status from 400 on for "there is none". Some servers answer so with 403,
    which therefore is no error here.
    """
    if type(store) is not FsspecStore or not _is_http(store.fs):
        return await store.exists(key)
    path = "/".join(filter(None, (store.path.rstrip("/"), key)))
    try:
        found: bool = await store.fs._exists(path, strict=True)
    except Exception as error:
        if transient(error) is not None:
            raise
        return False
    return found


async def check_snapshot(store: Store) -> None:
    """Raise the error that made ``store`` say that it has nothing, if there was one.

    icechunk says so if it cannot read its snapshot, except when asked whether a key exists. That
    makes no further request once it has the snapshot. It has no keys of format 2, and raises
    KeyError for these.
    """
    if is_icechunk(unwrapped(store)):
        await store.exists("zarr.json")


def _is_http(filesystem: Any) -> bool:
    http = sys.modules.get("fsspec.implementations.http")
    return type(filesystem) is getattr(http, "HTTPFileSystem", None)
