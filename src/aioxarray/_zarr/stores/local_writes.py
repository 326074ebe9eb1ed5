"""Local files, read and written with blocking calls in the thread that encodes the chunks."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from aioxarray._zarr.compat import _put
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.request import Request

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._zarr.compat import Buffer, BufferPrototype


class LocalFiles:
    """The files of a local store, read and written with blocking calls.

    Parameters
    ----------
    store
        The store.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._root = str(store.root)

    @classmethod
    def of(cls, store: Store | None) -> LocalFiles | None:
        """Return the files of a `LimitedStore` around a local store; None for any other store.

        Returns None for other wrappers around a local store, too: they may change what is written.
        """
        inner = store.inner if isinstance(store, LimitedStore) else None
        return cls(inner) if type(inner) is LocalStore else None

    def read(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        """Return the value at ``key``; None if there is none."""
        with Request("get", self._store, key) as request:
            try:
                data = Path(self._root, key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
            request.nbytes = len(data)
        return prototype.buffer.from_bytes(data)

    def write(self, key: str, value: Buffer | None) -> None:
        """Write the value at ``key`` atomically, as zarr does; None deletes it."""
        path = f"{self._root}/{key}"
        if value is None:
            with Request("delete", self._store, key):
                Path(path).unlink(missing_ok=True)
            return
        with Request("set", self._store, key, nbytes=len(value)):
            _replace(path, value)


def _replace(path: str, value: Buffer) -> None:
    if os.name == "nt":
        # On Windows a file that was just replaced may be busy for a moment; zarr handles that.
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
    # Checking for the directory each time would cost as much as writing a small file.
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = open(path, "wb", buffering=0)  # noqa: SIM115
    with file:
        rest = value.as_numpy_array().data.cast("B")
        while rest:
            # A write may be partial: Linux writes at most 2 GB per call.
            rest = rest[file.write(rest) :]
