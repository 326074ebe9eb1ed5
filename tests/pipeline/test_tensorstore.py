"""Reads by TensorStore: the values are those of reads without it, or it is not used."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
import zarr.codecs as zc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.engines import by_tensorstore
from aioxarray._zarr.stores.observing.observers import Observer, Origin, observed
from tests.oracle import assert_same
from tests.pipeline.arrays import KINDS, Recipe, recipes, using
from tests.runtime.helpers import run_script
from tests.without import raised_without

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
    pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec"),
]

ZARRS = "zarr.core.codec_pipeline.BatchedCodecPipeline"
VALUES = np.arange(60.0 * 40).reshape(60, 40)


class Runs(Observer):
    """The runs of chunks that TensorStore reads."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def read(self, origin: Origin, key: str, *details: Any) -> None:
        if key.endswith("by tensorstore"):
            self.keys.append(key)


def create(store: Any, zarr_format: Literal[2, 3] = 3, **options: Any) -> zarr.Array[Any]:
    """Return a new array "a", with names of its dimensions for xarray."""
    ndim = len(options["data"].shape if "data" in options else options["shape"])
    names = [f"d{axis}" for axis in range(ndim)]
    if zarr_format == 2:
        options["attributes"] = {"_ARRAY_DIMENSIONS": names}
    else:
        options["dimension_names"] = names
    return zarr.create_array(store, name="a", zarr_format=zarr_format, **options)


def variable(path: Path | str) -> xr.DataArray:
    """Return the array "a", lazy, with its stored values."""
    found: xr.DataArray = xr.open_zarr(path, chunks=None, consolidated=False, mask_and_scale=False)[
        "a"
    ]
    return found


def both(path: Path | str, selection: Mapping[str, Any]) -> tuple[xr.DataArray, xr.DataArray, int]:
    """Return a part of the array as loaded with and without TensorStore, and its runs."""
    with aioxarray.config.set(tensorstore=False):
        expected = aioxarray.load(variable(path).isel(selection))
    with aioxarray.config.set(tensorstore=True), observed(runs := Runs()):
        got = aioxarray.load(variable(path).isel(selection))
    return got, expected, len(runs.keys)


# --- the same values -------------------------------------------------------------------------


@st.composite
def selections(draw: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Blocks: of integers, and slices with and without a step."""
    found: dict[str, Any] = {}
    for axis, size in enumerate(shape):
        start, stop = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        each = [
            slice(None),
            slice(start, stop),
            slice(start, stop),
            slice(None, None, draw(st.integers(1, 3))),
            draw(st.integers(-size, size - 1)),
        ]
        found[f"d{axis}"] = draw(st.sampled_from(each))
    return found


@st.composite
def cases(draw: Any) -> tuple[Recipe, dict[str, Any], int]:
    recipe = draw(recipes().filter(lambda recipe: recipe.kind in KINDS))
    return recipe, draw(selections(recipe.shape)), draw(st.integers(0, 99))


@settings(
    max_examples=max(30, settings().max_examples),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases(), most=st.integers(1, 40))
def test_any_array_and_block(
    case: tuple[Recipe, dict[str, Any], int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, selection, seed = case
    monkeypatch.setattr(tuning, "ENGINE_RUN_CHUNKS", most)
    with tempfile.TemporaryDirectory() as folder:
        with using(ZARRS):
            options = dict(recipe.options)
            dtype = KINDS[recipe.kind].zarr_type
            array = create(LocalStore(folder), shape=recipe.shape, dtype=dtype, **options)
            # Some chunks are missing.
            part = tuple(slice(0, max(1, size // 2 + seed % 2)) for size in recipe.shape)
            array[part] = recipe.values(np.empty(recipe.shape)[part].shape, seed)
        try:
            expected = variable(folder).isel(selection).load()
        except (ValueError, TypeError, NotImplementedError):
            # Plain xarray cannot open or load it.
            return
        *both_ways, _ = both(folder, selection)
    for got in both_ways:
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        if got.dtype.hasobject or got.dtype.kind == "T":
            assert got.values.tolist() == expected.values.tolist()
        else:
            assert got.values.tobytes() == expected.values.tobytes()


COMPRESSORS: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "zstd": {},
    "zstd with a checksum": {"compressors": zc.ZstdCodec(checksum=True)},
    "blosc": {"compressors": zc.BloscCodec(cname="zstd", shuffle="bitshuffle")},
    "gzip": {"compressors": zc.GzipCodec(level=1)},
    "crc32c": {"compressors": [zc.ZstdCodec(), zc.Crc32cCodec()]},
    "transposed": {"filters": zc.TransposeCodec(order=(1, 0))},
    "big-endian": {"serializer": zc.BytesCodec(endian="big")},
    "keys of format 2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2 zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd()},
    "v2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc(shuffle=2)},
    "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2 Fortran": {"zarr_format": 2, "order": "F"},
    "v2 nested": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 no fill value": {"zarr_format": 2, "fill_value": None},
}


@pytest.mark.parametrize("options", COMPRESSORS.values(), ids=COMPRESSORS)
def test_it_reads_common_arrays(options: dict[str, Any], tmp_path: Path) -> None:
    create(tmp_path, data=VALUES, chunks=(7, 9), **options)
    # A missing chunk.
    chunk = next(each for each in sorted(tmp_path.rglob("*")) if each.name in ("2", "2.2", "c.2.2"))
    chunk.unlink() if chunk.is_file() else next(chunk.iterdir()).unlink()
    for selection in ({}, {"d0": slice(3, 50), "d1": slice(8, 39)}, {"d0": -1, "d1": slice(0, 11)}):
        got, expected, runs = both(tmp_path, selection)
        assert_same(got, expected)
        assert runs == 1


TYPES = ["bool", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_it_reads_numbers(dtype: str, zarr_format: int, tmp_path: Path) -> None:
    fill = 1 if dtype == "bool" else 5
    options: Any = {"chunks": (7, 9), "fill_value": fill, "zarr_format": zarr_format}
    array = create(tmp_path, shape=VALUES.shape, dtype=dtype, **options)
    array[:20] = VALUES[:20].astype(dtype)
    got, expected, runs = both(tmp_path, {})
    assert_same(got, expected)
    assert runs == 1


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, -0.0])
def test_special_fill_values(fill: float, tmp_path: Path) -> None:
    create(tmp_path, shape=(8, 8), dtype="f4", chunks=(2, 2), fill_value=fill)
    got, expected, runs = both(tmp_path, {})
    assert got.values.tobytes() == expected.values.tobytes()
    assert runs == 1


LEFT: dict[str, dict[str, Any]] = {
    "times": {"data": VALUES.astype("M8[s]"), "zarr_format": 2},
    "text": {"data": VALUES.astype("U5"), "zarr_format": 2},
    "another byte order": {"data": VALUES.astype(">f8"), "zarr_format": 2},
    "a filter": {"data": VALUES, "zarr_format": 2, "filters": [numcodecs.Delta("f8")]},
    "lz4": {"data": VALUES, "zarr_format": 2, "compressors": numcodecs.LZ4()},
    "shards": {"data": VALUES, "shards": (14, 18)},
}


@pytest.mark.parametrize("options", LEFT.values(), ids=LEFT)
def test_the_rest_is_read_without_it(options: dict[str, Any], tmp_path: Path) -> None:
    create(tmp_path, chunks=(7, 9), **options)
    got, expected, runs = both(tmp_path, {})
    assert_same(got, expected)
    assert runs == 0


def test_steps_and_memory_are_read_without_it(tmp_path: Path) -> None:
    create(tmp_path, data=VALUES, chunks=(7, 9))
    got, expected, runs = both(tmp_path, {"d0": slice(None, None, 2)})
    assert_same(got, expected)
    assert runs == 0
    create(store := MemoryStore(), data=VALUES, chunks=(7, 9))
    with aioxarray.config.set(tensorstore=True), observed(found := Runs()):
        ds = xr.open_zarr(store, chunks=None, consolidated=False)
        np.testing.assert_array_equal(aioxarray.load(ds)["a"], VALUES)
    assert not found.keys


def test_xarray_decodes_what_it_reads(tmp_path: Path) -> None:
    values = np.where(VALUES % 7 == 0, np.nan, VALUES)
    packing = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 3.0, "_FillValue": -1}
    times = xr.date_range("2020-01-01", periods=60, freq="6h")
    ds = xr.Dataset({"a": (("t", "x"), values)}, {"t": times})
    ds.to_zarr(tmp_path, encoding={"a": {**packing, "chunks": (7, 9)}, "t": {"chunks": (7,)}})
    expected = xr.open_zarr(tmp_path, chunks=None).load()
    with aioxarray.config.set(tensorstore=True), observed(runs := Runs()):
        xr.testing.assert_identical(aioxarray.load(xr.open_zarr(tmp_path, chunks=None)), expected)
    assert len(runs.keys) == 1


# --- failures --------------------------------------------------------------------------------


def test_errors_are_those_of_a_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "ENGINE_RUN_CHUNKS", 4)
    create(tmp_path, data=VALUES, chunks=(7, 9))
    (tmp_path / "a/c/4/1").write_bytes(b"no zstd")
    raised: dict[bool, pytest.ExceptionInfo[Exception]] = {}
    for way in (False, True):
        with aioxarray.config.set(tensorstore=way), observed(runs := Runs()):
            with pytest.raises(RuntimeError) as raised[way]:
                aioxarray.load(variable(tmp_path))
    ours, other = raised[False].value, raised[True].value
    assert (str(other), other.__notes__) == (str(ours), ours.__notes__)
    # Those of the four rows before it, of three and two chunks.
    assert len(runs.keys) == 8


def test_what_it_fails_at_is_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "ENGINE_RUN_CHUNKS", 4)
    create(tmp_path, data=VALUES, chunks=(7, 9))
    # A folder is a missing chunk for this package, and an error for TensorStore.
    (tmp_path / "a/c/4/1").unlink()
    (tmp_path / "a/c/4/1").mkdir()
    reports: list[tuple[int, int]] = []
    with aioxarray.config.set(tensorstore=False):
        expected = aioxarray.load(variable(tmp_path))
    with aioxarray.config.set(tensorstore=True):
        got = aioxarray.load(variable(tmp_path), progress=lambda *report: reports.append(report))
    assert_same(got, expected)
    done = [each for each, _ in reports]
    assert done == sorted(done)
    assert reports[-1] == (VALUES.nbytes, VALUES.nbytes)


def test_cancelling_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "ENGINE_RUN_CHUNKS", 1)
    create(tmp_path, data=VALUES, chunks=(7, 9))

    class Cancelling(Runs):
        """Cancels the load at its first run, which goes on when the load is cancelled."""

        task: asyncio.Task[Any]
        loop: asyncio.AbstractEventLoop
        stopped: threading.Event

        def read(self, origin: Origin, key: str, *details: Any) -> None:
            super().read(origin, key, *details)
            if len(self.keys) == 1:
                asyncio.run_coroutine_threadsafe(self.cancel(), self.loop).result()

        async def cancel(self) -> None:
            self.task.cancel()
            # The cancellation reaches the thread through loops.
            await asyncio.to_thread(self.stopped.wait)

    async def main(runs: Cancelling) -> None:
        runs.loop = asyncio.get_running_loop()
        runs.task = asyncio.create_task(aioxarray.load_async(variable(tmp_path)))
        with pytest.raises(asyncio.CancelledError):
            await runs.task

    with aioxarray.config.set(tensorstore=True), observed(runs := Cancelling()):

        def event() -> threading.Event:
            runs.stopped = threading.Event()
            return runs.stopped

        monkeypatch.setattr(by_tensorstore, "threading", SimpleNamespace(Event=event))
        asyncio.run(main(runs))
    assert len(runs.keys) == 1


FORKING = """
import os, sys, warnings
import numpy as np, xarray as xr
import aioxarray
from tests.concurrency.forks import in_fork
from tests.pipeline.test_tensorstore import Runs, variable
from aioxarray._zarr.stores.observing.observers import observed

def runs():
    with observed(runs := Runs()):
        assert aioxarray.load(variable({path!r})).values.sum() == {total!r}
    return len(runs.keys)

def child():
    assert runs() == 0

if __name__ == "__main__":
    aioxarray.config.set(tensorstore=True)
    assert runs() == 1
    in_fork(child)
    assert runs() == 1
    print("fine")
"""


def test_a_forked_process_reads_without_it(tmp_path: Path) -> None:
    create(tmp_path, data=VALUES, chunks=(7, 9))
    script = FORKING.format(path=str(tmp_path), total=float(VALUES.sum()))
    assert run_script(script).splitlines()[-1] == "fine"


# --- the choice, and who is told -------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "threads", "chunks", "used"),
    [
        ("auto", 4, 45, True),
        ("auto", 3, 45, False),
        ("auto", 4, 46, False),
        (False, 4, 45, False),
        (True, 1, 1000, True),
    ],
)
def test_the_choice(
    setting: Any,
    threads: int,
    chunks: int,
    used: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "ENGINE_CHUNKS", chunks)
    create(tmp_path, data=VALUES, chunks=(7, 9))
    with aioxarray.config.set(tensorstore=setting, threads=threads):
        (plan,) = aioxarray.explain(variable(tmp_path)).variables
        with aioxarray.trace() as trace:
            aioxarray.load(variable(tmp_path))
    assert plan.way == ("tensorstore" if used else "threads")
    assert plan.requests == 45
    keys = list(trace.requests["key"])
    assert (keys == ["a: chunks 0 to 44, by tensorstore"]) is used
    assert set(trace.requests["variable"]) == {"a"}


def test_large_chunks_are_left_to_the_way_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "ENGINE_CHUNKS", 1)
    monkeypatch.setattr(tuning, "ENGINE_CHUNK_BYTES", 7 * 9 * 8 - 1)
    create(tmp_path, data=VALUES, chunks=(7, 9))
    with aioxarray.config.set(threads=4):
        (plan,) = aioxarray.explain(variable(tmp_path)).variables
    assert plan.way == "threads"


def test_runs_fit_into_memory(tmp_path: Path) -> None:
    create(tmp_path, data=VALUES, chunks=(7, 9))
    size = 7 * 9 * 8
    with aioxarray.config.set(tensorstore=True, memory=20 * size), observed(runs := Runs()):
        plan = aioxarray.explain(variable(tmp_path))
        np.testing.assert_array_equal(aioxarray.load(variable(tmp_path)), VALUES)
    assert plan.memory == 20 * size
    # Whole rows of 5 chunks.
    assert len(runs.keys) == 5


def test_it_gets_as_many_threads_as_the_setting_says() -> None:
    limits = []
    for threads in (1, 2, 5, 16):
        spec = by_tensorstore._context(threads).spec.to_json()
        limits.append([spec[name]["limit"] for name in sorted(spec)])
    assert limits == [[1, 1], [1, 1], [3, 2], [8, 8]]


def test_an_array_of_the_caller_is_read_without_it(tmp_path: Path) -> None:
    create(tmp_path, data=VALUES, chunks=(7, 9))
    ds = xr.open_zarr(tmp_path, chunks=None, consolidated=False)
    out = {"a": np.empty(VALUES.shape)}
    with aioxarray.config.set(tensorstore=True), observed(runs := Runs()):
        aioxarray.load(ds, out=out)
    np.testing.assert_array_equal(out["a"], VALUES)
    assert not runs.keys


def test_without_tensorstore_the_setting_is_refused(tmp_path: Path) -> None:
    calls = {
        "set": "aioxarray.config.set(tensorstore=True)",
        "bad": "aioxarray.config.set(tensorstore='on')",
    }
    raised = raised_without(["tensorstore"], calls, tmp_path)
    assert raised["set"].kinds[0] == "ImportError"
    assert "pip install 'aioxarray[tensorstore]'" in raised["set"].text
    assert raised["bad"].kinds[0] == "TypeError"
