"""`to_netcdf`: xarray's files, off the loop, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import aioxarray
from tests import samples
from tests.saving.helpers import sample, tree

pytestmark = pytest.mark.filterwarnings("ignore::Warning")
engines = pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])


@engines
def test_the_file_is_xarrays(tmp_path: Path, engine: Any) -> None:
    ds = sample().drop_vars("flag")
    lazy = xr.open_zarr(samples.stored(ds), chunks=None)
    for name, obj in {"lazy": lazy, "memory": ds, "dask": ds.chunk(time=2)}.items():
        aioxarray.to_netcdf(obj, tmp_path / f"{name}.nc", engine=engine)
        with xr.open_dataset(tmp_path / f"{name}.nc", engine=engine) as found:
            xr.testing.assert_equal(found, ds)
    assert not lazy.a.variable._in_memory
    assert sorted(each.name for each in tmp_path.iterdir()) == ["dask.nc", "lazy.nc", "memory.nc"]


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
    assert [each.name for each in tmp_path.iterdir()] == ["data.nc"]


def test_what_cannot_be_saved_is_refused() -> None:
    wrong: Any = [1, 2]
    with pytest.raises(TypeError, match="not list"):
        aioxarray.to_netcdf(wrong, "unused.nc")
    with pytest.raises(TypeError, match="not list"):
        aioxarray.to_zarr(wrong, {})
