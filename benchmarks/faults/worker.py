"""One process of the matrix: it runs cells that it reads from its standard input, one a line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any

import xarray as xr

import aioxarray
from aioxarray.config import config
from aioxarray.testing import ObjectServer
from benchmarks.faults.cells import FAULTS, Cell, Verb
from benchmarks.faults.clients import BUCKET, CLIENTS, dataset, populate, repository
from benchmarks.faults.leaks import Watch
from benchmarks.faults.verdicts import Result, Verdict, of_error

# Short, so that calls give up soon; what is done before and after the fault is not hurried.
SETTINGS: dict[str, Any] = {"retry.deadline": 3, "retry.backoff_s": 0.02, "stall_s": 1}
# Longer than the deadline, a last attempt, and the retries of a client.
BOUND_S = 12.0


class Worker:
    """Runs cells against a server of its own, in this process.

    Parameters
    ----------
    server
        An empty server.
    """

    def __init__(self, server: ObjectServer) -> None:
        self._server = server
        self._saves = 0
        self._counts: dict[tuple[str, Verb, str], int] = {}
        self._expected = dataset()
        populate(server)

    def run(self, cell: Cell) -> Result:
        """Run one cell."""
        self._mend()
        count = self._count(cell)
        call = _Call(self._server, cell, self._name())
        call.prepare()
        watch = Watch(self._server)
        self._server.log.clear()
        cell.strike(self._server, count)
        begun = time.monotonic()
        error: BaseException | None = None
        try:
            with config.set(SETTINGS):
                asyncio.run(self._bounded(call.make))
        except BaseException as raised:  # noqa: BLE001  # whatever it is, it gets a verdict
            error = raised
        seconds = time.monotonic() - begun
        # Before the server is mended, or a request that was left would end well.
        left = watch.left()
        requests = len(self._server.log.requests)
        self._mend()
        verdict: Verdict
        if error is None:
            try:
                verdict, detail = call.check()
            except Exception as raised:  # noqa: BLE001  # a client may still wait for the request
                verdict, detail = of_error(cell, raised)
        elif isinstance(error, _OutOfTimeError):
            verdict, detail = "hang", f"not done after {BOUND_S:g} s"
        else:
            verdict, detail = of_error(cell, error)
            if wrong := call.check_undone():
                verdict, detail = "wrong", f"{wrong} after {detail}"
        if left and verdict != "wrong":
            verdict, detail = "leak", f"{'; '.join(left)} after {verdict}: {detail}"
        return Result(cell, verdict, detail, round(seconds, 3), requests)

    async def _bounded(self, make: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(BOUND_S) as bound:
                await make()
        except TimeoutError:
            if bound.expired():
                raise _OutOfTimeError from None
            raise

    def _name(self) -> str:
        self._saves += 1
        return f"saved-{self._saves}"

    def _mend(self) -> None:
        self._server.mend()
        self._server.latency_s = 0.0

    def _count(self, cell: Cell) -> int:
        """Return how many requests that the fault could strike the call makes without faults."""
        key = (cell.client, cell.verb, cell.glob())
        if key not in self._counts:
            # Twice: the first time, clients find out about the server.
            for _ in range(2):
                call = _Call(self._server, cell._replace(fault="503"), self._name())
                call.prepare()
                self._server.log.clear()
                asyncio.run(call.make())
                requests = self._server.log.requests
                self._counts[key] = sum(fnmatchcase(each.key, key[2]) for each in requests)
                verdict, detail = call.check()
                if verdict != "right":
                    raise RuntimeError(f"{cell} without a fault: {verdict}: {detail}")
        return self._counts[key]


class _OutOfTimeError(Exception):
    """A call took longer than a cell may."""


class _Call:
    """One call of aioxarray, and checks of what it has done.

    Parameters
    ----------
    server
        The server.
    cell
        The client and the verb.
    name
        A new name, for what is saved.
    """

    def __init__(self, server: ObjectServer, cell: Cell, name: str) -> None:
        self._server = server
        self._cell = cell
        self._name = name if cell.verb == "save" else "data"
        fault = FAULTS[cell.fault]
        self._url = server.url
        if fault.port is not None:
            self._url = f"http://127.0.0.1:{fault.port}"
        if fault.host is not None:
            self._url = f"http://{fault.host}:{server.url.rpartition(':')[2]}"
        self._ds: xr.Dataset | None = None
        self._lazy: list[str] = []

    def prepare(self) -> None:
        """Make the client and what the call needs, before there is a fault."""
        if self._cell.client == "icechunk" and self._cell.verb == "save":
            repository(self._server.url, self._name, create=True)
        self._target = CLIENTS[self._cell.client](self._url, self._name)
        if self._cell.verb == "load":
            self._ds = aioxarray.open_zarr(self._target.store, **self._target.arguments())
            self._lazy = _lazy(self._ds)

    async def make(self) -> None:
        """Make the call."""
        if self._cell.verb == "load":
            assert self._ds is not None
            await aioxarray.load_async(self._ds)
        elif self._cell.verb == "open":
            self._ds = await aioxarray.open_zarr_async(
                self._target.store, **self._target.arguments()
            )
        else:
            await aioxarray.to_zarr_async(
                dataset(), self._target.store, mode="w-", zarr_format=3, **self._target.arguments()
            )

    def check(self) -> tuple[Verdict, str]:
        """Return whether what the call has returned or saved is right."""
        if self._cell.verb == "save":
            if self._cell.client == "icechunk":
                self._target.store.session.commit("saved")
            got = self._saved()
        else:
            assert self._ds is not None
            got = aioxarray.load(self._ds)
        return ("right", "") if got.identical(dataset()) else ("wrong", f"other values: {got}")

    def check_undone(self) -> str:
        """Return what a call that failed has changed in spite of that; "" if nothing."""
        if self._cell.verb == "load":
            assert self._ds is not None
            if _lazy(self._ds) != self._lazy:
                return "partly loaded"
        if self._cell.verb == "save" and self._url == self._server.url:
            try:
                got = self._saved()
            except Exception:  # noqa: BLE001  # nothing there, as it should be
                return ""
            if not got.identical(dataset()):
                return "partly saved"
        return ""

    def _saved(self) -> xr.Dataset:
        """Read what was saved with plain xarray."""
        if self._cell.client == "icechunk":
            store: Any = repository(self._server.url, self._name).readonly_session("main").store
        else:
            # From the server's memory: no client, no cache.
            prefix = f"{BUCKET}/{self._name}/"
            data = self._server.data
            store = _memory_store(
                {key.removeprefix(prefix): data[key] for key in data if key.startswith(prefix)}
            )
        found: xr.Dataset = xr.open_zarr(store, consolidated=False, zarr_format=3).load()
        return found


def _memory_store(values: dict[str, bytes]) -> Any:
    from zarr.core.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    return MemoryStore({key: Buffer.from_bytes(value) for key, value in values.items()})


def _lazy(ds: xr.Dataset) -> list[str]:
    return [str(name) for name, variable in ds.variables.items() if not variable._in_memory]


def main() -> None:
    """Run the cells of the lines of standard input; write a line with each result."""
    # What libraries print must not get between the results.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    # fsspec's filesystems leave their sessions to the garbage collector, which aiohttp reports.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with ObjectServer() as server:
        worker = Worker(server)
        print("ready", file=results)
        for line in sys.stdin:
            cell = Cell(*json.loads(line))
            print(json.dumps(worker.run(cell).to_json()), file=results)


if __name__ == "__main__":
    main()
