"""A user's script of mistakes: each comment gives mypy's code of the error on its line."""

from __future__ import annotations

import xarray as xr

import aioxarray

ds = aioxarray.open_zarr("air.zarr")

aioxarray.load(5)  # error: type-var
aioxarray.load("air.zarr")  # error: type-var
aioxarray.load(ds, concurency=3)  # error: call-arg
aioxarray.load(ds, concurrency="many")  # error: arg-type
aioxarray.load(ds, timeout="5s")  # error: arg-type
aioxarray.load(ds, progress="yes")  # error: arg-type
aioxarray.open_zarr()  # error: call-arg
aioxarray.to_zarr(5, "copy.zarr")  # error: call-overload
aioxarray.to_zarr(ds, zarr_format="3")  # error: call-overload
aioxarray.aio(5)  # error: type-var
aioxarray.aio(ds).lod()  # error: attr-defined
aioxarray.trace(scope="thread")  # error: arg-type


async def loading() -> None:
    array: xr.DataArray = await aioxarray.load_async(ds)  # error: arg-type
    aioxarray.load_async(array)  # error: unused-coroutine
    aioxarray.load_async(ds).sizes  # error: attr-defined
