"""Plain xarray as the oracle: what aioxarray loads must be what xarray itself loads.

`check` opens an object twice and loads it in one of the four `WAYS` and by xarray's own methods;
values, types, encoding and what stays lazy must agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xarray as xr

import aioxarray

LEAVES = (xr.Variable, xr.DataArray, xr.Dataset, xr.DataTree)


@dataclass(frozen=True)
class Way:
    """One of the four ways to load."""

    name: str
    in_place: bool
    call: Callable[..., Any]

    def __call__(self, obj: Any, **options: Any) -> Any:
        return self.call(obj, **options)


WAYS = [
    Way("load", True, aioxarray.load),
    Way("compute", False, aioxarray.compute),
    Way("load_async", True, lambda obj, **kw: asyncio.run(aioxarray.load_async(obj, **kw))),
    Way("compute_async", False, lambda obj, **kw: asyncio.run(aioxarray.compute_async(obj, **kw))),
]

every_way = pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])


def check(open_lazily: Callable[[], Any], way: Way) -> Any:
    """Check that ``way`` loads what ``open_lazily`` returns as plain xarray does; return it."""
    plain = open_lazily()
    expected = plainly_loaded(plain) if way.in_place else plainly_computed(plain)
    obj = open_lazily()
    was = lazy(obj)
    assert was, "nothing is lazy here, so nothing is tested"
    got = way(obj)
    assert_same(got, expected)
    assert not lazy(got)
    if way.in_place:
        assert got is obj
    else:
        assert got is not obj
        assert lazy(obj) == was
    # What plain xarray has filled or left lazy in the objects that were given in.
    assert lazy(obj) == lazy(plain)
    return got


def plainly_loaded(obj: Any) -> Any:
    """Load ``obj`` by xarray's own ``load``."""
    return mapped(obj, lambda leaf: leaf.load())


def plainly_computed(obj: Any) -> Any:
    """Compute ``obj`` by xarray's own ``compute``."""
    return mapped(obj, lambda leaf: leaf.compute())


def mapped(obj: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to the xarray objects in a nest."""
    if isinstance(obj, LEAVES):
        return function(obj)
    if isinstance(obj, dict):
        return type(obj)((key, mapped(item, function)) for key, item in obj.items())
    items = [mapped(item, function) for item in obj]
    return type(obj)(*items) if hasattr(obj, "_fields") else type(obj)(items)


def variables(obj: Any, place: str = "") -> Iterator[tuple[str, xr.Variable]]:
    """Yield all variables in an object or a nest, with their places."""
    if isinstance(obj, xr.Variable):
        yield f"{place}.variable", obj
    elif isinstance(obj, xr.DataArray):
        yield f"{place}.variable", obj.variable
        for name, coord in obj.coords.items():
            yield f"{place}.coords[{name!r}]", coord.variable
    elif isinstance(obj, xr.Dataset):
        for name, variable in obj.variables.items():
            yield f"{place}[{name!r}]", variable
    elif isinstance(obj, xr.DataTree):
        for node in obj.subtree:
            for name, variable in node.variables.items():
                yield f"{place}{node.path}[{name!r}]", variable
    else:
        items = obj.items() if isinstance(obj, dict) else enumerate(obj)
        for key, item in items:
            yield from variables(item, f"{place}[{key!r}]")


def lazy(obj: Any) -> set[str]:
    """Return the places of the variables that are not in memory."""
    return {place for place, variable in variables(obj) if not variable._in_memory}


def assert_same(got: Any, expected: Any) -> None:
    """Assert that both are identical, and hold the same types of data with the same encoding."""
    assert type(got) is type(expected)
    if isinstance(got, LEAVES):
        if isinstance(got, xr.Variable):
            assert got.identical(expected)
        else:
            xr.testing.assert_identical(got, expected)
    else:
        assert len(got) == len(expected)
        assert not isinstance(got, dict) or list(got) == list(expected)
        pairs = (
            [(got[key], expected[key]) for key in got]
            if isinstance(got, dict)
            else list(zip(got, expected, strict=True))
        )
        for one, other in pairs:
            assert_same(one, other)
    ours, plain = dict(variables(got)), dict(variables(expected))
    assert list(ours) == list(plain)
    for place, variable in ours.items():
        assert_same_variable(variable, plain[place], place)


def assert_same_variable(got: xr.Variable, expected: xr.Variable, place: str) -> None:
    """Assert that two variables hold the same data, type for type."""
    assert type(got) is type(expected), place
    assert got.dims == expected.dims, place
    assert got.dtype == expected.dtype, place
    assert got.dtype.isnative == expected.dtype.isnative, place
    # None and nothing are the same: numpy before 2.4 makes one of the other when it pickles.
    assert (got.dtype.metadata or {}) == (expected.dtype.metadata or {}), place
    assert_same_entries(got.attrs, expected.attrs, f"attributes of {place}")
    assert_same_entries(got.encoding, expected.encoding, f"encoding of {place}")
    ours, plain = got._data, expected._data
    assert type(ours) is type(plain), place
    if isinstance(ours, np.ndarray) and isinstance(plain, np.ndarray):
        # Bit for bit, so that -0.0 and the kinds of NaN count.
        if ours.dtype == object:
            types = [[type(item) for item in array.ravel()] for array in (ours, plain)]
            assert types[0] == types[1], place
        else:
            assert ours.tobytes() == plain.tobytes(), place
        assert ours.flags.writeable == plain.flags.writeable, place


def assert_same_entries(got: dict[Any, Any], expected: dict[Any, Any], place: str) -> None:
    """Assert that two dicts have the same entries in the same order."""
    assert list(got) == list(expected), place
    for key, value in got.items():
        # NaN is a frequent fill value, and differs from itself.
        np.testing.assert_equal(value, expected[key], err_msg=f"{place}: {key!r}")
