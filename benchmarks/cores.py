"""Benchmark of local files on all cores: times, CPU seconds, and the curve over threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any, ClassVar, cast

import numpy as np

import aioxarray
from aioxarray._runtime.system.cores import usable_cores
from benchmarks import peers
from benchmarks.data import Files
from benchmarks.measuring import Options
from benchmarks.peer_rows import Goal, PeerRow, Relative
from benchmarks.peers import LOAD, OURS, TENSORSTORE, ZARRS, Read, Source, Values

TITLE = "Local files on all cores"

# More are of no use for files, whose reads hardly wait.
THREADS = (1, 2, 4, 8, 16)
# The other way of a load: with TensorStore where the load itself does without it, or without it.
BY_TENSORSTORE, WITHOUT = "aioxarray by TensorStore", "aioxarray without TensorStore"


@dataclass(frozen=True)
class CoresRow(PeerRow):
    """Row of the table: the best times of several runs, with more below it.

    Attributes
    ----------
    notes
        The CPU seconds, and the curve over threads.
    """

    COLUMNS: ClassVar[Sequence[str]] = [OURS.name, LOAD.name, ZARRS.name, TENSORSTORE.name]
    HEADER: ClassVar[Sequence[str]] = ["", *COLUMNS, "xarray/ours"]
    WIDTHS: ClassVar[Sequence[int]] = (44, *(max(9, len(name)) for name in COLUMNS), 11)

    notes: Sequence[str] = field(default=())

    def below(self) -> list[str]:
        """Return the lines below the row: notes, goals, and why a peer has no number."""
        return [*self.notes, *super().below()]


TABLE = CoresRow


@dataclass(frozen=True)
class Case:
    """Data to read, and the goals for aioxarray's time."""

    what: str
    path: Callable[[], Path]
    goals: tuple[Goal, ...]


@dataclass(frozen=True)
class Way:
    """A way to read, in so many threads; None for its default."""

    name: str
    threads: int | None = None


def run(options: Options, files: Files) -> Iterator[CoresRow]:
    """Yield the rows."""
    for case in _cases(files):
        if options.wants(case.what):
            yield _row(case, options)


def _cases(files: Files) -> Iterator[Case]:
    large = partial(files.few_large_chunks)
    yield Case("64 chunks of 2 MB, zstd", large, (Relative((TENSORSTORE,), 0.8),))
    uncompressed = partial(files.few_large_chunks, "none")
    yield Case(
        "64 chunks of 2 MB, not compressed", uncompressed, (Relative((TENSORSTORE, ZARRS), 1.0),)
    )
    yield Case(
        "4 x 2048 chunks of 4 KB, zstd", files.small_chunks, (Relative((TENSORSTORE,), 2.5),)
    )
    yield Case(
        "whole shards: 6 of 32 MB, inner 256 KB",
        files.few_shards,
        (Relative((TENSORSTORE,), 1.0), Relative((ZARRS,), 1.0)),
    )


def _row(case: Case, options: Options) -> CoresRow:
    source = Source(case.path())
    cells: dict[str, float | str] = {}
    reads: dict[Way, Read] = {}
    for peer in (OURS, LOAD, ZARRS, TENSORSTORE):
        try:
            reads[Way(peer.name)] = peers.opened(peer, source)
        except peers.Unavailable as error:
            cells[peer.name] = str(error)
    ours = reads[Way(OURS.name)]
    with_it = _is_read_by_tensorstore(source)
    if TENSORSTORE.name not in cells:
        other = WITHOUT if with_it else BY_TENSORSTORE
        reads[Way(other)] = _set(ours, tensorstore=not with_it)
    for threads in _threads():
        reads[Way(OURS.name, threads)] = _set(ours, threads=threads)
        if TENSORSTORE.name not in cells:
            reads[Way(TENSORSTORE.name, threads)] = _tensorstore(source, threads)
    expected = cast(Values, peers.opened(LOAD, source)())
    found = _measured(reads, expected, options)
    for way, taken in found.items():
        if way.threads is None and way.name in CoresRow.COLUMNS:
            cells[way.name] = taken if isinstance(taken, str) else taken[0]
    notes = [_seconds(found), *_curves(found)]
    return CoresRow(case.what, "s", cells, case.goals, notes=notes)


def _is_read_by_tensorstore(source: Source) -> bool:
    plans = aioxarray.explain(source.opened()).variables
    return any(plan.way == "tensorstore" for plan in plans)


def _threads() -> list[int]:
    return [threads for threads in THREADS if threads <= usable_cores()]


def _set(read: Read, **settings: Any) -> Read:
    async def with_settings() -> Values:
        with aioxarray.config.set(**settings):
            found = read()
            return await found if inspect.isawaitable(found) else found

    return with_settings


def _tensorstore(source: Source, threads: int) -> Read:
    import tensorstore

    limit = {"limit": threads}
    context = tensorstore.Context({"data_copy_concurrency": limit, "file_io_concurrency": limit})
    arrays = peers.tensorstore_arrays(source, context)

    def read() -> Values:
        reads = {name: array.read() for name, array in arrays.items()}
        return {name: each.result() for name, each in reads.items()}

    return read


def _measured(
    reads: Mapping[Way, Read], expected: Values, options: Options
) -> dict[Way, tuple[float, float] | str]:
    """Return the shortest time and the fewest CPU seconds of each way, or its error.

    Each round has a random order. The first one, which also imports, counts only if it is the only
    one.
    """
    rounds = 1 if options.quick else options.runs + 1
    taken: dict[Way, list[tuple[float, float]]] = {way: [] for way in reads}
    errors: dict[Way, str] = {}
    chance = Random(0)
    size = sum(value.nbytes for value in expected.values())
    for number in range(rounds):
        for way in chance.sample(list(reads), len(reads)):
            spent = sum(seconds for seconds, _ in taken[way])
            if way in errors or (number > 1 and spent >= options.seconds):
                continue
            gc.collect()
            # See `measuring.in_turn`: the memory is there already.
            np.ones(size + size // 4, np.uint8)
            begun, used = perf_counter(), process_time()
            try:
                found = asyncio.run(_awaited(reads[way]))
            except Exception as error:
                if way.name == OURS.name:
                    raise
                errors[way] = peers.reason(error)
                continue
            now = perf_counter() - begun, process_time() - used
            if number == 0:
                for name, value in found.items():
                    np.testing.assert_array_equal(value, expected[name])
            del found
            taken[way].append(now)
    return {way: errors.get(way) or _best(taken[way][1:] or taken[way]) for way in reads}


async def _awaited(read: Read) -> Values:
    found = read()
    return await found if inspect.isawaitable(found) else found


def _best(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(seconds for seconds, _ in runs), min(cpu for _, cpu in runs)


def _seconds(found: Mapping[Way, tuple[float, float] | str]) -> str:
    texts, used = [], {}
    for way, taken in found.items():
        if way.threads is None and not isinstance(taken, str):
            seconds = "" if way.name in CoresRow.COLUMNS else f" (in {taken[0]:.3f} s)"
            texts.append(f"{way.name} {taken[1]:.3f}{seconds}")
            used[way.name] = taken[1]
    shares = [
        f"{used[OURS.name] / used[name]:.2f} of {name}"
        for name in (TENSORSTORE.name, ZARRS.name)
        if used.get(name)
    ]
    return f"CPU seconds: {', '.join(texts)}; aioxarray's are {', '.join(shares) or 'alone'}"


def _curves(found: Mapping[Way, tuple[float, float] | str]) -> Iterator[str]:
    for name in (OURS.name, TENSORSTORE.name):
        points = [
            f"{taken[0]:.3f} s with {way.threads}"
            for way, taken in found.items()
            if way.name == name and way.threads is not None and not isinstance(taken, str)
        ]
        if points:
            yield f"threads, {name}: {', '.join(points)}"
