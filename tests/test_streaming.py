"""Streams hand out what `compute` returns for each object, and say where something failed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray.testing import RecordingStore
from tests.loops import every_loop
from tests.oracle import assert_same, lazy, plainly_computed
from tests.samples import numbers, opened, opened_tree, stored, tree

STEPS = 12

Taking = Callable[..., list[Any]]


def plainly(objects: Any, **options: Any) -> list[Any]:
    with aioxarray.stream(objects, **options) as pieces:
        return list(pieces)


async def asynchronously(objects: Any, **options: Any) -> list[Any]:
    async with aioxarray.stream(objects, **options) as pieces:
        return [piece async for piece in pieces]


def in_asyncio(objects: Any, **options: Any) -> list[Any]:
    return asyncio.run(asynchronously(objects, **options))


both_ways = pytest.mark.parametrize("taken", [plainly, in_asyncio])


def steps() -> xr.Dataset:
    """A dataset of twelve steps of 80 bytes, four to a chunk."""
    ds = xr.Dataset({"v": (("t", "x"), np.arange(10.0 * STEPS).reshape(STEPS, 10))})
    ds["v"].encoding["chunks"] = (4, 10)
    return ds


def cut(ds: xr.Dataset) -> list[xr.Dataset]:
    return [ds.isel(t=index) for index in range(ds.sizes["t"])]


def assert_identical(got: list[Any], expected: list[xr.Dataset]) -> None:
    assert len(got) == len(expected)
    for pair in zip(got, expected, strict=True):
        xr.testing.assert_identical(*pair)


def texts_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


# --- values --------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("ahead", [1, "1KiB", "512MiB"])
def test_pieces_in_order(taken: Taking, ahead: Any) -> None:
    pieces = cut(opened(stored(steps())))
    got = taken(pieces, ahead=ahead)
    assert_same(got, [plainly_computed(each) for each in pieces])
    assert all(lazy(each) for each in pieces)


@every_loop
async def test_on_every_loop() -> None:
    pieces = cut(opened(stored(steps())))
    assert_same(await asynchronously(pieces), [plainly_computed(each) for each in pieces])


@both_ways
def test_kinds_of_objects(taken: Taking) -> None:
    ds = opened(stored(numbers()))
    name = next(iter(ds.data_vars))
    objects = [
        ds,
        ds[name],
        ds[name].variable,
        opened_tree(stored(tree())),
        {"a": ds, "b": [ds[name], (ds,)]},
        ds.chunk(),
        ds.compute(),
    ]
    assert_same(taken(objects), [plainly_computed(each) for each in objects])


def test_netcdf(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    steps().to_netcdf(path)
    with xr.open_dataset(path) as ds:
        assert_same(plainly(cut(ds)), [plainly_computed(each) for each in cut(ds)])


@both_ways
def test_functions_that_open(taken: Taking) -> None:
    store = stored(steps())
    files: list[xr.Dataset] = []
    closed: list[int] = []

    def open_one(index: int) -> xr.Dataset:
        ds = opened(store).isel(t=index)
        ds.set_close(lambda: closed.append(index))
        files.append(ds)
        return ds

    functions = [lambda index=index: open_one(index) for index in range(STEPS)]
    assert_identical(taken(functions), cut(steps()))
    assert sorted(closed) == list(range(STEPS))
    assert len(files) == STEPS


@both_ways
def test_generators(taken: Taking) -> None:
    pieces = cut(opened(stored(steps())))
    assert_identical(taken(each for each in pieces), cut(steps()))
    assert taken([]) == []


def test_endless_iterables() -> None:
    pieces = cut(opened(stored(steps())))
    with aioxarray.stream(itertools.cycle(pieces), ahead="4KiB") as endless:
        got = list(itertools.islice(endless, 2 * STEPS + 1))
    assert_identical(got, [*cut(steps()), *cut(steps()), steps().isel(t=0)])


@both_ways
def test_free_order(taken: Taking) -> None:
    got = taken(cut(opened(stored(steps()))), ordered=False)
    assert_identical(sorted(got, key=lambda each: float(each.v[0])), cut(steps()))


@both_ways
def test_transform(taken: Taking) -> None:
    got = taken(cut(opened(stored(steps()))), transform=lambda piece: float(piece.v.sum()))
    assert got == [float(each.v.sum()) for each in cut(steps())]


# --- requests ------------------------------------------------------------------------------------


def test_nothing_is_requested_before_the_stream_is_entered() -> None:
    store = RecordingStore(stored(steps()))
    pieces = cut(opened(store))
    store.log.clear()
    aioxarray.stream(pieces)
    assert store.log.requests == ()


def test_with_the_cache_each_chunk_is_requested_once() -> None:
    store = RecordingStore(stored(steps()))
    pieces = cut(opened(store))
    store.log.clear()
    with aioxarray.config.set(cache="1MiB"):
        plainly(pieces)
    assert sorted(each.key for each in store.log.requests) == ["v/c/0/0", "v/c/1/0", "v/c/2/0"]


def test_traces_record_the_requests_of_their_block() -> None:
    pieces = cut(opened(stored(steps())))
    with aioxarray.trace(scope="block") as t:
        plainly(pieces)
    assert set(t.requests["key"]) == {"v/c/0/0", "v/c/1/0", "v/c/2/0"}


# --- the position --------------------------------------------------------------------------------


@pytest.mark.parametrize("as_iterable", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize("taken", [0, 1, 5, STEPS])
def test_resumed_at_the_same_piece(as_iterable: Any, taken: int) -> None:
    pieces = cut(opened(stored(steps())))
    with aioxarray.stream(as_iterable(pieces)) as first:
        before = list(itertools.islice(first, taken))
        state = json.loads(json.dumps(first.state_dict()))
    second = aioxarray.stream(as_iterable(pieces))
    second.load_state_dict(state)
    with second:
        assert_identical([*before, *second], cut(steps()))


@pytest.mark.parametrize("ordered", [True, False])
def test_resumed_in_any_order_and_epoch(ordered: bool) -> None:
    pieces = cut(opened(stored(steps())))
    got: list[float] = []
    state = aioxarray.stream(pieces, epochs=3).state_dict()
    while True:
        each = aioxarray.stream(pieces, epochs=3, ordered=ordered)
        each.load_state_dict(json.loads(json.dumps(state)))
        with each:
            some = [float(piece.v[0]) for piece in itertools.islice(each, 5)]
            state = each.state_dict()
        if not some:
            break
        got += some
    assert sorted(got) == sorted(3 * [float(each.v[0]) for each in cut(steps())])


def test_epochs() -> None:
    pieces = cut(opened(stored(steps())))
    assert_identical(plainly(pieces, epochs=2), 2 * cut(steps()))
    assert plainly([], epochs=None) == []


@pytest.mark.parametrize("state", [None, {}, {"epoch": 0}, {"epoch": 0, "index": -1, "beyond": []}])
def test_states_of_something_else_are_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"state_dict\(\) of a stream"):
        aioxarray.stream([]).load_state_dict(state)


def test_a_state_is_loaded_before_the_stream_begins() -> None:
    with (
        aioxarray.stream(cut(steps())) as begun,
        pytest.raises(RuntimeError, match="before the stream is entered"),
    ):
        begun.load_state_dict(begun.state_dict())


# --- errors --------------------------------------------------------------------------------------


def failing_iterable(pieces: list[Any], error: BaseException) -> Iterator[Any]:
    yield from pieces[:3]
    raise error


def failing_function(pieces: list[Any], error: BaseException) -> Iterable[Any]:
    def fail() -> Any:
        raise error

    return [*pieces[:3], fail, *pieces[3:]]


@pytest.mark.parametrize("make", [failing_iterable, failing_function])
@pytest.mark.parametrize(
    "error", [ValueError("bad"), SystemExit(3), asyncio.CancelledError("bad")], ids=repr
)
def test_errors_take_the_place_of_their_piece(make: Any, error: BaseException) -> None:
    pieces = cut(opened(stored(steps())))
    got: list[Any] = []
    with aioxarray.stream(make(pieces, error)) as failing:
        with pytest.raises(type(error)) as caught:
            got.extend(failing)
        assert list(failing) == []
    assert_identical(got, cut(steps())[:3])
    assert "in piece 3 of the stream" in texts_of(caught.value)


@both_ways
@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3)], ids=repr)
def test_errors_of_a_transform(taken: Taking, error: BaseException) -> None:
    def transform(piece: xr.Dataset) -> float:
        if float(piece.v[0]) == 50.0:
            raise error
        return float(piece.v[0])

    pieces = cut(opened(stored(steps())))
    with pytest.raises(type(error)) as caught:
        taken(pieces, transform=transform)
    assert "in piece 5 of the stream" in texts_of(caught.value)
    # The loop on which streams run goes on.
    assert len(taken(pieces)) == STEPS


def test_a_stop_iteration_of_a_transform_does_not_end_the_loop_in_silence() -> None:
    def transform(piece: xr.Dataset) -> Any:
        return next(iter([]))

    with pytest.raises(RuntimeError, match="piece 0 raised StopIteration"):
        plainly(cut(opened(stored(steps()))), transform=transform)


async def coroutine() -> xr.Dataset:
    return steps()


@pytest.mark.parametrize(
    ("piece", "text"),
    [(3, "type int"), (lambda: 3, "type int"), (coroutine, "returned a coroutine")],
    ids=["number", "function", "coroutine function"],
)
def test_pieces_that_are_no_objects_of_xarray(piece: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text) as caught:
        plainly([steps(), piece])
    assert "in piece 1 of the stream" in texts_of(caught.value)


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        (steps(), "one Dataset"),
        ({"a": steps()}, r"list\(objects.values\(\)\)"),
        (3, "got int"),
        ("text", "got str"),
    ],
    ids=["dataset", "dict", "number", "text"],
)
def test_objects_that_are_no_pieces(objects: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        aioxarray.stream(objects)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ahead": "much"}, ValueError),
        ({"ahead": None}, TypeError),
        ({"ordered": 1}, TypeError),
        ({"transform": 3}, TypeError),
        ({"epochs": 0}, ValueError),
        ({"epochs": True}, TypeError),
    ],
    ids=str,
)
def test_bad_options(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        aioxarray.stream([], **options)


def test_an_iterator_has_one_epoch() -> None:
    with pytest.raises(TypeError, match="ends for good"):
        aioxarray.stream(iter([]), epochs=2)


def test_a_stream_is_iterated_in_its_context_only() -> None:
    with pytest.raises(RuntimeError, match=r"with aioxarray\.stream"):
        iter(aioxarray.stream([]))
    with pytest.raises(RuntimeError, match=r"with aioxarray\.stream"):
        aiter(aioxarray.stream([]))


def test_a_stream_is_used_once() -> None:
    pieces = aioxarray.stream(cut(steps()))
    with pieces:
        next(pieces)
    with pytest.raises(RuntimeError, match="has ended"):
        next(pieces)
    with pytest.raises(RuntimeError, match="used once"), pieces:
        pass
