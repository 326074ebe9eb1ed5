"""Benchmark of reads limited by the machine, compared with all peers on the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from aioxarray.testing import ObjectServer
from benchmarks import data, peers
from benchmarks.data import Files
from benchmarks.measuring import Bystander, Options, Taken, in_turn
from benchmarks.peer_rows import Bound, Goal, PeerRow, Relative
from benchmarks.peers import (
    FUSED,
    LOAD,
    OURS,
    PEERS,
    TENSORSTORE,
    XARRAY,
    ZARRS,
    Read,
    Source,
    Unavailable,
    Values,
)

TITLE = "Time to read"
TABLE = PeerRow
ORACLE = LOAD
SLOW = "not tried: it would take a minute"


@dataclass(frozen=True)
class Case:
    """Data to read, and the goals for aioxarray's time.

    Attributes
    ----------
    what
        The case's name in the table.
    path
        Function that creates the store and returns its path.
    goals
        Bounds on aioxarray's time.
    part
        The selection along each dimension.
    skipped
        By peer name, the reason to skip the peer.
    """

    what: str
    path: Callable[[], Path]
    goals: tuple[Goal, ...] = ()
    part: Mapping[str, slice] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


def run(options: Options, files: Files) -> Iterator[PeerRow]:
    """Yield the rows."""
    for case in _local(files):
        if options.wants(case.what):
            yield _row(case, options)
    remote = [case for case in _remote(files) if options.wants(case.what)]
    if remote:
        # In its own process, so that it does not hold this one's GIL.
        with ObjectServer(root=files.root, process=True) as server:
            for case in remote:
                yield _row(case, options, server.url)
    yield from _many_chunks(options, files)


def _local(files: Files) -> Iterator[Case]:
    yield Case(
        "local, 4 x 2048 chunks of 4 KB, zstd",
        files.small_chunks,
        (Relative(XARRAY, 1 / 8), Relative((TENSORSTORE,), 2.5)),
    )
    yield Case(
        "local, 4 x 128 chunks of 2 MB, zstd",
        files.large_chunks,
        (Relative(XARRAY, 1 / 1.4), Relative((TENSORSTORE,), 0.85)),
    )
    for name in ("blosc", "gzip", "none"):
        path = partial(files.large_chunks, name)
        goal = Relative((*XARRAY, FUSED, ZARRS), 1.1)
        yield Case(f"local, 4 x 128 chunks of 2 MB, {name}", path, (goal,))
    shards = Case(
        "local, 16 shards of 32 MB, inner 256 KB", files.shards, (Relative((TENSORSTORE,), 1.0),)
    )
    yield shards
    yield replace(
        shards,
        what="local, one corner of each of 16 shards",
        part=data.CORNERS,
        goals=(Relative((TENSORSTORE,), 1.5),),
    )


def _remote(files: Files) -> Iterator[Case]:
    yield Case(
        "HTTP, 4 x 2048 chunks of 4 KB, zstd", files.small_chunks, (Relative(XARRAY, 1 / 5),)
    )
    yield Case(
        "HTTP, 4 x 128 chunks of 2 MB, zstd", files.large_chunks, (Relative((TENSORSTORE,), 0.75),)
    )


def _many_chunks(options: Options, files: Files) -> Iterator[PeerRow]:
    """Yield rows that check that the time per chunk does not grow with the number of chunks."""
    few, many = options.scaled(10_000), options.scaled(100_000)
    path = partial(files.many_chunks, many)
    less = Case(f"local, {few} chunks of 1 KB", path, part={"t": slice(0, 256 * few)})
    if not options.wants(less.what):
        return
    row = _row(less, options)
    yield row
    # A tenth more is within the noise.
    goal = Bound(1.1 * row.ours * many / few, f"{many // few} times that of {few}, and a tenth")
    tried = PEERS if options.quick else (OURS, TENSORSTORE, ZARRS)
    skipped = {peer.name: SLOW for peer in PEERS if peer not in tried}
    yield _row(Case(f"local, {many} chunks of 1 KB", path, (goal,), skipped=skipped), options)


def _row(case: Case, options: Options, server: str | None = None) -> PeerRow:
    local = Source(case.path(), part=case.part)
    source = replace(local, url=server and f"{server}/{local.path.name}")
    cells: dict[str, float | str] = dict(case.skipped)
    reads: dict[str, Read] = {}
    for peer in PEERS:
        if peer.name not in cells:
            try:
                reads[peer.name] = peers.opened(peer, source)
            except Unavailable as error:
                cells[peer.name] = str(error)
    # zarr's own reads of the files are the reference, also over HTTP.
    expected = cast(Values, peers.opened(ORACLE, local)())
    ours = None
    # Reading a gigabyte sometimes takes twice as long, so comparing two ways takes more runs.
    more = replace(options, runs=2 * options.runs - 1, seconds=1.5 * options.seconds)
    size = sum(value.nbytes for value in expected.values())
    check = partial(_check, expected)
    used_before = size + size // 4
    with Bystander() as bystander:
        found = in_turn(reads, check, more, used_before, bystander)
    for name, taken in found.items():
        if isinstance(taken, Taken):
            cells[name] = taken.seconds
            ours = taken if name == OURS.name else ours
        elif name == OURS.name:
            raise taken
        else:
            cells[name] = peers.reason(taken)
    stalls = (None, None) if ours is None else (ours.stall_ms, ours.calm_stall_ms)
    return PeerRow(case.what, "s", cells, case.goals, *stalls)


def _check(expected: Values, values: Values) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])
