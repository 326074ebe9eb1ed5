"""Writes local files in the thread that encodes them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

# Private: how zarr writes a file so that it is there whole or not at all. Public is only the
# coroutine around it, which takes a thread of its own for each file.
from zarr.storage._local import _put

from aioxarray._zarr.stores.request import LimitedStore

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer, BufferPrototype


def local_root(store: Store | None) -> str | None:
    """Return the directory of a limited ``store``, if it is one.

    None for any other store, and for one that wraps a local store: nothing goes round a wrapper.
    """
    inner = store.inner if isinstance(store, LimitedStore) else None
    return str(inner.root) if type(inner) is LocalStore else None


def read_file(path: str, prototype: BufferPrototype) -> Buffer | None:
    """Return what is in the file of a chunk; None if there is none."""
    try:
        return prototype.buffer.from_bytes(Path(path).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def write_file(path: str, value: Buffer | None) -> None:
    """Write the file of a chunk; None deletes it.

    As zarr writes it: it is there whole or not at all.
    """
    if value is None:
        Path(path).unlink(missing_ok=True)
        return
    if os.name == "nt":
        # There a name that was just replaced may be busy for a moment; zarr knows what to do.
        _put(Path(path), value)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        _write(temporary, value)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write(path: str, value: Buffer) -> None:
    # Asking for the directory each time would cost as much as writing a small file.
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = open(path, "wb", buffering=0)  # noqa: SIM115
    with file:
        rest = value.as_numpy_array().data.cast("B")
        while rest:
            # The system may take a part only: at most 2 GB at once.
            rest = rest[file.write(rest) :]
