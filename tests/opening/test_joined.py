"""Arrays made of other arrays, selected without their data: numpy is the oracle."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from xarray.core.indexing import BasicIndexer, LazilyIndexedArray, OuterIndexer

from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.nodes import (
    Cast,
    Joined,
    JoinedNode,
    Leaf,
    Permuted,
    Reindexed,
    Repeated,
    Stacked,
    pieces,
)
from aioxarray._xarray.arrays.selectors import as_index

Built = tuple[JoinedNode, np.ndarray[Any, Any]]


@st.composite
def nodes(draw: st.DrawFn) -> Built:
    """Draw a tree of nodes, and the array that numpy makes by the same operations."""
    numbers = iter(range(10**6))

    def leaf(shape: tuple[int, ...]) -> Built:
        size = int(np.prod(shape))
        values = np.array([next(numbers) for _ in range(size)], dtype="i4").reshape(shape)
        return Leaf(values), values

    def build(shape: tuple[int, ...], depth: int) -> Built:
        kinds = (
            ["leaf"]
            if depth == 0
            else [*("leaf", "joined", "permuted", "repeated", "cast", "reindexed", "stacked")]
        )
        kind = draw(st.sampled_from(kinds))
        if kind == "joined" and shape:
            axis = draw(st.integers(0, len(shape) - 1))
            cuts = sorted(draw(st.lists(st.integers(0, shape[axis]), max_size=3)))
            sizes = np.diff([0, *cuts, shape[axis]]).tolist()
            parts = [build((*shape[:axis], n, *shape[axis + 1 :]), depth - 1) for n in sizes]
            arrays = [array for _, array in parts]
            # Parts of other types are cast first, as xarray does.
            kind_of_all = np.result_type(*arrays)
            joined: tuple[JoinedNode, ...] = tuple(Cast(node, kind_of_all) for node, _ in parts)
            return Joined(joined, axis), np.concatenate(arrays, axis)
        if kind == "permuted":
            order = draw(st.permutations(range(len(shape))))
            inner = tuple(shape[order.index(axis)] for axis in range(len(shape)))
            node, array = build(inner, depth - 1)
            return Permuted(node, tuple(order)), array.transpose(order)
        if kind == "repeated" and shape:
            new = draw(st.integers(1, len(shape)))
            node, array = build(shape[new:], depth - 1)
            return Repeated(node, shape[:new]), np.broadcast_to(array, shape)
        if kind == "reindexed" and shape:
            axis = draw(st.integers(0, len(shape) - 1))
            size = draw(st.integers(0, 5))
            node, array = build((*shape[:axis], size, *shape[axis + 1 :]), depth - 1)
            positions = st.lists(
                st.integers(-1, size - 1), min_size=shape[axis], max_size=shape[axis]
            )
            index = np.array(draw(positions), dtype=np.int64)
            padded = np.pad(
                array,
                [(0, 1 if each == axis else 0) for each in range(array.ndim)],
                constant_values=-7,
            )
            fill = np.array(-7, dtype=array.dtype)
            return Reindexed(node, axis, index, fill), padded.take(index, axis)
        if kind == "cast":
            node, array = build(shape, depth - 1)
            return Cast(node, np.dtype("f8")), array.astype("f8")
        if kind == "stacked" and len(shape) > 1:
            count, *sizes = shape
            more = [draw(st.integers(0, 3)) for _ in sizes]
            _, array = leaf(tuple(np.add(sizes, more).tolist()))
            starts = [[draw(st.integers(0, each)) for each in more] for _ in range(count)]
            windows = [
                array[tuple(map(slice, start, np.add(start, sizes).tolist()))] for start in starts
            ]
            corners = np.array(starts, dtype=np.int64).reshape(count, len(sizes))
            stacked = np.array(windows, dtype="i4").reshape(shape)
            return Stacked(Leaf(array), corners, tuple(sizes)), stacked
        return leaf(shape)

    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    return build(shape, draw(st.integers(0, 4)))


@st.composite
def selectors(draw: st.DrawFn, size: int) -> Any:
    indexes = range(*draw(st.slices(size)).indices(size))
    if len(indexes) and indexes.step < 0:
        indexes = indexes[::-1]
    if draw(st.booleans()):
        return indexes
    if size == 0:
        return np.empty(0, dtype=np.int64)
    return np.array(draw(st.lists(st.integers(0, size - 1), max_size=6)), dtype=np.int64)


@given(nodes())
def test_shape_and_type(built: Built) -> None:
    node, array = built
    assert node.shape == array.shape
    assert node.dtype == array.dtype


@given(st.data(), nodes())
def test_pieces_fill_a_selection_and_ask_for_no_more(data: st.DataObject, built: Built) -> None:
    node, array = built
    selection = [data.draw(selectors(size)) for size in array.shape]
    indexes = [np.asarray(each, dtype=np.int64) for each in selection]
    expected = array[np.ix_(*indexes)] if indexes else array
    out = np.full(expected.shape, -1, dtype=expected.dtype)
    filled = np.zeros(expected.shape, dtype=int)
    for piece in pieces(node, selection):
        place = as_index(piece.place)
        out[place] = piece.fit(piece.array[as_index(piece.selection)])
        filled[place] += 1
    assert (filled == 1).all()
    np.testing.assert_array_equal(out, expected)


@given(st.data(), nodes())
def test_the_lazy_array_selects_as_numpy_does(data: st.DataObject, built: Built) -> None:
    node, array = built
    keys: list[Any] = []
    for size in array.shape:
        # xarray itself makes an ordinary slice of one that selects nothing, before it asks.
        slices: Any = st.slices(size).filter(lambda key, n=size: len(range(*key.indices(n))) > 0)
        kinds = st.one_of(slices, st.integers(-size, size - 1)) if size else st.just(slice(0, 0))
        keys.append(data.draw(kinds))
    lazy = JoinedArray(node)
    got = asyncio.run(lazy.async_getitem(BasicIndexer(tuple(keys))))
    np.testing.assert_array_equal(got, array[tuple(keys)])
    outer = [data.draw(selectors(size)) for size in array.shape]
    arrays = [np.asarray(each, dtype=np.int64) for each in outer]
    got = asyncio.run(lazy.async_getitem(OuterIndexer(tuple(arrays))))
    np.testing.assert_array_equal(got, array[np.ix_(*arrays)] if arrays else array)


def test_a_single_part_is_not_copied_unless_it_is_read_only() -> None:
    values = np.arange(6).reshape(2, 3)
    leaf = Leaf(LazilyIndexedArray(JoinedArray(Leaf(values))))
    for node, expected in (
        (Repeated(leaf, (2,)), [[[0, 1, 2], [3, 4, 5]]] * 2),
        (Permuted(leaf, (1, 0)), [[0, 3], [1, 4], [2, 5]]),
        (Stacked(leaf, np.array([[0, 0], [1, 0]]), (1, 3)), [[[0, 1, 2]], [[3, 4, 5]]]),
    ):
        whole = BasicIndexer((slice(None),) * len(node.shape))
        got = asyncio.run(JoinedArray(node).async_getitem(whole))
        assert got.tolist() == expected
        got[...] = 0
        assert values.tolist() == [[0, 1, 2], [3, 4, 5]]
