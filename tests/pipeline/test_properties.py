"""The codec pipeline beside zarr's own: the same values, the same keys and bytes in the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import RecordingStore
from tests.pipeline.arrays import (
    OURS,
    ZARRS,
    Access,
    Recipe,
    accesses,
    get,
    in_one_second,
    put,
    recipes,
    using,
)
from tests.samples import contents

# zarr warns of what is in no specification yet or is slow; here it is the values that count.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
    pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec"),
]

# Each example makes arrays, writes and reads them: enough of them take their time.
few_examples = settings(
    max_examples=max(15, settings().max_examples // 4),
    suppress_health_check=[HealthCheck.too_slow],
)

Writes = list[tuple[Access, int]]


@st.composite
def histories(draw: Any) -> tuple[Recipe, Writes, list[Access]]:
    """A recipe, what is written to its array, and what is read of it then."""
    recipe = draw(recipes())
    access = accesses(recipe)
    writes = draw(st.lists(st.tuples(access, st.integers(0, 99)), max_size=3))
    return recipe, writes, draw(st.lists(access, min_size=1, max_size=3))


def written(store: Any, recipe: Recipe, writes: Writes, pipeline: str) -> None:
    """Make the array of ``recipe`` in ``store`` and write to it through ``pipeline``."""
    with using(pipeline):
        array = recipe.create(store)
        for access, seed in writes:
            # What zarr selects says which shape the values must have.
            shape = np.shape(get(np_like(recipe), access))
            # zarr itself fails to write a single value of these.
            if shape != () or recipe.kind != "any bytes":
                write(array, access, recipe.values(shape, seed), pipeline)


def write(array: zarr.Array[Any], access: Access, values: Any, pipeline: str) -> None:
    """Write, or pass over the example if zarr's own pipeline fails to."""
    try:
        put(array, access, values)
    except (ValueError, IndexError):
        # zarr 3.1: orthogonal writes of a single element of an axis into shards, some of them.
        if pipeline == ZARRS:
            reject()
        raise


def np_like(recipe: Recipe) -> zarr.Array[Any]:
    """Return an empty array with the same chunks, for shapes of selections."""
    chunks = recipe.options["chunks"]
    shards = (recipe.options.get("shards") or {}).get("shape", chunks)
    with using(ZARRS):
        return zarr.create_array(MemoryStore(), shape=recipe.shape, chunks=shards, dtype="i1")


def copied(store: MemoryStore, kind: str, folder: Path) -> Any:
    """Return a store of another kind with the same content."""
    objects = contents(store)
    if kind == "memory":
        return store
    if kind == "wrapped":
        return RecordingStore(store)
    if kind == "obstore":
        return obstore_of(objects)
    for key, data in objects.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return LocalStore(folder)


def obstore_of(objects: dict[str, bytes]) -> Any:
    import obstore
    from zarr.storage import ObjectStore

    inner = obstore.store.MemoryStore()
    for key, data in objects.items():
        inner.put(key, data)
    return ObjectStore(inner)


def assert_same(got: Any, expected: Any) -> None:
    """Assert that both are the same, type for type and bit for bit."""
    assert type(got) is type(expected)
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if got.dtype.hasobject or got.dtype.kind == "T":
        assert got.tolist() == expected.tolist()
    else:
        assert got.tobytes() == expected.tobytes()


@few_examples
@given(history=histories())
def test_stored_keys_and_bytes(history: tuple[Recipe, Writes, list[Access]]) -> None:
    recipe, writes, reads = history

    def both() -> tuple[MemoryStore, MemoryStore]:
        ours, zarrs = MemoryStore(), MemoryStore()
        written(zarrs, recipe, writes, ZARRS)
        written(ours, recipe, writes, OURS)
        return ours, zarrs

    ours, zarrs = in_one_second(both)
    assert contents(ours) == contents(zarrs)
    for access in reads:
        with using(ZARRS):
            assert_same(
                get(zarr.open_array(ours, path="a"), access),
                get(zarr.open_array(zarrs, path="a"), access),
            )


@pytest.mark.parametrize("kind", ["memory", "local", "wrapped", "obstore"])
@few_examples
@given(history=histories())
def test_values(kind: str, history: tuple[Recipe, Writes, list[Access]]) -> None:
    recipe, writes, reads = history
    store = MemoryStore()
    written(store, recipe, writes, ZARRS)
    with tempfile.TemporaryDirectory() as folder:
        with using(ZARRS):
            zarrs = zarr.open_array(store, path="a")
        with using(OURS):
            ours = zarr.open_array(copied(store, kind, Path(folder)), path="a", mode="r")
        for access in reads:
            assert_same(get(ours, access), get(zarrs, access))


@pytest.mark.parametrize("kind", ["memory", "wrapped"])
@few_examples
@given(history=histories(), room=st.sampled_from(["600", "2kB", "1MB"]))
def test_values_with_a_cache(
    kind: str, history: tuple[Recipe, Writes, list[Access]], room: str
) -> None:
    recipe, writes, reads = history
    store, zarrs_store = MemoryStore(), MemoryStore()
    with using(ZARRS):
        recipe.create(store)
        recipe.create(zarrs_store)
        zarrs = zarr.open_array(zarrs_store, path="a")
    with using(OURS):
        written_to = zarr.open_array(store, path="a", mode="r+")
        ours = zarr.open_array(copied(store, kind, Path()), path="a", mode="r")
    with aioxarray.config.set(cache=room):
        for change in [None, *writes]:
            if change is not None:
                access, seed = change
                shape = np.shape(get(np_like(recipe), access))
                if shape != () or recipe.kind != "any bytes":
                    values = recipe.values(shape, seed)
                    write(zarrs, access, values, ZARRS)
                    write(written_to, access, values, OURS)
            for access in reads * 2:
                assert_same(get(ours, access), get(zarrs, access))
