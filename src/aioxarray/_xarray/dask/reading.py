"""Dask arrays whose graphs only read parts of lazy Zarr arrays, as lazy arrays without dask.

A graph makes a task for each chunk, which waits for a thread or a worker. A load of the lazy array
makes one plan for all of them, with all requests in flight at once.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.nodes import Joined, JoinedNode, Leaf, Permuted, Repeated
from aioxarray._xarray.arrays.plan import lazy_inside
from aioxarray._xarray.arrays.selectors import Selector
from aioxarray._xarray.arrays.sources import is_read_by_chunks, sources
from aioxarray._xarray.compat import (
    BasicIndexer,
    ImplicitToExplicitIndexingAdapter,
    LazilyIndexedArray,
    OuterIndexer,
)
from aioxarray._xarray.dask.views import (
    NoView,
    Row,
    View,
    arranged,
    grid_of,
    indexed,
    is_same,
    joined,
    transposed,
    views_of,
    whole,
)

if TYPE_CHECKING:
    from dask.array import Array

# Graphs whose tasks refer to each other more deeply than this are left to dask.
_DEEPEST = 100


def without_dask(arrays: Sequence[Any]) -> list[Any | None]:
    """Return lazy arrays with the values of chunked ``arrays``; None for those left to dask.

    Left to dask are arrays that it computes, and those that read anything other than Zarr. So are
    arrays that share a read with another one: dask makes it once for both. Makes no request.
    """
    graphs = [_graph_of(array) if _is_by_dask(array) else _Graph() for array in arrays]
    computed = {name for each in graphs if each.lazy is None for name in each.layers}
    uses = Counter(key for each in graphs for key in each.reads)
    return [
        None
        if each.lazy is None or each.layers & computed or any(uses[key] > 1 for key in each.reads)
        else each.lazy
        for each in graphs
    ]


@dataclass(frozen=True)
class _Graph:
    """The graph of a dask array.

    Attributes
    ----------
    lazy
        The lazy array with its values; None if dask has to compute it.
    layers
        The names of its layers.
    reads
        The keys of the tasks that read, if it does nothing else.
    """

    lazy: Any = None
    layers: Set[Hashable] = frozenset()
    reads: Set[Hashable] = frozenset()


def _is_by_dask(array: Any) -> TypeGuard[Array]:
    """Return whether ``array`` is one of `dask.array`, and not of another library."""
    return "dask.array" in sys.modules and isinstance(array, sys.modules["dask.array"].Array)


def _graph_of(array: Array) -> _Graph:
    graph: Any = array.__dask_graph__()
    layers = getattr(graph, "layers", None)
    # With dask's setting ``array.query-planning``, an array is an expression.
    expression = getattr(array, "expr", None)
    if layers is not None:
        names = set(layers)
    elif expression is not None:
        names = {each._name for each in expression.walk()}
    else:
        names = set(graph)
    if layers is not None and any(layer.annotations for layer in layers.values()):
        # The user has said where its tasks run, or how often they are tried.
        return _Graph(None, names)
    if any(math.isnan(length) for length in array.shape) or array.size == 0:
        return _Graph(None, names)
    keys = _flat(array.__dask_keys__())
    try:
        # Most graphs that compute something are found out by their first block.
        _Tracer(_culled(graph, keys[:1])).view(keys[0])
        tracer = _Tracer(_culled(graph, keys))
        grid = grid_of(array.numblocks, [tracer.view(key) for key in keys])
        part = arranged(grid)
        node = _node(part)
    except NoView:
        return _Graph(None, names)
    if node.shape != array.shape or node.dtype != array.dtype:
        return _Graph(None, names)
    read = [id(view.source) for view in views_of(part)]
    if len(set(read)) < len(read):
        # Two parts of one array may need the same chunks.
        return _Graph(None, names)
    lazy = node.array if isinstance(node, Leaf) else LazilyIndexedArray(JoinedArray(node))
    return _Graph(lazy, names, tracer.reads)


def _flat(keys: Any) -> list[Any]:
    """Return keys that are nested in lists, in order."""
    return [each for key in keys for each in _flat(key)] if isinstance(keys, list) else [keys]


def _culled(graph: Any, keys: Sequence[Any]) -> Mapping[Any, Any]:
    """Return the tasks that ``keys`` need, as one mapping."""
    if not hasattr(graph, "layers"):
        return graph  # type: ignore[no-any-return]
    return {
        key: task for layer in graph.cull(set(keys)).layers.values() for key, task in layer.items()
    }


class _Tracer:
    """Follows the tasks of a graph from a block to the lazy array that it is read from.

    Private: the classes and functions of tasks, which all of dask and distributed use. A task that
    is not known here is left to dask.
    """

    def __init__(self, graph: Mapping[Any, Any]) -> None:
        from dask import _task_spec
        from dask.array import _shuffle, chunk, core

        self._graph = graph
        # The tasks inside of fused ones.
        self._inner: dict[Any, Any] = {}
        self._zarr: dict[int, bool] = {}
        self._views: dict[Any, View] = {}
        self._depth = 0
        # The keys of the tasks that read from an array.
        self.reads: set[Hashable] = set()
        self._spec = _task_spec
        self._getters = (core.getter, core.getter_nofancy, core.getter_inline)
        self._functions: dict[Any, Callable[..., View]] = {
            **dict.fromkeys(self._getters, self._got),
            chunk.getitem: self._got,
            # Private: taking positions in any order.
            _shuffle._getitem: self._taken,
            _shuffle.concatenate_arrays: self._put_in_order,
            core.concatenate_shaped: self._merged,
            np.transpose: self._permuted,
            _task_spec._execute_subgraph: self._fused,
        }

    def view(self, key: Any) -> View:
        """Return the part of an array that the task with ``key`` returns, or raise `NoView`."""
        found = self._views.get(key)
        if found is None:
            if self._depth > _DEEPEST:
                raise NoView
            self._depth += 1
            task = self._task(key)
            found = self._views[key] = self._view_of(task)
            self._depth -= 1
            if getattr(task, "func", None) in self._getters:
                self.reads.add(key)
        return found

    def _task(self, key: Any) -> Any:
        try:
            task = self._inner[key] if key in self._inner else self._graph[key]
        except (KeyError, TypeError):
            # A result that a cluster holds, for example.
            raise NoView from None
        return self._spec.convert_legacy_task(key, task, self._graph)

    def _value(self, node: Any) -> Any:
        """Return what a node of the graph is, but not what it computes."""
        while isinstance(node, self._spec.TaskRef | self._spec.Alias):
            node = self._task(node.target if isinstance(node, self._spec.Alias) else node.key)
        return node.value if isinstance(node, self._spec.DataNode) else node

    def _view_of(self, node: Any) -> View:
        spec = self._spec
        if isinstance(node, spec.Alias):
            return self.view(node.target)
        if isinstance(node, spec.TaskRef):
            return self.view(node.key)
        if isinstance(node, spec.DataNode):
            node = node.value
        if isinstance(node, spec.Task):
            try:
                trace = self._functions.get(node.func)
            except TypeError:
                # Cannot be hashed.
                trace = None
            if trace is None:
                raise NoView
            return trace(*node.args, **node.kwargs)
        if isinstance(node, ImplicitToExplicitIndexingAdapter) and self._is_zarr(node):
            return whole(node)
        raise NoView

    def _is_zarr(self, adapter: Any) -> bool:
        """Return whether all values of a lazy array are read from Zarr arrays."""
        # Asked for each block. The graph keeps the arrays, and so their ids.
        if id(adapter) not in self._zarr:
            read = [source for source, _ in sources(adapter)]
            self._zarr[id(adapter)] = bool(read) and all(map(is_read_by_chunks, read))
        return self._zarr[id(adapter)]

    def _got(self, array: Any, index: Any, asarray: Any = None, lock: Any = None) -> View:
        if self._value(lock):
            # For a reader that must not be used by two threads.
            raise NoView
        return indexed(self._view_of(array), self._value(index))

    def _taken(self, array: Any, numbered: Any) -> View:
        _, index = self._value(numbered)
        return indexed(self._view_of(array), index)

    def _put_in_order(self, arrays: Any, sorter: Any, axis: Any) -> View:
        parts = self._views_of(arrays)
        axis = self._value(axis)
        if not isinstance(axis, int):
            raise NoView
        shape = [1] * len(parts[0].axes)
        shape[axis] = len(parts)
        view = joined(grid_of(shape, parts))
        if view is None:
            raise NoView
        _, order = self._value(sorter)
        return indexed(view, (*[slice(None)] * axis, np.argsort(order)))

    def _merged(self, arrays: Any, shape: Any) -> View:
        parts = self._views_of(arrays)
        view = joined(grid_of(self._value(shape), parts))
        if view is None:
            raise NoView
        return view

    def _permuted(self, array: Any, axes: Any = None) -> View:
        return transposed(self._view_of(array), self._value(axes))

    def _fused(self, tasks: Any, key: Any, *_: Any) -> View:
        # All tasks that the others need have the same keys outside.
        self._inner.update(tasks)
        return self.view(key)

    def _views_of(self, arrays: Any) -> list[View]:
        items = arrays.args if isinstance(arrays, self._spec.List) else arrays
        if not isinstance(items, list | tuple) or not items:
            raise NoView
        return [self._view_of(item) for item in items]


# --- lazy arrays for views -------------------------------------------------------------------


def _node(part: View | Row) -> JoinedNode:
    if isinstance(part, Row):
        return Joined(tuple(_node(each) for each in part.parts), part.axis)
    node: JoinedNode = Leaf(_selected(part))
    kept = [axis for axis in part.axes if axis is not None]
    order = tuple(sorted(kept).index(axis) for axis in kept)
    if order != tuple(range(len(kept))):
        node = Permuted(node, order)
    new = len(part.axes) - len(kept)
    if new:
        node = Repeated(node, (1,) * new)
        numbers = {None: iter(range(new)), 0: iter(range(new, len(part.axes)))}
        places = tuple(next(numbers[None if axis is None else 0]) for axis in part.axes)
        if places != tuple(range(len(places))):
            node = Permuted(node, places)
    return node


def _selected(view: View) -> Any:
    """Return the lazy array of the positions that ``view`` selects, in the order of its source."""
    lazy = lazy_inside(view.source)
    dropped = view.dropped
    if not dropped and all(map(is_same, view.selectors, map(range, lazy.shape))):
        return lazy
    key: Any = tuple(
        int(selector[0]) if axis in dropped else _index(selector)
        for axis, selector in enumerate(view.selectors)
    )
    if any(isinstance(part, np.ndarray) for part in key):
        return lazy.oindex[OuterIndexer(key)]
    return lazy[BasicIndexer(key)]


def _index(selector: Selector) -> slice | np.ndarray[Any, Any]:
    if not isinstance(selector, range):
        return selector
    stop = selector.stop if selector.step > 0 or selector.stop >= 0 else None
    return slice(selector.start, stop, selector.step)
