"""Bad input raises what plain xarray raises; nothing that was begun is left behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import xarray as xr
from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.errors import AioxarrayError
from aioxarray.testing import FaultyStore, GatedStore, RecordingStore
from tests import samples
from tests.opening.helpers import ENGINE, Way, every_way, own_ways
from tests.samples import stored_once


def broken(key: str) -> MemoryStore:
    store = stored_once(samples.tree, consolidated=False)
    store._store_dict[key] = store._store_dict[key][:5]
    return store


def forbidden() -> FaultyStore:
    return FaultyStore(stored_once(samples.tree), lambda *_: PermissionError("not for you"))


BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "no such path": (lambda folder: folder / "nothing.zarr", {"engine": "zarr"}),
    "an empty store": (lambda _: MemoryStore(), {"engine": "zarr"}),
    "no such group": (lambda _: stored_once(samples.tree), {"engine": "zarr", "group": "none"}),
    "no such group, not consolidated": (
        lambda _: stored_once(samples.tree),
        {"engine": "zarr", "group": "none", "consolidated": False},
    ),
    "an array for a group": (lambda _: stored_once(samples.tree), {"engine": "zarr", "group": "x"}),
    "a broken group": (lambda _: broken("zarr.json"), {"engine": "zarr", "consolidated": False}),
    "a broken member": (lambda _: broken("x/zarr.json"), {"engine": "zarr", "consolidated": False}),
    "no permission": (lambda _: forbidden(), {"engine": "zarr"}),
    "not consolidated": (
        lambda _: stored_once(samples.tree, consolidated=False),
        {"engine": "zarr", "consolidated": True},
    ),
    "the other format": (lambda _: stored_once(samples.tree), {"engine": "zarr", "zarr_format": 2}),
    "an empty directory": (lambda folder: LocalStore(folder), {"engine": "zarr"}),
    "no such file": (lambda folder: folder / "nothing.nc", {"engine": "h5netcdf"}),
    "no server": (lambda _: f"http://127.0.0.1:{unused_port()}/a.zarr", {"engine": "zarr"}),
    "an unknown scheme": (lambda _: "nowhere://a/b.zarr", {"engine": "zarr"}),
    "nothing that could be opened": (lambda _: 42, {"engine": "zarr"}),
}


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.matrix(together=2)
@every_way
@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated:RuntimeWarning")
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree", "open_groups"])
@pytest.mark.parametrize("name", BAD)
def test_errors_have_the_types_that_xarray_raises(
    name: str, function: str, way: Way, tmp_path: Path
) -> None:
    make, options = BAD[name]
    source = make(tmp_path)
    with pytest.raises(Exception) as plain:  # noqa: PT011 - compared with ours
        getattr(xr, function)(source, **options)
    if way is ENGINE:
        options = {**options, "inner_engine": options["engine"]}
    with pytest.raises(Exception) as ours:  # noqa: PT011
        way(function, source, **options)
    # An error of a request is of a class of aioxarray, too.
    assert isinstance(ours.value, type(plain.value))
    assert isinstance(ours.value, AioxarrayError) or type(ours.value) is type(plain.value)


@pytest.mark.matrix(together=1)
@own_ways
@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated:RuntimeWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_failed_open_leaves_nothing_behind(name: str, way: Way, tmp_path: Path) -> None:
    """No request (tasks and places: see `nothing_left`), no file, and no thread of its own."""
    make, options = BAD[name]

    def fail(function: str) -> None:
        source: Any = make(tmp_path)
        if isinstance(source, Store):
            source = RecordingStore(source)
        with pytest.raises(Exception):  # noqa: B017, PT011 - the type is the test's above
            way(function, source, **options)
        if isinstance(source, RecordingStore):
            assert source.log.in_flight == 0

    # The first also makes threads that stay, a pool's.
    fail("open_dataset")
    process = psutil.Process()

    def files() -> list[tuple[str, int]]:
        # Not where in it they are: the output of the tests themselves may go to one.
        return [(file.path, file.fd) for file in process.open_files()]

    before, threads = files(), set(threading.enumerate())
    for function in ("open_dataset", "load_dataset", "open_datatree", "open_groups") * 5:
        fail(function)
    assert files() == before
    # A pool may take a new one where the last is about to wait again; not each time.
    assert len(set(threading.enumerate()) - threads) < 10


def is_open(path: Path) -> bool:
    return any(file.path == str(path) for file in psutil.Process().open_files())


def odd_file(folder: Path, engine: Any) -> Path:
    """Return a file of times that cannot be decoded."""
    path = folder / "a.nc"
    ds = xr.Dataset({"v": ("x", [1.0, 2.0], {"units": "days since yesterday"})})
    ds.to_netcdf(path, engine=engine)
    return path


@own_ways
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_load_functions_close_their_files(engine: Any, way: Way, tmp_path: Path) -> None:
    path = odd_file(tmp_path, engine)
    given: dict[str, Any] = {"engine": engine, "decode_times": False}
    with way("open_dataset", path, **given):
        assert is_open(path)
    # Still referred to, so that no garbage collector closes it.
    loaded = [way(function, path, **given) for function in ("load_dataset", "load_dataarray")]
    loaded.append(way("load_datatree", path, **given)["v"])
    assert not is_open(path)
    assert all(each.sum().compute() == 3 for each in loaded)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_a_file_that_could_not_be_opened_is_closed(engine: Any, tmp_path: Path) -> None:
    """As in plain xarray: with the error at the latest, without a garbage collector."""
    path = odd_file(tmp_path, engine)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="yesterday"):
            aioxarray.open_dataset(path, engine=engine)
        assert not is_open(path)
    finally:
        gc.enable()


@own_ways
def test_an_unknown_engine(way: Way) -> None:
    with pytest.raises(ValueError, match="unrecognized engine 'nonsense'"):
        way("open_dataset", MemoryStore(), engine="nonsense")


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("failing", range(12))
def test_any_request_may_fail(failing: int, way: Way) -> None:
    """Whichever it is, the error comes through, or zarr asked again and got its answer."""
    faulty = FaultyStore.kth(stored_once(samples.numbers), failing, OSError("no luck"))
    recording = RecordingStore(faulty)
    try:
        got = way("open_dataset", recording, engine="zarr").load()
    except OSError as error:
        assert "no luck" in str(error)  # noqa: PT017
    else:
        xr.testing.assert_identical(got, samples.numbers())
    assert recording.log.in_flight == 0


@pytest.mark.parametrize("glob", ["zarr.json", "time/c/*", "x/c/*"])
@pytest.mark.parametrize("function", ["open_dataset_async", "load_dataset_async"])
def test_cancelling_leaves_nothing_in_flight(function: str, glob: str) -> None:
    gated = GatedStore(stored_once(samples.numbers), glob)
    recording = RecordingStore(gated)

    async def main() -> None:
        task = asyncio.create_task(getattr(aioxarray, function)(recording, engine="zarr"))
        await gated.requested(glob)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert recording.log.in_flight == 0

    asyncio.run(main())
    assert recording.log.cancelled > 0
    gated.release_all()
    xr.testing.assert_identical(aioxarray.load_dataset(recording, engine="zarr"), samples.numbers())


def test_a_hundred_side_by_side_do_not_wait_for_each_other() -> None:
    store = stored_once(samples.tree)
    before = set(threading.enumerate())

    async def main() -> list[xr.DataTree]:
        opening = (aioxarray.open_datatree_async(store, engine="zarr") for _ in range(100))
        return list(await asyncio.gather(*opening))

    with aioxarray.config.set(concurrency=3):
        trees = asyncio.run(main())
    for tree in trees[::33]:
        xr.testing.assert_identical(tree.load(), samples.tree())
    # Each depth of waiting has 32 threads at most.
    assert len(set(threading.enumerate()) - before) < 120
