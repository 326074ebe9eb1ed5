"""The clients of the matrix, each as its users make it, and the data that they read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray.testing import ObjectServer

BUCKET = "bucket"
CHUNKS = 20
# Clients that retry by themselves are told to do so briefly, to fit into the time of a cell.
OWN_ATTEMPTS = 3
# The variable with the seconds without a byte after which obstore gives a request up; unset, it
# waits until its time-out of 30 s for the whole request, as it does by default.
READ_TIMEOUT = "AIOXARRAY_FAULTS_READ_TIMEOUT"


@dataclass(frozen=True)
class Target:
    """Where a call reads or writes: the arguments of aioxarray's functions."""

    store: Any
    group: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments next to the store."""
        options = {"storage_options": self.options} if self.options else {}
        return {"group": self.group, "consolidated": False, **options}


def fsspec_http(url: str, name: str) -> Target:
    return Target(f"{url}/{BUCKET}/{name}", options={"skip_instance_cache": True})


def s3fs(url: str, name: str) -> Target:
    options = {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": url},
        "skip_instance_cache": True,
    }
    return Target(f"s3://{BUCKET}/{name}", options=options)


def obstore_http(url: str, name: str) -> Target:
    from obstore.store import HTTPStore
    from zarr.storage import ObjectStore

    # With a path in its URL it lists nothing; and without retries of its own, aioxarray retries.
    client = HTTPStore(url, client_options=_client_options(), retry_config={"max_retries": 0})
    return Target(ObjectStore(client), f"{BUCKET}/{name}")


def obstore_s3(url: str, name: str) -> Target:
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    client = S3Store(
        BUCKET,
        prefix=name,
        endpoint=url,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        client_options=_client_options(),
        retry_config={
            "max_retries": OWN_ATTEMPTS - 1,
            "retry_timeout": timedelta(seconds=2),
            "backoff": {
                "init_backoff": timedelta(milliseconds=20),
                "max_backoff": timedelta(milliseconds=100),
                "base": 2,
            },
        },
    )
    return Target(ObjectStore(client))


def _client_options() -> Any:
    options: dict[str, Any] = {"allow_http": True}
    if seconds := os.environ.get(READ_TIMEOUT):
        options["read_timeout"] = timedelta(seconds=float(seconds))
    return options


def icechunk(url: str, name: str) -> Target:
    session = repository(url, name).writable_session("main")
    return Target(session.store)


CLIENTS: dict[str, Callable[[str, str], Target]] = {
    function.__name__: function
    for function in (fsspec_http, s3fs, obstore_http, obstore_s3, icechunk)
}
# The clients that cannot save.
READERS = ("fsspec_http",)


def repository(url: str, name: str, *, create: bool = False) -> Any:
    """Open or create an icechunk repository."""
    import icechunk as ice

    storage = ice.s3_storage(
        bucket=BUCKET,
        prefix=f"{name}-repository",
        endpoint_url=url,
        allow_http=True,
        force_path_style=True,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
    )
    retries = ice.StorageRetriesSettings(
        max_tries=OWN_ATTEMPTS, initial_backoff_ms=20, max_backoff_ms=100
    )
    config = ice.RepositoryConfig(
        # Chunks within the metadata would need no request.
        inline_chunk_threshold_bytes=0,
        storage=ice.StorageSettings(retries=retries),
    )
    make = ice.Repository.create if create else ice.Repository.open
    return make(storage, config)


def dataset() -> xr.Dataset:
    """Return a dataset of small chunks with checksums."""
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {
            "v": (("y", "x"), rng.random((CHUNKS, 50))),
            "w": ("x", rng.random(50)),
            "z": ("y", np.arange(CHUNKS)),
        },
        {"x": np.sort(rng.random(50))},
        {"title": "data of the matrix of faults"},
    )
    ds["v"].encoding["chunks"] = (1, 50)
    for variable in ds.variables.values():
        variable.encoding["compressors"] = [ZstdCodec(), Crc32cCodec()]
    return ds


def populate(server: ObjectServer) -> None:
    """Put the data into an empty server, as plain xarray writes it."""
    store: dict[str, Any] = {}
    memory: Store = MemoryStore(store)
    dataset().to_zarr(memory, consolidated=False, zarr_format=3)
    for key, value in store.items():
        server.put(f"{BUCKET}/data/{key}", value.to_bytes())
    repo = repository(server.url, "data", create=True)
    session = repo.writable_session("main")
    dataset().to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("data")
