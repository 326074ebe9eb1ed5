"""Blocks: pieces are those of ``isel``, along stored chunks, in an order that is reproducible."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import aioxarray
from aioxarray import Blocks, blocks
from aioxarray.testing import RecordingStore
from tests.samples import stored


def sample() -> xr.Dataset:
    """Return 10 times of 6 stations, in chunks of 4 and 3, and a variable along times only."""
    values = np.arange(60.0).reshape(10, 6)
    ds = xr.Dataset(
        {"v": (("time", "station"), values), "w": ("time", values[:, 0])},
        {"time": np.arange(10), "name": ("station", list("abcdef"))},
    )
    ds.v.encoding["chunks"] = (4, 3)
    ds.w.encoding["chunks"] = (7,)
    return ds


def sharded() -> xr.Dataset:
    ds = xr.Dataset({"v": ("x", np.arange(20.0))})
    ds.v.encoding.update(chunks=(2,), shards=(8,))
    return ds


def lazy(ds: xr.Dataset) -> xr.Dataset:
    return aioxarray.open_zarr(stored(ds, consolidated=False), consolidated=False)


def bounds(pieces: Sequence[Any], dim: str = "time") -> list[tuple[int, int]]:
    """Return the first and the last value of the coordinate of each piece."""
    return [(int(piece[dim][0]), int(piece[dim][-1])) for piece in pieces]


# --- pieces ----------------------------------------------------------------------------------


@given(
    length=st.integers(0, 12),
    size=st.integers(1, 14),
    overlap=st.integers(0, 13),
)
def test_windows_are_those_of_a_loop(length: int, size: int, overlap: int) -> None:
    ds = xr.Dataset({"v": ("x", np.arange(length))})
    overlap = min(overlap, size - 1)
    expected = []
    start = 0
    while start < length:
        expected.append(list(range(start, min(start + size, length))))
        if start + size >= length:
            break
        start += size - overlap
    pieces = blocks(ds, {"x": size}, overlap={"x": overlap})
    assert [piece.v.values.tolist() for piece in pieces] == expected
    assert len(pieces) == len(expected)


@pytest.mark.parametrize(
    "kind",
    [
        lambda ds: ds,
        lambda ds: ds.v,
        lambda ds: xr.DataTree.from_dict({"/": ds[["time"]], "/a": ds, "/b/c": ds.isel(station=0)}),
        lambda ds: ds.chunk(time=3),
        lambda ds: ds.load(),
    ],
    ids=["dataset", "array", "tree", "dask", "memory"],
)
def test_pieces_are_those_of_isel(kind: Callable[[xr.Dataset], Any]) -> None:
    obj = kind(lazy(sample()))
    pieces = blocks(obj, {"time": 4, "station": 4}) if "station" in obj.dims else None
    pieces = pieces or blocks(obj, {"time": 4})
    times = [slice(0, 4), slice(4, 8), slice(8, 10)]
    stations = [slice(0, 4), slice(4, 6)] if len(pieces) == 6 else [slice(None)]
    for piece, (time, station) in zip(pieces, itertools.product(times, stations), strict=True):
        selection = {"time": time} if station == slice(None) else {"time": time, "station": station}
        xr.testing.assert_identical(piece, obj.isel(selection))
    assert isinstance(pieces[1:], Blocks)
    xr.testing.assert_identical(pieces[1:][-1], pieces[-1])


def test_nothing_is_requested_for_pieces() -> None:
    store = RecordingStore(stored(sample(), consolidated=False))
    ds = aioxarray.open_zarr(store, consolidated=False)
    store.log.clear()
    pieces = blocks(ds, {"time": 3})
    assert [piece.sizes["time"] for piece in pieces] == [3, 3, 3, 1]
    assert store.log.count() == 0


@pytest.mark.parametrize("size", [-1, 10, 11])
def test_a_piece_may_be_all_of_it(size: int) -> None:
    (piece,) = blocks(sample(), {"time": size})
    xr.testing.assert_identical(piece, sample())


def test_pieces_are_pickled_as_what_they_are_made_of() -> None:
    pieces = blocks(lazy(sample()), {"time": 2}).shuffle(3).shard(0, 2)
    again = pickle.loads(pickle.dumps(pieces))
    assert [each.time.values.tolist() for each in again] == [
        each.time.values.tolist() for each in pieces
    ]
    many = blocks(xr.Dataset(coords={"x": np.arange(2)}), {"x": 1})
    assert len(pickle.dumps(many.shuffle(0))) == pytest.approx(len(pickle.dumps(many)), abs=500)


# --- stored chunks ---------------------------------------------------------------------------


def test_pieces_along_chunks_request_each_chunk_once() -> None:
    store = RecordingStore(stored(sample(), consolidated=False))
    ds = aioxarray.open_zarr(store, consolidated=False)
    pieces = blocks(ds[["v"]], "chunks")
    assert len(pieces) == 6
    store.log.clear()
    with aioxarray.stream(pieces.shuffle(1)) as loaded:
        assert sum(int(piece.v.size) for piece in loaded) == 60
    requested = Counter(request.key for request in store.log.requests if "v/c" in request.key)
    assert requested == {f"v/c/{row}/{column}": 1 for row in range(3) for column in range(2)}


def test_the_largest_variables_decide_where_chunks_end() -> None:
    assert bounds(blocks(lazy(sample()), {"time": "chunks"})) == [(0, 3), (4, 7), (8, 9)]


def test_pieces_of_a_selection_end_where_its_chunks_do() -> None:
    ds = lazy(sample()).isel(time=slice(2, 9))
    assert bounds(blocks(ds, {"time": "chunks"})) == [(2, 3), (4, 7), (8, 8)]


@pytest.mark.parametrize("sizes", [{"time": 3}, {"time": -1}, {"time": "chunks"}, "chunks"])
@pytest.mark.parametrize("selected", [slice(0), []])
@pytest.mark.parametrize("opened", [lazy, lambda ds: ds.chunk(time=4, station=3)])
def test_an_empty_selection_has_no_pieces(
    opened: Callable[[xr.Dataset], xr.Dataset], selected: Any, sizes: Any
) -> None:
    pieces = blocks(opened(sample()).isel(time=selected), sizes)
    assert len(pieces) == 0
    assert list(pieces.shuffle(0)) == []


def test_shards() -> None:
    ds = lazy(sharded())
    assert [piece.sizes["x"] for piece in blocks(ds, "shards")] == [8, 8, 4]
    assert [piece.sizes["x"] for piece in blocks(ds, "chunks")] == [2] * 10


def test_chunks_of_dask_arrays_and_files(tmp_path: Path) -> None:
    ds = sample().drop_vars("name")
    assert bounds(blocks(ds.chunk(time=3), {"time": "chunks"})) == [(0, 2), (3, 5), (6, 8), (9, 9)]
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"v": {"chunksizes": (5, 6)}})
    with aioxarray.open_dataset(tmp_path / "a.nc") as opened:
        assert bounds(blocks(opened[["v"]], {"time": "chunks"})) == [(0, 4), (5, 9)]


# --- order -----------------------------------------------------------------------------------


def numbers(pieces: Blocks[xr.Dataset]) -> list[int]:
    return [piece.x.item() for piece in pieces]


def hundred() -> Blocks[xr.Dataset]:
    """Return 100 pieces of one element each, ten to a chunk."""
    ds = xr.Dataset({"v": ("x", np.zeros(100))}, {"x": np.arange(100)})
    ds.v.encoding["chunks"] = (10,)
    return blocks(lazy(ds), {"x": 1})


def test_a_shuffle_is_the_same_everywhere() -> None:
    # Another order would spoil every training that is resumed.
    order = [31, 33, 35, 37, 34, 30, 32, 36, 20, 21, 38, 25]
    assert numbers(hundred().shuffle(0, buffer=8))[:12] == order
    assert numbers(hundred().shuffle(0)) == numbers(hundred().shuffle(0))


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = [
        tuple(numbers(hundred().shuffle(seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(100)) for order in orders)


@pytest.mark.parametrize("buffer", [1, 4, 25])
def test_pieces_of_a_chunk_stay_close(buffer: int) -> None:
    order = numbers(hundred().shuffle(5, buffer=buffer))
    places: dict[int, list[int]] = {}
    for place, number in enumerate(order):
        places.setdefault(number // 10, []).append(place)
    assert max(max(each) - min(each) for each in places.values()) < 10 + 2 * buffer
    if buffer == 1:
        assert [number % 10 for number in order] == list(range(10)) * 10


@given(count=st.integers(0, 30), world=st.integers(1, 8), seed=st.integers(0, 3))
def test_shards_cover_all_pieces_once(count: int, world: int, seed: int) -> None:
    ds = xr.Dataset(coords={"x": np.arange(count)})
    pieces = blocks(ds, {"x": 1}).shuffle(seed)
    parts = [numbers(pieces.shard(rank, world)) for rank in range(world)]
    assert list(itertools.chain(*parts)) == numbers(pieces)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5,), TypeError, "divides a Dataset, DataArray or DataTree; got int"),
        ((sample(), {"tme": 3}), ValueError, "no dimension 'tme' to divide.*did you mean 'time'"),
        ((sample(), {"time": 0}), ValueError, "at least 1, or -1 for all; got 0"),
        ((sample(), {"time": 2.5}), TypeError, "must be a number, 'chunks' or 'shards'"),
        ((sample(), {"time": True}), TypeError, "must be a number"),
        ((sample(), {"time": "chunk"}), TypeError, "'chunks' or 'shards'; got 'chunk'"),
        ((sample(), {}), ValueError, "sizes names no dimension"),
        ((sample(), "time"), TypeError, "must be a mapping, 'chunks' or 'shards'; got 'time'"),
        ((sample(), "chunks"), ValueError, "no variable is known to be stored in chunks"),
        ((sample(), {"time": "shards"}), ValueError, "stored in chunks along 'time'"),
    ],
)
def test_invalid_sizes(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        blocks(*arguments)


@pytest.mark.parametrize(
    ("overlap", "error", "message"),
    [
        ({"station": 1}, ValueError, "which sizes does not divide"),
        ({"time": 4}, ValueError, "less than the length of a piece, 4; got 4"),
        ({"time": -1}, ValueError, "overlap along 'time' must be at least 0"),
        ({"time": 0.5}, TypeError, "overlap along 'time' must be a number"),
    ],
)
def test_invalid_overlaps(overlap: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        blocks(sample(), {"time": 4}, overlap=overlap)


def test_stored_chunks_do_not_overlap() -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        blocks(lazy(sample()), {"time": "chunks"}, overlap={"time": 1})


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pieces: pieces[3], IndexError),
        (lambda pieces: pieces[-4], IndexError),
        (lambda pieces: pieces.shuffle(-1), ValueError),
        (lambda pieces: pieces.shuffle(0, buffer=0), ValueError),
        (lambda pieces: pieces.shuffle("0"), TypeError),
        (lambda pieces: pieces.shard(2, 2), ValueError),
        (lambda pieces: pieces.shard(0, 0), ValueError),
        (lambda pieces: pieces.shard(0.0, 2), TypeError),
    ],
)
def test_invalid_calls(call: Callable[[Any], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(blocks(sample(), {"time": 4}))


def test_a_tree_of_different_lengths_is_refused() -> None:
    tree = xr.DataTree.from_dict(
        {"/a": xr.Dataset({"v": ("x", np.zeros(3))}), "/b": xr.Dataset({"v": ("x", np.zeros(4))})}
    )
    with pytest.raises(ValueError, match="different lengths of 'x': 3 and 4"):
        blocks(tree, {"x": 1})
