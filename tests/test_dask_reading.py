"""Dask arrays that only read Zarr: loaded without dask, with the values that dask gives."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.base
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._runtime.threads.lent import Lent
from aioxarray._xarray.dask.reading import without_dask
from aioxarray._xarray.lazy.slabs import load_in_slabs, slabs_of
from aioxarray._xarray.lazy.variables import Lazy
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Destination
from aioxarray._zarr.stores.grants import open_grants
from aioxarray.testing import RecordingStore
from tests.samples import stored

Make = Callable[[xr.DataArray], xr.DataArray]


def values() -> xr.Dataset:
    rng = np.random.default_rng(3)
    numbers = rng.integers(0, 99, (5, 6, 8)) / 2
    numbers[1, 2, 3] = np.nan
    return xr.Dataset(
        {"v": (("t", "y", "x"), numbers), "w": (("t", "y"), rng.normal(size=(5, 6)))},
        {"x": np.arange(8), "t": np.arange("2001-01-01", "2001-01-06", dtype="M8[D]")},
    )


def store() -> MemoryStore:
    packed = {"chunks": (2, 3, 4), "scale_factor": 0.5, "dtype": "i4", "_FillValue": -99}
    return stored(values(), encoding={"v": packed, "w": {"chunks": (2, 2)}})


@pytest.fixture(scope="module")
def recorded() -> RecordingStore:
    return RecordingStore(store())


OPENERS: dict[str, Callable[..., xr.Dataset]] = {
    "plain": lambda source, **options: xr.open_dataset(
        source, engine="zarr", chunks={}, consolidated=False, **options
    ),
    "ours": lambda source, **options: aioxarray.open_dataset(
        source, engine="aio", chunks={}, consolidated=False, **options
    ),
}


READ: dict[str, Make] = {
    "all": lambda v: v,
    "slices": lambda v: v[1:4, ::2, 3:],
    "slices of slices": lambda v: v[1:][:, 1:5][1:3, ::3],
    "one position": lambda v: v[:, 2],
    "a single value": lambda v: v[1, 2, 4],
    "backwards": lambda v: v[:, 4:0:-2, ::-1],
    "transposed": lambda v: v.transpose("x", "t", "y")[1:3, :, 2:5],
    "a new dimension": lambda v: v.expand_dims("z", axis=2)[1:, ::2],
    "a new dimension, transposed": lambda v: v.expand_dims("z").transpose("x", "z", "y", "t"),
    "positions": lambda v: v.isel(x=[0, 3, 5]),
    "positions in any order": lambda v: v.isel(x=[0, 5, 1, 5, 5], y=[3, 1]),
    "twice": lambda v: xr.concat([v, v], "t"),
    "two parts that meet": lambda v: xr.concat([v[:, :, :3], v[:, :, 3:]], "x"),
    "other blocks": lambda v: v.chunk(x=3, t=5),
    "other blocks of a part": lambda v: v.chunk(x=3, t=5)[::2].chunk(y=1),
    "rolled": lambda v: v.roll(x=3),
    "optimized": lambda v: v.copy(data=dask.base.optimize(v[:, ::-1].transpose().data)[0].T),
}

COMPUTED: dict[str, Make] = {
    "sum": lambda v: v + 1,
    "mean": lambda v: v.mean(),
    "another dtype": lambda v: v.astype("f4"),
    "filled": lambda v: v.fillna(0),
    "reshaped": lambda v: v.drop_vars("t").stack(p=("t", "y"), create_index=False),
    "points": lambda v: v.isel(t=("p", [0, 1]), x=("p", [2, 3])),
    "padded": lambda v: v.pad(y=1),
    "joined with a computation": lambda v: xr.concat([v, v + 1], "t"),
    "joined with data in memory": lambda v: xr.concat([v, v.compute()], "t"),
    "in memory": lambda v: v.persist(),
    "two parts of the same chunks": lambda v: xr.concat([v[:, :, :3], v[:, ::-1, 3:]], "x"),
}


def is_read_without_dask(obj: Any) -> bool:
    return all(each.way != "dask" for each in aioxarray.explain(obj).variables)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("kind", READ)
def test_what_only_reads(kind: str, opener: str, inline: bool, recorded: RecordingStore) -> None:
    array = READ[kind](OPENERS[opener](recorded, inline_array=inline).v)
    expected = array.compute()
    assert is_read_without_dask(array)
    plan = aioxarray.explain(array)
    recorded.log.clear()
    got = aioxarray.compute(array)
    assert len(recorded.log.requests) == plan.requests
    assert "without dask" in next(each.reason for each in plan.variables if each.name == "v")
    xr.testing.assert_identical(got, expected)
    assert got.dtype == expected.dtype
    assert got.values.flags.writeable
    aioxarray.load(array)
    xr.testing.assert_identical(array, expected)


@pytest.mark.parametrize("kind", COMPUTED)
def test_what_dask_computes(kind: str, recorded: RecordingStore) -> None:
    array = COMPUTED[kind](OPENERS["plain"](recorded).v)
    assert not is_read_without_dask(array)
    xr.testing.assert_identical(aioxarray.compute(array), array.compute())


def test_the_setting_that_leaves_it_to_dask(recorded: RecordingStore) -> None:
    ds = OPENERS["ours"](recorded)
    with aioxarray.config.set(bypass_dask=False):
        assert not is_read_without_dask(ds)
        ran = tasks_of(lambda: aioxarray.compute(ds))
    assert ran > 0
    assert tasks_of(lambda: aioxarray.compute(ds)) == 0


def tasks_of(call: Callable[[], Any]) -> int:
    """Return how many tasks dask runs during a call."""
    keys: list[Any] = []
    with dask.callbacks.Callback(pretask=lambda key, *_: keys.append(key)):
        call()
    return len(keys)


def test_options_for_dask_leave_it_to_dask(recorded: RecordingStore) -> None:
    ds = OPENERS["plain"](recorded)
    with aioxarray.install():
        assert tasks_of(lambda: ds.compute(scheduler="threads")) > 0
        assert tasks_of(ds.compute) == 0


def test_annotated_graphs_are_left_to_dask(recorded: RecordingStore) -> None:
    with dask.annotate(retries=3):  # type: ignore[attr-defined]
        v = OPENERS["plain"](recorded).v[1:]
    assert not is_read_without_dask(v)


def test_what_dask_reads_anyway_is_read_once(recorded: RecordingStore) -> None:
    ds = OPENERS["plain"](recorded)
    both = xr.Dataset({"v": ds.v, "double": ds.v * 2, "w": ds.w})
    ways = {each.name: each.way for each in aioxarray.explain(both).variables}
    assert (ways["v"], ways["double"]) == ("dask", "dask")
    assert ways["w"] != "dask"
    expected = both.compute()
    recorded.log.clear()
    xr.testing.assert_identical(aioxarray.compute(both), expected)
    chunks = [each.key for each in recorded.log.requests]
    assert len(chunks) == len(set(chunks))


def test_chunks_that_several_arrays_need_are_read_once(recorded: RecordingStore) -> None:
    v = OPENERS["plain"](recorded).v
    apart, beside, overlapping = v[:2], v[2:4], v[3:5]
    assert is_read_without_dask([apart, beside])
    ways = [each.way for each in aioxarray.explain([apart, beside, overlapping]).variables]
    assert ways.count("dask") == 2
    recorded.log.clear()
    aioxarray.compute([apart, beside, overlapping])
    chunks = [each.key for each in recorded.log.requests]
    assert len(chunks) == len(set(chunks))


def test_rows_of_arrays(tmp_path: Path) -> None:
    chunks = {"v": {"chunks": (2, 3, 4)}}
    arrays = []
    for at in range(4):
        # xarray names arrays after the path, and may give those of stores in memory one name.
        (values()[["v"]] + at).to_zarr(tmp_path / f"{at}.zarr", encoding=chunks, consolidated=False)
        arrays.append(OPENERS["plain"](tmp_path / f"{at}.zarr").v.data)
    parts: Any = [
        da.concatenate([arrays[0][:2, :, :3], arrays[1][:2, :, 4:5]], axis=2),
        da.concatenate([arrays[2][3:, :, 1:4], arrays[3][3:, ::-1, 6:7]], axis=2),
    ]
    lazily = xr.DataArray(da.concatenate(parts, axis=0).transpose(1, 0, 2), dims=("y", "t", "x"))
    assert is_read_without_dask(lazily)
    xr.testing.assert_identical(aioxarray.compute(lazily), lazily.compute())


def test_other_backends_are_left_to_dask(tmp_path: Path) -> None:
    values().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf", chunks={}) as ds:
        assert not is_read_without_dask(ds.v)
        xr.testing.assert_identical(aioxarray.compute(ds), ds.compute())


def test_several_stores_in_one_plan() -> None:
    sources = [RecordingStore(store()) for _ in range(3)]
    opened = [OPENERS["plain"](each) for each in sources]
    joined = xr.concat(opened, "t", data_vars="all")
    expected = joined.compute()
    plan = aioxarray.explain(joined)
    for each in sources:
        each.log.clear()
    out = np.full(joined.v.shape, -1.0)
    got = joined.copy()
    aioxarray.load(got, out={"v": out})
    xr.testing.assert_identical(got, expected)
    assert got.v.variable._data is out
    assert sum(len(each.log.requests) for each in sources) == plan.requests


def test_streams_and_progress(recorded: RecordingStore) -> None:
    ds = OPENERS["plain"](recorded)
    pieces = [ds.isel(t=slice(at, at + 1)) for at in range(5)]

    def stream() -> None:
        with aioxarray.stream(pieces) as loaded:
            for at, piece in enumerate(loaded):
                xr.testing.assert_identical(piece, values().isel(t=slice(at, at + 1)))

    assert tasks_of(stream) == 0
    seen: list[tuple[int, int]] = []
    aioxarray.compute(ds, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (ds.v.nbytes + ds.w.nbytes,) * 2


Index = int | slice | list[int]


@st.composite
def indexers(draw: st.DrawFn, length: int) -> Index:
    positions = st.integers(-length, length - 1)
    bounds = st.none() | st.integers(-length - 1, length + 1)
    steps = st.sampled_from([None, 1, 2, 3, -1, -2])
    kinds: list[st.SearchStrategy[Index]] = [
        positions,
        st.builds(slice, bounds, bounds, steps),
        st.lists(positions, min_size=1, max_size=length),
    ]
    return draw(st.one_of(kinds))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_selections(data: st.DataObject) -> None:
    array = OPENERS["plain"](_RECORDED).v
    has_joined = False
    for _ in range(data.draw(st.integers(1, 3))):
        match data.draw(st.sampled_from(["select", "transpose", "rechunk", "join"])):
            case "select" if array.ndim:
                dim = data.draw(st.sampled_from(array.dims))
                length = array.sizes[dim]
                if length:
                    array = array.isel({dim: data.draw(indexers(length))})
            case "transpose":
                array = array.transpose(*data.draw(st.permutations(array.dims)))
            case "rechunk" if array.size:
                array = array.chunk({dim: data.draw(st.integers(1, 4)) for dim in array.dims})
            case "join" if array.ndim:
                dim = data.draw(st.sampled_from(array.dims))
                parts = [array, OPENERS["plain"](_OTHER).v]
                if array.sizes == parts[1].sizes:
                    plain = [each.drop_vars(list(each.coords)) for each in parts]
                    array = xr.concat(plain, dim)
                    has_joined = True
    expected = array.compute()
    # Blocks that consist of parts of two arrays are left to dask.
    assert is_read_without_dask(array) or array.size == 0 or has_joined
    xr.testing.assert_identical(aioxarray.compute(array), expected)


_RECORDED, _OTHER = RecordingStore(store()), RecordingStore(store())


def test_expressions_of_dask(tmp_path: Path) -> None:
    """dask's setting for arrays that are expressions only counts before its import."""
    code = """
        import sys
        import dask
        dask.config.set({"array.query-planning": True})
        import xarray as xr
        import aioxarray
        import dask.array
        assert dask.array.array_expr_enabled()
        ds = xr.open_zarr(sys.argv[1], chunks={}, consolidated=False)
        read = [ds.v, ds.v[1:, ::2, 3], ds.v.transpose()[::-1]]
        for array in read:
            assert "dask" not in {each.way for each in aioxarray.explain(array).variables}, array
            xr.testing.assert_identical(aioxarray.compute(array), array.compute())
        for array in (ds.v + 1, ds.v.chunk(x=3)):
            assert "dask" in {each.way for each in aioxarray.explain(array).variables}, array
            xr.testing.assert_identical(aioxarray.compute(array), array.compute())
        both = xr.Dataset({"v": ds.v, "double": ds.v * 2})
        assert {each.way for each in aioxarray.explain(both).variables} >= {"dask"}
        xr.testing.assert_identical(aioxarray.compute(both), both.compute())
    """
    values().to_zarr(tmp_path / "a.zarr", consolidated=False)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.zarr")], check=True
    )


def test_slabs_of_large_encoded_arrays(tmp_path: Path) -> None:
    """Their encoded values are never held as a whole; each slab consists of whole chunks."""
    root = zarr.open_group(tmp_path, mode="w")
    root.create_array(
        "v",
        shape=(1000, 1 << 20),
        chunks=(7, 1 << 18),
        dtype="i2",
        dimension_names=("t", "x"),
        attributes={"scale_factor": 0.5, "_FillValue": -1},
    )
    v = OPENERS["plain"](tmp_path).v
    for part, start in ((v, 0), (v[10:], 10), (v[10:, ::2], 10)):
        (lazy,) = lazies_of(part)
        slabs = slabs_of(lazy)
        assert [each.start for each in slabs[1:]] == [each.stop for each in slabs[:-1]]
        assert slabs[-1].stop == part.shape[0]
        assert all((each.start + start) % 7 == 0 for each in slabs[1:])
        sizes = [(each.stop - each.start) * part.nbytes / part.shape[0] for each in slabs]
        assert min(sizes[:-1]) >= tuning.SLAB_BYTES
    for part in (v[:50], v[::2], v[:, 0], v[[5, 0] * 500]):
        (lazy,) = lazies_of(part)
        assert slabs_of(lazy) == []


def lazies_of(array: xr.DataArray) -> list[Lazy]:
    (data,) = without_dask([array.data])
    assert data is not None
    return [Lazy(data, "v", array.nbytes)]


@pytest.mark.parametrize("with_out", [False, True])
def test_loading_in_slabs(with_out: bool, recorded: RecordingStore) -> None:
    v = OPENERS["plain"](recorded).v[1:]
    (lazy,) = lazies_of(v)
    out = np.empty(v.shape)
    if with_out:
        lazy = lazy._replace(into=(Destination(out, Lent()),))
    done: list[tuple[int, int]] = []
    recorded.log.clear()

    async def load() -> Any:
        with open_grants() as grants:
            slabs = [slice(0, 1), slice(1, 3), slice(3, 4)]
            return await load_in_slabs(lazy, slabs, grants, lambda *at: done.append(at))

    got = run_blocking(load)
    np.testing.assert_array_equal(got, v.compute())
    assert (got is out) == with_out
    assert done == [(1, 3), (2, 3), (3, 3)]
