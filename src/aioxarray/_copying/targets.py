"""The places of a copy: where it grows, where it ends, and where its journal is."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.metadata.opening import holds_zarr
from aioxarray._zarr.stores.printable import printable


@dataclass(frozen=True)
class LocalTarget:
    """A file or folder, which grows as a hidden folder beside it and is renamed at the end.

    Attributes
    ----------
    path
        The path of the finished copy.
    """

    path: Path
    storage_options: ClassVar[Mapping[str, Any] | None] = None

    @property
    def name(self) -> str:
        """The path as text."""
        return str(self.path)

    @property
    def store(self) -> str:
        """The folder in which the copy grows."""
        return str(self.path.with_name(f".{self.path.name}.part"))

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return self.path.with_name(f".{self.path.name}.journal")

    def exists(self) -> bool:
        """Return whether there is something under the final name."""
        return self.path.exists()

    def has_begun(self) -> bool:
        """Return whether there is a part of a copy."""
        return os.path.isdir(self.store)

    def has_old(self) -> bool:
        """Return whether the copy grows where something else is: it never does."""
        return False

    def discard(self) -> None:
        """Delete what is there of a copy that is not finished, except its journal."""
        if self.has_begun():
            shutil.rmtree(self.store)

    def finish(self) -> None:
        """Give the folder its final name, in place of what has that now."""
        self.put(Path(self.store))

    def put(self, finished: Path) -> None:
        """Give a file or folder the final name, in place of what has that now."""
        if not self.path.is_dir():
            os.replace(finished, self.path)
            return
        # A folder cannot replace another in one step.
        old = self.path.with_name(f".{self.path.name}.old")
        if old.exists():
            shutil.rmtree(old)
        os.rename(self.path, old)
        os.rename(finished, self.path)
        shutil.rmtree(old)


@dataclass(frozen=True)
class RemoteTarget:
    """A Zarr store at a URL: its chunks have their final names, and its metadata is written last.

    Attributes
    ----------
    url
        The URL.
    storage_options
        Options for the store's client.
    """

    url: str
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The URL without credentials."""
        return printable(self.url)

    @property
    def store(self) -> str:
        """The URL."""
        return self.url

    @property
    def journal(self) -> Path:
        """The file of the journal, which is on this machine: objects cannot be appended to."""
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        key = hashlib.sha256(self.name.encode()).hexdigest()[:24]
        return Path(state).expanduser() / "aioxarray" / "copies" / f"{key}.journal"

    def exists(self) -> bool:
        """Return whether there is Zarr metadata, with three requests."""
        options = dict(self.storage_options or {}) or None
        return run_blocking(lambda: holds_zarr(self.url, group=None, storage_options=options))

    def has_begun(self) -> bool:
        """Return whether there may be a part of a copy: only the journal knows."""
        return True

    def has_old(self) -> bool:
        """Return whether there is Zarr in place of the copy, to be deleted first."""
        return self.exists()

    def discard(self) -> None:
        """Leave what is there: the chunks of the new copy take their place."""

    def finish(self) -> None:
        """Do nothing: the metadata was written last."""


Target = LocalTarget | RemoteTarget


def target_of(location: str, storage_options: Mapping[str, Any] | None) -> Target:
    """Return the target at a path or URL."""
    scheme, separator, path = location.partition("://")
    if separator and scheme != "file":
        return RemoteTarget(location, storage_options)
    return LocalTarget(Path(os.path.abspath(os.path.expanduser(path if separator else location))))
