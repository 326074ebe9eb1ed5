"""Many metadata documents at once: one request of icechunk, one each of every other store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import icechunk
import pytest
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray.testing import RecordingStore
from tests import samples
from tests.opening.helpers import Way, datasets, every_way
from tests.oracle import assert_same_variable, lazy

if TYPE_CHECKING:
    from zarr.abc.store import Store

KEYS = ["zarr.json", "a/zarr.json", "a/deep/zarr.json", "a/line/zarr.json"]


class CountedPlaces:
    """In the place of a share of requests: counts those that were let in."""

    def __init__(self) -> None:
        self.count = 0

    @asynccontextmanager
    async def hold(self, *, long: bool = False) -> AsyncIterator[None]:
        self.count += 1
        yield

    def acquire_if_free(self, *, long: bool = False) -> bool:
        self.count += 1
        return True

    def release(self, *, long: bool = False) -> None: ...


def in_icechunk(tree: xr.DataTree) -> Store:
    """Return an icechunk store that can be read only."""
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    writable: Any = tree
    writable.to_zarr(session.store, consolidated=False)
    session.commit("a tree")
    store: Store = repository.readonly_session("main").store
    return store


def in_memory(tree: xr.DataTree) -> Store:
    return samples.stored(tree, consolidated=False)


def documents(store: Store, keys: list[str]) -> tuple[list[bytes | None], int]:
    """Return the documents, and how many requests they took."""
    places = CountedPlaces()
    limited = LimitedStore(store, cast("Any", places))

    async def read() -> list[bytes | None]:
        values = await limited.get_documents(default_buffer_prototype(), keys)
        return [None if value is None else value.to_bytes() for value in values]

    return asyncio.run(read()), places.count


@pytest.mark.parametrize("place", [in_icechunk, in_memory])
def test_documents_are_those_of_the_store(place: Any) -> None:
    store = place(samples.tree())
    got, requests = documents(store, KEYS)

    async def one_by_one() -> list[bytes | None]:
        values = [await store.get(key, default_buffer_prototype()) for key in KEYS]
        return [value.to_bytes() for value in values]

    assert got == asyncio.run(one_by_one())
    assert requests == (1 if place is in_icechunk else len(KEYS))


@pytest.mark.parametrize("place", [in_icechunk, in_memory])
def test_documents_that_are_missing_are_none(place: Any) -> None:
    store = place(samples.tree())
    got, _ = documents(store, [*KEYS, "a/none/zarr.json"])
    assert got == [*documents(store, KEYS)[0], None]


def test_a_wrapper_of_icechunk_gets_each_request() -> None:
    recording = RecordingStore(in_icechunk(samples.tree()))
    got, requests = documents(recording, KEYS)
    assert None not in got
    assert requests == recording.log.count("get") == len(KEYS)


def test_no_documents_take_no_request() -> None:
    assert documents(MemoryStore(), []) == ([], 0)


@every_way
@pytest.mark.parametrize("options", [{}, {"group": "a"}, {"drop_variables": ["x"]}], ids=str)
def test_trees_in_icechunk(options: dict[str, Any], way: Way) -> None:
    store = in_icechunk(samples.tree())
    given = {"engine": "zarr", "consolidated": False, **options}
    for function in ("open_datatree", "open_groups"):
        got = datasets(way(function, store, **given))
        plain = datasets(getattr(xr, function)(store, **given))
        # zarr lists members in the order in which it hears of them, which is another each time.
        assert sorted(got) == sorted(plain)
        for path, ds in plain.items():
            assert lazy(got[path]) == lazy(ds)
            xr.testing.assert_identical(got[path].load(), ds.load())
            for name, variable in ds.variables.items():
                assert_same_variable(got[path].variables[name], variable, f"{path}[{name!r}]")
