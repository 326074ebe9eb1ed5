"""Lazy data that is read from the very store that it is saved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import FsspecStore, MemoryStore, StorePath

import aioxarray
from aioxarray.testing import RecordingStore
from tests.saving.helpers import LARGE, content, plain

pytestmark = pytest.mark.filterwarnings("ignore::Warning")
stores = pytest.mark.parametrize("kind", ["memory", "path", "fsspec", "obstore", "recorded"])


def made(kind: str, folder: Path) -> Any:
    """Return a function that makes another object for the same store each time."""
    if kind == "path":
        return lambda: folder
    if kind == "fsspec":
        return lambda: FsspecStore.from_url(
            f"memory:/{folder.as_posix()}", storage_options={"asynchronous": True}
        )
    if kind == "obstore":
        obstore = pytest.importorskip("obstore")
        folder.mkdir()
        return lambda: obstore.store.LocalStore(folder)
    store = MemoryStore()
    return (lambda: store) if kind == "memory" else (lambda: RecordingStore(store))


def values(size: int = LARGE) -> xr.Dataset:
    return xr.Dataset({"a": ("x", np.arange(float(size))), "b": ("x", np.arange(size))})


@stores
@pytest.mark.parametrize("opens", [xr.open_zarr, aioxarray.open_zarr])
def test_data_that_mode_w_would_delete_is_refused(kind: str, opens: Any, tmp_path: Path) -> None:
    store = made(kind, tmp_path / "a")
    aioxarray.to_zarr(values(), store())
    source = store()
    if kind == "obstore" and opens is xr.open_zarr:
        from zarr.storage import ObjectStore

        source = ObjectStore(source)
    lazy = opens(source, chunks=None)
    for obj in (lazy, lazy.isel(x=slice(10)), xr.DataTree.from_dict({"/g": lazy})):
        with pytest.raises(ValueError, match="is read lazily from the store that mode='w' empties"):
            aioxarray.to_zarr(obj, store(), mode="w")
    xr.testing.assert_identical(aioxarray.open_zarr(store()).load(), values())
    # In another group nothing is deleted that is read.
    aioxarray.to_zarr(lazy, store(), mode="w", group="other")
    found = aioxarray.open_zarr(store(), group="other").load()
    xr.testing.assert_identical(found, values())


def test_below_the_group_and_in_many_files(tmp_path: Path) -> None:
    for name in "ab":
        aioxarray.to_zarr(values(), tmp_path / "all.zarr", group=name, mode="w", consolidated=False)
    below = xr.open_zarr(tmp_path / "all.zarr" / "a", chunks=None, consolidated=False)
    many = aioxarray.open_mfdataset(
        [tmp_path / "all.zarr" / name for name in "ab"],
        engine="zarr",
        combine="nested",
        concat_dim="x",
        chunks=None,
        consolidated=False,
    )
    for obj in (below, many):
        with pytest.raises(ValueError, match="mode='w'"):
            aioxarray.to_zarr(obj, tmp_path / "all.zarr", mode="w")
    with pytest.raises(ValueError, match="mode='w'"):
        aioxarray.to_zarr(many, tmp_path / "all.zarr", mode="w", group="b")
    aioxarray.to_zarr(below, tmp_path / "all.zarr", mode="w", group="b", consolidated=False)


def test_arrays_that_are_changed_are_read_first() -> None:
    size = 3_000_000
    encoding = {name: {"chunks": (100_000,)} for name in "ab"}
    before = MemoryStore()
    plain(values(size), before, encoding=encoding)

    def shifted(ds: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
        return ds.isel(x=slice(0, -150_000)), {"region": {"x": slice(150_000, size)}}

    def reversed_(ds: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
        return ds.isel(x=slice(None, None, -1)), {"mode": "r+"}

    def swapped(ds: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
        return ds.astype("f8").rename(a="b", b="a")[["b"]], {"mode": "a"}

    for change in (shifted, reversed_, swapped):
        ours, theirs = (MemoryStore(dict(before._store_dict)) for _ in range(2))
        for store, save in ((ours, aioxarray.to_zarr), (theirs, plain)):
            obj, options = change(xr.open_zarr(store, chunks=None))
            for variable in obj.variables.values():
                variable.encoding.clear()
            # One block at a time.
            with aioxarray.config.set(memory=64 << 20):
                save(obj, StorePath(store), **options)
        assert content(ours) == content(theirs)
