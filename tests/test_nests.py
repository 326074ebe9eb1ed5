"""Lists, tuples and dicts of xarray objects, nested in any way."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import aioxarray
from aioxarray.testing import RecordingStore
from tests import samples
from tests.oracle import WAYS, Way, check, every_way, lazy, mapped
from tests.samples import opened, opened_tree, stored

NUMBERS = stored(samples.numbers())
TREE = stored(samples.tree())
OPENED = opened(NUMBERS)


class Pair(NamedTuple):
    first: Any
    second: Any


class Titled(list[Any]):
    """A list that knows more than its items."""

    title = ""


def numbers() -> xr.Dataset:
    return OPENED.copy()


NESTS: dict[str, Callable[[], Any]] = {
    "list": lambda: [numbers(), numbers().cube],
    "tuple": lambda: (numbers().plane, numbers().variables["line"]),
    "dict": lambda: {"a": numbers(), 1: numbers().small, None: opened_tree(TREE)},
    "deep": lambda: [{"a": (numbers(), [numbers().line])}, ([], {}, ()), (numbers().plane,)],
    "named tuple": lambda: Pair(numbers(), [numbers().cube]),
    "ordered dict": lambda: OrderedDict(b=numbers().cube, a=numbers().line),
    "with loaded ones": lambda: [numbers().load(), numbers(), xr.Dataset({"a": 1})],
    "the same twice": lambda: [ds := numbers(), ds, ds.cube],
}


@every_way
@pytest.mark.parametrize("name", NESTS)
def test_nests(name: str, way: Way) -> None:
    check(NESTS[name], way)


def test_loading_returns_the_very_containers() -> None:
    inner = [numbers()]
    nest = {"a": inner, "b": (numbers(),)}
    assert aioxarray.load(nest) is nest
    assert nest["a"] is inner


def test_computing_leaves_containers_alone() -> None:
    ds = numbers()
    nest = {"a": [ds]}
    got = aioxarray.compute(nest)
    assert got is not nest
    assert got["a"] is not nest["a"]
    assert nest["a"] == [ds]
    assert nest["a"][0] is ds
    assert lazy(nest)


@pytest.mark.parametrize("empty", [[], (), {}, [[], {"a": ()}]], ids=repr)
@every_way
def test_nothing_in_a_nest(empty: Any, way: Way) -> None:
    assert way(empty) == empty


@every_way
def test_containers_that_are_more_than_their_items(way: Way) -> None:
    groups = defaultdict(list, {"a": [numbers()]})
    got = way(groups)
    assert not lazy(got)
    assert type(got) is defaultdict
    assert got["new"] == []
    titled = Titled([numbers()])
    titled.title = "two"
    got = way(titled)
    assert not lazy(got)
    assert type(got) is Titled
    assert got.title == "two"


@every_way
def test_data_that_appears_twice_is_requested_once(way: Way) -> None:
    recording = RecordingStore(NUMBERS)
    ds = opened(recording)
    recording.log.clear()
    nest = [ds, (ds, {"a": ds.cube}), ds[["plane"]], ds.copy(), ds.plane.rename("p")]
    got = way(nest)
    keys = [request.key for request in recording.log.requests]
    assert len(keys) == len(set(keys)) > 5
    assert not lazy(got)
    # Copies stay copies: what is written into one does not show in another.
    assert got[3].plane.values is not got[0].plane.values
    got[3].plane.values[:] = 0
    xr.testing.assert_identical(got[0], samples.numbers())
    xr.testing.assert_identical(got[4], samples.numbers().plane.rename("p"))


def leaf(kind: int) -> Any:
    makers: list[Callable[[], Any]] = [
        numbers,
        lambda: numbers().cube,
        lambda: numbers().small.isel(x=[3, 1]),
        lambda: numbers().variables["plane"],
        lambda: samples.numbers().line,
    ]
    return makers[kind]()


nests = st.recursive(
    st.builds(leaf, st.integers(0, 4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers()), inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=6,
)


@given(nests, st.sampled_from(WAYS))
def test_any_nest(nest: Any, way: Way) -> None:
    def copied() -> Any:
        return mapped(nest, lambda each: each.copy())

    if lazy(nest):
        check(copied, way)
    else:
        obj = copied()
        got = way(obj)
        assert (got is obj) is way.in_place or not way.in_place
        assert not lazy(got)


class Array:
    """Not an xarray object."""


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        (Array(), "obj is of type tests.test_nests.Array"),
        (None, "obj is of type NoneType"),
        (np.zeros(3), "obj is of type numpy.ndarray"),
        ("name", "obj is of type str"),
        ([numbers(), 3], r"obj\[1\] is of type int"),
        ({"a": (numbers(), [Array()])}, r"obj\['a'\]\[1\]\[0\] is of type tests.test_nests.Array"),
        ({1: None}, r"obj\[1\] is of type NoneType"),
        ({numbers().cube.name: {numbers().cube.name}}, r"obj\['cube'\] is of type set"),
        (iter([numbers()]), "obj is of type list_iterator"),
        (int, "obj is of type type"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@every_way
def test_objects_that_are_not_of_xarray_are_refused(wrong: Any, place: str, way: Way) -> None:
    with pytest.raises(TypeError, match=f"^{place}; expected a Variable, DataArray, Dataset"):
        way(wrong)


@every_way
def test_nothing_is_loaded_when_something_in_a_nest_is_wrong(way: Way) -> None:
    recording = RecordingStore(NUMBERS)
    ds = opened(recording)
    was = lazy(ds)
    recording.log.clear()
    with pytest.raises(TypeError, match=r"obj\[1\]"):
        way([ds, "wrong"])
    assert recording.log.requests == ()
    assert lazy(ds) == was
