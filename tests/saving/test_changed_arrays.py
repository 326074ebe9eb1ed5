"""Arrays that the caller changes during a save: an error, never a mixture of old and new values."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import aioxarray
from aioxarray import ArrayChangedError
from aioxarray._xarray.saving.unchanged import Unchanged, checksum
from aioxarray.testing import GatedStore
from tests.saving.helpers import LARGE, content, copied

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def sample() -> xr.Dataset:
    """Return a large array, encoded in parts, and small ones, each encoded as a whole."""
    return xr.Dataset(
        {
            "large": (("t", "x"), np.ones((4, LARGE))),
            "small": ("t", np.ones(4)),
            "packed": ("t", np.ones(4), {}, {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}),
            "when": ("t", np.array(["2001-01-01"] * 4, "M8[ns]")),
            "text": ("t", np.array(["old"] * 4)),
            "objects": ("t", np.array(["old"] * 4, object)),
        },
        {"where": ("x", np.ones(LARGE, "f4"))},
    )


NEW: dict[str, Any] = {
    "large": 2.0,
    "small": 2.0,
    "packed": 2.0,
    "when": np.datetime64("2002-02-02", "ns"),
    "text": "new",
    "objects": "new",
    "where": 2.0,
}
LARGE_IN_ROWS = {"large": {"chunks": (1, LARGE)}}


async def save_and_change(
    ds: xr.Dataset | xr.DataTree,
    store: Any,
    change: Callable[[], object],
    keys: str = "large/c/*",
    **options: Any,
) -> None:
    """Save ``ds``; call ``change`` once the first request that matches ``keys`` is held."""
    gate = GatedStore(store, keys=keys, methods=("set",))
    with aioxarray.config.set(concurrency=1):
        save = asyncio.create_task(aioxarray.to_zarr_async(ds, gate, **options))
        await gate.requested(keys)
        change()
        gate.release_all()
        await save


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("part", ["all", "one value"])
def test_a_changed_array_is_an_error(name: str, part: str) -> None:
    ds, store = sample(), MemoryStore()

    def change() -> None:
        values = ds[name].values
        values[... if part == "all" else (-1,) * values.ndim] = NEW[name]

    # A large array counts once a part of it is encoded, small ones from the beginning.
    keys = "where/c/*" if name == "where" else "large/c/*"
    with pytest.raises(ArrayChangedError, match=f"the array of variable '{name}' was changed"):
        asyncio.run(save_and_change(ds, store, change, keys, encoding=LARGE_IN_ROWS))
    # The chunks that were written belong to nothing.
    assert not any(key.endswith("zarr.json") for key in content(store))


def test_all_changed_arrays_are_named() -> None:
    ds = sample()

    def change() -> None:
        ds.small.values[0] = ds.large.values[0, 0] = 5

    with pytest.raises(ArrayChangedError, match="variable 'large', 'small' was changed"):
        asyncio.run(save_and_change(ds, MemoryStore(), change, encoding=LARGE_IN_ROWS))


VIEWS: dict[str, Callable[[Any], Any]] = {
    "the array": lambda base: base,
    "a transposed view": lambda base: base.T,
    "every other value": lambda base: base[:, ::2],
    "backwards": lambda base: base[::-1, ::-1],
    "a field": lambda base: base.view("c16").real,
}


@pytest.mark.parametrize("view", VIEWS)
def test_changes_by_another_view_of_the_memory(view: str) -> None:
    base = np.ones((4, 2 * LARGE))
    values = VIEWS[view](base)
    ds = xr.Dataset({"large": (("t", "x"), values)})
    flat: Any = base.reshape(-1)
    writer: Any = memoryview(flat)

    def change() -> None:
        # The last value of every view, and its first where it runs backwards.
        writer[2 * LARGE * 4 - 2] = writer[2 * LARGE * 4 - 1] = 2.0

    encoding = {"large": {"chunks": (1, values.shape[1]) if values.shape[0] == 4 else (LARGE, 1)}}
    with pytest.raises(ArrayChangedError):
        asyncio.run(save_and_change(ds, MemoryStore(), change, encoding=encoding))


def test_other_parts_of_the_same_memory_may_change() -> None:
    """As with two buffers: one is saved while the other is filled."""
    buffers = np.ones((2, 4, LARGE))
    ds = xr.Dataset({"large": (("t", "x"), buffers[0])})
    store = MemoryStore()

    def change() -> None:
        buffers[1] = 2

    asyncio.run(save_and_change(ds, store, change, encoding=LARGE_IN_ROWS))
    xr.testing.assert_identical(xr.open_zarr(store).load(), ds)
    assert (buffers[1] == 2).all()


def test_what_is_changed_before_the_save_starts_is_stored() -> None:
    ds, store = sample(), MemoryStore()

    async def main() -> None:
        save = asyncio.create_task(aioxarray.to_zarr_async(ds, store))
        ds.large.values[:] = 2
        await save

    asyncio.run(main())
    assert (xr.open_zarr(store).large.values == 2).all()


def test_what_is_changed_once_all_is_encoded_is_not_stored() -> None:
    ds, store = sample(), MemoryStore()
    asyncio.run(
        save_and_change(
            ds, store, lambda: ds.large.values.fill(2), keys="zarr.json", encoding=LARGE_IN_ROWS
        )
    )
    xr.testing.assert_identical(xr.open_zarr(store).load(), sample())


def test_an_append_leaves_the_old_data() -> None:
    before = MemoryStore()
    sample().to_zarr(before, encoding=LARGE_IN_ROWS)
    ds, store = sample(), copied(before)
    with pytest.raises(ArrayChangedError):
        asyncio.run(save_and_change(ds, store, lambda: ds.large.values.fill(2), append_dim="t"))
    xr.testing.assert_identical(xr.open_zarr(store).load(), sample())


def test_trees_name_the_group() -> None:
    tree, store = xr.DataTree.from_dict({"/a/b": sample()}), MemoryStore()
    change = tree["/a/b"].small.values.fill
    with pytest.raises(ArrayChangedError, match="variable 'a/b/small'"):
        asyncio.run(
            save_and_change(
                tree,
                store,
                lambda: change(2),
                keys="a/b/large/c/*",
            )
        )


def test_a_blocking_save_while_another_thread_changes_the_array() -> None:
    ds, gate = sample(), GatedStore(MemoryStore(), keys="large/c/*", methods=("set",))

    def change() -> None:
        gate.wait_requested("large/c/*")
        ds.large.values[:] = 2
        gate.release_all()

    other = threading.Thread(target=change)
    other.start()
    with aioxarray.config.set(concurrency=1), pytest.raises(ArrayChangedError):
        aioxarray.to_zarr(ds, gate, encoding=LARGE_IN_ROWS)
    other.join()


def test_later_chunked_data_does_not_hide_a_change() -> None:
    """With ``compute=False``, what is in memory is written and checked at once."""
    ds, store = sample(), MemoryStore()
    ds["later"] = ds.large.chunk({"t": 1})
    with pytest.raises(ArrayChangedError, match="'large'"):
        asyncio.run(
            save_and_change(
                ds, store, lambda: ds.large.values.fill(2), encoding=LARGE_IN_ROWS, compute=False
            )
        )


def test_lazy_data_is_only_read() -> None:
    source, store = MemoryStore(), MemoryStore()
    sample().to_zarr(source)
    lazy = xr.open_zarr(source, chunks=None)
    asyncio.run(save_and_change(lazy, store, lambda: None))
    xr.testing.assert_identical(xr.open_zarr(store).load(), sample())


# --- netCDF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["new", "replaced", "memory"])
def test_netcdf(mode: str, tmp_path: Path) -> None:
    """A part of the data is computed by dask while the file is being written, and changes it."""
    path = tmp_path / "file.nc"
    if mode == "replaced":
        xr.Dataset({"before": 1}).to_netcdf(path)
    ds = sample()[["large"]]

    def change(block: Any) -> Any:
        ds.large.values[:] = 2
        return block

    ds["computed"] = ds.large.chunk().copy(deep=True).map_blocks(change, template=ds.large.chunk())
    target = None if mode == "memory" else path
    with pytest.raises(ArrayChangedError, match="'large'"):
        asyncio.run(aioxarray.to_netcdf_async(ds, target, engine="h5netcdf"))
    assert [each.name for each in tmp_path.iterdir()] == (["file.nc"] if mode == "replaced" else [])
    if mode == "replaced":
        assert list(xr.open_dataset(path)) == ["before"]


# --- checksums -----------------------------------------------------------------------------------


def test_a_file_that_is_mapped_for_reading_is_read_once(tmp_path: Path) -> None:
    np.arange(8.0).tofile(tmp_path / "file")
    for mode, count in (("r", 0), ("r+", 1), ("c", 1)):
        unchanged = Unchanged()
        mapped: Any = np.memmap(tmp_path / "file", "f8", mode=mode)  # type: ignore[call-overload]
        unchanged.add("v", np.asarray(mapped)[2:])
        assert len(unchanged._parts) == count
        unchanged.check()


DTYPES = ["i1", "<f8", ">f4", "c16", "M8[s]", "U3", "S2", "?", object, "i4,f8"]
if hasattr(np.dtypes, "StringDType"):
    DTYPES.append(np.dtypes.StringDType())


@given(st.data())
def test_each_change_of_a_value_changes_the_checksum(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), max_size=3))
    dtype: Any = data.draw(st.sampled_from(DTYPES))
    values = np.ones(shape, "i1").astype(dtype)
    for axis in range(values.ndim):
        step = data.draw(st.sampled_from([1, -1, 2]))
        values = values[(slice(None),) * axis + (slice(None, None, step),)]
    values = values.transpose(data.draw(st.permutations(range(values.ndim))))
    before = checksum(values)
    assert checksum(values) == before
    at = tuple(data.draw(st.integers(0, length - 1)) for length in values.shape)
    values[at] = np.zeros((), "i1").astype(dtype)[()]
    assert checksum(values) != before


def test_large_arrays_of_every_layout() -> None:
    """Those that are summed in several pieces."""
    base = np.zeros((3, 700, 300))
    for values in (base, base.T, base[:, ::2], base[:, :, ::3], base[::-1, :, 7:], base[..., 1]):
        before = checksum(values)
        for at in (0, values.size // 2, -1):
            values.flat[at] = 1
            assert checksum(values) != before
            values.flat[at] = 0
        assert checksum(values) == before
