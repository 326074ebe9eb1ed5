"""``python -m benchmarks``: run the benchmarks and print the results."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep

from benchmarks import (
    adaptive,
    budget,
    cancelling,
    cluster,
    copying,
    cores,
    files,
    growth,
    large,
    latency,
    memory,
    opening,
    processes,
    requests,
    rows,
    saving,
    sharing,
    stalls,
    stream,
    throughput,
    tracing,
    trees,
)
from benchmarks.data import Files, quiet
from benchmarks.measuring import Neighbours, Options

GROUPS = {
    "opening": opening,
    "trees": trees,
    "files": files,
    "processes": processes,
    "latency": latency,
    "budget": budget,
    "growth": growth,
    "large": large,
    "stalls": stalls,
    "cancelling": cancelling,
    "throughput": throughput,
    "cores": cores,
    "requests": requests,
    "memory": memory,
    "sharing": sharing,
    "stream": stream,
    "saving": saving,
    "copying": copying,
    "adaptive": adaptive,
    "tracing": tracing,
    "cluster": cluster,
}


BUSY = ": too much for the stalls to be trusted."


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a temporary folder, and remove it however the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="aioxarray-benchmarks-"))
    try:
        yield folder
    except BaseException:
        # An interrupted save may continue to write for a moment, on zarr's loop.
        until = perf_counter() + 10
        while folder.exists() and perf_counter() < until:
            shutil.rmtree(folder, ignore_errors=True)
            sleep(1)
        raise
    shutil.rmtree(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected benchmarks; a missed goal is reported, but is not an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="NAME",
        help=f"one of {', '.join(GROUPS)}; may be repeated",
    )
    parser.add_argument(
        "--case",
        default="",
        metavar="TEXT",
        help="in opening, throughput, stream and large, only the rows with this text in their name "
        "(for opening's last three kinds: icechunk, open_mfdataset, local; for large: million)",
    )
    parser.add_argument("--quick", action="store_true", help="little data, one run each")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args(argv)
    options = Options(case=arguments.case)
    if arguments.quick:
        options = replace(options, quick=True, runs=1)

    # Otherwise an external time limit would leave a gigabyte of temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun, neighbours = perf_counter(), Neighbours()
    found: list[tuple[str, type[rows.AnyRow], list[rows.AnyRow]]] = []
    print(rows.machine())
    print("load and load_async: plain xarray's. ratio: load over aioxarray. Medians.")
    table: type[rows.AnyRow] | None = None
    with temporary_folder() as folder, quiet():
        made = Files(folder, options)
        for name in arguments.only or GROUPS:
            group = GROUPS[name]
            if group.TABLE is not table:
                table = group.TABLE
                print(f"\n{rows.line(table, table.HEADER)}")
            print(f"\n{group.TITLE}")
            found.append((group.TITLE, group.TABLE, []))
            for row in group.run(options, made):
                found[-1][2].append(row)
                print(rows.line(group.TABLE, row.texts()), flush=True)
                for text in row.below():
                    print(f"    {text}", flush=True)
    goals = [met for _, _, group_rows in found for row in group_rows for met in row.met()]
    print(f"\n{sum(goals)} of {len(goals)} goals met; {perf_counter() - begun:.0f} s in all")
    share = neighbours.share()
    others = f"Other processes took {share:.0%} of the cores meanwhile"
    print(f"{others}{BUSY if share > 0.1 else '.'}")
    if arguments.quick:
        print("These are no measurements: a quick run has little data, and loads it once.")
    if arguments.markdown:
        text = f"{rows.markdown(found)}\n{others}.\n"
        arguments.markdown.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
