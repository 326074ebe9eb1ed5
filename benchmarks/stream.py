"""Benchmark of streams: pieces that are there when they are wanted, beside loaders for training."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from benchmarks import data, stream_memory
from benchmarks.data import Files
from benchmarks.measuring import Options
from benchmarks.peer_rows import Bound, Goal, PeerRow, Relative
from benchmarks.peers import Source
from benchmarks.stream_epochs import Epoch, epochs
from benchmarks.stream_loaders import (
    BELUGA,
    DATA_LOADER,
    INSITUBATCH,
    LOAD,
    LOADERS,
    OBSTORE,
    OURS,
    TENSORSTORE,
    XBATCHER,
    Loader,
    Pieces,
    Samples,
    Windows,
    get_all,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

TITLE = "Streams"

CONSUMER_S = LATENCY_S = 0.05
HTTP_LATENCY_S = 0.02
# As many requests as aioxarray has in flight, by default.
AT_ONCE = 128
HEIGHT, WIDTH = 256, 512
CHUNK, SIDE, WINDOW = 256, 1024, (8, 64, 64)
# The part of a sample that is compared: few values, so that the comparison takes no time.
CORNERS = (slice(None), slice(None, None, 64), slice(None, None, 128))
PACKING = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 0.0, "_FillValue": -32768}
TRAINERS = (INSITUBATCH, BELUGA)
# "The same speed class".
CLASS = 1.5
MILLION = 1_000_000


@dataclass(frozen=True)
class StreamRow(PeerRow):
    """Row of the table with a column for each loader.

    Attributes
    ----------
    pieces
        How many pieces the numbers are for; 0 if they are no times of pieces.
    notes
        More lines below the row.
    """

    COLUMNS: ClassVar[Sequence[str]] = [loader.name for loader in LOADERS]
    HEADER: ClassVar[Sequence[str]] = ["", *COLUMNS, "xarray/ours"]
    WIDTHS: ClassVar[Sequence[int]] = (52, *(max(9, len(each.name)) for each in LOADERS), 11)

    pieces: int = 0
    notes: Sequence[str] = field(default=())

    def below(self) -> list[str]:
        """Return the lines below the row: the rates, the goals, and why numbers are missing."""
        found = {name: n for name, n in self.cells.items() if isinstance(n, float)}
        rates = [f"{name} {self.pieces / seconds:.0f}" for name, seconds in found.items()]
        return [
            *([f"a second: {', '.join(rates)}"] if self.pieces else []),
            *self.notes,
            *super().below(),
        ]


TABLE = StreamRow


def run(options: Options, files: Files) -> Iterator[StreamRow]:
    """Yield the rows."""
    # So that the group takes three minutes.
    options = Options(options.quick, min(options.runs, 3), options.seconds, options.case)
    folder = files.folder("stream")
    yield from _consumers(options, folder)
    yield from _windows(options, folder)
    yield from _samples(options, folder)
    yield from _memory(options, files)


# --- a slow consumer -----------------------------------------------------------------------------


def _consumers(options: Options, folder: Path) -> Iterator[StreamRow]:
    count = options.scaled(40)
    cases = {
        "consumer 50 ms a piece, store 50 ms a request": 0.0,
        # Each piece then takes as long to transfer as it takes to consume.
        "the same, and 50 ms a piece of bandwidth": HEIGHT * WIDTH * 8 / CONSUMER_S,
    }
    if not any(map(options.wants, cases)):
        return
    path = folder / "steps.zarr"
    values = np.random.default_rng(0).normal(size=(count, HEIGHT, WIDTH))
    encoding = {"v": {"chunks": (1, HEIGHT, WIDTH), "compressors": None}}
    xr.Dataset({"v": (("time", "y", "x"), values)}).to_zarr(path, encoding=encoding)
    for what, bytes_per_s in cases.items():
        if options.wants(what):
            with ObjectServer(
                LATENCY_S, root=folder, process=True, bytes_per_s=bytes_per_s
            ) as server:
                source = Source(path, f"{server.url}/{path.name}")
                yield _consumer(what, source, values, options)


def _consumer(what: str, source: Source, values: NDArray[Any], options: Options) -> StreamRow:
    lazy = source.opened()

    def streamed() -> Iterator[NDArray[Any]]:
        with aioxarray.stream(aioxarray.blocks(lazy, {"time": 1})) as pieces:
            for piece in pieces:
                yield piece["v"].values[0]

    def one_by_one() -> Iterator[NDArray[Any]]:
        return (lazy["v"][index].values for index in range(len(values)))

    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "alone": streamed,
        OURS.name: partial(_consumed, streamed),
        LOAD.name: partial(_consumed, one_by_one),
    }
    taken = epochs(
        {name: partial(_as_is, way) for name, way in ways.items()},
        partial(_check_in_order, list(values)),
        options,
    )
    cells = _seconds(taken)
    alone = cells.pop("alone")
    assert isinstance(alone, float)
    consumer = CONSUMER_S * len(values)
    goal = Bound(1.1 * max(alone, consumer), "1.1 times the longer side")
    notes = [f"consumer {consumer:.2f} s, loading alone {alone:.2f} s"]
    return StreamRow(what, "s", cells, [goal], notes=notes)


def _consumed(way: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Take `CONSUMER_S` for each piece, as a step of training on another device does."""
    for piece in way():
        sleep(CONSUMER_S)
        yield piece


def _as_is(way: Callable[[], Iterator[Any]]) -> Pieces:
    return way


def _check_in_order(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> None:
    for pair in zip(got, expected, strict=True):
        np.testing.assert_array_equal(*pair)


# --- random windows ------------------------------------------------------------------------------


def _windows(options: Options, folder: Path) -> Iterator[StreamRow]:
    local, remote = "random windows 8 x 64 x 64, local", "random windows 8 x 64 x 64, HTTP, 20 ms"
    if not (options.wants(local) or options.wants(remote)):
        return
    steps = 64
    path = folder / "cube.zarr"
    values = data.smooth(steps, SIDE, SIDE, dtype="float32")
    with data.quiet():
        xr.Dataset({"v0": (("t", "y", "x"), values)}).to_zarr(
            path, encoding={"v0": {"chunks": (1, CHUNK, CHUNK)}}
        )
    chance = np.random.default_rng(0)
    corners = chance.integers(
        0, np.subtract(values.shape, WINDOW) + 1, (options.scaled(400), 3)
    ).tolist()
    windows = [
        {dim: slice(at, at + length) for dim, at, length in zip("tyx", corner, WINDOW, strict=True)}
        for corner in corners
    ]
    expected = [values[tuple(each.values())] for each in windows]
    if options.wants(local):
        what = Windows(Source(path), windows)
        readers = _opened((OURS, LOAD, TENSORSTORE), what)
        taken = epochs(readers, partial(_check_in_order, expected), options)
        goals = [Relative((TENSORSTORE,), 1 / 1.2)]
        yield StreamRow(local, "s", _seconds(taken), goals, pieces=len(windows))
    if options.wants(remote):
        with ObjectServer(HTTP_LATENCY_S, root=folder, process=True) as server:
            what = Windows(Source(path, f"{server.url}/{path.name}"), windows)
            keys = [key for each in windows for key in _keys(each)]
            ways: dict[str, Callable[[], Pieces]] = {
                **_opened((OURS, TENSORSTORE), what),
                OBSTORE.name: lambda: partial(_getting, f"{server.url}/{path.name}", keys),
            }
            check = partial(_check_in_order, expected)
            taken = epochs(ways, check, options, unchecked=(OBSTORE.name,))
            made = _requests(server, ways[OURS.name], "*/c/*")
        notes = [
            f"obstore: {len(keys)} requests, one for each chunk of each window, {AT_ONCE} at once; "
            f"aioxarray makes {made}, for {len(set(keys))} chunks"
        ]
        goals = [Relative((OBSTORE,), 1 / 0.8)]
        cells = _seconds(taken)
        yield StreamRow(remote, "s", cells, goals, pieces=len(windows), notes=notes)


def _requests(server: ObjectServer, way: Callable[[], Pieces], chunks: str) -> int:
    """Return how many requests for chunks a way makes."""
    read = way()
    server.log.clear()
    for _ in read():
        pass
    return server.log.count("GET", chunks)


def _keys(window: Mapping[str, slice]) -> Iterator[str]:
    """Yield the keys of the chunks that have a part of the window."""
    t, y, x = window.values()
    for i in range(t.start, t.stop):
        for j in range(y.start // CHUNK, math.ceil(y.stop / CHUNK)):
            for k in range(x.start // CHUNK, math.ceil(x.stop / CHUNK)):
                yield f"v0/c/{i}/{j}/{k}"


def _getting(url: str, keys: Sequence[str]) -> Iterator[NDArray[Any]]:
    asyncio.run(get_all(url, keys, AT_ONCE))
    yield np.empty(0)


# --- samples for training ------------------------------------------------------------------------


def _samples(options: Options, folder: Path) -> Iterator[StreamRow]:
    layouts = {each: f"samples of 512 KB, {each} a chunk, HTTP, 20 ms" for each in (1, 8, 32)}
    packed = "samples of 512 KB, 8 a chunk, packed by CF"
    if not any(map(options.wants, (*layouts.values(), packed))):
        return
    count = options.scaled(512)
    # Numbers of two digits, which int16 with a scale holds too.
    field_ = np.round(data.smooth(HEIGHT, WIDTH) % 100, 2)
    values = (field_ + np.arange(count).reshape(-1, 1, 1) % 200).astype("float32")
    ds = xr.Dataset(
        {"v": (("time", "latitude", "longitude"), values)},
        {
            "time": np.datetime64("2000-01-01", "ns") + np.timedelta64(6, "h") * np.arange(count),
            "latitude": np.linspace(-90, 90, HEIGHT),
            "longitude": np.arange(WIDTH) * 360 / WIDTH,
        },
    )
    bucket = folder / "samples"
    with ObjectServer(HTTP_LATENCY_S, root=folder, process=True) as server:
        ours: dict[int, float] = {}
        for each, what in layouts.items():
            if options.wants(what) or (each == 8 and options.wants(packed)):
                path = bucket / f"{each}.zarr"
                _store(ds, path, {"chunks": (each, HEIGHT, WIDTH)})
                samples = Samples(path, server.url, count, each)
                taken = _trained(samples, values, options)
                made = _requests(server, _opened([OURS], samples)[OURS.name], "*/v/*.0.0")
                chunks = math.ceil(count / each)
                note = f"aioxarray makes {made} requests, for {chunks} chunks"
                row, first = _rows_of_samples(what, taken, count, note)
                yield from (row, first)
                ours[each] = row.ours
        if options.wants(packed):
            path = bucket / "packed.zarr"
            _store(ds, path, {"chunks": (8, HEIGHT, WIDTH), **PACKING})
            taken = _trained(Samples(path, server.url, count, 8), values, options, atol=0.006)
            why = f"{CLASS:g} times the time without packing"
            goals = [Bound(CLASS * ours[8], why)]
            yield StreamRow(packed, "s", _seconds(taken), goals, pieces=count)


def _store(ds: xr.Dataset, path: Path, encoding: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with data.quiet():
        ds.to_zarr(path, zarr_format=2, encoding={"v": dict(encoding)})


def _rows_of_samples(
    what: str, taken: Mapping[str, Epoch | str], count: int, note: str
) -> tuple[StreamRow, StreamRow]:
    goals: list[Goal] = [Relative(TRAINERS, 1 / 0.9)]
    first = {name: e if isinstance(e, str) else e.first_s for name, e in taken.items()}
    return (
        StreamRow(what, "s", _seconds(taken), goals, pieces=count, notes=[note]),
        StreamRow("    until the first batch, with the open", "s", first, [Bound(0.5)]),
    )


def _trained(
    samples: Samples, values: NDArray[Any], options: Options, atol: float = 0.0
) -> dict[str, Epoch | str]:
    """Measure epochs of all loaders of samples."""
    expected = _sorted(values[CORNERS])

    def check(got: Sequence[NDArray[Any]]) -> None:
        np.testing.assert_allclose(_sorted(np.concatenate(got)), expected, rtol=0, atol=atol)

    loaders = (OURS, XBATCHER, DATA_LOADER, *TRAINERS)
    return epochs(
        _opened(loaders, samples), check, options, part=CORNERS, starting=(DATA_LOADER.name,)
    )


def _sorted(samples: NDArray[Any]) -> NDArray[Any]:
    """Sort samples by a value in each that differs."""
    flat = np.asarray(samples, dtype="float64").reshape(len(samples), -1)
    return flat[np.lexsort(np.round(flat, 1).T[::-1])]


def _opened(loaders: Sequence[Loader], what: Samples | Windows) -> dict[str, Callable[[], Pieces]]:
    found: dict[str, Callable[[], Pieces]] = {}
    for loader in loaders:
        if isinstance(what, Samples):
            assert loader.samples is not None
            found[loader.name] = partial(loader.samples, what)
        else:
            assert loader.windows is not None
            found[loader.name] = partial(loader.windows, what)
    return found


def _seconds(taken: Mapping[str, Epoch | str]) -> dict[str, float | str]:
    return {name: e if isinstance(e, str) else e.seconds for name, e in taken.items()}


# --- memory --------------------------------------------------------------------------------------


def _memory(options: Options, files: Files) -> Iterator[StreamRow]:
    for what, case in stream_memory.CASES.items():
        if options.wants(what):
            path = files.large_chunks()
            peak = _child("peak", str(path), what)
            goal = Bound(case.limit_mb, "ahead, a piece and 64 MB")
            yield StreamRow(what, "MB", {OURS.name: peak}, [goal])
    count = options.scaled(100_000)
    what = f"growth over an endless stream, {count} pieces"
    if options.wants(what):
        yield StreamRow(what, "MB", {OURS.name: _child("growth", str(count))}, [Bound(8)])
    what = "growth over an endless stream, a million pieces"
    # It takes five minutes: only if it is asked for.
    if options.case and options.wants(what):
        begun = perf_counter()
        grown = _child("growth", str(MILLION))
        notes = [f"{MILLION / (perf_counter() - begun):.0f} pieces a second"]
        yield StreamRow(what, "MB", {OURS.name: grown}, [Bound(8)], notes=notes)


def _child(*arguments: str) -> float:
    """Measure memory in a process of its own, in MB."""
    child = subprocess.run(
        [sys.executable, "-m", stream_memory.__name__, *arguments], capture_output=True, text=True
    )
    try:
        return float(child.stdout)
    except ValueError:
        raise RuntimeError(f"{OURS.name} failed: {child.stderr}") from None
