"""Which chunks single points are in, beside numpy, and reading many of them, beside xarray."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._zarr.points import Points, selection_of
from aioxarray.testing import RecordingStore
from tests.pipeline.arrays import OURS, using
from tests.samples import opened, stored


def gathered(points: Points, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Take from ``values`` what ``points`` says, chunk by chunk."""
    out = np.full(int(np.prod(points.shape)), -1, values.dtype)
    seen = []
    spec: Any = None
    for at, _, inside, outside in points.chunks(lambda at: at, spec):
        seen.append(at)
        begin = np.multiply(at, points.chunk_shape)
        within = zip(begin, selection_of(inside), strict=True)
        out[outside] = values[tuple(b + i for b, i in within)]
    assert seen == sorted(set(seen))
    assert len(seen) == points.count
    return out.reshape(points.shape)


@given(st.data())
def test_points_are_found_in_their_chunks(data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(max_dims=3, max_side=9), label="shape")
    chunk_shape = tuple(data.draw(st.integers(1, size + 1)) for size in shape)
    shapes = data.draw(
        arrays.mutually_broadcastable_shapes(num_shapes=len(shape), min_dims=1, min_side=1),
        label="shapes",
    ).input_shapes
    dtypes = st.sampled_from(["i1", "i8", "u1"])
    coordinates = []
    for size, each in zip(shape, shapes, strict=True):
        dtype = np.dtype(data.draw(dtypes))
        least = 0 if dtype.kind == "u" else -size
        elements = st.integers(least, size - 1)
        coordinates.append(data.draw(arrays.arrays(dtype, each, elements=elements)))
    values = np.arange(np.prod(shape)).reshape(shape)
    points = Points.of(coordinates, shape, chunk_shape)
    assert points is not None
    np.testing.assert_array_equal(gathered(points, values), values[tuple(coordinates)])


@pytest.mark.slow
def test_more_chunks_than_two_bytes_can_number() -> None:
    # A stride that meets chunks in no order.
    places = np.arange(0, 7 * 90_000, 7) % 99_991
    points = Points.of([places], (100_000,), (1,))
    assert points is not None
    values = np.arange(100_000) * 3
    np.testing.assert_array_equal(gathered(points, values), values[places])


@pytest.mark.parametrize("outside", [10, -11])
def test_points_outside_of_the_array_are_left_to_zarr(outside: int) -> None:
    assert Points.of([np.array([1, outside])], (10,), (3,)) is None
    assert Points.of([np.array([], int)], (10,), (3,)) is None


SIDE = 60
FIELD = xr.Dataset({"a": (("t", "y", "x"), np.arange(4.0 * SIDE * SIDE).reshape(4, SIDE, SIDE))})
ENCODINGS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (2, 10, 10)},
    "few chunks": {"chunks": (4, SIDE, SIDE)},
    "shards": {"chunks": (1, 5, 5), "shards": (2, 20, 20)},
    "packed": {"chunks": (2, 10, 10), "dtype": "i4", "scale_factor": 0.5, "_FillValue": 7},
}


def many(order: str) -> dict[str, xr.DataArray]:
    """Return indexers of so many points that they are sorted in a thread."""
    chance = np.random.default_rng(0)
    y, x = chance.integers(0, SIDE, (2, 5000))
    if order == "sorted":
        y.sort()
    return {"y": xr.DataArray(y, dims="p"), "x": xr.DataArray(x, dims="p")}


@pytest.mark.parametrize("order", ["sorted", "random"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_many_points(encoding: str, order: str) -> None:
    memory = stored(FIELD, encoding={"a": ENCODINGS[encoding]})
    requested = []
    loaded = []
    for load in (xr.Dataset.load, aioxarray.load):
        store = RecordingStore(memory)
        lazy = opened(store).isel(many(order))
        store.log.clear()
        loaded.append(load(lazy))
        requested.append({request.key for request in store.log.requests})
        # A shard is asked for its index and for some ranges; no chunk is asked for twice.
        if load is aioxarray.load and encoding != "shards":
            assert len(store.log.requests) == len(requested[-1])
    xr.testing.assert_identical(*loaded)
    assert loaded[0].a.dtype == loaded[1].a.dtype
    assert requested[0] == requested[1]


def test_chunks_that_are_missing_are_filled() -> None:
    memory = MemoryStore()
    FIELD.to_zarr(memory, encoding={"a": {"chunks": (2, 10, 10), "_FillValue": -1.0}})
    for key in [key for key in memory._store_dict if key.startswith("a/c/0/")]:
        del memory._store_dict[key]
    part = opened(memory).isel(many("random"))
    xr.testing.assert_identical(aioxarray.compute(part), part.load())


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_masks_of_axes_are_not_coordinates(shape: tuple[int, ...]) -> None:
    values = np.arange(math.prod(shape)).reshape(shape)
    sizes: dict[str, Any] = {"chunks": (2,) * len(shape), "shards": (4,) * len(shape)}
    array: Any = zarr.create_array(MemoryStore(), data=values, **sizes)
    masks = tuple(np.arange(size) % 3 > 0 for size in shape)
    with using(OURS):
        ours: Any = zarr.open_array(array.store, mode="r")
        np.testing.assert_array_equal(ours.oindex[masks], values[np.ix_(*masks)])
