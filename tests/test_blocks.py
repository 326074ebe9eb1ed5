"""Blocks: pieces are those of ``isel``, along stored chunks, in an order that is reproducible."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import aioxarray
from aioxarray import Batches, Blocks, blocks
from aioxarray.testing import LatencyStore, ObjectServer, RecordingStore, RequestLog, VirtualClock
from tests import samples
from tests.samples import decoded, stored


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


KINDS: dict[str, Callable[[xr.Dataset], Any]] = {
    "dataset": lambda ds: ds,
    "array": lambda ds: ds.v,
    "tree": lambda ds: xr.DataTree.from_dict(
        {"/": ds[["time"]], "/a": ds, "/b/c": ds.isel(station=0)}
    ),
    "dask": lambda ds: ds.chunk(time=3),
    "memory": lambda ds: ds.load(),
}

LAZY = lazy(sample())


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


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
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


def test_regions_are_those_of_the_pieces() -> None:
    ds = sample()
    pieces = blocks(ds, {"time": 7}).shuffle(seed=0).shard(1, 2)
    regions = pieces.regions()
    assert len(regions) == len(pieces)
    for region, piece in zip(regions, pieces, strict=True):
        xr.testing.assert_identical(ds.isel(region), piece)
    for overlapping in (
        blocks(ds, {"time": 7}, overlap={"time": 1}),
        blocks(ds, {"time": 7}, offsets={"time": (0, 1)}),
    ):
        with pytest.raises(ValueError, match="have no region of their own"):
            overlapping.regions()


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


# --- offsets ---------------------------------------------------------------------------------


@given(
    length=st.integers(0, 14),
    size=st.integers(1, 6),
    overlap=st.integers(0, 5),
    offsets=st.lists(st.integers(-4, 4), min_size=1, max_size=3),
    drop_short=st.booleans(),
)
def test_members_are_windows_that_stay_inside(
    length: int, size: int, overlap: int, offsets: list[int], drop_short: bool
) -> None:
    ds = xr.Dataset({"v": ("x", np.arange(length))})
    overlap = min(overlap, size - 1)
    windows = [
        (int(piece.v[0]), int(piece.v[-1]) + 1)
        for piece in blocks(ds, {"x": size}, overlap={"x": overlap})
    ]
    expected = [
        [list(range(start + by, end + by)) for by in offsets]
        for start, end in windows
        if all(start + by >= 0 and end + by <= length for by in offsets)
        and (end - start == size or not drop_short)
    ]
    pieces = blocks(
        ds, {"x": size}, overlap={"x": overlap}, offsets={"x": offsets}, drop_short=drop_short
    )
    assert [[each.v.values.tolist() for each in piece] for piece in pieces] == expected
    assert len(pieces) == len(expected)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pairs_are_those_of_isel(kind: Callable[[xr.Dataset], Any]) -> None:
    obj = kind(lazy(sample()))
    pieces = blocks(obj, {"time": 4}, overlap={"time": 3}, offsets={"time": (0, 1)})
    assert len(pieces) == 6
    for start, (before, after) in enumerate(pieces):
        xr.testing.assert_identical(before, obj.isel(time=slice(start, start + 4)))
        xr.testing.assert_identical(after, obj.isel(time=slice(start + 1, start + 5)))
    again = pickle.loads(pickle.dumps(pieces.shuffle(1).shard(1, 2)))
    assert len(again) == 3
    assert all(int(after.time[0] - before.time[0]) == 1 for before, after in again[1:])


def test_offsets_along_several_dimensions_belong_together() -> None:
    pieces = blocks(
        sample(), {"time": 5, "station": 3}, offsets={"time": (0, 5), "station": (0, -3)}
    )
    ((first, second),) = pieces
    xr.testing.assert_identical(first, sample().isel(time=slice(0, 5), station=slice(3, 6)))
    xr.testing.assert_identical(second, sample().isel(time=slice(5, 10), station=slice(0, 3)))


def test_stored_chunks_have_offsets_too() -> None:
    pieces = blocks(lazy(sample()), {"time": "chunks"}, offsets={"time": (0, 2)})
    assert [bounds(piece) for piece in pieces] == [[(0, 3), (2, 5)], [(4, 7), (6, 9)]]
    assert "each at 2 offsets" in repr(pieces)


def test_short_pieces_are_left_out() -> None:
    ds = lazy(sample())
    assert bounds(blocks(ds, {"time": 4}, drop_short=True)) == [(0, 3), (4, 7)]
    assert bounds(blocks(ds, {"time": "chunks"}, drop_short=True)) == [(0, 3), (4, 7)]
    selected = ds.isel(time=slice(2, None))
    assert bounds(blocks(selected, {"time": "chunks"}, drop_short=True)) == [(4, 7)]
    assert len(blocks(ds, {"time": 11}, drop_short=True)) == 0
    irregular = sample().chunk(time=(3, 1, 3, 2, 1))
    assert bounds(blocks(irregular, {"time": "chunks"}, drop_short=True)) == [(0, 2), (4, 6)]


# --- batches ---------------------------------------------------------------------------------


def concatenated(pieces: Sequence[Any], divided: Sequence[str], dim: str = "batch") -> Any:
    """Return what plain xarray makes of pieces, with loaded values."""
    first = pieces[0]
    if isinstance(first, xr.DataTree):
        return xr.map_over_datasets(lambda *each: concatenated(each, divided, dim), *pieces)
    if isinstance(first, xr.DataArray):
        datasets = [each.to_dataset(name="an array") for each in pieces]
        return concatenated(datasets, divided, dim)["an array"].rename(first.name)
    lost = [name for name in first.xindexes if set(first[name].dims) & set(divided)]
    new = [name for name, each in first.variables.items() if set(each.dims) & set(divided)]
    return xr.concat(
        [each.load().drop_indexes(lost) for each in pieces],
        dim,
        data_vars=[name for name in new if name in first.data_vars],
        coords=[name for name in new if name in first.coords],
        join="override",
        compat="override",
        combine_attrs="override",
    )


@pytest.mark.parametrize("sizes", [{"time": 4}, {"time": 2, "station": 3}], ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_batches_are_those_of_concat(
    kind: Callable[[xr.Dataset], Any], sizes: dict[str, int]
) -> None:
    obj = kind(lazy(sample()))
    pieces = blocks(obj, sizes, drop_short=True).shuffle(2)
    batches = pieces.batch(2)
    assert len(batches) == -(-len(pieces) // 2)
    for at, batch in enumerate(batches):
        expected = concatenated(list(pieces[2 * at : 2 * at + 2]), list(sizes))
        xr.testing.assert_identical(batch, expected)
        xr.testing.assert_identical(aioxarray.load(batches[at]), expected)


@given(data=st.data())
def test_any_batch_has_the_values_of_its_pieces(data: st.DataObject) -> None:
    ds = LAZY
    sizes = {
        "time": data.draw(st.integers(1, 10), "time"),
        "station": data.draw(st.one_of(st.just(-1), st.integers(1, 6)), "station"),
    }
    overlap = {dim: data.draw(st.integers(0, size - 1)) for dim, size in sizes.items() if size > 0}
    pieces = blocks(ds, sizes, overlap=overlap, drop_short=True)
    pieces = pieces.shuffle(data.draw(st.integers(0, 3)), buffer=data.draw(st.integers(1, 9)))
    n, drop_last = data.draw(st.integers(1, 7)), data.draw(st.booleans())
    batches = pieces.batch(n, drop_last=drop_last, dim="sample")
    expected = [pieces[at : at + n] for at in range(0, len(pieces), n)]
    if drop_last and len(pieces) % n:
        del expected[-1]
    assert len(batches) == len(expected)
    divided = [dim for dim, size in sizes.items() if size > 0]
    for batch, members in zip(batches, expected, strict=True):
        wanted = concatenated([each.copy() for each in members], divided, "sample")
        # A part of a batch is that part of its pieces.
        at = data.draw(st.integers(0, len(members) - 1))
        xr.testing.assert_identical(batch.isel(sample=[at]), wanted.isel(sample=[at]))
        xr.testing.assert_identical(batch.isel(time=0), wanted.isel(time=0))
        xr.testing.assert_identical(batch, wanted)


@pytest.mark.parametrize("source", ["numbers", "decoded", "texts"])
@pytest.mark.parametrize("opened", [aioxarray.open_zarr, partial(xr.open_zarr, chunks=None)])
def test_batches_of_all_kinds_of_variables(opened: Callable[..., xr.Dataset], source: str) -> None:
    made, encoding = decoded() if source == "decoded" else (getattr(samples, source)(), {})
    store = MemoryStore()
    made.to_zarr(store, consolidated=False, encoding=encoding)
    ds = opened(store, consolidated=False)
    for dim in map(str, ds.dims):
        pieces = blocks(ds, {dim: 2}, overlap={dim: 1}).shuffle(1, buffer=3)
        (batch,) = pieces.batch(100)
        expected = concatenated([each.copy() for each in pieces], [dim])
        xr.testing.assert_identical(batch, expected)
        for name, variable in expected.variables.items():
            assert batch[name].dtype == variable.dtype
            assert batch[name].encoding == variable.encoding


def test_labels_that_agree_stay_indexes() -> None:
    ds = sample().assign_coords(station=list("uvwxyz"))
    batch, last = blocks(ds, {"time": 5, "station": -1}, overlap={"time": 4}).batch(4)
    assert dict(batch.sizes) == {"batch": 4, "time": 5, "station": 6}
    assert dict(last.sizes) == {"batch": 2, "time": 5, "station": 6}
    assert set(batch.indexes) == {"station"}
    assert batch.v.dims == ("batch", "time", "station")
    assert batch.time.dims == ("batch", "time")
    assert batch.name.dims == ("station",)
    assert batch.time.values.tolist() == [list(range(at, at + 5)) for at in range(4)]


def test_a_batch_of_one_piece_has_the_new_dimension() -> None:
    (batch,) = blocks(sample(), {"time": -1}).batch(3)
    assert batch.v.dims == ("batch", "time", "station")
    (batch,) = blocks(sample(), {"time": 10, "station": -1}).batch(3)
    assert batch.v.dims == ("batch", "time", "station")
    assert batch.name.dims == ("station",)


def test_pairs_make_pairs_of_batches() -> None:
    ds = lazy(sample())
    pieces = blocks(ds, {"time": 2}, overlap={"time": 1}, offsets={"time": (0, 1)}).shuffle(4)
    batches = pieces.batch(3, drop_last=True)
    assert len(batches) == 2
    for at, (before, after) in enumerate(batches):
        members = list(pieces[3 * at : 3 * at + 3])
        xr.testing.assert_identical(before, concatenated([each for each, _ in members], ["time"]))
        xr.testing.assert_identical(after, concatenated([each for _, each in members], ["time"]))


def test_batches_are_sliced_and_pickled() -> None:
    batches = blocks(lazy(sample()), {"time": 1}).shuffle(1).shard(0, 2).batch(2)
    times = [batch.time.values.ravel().tolist() for batch in batches]
    assert [len(each) for each in times] == [2, 2, 1]
    assert list(itertools.chain(*times)) == [
        each.time.item() for each in blocks(lazy(sample()), {"time": 1}).shuffle(1).shard(0, 2)
    ]
    assert isinstance(batches[1:], Batches)
    again = pickle.loads(pickle.dumps(batches[::-1]))
    assert [batch.time.values.ravel().tolist() for batch in again] == times[::-1]
    batch = pickle.loads(pickle.dumps(batches[0]))
    xr.testing.assert_identical(batch, batches[0])
    assert repr(batches).startswith("<Batches: 3 batches of 2 along 'batch', of <Blocks: 5 pieces")
    with pytest.raises(IndexError, match="there are 3 batches, and none with the index 3"):
        batches[3]


def test_indexes_of_several_coordinates_and_none() -> None:
    ds = sample().set_xindex("name").stack(point=("time", "station"), create_index=True)
    (batch,) = blocks(ds, {"point": 30}, offsets={"point": range(1)}).batch(2)[0]
    assert set(batch.indexes) == set()
    assert batch.time.dims == ("batch", "point")
    xr.testing.assert_identical(batch, concatenated(list(blocks(ds, {"point": 30})), ["point"]))


def test_indexes_along_other_dimensions_stay() -> None:
    ds = sample().assign_coords(row=("station", [0, 0, 0, 1, 1, 1])).set_xindex(["name", "row"])
    (batch,) = blocks(ds, {"time": 5}).batch(2)
    assert set(batch.indexes) == {"station", "name", "row"} & set(ds.indexes)
    assert batch.xindexes["name"] is batch.xindexes["row"]
    expected = concatenated(list(blocks(ds, {"time": 5})), ["time"])
    xr.testing.assert_identical(batch.sel(row=1), expected.sel(row=1))


def test_a_part_of_a_tree() -> None:
    ds = sample()
    tree = xr.DataTree.from_dict({"/": ds[["name"]], "/a": ds[["v"]], "/a/b": ds[["w"]]})["a"]
    assert isinstance(tree, xr.DataTree)
    (batch,) = blocks(tree, {"time": 5}).batch(2)
    assert batch.name == "a"
    assert batch["b"].w.dims == ("batch", "time")
    xr.testing.assert_identical(
        batch.to_dataset(),
        concatenated([tree.to_dataset().isel(time=slice(at, at + 5)) for at in (0, 5)], ["time"]),
    )


def data_requests(store: RecordingStore) -> Counter[str]:
    """Return how often each chunk of v and w was requested."""
    keys = (request.key for request in store.log.requests)
    return Counter(key for key in keys if key.startswith(("v/c", "w/c")))


@pytest.mark.parametrize("loaded", ["load", "stream"])
def test_a_batch_requests_each_chunk_once(loaded: str) -> None:
    store = RecordingStore(stored(sample(), consolidated=False))
    ds = aioxarray.open_zarr(store, consolidated=False)[["v", "w"]]
    # Two groups of three pieces, in chunks of four times: each batch has a part of every chunk.
    batches = blocks(ds, {"time": 1})[::2].batch(3)
    for batch in batches:
        store.log.clear()
        if loaded == "load":
            aioxarray.load(batch)
        else:
            with aioxarray.stream([batch]) as stream:
                (batch,) = stream
        times = batch.time.values.ravel().tolist()
        chunks = {f"v/c/{time // 4}/{column}" for time in times for column in range(2)}
        chunks |= {f"w/c/{time // 7}" for time in times}
        assert data_requests(store) == dict.fromkeys(chunks, 1)


def test_part_of_a_batch_requests_its_chunks() -> None:
    store = RecordingStore(stored(sample(), consolidated=False))
    ds = aioxarray.open_zarr(store, consolidated=False)
    (batch,) = blocks(ds, {"time": 5}).batch(2)
    store.log.clear()
    part = aioxarray.load(batch.v.isel(batch=1, station=slice(0, 2)))
    assert part.values.tolist() == sample().v[5:, :2].values.tolist()
    assert data_requests(store) == {"v/c/1/0": 1, "v/c/2/0": 1}


def test_pairs_of_batches_request_a_chunk_once() -> None:
    clock = VirtualClock()
    store = RecordingStore(LatencyStore(stored(sample(), consolidated=False), 0.05))

    async def load() -> None:
        ds = (await aioxarray.open_zarr_async(store, consolidated=False))[["v"]]
        windows = blocks(ds, {"time": 4}, overlap={"time": 3}, offsets={"time": (0, 1)})
        (pair,) = windows.shuffle(0).batch(8)
        store.log.clear()
        await aioxarray.load_async(pair)

    clock.run(load)
    assert data_requests(store) == {
        f"v/c/{row}/{column}": 1 for row in range(3) for column in range(2)
    }


def test_a_server_is_asked_for_each_chunk_of_a_batch_once() -> None:
    async def requested(url: str, log: RequestLog) -> Counter[str]:
        ds = await aioxarray.open_zarr_async(url, consolidated=False)
        pairs = blocks(ds[["v"]], {"time": 3}, overlap={"time": 2}, offsets={"time": (0, 1)})
        batches = pairs.shuffle(5).batch(7)
        log.clear()
        async with aioxarray.stream(batches) as loaded:
            ((before, after),) = [pair async for pair in loaded]
        np.testing.assert_array_equal(before.v + 6, after.v)
        return Counter(request.key for request in log.requests)

    with ObjectServer() as server:
        for key, value in stored(sample(), consolidated=False)._store_dict.items():
            server.put(f"data/{key}", value.to_bytes())
        found = asyncio.run(requested(f"{server.url}/data", server.log))
    chunks = [*itertools.product(range(3), range(2))]
    assert found == {f"data/v/c/{row}/{column}": 1 for row, column in chunks} | {"data/name/c/0": 1}


def test_a_batch_is_divided_like_other_data() -> None:
    (batch,) = blocks(lazy(sample()), {"time": 5}).batch(2)
    assert len(blocks(batch, {"station": "chunks"})) == 2
    for piece in blocks(batch, {"batch": 1}):
        xr.testing.assert_identical(piece.v, batch.v.isel(batch=[int(piece.time[0, 0]) // 5]))
    with pytest.raises(ValueError, match="stored in chunks along 'time': give the length"):
        blocks(batch, {"time": "chunks"})


def test_files_and_packed_values(tmp_path: Path) -> None:
    ds = sample().drop_vars("name")
    packing = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1, "chunksizes": (3, 6)}
    for at, part in enumerate([ds.isel(time=slice(0, 5)), ds.isel(time=slice(5, 10))]):
        part.to_netcdf(tmp_path / f"{at}.nc", engine="h5netcdf", encoding={"v": packing})
    paths = sorted(tmp_path.glob("*.nc"))
    with aioxarray.open_mfdataset(paths, chunks=None) as opened:
        pieces = blocks(opened, {"time": 2}).shuffle(3, buffer=2)
        for batch, at in zip(pieces.batch(2), range(0, 5, 2), strict=True):
            expected = concatenated(
                [ds.isel(time=piece.time) for piece in pieces[at : at + 2]], ["time"]
            )
            xr.testing.assert_identical(batch.drop_attrs(), expected)
    with xr.open_dataset(paths[0], engine="h5netcdf") as plain:
        (batch,) = blocks(plain, {"time": 1}).shuffle(0).batch(5)
        assert not batch.v._in_memory
        np.testing.assert_array_equal(batch.v.values[:, 0], ds.v.values[batch.time.values[:, 0]])


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


@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        ({"station": (0, 1)}, ValueError, "offsets names the dimension 'station', which sizes"),
        ({"time": 1}, TypeError, r"several numbers, such as \(0, 1\); got 1"),
        ({"time": "01"}, TypeError, "several numbers"),
        ({"time": {0, 1}}, TypeError, "several numbers"),
        ({"time": np.arange(2)}, TypeError, "several numbers"),
        ({"time": (0, 0.5)}, TypeError, "an offset along 'time' must be a number, got 0.5"),
        ({"time": (0, True)}, TypeError, "must be a number, got True"),
        ({"time": ()}, ValueError, "one number for each member.*got 0 along 'time'"),
        ({"time": (0, 1), "name": (1,)}, ValueError, "got 2 along 'time', 1 along 'name'"),
        ({}, ValueError, "offsets names no dimension"),
        ((0, 1), TypeError, r"offsets must be a mapping, such as \{'time': \(0, 1\)\}; got \(0"),
    ],
)
def test_invalid_offsets(offsets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        blocks(sample(), {"time": 4}, offsets=offsets)


def test_whole_dimensions_do_not_move() -> None:
    with pytest.raises(ValueError, match="all positions along 'time', and cannot be moved"):
        blocks(sample(), {"time": -1}, offsets={"time": (0, 1)})
    with pytest.raises(ValueError, match="all positions along 'time', and so cannot overlap"):
        blocks(sample(), {"time": -1}, overlap={"time": 1})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": "8"}, TypeError, "n must be a number, got '8'"),
        ({"n": 2, "drop_last": 1}, TypeError, "drop_last must be True or False, got 1"),
        ({"n": 2, "dim": "station"}, ValueError, "dimension or variable 'station' already"),
        ({"n": 2, "dim": "w"}, ValueError, "another name, such as dim='sample'"),
        ({"n": 2}, ValueError, r"2 to 4 positions along 'time'.*blocks\(…, drop_short=True\)"),
    ],
)
def test_invalid_batches(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        blocks(sample(), {"time": 4}).batch(**arguments)
    assert len(blocks(sample(), {"time": 4})[:2].batch(2)) == 1


def test_invalid_flags() -> None:
    with pytest.raises(TypeError, match="drop_short must be True or False, got 'yes'"):
        blocks(sample(), {"time": 4}, drop_short="yes")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"overlap must be a mapping, such as {'time': 6}; got 3"):
        blocks(sample(), {"time": 4}, overlap=3)  # type: ignore[call-overload]


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
