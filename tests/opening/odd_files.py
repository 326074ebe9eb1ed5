"""netCDF4 and HDF5 files that are odd, of each library that writes them, and what to compare."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import netCDF4
import numpy as np
import psutil
import pytest
import xarray as xr
from h5py import h5d, h5p, h5s, h5t

from tests.opening.helpers import Way, assert_loaded, assert_opened, climate


def by_netcdf4(path: Path) -> None:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        file.createDimension("char", 5)
        # A dimension without a variable, and a variable with the name of a dimension not its own.
        file.createDimension("bare", 4)
        clash = file.createVariable("x", "f4", ("time",))
        clash[:] = [1, 2]
        time = file.createVariable("time", "i4", ("time",))
        time.units, time.calendar = "days since 2001-02-27", "noleap"
        time[:] = [0, 1]
        packed = file.createVariable("packed", "i2", ("time", "x"), zlib=True, fill_value=-9)
        packed.scale_factor, packed.add_offset = 0.5, 10.0
        packed[:] = [[1, 2, 3], [4, 5, 6]]
        char = file.createVariable("char", "S1", ("x", "char"))
        char[:] = netCDF4.stringtochar(np.array(["abc", "de", "fghij"], dtype="S5"))
        char._Encoding = "utf-8"
        text = file.createVariable("text", str, ("x",))
        text[:] = np.array(["a", "bcd", "ü"], dtype=object)
        scalar = file.createVariable("scalar", "f8", ())
        scalar[...] = 3.5
        big = file.createVariable("big", ">i4", ("x",), endian="big")
        big[:] = [1, 2, 3]
        kind = file.createEnumType("u1", "kind_t", {"dry": 0, "wet": 1})
        enum = file.createVariable("enum", kind, ("x",), fill_value=1)
        enum[:] = [0, 1, 0]
        dtype = np.dtype([("a", "i8"), ("b", "f8")])
        pair = file.createVariable("pair", file.createCompoundType(dtype, "pair_t"), ("x",))
        pair[:] = np.array([(1, 2.0), (3, 4.0), (5, 6.0)], dtype=dtype)
        file.setncattr("title", "odd")
        file.setncattr_string("strings", ["one", "two"])
        file.setncattr("numbers", np.array([1, 2, 3], dtype="i2"))
        file.setncattr("one", np.array([7], dtype="i8"))
        file.setncattr("empty", "")
        below = file.createGroup("below")
        below.createDimension("y", 2)
        below.createVariable("y", "f8", ("y",))[:] = [1, 2]
        below.createVariable("both", "f8", ("x", "y"))[:] = np.ones((3, 2))


def by_h5netcdf(path: Path) -> None:
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"x": 3, "time": None}
        file.resize_dimension("time", 2)
        file.create_variable("x", ("x",), "f8", data=np.arange(3.0))
        # Shorter than its dimension, which can grow: the rest of it is fill values.
        file.create_variable("short", ("time",), "f4", fillvalue=np.float32(-1))
        compressed = file.create_variable(
            "compressed", ("x",), "i8", chunks=(2,), compression="gzip", shuffle=True
        )
        compressed[...] = np.arange(3)
        file.create_variable("fixed", ("x",), "S4", data=np.array(["a", "bcd", "efgh"], "S4"))
        file.create_variable("coord", ("x",), "f8", data=np.arange(3.0)).attrs["units"] = "m"
        compressed.attrs["coordinates"] = "coord"
        file.attrs["bytes"] = np.bytes_(b"abc")
        file.attrs["float"] = 1.5
        file.attrs["list"] = ["a", "b"]


def by_h5py(path: Path) -> None:
    with h5py.File(path, "w") as file:
        # Dimensions without names, one of them twice.
        file["square"] = np.arange(9).reshape(3, 3)
        file["line"] = np.arange(3.0)
        file["long"] = np.arange(5, dtype="u2")
        file["same"] = file["line"]
        file["line"].attrs["empty"] = h5py.Empty("f8")
        file["line"].attrs["no text"] = h5py.Empty(h5py.string_dtype(length=1))
        file["line"].attrs["latin"] = np.bytes_("ä".encode("latin-1"))
        file["line"].attrs["words"] = np.array([b"ab", b"cd"], dtype="S2")
        file["text"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        file["group/inner"] = np.zeros((2, 5))


def by_xarray(path: Path) -> None:
    climate().to_netcdf(path, engine="h5netcdf", unlimited_dims=["time"])


def with_user_types(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = h5py.enum_dtype({"a": 0, "b": 1}, basetype="u1")
        file["kind"] = kind
        file.create_dataset("kinds", (3,), dtype=file["kind"])
        file["ragged"] = h5py.vlen_dtype(np.dtype("i4"))
        many = file.create_dataset("many", (2,), dtype=file["ragged"])
        many[0], many[1] = [1, 2], [3]


def with_links(path: Path) -> None:
    """Links within the file, and into one that has been written before."""
    with h5py.File(path, "w") as file:
        file["a/b/line"] = np.arange(3.0)
        file["soft"] = h5py.SoftLink("/a/b/line")
        file["a/up"] = h5py.SoftLink("/a/b")
        file["variable"] = h5py.ExternalLink("h5py.nc", "/long")
        file["group"] = h5py.ExternalLink("h5py.nc", "/group")


def by_storage(path: Path) -> None:
    """Each way in which HDF5 stores numbers."""
    numbers = np.arange(35, dtype="f4").reshape(5, 7)
    with h5py.File(path, "w") as file:
        for name, options in STORAGE.items():
            file.create_dataset(name, data=numbers, **options)
        for dtype in ("i1", ">i2", "<u4", ">u8", "f2", ">f4", "f8", "?", "c8", "S3"):
            file.create_dataset(f"type {dtype}", data=numbers.astype(dtype), chunks=(2, 3))
        for dtype in (">i2", "f8", "?"):
            file.create_dataset(f"contiguous {dtype}", data=numbers.astype(dtype))
        # Only some of the chunks, and none.
        part = file.create_dataset("part", (9, 7), "i4", chunks=(2, 3), fillvalue=7)
        part[3:5, 2] = 1
        file.create_dataset("nothing", (9, 7), "i4", chunks=(2, 3), fillvalue=7)
        file.create_dataset("nothing contiguous", (9, 7), "f4", fillvalue=np.nan)
        file.create_dataset("no elements", (0, 7), "f4", maxshape=(None, 7))
        shrunk = file.create_dataset("shrunk", data=numbers, maxshape=(None, None), chunks=(2, 3))
        shrunk.resize((3, 4))
        grown = file.create_dataset("grown", data=numbers, maxshape=(None, None), chunks=(2, 3))
        grown.resize((8, 9))
        file.create_dataset("wide", data=numbers[:2], maxshape=(None, 7), chunks=(100, 7))
        file["scalar"] = np.float32(3.5)
        file["line"] = np.arange(5, dtype="i8")
        # A chunk that its filters were left out for.
        skipped = file.create_dataset("skipped", (4,), "i4", chunks=(4,), compression="gzip")
        skipped.id.write_direct_chunk((0,), np.arange(4, dtype="i4").tobytes(), filter_mask=1)
        _compact(file)
        _twelve_bits(file)
        _without_fill_value(file)
        layout = h5py.VirtualLayout((5, 7), "f4")
        layout[:] = h5py.VirtualSource(path.name, "contiguous", shape=(5, 7))
        file.create_virtual_dataset("virtual", layout)


STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (2, 3)},
    "gzip": {"chunks": (2, 3), "compression": "gzip"},
    "shuffled": {"chunks": (2, 3), "compression": "gzip", "shuffle": True},
    "only shuffled": {"chunks": (2, 3), "shuffle": True},
    "checked": {"chunks": (2, 3), "fletcher32": True},
    "odd bytes": {"chunks": (1, 3), "dtype": "u1", "fletcher32": True},
    "all": {"chunks": (2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": (2, 3), "compression": "lzf"},
    "scaled": {"chunks": (2, 3), "dtype": "i4", "scaleoffset": 0},
}


def _compact(file: h5py.File) -> None:
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_layout(h5d.COMPACT)
    dataset = h5d.create(file.id, b"compact", h5t.NATIVE_INT32, h5s.create_simple((4,)), created)
    dataset.write(h5s.ALL, h5s.ALL, np.arange(4, dtype="i4"))


def _twelve_bits(file: h5py.File) -> None:
    kind = h5t.NATIVE_INT16.copy()
    kind.set_precision(12)
    dataset = h5d.create(file.id, b"twelve bits", kind, h5s.create_simple((4,)))
    dataset.write(h5s.ALL, h5s.ALL, np.array([-1, 0, 1, 2], dtype="i2"))


def _without_fill_value(file: h5py.File) -> None:
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_chunk((2,))
    created.set_fill_time(h5d.FILL_TIME_NEVER)
    dataset = h5d.create(file.id, b"no fill", h5t.NATIVE_INT32, h5s.create_simple((4,)), created)
    dataset.write(h5s.ALL, h5s.ALL, np.arange(4, dtype="i4"))


def with_large_values(path: Path) -> None:
    """Contiguous values of more than one chunk of 4 MB, the last of which is not whole."""
    with h5py.File(path, "w") as file:
        file["long"] = np.arange((9 << 20) // 8 + 3)
        file["rows"] = np.arange(3 * 700_001, dtype="f4").reshape(1, 3, 700_001)


def with_user_block(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["contiguous"] = np.arange(5)
        file.create_dataset("chunked", data=np.arange(5), chunks=(2,))


def with_conventions(path: Path) -> None:
    """What xarray decodes: packed, masked and unsigned values, times, bounds, dimensions."""
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        # Dimensions of which xarray makes no coordinate.
        file.createDimension("bnds", 2)
        file.createDimension("x", 4)
        time = file.createVariable("time", "f8", ("time",), chunksizes=(512,))
        time.units, time.bounds = "hours since 2000-01-01", "time_bnds"
        bounds = file.createVariable("time_bnds", "f8", ("time", "bnds"))
        for dtype, attributes in PACKED.items():
            packed = file.createVariable(f"of {dtype}", dtype, ("time", "x"), fill_value=-9)
            packed.set_auto_maskandscale(False)
            packed.setncatts(attributes)
            packed[:3] = np.arange(12).reshape(3, 4)
        time[:] = [0, 6, 12]
        bounds[:] = [[0, 6], [6, 12], [12, 18]]
        file.createVariable("crs", "S1", ()).grid_mapping_name = "latitude_longitude"
        file.createVariable("height", "f4", ()).units = "m"
        file.createVariable("empty", "i4", ("x",))


PACKED: dict[str, dict[str, Any]] = {
    "i1": {"scale_factor": np.float32(0.5), "add_offset": np.float32(1), "_Unsigned": "true"},
    "i2": {"scale_factor": np.float32(0.01), "valid_range": np.array([0, 9], "i2")},
    "i4": {"scale_factor": 0.1, "missing_value": np.int32(3)},
    "f4": {"missing_value": np.float32(3)},
    "f8": {"flag_values": np.array([1, 2], "i1"), "units": "days"},
}


def with_length_zero(path: Path) -> None:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        file.createVariable("time", "f8", ("time",)).units = "days since 2000-01-01"
        file.createVariable("v", "f4", ("time", "x"))
        file.createVariable("x", "i4", ("x",))[:] = [1, 2, 3]


ODD_FILES: dict[str, Callable[[Path], None]] = {
    "netCDF4": by_netcdf4,
    "h5netcdf": by_h5netcdf,
    "h5py": by_h5py,
    "xarray": by_xarray,
    "user types": with_user_types,
    "links": with_links,
    "storage": by_storage,
    "large": with_large_values,
    "user block": with_user_block,
    "conventions": with_conventions,
    "length zero": with_length_zero,
}
# Said by plain xarray of these files, and so by ours.
said = pytest.mark.filterwarnings(
    "ignore:The 'phony_dims' kwarg now defaults:UserWarning",
    "ignore:'utf-8' codec can't decode bytes:UnicodeWarning",
    "ignore:variable 'of .*' has multiple fill values",
)


def write_odd_files(folder: Path) -> Path:
    """Write all of `ODD_FILES` to ``folder``, and return it."""
    for name, write in ODD_FILES.items():
        write(folder / f"{name}.nc")
    return folder


def compare(way: Way, function: str, path: Path, options: dict[str, Any], **ours_only: Any) -> None:
    """Check that ``way`` opens and loads what plain xarray does, or fails alike."""
    options = {**options, "engine": "h5netcdf"}
    plain = _outcome(getattr(xr, function), path, options)
    ours = _outcome(partial(way, function), path, {**options, **ours_only})
    if isinstance(plain, Exception) or isinstance(ours, Exception):
        assert (type(ours), str(ours)) == (type(plain), str(plain))
        return
    assert_opened(ours, plain)
    assert_loaded(ours, plain)
    for obj in (ours, plain):
        for each in obj.values() if isinstance(obj, dict) else [obj]:
            each.close()


def _outcome(opening: Callable[..., Any], path: Path, options: dict[str, Any]) -> Any:
    try:
        return opening(path, **options)
    except Exception as error:  # noqa: BLE001 - compared with what plain xarray raises
        return error


def open_files() -> list[str]:
    """Return the files that this process has open, of those that end in ``.nc``."""
    gc.collect()
    return [each.path for each in psutil.Process().open_files() if each.path.endswith(".nc")]
