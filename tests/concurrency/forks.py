"""What a test runs in another process: loads before and after that process forks.

Each function is run by ``python -c``, under a hard timeout. A child ends by `os._exit`, and is
killed by an alarm if it hangs.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr

import aioxarray
from aioxarray.testing import ObjectServer
from tests.concurrency.helpers import lazily, plain, written
from tests.samples import opened

CHILD_TIMEOUT_S = 30

VARIABLES, CHUNKS = 3, 4


def in_fork(function: Callable[[], None]) -> None:
    """Run ``function`` in a forked process and raise if it fails or hangs there."""
    with warnings.catch_warnings():
        # That there are threads, and that this is dangerous, is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(CHILD_TIMEOUT_S)
        try:
            function()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent fails
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise SystemExit(f"the child ended with {code} ({-signal.SIGALRM} is a hang)")


def loads(ds: xr.Dataset) -> None:
    """Load ``ds`` by a blocking call and on a loop of its own; check the values."""
    import asyncio

    expected = plain(VARIABLES, CHUNKS)
    xr.testing.assert_identical(aioxarray.compute(ds), expected)
    xr.testing.assert_identical(asyncio.run(aioxarray.compute_async(ds)), expected)


def refuses(ds: xr.Dataset) -> None:
    """Check that ``ds`` cannot be loaded here, and that this is said."""
    with pytest.raises(aioxarray.ForkError, match="forked"):
        aioxarray.load(ds)
    assert not any(variable._in_memory for variable in ds.variables.values())


def files() -> dict[str, bytes]:
    """Return the objects of a store that holds the data."""
    store = written(VARIABLES, CHUNKS)
    zarr.consolidate_metadata(store)
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def directory() -> Path:
    """Return a new directory that holds the data."""
    root = Path(tempfile.mkdtemp())
    for key, data in files().items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@contextmanager
def served() -> Iterator[str]:
    """Serve the data over HTTP from another process."""
    with ObjectServer(process=True) as server:
        for key, data in files().items():
            server.put(f"data/{key}", data)
        yield f"{server.url}/data"


# --- stores ----------------------------------------------------------------------------------


def forked(ds: xr.Dataset, child: Callable[[xr.Dataset], None]) -> None:
    """Load ``ds``; run ``child`` in a fork, and in a fork of a fork; load here again."""

    def child_and_grandchild() -> None:
        child(ds)
        in_fork(lambda: child(ds))

    loads(ds)
    in_fork(child_and_grandchild)
    in_fork(lambda: child(ds))
    loads(ds)


def local() -> None:
    """A directory."""
    from zarr.storage import LocalStore

    forked(lazily(LocalStore(directory(), read_only=True)), loads)


def memory() -> None:
    """A store in memory."""
    forked(lazily(written(VARIABLES, CHUNKS)), loads)


def http() -> None:
    """HTTP through fsspec."""
    from zarr.storage import FsspecStore

    with served() as url:
        forked(lazily(FsspecStore.from_url(url, read_only=True)), loads)


def object_store() -> None:
    """HTTP through obstore: its threads are not there in the child."""
    import obstore.store
    from zarr.storage import ObjectStore

    with served() as url:
        client = obstore.store.HTTPStore.from_url(url, client_options={"allow_http": True})
        # The server does not list, as this client asks for it.
        forked(opened(ObjectStore(client, read_only=True), consolidated=True), refuses)


def icechunk() -> None:
    """An icechunk session: as obstore's."""
    from icechunk import Repository, local_filesystem_storage

    repo = Repository.create(local_filesystem_storage(tempfile.mkdtemp()))
    session = repo.writable_session("main")
    plain(VARIABLES, CHUNKS).to_zarr(session.store, zarr_format=3, consolidated=False)
    session.commit("data")
    forked(lazily(repo.readonly_session("main").store), refuses)


def fork_while_loading() -> None:
    """A fork in the middle of a load: places taken and locks of the parent are its own."""
    import threading

    from aioxarray.testing import GatedStore

    gate = GatedStore(written(VARIABLES, CHUNKS), keys="*/c/*")
    ds = lazily(gate)
    other = lazily(written(VARIABLES, CHUNKS))
    with aioxarray.config.set(concurrency=2):
        thread = threading.Thread(target=lambda: aioxarray.load(ds))
        thread.start()
        gate.wait_requested("*/c/*", count=2)
        in_fork(lambda: loads(other))
        gate.release_all()
        thread.join()
    loads(ds)


def cache() -> None:
    """What is kept stays with the parent; the child keeps what it reads itself."""
    from aioxarray._zarr.stores import grants
    from aioxarray.testing import RecordingStore

    store = RecordingStore(written(VARIABLES, CHUNKS))
    ds = lazily(store)

    def requests() -> int:
        store.log.clear()
        xr.testing.assert_identical(aioxarray.compute(ds), plain(VARIABLES, CHUNKS))
        return store.log.count("get", "*/c/*")

    def child() -> None:
        assert len(grants.cache) == 0
        assert [requests(), requests()] == [VARIABLES * CHUNKS, 0]

    with aioxarray.config.set(cache="1MiB"):
        assert [requests(), requests()] == [VARIABLES * CHUNKS, 0]
        in_fork(child)
        assert requests() == 0


def spawn() -> None:
    """Processes begun anew, that get the lazy dataset by pickle."""
    from zarr.storage import FsspecStore

    with served() as url:
        ds: Any = lazily(FsspecStore.from_url(url, read_only=True))
        loads(ds)
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for loaded in pool.map(aioxarray.load, [ds, ds]):
                xr.testing.assert_identical(loaded, plain(VARIABLES, CHUNKS))
        assert not any(variable._in_memory for variable in ds.variables.values())
