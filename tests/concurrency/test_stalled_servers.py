"""A server that no longer answers delays only the loads that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import obstore.store
import pytest
import xarray as xr
import zarr

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.stores import grants
from aioxarray.testing import ObjectServer
from tests import budgets
from tests.concurrency.helpers import PATIENCE_S, plain, written
from tests.stalling import StallingProxy

# More than the threads and the calls of this client, less than the limit on requests.
CHUNKS = 64


class Remote:
    """Data behind a proxy that can stall, read through a client of obstore's."""

    def __init__(self, proxy: StallingProxy) -> None:
        self.proxy = proxy
        self.ds = self.opened()

    def opened(self) -> xr.Dataset:
        """Open the data through a client of its own."""
        # Nothing is asked a second time: the threads that wait end with the connections.
        self.client = obstore.store.HTTPStore(
            f"{self.proxy.url}/data",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        ds: xr.Dataset = aioxarray.open_zarr(self.client)
        return ds[["v0"]]

    @property
    def other(self) -> xr.Dataset:
        """Other data of the same client."""
        ds: xr.Dataset = aioxarray.open_zarr(self.client)
        return ds[["v1"]]

    @asynccontextmanager
    async def stalled(self, asked: int = 1, **options: Any) -> AsyncIterator[asyncio.Task[Any]]:
        """Begin a load; give its task when ``asked`` more requests wait in vain."""
        before = self.proxy.asked
        task = asyncio.create_task(aioxarray.compute_async(self.ds, **options))
        await asyncio.to_thread(self.proxy.wait_asked, before + asked)
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


@contextmanager
def remotes(count: int = 2) -> Iterator[list[Remote]]:
    """Serve the same data behind several proxies; end when no thread waits for one any more."""
    store = written(2, CHUNKS)
    zarr.consolidate_metadata(store)
    with ObjectServer(process=True) as server:
        for key, data in store._store_dict.items():
            server.put(f"data/{key}", data.to_bytes())
        port = urlsplit(server.url).port
        assert port is not None
        proxies = [StallingProxy(port).__enter__() for _ in range(count)]
        try:
            yield [Remote(proxy) for proxy in proxies]
        finally:
            for proxy in proxies:
                proxy.__exit__()
            asyncio.run(budgets.until_free())


async def loads(ds: xr.Dataset, **options: Any) -> None:
    """Load what `remotes` serves, without touching ``ds``."""
    async with asyncio.timeout(PATIENCE_S):
        loaded = await aioxarray.compute_async(ds, **options)
    xr.testing.assert_identical(loaded, plain(2, CHUNKS)[list(ds)])


@pytest.fixture
def always_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every server taken for one close by, however busy the machine is."""
    monkeypatch.setattr(tuning, "NEARBY_S", PATIENCE_S)


def test_many_loads_given_up_leave_other_servers_alone() -> None:
    async def main() -> None:
        bad, good = both
        bad.proxy.stall()
        for _ in range(24):
            async with bad.stalled():
                pass
        await loads(good.ds)
        # They are still waited for, by no more than one client's threads.
        assert 1 <= grants.requests.in_use <= tuning.FETCHERS
        assert bad.proxy.in_vain >= grants.requests.in_use
        assert grants.memory.in_use == 0
        # New requests of the same client, once the server is well.
        bad.proxy.resume()
        await loads(bad.ds)
        assert grants.requests.in_use >= 1

    with remotes() as both:
        asyncio.run(main())


@pytest.mark.usefixtures("always_near")
@pytest.mark.parametrize(
    "concurrency",
    [128, pytest.param(6, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 1],
)
def test_all_threads_of_a_server_that_stalls_in_a_load(concurrency: int) -> None:
    async def main() -> None:
        bad, good = both
        # At most half of the requests are made by calls that cannot be cancelled.
        waiting = min(tuning.FETCHERS, concurrency // 2)
        bad.proxy.stall(after=1)
        async with bad.stalled(max(1, waiting)):
            pass
        assert grants.requests.in_use == waiting
        assert grants.memory.in_use == 0
        await loads(good.ds)
        bad.proxy.resume()
        await loads(bad.ds)
        assert grants.requests.in_use == waiting

    with aioxarray.config.set(concurrency=concurrency), remotes() as both:
        asyncio.run(main())


@pytest.mark.usefixtures("always_near")
def test_a_load_that_waits_for_a_stalled_server_delays_no_other_load() -> None:
    async def main() -> None:
        bad, good = both
        other = await asyncio.to_thread(lambda: bad.other)
        bad.proxy.stall(after=1)
        async with bad.stalled(tuning.FETCHERS) as task:
            await loads(good.ds)
            bad.proxy.resume()
            # The same client too, whose threads all wait.
            await loads(other)
            assert not task.done()

    with remotes() as both:
        asyncio.run(main())


@pytest.mark.slow
@pytest.mark.usefixtures("always_near")
def test_clients_without_number_do_not_take_all_requests() -> None:
    async def main() -> None:
        bad, good = both
        bad.proxy.stall(after=10 * 1000)
        datasets = [bad.opened() for _ in range(10)]
        bad.proxy.stall()
        for ds in datasets:
            bad.ds = ds
            async with bad.stalled():
                pass
        assert grants.requests.in_use == 3
        await loads(good.ds)

    with aioxarray.config.set(concurrency=6), remotes() as both:
        asyncio.run(main())


@pytest.mark.usefixtures("always_near")
def test_a_client_is_read_by_threads_again_when_none_waits_in_vain() -> None:
    async def main() -> None:
        bad, _ = both
        bad.proxy.stall(after=1)
        async with bad.stalled(tuning.FETCHERS):
            pass
        bad.proxy.drop()
        await budgets.until_free()
        bad.proxy.stall(after=1)
        # As many as there are threads, and no more.
        async with bad.stalled(tuning.FETCHERS):
            assert grants.fetching.in_use == tuning.FETCHERS

    with remotes() as both:
        asyncio.run(main())
