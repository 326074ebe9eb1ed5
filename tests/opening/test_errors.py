"""Bad input raises what plain xarray raises; nothing that was begun is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import FaultyStore, GatedStore, RecordingStore
from tests import samples
from tests.opening.helpers import Way, every_way, own_ways
from tests.samples import stored


def broken(key: str) -> MemoryStore:
    store = stored(samples.tree(), consolidated=False)
    store._store_dict[key] = store._store_dict[key][:5]
    return store


def forbidden() -> FaultyStore:
    return FaultyStore(stored(samples.tree()), lambda *_: PermissionError("not for you"))


BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "no such path": (lambda folder: folder / "nothing.zarr", {"engine": "zarr"}),
    "an empty store": (lambda _: MemoryStore(), {"engine": "zarr"}),
    "no such group": (lambda _: stored(samples.tree()), {"engine": "zarr", "group": "none"}),
    "no such group, not consolidated": (
        lambda _: stored(samples.tree()),
        {"engine": "zarr", "group": "none", "consolidated": False},
    ),
    "an array for a group": (lambda _: stored(samples.tree()), {"engine": "zarr", "group": "x"}),
    "a broken group": (lambda _: broken("zarr.json"), {"engine": "zarr", "consolidated": False}),
    "a broken member": (lambda _: broken("x/zarr.json"), {"engine": "zarr", "consolidated": False}),
    "no permission": (lambda _: forbidden(), {"engine": "zarr"}),
    "not consolidated": (
        lambda _: stored(samples.tree(), consolidated=False),
        {"engine": "zarr", "consolidated": True},
    ),
    "the other format": (lambda _: stored(samples.tree()), {"engine": "zarr", "zarr_format": 2}),
    "an empty directory": (lambda folder: LocalStore(folder), {"engine": "zarr"}),
    "no such file": (lambda folder: folder / "nothing.nc", {"engine": "h5netcdf"}),
}


@own_ways
@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated:RuntimeWarning")
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree", "open_groups"])
@pytest.mark.parametrize("name", BAD)
def test_the_types_of_errors_are_xarrays(
    name: str, function: str, way: Way, tmp_path: Path
) -> None:
    make, options = BAD[name]
    source = make(tmp_path)
    with pytest.raises(Exception) as plain:  # noqa: PT011 - compared with ours
        getattr(xr, function)(source, **options)
    with pytest.raises(Exception) as ours:  # noqa: PT011
        way(function, source, **options)
    assert type(ours.value) is type(plain.value)


@own_ways
def test_an_unknown_engine(way: Way) -> None:
    with pytest.raises(ValueError, match="unrecognized engine 'nonsense'"):
        way("open_dataset", MemoryStore(), engine="nonsense")


@every_way
@pytest.mark.parametrize("failing", range(12))
def test_any_request_may_fail(failing: int, way: Way) -> None:
    """Whichever it is, the error comes through, or zarr asked again and got its answer."""
    faulty = FaultyStore.kth(stored(samples.numbers()), failing, OSError("no luck"))
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
    gated = GatedStore(stored(samples.numbers()), glob)
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
    store = stored(samples.tree())

    async def main() -> list[xr.DataTree]:
        opening = (aioxarray.open_datatree_async(store, engine="zarr") for _ in range(100))
        return list(await asyncio.gather(*opening))

    with aioxarray.config.set(concurrency=3):
        trees = asyncio.run(main())
    for tree in trees[::33]:
        xr.testing.assert_identical(tree.load(), samples.tree())
    # Each depth of waiting has 32 threads at most.
    assert threading.active_count() < 120
