"""A save that dies leaves what was there before, or whole arrays."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import FaultyStore, GatedStore
from tests.saving.helpers import content, copied, plain, sample, tree

if TYPE_CHECKING:
    from aioxarray.testing import Request

pytestmark = pytest.mark.filterwarnings("ignore::Warning")
formats = pytest.mark.parametrize("zarr_format", [2, 3])
WRITES = ("set", "delete", "delete_dir")


def seen(store: Any, consolidated: bool = True) -> xr.DataTree | None:
    """Return what a reader finds, loaded; None if there is nothing."""
    try:
        found = xr.open_datatree(store, engine="zarr", consolidated=consolidated)
    except (FileNotFoundError, ValueError):
        return None
    return found.load()


def failed_saves(
    before: MemoryStore, save: Callable[[Any], object]
) -> list[tuple[int, MemoryStore]]:
    """Save again and again, with another failing write each time; return what was left."""
    left = []
    for k in range(500):
        writes = iter(range(10_000))

        def fail(index: int, request: Request) -> BaseException | None:
            is_write = request.method in WRITES
            return OSError("injected") if is_write and next(writes) == k else None  # noqa: B023

        store = copied(before)
        try:
            save(FaultyStore(store, fail))
        except OSError:
            left.append((k, store))
        else:
            return left
    raise AssertionError("it never succeeded")


def assert_whole(found: xr.DataTree, expected: xr.DataTree) -> None:
    """Assert that each variable of ``found`` is that of ``expected``."""
    for node in found.subtree:
        for name, variable in node.to_dataset(inherit=False).variables.items():
            xr.testing.assert_equal(variable, expected[node.path].variables[name])


@pytest.mark.matrix(together=0)
@formats
def test_to_a_new_store(zarr_format: int) -> None:
    left = failed_saves(
        MemoryStore(), lambda store: aioxarray.to_zarr(tree(), store, zarr_format=zarr_format)
    )
    assert len(left) > 20
    for _, store in left:
        found = seen(store)
        assert found is None
        loose = seen(store, consolidated=False)
        if loose is not None:
            assert_whole(loose, tree())


@pytest.mark.matrix(together=1)
@formats
@pytest.mark.parametrize("consolidated", [True, False])
def test_an_append_leaves_the_old_length(zarr_format: int, consolidated: bool) -> None:
    before = MemoryStore()
    # The last chunk is written in part: it is written anew, with the old values in it.
    plain(
        sample(),
        before,
        zarr_format=zarr_format,
        encoding={"a": {"chunks": (4, 5)}},
        consolidated=consolidated,
    )
    old = seen(before, consolidated)
    assert old is not None

    def append(store: Any) -> None:
        aioxarray.to_zarr(sample(), store, append_dim="time", consolidated=consolidated)

    left = failed_saves(before, append)
    assert len(left) > 5
    for _, store in left:
        # By the metadata of each array too, from which another append begins.
        for by_one in {consolidated, False}:
            found = seen(store, by_one)
            assert found is not None
            xr.testing.assert_identical(found, old)
        append(store)
        again = seen(store, consolidated)
        assert again is not None
        assert again.sizes["time"] == 12


@pytest.mark.anyio
async def test_a_cancelled_append_leaves_the_old_length() -> None:
    before = MemoryStore()
    plain(sample(), before)
    gated = GatedStore(copied(before), keys="time/zarr.json", methods=("set",))
    task = asyncio.create_task(aioxarray.to_zarr_async(sample(), gated, append_dim="time"))
    for key in ("time", "a"):
        await asyncio.to_thread(gated.wait_requested, f"{key}/zarr.json", 20.0, 1)
    task.cancel()
    # Its metadata is put back, through the same gate.
    await asyncio.to_thread(gated.wait_requested, "time/zarr.json", 20.0, 2)
    gated.release_all()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = seen(gated, consolidated=False)
    assert found is not None
    xr.testing.assert_identical(found, seen(before))


def test_metadata_that_cannot_be_put_back() -> None:
    before = MemoryStore()
    plain(sample(), before)
    broken = []

    def fail(index: int, request: Request) -> BaseException | None:
        if request.method == "set" and request.key == "zarr.json":
            broken.append(request)
        return OSError("injected") if broken and request.method in WRITES else None

    store = copied(before)
    with pytest.raises(OSError, match="injected") as caught:
        aioxarray.to_zarr(sample(), FaultyStore(store, fail), append_dim="time")
    assert any("could not be put back" in note for note in caught.value.__notes__)
    # What is consolidated is as before all the same.
    xr.testing.assert_identical(seen(store), seen(before))


@pytest.mark.matrix(together=1)
@formats
@pytest.mark.parametrize("group", [None, "g"])
def test_a_replaced_group_is_the_old_one_or_none_or_whole(
    zarr_format: int, group: str | None
) -> None:
    before = MemoryStore()
    plain(sample(3), before, zarr_format=zarr_format)
    plain(sample(3), before, zarr_format=zarr_format, group=group, mode="w")
    new = sample().assign_attrs(title="new")
    left = failed_saves(
        before,
        lambda store: aioxarray.to_zarr(new, store, mode="w", group=group, zarr_format=zarr_format),
    )
    path = group or "/"
    for _, store in left:
        found = seen(store)
        if found is None or (path not in found.groups and f"/{path}" not in found.groups):
            continue
        part = found[path].to_dataset()
        whole = sample(3) if part.sizes.get("time") == 3 else new
        for name, variable in part.variables.items():
            xr.testing.assert_equal(variable, whole.variables[name])


@pytest.mark.parametrize("shards", [None, (4, 5)])
def test_refused_saves_write_nothing(shards: tuple[int, ...] | None) -> None:
    before = MemoryStore()
    chunks = {"chunks": (4, 5)} if shards is None else {"chunks": (1, 5), "shards": shards}
    plain(sample(), before, zarr_format=3, encoding={"a": chunks})
    refused: list[tuple[Any, dict[str, Any]]] = [
        (sample(), {}),
        (sample(), {"append_dim": "nope"}),
        (sample(), {"append_dim": "time", "mode": "w"}),
        (sample().rename(a="a/b"), {"mode": "w"}),
        (sample(), {"mode": "w", "encoding": {"a": {"colour": 1}}}),
        (sample().chunk(time=4), {"mode": "w", "encoding": {"a": {"chunks": (3, 5)}}}),
        (sample()[["a"]].isel(time=[0]).drop_vars("time"), {"region": {"time": slice(0, 2)}}),
        # Two dask chunks in one stored chunk; in format 3, in one shard.
        (sample()[["a"]].drop_vars("time").chunk(time=1), {"region": {"time": slice(0, 6)}}),
    ]
    for obj, options in refused:
        log: list[str] = []

        def fail(index: int, request: Request) -> BaseException | None:
            if request.method in WRITES:
                log.append(request.key)  # noqa: B023
            return None

        store = copied(before)
        with pytest.raises((ValueError, FileExistsError)):
            aioxarray.to_zarr(obj, FaultyStore(store, fail), **options)
        assert log == []
        assert content(store) == content(before)


def test_a_read_only_store_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        aioxarray.to_zarr(sample(), MemoryStore(read_only=True))


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("new", marks=pytest.mark.slow),
        "replace",
        pytest.param("append", marks=pytest.mark.slow),
    ],
)
def test_killed_processes(how: str, tmp_path: Path) -> None:
    """Processes that end in the middle of any of their writes; the last one does not."""
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), how]
    subprocess.run(command, check=True, timeout=120)
    *died, whole = (seen(str(path)) for path in sorted(tmp_path.glob("*.zarr")))
    assert len(died) >= 10
    if how == "new":
        assert died == [None] * len(died)
        xr.testing.assert_identical(whole, tree())
        return
    assert whole is not None
    assert whole.sizes["time"] == (12 if how == "append" else 8)
    for found in died:
        if how == "replace" and found is None:
            continue
        assert found is not None
        if found.sizes["time"] == whole.sizes["time"]:
            xr.testing.assert_identical(found, whole)
        else:
            xr.testing.assert_identical(found.to_dataset(), sample())
