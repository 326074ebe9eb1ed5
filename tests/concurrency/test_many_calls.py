"""Thousands of concurrent small loads: few objects per load, no thread hops, no zarr indexing."""

from __future__ import annotations

import asyncio
import gc
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.core.indexing import AsyncVIndex
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._zarr.chunks import forms
from aioxarray._zarr.stores.grants import decoders
from aioxarray.testing import GatedStore, RecordingStore
from tests.concurrency.helpers import lazily

COUNT = 100
VALUES = np.arange(8.0 * COUNT).reshape(COUNT, 8)


def stored() -> MemoryStore:
    store = MemoryStore()
    zarr.create_array(store, name="v", data=VALUES, chunks=(1, 8), dimension_names=["y", "x"])
    return store


def parts(ds: xr.Dataset) -> list[xr.Dataset]:
    """Return lazy datasets of one chunk each."""
    return [ds.isel(y=slice(i, i + 1)) for i in range(COUNT)]


def test_a_call_that_waits_is_few_objects() -> None:
    """The garbage collector traverses all objects, which was half of the cost of a call."""
    gate = GatedStore(stored(), keys="v/c/*")
    loads = parts(lazily(gate))

    async def main() -> int:
        gc.collect()
        before = len(gc.get_objects())
        tasks = [asyncio.create_task(aioxarray.load_async(each)) for each in loads]
        await gate.requested("v/c/*", COUNT)
        count = len(gc.get_objects()) - before
        gate.release_all()
        await asyncio.gather(*tasks)
        return count

    gc.disable()
    try:
        # The first load imports modules, and starts threads that are kept.
        asyncio.run(aioxarray.compute_async(lazily(stored()).isel(y=0)))
        count = asyncio.run(main())
    finally:
        gc.enable()
    # Plain xarray holds about 150 per load; in both cases the gated store has 20. It was 330.
    assert count / COUNT < 180
    for i, each in enumerate(loads):
        np.testing.assert_array_equal(each.v.values, VALUES[i : i + 1])


def test_a_small_chunk_is_decoded_where_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    start = decoders.start

    def counted(function: Any, **options: Any) -> Any:
        started.append(function)
        return start(function, **options)

    monkeypatch.setattr(decoders, "start", counted)
    ds = lazily(RecordingStore(stored()))
    one = aioxarray.compute(ds.isel(y=0))
    np.testing.assert_array_equal(one.v.values, VALUES[0])
    assert started == []
    # The chunks of a large selection are decoded in threads, to not delay the requests.
    large = MemoryStore()
    values = np.arange(100_000.0)
    zarr.create_array(
        large, name="v", data=values, chunks=(1000,), dimension_names=["x"], compressors=None
    )
    loaded = aioxarray.compute(lazily(RecordingStore(large)))
    np.testing.assert_array_equal(loaded.v.values, values)
    assert started


def test_many_calls_look_at_an_arrays_metadata_once() -> None:
    ds = lazily(stored())
    before = forms._form.cache_info()
    for part in parts(ds):
        aioxarray.load(part)
    after = forms._form.cache_info()
    assert after.misses - before.misses == 1
    assert after.hits - before.hits >= COUNT - 1


SELECTIONS: dict[str, Any] = {
    "a chunk": {"y": slice(1, 2)},
    "all": {},
    "points": {dim: xr.DataArray([3, 5, 4], dims="p") for dim in "yx"},
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_an_arrays_own_reading_is_used_where_it_is_not_zarrs(selection: str) -> None:
    """A patched or overridden method has to be called; xarray's tests count calls in this way."""
    ds = lazily(RecordingStore(stored())).isel(SELECTIONS[selection])
    expected = ds.copy(deep=False).load()
    owner: Any = AsyncVIndex if selection == "points" else zarr.AsyncArray
    with patch.object(owner, "getitem", side_effect=owner.getitem, autospec=True) as getitem:
        xr.testing.assert_identical(aioxarray.compute(ds), expected)
    assert getitem.call_count == 1
    # Without a patch, zarr's indexing is not used for any selection.
    with patch("zarr.core.indexing.BasicIndexer.__init__", side_effect=AssertionError):
        xr.testing.assert_identical(aioxarray.compute(ds), expected)


def test_a_derived_class_reads_by_its_own_method() -> None:
    calls: list[object] = []

    class Derived(zarr.AsyncArray[Any]):
        async def getitem(self, selection: Any, **options: Any) -> Any:
            calls.append(selection)
            return await super().getitem(selection, **options)

    ds = lazily(stored()).isel(y=0)
    lazy: Any = ds.v.variable._data
    while not hasattr(lazy, "_array"):
        lazy = lazy.array
    inner = lazy._array._async_array
    derived: Any = Derived(inner.metadata, inner.store_path, inner.config)
    lazy._array = zarr.Array(derived)
    np.testing.assert_array_equal(aioxarray.load(ds).v.values, VALUES[0])
    assert len(calls) == 1


SCALARS: dict[str, Any] = {
    "number": np.float32(3.5),
    "text": np.array("aé"),
    "big-endian": np.array(7, ">i4"),
    "time": np.array("2020-01-02T03", "M8[ns]"),
    "boolean": np.array(True),
}


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:.*Zarr (format|V) ?3 specification")
def test_single_values_are_those_of_plain_xarray(kind: str, zarr_format: Any) -> None:
    value = SCALARS[kind]
    ds = xr.Dataset({"none": ((), value), "one": ("x", np.array([value] * 3, value.dtype))})
    store = MemoryStore()
    ds.to_zarr(store, zarr_format=zarr_format, consolidated=False)

    def lazy() -> xr.Dataset:
        return lazily(RecordingStore(store)).isel(x=1)

    loaded, expected = aioxarray.load(lazy()), lazy().load()
    xr.testing.assert_identical(loaded, expected)
    for name, variable in expected.variables.items():
        found = loaded[name].variable
        assert (found.dtype, type(found._data)) == (variable.dtype, type(variable._data))
