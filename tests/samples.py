"""Small datasets with every kind of variable that files and stores hold, and a store of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import xarray as xr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

X, Y, T = 8, 6, 5


def numbers() -> xr.Dataset:
    """Numbers of many types in up to three dimensions, with indexes and other coordinates."""
    rng = np.random.default_rng(7)
    ds = xr.Dataset(
        {
            "cube": (("time", "y", "x"), rng.normal(size=(T, Y, X))),
            "plane": (("y", "x"), rng.integers(-99, 99, size=(Y, X), dtype="i4")),
            "line": ("x", np.arange(X, dtype="u1")),
            "small": (("y", "x"), rng.normal(size=(Y, X)).astype("f4")),
            "complex": ("y", (rng.normal(size=Y) + 1j).astype("c16")),
            "scalar": ((), np.int64(42)),
        },
        {
            "x": 10.0 * np.arange(X),
            "y": np.arange(Y, 0, -1),
            "time": np.arange("2001-01-01", "2001-01-06", dtype="M8[D]").astype("M8[ns]"),
            "height": (("y", "x"), rng.normal(size=(Y, X))),
            "where": ((), 3.5),
        },
        {"title": "numbers"},
    )
    ds.cube.attrs["units"] = "K"
    return ds


def decoded() -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Values that a file holds in another form (CF conventions), and the encoding for it."""
    rng = np.random.default_rng(8)
    packed = rng.uniform(0, 100, size=(Y, X)).round(1)
    packed[2, 3] = np.nan
    unsigned = np.arange(float(X))
    unsigned[1] = np.nan
    dates = xr.date_range("2001-02-25", periods=T, calendar="noleap", use_cftime=True)
    ds = xr.Dataset(
        {
            "packed": (("y", "x"), packed),
            "unsigned": ("x", unsigned),
            "masked": ("x", np.where(np.arange(X) % 3, np.arange(X) / 2, np.nan)),
            "flag": ("x", np.arange(X) % 2 == 0),
            "stamp": (("time", "y"), np.arange(T * Y).reshape(T, Y).astype("M8[ns]")),
            "span": ("time", np.arange(T).astype("m8[h]").astype("m8[ns]")),
            "calendar": ("time", np.asarray(dates, dtype=object)),
            "swapped": ("x", np.arange(X, dtype=">i4")),
        }
    )
    encoding: dict[str, dict[str, Any]] = {
        "packed": {"dtype": "i2", "scale_factor": 0.1, "add_offset": 50.0, "_FillValue": -32768},
        "unsigned": {"dtype": "i1", "_Unsigned": "true", "_FillValue": np.int8(-1)},
        "masked": {"dtype": "f4", "_FillValue": np.float32(-9999.0)},
        "stamp": {"units": "seconds since 1970-01-01", "dtype": "f8"},
        "span": {"units": "minutes", "dtype": "i4"},
        "calendar": {"units": "hours since 2000-01-01", "dtype": "i4"},
    }
    return ds, encoding


def texts() -> xr.Dataset:
    """Texts: of fixed and of any length, of characters and of bytes."""
    words = ["", "a", "Zürich", "日本", "x" * 20]
    return xr.Dataset(
        {
            "fixed": ("n", np.array(words)),
            "any_length": ("n", np.array(words, dtype=object)),
            "bytes": ("n", np.array([word.encode() for word in words])),
            "grid": (("n", "m"), np.array([[w, w + "!"] for w in words])),
        }
    )


def empty() -> xr.Dataset:
    """Variables without a single value."""
    return xr.Dataset(
        {
            "none": ("n", np.empty(0)),
            "none_by_three": (("n", "m"), np.empty((0, 3), dtype="i2")),
            "full": ("m", np.arange(3)),
        }
    )


def tree() -> xr.DataTree:
    """A tree with coordinates that the groups below inherit."""
    ds = numbers()
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(coords={"x": ds.x, "where": ds["where"]}),
            "/a": ds[["line"]].drop_vars(["x", "where"]),
            "/a/deep": xr.Dataset({"both": (("x", "z"), np.arange(X * 2.0).reshape(X, 2))}),
            "/b": ds[["plane", "scalar"]].drop_vars(["x", "where"]),
            "/empty": xr.Dataset(),
        }
    )


def stored(obj: xr.Dataset | xr.DataTree, zarr_format: int = 3, **options: Any) -> MemoryStore:
    """Return a store that holds ``obj``."""
    store = MemoryStore()
    writable: Any = obj
    writable.to_zarr(store, zarr_format=zarr_format, **options)
    return store


def stored_once(
    make: Callable[[], xr.Dataset | xr.DataTree], zarr_format: int = 3, **options: Hashable
) -> MemoryStore:
    """Return a new store that holds ``make()``, which is written the first time only."""
    return MemoryStore({**_written(make, zarr_format, frozenset(options.items()))})


@functools.cache
def _written(
    make: Callable[[], xr.Dataset | xr.DataTree],
    zarr_format: int,
    options: frozenset[tuple[str, Hashable]],
) -> dict[str, Buffer]:
    return dict(stored(make(), zarr_format, **dict(options))._store_dict)


def opened(store: Any, **options: Any) -> xr.Dataset:
    """Open a dataset with lazy data."""
    ds: xr.Dataset = xr.open_zarr(store, **{"chunks": None, **options})
    return ds


def opened_tree(store: Any, **options: Any) -> xr.DataTree:
    """Open a tree with lazy data."""
    tree: xr.DataTree = xr.open_datatree(store, **{"engine": "zarr", **options})
    return tree


def contents(store: MemoryStore) -> dict[str, bytes]:
    """Return the objects in ``store``."""

    async def read() -> dict[str, bytes]:
        values = {}
        async for key in store.list():
            value = await store.get(key, default_buffer_prototype())
            assert value is not None
            values[key] = value.to_bytes()
        return values

    return asyncio.run(read())
