"""Reads local files in the thread that decodes them.

zarr reads each file in a thread of its own and hands the bytes on. They come from the page cache,
mostly, so reading is work for a processor like decoding: more threads than processors only get in
each other's way, and in that of the caller's event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore, StorePath

from aioxarray._zarr.store import LimitedStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype


def file_reader(getter: Any, prototype: BufferPrototype) -> Callable[[], Buffer | None] | None:
    """Return what reads the chunk of ``getter`` by a plain call, if it is a local file.

    None for any other store, and for one that wraps a local store: nothing goes round a wrapper.
    """
    if not isinstance(getter, StorePath) or not isinstance(getter.store, LimitedStore):
        return None
    store = getter.store.inner
    if type(store) is not LocalStore:
        return None
    return partial(_read, Path(store.root) / getter.path, prototype)


def _read(path: Path, prototype: BufferPrototype) -> Buffer | None:
    try:
        return prototype.buffer.from_bytes(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        # What zarr takes for a missing chunk.
        return None
