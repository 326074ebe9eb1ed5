"""Benchmark of many requests to a nearby server, beside TensorStore, xarray and bare clients.

Several server processes with prebuilt answers share the machine with the client, so both the time
and the processor time of the client are given. The bare clients only get the bytes: they show how
many requests a second the client library and the server can do.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from zarr.storage import FsspecStore

import aioxarray
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options
from benchmarks.peers import Source, tensorstore_arrays
from benchmarks.rows import number
from benchmarks.serving import PrebuiltServer

if TYPE_CHECKING:
    import xarray as xr

TITLE = "Many requests to a nearby server"

# Requests in flight, in the bare clients.
_THREADS, _COROUTINES = 8, 32


@dataclass(frozen=True)
class Case:
    """Data to read, and goals.

    Attributes
    ----------
    what
        The case's name in the table.
    path
        Function that creates the store and returns its path.
    of_tensorstore
        The most time through obstore, as a multiple of TensorStore's.
    a_second
        The fewest requests a second through obstore, and through fsspec; None without such a goal.
    """

    what: str
    path: Callable[[Files], Path]
    of_tensorstore: float
    a_second: tuple[int, int] | None = None


CASES = (
    Case("4 x 128 chunks of 2 MB", Files.large_chunks, 1.0),
    Case("2048 chunks of 256 KB", Files.medium_chunks, 1.0),
    Case("4 x 2048 chunks of 4 KB", Files.small_chunks, 2.0, (15_000, 8_000)),
    Case("16 shards of 32 MB, inner 256 KB", Files.shards, 1.0),
)


@dataclass
class Taken:
    """The best of several runs of a way: seconds, the client's processor time, the server's."""

    seconds: float = float("inf")
    cpu_s: float = float("inf")
    server_s: float = float("inf")


@dataclass(frozen=True)
class RequestsRow:
    """Row with the seconds of each way, and goals for aioxarray's.

    Attributes
    ----------
    what
        The row's label.
    taken
        What each way took, or why it has no number.
    count
        The number of objects that are read.
    case
        The case, with its goals.
    """

    COLUMNS: ClassVar[Sequence[str]] = (
        "obstore gets",
        "fsspec gets",
        "TensorStore",
        "load_async",
        "aioxarray",
        "ours, fsspec",
    )
    HEADER: ClassVar[Sequence[str]] = ["", *COLUMNS]
    WIDTHS: ClassVar[Sequence[int]] = (34, 12, 12, 12, 12, 12, 12)

    what: str
    taken: Mapping[str, Taken | str]
    count: int
    case: Case
    verdicts: list[tuple[str, bool]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdicts", list(self._verdicts()))

    def texts(self) -> list[str]:
        """Return the row's cells as strings."""
        cells = [self.taken.get(name, "") for name in self.COLUMNS]
        return [self.what, *("-" if isinstance(c, str) else number(c.seconds, "s") for c in cells)]

    def below(self) -> list[str]:
        """Return the lines below the row: processor time, requests a second, and the goals."""
        found = {name: taken for name, taken in self.taken.items() if isinstance(taken, Taken)}
        cpu = ", ".join(f"{name} {taken.cpu_s:.2f}" for name, taken in found.items())
        each = ", ".join(
            f"{name} {1e6 * taken.cpu_s / self.count:.0f}" for name, taken in found.items()
        )
        a_second = ", ".join(
            f"{name} {self.count / taken.seconds:.0f}" for name, taken in found.items()
        )
        server = min((taken.server_s for taken in found.values()), default=0.0)
        why = [f"{name}: {text}" for name, text in self.taken.items() if isinstance(text, str)]
        return [
            f"CPU s: {cpu}; server {server:.2f}",
            f"CPU µs an object: {each}",
            f"objects a second: {a_second}",
            *(f"{text} {'met' if met else 'MISSED'}" for text, met in self.verdicts),
            *why,
        ]

    def met(self) -> list[bool]:
        """Return for each goal whether it was met."""
        return [met for _, met in self.verdicts]

    def _verdicts(self) -> Iterator[tuple[str, bool]]:
        ours, peer = self.taken["aioxarray"], self.taken["TensorStore"]
        most = self.case.of_tensorstore
        if isinstance(ours, Taken) and isinstance(peer, Taken):
            share, of_cpu = ours.seconds / peer.seconds, ours.cpu_s / peer.cpu_s
            yield f"{share:.2f} of TensorStore (<= {most}; CPU {of_cpu:.2f})", share <= most
        if self.case.a_second is None:
            return
        through = ("aioxarray", "obstore gets"), ("ours, fsspec", "fsspec gets")
        for (name, bare), fewest in zip(through, self.case.a_second, strict=True):
            taken, gets = self.taken[name], self.taken[bare]
            if isinstance(taken, Taken) and isinstance(gets, Taken):
                a_second = self.count / taken.seconds
                beside = f"{gets.seconds / taken.seconds:.2f} of the {bare}"
                yield f"{name}: {a_second:.0f} a second (>= {fewest}; {beside})", a_second >= fewest


TABLE = RequestsRow


def run(options: Options, files: Files) -> Iterator[RequestsRow]:
    """Yield the rows."""
    chosen = [case for case in CASES if options.wants(case.what)]
    with PrebuiltServer(files.root) as server:
        for case in chosen:
            yield _row(case, case.path(files), server, options)


def _row(case: Case, path: Path, server: PrebuiltServer, options: Options) -> RequestsRow:
    keys = [
        f"{path.name}/{file.relative_to(path).as_posix()}"
        for file in path.rglob("*")
        if file.is_file() and "c" in file.relative_to(path).parts
    ]
    source = Source(path, f"{server.url}/{path.name}")
    by_obstore = source.opened()
    with data.quiet():
        fsspec_store = FsspecStore.from_url(f"{server.url}/{path.name}", read_only=True)
    by_fsspec = data.opened(fsspec_store)
    expected = {str(name): v.values for name, v in Source(path).opened().data_vars.items()}

    def checked(loaded: Mapping[str, Any]) -> None:
        for name, values in expected.items():
            np.testing.assert_array_equal(np.asarray(loaded[name]), values)

    ways: dict[str, Callable[[], Mapping[str, Any] | None]] = {
        "obstore gets": lambda: _obstore_gets(server.url, keys),
        "fsspec gets": lambda: asyncio.run(_fsspec_gets(server.url, keys)),
        "load_async": lambda: _values(asyncio.run(by_obstore.copy(deep=False).load_async())),
        "aioxarray": lambda: _values(_loaded(by_obstore)),
        "ours, fsspec": lambda: _values(_loaded(by_fsspec)),
    }
    taken: dict[str, Taken | str] = {name: Taken() for name in ways}
    try:
        arrays = tensorstore_arrays(source)
    except ImportError:
        taken["TensorStore"] = "not installed"
    else:
        taken["TensorStore"] = Taken()
        ways["TensorStore"] = lambda: _read(arrays)
    nbytes = sum(values.nbytes for values in expected.values())
    begun = time.perf_counter()
    for turn in range(2 * options.runs - 1):
        for name, way in ways.items():
            # As in `in_turn`: memory that the host must first provide again would count twice.
            np.ones(nbytes + nbytes // 4, np.uint8)
            result = _run(way, server, taken[name])
            if turn == 0 and result is not None:
                checked(result)
            del result
        if time.perf_counter() - begun > 4 * options.seconds:
            break
    return RequestsRow(case.what, taken, len(keys), case)


def _run(
    way: Callable[[], Mapping[str, Any] | None], server: PrebuiltServer, best: Taken | str
) -> Mapping[str, Any] | None:
    assert isinstance(best, Taken)
    gc.collect()
    server_s, cpu_s, begun = server.cpu_s(), time.process_time(), time.perf_counter()
    result = way()
    best.seconds = min(best.seconds, time.perf_counter() - begun)
    best.cpu_s = min(best.cpu_s, time.process_time() - cpu_s)
    best.server_s = min(best.server_s, server.cpu_s() - server_s)
    return result


def _loaded(lazy: xr.Dataset) -> xr.Dataset:
    return asyncio.run(aioxarray.load_async(lazy.copy(deep=False)))


def _values(dataset: xr.Dataset) -> dict[str, Any]:
    return {str(name): variable.values for name, variable in dataset.data_vars.items()}


def _read(arrays: Mapping[str, Any]) -> dict[str, Any]:
    reads = {name: array.read() for name, array in arrays.items()}
    return {name: each.result() for name, each in reads.items()}


def _obstore_gets(url: str, keys: Sequence[str]) -> None:
    import obstore
    from obstore.store import HTTPStore

    client = HTTPStore.from_url(url, client_options={"allow_http": True})
    # Advancing it is atomic.
    numbers = itertools.count()

    def get() -> None:
        while (number := next(numbers)) < len(keys):
            obstore.get(client, keys[number]).bytes()

    threads = [threading.Thread(target=get) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _fsspec_gets(url: str, keys: Sequence[str]) -> None:
    from fsspec.implementations.http import HTTPFileSystem

    system = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    session = await system.set_session()
    rest = iter(keys)

    async def get() -> None:
        for key in rest:
            await system._cat_file(f"{url}/{key}")

    await asyncio.gather(*(get() for _ in range(_COROUTINES)))
    await session.close()
