"""What the tests of saving share: what a store holds, and what a reader sees of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray

# Larger than what is encoded as a whole.
LARGE = 70_000


def content(store: MemoryStore) -> dict[str, bytes]:
    """Return all keys and values of a store."""
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def copied(store: MemoryStore) -> MemoryStore:
    """Return another store with the same keys and values."""
    return MemoryStore(dict(store._store_dict))


def plain(obj: Any, store: Any, *args: Any, **options: Any) -> Any:
    """Save with plain xarray."""
    return obj.to_zarr(store, *args, **options)


def assert_saves_same(obj: Any, before: MemoryStore | None = None, **options: Any) -> MemoryStore:
    """Assert that ours stores, or refuses, what plain xarray does; return the store."""
    ours, theirs = (copied(before or MemoryStore()) for _ in range(2))
    errors: list[Exception | None] = []
    for save, store in ((plain, theirs), (aioxarray.to_zarr, ours)):
        try:
            later = save(obj, store, **options)
            if options.get("compute") is False:
                later.compute()
            errors.append(None)
        except Exception as error:  # noqa: BLE001 - compared below
            errors.append(error)
    assert type(errors[1]) is type(errors[0]), errors
    if errors[0] is None:
        assert content(ours) == content(theirs)
    else:
        assert content(ours) == content(before or MemoryStore())
    return ours


def sample(times: int = 6, large: bool = False) -> xr.Dataset:
    """Return variables of several types, one of them large on request."""
    x = LARGE if large else 5
    values = np.arange(times * x, dtype="f4").reshape(times, x)
    values[0, 1] = np.nan
    return xr.Dataset(
        {
            "a": (("time", "x"), values, {"units": "K"}),
            "flag": ("x", np.arange(x) % 2 == 0),
            "text": ("time", np.array([f"step {n}" for n in range(times)])),
            "scalar": ((), 3),
        },
        {"time": np.datetime64("2001-01-01", "ns") + np.arange(times) * np.timedelta64(1, "D")},
        {"title": "sample"},
    )


def tree() -> xr.DataTree:
    """Return a tree of three levels."""
    ds = sample()
    return xr.DataTree.from_dict({"/": ds[["scalar"]], "/a": ds, "/a/b": ds[["flag"]], "/c": ds})
