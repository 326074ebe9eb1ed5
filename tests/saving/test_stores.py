"""Saving through stores that are not all that a store can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore, ObjectStore, StorePath

import aioxarray
from aioxarray.testing import FaultyStore, ObjectServer, Request
from tests.saving.helpers import content, plain, sample, tree

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def test_to_an_http_server() -> None:
    # WebDAV knows no "only if it is not there", by which zarr makes groups: plain xarray fails.
    obstore = pytest.importorskip("obstore")
    with ObjectServer() as server:
        # Of the whole server: with a path in its address, obstore's lists what is not there.
        http = obstore.store.HTTPStore.from_url(server.url, client_options={"allow_http": True})
        store = StorePath(ObjectStore(http), "data.zarr")
        theirs = MemoryStore()
        their_store = StorePath(theirs, "data.zarr")
        steps: list[tuple[Any, dict[str, Any]]] = [
            (tree(), {}),
            (sample(3), {"mode": "w", "group": "a"}),
            (sample(), {"append_dim": "time", "group": "a"}),
        ]
        for obj, options in steps:
            aioxarray.to_zarr(obj, store, **options)
            plain(obj, their_store, **options)
        found = dict(server.data)
    assert found == content(theirs)


def test_replaced_keys_are_deleted_concurrently() -> None:
    obstore = pytest.importorskip("obstore")
    ds = xr.Dataset({"a": ("x", np.arange(64))})
    with ObjectServer() as server:
        http = obstore.store.HTTPStore.from_url(server.url, client_options={"allow_http": True})
        store = ObjectStore(http)
        aioxarray.to_zarr(ds, store, encoding={"a": {"chunks": (1,)}})
        server.log.clear()
        server.latency_s = 0.2
        aioxarray.to_zarr(ds[[]], store, mode="w")
        assert list(server.data) == ["zarr.json"]
        assert server.log.count("DELETE") == 65  # zeros are not stored
        # Not ten at once, which is what zarr's own code for such stores does.
        assert server.log.most_in_flight > 20


def test_a_store_that_cannot_be_listed_says_so_before_anything_is_written() -> None:
    log: list[str] = []

    def refuse(index: int, request: Request) -> BaseException | None:
        log.append(request.method)
        return OSError("405 Method Not Allowed") if "list" in request.method else None

    for mode in ("w", "w-", "a"):
        with pytest.raises(OSError, match="405") as caught:
            aioxarray.to_zarr(sample(), FaultyStore(MemoryStore(), refuse), mode=mode)
        assert any("must be able to list" in note for note in caught.value.__notes__)
    assert "set" not in log
