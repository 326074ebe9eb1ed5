"""What was fetched ahead is answered in the calling thread, as zarr would have answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core.indexing import BasicIndexer, OuterIndexer, VectorizedIndexer

from aioxarray._xarray.arrays.prefetched_array import PrefetchedArray

SELECTIONS: list[tuple[Any, ...]] = [
    (slice(None), slice(None)),
    (slice(0, 1), slice(-1, None)),
    (2, slice(1, 5, 2)),
    (3, 4),
]


def array(zarr_format: int) -> tuple[zarr.Array[Any], dict[str, Any]]:
    """Return an array with a chunk that is missing, and all that its store holds."""
    store = zarr.storage.MemoryStore()
    made: zarr.Array[Any] = zarr.create_array(
        store, shape=(4, 7), chunks=(2, 3), dtype="i4", fill_value=9, zarr_format=zarr_format
    )
    made[:, :3] = np.arange(12).reshape(4, 3)
    made[:2] = np.arange(14).reshape(2, 7)
    keys = ["c/1/1", "c/1/2"] if zarr_format == 3 else ["1.1", "1.2"]
    return made, {**store._store_dict, **dict.fromkeys(keys)}


def prefetched(plain: zarr.Array[Any], values: dict[str, Any]) -> PrefetchedArray:
    return PrefetchedArray(ZarrArrayWrapper(plain), values)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_values_are_those_of_zarr(zarr_format: int, selection: tuple[Any, ...]) -> None:
    plain, values = array(zarr_format)
    known = prefetched(plain, values).prefetched(BasicIndexer(selection))
    np.testing.assert_array_equal(known, plain[selection])
    assert known.dtype == plain.dtype


def test_values_that_were_not_prefetched_are_read() -> None:
    plain, values = array(3)
    del values["c/0/2"]
    lazy = prefetched(plain, values)
    assert lazy.prefetched(BasicIndexer((slice(0, 2), slice(None)))) is None
    np.testing.assert_array_equal(lazy[BasicIndexer((slice(0, 2), slice(None)))], plain[:2])
    assert lazy.prefetched(OuterIndexer((np.array([0, 1]), slice(None)))) is None
    assert lazy.prefetched(VectorizedIndexer((np.array([0, 1]), np.array([0, 1])))) is None


def test_a_broken_chunk_is_named() -> None:
    plain, values = array(3)
    values["c/0/0"] = type(values["c/0/0"]).from_bytes(b"not zstd at all")
    with pytest.raises(RuntimeError, match=r"(?i)zstd|frame") as caught:
        prefetched(plain, values).prefetched(BasicIndexer((slice(0, 1), slice(0, 1))))
    assert "c/0/0" in "".join(caught.value.__notes__)


def test_texts_are_left_to_zarr() -> None:
    made: zarr.Array[Any] = zarr.create_array(zarr.storage.MemoryStore(), shape=(2,), dtype="str")
    values = dict.fromkeys(["c/0"])
    assert prefetched(made, values).prefetched(BasicIndexer((slice(None),))) is None
