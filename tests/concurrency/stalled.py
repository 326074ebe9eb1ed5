"""A process that makes calls with one client, as a test requests them.

``python -m tests.concurrency.stalled CLIENT`` reads calls of `Client`'s methods, one line of JSON
each, and answers each with a line of JSON: the return value of the method.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import xarray as xr

import aioxarray
from tests.concurrency.clients import CLIENTS, first, second

if TYPE_CHECKING:
    from zarr.abc.store import Store

# Only a bug takes this long. It is shorter than the timeout of any client.
PATIENCE_S = 60.0
# Long enough for the requests to be sent.
GIVEN_UP_S = 1.0

_FIRST: dict[str, Any] = {"group": "first", "consolidated": False}


class Client:
    """The calls that a test can request, with one kind of client; each URL has its own client."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stores: dict[str, Store] = {}
        self._opened: dict[str, xr.Dataset] = {}
        self._saves = 0
        self._in_background: list[threading.Thread] = []

    def make(self, url: str) -> None:
        """Create the client for a URL, which may make requests."""
        self._stores[url] = CLIENTS[self._name](url)

    def open(self, url: str, chunks: dict[str, int] | None = None) -> None:
        """Open the first group; with ``chunks``, as dask arrays."""
        self._opened[url] = aioxarray.open_zarr(self._stores[url], **_FIRST, chunks=chunks)

    def load_other(self, url: str) -> None:
        """Load the second group and check its values."""
        store: Any = self._stores[url]
        got = aioxarray.load_dataset(
            store, group="second", engine="zarr", consolidated=False, timeout=PATIENCE_S
        )
        xr.testing.assert_identical(got, second())

    def load(self, url: str) -> None:
        """Load the dataset that was opened and check its values."""
        got = aioxarray.compute(self._opened[url], timeout=PATIENCE_S)
        xr.testing.assert_identical(got, first())

    def give_up(self, url: str, count: int) -> int:
        """Start ``count`` loads of one chunk each; return how many of them timed out."""

        async def load(number: int) -> bool:
            ds = self._opened[url][["v0"]].isel(y=number)
            try:
                await aioxarray.load_async(ds, timeout=GIVEN_UP_S)
            except TimeoutError:
                return True
            return False

        async def main() -> int:
            return sum(await asyncio.gather(*[load(number) for number in range(count)]))

        return asyncio.run(main())

    def begin(self, url: str) -> None:
        """Start a load of the last chunk in a background thread."""
        ds = self._opened[url][["v0"]].isel(y=-1)
        thread = threading.Thread(target=aioxarray.load, args=(ds,), daemon=True)
        thread.start()
        self._in_background.append(thread)

    def in_background(self) -> int:
        """Return the number of loads in progress in the background."""
        return sum(thread.is_alive() for thread in self._in_background)

    def open_failing(self, url: str) -> str:
        """Open the first group, without retries; return the type of the error."""
        with aioxarray.config.set({"retry.attempts": 1}):
            return _error_of(lambda: self.open(url))

    def open_until_told(self, url: str) -> str:
        """Open the first group, with a timeout that expires when a line of input arrives."""
        return _until_told(aioxarray.open_zarr_async(self._stores[url], **_FIRST))

    def get_until_told(self, url: str) -> str:
        """Request a chunk from the store directly, without this package."""
        from zarr.core.buffer import default_buffer_prototype

        return _until_told(self._stores[url].get("first/x/c/0", default_buffer_prototype()))

    def load_until_told(self, url: str) -> str:
        """Load the dataset that was opened, with such a timeout."""
        return _until_told(aioxarray.load_async(self._opened[url]))

    def save_until_told(self, url: str, chunks: dict[str, int] | None) -> str:
        """Save the first group's data as another group; with ``chunks``, from dask arrays."""
        # Not the group of an earlier call: some of its requests may have reached the server.
        self._saves += 1
        ds = first() if chunks is None else first().chunk(chunks)
        saving = aioxarray.to_zarr_async(
            ds, self._stores[url], group=f"saved-{self._saves}", consolidated=False, zarr_format=3
        )
        return _until_told(saving)

    def loop(self) -> str:
        """Create and collect garbage until a signal raises an error; return the error's type."""
        # The garbage of earlier calls has weak references: their callbacks would lose the error.
        gc.collect()
        try:
            print(json.dumps("begun"), flush=True)
            while True:
                for _ in range(1000):
                    cycle: list[Any] = []
                    cycle.append(cycle)
                gc.collect()
        except KeyboardInterrupt as error:
            return type(error).__name__

    def read_files(self, path: str, engine: Any, rounds: int) -> int:
        """Open and drop a file with this package, then read it with plain xarray; repeat."""
        for _ in range(rounds):
            ds = aioxarray.open_dataset(path, engine=engine)
            del ds
            with xr.open_dataset(path, engine=engine) as plain:
                plain["u"].load()
        return rounds


def _until_told(work: Awaitable[object]) -> str:
    """Await ``work`` until a line of input arrives; return the type of its error."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:

            def wait() -> None:
                sys.stdin.readline()
                loop.call_soon_threadsafe(limit.reschedule, 0)

            threading.Thread(target=wait, daemon=True).start()
            await work

    return _error_of(lambda: asyncio.run(main()))


def _error_of(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - each client raises other types
        return type(error).__name__
    return "none"


if __name__ == "__main__":
    client = Client(sys.argv[1])
    print("ready", flush=True)
    while line := sys.stdin.readline():
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(client, name)(*arguments)), flush=True)
