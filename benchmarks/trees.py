"""Benchmark of opening trees of many groups, as of a radar archive, at 50 ms per request."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import numpy as np
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import ObjectServer, StallMonitor
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, check_same
from benchmarks.peer_rows import Bound, Goal, PeerRow, Relative
from benchmarks.peers import Peer, Source, Unavailable

TITLE = "Trees of many groups, 50 ms per request"
LATENCY_S = 0.05
# Of the repository, its snapshot, the manifests, and the values.
ROUND_TRIPS = 8
STALL_MS = 20.0
SWEEPS = 12


def _unused(_: Source) -> Any:
    raise NotImplementedError("these peers open trees; they do not read sources")


PLAIN, RUSTYTREE, OURS = (Peer(name, _unused) for name in ("plain", "rustytree", "aioxarray"))


@dataclass(frozen=True)
class TreeRow(PeerRow):
    """Row of the table with a column for each library; ``notes`` are more lines below the row."""

    COLUMNS: ClassVar[Sequence[str]] = [PLAIN.name, RUSTYTREE.name, OURS.name]
    HEADER: ClassVar[Sequence[str]] = ["", *COLUMNS, "rustytree/ours"]
    WIDTHS: ClassVar[Sequence[int]] = (56, 9, 9, 9, 14)

    notes: Sequence[str] = field(default=())

    def below(self) -> list[str]:
        """Return the lines below the row."""
        return [*self.notes, *super().below()]

    def _ratio(self) -> str:
        theirs = self.cells.get(RUSTYTREE.name)
        return f"{theirs / self.ours:.2f}x" if isinstance(theirs, float) else ""


TABLE = TreeRow


class _Taken(NamedTuple):
    seconds: float
    cpu_s: float
    stall_ms: float
    requests: int


Way = Callable[[], Any]


def run(options: Options, files: Files) -> Iterator[TreeRow]:
    """Yield the rows."""
    folder = files.folder("trees")
    for groups, runs in ((107, 5), (1000, 3)):
        count = 13 if options.quick else groups
        if options.quick and groups > 107:
            continue
        yield from _of_size(count, 1 if options.quick else runs, options, folder / str(groups))


def _of_size(groups: int, runs: int, options: Options, folder: Path) -> Iterator[TreeRow]:
    small = groups <= 107
    names = [
        f"icechunk: {groups} groups of 8 variables, 3 coordinates",
        f'icechunk: /*/sweep_0 of {groups} groups ("group_filter")',
        f"Zarr over HTTP, consolidated: {groups} groups",
    ]
    if not any(map(options.wants, names)):
        return
    import icechunk

    # Its warnings about local storage would appear between the rows.
    icechunk.set_logs_filter("error")
    _store(groups, folder / "bucket")
    with ObjectServer(LATENCY_S, folder, process=True) as server:
        storage = icechunk.s3_storage(
            bucket="bucket",
            prefix="repository",
            endpoint_url=server.url,
            region="us-east-1",
            allow_http=True,
            anonymous=True,
            force_path_style=True,
        )

        def session() -> Any:
            # Opened each time, and counted for all: a repository keeps what it has read.
            return icechunk.Repository.open(storage).readonly_session("main").store

        def plain() -> Any:
            return xr.open_datatree(session(), engine="zarr", consolidated=False)

        def rusty(**more: Any) -> Way:
            return lambda: xr.open_datatree(session(), engine="rustytree", **more)

        def ours(**more: Any) -> Way:
            async def opened() -> Any:
                store = await asyncio.to_thread(session)
                return await aioxarray.open_datatree_async(
                    store, engine="zarr", consolidated=False, **more
                )

            return opened

        # Plain xarray is measured once, since it takes a request after the other.
        ways: dict[str, tuple[Way, int]] = {
            RUSTYTREE.name: (rusty(), runs),
            OURS.name: (ours(), runs),
        }
        if small:
            ways = {PLAIN.name: (plain, 1), **ways}
        goals: list[Goal] = [Relative((RUSTYTREE,), 1.0)]
        if not small:
            goals.append(Bound(2 + ROUND_TRIPS * LATENCY_S, f"2 s and {ROUND_TRIPS} round trips"))
        if options.wants(names[0]):
            yield _row(names[0], ways, goals, server)
        if options.wants(names[1]):
            pattern = {"group_filter": "/*/sweep_0"}
            filtered = {
                RUSTYTREE.name: (rusty(**pattern), runs),
                OURS.name: (ours(**pattern), runs),
            }
            yield _row(names[1], filtered, [Relative((RUSTYTREE,), 1.0)], server)
        if options.wants(names[2]):
            url = f"{server.url}/bucket/zarr"

            async def by_http() -> Any:
                return await aioxarray.open_datatree_async(url, engine="zarr", consolidated=True)

            of_http: dict[str, tuple[Way, int]] = {OURS.name: (by_http, runs)}
            if small:
                of_http[PLAIN.name] = (
                    lambda: xr.open_datatree(url, engine="zarr", consolidated=True),
                    1,
                )
            cells = {RUSTYTREE.name: "it refuses consolidated metadata"}
            yield _row(names[2], of_http, [Relative((PLAIN,), 0.1)], server, cells)


def _row(
    what: str,
    ways: Mapping[str, tuple[Way, int]],
    goals: Sequence[Goal],
    server: ObjectServer,
    absent: Mapping[str, str] | None = None,
) -> TreeRow:
    """Return the row: the best of the runs of each way, in turn; the first results are compared."""
    taken: dict[str, list[_Taken]] = {name: [] for name in ways}
    cells: dict[str, float | str] = dict(absent or {})
    compared: Any = None
    for turn in range(max(runs for _, runs in ways.values())):
        for name, (way, runs) in ways.items():
            if turn >= runs or isinstance(cells.get(name), str):
                continue
            try:
                measured, tree = _measured(way, server)
            except (ImportError, Unavailable, ValueError) as error:
                if name != RUSTYTREE.name:
                    raise
                cells[name] = _missing(error)
                continue
            taken[name].append(measured)
            if not turn:
                part = _part(tree, server)
                if compared is None:
                    compared = part
                elif name == OURS.name and PLAIN.name in ways:
                    check_same(part, compared)
            del tree
    best = {name: min(each) for name, each in taken.items() if each}
    cells |= {name: each.seconds for name, each in best.items()}
    ours = min(taken[OURS.name], key=lambda each: each.stall_ms)
    notes = [
        f"{name}: {each.requests} requests, {min(one.cpu_s for one in taken[name]):.2f} s of CPU"
        for name, each in best.items()
    ]
    return TreeRow(what, "s", cells, goals, stall_ms=ours.stall_ms, notes=notes)


def _measured(way: Way, server: ObjectServer) -> tuple[_Taken, Any]:
    gc.collect()
    found: list[Any] = []

    async def watched() -> float:
        async with StallMonitor() as stalls:
            result = way()
            # Only ours is asynchronous: the others stall the loop for as long as they take.
            found.append(await result if asyncio.iscoroutine(result) else result)
        return stalls.worst_s * 1000

    server.log.clear()
    cpu, begun = _cpu_s(), perf_counter()
    stall_ms = asyncio.run(watched())
    seconds, cpu_s = perf_counter() - begun, _cpu_s() - cpu
    return _Taken(seconds, cpu_s, stall_ms, len(server.log.requests)), found.pop()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _part(tree: Any, server: ObjectServer) -> Any:
    """Return a part of the tree, loaded."""
    server.latency_s = 0.0
    try:
        return tree.match("/VCP-0/sweep_[01]").load()
    finally:
        server.latency_s = LATENCY_S


def _missing(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    if "rustytree" in text:
        return "rustytree-xarray is not installed (Python 3.12 and later)"
    return f"{type(error).__name__}: {text[:100]}"


# --- the data ------------------------------------------------------------------------------------


def _store(groups: int, folder: Path) -> None:
    """Save the tree as an icechunk repository and as consolidated Zarr.

    One group is encoded, and its documents and chunks are stored for all: with ``to_zarr``, a
    thousand groups would take minutes. The times of each group begin at another day.
    """
    import icechunk

    encoded = MemoryStore()
    with data.quiet():
        _sweep().to_zarr(encoded, consolidated=False)
    group = {key: value.to_bytes() for key, value in encoded._store_dict.items()}
    local = icechunk.local_filesystem_storage(str(folder / "repository"))
    session = icechunk.Repository.create(local).writable_session("main")
    contents = dict(_contents(groups, group))
    # Values of a store are buffers of zarr's.
    buffer = default_buffer_prototype().buffer

    async def save() -> None:
        for key, content in contents.items():
            await session.store.set(key, buffer.from_bytes(content))

    asyncio.run(save())
    session.commit("all")
    documents = {
        key.removesuffix("/zarr.json"): json.loads(content)
        for key, content in contents.items()
        if key.endswith("/zarr.json")
    }
    # Parents first, as zarr does.
    by_depth = dict(sorted(documents.items(), key=lambda item: item[0].count("/")))
    inside = {"kind": "inline", "must_understand": False, "metadata": by_depth}
    whole = {**json.loads(contents["zarr.json"]), "consolidated_metadata": inside}
    contents["zarr.json"] = json.dumps(whole).encode()
    for key, content in contents.items():
        path = folder / "zarr" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _contents(groups: int, group: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and values of a tree of volumes of sweeps, each of which is ``group``."""
    bare = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    yield "zarr.json", bare
    made = 1
    for volume in itertools.count():
        if made >= groups:
            return
        yield f"VCP-{volume}/zarr.json", bare
        made += 1
        for sweep in range(min(SWEEPS, groups - made)):
            made += 1
            day = str(np.datetime64("2001-01-01") + made).encode()
            for key, content in group.items():
                units = content.replace(b"2001-01-01", day) if key == "time/zarr.json" else content
                yield f"VCP-{volume}/sweep_{sweep}/{key}", units


def _sweep() -> xr.Dataset:
    """Return 8 variables with two index coordinates and a time for each azimuth."""
    azimuth, distance = np.arange(90) + 0.5, np.arange(40) * 250.0
    moments = data.smooth(90, 40, dtype="float32")
    start = np.datetime64("2001-01-01", "ns")
    times = start + np.arange(90) * np.timedelta64(20, "ms")
    named = {"units": "dBZ", "standard_name": "equivalent_reflectivity_factor"}
    return xr.Dataset(
        {f"moment{i}": (("azimuth", "range"), moments, named) for i in range(8)},
        {"azimuth": azimuth, "range": distance, "time": ("azimuth", times)},
    )
