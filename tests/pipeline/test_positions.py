"""Lists of positions along dimensions: their chunks beside numpy, their values beside xarray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._xarray.arrays.plan import Read
from aioxarray._xarray.arrays.read import Means, means_of
from aioxarray._xarray.arrays.sources import sources
from aioxarray._zarr.chunks.arrays import plan_lists
from aioxarray._zarr.positions import Positions
from aioxarray._zarr.selection import Block, is_basic

if TYPE_CHECKING:
    from collections.abc import Sequence


def gathered(block: Block, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Take from ``values`` what ``block`` says, chunk by chunk."""
    out = np.full(block.shape, -1, values.dtype)
    count = 0
    for at, inside, outside in block.parts():
        count += 1
        chunk = values[
            tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, block.chunk_shape, strict=True))
        ]
        assert not block.basic or (is_basic(inside) and is_basic(outside))
        out[outside] = chunk[inside]
    assert count == block.count
    return out


@given(st.data())
def test_positions_are_found_in_their_chunks(data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(max_dims=3, max_side=12), label="shape")
    chunk_shape = tuple(data.draw(st.integers(1, size + 1)) for size in shape)
    selection: list[slice | Positions] = []
    expected = []
    for size, length in zip(shape, chunk_shape, strict=True):
        if data.draw(st.booleans(), label="a slice"):
            first = data.draw(st.integers(0, size - 1))
            part = slice(first, size, data.draw(st.integers(1, 3)))
            selection.append(part)
            expected.append(np.arange(size)[part])
            continue
        elements = st.integers(-size, size - 1)
        listed = data.draw(st.lists(elements, min_size=1, max_size=15), label="positions")
        if data.draw(st.booleans(), label="sorted"):
            listed = sorted(each % size for each in listed)
        found = Positions.of(np.array(listed), size, length)
        assert found is not None
        selection.append(found)
        expected.append(np.array(listed))
    values = np.arange(np.prod(shape)).reshape(shape)
    block = Block(selection, shape, chunk_shape)
    np.testing.assert_array_equal(gathered(block, values), values[np.ix_(*expected)])


def test_regular_positions_are_slices() -> None:
    for listed in (range(3, 20), range(0, 20, 3), [0, 1, 5, 7, 9, 15]):
        positions = Positions.of(np.array(listed), 20, 5)
        assert positions is not None
        block = Block([positions], (20,), (5,))
        assert block.basic
        assert all(is_basic(inside) for _, inside, _ in block.parts())


@pytest.mark.parametrize("listed", [[0, 20], [-21, 3], []])
def test_positions_outside_are_left_to_zarr(listed: list[int]) -> None:
    assert Positions.of(np.array(listed, dtype=int), 20, 5) is None


# --- reading -------------------------------------------------------------------------------------

SHAPE = (13, 24, 10)

CHANCE = np.random.default_rng(0)
SELECTIONS: dict[str, dict[str, Any]] = {
    "in order": {"x": [0, 1, 2, 9]},
    "strided": {"y": np.arange(1, 24, 5), "x": slice(2, 9)},
    "repeated": {"y": [3, 3, 4, 23, 23]},
    "in no order": {"y": CHANCE.permutation(24), "x": 3},
    "negative": {"y": [-1, -24, 5], "t": -1},
    "two lists": {"t": [12, 0, 3], "x": [9, 1]},
    "three lists": {"t": [12, 0, 3], "y": [3, 4, 5, 23], "x": [9, 1]},
    "a list between integers": {"t": 2, "y": [3, 17, 4], "x": 5},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (4, 5, 3), "dtype": "f4"},
    "shards": {"chunks": (2, 3, 5), "shards": (6, 12, 10), "dtype": "i2"},
    "texts": {"chunks": (4, 5, 3), "dtype": str},
    "in Fortran order": {"chunks": (4, 5, 3), "dtype": "f8", "order": "F", "zarr_format": 2},
}


def stored(layout: str) -> xr.Dataset:
    """Return a lazy dataset, some of whose chunks are missing."""
    store = MemoryStore()
    dims = ["t", "y", "x"]
    options: dict[str, Any] = dict(LAYOUTS[layout])
    is_v2 = options.get("zarr_format") == 2
    names: dict[str, Any] = (
        {"attributes": {"_ARRAY_DIMENSIONS": dims}} if is_v2 else {"dimension_names": dims}
    )
    array = zarr.create_array(store, name="v", shape=SHAPE, **names, **options)
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    part = values[:, :15].astype(str) if layout == "texts" else values[:, :15]
    array[:, :15] = part
    ds: xr.Dataset = xr.open_zarr(store, chunks=None, consolidated=False)
    return ds


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_values_are_xarrays(layout: str, selection: str) -> None:
    lazy = stored(layout).isel(SELECTIONS[selection])
    expected = lazy.copy(deep=True).load()
    xr.testing.assert_identical(aioxarray.compute(lazy), expected)
    # Into an array of the caller.
    if layout != "texts":
        out = {"v": np.full(expected.v.shape, -1, expected.v.dtype)}
        aioxarray.load(lazy, out=out)
        np.testing.assert_array_equal(out["v"], expected.v.values)


def planned(lazy: xr.Dataset) -> tuple[Any, Sequence[Any]]:
    ((source, _),) = sources(lazy.v.variable._data)
    assert isinstance(source, Read)
    assert means_of(source) is Means.LISTS
    array: Any = source.array
    return array._array, source.key.tuple


def test_lists_are_planned_without_zarrs_indexing() -> None:
    array, key = planned(stored("chunks").isel(y=[3, 17, 4], x=[1, 9]))
    plan = plan_lists(array, key)
    assert plan is not None
    # All four along the first axis; of the others, two each.
    assert plan.count == 4 * 2 * 2
    keys = [each.key for each in plan.requests()]
    assert len(set(keys)) == plan.count
