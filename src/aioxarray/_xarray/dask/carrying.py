"""Graphs for a cluster whose tasks bring the caller's settings to the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aioxarray._xarray.compat import ImplicitToExplicitIndexingAdapter
from aioxarray._xarray.dask.carried import Carried

Carry = Callable[[Any, Carried], Any]
"""Returns the lazy data of a dask array with settings for the workers that read it."""


_carry: list[Carry] = []


def carry_with(carry: Carry) -> None:
    """Have lazy arrays brought to workers by ``carry``, which belongs to a part above this one."""
    _carry[:] = [carry]


def with_settings(collections: Sequence[Any], settings: Carried) -> list[Any]:
    """Return dask's ``collections``, whose lazy arrays are read with ``settings`` by workers.

    Lazy arrays that plain xarray has opened are read through aioxarray then. Collections that are
    expressions are returned as they are: only what aioxarray has opened brings its settings.
    """
    carrier = _Carrier(settings, *_carry)
    return [carrier.collection(each) for each in collections]


class _Carrier:
    """Replaces the lazy arrays in graphs; each of them once.

    Private: the classes of tasks, which all of dask and distributed use.
    """

    def __init__(self, settings: Carried, carry: Carry) -> None:
        from dask import _task_spec

        self._spec = _task_spec
        self._settings = settings
        self._carry = carry
        # By the id of what is replaced, which is kept as well.
        self._new: dict[int, tuple[Any, Any]] = {}

    def collection(self, collection: Any) -> Any:
        if getattr(collection, "expr", None) is not None:
            return collection
        graph = collection.__dask_graph__()
        if id(graph) not in self._new:
            self._new[id(graph)] = graph, self._graph(graph)
        new = self._new[id(graph)][1]
        if new is graph:
            return collection
        rebuild, state = collection.__dask_postpersist__()
        return rebuild(new, *state)

    def _graph(self, graph: Any) -> Any:
        layers = getattr(graph, "layers", None)
        if layers is None:
            return self._tasks(graph)
        new = {name: self._layer(layer) for name, layer in layers.items()}
        if all(layer is layers[name] for name, layer in new.items()):
            return graph
        return type(graph)(new, graph.dependencies)

    def _layer(self, layer: Any) -> Any:
        from dask.highlevelgraph import MaterializedLayer

        tasks = self._tasks(layer)
        # The annotations say where the tasks run, for example.
        return layer if tasks is layer else MaterializedLayer(tasks, layer.annotations)

    def _tasks(self, graph: Any) -> Any:
        tasks = {key: self._node(task) for key, task in graph.items()}
        return graph if all(task is graph[key] for key, task in tasks.items()) else tasks

    def _node(self, node: Any) -> Any:
        """Return ``node`` with other lazy arrays; itself if it has none."""
        if isinstance(node, ImplicitToExplicitIndexingAdapter):
            return self._adapter(node)
        spec = self._spec
        if type(node) is spec.DataNode:
            value = self._node(node.value)
            return node if value is node.value else spec.DataNode(node.key, value)
        if type(node) is spec.Task:
            args = tuple(map(self._node, node.args))
            if all(new is old for new, old in zip(args, node.args, strict=True)):
                return node
            return spec.Task(node.key, node.func, *args, **node.kwargs)
        if type(node) is tuple and node and callable(node[0]):
            parts = tuple(map(self._node, node))
            return parts if any(a is not b for a, b in zip(parts, node, strict=True)) else node
        if type(node) is dict:
            items: Mapping[Any, Any] = {key: self._node(value) for key, value in node.items()}
            return items if any(items[key] is not node[key] for key in node) else node
        return node

    def _adapter(self, adapter: Any) -> Any:
        if id(adapter) not in self._new:
            self._new[id(adapter)] = adapter, self._carry(adapter, self._settings)
        return self._new[id(adapter)][1]
