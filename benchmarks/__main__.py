"""``python -m benchmarks``: run the benchmarks and print what they found."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep

from benchmarks import budget, cancelling, latency, rows, saving, stalls, throughput
from benchmarks.data import Files, quiet
from benchmarks.measuring import Neighbours, Options

GROUPS = {
    "latency": latency,
    "budget": budget,
    "stalls": stalls,
    "cancelling": cancelling,
    "throughput": throughput,
    "saving": saving,
}


BUSY = ": too much for the stalls to be trusted."


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder, and remove it however the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="aioxarray-benchmarks-"))
    try:
        yield folder
    except BaseException:
        # What was interrupted while it stored goes on writing for a moment, on zarr's loop.
        until = perf_counter() + 10
        while folder.exists() and perf_counter() < until:
            shutil.rmtree(folder, ignore_errors=True)
            sleep(1)
        raise
    shutil.rmtree(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that were asked for; a missed goal is told, and is no error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="NAME",
        help=f"one of {', '.join(GROUPS)}; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="little data, one run each")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args(argv)
    options = Options(quick=True, runs=1) if arguments.quick else Options()

    # Else a time limit set from outside would leave a gigabyte of temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun, neighbours = perf_counter(), Neighbours()
    found: list[tuple[str, list[rows.Row]]] = []
    print(rows.machine())
    print("load and load_async: plain xarray's. ratio: load over aioxarray. Medians.\n")
    print(rows.line(rows.HEADER))
    with temporary_folder() as folder, quiet():
        files = Files(folder, options)
        for name in arguments.only or GROUPS:
            group = GROUPS[name]
            print(f"\n{group.TITLE}")
            found.append((group.TITLE, []))
            for row in group.run(options, files):
                found[-1][1].append(row)
                print(rows.line(row.cells()), flush=True)
    goals = [row.met for _, group_rows in found for row in group_rows if row.met is not None]
    print(f"\n{sum(goals)} of {len(goals)} goals met; {perf_counter() - begun:.0f} s in all")
    share = neighbours.share()
    print(f"Other processes took {share:.0%} of the cores meanwhile{BUSY if share > 0.1 else '.'}")
    if arguments.quick:
        print("These are no measurements: a quick run has little data, and loads it once.")
    if arguments.markdown:
        arguments.markdown.write_text(rows.markdown(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
