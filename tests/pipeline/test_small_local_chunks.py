"""Small chunks of local files, decoded and placed many at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioxarray
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Result
from aioxarray._zarr.stores.sources import FileSource

pytest.importorskip("zstandard")


def stored(path: Path | str, values: Any, chunks: tuple[int, ...]) -> xr.DataArray:
    """Store an array in small chunks, and return it, lazy."""
    names = [f"d{axis}" for axis in range(values.ndim)]
    zarr.create_array(path, name="a", data=values, chunks=chunks, dimension_names=names)
    found: xr.DataArray = xr.open_zarr(path, chunks=None, consolidated=False)["a"]
    return found


@st.composite
def cases(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], list[Any], int]:
    """Return the shapes of an array and its chunks, a selection, and the chunks of a run."""
    chunks = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    grid = [draw(st.integers(1, 5)) for _ in chunks]
    rest = [draw(st.integers(0, length - 1)) for length in chunks]
    shape = tuple(n * c - r for n, c, r in zip(grid, chunks, rest, strict=True))
    selection = []
    for size in shape:
        start, stop = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        each = [
            slice(None),
            slice(start, stop),
            slice(None, None, 2),
            draw(st.integers(0, size - 1)),
        ]
        selection.append(draw(st.sampled_from(each)))
    return shape, chunks, selection, draw(st.integers(1, 20))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(case=cases(), missing=st.booleans())
def test_any_block(case: Any, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, chunks, selection, most = case
    values = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    with tempfile.TemporaryDirectory() as folder, aioxarray.config.set(tensorstore=False):
        array = stored(folder, values, chunks)
        if missing:
            first = next(path for path in Path(folder, "a", "c").rglob("*") if path.is_file())
            first.unlink()
        expected = zarr.open_array(folder, path="a")[tuple(selection)]
        monkeypatch.setattr(tuning, "TOGETHER_BYTES", most * 8 * int(np.prod(chunks)))
        names = [f"d{axis}" for axis in range(len(shape))]
        got = aioxarray.load(array.isel(dict(zip(names, selection, strict=True))))
    np.testing.assert_array_equal(got.values, expected)


def test_neighbours_are_placed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[int] = []
    put_together = Result.put_together

    def counted(self: Result, decoded: Any, decoder: Any, chunks: Any) -> bool:
        done = put_together(self, decoded, decoder, chunks)
        placed.append(len(chunks) if done else 0)
        return done

    monkeypatch.setattr(Result, "put_together", counted)
    # Five rows of chunks, and then the other three.
    monkeypatch.setattr(tuning, "TOGETHER_BYTES", 50 * 2 * 3 * 8)
    values = np.arange(16.0 * 30).reshape(16, 30)
    with aioxarray.config.set(tensorstore=False, threads=1):
        got = aioxarray.load(stored(tmp_path, values, (2, 3)))
    np.testing.assert_array_equal(got.values, values)
    assert placed == [50, 30]


def test_a_read_that_is_cut_short_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_reads = FileSource.small_reads
    cut: list[str] = []

    @contextmanager
    def cutting(self: FileSource, most: int) -> Iterator[Callable[[str], Any]]:
        with small_reads(self, most) as read:

            def short(key: str) -> Any:
                data = read(key)
                if data is not None and key.endswith("3/3"):
                    cut.append(key)
                    return data[: len(data) // 2]
                return data

            yield short

    monkeypatch.setattr(FileSource, "small_reads", cutting)
    values = np.arange(16.0 * 30).reshape(16, 30)
    with aioxarray.config.set(tensorstore=False):
        got = aioxarray.load(stored(tmp_path, values, (2, 3)))
    np.testing.assert_array_equal(got.values, values)
    assert cut == ["a/c/3/3"]
