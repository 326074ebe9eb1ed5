"""The journal of a copy: which copy it is, and which blocks it has written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from aioxarray._xarray.saving.ledger import Block

_VERSION = 1


class JournalError(Exception):
    """The journal belongs to another copy, or to one that is running; the message says which."""


class Journal:
    """A file with a line of JSON for the copy, and one for each block that was written.

    It is only ever appended to, so that a process can be killed at any moment: a last line that is
    cut off does not count. Blocks are recorded once the operating system has their data, which
    outlives the process, but perhaps not a loss of power.

    As a context manager it keeps other processes from the same copy. It is a `Ledger` for saves.

    Parameters
    ----------
    path
        The file.
    copy
        The description of the copy, ready for JSON.
    replaces
        Whether to begin anew if the file has blocks of another copy.

    Raises
    ------
    JournalError
        On entering: if the file has blocks of another copy, or another process has it open.
    """

    def __init__(self, path: Path, copy: Mapping[str, Any], *, replaces: bool = False) -> None:
        self._path = path
        self._header = json.dumps({"version": _VERSION, **copy})
        self._replaces = replaces
        self._blocks: set[str] = set()
        self._file: BinaryIO | None = None

    @property
    def blocks(self) -> int:
        """The number of blocks that were written."""
        return len(self._blocks)

    def recorded(self) -> int:
        """Return the number of blocks in the file, and change nothing.

        Raises JournalError if they are of another copy.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        return len(self._lines(content))

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self._path, "a+b")
        try:
            _lock(file)
            file.seek(0)
            content = file.read()
            self._blocks = set(self._lines(content))
            file.truncate(_whole(content) if self._blocks else 0)
        except BaseException:
            file.close()
            raise
        self._file = file
        if not self._blocks:
            self._append(self._header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def has(self, path: str, block: Block) -> bool:
        """Return whether a block has been written; see `Ledger`."""
        return _line(path, block) in self._blocks

    def add(self, path: str, block: Block) -> None:
        """Record a block. The line is short and the file local, so that no thread is needed."""
        line = _line(path, block)
        self._append(line)
        self._blocks.add(line)

    def clear(self) -> None:
        """Forget all blocks."""
        assert self._file is not None, "the journal is not open"
        self._file.truncate(0)
        self._blocks.clear()
        self._append(self._header)

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)

    def _lines(self, content: bytes) -> list[str]:
        """Return the lines of blocks of this copy in a file; those of another one are an error."""
        header, *lines = content[: _whole(content)].decode(errors="replace").splitlines() or [""]
        if not lines or header == self._header:
            return lines
        if self._replaces:
            return []
        own, found = json.loads(self._header), _document(header)
        other = sorted(name for name in {*own, *found} if own.get(name) != found.get(name))
        raise JournalError(
            f"the unfinished copy there has another {', '.join(other)}: give the arguments of that "
            "one to resume it, or --overwrite to discard it"
        )

    def _append(self, line: str) -> None:
        assert self._file is not None, "the journal is not open"
        self._file.write(line.encode() + b"\n")
        self._file.flush()


def _whole(content: bytes) -> int:
    """Return the length of the lines that are not cut off."""
    return content.rfind(b"\n") + 1


def _document(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _line(path: str, block: Block) -> str:
    return json.dumps([path, *([part.start, part.stop] for part in block)])


def _lock(file: BinaryIO) -> None:
    """Keep other processes from the same copy, until the file is closed or the process ends."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JournalError("another process is making this copy") from None
    except OSError:
        # A file system without locks.
        return
