"""Blocks of dask that share a chunk, or a shard, of the store: all of their values are stored."""

from __future__ import annotations

import itertools
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._xarray.arrays.blocks import aligned
from aioxarray.testing import RecordingStore

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")

VALUES = np.random.default_rng(0).integers(1, 1000, (60, 40))
CHUNKS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (20, 20)},
    "shards": {"chunks": (5, 5), "shards": (20, 20)},
}


def blocks(*sizes: int) -> xr.Dataset:
    return xr.Dataset({"v": (("y", "x"), VALUES)}).chunk(dict(zip("yx", sizes, strict=True)))


def save(store: Any, where: str, encoding: Any, sizes: tuple[int, int], **options: Any) -> Any:
    """Save blocks of these sizes to a new array, a region of one, or its end; return what it holds.

    Neither the region nor the end begins where a chunk does.
    """
    ds = blocks(*sizes)
    if where == "new":
        options["encoding"] = {"v": encoding}
        expected = VALUES
    elif where == "region":
        before = np.zeros((80, 50), int)
        xr.Dataset({"v": (("y", "x"), before)}).to_zarr(store, encoding={"v": encoding})
        options["region"] = {"y": slice(13, 73), "x": slice(5, 45)}
        expected = before
        expected[13:73, 5:45] = VALUES
    else:
        before = np.full((13, 40), 5)
        xr.Dataset({"v": (("y", "x"), before)}).to_zarr(store, encoding={"v": encoding})
        options["append_dim"] = "y"
        expected = np.concatenate([before, VALUES])
    later = aioxarray.to_zarr(ds, store, safe_chunks=False, **options)
    if options.get("compute") is False:
        later.compute()
    return expected


@pytest.mark.matrix(together=2)
@pytest.mark.parametrize("sizes", [(7, 9), (5, 5)])
@pytest.mark.parametrize("compute", [True, False])
@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("where", ["new", "region", "append"])
def test_all_values_are_stored(
    where: str, kind: str, compute: bool, sizes: tuple[int, int]
) -> None:
    store = MemoryStore()
    with dask.config.set(scheduler="threads", num_workers=8):
        expected = save(store, where, CHUNKS[kind], sizes, compute=compute)
    np.testing.assert_array_equal(xr.open_zarr(store).v, expected)


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("compute", [True, False])
@pytest.mark.parametrize("kind", CHUNKS)
def test_by_workers_that_share_nothing(kind: str, compute: bool, tmp_path: Any) -> None:
    """The workers of a cluster, each with a target of its own."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        expected = save(LocalStore(tmp_path), "new", CHUNKS[kind], (7, 9), compute=compute)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path).v, expected)


def test_each_chunk_is_written_once() -> None:
    store = RecordingStore(MemoryStore())
    save(store, "new", CHUNKS["chunks"], (7, 9))
    keys = [request.key for request in store.log.requests if request.method != "list_dir"]
    chunks = [key for key in keys if key.startswith("v/c/")]
    assert sorted(chunks) == [f"v/c/{y}/{x}" for y, x in itertools.product(range(3), range(2))]


def test_a_tree() -> None:
    tree = xr.DataTree.from_dict({"/a": blocks(7, 9), "/a/b": blocks(9, 7) * 2})
    store: Any = MemoryStore()
    encoding = {path: {"v": CHUNKS["chunks"]} for path in ("/a", "/a/b")}
    later = aioxarray.to_zarr(tree, store, encoding=encoding, safe_chunks=False, compute=False)
    later.compute()
    opened = xr.open_datatree(store, engine="zarr")
    np.testing.assert_array_equal(opened["/a/v"], VALUES)
    np.testing.assert_array_equal(opened["/a/b/v"], 2 * VALUES)


@given(st.data())
@settings(deadline=None)
def test_aligned_blocks_share_no_chunk(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any))
    start = data.draw(st.integers(0, 9))
    stop = start + sum(sizes)
    edges = sorted(data.draw(st.sets(st.integers(1, stop + 9))))
    found = aligned([sizes], [slice(start, stop)], [edges])
    (new,) = ([*sizes],) if found is None else found
    assert sum(new) == sum(sizes)
    ends = set(itertools.accumulate(new, initial=start))
    assert ends <= {start, stop, *edges}
    # Blocks that share no chunk stay as they are.
    kept = set(itertools.accumulate(sizes, initial=start)) & {start, stop, *edges}
    assert kept <= ends
    if found is not None:
        longest = max(b - a for a, b in itertools.pairwise([0, *edges, stop + 9]))
        assert max(new) < max(sizes) + longest
