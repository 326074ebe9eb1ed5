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
    """The journal belongs to another copy, or to one that is running; the message says which.

    Attributes
    ----------
    of_another
        Whether it belongs to another copy, which is not running.
    """

    def __init__(self, message: str, *, of_another: bool) -> None:
        super().__init__(message)
        self.of_another = of_another


class Journal:
    """A file with a line of JSON for the copy, and one for each block that was written.

    It is only ever appended to, so that a process can be killed at any moment: a last line that is
    cut off does not count. Blocks are recorded once the operating system has their data, which
    outlives the process, but perhaps not a loss of power.

    Parameters
    ----------
    path
        The file.
    copy
        The description of the copy, ready for JSON.

    Raises
    ------
    JournalError
        On entering: if the file is the journal of another copy, or another process has it open.
    """

    def __init__(self, path: Path, copy: Mapping[str, Any]) -> None:
        self._path = path
        self._header = json.loads(json.dumps({"version": _VERSION, **copy}))
        self._blocks: set[str] = set()
        self._file: BinaryIO | None = None

    @property
    def resumes(self) -> bool:
        """Whether blocks were written before."""
        return bool(self._blocks)

    @property
    def blocks(self) -> int:
        """The number of blocks that were written."""
        return len(self._blocks)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self._path, "a+b")
        try:
            _lock(file, self._path)
            self._read(file)
        except BaseException:
            file.close()
            raise
        self._file = file
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

    def remove(self) -> None:
        """Delete the file: the copy is complete, or is to begin anew."""
        self._path.unlink(missing_ok=True)

    def _read(self, file: BinaryIO) -> None:
        """Read the lines of an earlier run, or write the first one."""
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        header, *lines = whole.decode(errors="replace").splitlines() or [""]
        if not header:
            file.truncate(0)
            file.write(json.dumps(self._header).encode() + b"\n")
            file.flush()
            return
        self._check(header)
        file.truncate(len(whole))
        self._blocks = set(lines)

    def _check(self, header: str) -> None:
        try:
            found = dict(json.loads(header))
        except (ValueError, TypeError):
            raise JournalError(
                f"{self._path} is not the journal of a copy", of_another=True
            ) from None
        names = {*found, *self._header}
        other = sorted(name for name in names if found.get(name) != self._header.get(name))
        if other:
            named = ", ".join(other)
            raise JournalError(f"the unfinished copy there has another {named}", of_another=True)

    def _append(self, line: str) -> None:
        assert self._file is not None, "the journal is not open"
        self._file.write(line.encode() + b"\n")
        self._file.flush()


def _line(path: str, block: Block) -> str:
    return json.dumps([path, *([part.start, part.stop] for part in block)])


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other processes from the same copy, until the file is closed or the process ends."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JournalError("another process is making this copy", of_another=False) from None
    except OSError:
        # A file system without locks.
        return
