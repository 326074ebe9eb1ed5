"""`resume=True`: the same save goes on after an interruption, and writes only what is missing."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore, ZipStore

import aioxarray
from aioxarray._xarray.arrays.blocks import boxes
from aioxarray.testing import FaultyStore, RecordingStore
from tests.saving.helpers import LARGE, content, copied, plain, sample, tree

if TYPE_CHECKING:
    from aioxarray.testing import Request

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

WRITES = ("set", "delete", "delete_dir")
PIECES = {"a": {"chunks": (1, 7000)}}
SHARDS = {"a": {"chunks": (1, 7000), "shards": (2, 14000)}}


def lazy() -> xr.Dataset:
    store = MemoryStore()
    plain(sample(large=True), store, encoding=PIECES)
    return aioxarray.open_zarr(store)


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "memory": (lambda: sample(large=True), {"encoding": PIECES}),
    "shards": (lambda: sample(large=True), {"encoding": SHARDS}),
    "format 2": (lambda: sample(large=True), {"encoding": PIECES, "zarr_format": 2}),
    "lazy": (lazy, {}),
    "tree": (tree, {}),
    "dask": (lambda: sample(large=True).chunk(time=2), {}),
    "dask, small chunks": (lambda: sample(large=True).chunk(time=2), {"encoding": PIECES}),
    "a group": (lambda: sample(large=True), {"group": "g", "consolidated": False}),
    "not consolidated": (lambda: sample(large=True).chunk(x=7000), {"consolidated": False}),
}


def written(store: RecordingStore) -> list[str]:
    return [each.key for each in store.log.requests if each.method in WRITES]


@pytest.mark.matrix(together=1)
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_after_any_number_of_writes(kind: str) -> None:
    make, options = KINDS[kind]
    obj = make()
    whole = MemoryStore()
    aioxarray.to_zarr(obj, whole, **options)
    for k in itertools.count(0, 1 if len(content(whole)) < 40 else 5):
        store, writes = MemoryStore(), itertools.count()

        def fail(index: int, request: Request) -> BaseException | None:
            is_lost = request.method in WRITES and next(writes) >= k  # noqa: B023
            return OSError("injected") if is_lost else None

        try:
            aioxarray.to_zarr(obj, FaultyStore(store, fail), resume=True, **options)
        except OSError:
            pass
        else:
            break
        # Nobody finds a part of it.
        with pytest.raises((FileNotFoundError, ValueError)):
            xr.open_zarr(store, group=options.get("group"))
        before = set(content(store))
        again = RecordingStore(store)
        aioxarray.to_zarr(obj, again, resume=True, **options)
        assert content(store) == content(whole)
        assert sorted(written(again)) == sorted(set(content(whole)) - before)
    assert k >= 10
    # One that has nothing to do does nothing.
    again = RecordingStore(store)
    aioxarray.to_zarr(obj, again, resume=True, **options)
    assert written(again) == []


@pytest.mark.anyio
async def test_the_coroutine_and_the_methods() -> None:
    ds = sample()
    whole = MemoryStore()
    plain(ds, whole)
    for save in (aioxarray.to_zarr_async, aioxarray.aio(ds).to_zarr_async):
        store = MemoryStore()
        arguments = (ds, store) if save is aioxarray.to_zarr_async else (store,)
        await save(*arguments, resume=True)
        del store._store_dict["a/c/0/0"]
        await save(*arguments, resume=True)
        assert content(store) == content(whole)


def without(store: MemoryStore, *keys: str) -> MemoryStore:
    left = copied(store)
    for key in keys:
        del left._store_dict[key]
    return left


def test_only_missing_blocks_are_read() -> None:
    source = RecordingStore(MemoryStore())
    plain(sample(large=True), source, encoding=PIECES)
    ds = aioxarray.open_zarr(source)[["a"]].drop_vars("time")
    store = MemoryStore()
    aioxarray.to_zarr(ds, store)
    source.log.clear()
    aioxarray.to_zarr(ds, without(store, "a/c/3/7", "zarr.json"), resume=True)
    read = [each.key for each in source.log.requests]
    assert read == ["a/c/3/7"]


def test_only_missing_blocks_are_computed() -> None:
    computed: list[Any] = []

    def record(values: Any, block_info: Any = None) -> Any:
        computed.append(block_info[0]["chunk-location"])
        return values

    values = dask.array.ones((40, 30), chunks=(10, 10)).map_blocks(
        record, dtype=float, meta=np.zeros((0, 0))
    )
    ds = xr.Dataset({"v": (("y", "x"), values)})
    store = MemoryStore()
    aioxarray.to_zarr(ds, store)
    computed.clear()
    missing = [(0, 1), (1, 0), (1, 1), (1, 2), (3, 2)]
    left = without(store, *(f"v/c/{y}/{x}" for y, x in missing))
    steps: list[tuple[int, int]] = []
    aioxarray.to_zarr(ds, left, resume=True, progress=lambda *step: steps.append(step))
    assert sorted(computed) == missing
    assert content(left) == content(store)
    assert steps[-1] == (40 * 30 * 8, 40 * 30 * 8)


@pytest.mark.parametrize("chunked", [False, True])
def test_regions_of_a_template(chunked: bool) -> None:
    ds = sample(large=True)[["a", "flag"]].drop_vars("time").chunk(time=2, x=7000)
    store = MemoryStore()
    aioxarray.to_zarr(ds, store, compute=False)
    for start in (0, 2, 4):
        region = {"time": slice(start, start + 2)}
        part = ds[["a"]].isel(region)
        part = part if chunked else part.load(scheduler="sync")
        aioxarray.to_zarr(part, store, region=region, resume=True)
        del store._store_dict[f"a/c/{start // 2}/4"]
        again = RecordingStore(store)
        aioxarray.to_zarr(part, again, region=region, resume=True)
        assert written(again) == [f"a/c/{start // 2}/4"]
    # The template again, and what no region had.
    again = RecordingStore(store)
    aioxarray.to_zarr(ds, again, compute=False, resume=True).compute()
    assert {key.partition("/")[0] for key in written(again)} == {"flag"}
    expected = MemoryStore()
    aioxarray.to_zarr(ds, expected)
    assert content(store) == content(expected)


def test_chunks_of_a_region_are_asked_for_one_by_one_if_the_array_has_many() -> None:
    ds = xr.Dataset({"v": (("y", "x"), np.ones((5000, 1)))})
    store = RecordingStore(MemoryStore())
    template = xr.zeros_like(ds).chunk(y=1)
    aioxarray.to_zarr(template, store, compute=False)
    store.log.clear()
    region = {"y": slice(100, 104)}
    aioxarray.to_zarr(ds.isel(region), store, region=region, resume=True)
    asked = [each for each in store.log.requests if each.key.startswith("v/c")]
    assert [each.method for each in asked].count("exists") == 4
    assert not [each for each in store.log.requests if each.method == "list_prefix"]


# --- what is refused -----------------------------------------------------------------------


def changed(**attributes: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda ds: ds.assign_attrs(**attributes)


OTHERS: dict[str, tuple[Callable[[xr.Dataset], Any], dict[str, Any], str]] = {
    "shape": (lambda ds: ds.isel(time=slice(4)), {}, r"shape is \[6, 5\] there, and \[4, 5\] here"),
    "dtype": (lambda ds: ds.assign(a=ds.a.astype("f8")), {}, "'a'.* data_type is"),
    "chunks": (lambda ds: ds, {"encoding": {"a": {"chunks": (2, 5)}}}, "'a'.* chunk_grid is"),
    "attribute": (lambda ds: ds.assign(a=ds.a.assign_attrs(units="C")), {}, "attribute 'units' is"),
    "of the group": (changed(title="other"), {}, "root group.* attribute 'title' is"),
    "coordinate": (
        lambda ds: ds.assign_coords(time=ds.time[::-1]),
        {"encoding": {"time": {"units": "days since 2001-01-01"}}},
        "other values of the coordinate 'time'",
    ),
    "fewer variables": (lambda ds: ds.drop_vars("flag"), {}, "the store has 'flag'"),
}


@pytest.mark.matrix(together=1)
@pytest.mark.parametrize("what", OTHERS)
def test_another_save_is_refused(what: str) -> None:
    change, options, message = OTHERS[what]
    store = MemoryStore()
    before: dict[str, Any] = {"encoding": {"time": {"units": "days since 2001-01-01"}}}
    aioxarray.to_zarr(sample(), store, resume=True, **before)
    options = {"encoding": {**before["encoding"], **options.get("encoding", {})}}
    again = RecordingStore(store)
    with pytest.raises(ValueError, match=message):
        aioxarray.to_zarr(change(sample()), again, resume=True, **options)
    assert written(again) == []


def test_options_that_cannot_be_resumed(tmp_path: Path) -> None:
    wrapper = pytest.importorskip("fsspec.implementations.asyn_wrapper")
    local = pytest.importorskip("fsspec").filesystem("file")
    in_place = FsspecStore(
        wrapper.AsyncFileSystemWrapper(local, asynchronous=True),
        path=str(tmp_path / "in place"),
    )
    icechunk = pytest.importorskip("icechunk")
    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    store = RecordingStore(MemoryStore())
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (store, {"mode": "w"}, "got mode='w'"),
        (store, {"mode": "a"}, "got mode='a'"),
        (store, {"append_dim": "time"}, "an append cannot be resumed"),
        (ZipStore(tmp_path / "a.zip", mode="w"), {}, "writes each value as a whole"),
        (in_place, {}, "writes each value as a whole"),
        (session.store, {}, "icechunk session cannot be resumed"),
    ]
    for target, options, message in refused:
        with pytest.raises(ValueError, match=message):
            aioxarray.to_zarr(sample(), target, resume=True, **options)
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="resume must be True or False, got 'yes'"):
        aioxarray.to_zarr(sample(), store, resume=wrong)
    assert len(store.log.requests) == 0


@pytest.mark.parametrize("unit", ["chunks", "shards"])
def test_a_region_with_parts_of_chunks_is_refused(unit: str) -> None:
    encoding = {
        "a": {"chunks": (1, 5), "shards": (2, 5)} if unit == "shards" else {"chunks": (2, 5)}
    }
    store = MemoryStore()
    plain(sample(), store, encoding=encoding)
    before = content(store)
    part = sample()[["a"]].drop_vars("time").isel(time=slice(2, 5))
    with pytest.raises(
        ValueError, match=rf"\[2:5, 0:5\] of variable 'a' has parts of {unit}, which are of 2 x 5"
    ):
        aioxarray.to_zarr(part, store, region={"time": slice(2, 5)}, resume=True)
    assert content(store) == before


def test_chunks_without_a_template_do_not_count() -> None:
    """Such as those that a save without ``resume`` has left."""
    ds = sample()
    whole = MemoryStore()
    aioxarray.to_zarr(ds, whole)
    store = MemoryStore()
    aioxarray.to_zarr(ds.assign(a=ds.a + 1), store)
    for key in [key for key in store._store_dict if key.endswith("zarr.json")]:
        del store._store_dict[key]
    aioxarray.to_zarr(ds, store, resume=True)
    assert content(store) == content(whole)


class Changing(WrapperStore[MemoryStore]):
    """A store that changes an array once a chunk is written."""

    def __init__(self, store: MemoryStore, change: Callable[[], object]) -> None:
        super().__init__(store)
        self._change = change

    async def set(self, key: str, value: Any) -> None:
        await super().set(key, value)
        if key.startswith("a/c/5"):
            self._change()


def test_after_an_array_was_changed_its_chunks_do_not_count() -> None:
    ds = sample(large=True)
    values = ds.a.values

    def change() -> None:
        values[:] = 7

    store = MemoryStore()
    with pytest.raises(aioxarray.ArrayChangedError):
        aioxarray.to_zarr(ds, Changing(store, change), resume=True, encoding=PIECES)
    assert not [key for key in content(store) if key.startswith("a/c")]
    aioxarray.to_zarr(ds, store, resume=True, encoding=PIECES)
    np.testing.assert_array_equal(xr.open_zarr(store).a, np.full((6, LARGE), 7))


# --- processes -----------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_killed_processes(tmp_path: Path) -> None:
    """Processes that end in the middle of any of their writes; the last one does not."""
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), "resume"]
    subprocess.run(command, check=True, timeout=120)
    *died, whole = sorted(tmp_path.glob("*.zarr"))
    assert len(died) >= 10
    for folder in died:
        aioxarray.to_zarr(sample(), folder, resume=True)
        assert files(folder) == files(whole)


def test_what_a_killed_process_leaves_beside_chunks_is_deleted(tmp_path: Path) -> None:
    ds = sample()
    aioxarray.to_zarr(ds, LocalStore(tmp_path / "whole"), resume=True)
    aioxarray.to_zarr(ds, LocalStore(tmp_path / "again"), resume=True)
    for name in ("a/c/0/0", "a/zarr", "zarr"):
        (tmp_path / "again" / f"{name}.{'0f' * 16}.partial").write_bytes(b"beginning")
    (tmp_path / "again" / "a" / "c" / "0" / "0").unlink()
    aioxarray.to_zarr(ds, LocalStore(tmp_path / "again"), resume=True)
    assert files(tmp_path / "again") == files(tmp_path / "whole")


# --- boxes ---------------------------------------------------------------------------------


@given(
    arrays.arrays(bool, arrays.array_shapes(min_dims=0, max_dims=3, max_side=6)),
    st.integers(0, 10),
)
def test_boxes(wanted: Any, most: int) -> None:
    found = np.zeros(wanted.shape, int)
    chosen = boxes(wanted, most)
    for box in chosen:
        found[box] += 1
    assert (found[wanted] == 1).all()
    assert found.max(initial=0) <= 1
    if len(boxes(wanted, 10**6)) <= most:
        assert (found == wanted).all()
