"""Benchmark of opening datasets, trees and many files, at 50 ms per request and from disk."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import LatencyStore, ObjectServer
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Objects, Options, check_same
from benchmarks.rows import Row

TITLE = "Time to open, 50 ms per request; then from local disk"
LATENCY_S = 0.05


class OpeningRow(Row):
    """Times of plain xarray, of plain xarray with ``engine="aio"``, and of aioxarray."""

    HEADER = ("", "plain", "engine aio", "aioxarray", "ratio", "goal", "")


TABLE = OpeningRow
# Goals: at least 10 times as fast as plain xarray; on a local disk, at most 10% slower.
MANY, LOCAL = 10, 1.1

_Way = Callable[[], Objects]


def run(options: Options, files: Files) -> Iterator[OpeningRow]:
    """Yield the rows."""
    variables, indexes, nodes = (10, 4, 3) if options.quick else (70, 30, 13)
    wide = _wide(variables, indexes)
    tree = xr.DataTree.from_dict(
        {"/": _wide(4, 2), **{f"/node{i}": _wide(4, 2) for i in range(1, nodes)}}
    )
    cases: list[tuple[str, Objects, str, bool, float]] = [
        (f"{variables} variables, consolidated", wide, "open_dataset", True, 250),
        (f"{variables} variables, not consolidated", wide, "open_dataset", False, 400),
        (f"a tree of {nodes} nodes, consolidated", tree, "open_datatree", True, 300),
        (f"a tree of {nodes} nodes, not consolidated", tree, "open_datatree", False, 650),
        (f"load_dataset of {variables} variables", wide, "load_dataset", True, 320),
    ]
    for what, obj, function, consolidated, goal in cases:
        if not options.wants(what):
            continue
        store = LatencyStore(_stored(MemoryStore(), obj, consolidated), LATENCY_S)
        ways = _ways(function, store, consolidated=consolidated)
        yield _row(what, ways, options, partial(_fixed, goal), store)
    if options.wants("icechunk"):
        yield _icechunk(options, files.folder("icechunk"))
    if options.wants("open_mfdataset"):
        yield _many_files(options, files.folder("many"))
    if options.wants("local"):
        yield from _local(options, files, wide, tree)


def _icechunk(options: Options, folder: Path) -> OpeningRow:
    """Open a tree of many groups in an icechunk repository, as on S3."""
    import icechunk

    # Its warnings about local storage would appear between the rows.
    icechunk.set_logs_filter("error")
    groups = 6 if options.quick else 107
    tree = xr.DataTree.from_dict({f"/g{i}": _wide(10, 2) for i in range(groups)})
    local = icechunk.local_filesystem_storage(str(folder / "bucket" / "repository"))
    repository = icechunk.Repository.create(local)
    session = repository.writable_session("main")
    # Not with xarray's own to_zarr, which takes minutes for so many groups.
    with data.quiet():
        aioxarray.to_zarr(tree, session.store, consolidated=False)
    session.commit("all")
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

        def way(opening: Callable[..., Objects], engine: str) -> _Way:
            # Reopened each time: a repository caches what it has read.
            def call() -> Objects:
                store = icechunk.Repository.open(storage).readonly_session("main").store
                return opening(store, engine=engine, consolidated=False)

            return call

        ways = [
            way(xr.open_datatree, "zarr"),
            way(xr.open_datatree, "aio"),
            way(_awaited("open_datatree"), "zarr"),
        ]
        what = f"icechunk: {groups} groups of 10 variables, 2 indexes"
        return _row(
            what,
            ways,
            options,
            lambda plain: plain / MANY,
            server,
            sample=lambda tree: tree.match("*0"),
        )


def _many_files(options: Options, folder: Path) -> OpeningRow:
    """Open many netCDF files behind an HTTP server as one dataset."""
    count = 10 if options.quick else 200
    for path, part in _parts(count, folder):
        part.to_netcdf(path, engine="netcdf4")
    with ObjectServer(LATENCY_S, folder, process=True) as server:
        urls = [f"{server.url}/{path.name}" for path in sorted(folder.glob("*.nc"))]
        return _row(
            f"open_mfdataset of {count} netCDF files",
            [
                lambda: xr.open_mfdataset(urls, engine="h5netcdf", parallel=False),
                # xarray takes such URLs for OPeNDAP's.
                None,
                lambda: _awaited("open_mfdataset")(urls, engine="h5netcdf"),
            ],
            options,
            lambda plain: plain / MANY,
            server,
            sample=_sampled,
        )


def _local(
    options: Options, files: Files, wide: xr.Dataset, tree: xr.DataTree
) -> Iterator[OpeningRow]:
    """Open from a local disk, where no gain is expected."""
    folder = files.folder("local")
    for consolidated in (True, False):
        said = "consolidated" if consolidated else "not consolidated"
        for obj, function in ((wide, "open_dataset"), (tree, "open_datatree")):
            kind = "tree" if isinstance(obj, xr.DataTree) else "variables"
            path = _stored(folder / f"{kind}-{said}", obj, consolidated)
            ways = _ways(function, path, consolidated=consolidated)
            yield _row(f"local: Zarr {kind}, {said}", ways, options, lambda plain: plain * LOCAL)
    wide.to_netcdf(folder / "wide.nc", engine="h5netcdf")
    for engine in ("h5netcdf", "netcdf4"):
        path, opening = folder / "wide.nc", _awaited("open_dataset")
        both: list[_Way | None] = [
            partial(xr.open_dataset, path, engine=engine),
            None,
            partial(opening, path, engine=engine),
        ]
        yield _row(f"local: {engine}", both, options, lambda plain: plain * LOCAL)
    paths = []
    for path, part in _parts(5 if options.quick else 40, folder):
        part.to_netcdf(path, engine="netcdf4")
        paths.append(path)
    yield _row(
        f"local: open_mfdataset of {len(paths)} netCDF files",
        [
            lambda: xr.open_mfdataset(paths, engine="h5netcdf"),
            lambda: xr.open_mfdataset(paths, engine="aio"),
            lambda: _awaited("open_mfdataset")(paths, engine="h5netcdf"),
        ],
        options,
        lambda plain: plain * LOCAL,
        sample=_sampled,
    )


def _fixed(goal: float, plain: float) -> float:
    return goal


def _wide(variables: int, indexes: int) -> xr.Dataset:
    """Return variables, some of which are index coordinates, one of them times."""
    start = np.datetime64("2001-01-01", "ns")
    coords: dict[str, Any] = {"time": start + np.arange(50) * np.timedelta64(1, "D")}
    coords |= {f"x{i}": np.arange(50.0) + i for i in range(indexes - 1)}
    dims = list(coords)
    field = data.smooth(50, 50, dtype="float32")
    each = range(variables - indexes)
    return xr.Dataset(
        {f"v{i}": (("time", dims[1 + i % (indexes - 1)]), field) for i in each}, coords
    )


def _parts(count: int, folder: Path) -> Iterator[tuple[Path, xr.Dataset]]:
    """Yield the paths and datasets of many files, each 50 days long."""
    for day in range(count):
        part = _wide(7, 3)
        yield (
            folder / f"{day:03}.nc",
            part.assign_coords(time=part.time + np.timedelta64(50 * day, "D")),
        )


def _sampled(files: xr.Dataset) -> xr.Dataset:
    """Return one time step of every tenth dataset that `_parts` yields."""
    return files.isel(time=slice(None, None, 500))


def _stored(store: Any, obj: Objects, consolidated: bool) -> Any:
    with data.quiet():
        obj.to_zarr(store, consolidated=consolidated)
    return store


def _awaited(name: str) -> Callable[..., Objects]:
    opening = getattr(aioxarray, f"{name}_async")

    def call(*args: Any, **options: Any) -> Objects:
        results = []

        async def main() -> None:
            # Not returned: `asyncio.run` ends slowly if the result has a long repr, because
            # `signal.getsignal` computes the repr of the main task.
            results.append(await opening(*args, **options))

        asyncio.run(main())
        return results.pop()

    return call


def _ways(function: str, source: Any, **options: Any) -> list[_Way]:
    plain, ours = getattr(xr, function), _awaited(function)
    return [
        lambda: plain(source, engine="zarr", **options),
        lambda: plain(source, engine="aio", **options),
        lambda: ours(source, engine="zarr", **options),
    ]


def _row(
    what: str,
    ways: Sequence[_Way | None],
    options: Options,
    goal: Callable[[float], float],
    slow: LatencyStore | ObjectServer | None = None,
    sample: Callable[[Any], Objects] = lambda opened: opened,
) -> OpeningRow:
    """Return a row: plain xarray, plain xarray with our engine (None: not measured), and ours.

    ``slow`` is the store or server with latency. ``sample`` selects the data to load and compare:
    with plain xarray, loading everything takes longer than opening it.
    """
    medians = iter(_medians_ms([way for way in ways if way is not None], options, slow, sample))
    plain, engine, ours = (None if way is None else next(medians) for way in ways)
    assert plain is not None
    assert ours is not None
    return OpeningRow(what, "ms", plain, engine, ours, goal(plain))


def _medians_ms(
    ways: Sequence[_Way],
    options: Options,
    slow: LatencyStore | ObjectServer | None,
    sample: Callable[[Any], Objects],
) -> list[float]:
    """Return the medians of the ways, run in turn; their results are compared first."""
    taken: list[list[float]] = [[] for _ in ways]
    opened = [_timed(way, times) for way, times in zip(ways, taken, strict=True)]
    if slow is not None:
        # The comparison loads the data with plain xarray, variable by variable: for minutes.
        slow.latency_s = 0.0
    for result in opened[1:]:
        check_same(sample(result), sample(opened[0]))
    if slow is not None:
        slow.latency_s = LATENCY_S
    for each in opened:
        each.close()
    # The first run of each also imports and connects.
    warm: list[list[float]] = [[] for _ in ways]
    runs = 0 if options.quick else options.runs * (1 if taken[0][0] > options.seconds / 4 else 3)
    for _ in range(runs):
        for way, first, times in zip(ways, taken, warm, strict=True):
            if sum(times) + first[0] < options.seconds:
                _timed(way, times).close()
    return [1000 * median(times or first) for times, first in zip(warm, taken, strict=True)]


def _timed(way: _Way, times: list[float]) -> Objects:
    # Garbage of the previous way must not slow this one down.
    gc.collect()
    start = perf_counter()
    result = way()
    times.append(perf_counter() - start)
    return result
