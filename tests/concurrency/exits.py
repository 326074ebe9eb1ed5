"""What a test runs in another process: loads from a server that stalls, and ways to end.

``python -m tests.concurrency.exits STORE WAY URL`` says "open" when the data is, begins to load
when it is told to by a line of its input, and ends in some way by a further line, if not earlier.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import xarray as xr

import aioxarray
from tests.concurrency.clients import CLIENTS

GIVEN_UP_S = 3.0


def h5netcdf(url: str) -> xr.Dataset:
    ds: xr.Dataset = aioxarray.open_dataset(f"{url}/data.nc", engine="h5netcdf")
    return ds


def plain_h5netcdf(url: str) -> xr.Dataset:
    return xr.open_dataset(f"{url}/data.nc", engine="h5netcdf")


def zarr(client: str, **options: Any) -> Callable[[str], xr.Dataset]:
    """Return a function that opens Zarr data behind a URL by a client."""

    def opened(url: str) -> xr.Dataset:
        store = CLIENTS[client](url)
        ds: xr.Dataset = aioxarray.open_zarr(store, group="first", consolidated=False, **options)
        return ds[["v0"]]

    return opened


def plain_dask(url: str) -> xr.Dataset:
    """Open Zarr data that plain xarray reads, in dask's tasks."""
    store = CLIENTS["obstore_http"](url)
    ds: xr.Dataset = xr.open_zarr(store, group="first", consolidated=False, chunks={})
    return ds[["v0"]]


STORES: dict[str, Callable[[str], xr.Dataset]] = {
    **{client: zarr(client) for client in CLIENTS},
    "h5netcdf": h5netcdf,
    "plain_h5netcdf": plain_h5netcdf,
    "dask": zarr("obstore_http", chunks={}),
    "plain_dask": plain_dask,
}


def told() -> None:
    """Wait for a line of the input."""
    if not sys.stdin.readline():
        raise SystemExit("the test has ended")


def blocking(ds: xr.Dataset) -> None:
    """An interrupt, which the test sends, or another signal, in a blocking load."""
    aioxarray.load(ds)


def asynchronous(ds: xr.Dataset) -> None:
    """An interrupt in a load that `asyncio.run` awaits."""
    asyncio.run(aioxarray.load_async(ds))


def timeout(ds: xr.Dataset) -> None:
    """A timeout, and the end of the script."""
    try:
        aioxarray.load(ds, timeout=GIVEN_UP_S)
    except TimeoutError:
        return
    raise SystemExit("it was loaded")


def end_of_loop(ds: xr.Dataset) -> None:
    """The end of `asyncio.run` while a load goes on in the background."""

    async def main() -> None:
        loading = asyncio.create_task(aioxarray.load_async(ds))
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def end() -> None:
            told()
            loop.call_soon_threadsafe(ended.set_result, None)

        # Not by ``to_thread``: the loop's own threads are not what is tested.
        threading.Thread(target=end, daemon=True).start()
        await ended
        assert not loading.done()

    asyncio.run(main())


def in_background(ds: xr.Dataset) -> None:
    """The end of the script while another thread loads."""
    threading.Thread(target=aioxarray.load, args=(ds,), daemon=True).start()
    told()


def sys_exit(ds: xr.Dataset) -> NoReturn:
    """`sys.exit` while another thread loads."""
    in_background(ds)
    sys.exit(7)


def unhandled(ds: xr.Dataset) -> NoReturn:
    """An error while another thread loads."""
    in_background(ds)
    raise ZeroDivisionError


WAYS: dict[str, Callable[[xr.Dataset], None]] = {
    function.__name__: function
    for function in (
        blocking,
        asynchronous,
        timeout,
        end_of_loop,
        in_background,
        sys_exit,
        unhandled,
    )
}


if __name__ == "__main__":
    store, way, url = sys.argv[1:]
    dataset = STORES[store](url)
    print("open", flush=True)
    told()
    WAYS[way](dataset)
