"""A user's script without mistakes: every name has the type that a reader expects."""

from __future__ import annotations

from typing import Any, assert_type

import xarray as xr
from xarray.backends import ZarrStore

import aioxarray
from aioxarray.accessors import AioAccessor

# --- opening -------------------------------------------------------------------------------------

ds = aioxarray.open_zarr("air.zarr", chunks=None, timeout=5)
assert_type(ds, xr.Dataset)
assert_type(aioxarray.open_dataset("air.nc", virtual=True), xr.Dataset)
assert_type(aioxarray.open_dataarray("air.nc"), xr.DataArray)
assert_type(aioxarray.open_datatree("air.zarr", group_filter="/*"), xr.DataTree)
assert_type(aioxarray.open_groups("air.zarr"), dict[str, xr.Dataset])
assert_type(aioxarray.open_mfdataset(["a.nc", "b.nc"], chunks=None), xr.Dataset)
assert_type(aioxarray.load_dataset("air.nc", max_bytes="1GiB"), xr.Dataset)
assert_type(aioxarray.load_dataarray("air.nc"), xr.DataArray)
assert_type(aioxarray.load_datatree("air.nc"), xr.DataTree)

# --- loading -------------------------------------------------------------------------------------

array: xr.DataArray = ds["air"]
tree = xr.DataTree(ds)
assert_type(aioxarray.load(ds), xr.Dataset)
assert_type(aioxarray.compute(array, concurrency="auto"), xr.DataArray)
assert_type(aioxarray.load(tree, progress=print), xr.DataTree)
assert_type(aioxarray.load(array.variable), xr.Variable)
assert_type(aioxarray.load([ds, ds]), list[xr.Dataset])
assert_type(aioxarray.load((ds, array)), tuple[xr.Dataset, xr.DataArray])
assert_type(aioxarray.compute({"a": [array]}), dict[str, list[xr.DataArray]])
assert_type(aioxarray.explain(ds), aioxarray.LoadPlan)

# --- pieces --------------------------------------------------------------------------------------

pieces = aioxarray.blocks(ds, {"time": 24}, overlap={"time": 6}).shuffle(0).shard(0, 2)
assert_type(pieces, aioxarray.Blocks[xr.Dataset])
assert_type(pieces[0], xr.Dataset)
assert_type(pieces.batch(8, drop_last=True)[0], xr.Dataset)
pairs = aioxarray.blocks(array, "chunks", offsets={"time": (0, 1)}, drop_short=True)
assert_type(pairs[0], tuple[xr.DataArray, ...])
assert_type(pairs[1:].batch(8, dim="sample"), aioxarray.Batches[tuple[xr.DataArray, ...]])
assert_type(aioxarray.stream(pairs.batch(8)), aioxarray.Stream[tuple[xr.DataArray, ...]])


async def loading() -> None:
    assert_type(await aioxarray.open_zarr_async("air.zarr"), xr.Dataset)
    assert_type(await aioxarray.load_async(ds, timeout=5), xr.Dataset)
    assert_type(await aioxarray.compute_async([array]), list[xr.DataArray])
    assert_type(await aioxarray.aio(tree).load_async(), xr.DataTree)
    await aioxarray.to_zarr_async(ds, "copy.zarr", mode="w")


# --- the accessor --------------------------------------------------------------------------------

# xarray's classes have any attribute for a type checker.
assert_type(ds.aio, Any)
assert_type(aioxarray.aio(ds), AioAccessor[xr.Dataset])
assert_type(aioxarray.aio(ds).load(), xr.Dataset)
assert_type(aioxarray.aio(array).compute(max_bytes=1000), xr.DataArray)
assert_type(aioxarray.aio(ds).explain(), aioxarray.LoadPlan)

# --- saving, settings, traces --------------------------------------------------------------------

assert_type(aioxarray.to_zarr(ds, "copy.zarr", mode="w"), ZarrStore)
assert_type(aioxarray.aio(ds).to_zarr("copy.zarr"), ZarrStore)
with aioxarray.config.set(concurrency=32), aioxarray.trace(scope="block") as trace:
    aioxarray.load(ds)
assert_type(trace, aioxarray.Trace)
assert_type(trace.summary(), str)
assert_type(aioxarray.statistics(), aioxarray.Statistics)
