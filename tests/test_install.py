"""`install`: xarray's own methods through aioxarray, and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import xarray as xr
from dask.local import get_sync
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import RecordingStore
from tests import samples

CLASSES = (xr.Variable, xr.DataArray, xr.Dataset, xr.DataTree)
NAMES = ("load", "load_async", "compute")


def methods() -> list[object]:
    return [getattr(cls, name) for cls in CLASSES for name in NAMES]


def recorded() -> tuple[xr.Dataset, RecordingStore]:
    """A lazy dataset of 12 variables, and its store."""
    memory = MemoryStore()
    xr.Dataset({f"v{n}": ("x", [n, n + 1]) for n in range(12)}).to_zarr(memory, consolidated=True)
    store = RecordingStore(memory)
    ds = xr.open_zarr(store, chunks=None)
    store.log.clear()
    return ds, store


def test_methods_come_back_when_the_last_context_ends() -> None:
    before = methods()
    with aioxarray.install():
        inside = methods()
        assert not set(inside) & set(before)
        with aioxarray.install():
            assert methods() == inside
        assert methods() == inside
    assert methods() == before


def test_uninstalling_twice_does_no_harm() -> None:
    before = methods()
    first, second = aioxarray.install(), aioxarray.install()
    first.uninstall()
    first.uninstall()
    assert methods() != before
    second.uninstall()
    assert methods() == before


def test_methods_keep_their_names_and_documentation() -> None:
    plain = {cls: cls.load.__doc__ for cls in CLASSES}
    with aioxarray.install():
        for cls in CLASSES:
            assert cls.load.__name__ == "load"
            assert cls.load.__doc__ == plain[cls]


@pytest.mark.parametrize("name", NAMES)
def test_xarrays_methods_keep_to_the_limit_and_give_the_same(name: str) -> None:
    ds, store = recorded()
    expected = ds.copy(deep=False).load()
    ds, store = recorded()
    with aioxarray.install(), aioxarray.config.set(concurrency=3):
        called = getattr(ds, name)()
        got = asyncio.run(called) if name == "load_async" else called
    xr.testing.assert_identical(got, expected)
    assert (got is ds) == (name != "compute")
    assert len(store.log.requests) == 12
    assert store.log.most_in_flight <= 3


def test_options_reach_dask() -> None:
    seen: list[str] = []

    def scheduler(graph: Any, keys: Any, **options: str) -> Any:
        seen.append(options["note"])
        return get_sync(graph, keys)

    chunked = samples.numbers().chunk()
    with aioxarray.install():
        got = chunked.compute(scheduler=scheduler, note="hello")
    xr.testing.assert_identical(got, samples.numbers())
    assert seen == ["hello"]
