"""``python -m benchmarks.faults``: run the matrix of faults and print it as a table."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults.cells import FAULTS, ONCE, VERBS, WHENS, Cell, cells
from benchmarks.faults.clients import CLIENTS
from benchmarks.faults.verdicts import VERDICTS, Result

# More than a cell may take, with what it leaves behind; a process also starts in it.
PATIENCE_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected cells; return 1 if any of them misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    some = {"action": "append", "default": []}
    parser.add_argument("--client", choices=CLIENTS, **some)
    parser.add_argument("--fault", choices=FAULTS, **some)
    parser.add_argument("--verb", choices=VERBS, **some)
    parser.add_argument("--when", choices=WHENS, **some)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--verbose", action="store_true", help="print each cell")
    options = parser.parse_args(argv)
    begun = time.monotonic()
    chosen = list(cells(options.client, options.fault, options.verb, options.when))
    results = run(chosen, options.jobs, options.verbose)
    print("\n".join(table(results)))
    print("\n".join(misses(results)))
    print(f"\n{time.monotonic() - begun:.0f} s in all")
    if options.json is not None:
        texts = [json.dumps(each.to_json()) for each in results]
        options.json.write_text("[\n" + ",\n".join(texts) + "\n]\n", encoding="utf-8")
    return 0 if all(each.meets_goal for each in results) else 1


def run(chosen: Sequence[Cell], jobs: int = 1, verbose: bool = False) -> list[Result]:
    """Run cells, those of a client in one process; return their results in order."""
    by_client = [[cell for cell in chosen if cell.client == name] for name in CLIENTS]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda each: list(_run_in_process(each, verbose)), by_client)
        return [result for results in found for result in results]


def _run_in_process(chosen: Iterable[Cell], verbose: bool) -> Iterator[Result]:
    """Run cells in a process, and in a new one after it was stuck."""
    process: _Process | None = None
    try:
        for cell in chosen:
            process = process or _Process()
            result = process.run(cell)
            if result is None:
                code = process.end()
                result = Result(cell, "hang", f"no answer after {PATIENCE_S:g} s")
                if code is not None:
                    result = Result(cell, "not run", f"it could not be prepared: exit code {code}")
                process = None
            if verbose:
                print(f"{cell}: {result.verdict} ({result.seconds} s) {result.detail}", flush=True)
            if process is not None and result.verdict == "leak":
                # What is left must not count against the next cell.
                process.end()
                process = None
            yield result
    finally:
        if process is not None:
            process.end()


class _Process:
    """A process that runs cells; see `benchmarks.faults.worker`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        if self._line() is None:
            self.end()
            raise RuntimeError("the process of the cells did not start")

    def run(self, cell: Cell) -> Result | None:
        """Run a cell; return None if there is no result in time."""
        assert self._process.stdin is not None
        print(json.dumps(cell), file=self._process.stdin, flush=True)
        line = self._line()
        if line is None:
            return None
        values = json.loads(line)
        del values["client"], values["fault"], values["verb"], values["when"]
        return Result(cell, **values)

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


def table(results: Sequence[Result]) -> Iterator[str]:
    """Return the lines of a table: the verdicts by fault, client, and once or always."""
    short = dict(zip(VERDICTS, "rcvwhl-", strict=True))
    yield "r right, c clear error, v vague, w wrong, h hang, l leak, - not run, . not possible"
    yield f"each: {' '.join(VERBS)} at the {', '.join(ONCE)} request, and always"
    found = {result.cell: short[result.verdict] for result in results}
    clients = [name for name in CLIENTS if any(cell.client == name for cell in found)]
    yield " ".join([f"{'':16}", *(f"{name:19}" for name in clients)]).rstrip()
    for fault in FAULTS:
        if not any(cell.fault == fault for cell in found):
            continue
        columns = []
        for client in clients:
            groups = [
                "".join(found.get(Cell(client, fault, verb, when), ".") for when in WHENS)
                for verb in VERBS
            ]
            columns.append(f"{' '.join(groups):19}")
        yield " ".join([f"{fault:16}", *columns]).rstrip()
    yield ""
    yield " ".join([f"{'':16}", *(f"{name:>12}" for name in VERDICTS), f"{'misses goal':>12}"])
    for name, whens in (("once", ONCE), ("always", ("always",))):
        of = [each for each in results if each.cell.when in whens]
        counts = Counter(each.verdict for each in of)
        missed = sum(not each.meets_goal for each in of)
        numbers = [f"{counts[verdict]:12}" for verdict in VERDICTS]
        yield " ".join([f"{name:16}", *numbers, f"{missed:12}"])


def misses(results: Sequence[Result]) -> Iterator[str]:
    """Return a line for each cell that misses its goal."""
    for each in results:
        if not each.meets_goal:
            yield f"{each.cell}: {each.verdict} after {each.seconds} s: {each.detail}"


if __name__ == "__main__":
    sys.exit(main())
