"""`to_netcdf`: xarray's files, off the loop, whole or not at all."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._runtime.loops import io_loop, run_on
from aioxarray._xarray.arrays.read import in_hdf5
from tests import samples
from tests.concurrency.helpers import PATIENCE_S
from tests.saving.helpers import sample, tree

pytestmark = pytest.mark.filterwarnings("ignore::Warning")
engines = pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@engines
def test_the_file_is_xarrays(tmp_path: Path, engine: Any) -> None:
    ds = sample().drop_vars("flag")
    lazy = xr.open_zarr(samples.stored(ds), chunks=None)
    for name, obj in {"lazy": lazy, "memory": ds, "dask": ds.chunk(time=2)}.items():
        aioxarray.to_netcdf(obj, tmp_path / f"{name}.nc", engine=engine)
        with xr.open_dataset(tmp_path / f"{name}.nc", engine=engine) as found:
            xr.testing.assert_equal(found, ds)
    assert not lazy.a.variable._in_memory
    assert names(tmp_path) == ["dask.nc", "lazy.nc", "memory.nc"]


def test_a_netcdf_file_is_read_and_another_written(tmp_path: Path) -> None:
    sample().to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    with aioxarray.open_dataset(tmp_path / "in.nc", engine="h5netcdf") as ds:
        for obj in (ds, ds.chunk()):
            aioxarray.to_netcdf(obj, tmp_path / "out.nc", engine="h5netcdf")
            with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as found:
                xr.testing.assert_equal(found, ds)


def test_bytes_trees_and_arrays(tmp_path: Path) -> None:
    assert bytes(aioxarray.to_netcdf(sample().a, engine="scipy")[:3]) == b"CDF"
    aioxarray.to_netcdf(tree(), tmp_path / "tree.nc", engine="netcdf4")
    with xr.open_datatree(tmp_path / "tree.nc", engine="netcdf4") as found:
        xr.testing.assert_equal(found, tree())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.nc"
    aioxarray.to_netcdf(sample(), path, engine="netcdf4")
    bad = sample().assign(bad=("time", np.array([object()] * 6, dtype=object)))
    with pytest.raises((ValueError, TypeError)):
        aioxarray.to_netcdf(bad, path, engine="netcdf4")
    with xr.open_dataset(path, engine="netcdf4") as found:
        assert list(found.data_vars) == list(sample().data_vars)
    assert names(tmp_path) == ["data.nc"]


@pytest.mark.anyio
async def test_a_cancelled_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.nc"
    aioxarray.to_netcdf(sample(), path, engine="h5netcdf")
    begun, may_end = threading.Event(), threading.Event()

    def held(values: Any) -> Any:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return values

    array = dask.array.zeros(5).map_blocks(held, dtype="f8", meta=np.zeros(0))
    ds = xr.Dataset({"new": ("x", array)})
    task = asyncio.create_task(aioxarray.to_netcdf_async(ds, path, engine="h5netcdf"))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    assert len(names(tmp_path)) == 2
    task.cancel()
    # Not before the thread, which closes the file, has ended: plain xarray may be used then.
    await run_on(io_loop(), lambda: asyncio.sleep(0))
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with xr.open_dataset(path, engine="h5netcdf") as found:
        xr.testing.assert_equal(found, sample())
    assert names(tmp_path) == ["data.nc"]


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
async def test_one_thread_at_a_time_in_hdf5(tmp_path: Path, engine: Any) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def read_slowly() -> None:
        begun.set()
        assert may_end.wait(PATIENCE_S)

    async def occupy() -> None:
        await run_on(io_loop(), lambda: in_hdf5(read_slowly))

    reading = asyncio.create_task(occupy())
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    path = tmp_path / "data.nc"
    saving = asyncio.create_task(aioxarray.to_netcdf_async(sample(), path, engine=engine))
    # Whatever else is done by the I/O loop meanwhile, the save waits for the library.
    for _ in range(20):
        await aioxarray.load_async(xr.open_zarr(samples.stored(sample()), chunks=None))
    assert not names(tmp_path)
    may_end.set()
    await asyncio.gather(reading, saving)
    with xr.open_dataset(path, engine=engine) as found:
        assert set(found.variables) == set(sample().variables)


def test_data_that_cannot_be_saved_is_refused() -> None:
    wrong: Any = [1, 2]
    with pytest.raises(TypeError, match="not list"):
        aioxarray.to_netcdf(wrong, "unused.nc")
    with pytest.raises(TypeError, match="not list"):
        aioxarray.to_zarr(wrong, {})
