"""``python -m benchmarks.faults``: run the matrix of faults and print it as a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.faults.cells import FAULTS, ONCE, VERBS, WHENS, Cell, cells
from benchmarks.faults.clients import CLIENTS, READ_TIMEOUT
from benchmarks.faults.runner import CellRunner
from benchmarks.faults.verdicts import VERDICTS, Result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected cells; return 1 if any of them misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    some: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--client", choices=CLIENTS, **some)
    parser.add_argument("--fault", choices=FAULTS, **some)
    parser.add_argument("--verb", choices=VERBS, **some)
    parser.add_argument("--when", choices=WHENS, **some)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument(
        "--read-timeout",
        type=float,
        metavar="SECONDS",
        help="let obstore give up requests that bring nothing for so long",
    )
    parser.add_argument("--verbose", action="store_true", help="print each cell")
    options = parser.parse_args(argv)
    if options.read_timeout is not None:
        # For the processes that run the cells.
        os.environ[READ_TIMEOUT] = str(options.read_timeout)
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
    """Run cells in a process of their own."""
    with CellRunner() as runner:
        for cell in chosen:
            result = runner.run(cell)
            if verbose:
                print(f"{cell}: {result.verdict} ({result.seconds} s) {result.detail}", flush=True)
            yield result


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
