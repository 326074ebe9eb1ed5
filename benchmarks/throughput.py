"""How fast data is read where the work is the machine's: beside all peers, on the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import numpy as np

from aioxarray.testing import ObjectServer
from benchmarks import data, peers
from benchmarks.data import Files
from benchmarks.measuring import Options, Taken, in_turn
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
    """Data to read, and what is asked of aioxarray's time.

    Attributes
    ----------
    what
        The case's name in the table.
    source
        The data.
    goals
        Bounds on aioxarray's time, each relative to the fastest of some peers.
    skipped
        Why a peer is left out, by its name.
    """

    what: str
    source: Source
    goals: tuple[Goal, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def run(options: Options, files: Files) -> Iterator[PeerRow]:
    """Yield the rows."""
    small = Case(
        "local, 4 x 2048 chunks of 4 KB, zstd",
        Source(files.small_chunks()),
        (Relative(XARRAY, 1 / 8), Relative((TENSORSTORE,), 2.5)),
    )
    large = Case(
        "local, 4 x 128 chunks of 2 MB, zstd",
        Source(files.large_chunks()),
        (Relative(XARRAY, 1 / 1.4), Relative((TENSORSTORE,), 0.85)),
    )
    yield _row(small, options)
    yield _row(large, options)
    # In a process of its own, so that it does not hold this one's interpreter lock.
    with ObjectServer(root=small.source.path.parent, process=True) as server:
        for case, goal in (
            (small, Relative(XARRAY, 1 / 5)),
            (large, Relative((TENSORSTORE,), 0.75)),
        ):
            url = f"{server.url}/{case.source.path.name}"
            what = case.what.replace("local", "HTTP")
            yield _row(Case(what, replace(case.source, url=url), (goal,)), options)
    shards = Source(files.shards())
    yield _row(
        Case("local, 16 shards of 32 MB, inner 256 KB", shards, (Relative((TENSORSTORE,), 1.0),)),
        options,
    )
    yield _row(
        Case(
            "one corner of each of these shards",
            replace(shards, part=data.CORNERS),
            (Relative((TENSORSTORE,), 1.5),),
        ),
        options,
    )
    for name in ("blosc", "gzip", "none"):
        source = Source(files.large_chunks(name))
        goal = Relative((*XARRAY, FUSED, ZARRS), 1.1)
        yield _row(Case(f"local, 4 x 128 chunks of 2 MB, {name}", source, (goal,)), options)
    yield from _many_chunks(options, files)


def _many_chunks(options: Options, files: Files) -> Iterator[PeerRow]:
    """Time a chunk must not grow with the number of chunks."""
    few, many = options.scaled(10_000), options.scaled(100_000)
    source = Source(files.many_chunks(many))
    less = replace(source, part={"t": slice(0, 256 * few)})
    row = _row(Case(f"local, {few} chunks of 1 KB", less), options)
    yield row
    skipped = {
        peer.name: SLOW
        for peer in PEERS
        if peer not in (OURS, TENSORSTORE, ZARRS) and not options.quick
    }
    # A tenth more is chance.
    goal = Bound(1.1 * row.ours * many / few, f"{many // few} times that of {few}, and a tenth")
    yield _row(Case(f"local, {many} chunks of 1 KB", source, (goal,), skipped), options)


def _row(case: Case, options: Options) -> PeerRow:
    cells: dict[str, float | str] = dict(case.skipped)
    reads: dict[str, Read] = {}
    for peer in PEERS:
        if peer.name not in cells:
            try:
                reads[peer.name] = peers.opened(peer, case.source)
            except Unavailable as error:
                cells[peer.name] = str(error)
    # What zarr itself reads from the files is the oracle for all, also over HTTP.
    expected = cast(Values, peers.opened(ORACLE, replace(case.source, url=None))())
    stall_ms = None
    for name, taken in in_turn(reads, partial(_check, expected), options).items():
        if isinstance(taken, Taken):
            cells[name] = taken.seconds
            stall_ms = taken.stall_ms if name == OURS.name else stall_ms
        elif name == OURS.name:
            raise taken
        else:
            cells[name] = peers.reason(taken)
    return PeerRow(case.what, "s", cells, case.goals, stall_ms)


def _check(expected: Values, values: Values) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])
