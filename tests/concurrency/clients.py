"""Clients that read Zarr data from servers, and servers for them, all with the same data.

Each function of `CLIENTS` creates a new client for the data behind a URL, as a zarr store. The
store has two groups: see `first` and `second`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from zarr.abc.store import Store

CHUNKS = 40
# Longer than any test, so that no client times out by itself.
_NEVER_S = 3600


def fsspec_http(url: str) -> Store:
    from aiohttp import ClientTimeout
    from zarr.storage import FsspecStore

    options = {"client_kwargs": {"timeout": ClientTimeout(total=_NEVER_S)}}
    return _of_fsspec(FsspecStore, url, options)


def s3fs(url: str) -> Store:
    from zarr.storage import FsspecStore

    options = {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": url},
        "config_kwargs": {"read_timeout": _NEVER_S, "retries": {"max_attempts": 0}},
    }
    return _of_fsspec(FsspecStore, "s3://bucket/data", options)


def _of_fsspec(kind: Any, url: str, options: dict[str, Any]) -> Store:
    store: Store = kind.from_url(url, storage_options={**options, "skip_instance_cache": True})
    return store


_OF_OBSTORE: dict[str, Any] = {
    "client_options": {"allow_http": True, "timeout": timedelta(seconds=_NEVER_S)},
    "retry_config": {"max_retries": 0},
}


def obstore_http(url: str) -> Store:
    from obstore.store import HTTPStore
    from zarr.storage import ObjectStore

    return ObjectStore(HTTPStore(url, **_OF_OBSTORE), read_only=True)


def obstore_s3(url: str) -> Store:
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    client = S3Store(
        "bucket",
        prefix="data",
        endpoint=url,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        **_OF_OBSTORE,
    )
    return ObjectStore(client)


def icechunk_storage(url: str, **credentials: str) -> Any:
    """Return the storage of an icechunk repository in a bucket behind ``url``."""
    import icechunk as ice

    options: Any = {"access_key_id": "test", "secret_access_key": "test", **credentials}
    return ice.s3_storage(
        bucket="bucket",
        prefix="repo",
        endpoint_url=url,
        allow_http=True,
        force_path_style=True,
        region="us-east-1",
        **options,
    )


def icechunk(url: str) -> Store:
    import icechunk as ice

    storage = icechunk_storage(url)
    once = ice.StorageSettings(retries=ice.StorageRetriesSettings(max_tries=1))
    repo = ice.Repository.open(storage, ice.RepositoryConfig(storage=once))
    return repo.writable_session("main").store


CLIENTS: dict[str, Callable[[str], Store]] = {
    function.__name__: function
    for function in (fsspec_http, s3fs, obstore_http, obstore_s3, icechunk)
}
# The clients that can save.
WRITERS = ("s3fs", "obstore_s3", "icechunk")


def first() -> xr.Dataset:
    """Return a variable of many chunks, and more variables than zarr inspects concurrently."""
    # Random, because it must not compress: icechunk stores small chunks in its metadata.
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {"v0": (("y", "x"), rng.random((CHUNKS, 100)))}, {"x": np.sort(rng.random(100))}
    )
    ds["v0"].encoding["chunks"] = (1, 100)
    return ds.assign({f"v{i}": ("x", rng.random(100)) for i in range(1, 12)})


def second() -> xr.Dataset:
    """Return other data, for requests of the same client."""
    return xr.Dataset({"w": ("z", np.random.default_rng(1).random(100))})


def _write(store: Any) -> None:
    first().to_zarr(store, group="first", consolidated=False, zarr_format=3)
    second().to_zarr(store, group="second", consolidated=False, zarr_format=3)


def _large() -> xr.Dataset:
    """Return more data than the first and last blocks of a file, which are read ahead."""
    return xr.Dataset({"a": (("y", "x"), np.random.default_rng(0).random((2400, 1000)))})


@contextmanager
def served(root: Path) -> Iterator[dict[str, int]]:
    """Serve the data, and a netCDF4 file ``data.nc``; yield the ports by client.

    Clients without an entry use the port of "http".
    """
    import icechunk as ice

    from aioxarray.testing import ObjectServer
    from tests.s3 import s3_server

    data = root / "data"
    _write(data)
    repo = ice.Repository.create(ice.local_filesystem_storage(str(root / "repo")))
    session = repo.writable_session("main")
    _write(session.store)
    session.commit("data")
    _large().to_netcdf(data / "data.nc", engine="h5netcdf")
    with ExitStack() as stack:
        server = stack.enter_context(ObjectServer(root=data, process=True))
        filesystem, options = stack.enter_context(s3_server("bucket"))
        for group in ("first", "second"):
            filesystem.put(str(data / group), f"bucket/data/{group}", recursive=True)
        filesystem.put(str(root / "repo"), "bucket/repo", recursive=True)
        s3 = options["client_kwargs"]["endpoint_url"]
        urls = {"http": server.url} | dict.fromkeys(WRITERS, s3)
        yield {name: urlsplit(url).port or 0 for name, url in urls.items()}
