"""Runs cells in another process, which a hang or a crash may take with it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.faults.cells import Cell
from benchmarks.faults.verdicts import Result

# More than a cell may take, with what it leaves behind; a process also starts in it.
PATIENCE_S = 60.0


class CellRunner:
    """Runs cells one after the other, in a process that is replaced when it must be."""

    def __init__(self) -> None:
        self._process: _Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, cell: Cell) -> Result:
        """Run one cell."""
        if self._process is None:
            self._process = _Process()
        result = self._process.run(cell)
        if result is None:
            code = self._end()
            if code is None:
                return Result(cell, "hang", f"no answer after {PATIENCE_S:g} s")
            return Result(cell, "not run", f"it could not be prepared: exit code {code}")
        if result.verdict == "leak":
            # What is left must not count against the next cell.
            self._end()
        return result

    def _end(self) -> int | None:
        process, self._process = self._process, None
        return None if process is None else process.end()


class _Process:
    """A process that runs cells; see `benchmarks.faults.worker`."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        )
        if self._line() is None:
            self.end()
            raise RuntimeError("the process of the cells did not start")

    def run(self, cell: Cell) -> Result | None:
        """Run a cell; return None if there is no result in time."""
        assert self._process.stdin is not None
        print(json.dumps(cell), file=self._process.stdin, flush=True)
        line = self._line()
        return None if line is None else Result.from_json(json.loads(line))

    def _line(self) -> str | None:
        """Return its next line; None if there is none in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            return None
        return self._process.stdout.readline() or None

    def end(self) -> int | None:
        """End the process, by force if it is stuck; return its exit code, or None if it was."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        finally:
            self._process.stdout.close()
