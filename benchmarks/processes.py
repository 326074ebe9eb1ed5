"""Benchmark of reading one array of 64 KB chunks in several processes, into shared memory.

It measures what an option of `aioxarray.load` could gain; there is none. The processes run and have
opened the array before the time begins.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options
from benchmarks.rows import Row

TITLE = "Time to read 64 KB chunks into shared memory, by running processes"
# The goal: what a second process has to gain.
GAIN = 1.3
CONCURRENCY = 64


class ProcessesRow(Row):
    """Times of reading by one, four and two processes; the ratio is that of one over two."""

    HEADER: ClassVar = ("", "1 process", "4", "2", "ratio", "goal", "")


TABLE = ProcessesRow


def run(options: Options, files: Files) -> Iterator[ProcessesRow]:
    """Yield the rows."""
    folder = files.folder("array")
    for where in ("HTTP", "local"):
        yield _by_processes(
            f"{where}: 128 MB" if not options.quick else where,
            options,
            folder,
            remote=where == "HTTP",
        )


def _by_processes(what: str, options: Options, folder: Path, *, remote: bool) -> ProcessesRow:
    """Read parts of one array into shared memory, by processes that run already."""
    rows, columns = (2048, 1024) if options.quick else (8192, 4096)
    path = folder / "64k.zarr"
    if not path.exists():
        values = data.smooth(rows, columns, dtype="float32")
        encoding = {"v": {"chunks": (128, 128)}}
        with data.quiet():
            xr.Dataset({"v": (("y", "x"), values)}).to_zarr(path, encoding=encoding)
    with ExitStack() as stack:
        url = str(path)
        if remote:
            server = stack.enter_context(ObjectServer(0.0, folder, process=True))
            url = f"{server.url}/{path.name}"
        workers = [stack.enter_context(_Worker(url)) for _ in range(4)]
        memory = shared_memory.SharedMemory(create=True, size=4 * rows * columns)
        stack.callback(memory.unlink)
        stack.callback(memory.close)
        taken: dict[int, list[float]] = {1: [], 2: [], 4: []}
        for _ in range(1 if options.quick else 5):
            for count, times in taken.items():
                part = rows // count
                start = perf_counter()
                for index, worker in enumerate(workers[:count]):
                    at = slice(index * part, (index + 1) * part)
                    worker.connection.send((memory.name, (rows, columns), at, CONCURRENCY // count))
                for worker in workers[:count]:
                    worker.connection.recv()
                times.append(perf_counter() - start)
        read = np.ndarray((rows, columns), "float32", memory.buf)
        expected = xr.open_zarr(path, chunks=None).v.values
        np.testing.assert_array_equal(read, expected)
        del read
    one, two, four = (min(times) for times in taken.values())
    return ProcessesRow(what, "s", one, four, two, one / GAIN)


class _Worker:
    """A process that loads parts of an array into shared memory."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, url), daemon=True)

    def __enter__(self) -> _Worker:
        self._process.start()
        self.connection.recv()
        return self

    def __exit__(self, *_: object) -> None:
        # It ends when there is nothing to receive.
        self.connection.close()
        self._process.join()


def _work(connection: Connection, url: str) -> None:
    opened = aioxarray.open_dataset(url, engine="zarr", chunks=None)
    connection.send(os.getpid())
    # Python before 3.13 registers the memory in each process, which would unlink it.
    untracked: dict[str, Any] = {"track": False} if sys.version_info >= (3, 13) else {}
    while True:
        try:
            name, shape, rows, concurrency = connection.recv()
        except EOFError:
            return
        memory = shared_memory.SharedMemory(name, **untracked)
        out = np.ndarray(shape, "float32", memory.buf)[rows]
        aioxarray.load(opened.v.variable[rows], out=out, concurrency=concurrency)
        del out
        memory.close()
        connection.send(None)
