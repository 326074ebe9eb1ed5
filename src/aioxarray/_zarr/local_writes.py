"""Writes local files in the thread that encodes them, as `aioxarray._zarr.local` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore, StorePath

# Private: how zarr writes a file so that it is there whole or not at all. Public is only the
# coroutine around it, which takes a thread of its own for each file.
from zarr.storage._local import _put

from aioxarray._zarr.store import LimitedStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype


def local_path(setter: Any) -> Path | None:
    """Return the file of the chunk of ``setter``, if it is one.

    None for any other store, and for one that wraps a local store: nothing goes round a wrapper.
    """
    if not isinstance(setter, StorePath) or not isinstance(setter.store, LimitedStore):
        return None
    store = setter.store.inner
    if type(store) is not LocalStore:
        return None
    return Path(store.root) / setter.path


def read_file(path: Path, prototype: BufferPrototype) -> Buffer | None:
    """Return what is in the file of a chunk; None if there is none."""
    try:
        return prototype.buffer.from_bytes(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def write_file(path: Path, value: Buffer | None) -> None:
    """Write the file of a chunk; None deletes it."""
    if value is None:
        path.unlink(missing_ok=True)
    else:
        _put(path, value)
