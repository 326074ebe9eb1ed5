"""Chunks become the bytes that zarr's own pipeline makes of them, in memory and in local files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

from aioxarray._xarray.dask.targets import Target
from tests.pipeline.arrays import ZARRS, Recipe, in_one_second, recipes, using
from tests.samples import contents

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
    pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec"),
]

Region = tuple[slice, ...]


@st.composite
def written(draw: Any) -> tuple[Recipe, list[tuple[Region, int]]]:
    """A recipe, and the regions that are written one after the other, the first as a whole."""
    recipe = draw(recipes())
    regions = [tuple(slice(0, size) for size in recipe.shape)]
    for _ in range(draw(st.integers(0, 2))):
        ends = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in recipe.shape]
        regions.append(tuple(slice(start, stop) for start, stop in ends))
    return recipe, [(region, draw(st.integers(0, 99))) for region in regions]


def fresh_target(array: Any) -> Target:
    return Target(array, fresh=True)


def files(folder: Path) -> dict[str, bytes]:
    found = (each for each in folder.rglob("*") if each.is_file())
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in found}


@settings(
    max_examples=max(30, settings().max_examples // 2),
    suppress_health_check=[HealthCheck.too_slow],
    deadline=None,
)
@given(written())
def test_the_bytes_are_zarrs(case: tuple[Recipe, list[tuple[Region, int]]]) -> None:
    recipe, writes = case

    def stored() -> list[dict[str, bytes]]:
        theirs, ours = MemoryStore(), MemoryStore()
        with tempfile.TemporaryDirectory() as folder:
            local = LocalStore(folder)
            expected, *arrays = [recipe.create(store) for store in (theirs, ours, local)]
            for number, (region, seed) in enumerate(writes):
                values = recipe.values(tuple(part.stop - part.start for part in region), seed)
                expected[region] = values
                for array in arrays:
                    Target(array, fresh=number == 0)[region] = values
            return [contents(theirs), contents(ours), files(Path(folder))]

    with using(ZARRS):
        theirs, ours, local = in_one_second(stored)
    assert ours == theirs
    assert local == theirs


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("fill", [0.0, -0.0, np.nan, 7.0])
def test_empty_chunks_are_those_of_zarr(fill: float, zarr_format: Any) -> None:
    values = np.array([[0.0, 0.0], [-0.0, -0.0], [np.nan, np.nan], [7.0, 7.0], [fill, 1.0]])
    for empty in (False, True):
        theirs, ours = MemoryStore(), MemoryStore()
        for store, written_by in ((theirs, lambda array: array), (ours, fresh_target)):
            array = zarr.create_array(
                store,
                shape=values.shape,
                chunks=(1, 2),
                dtype="f8",
                fill_value=fill,
                zarr_format=zarr_format,
                config={"write_empty_chunks": empty},
            )
            written_by(array)[slice(0, 5), slice(0, 2)] = values
        assert contents(ours) == contents(theirs)


def test_a_file_that_cannot_be_written_is_named_and_nothing_left(tmp_path: Path) -> None:
    array = zarr.create_array(LocalStore(tmp_path), name="a", shape=8, chunks=(2,), dtype="i8")
    in_the_way = tmp_path / "a" / "c" / "1" / "file"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    with pytest.raises(OSError, match="irectory") as caught:
        fresh_target(array)[(slice(0, 8),)] = np.arange(1, 9)
    assert any("a/c/1" in note for note in caught.value.__notes__)
    assert not list(tmp_path.rglob("*.partial"))
