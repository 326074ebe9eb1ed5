"""Names of dask arrays and tasks, made distinct if different data has the same name.

dask computes results of the same name once, because a name should depend on everything that the
result depends on. Names given explicitly may not: xarray derives the names of the arrays it opens
from the file, the arguments and the variable only.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask.highlevelgraph import HighLevelGraph

# (name, version) of a layer and of those below it, except those that are the first of their name.
Label = frozenset[tuple[str, int]]

# The end of dask's own names: a hash of everything the result depends on, or a random number.
_HASH = re.compile(r"-[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$")


def named_after(array: Any, path: str) -> Any:
    """Return ``array``, which xarray has just opened, renamed after the group at ``path``."""
    from dask.array import Array
    from dask.graph_manipulation import clone

    if type(array) is not Array or not array.name.startswith("open_dataset-"):
        # From another library, or named by the backend.
        return array
    return clone(array, seed=path)


def with_distinct_names(arrays: Sequence[Any]) -> list[Any]:
    """Return arrays with the values of ``arrays``, dask's renamed where a name means two things.

    Names clash if an explicit name was given to different objects (data, or functions) in two
    arrays: opened from two groups, for example, or twice. Results derived from them are renamed,
    too, since their names derive from that name. Everything else is computed once, as before.
    """
    if "dask" not in sys.modules:
        return list(arrays)
    from dask.base import is_dask_collection

    named = [index for index, array in enumerate(arrays) if is_dask_collection(array)]
    result = list(arrays)
    for index, array in zip(named, _distinct([arrays[at] for at in named]), strict=True):
        result[index] = array
    return result


def _distinct(arrays: Sequence[Any]) -> list[Any]:
    # Layers that hold data, or that dask did not name.
    doubtful = {
        name
        for array in arrays
        for name, below, _ in _layers(array)
        if not below or not _HASH.search(str(name))
    }
    versions: dict[str, dict[int, int]] = {name: {} for name in doubtful}
    for array in arrays:
        for name, _, layer in _layers(array):
            if name in doubtful:
                versions[name].setdefault(id(layer), len(versions[name]))
    if all(len(known) == 1 for known in versions.values()):
        return list(arrays)
    call = uuid.uuid4().hex
    return [_renamed_array(array, versions, call) for array in arrays]


def _layers(array: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the dependencies and the object of each layer of ``array``."""
    if (expression := getattr(array, "expr", None)) is not None:
        for each in expression.walk():
            yield each._name, each.dependencies(), each
        return
    graph = array.__dask_graph__()
    for name, layer in graph.layers.items():
        yield name, graph.dependencies[name], layer


def _renamed_array(array: Any, versions: Mapping[str, Mapping[int, int]], call: str) -> Any:
    """Return ``array``, renamed if it depends on a layer that is not the first of its name."""
    from dask.array import Array
    from dask.core import flatten
    from dask.highlevelgraph import HighLevelGraph

    others = {
        (name, id(layer)): version
        for name, _, layer in _layers(array)
        if name in versions and (version := versions[name][id(layer)])
    }
    if not others:
        return array
    graph = array.__dask_graph__()
    if not isinstance(graph, HighLevelGraph):
        # The graph of an expression becomes one layer.
        graph = HighLevelGraph.from_collections(array.name, graph, dependencies=())
        ending = _ending(frozenset((name, version) for (name, _), version in others.items()), call)
        renamed, _ = _renamed(graph, {array.name: ending})
        return Array(renamed, _new_name(array.name, ending), array.chunks, meta=array._meta)
    labels: dict[str, Label] = {}
    for name in TopologicalSorter(graph.dependencies).static_order():
        version = others.get((name, id(graph.layers[name])), 0)
        own: Label = frozenset([(name, version)] if version else [])
        labels[name] = own.union(*(labels[below] for below in graph.dependencies[name]))
    endings = {name: _ending(label, call) for name, label in labels.items()}
    renamed, names = _renamed(graph, endings)
    rename = {key[0]: names.get(key, key)[0] for key in flatten(array.__dask_keys__())}
    rebuild, state = array.__dask_postpersist__()
    return rebuild(renamed, *state, rename=rename)


def _renamed(
    graph: HighLevelGraph, endings: Mapping[str, str]
) -> tuple[HighLevelGraph, Mapping[Any, Any]]:
    """Return ``graph`` with endings added to layer names and task keys, and the new keys by old.

    Layers without an ending stay unchanged. `dask.graph_manipulation.clone` leaves old names in
    tasks of the current form.
    """
    # Private: the classes of tasks, which all of dask and distributed use. Can go when `clone`
    # supports them.
    from dask._task_spec import GraphNode, TaskRef, convert_legacy_task
    from dask.highlevelgraph import HighLevelGraph

    names: dict[Any, Any] = {
        key: _new_name(key, ending)
        for name, ending in endings.items()
        if ending
        for key in graph.layers[name]
    }

    def renamed(key: Any, task: Any) -> Any:
        if isinstance(task, TaskRef):
            # A result that a cluster holds keeps the key that the cluster knows.
            return task
        node = convert_legacy_task(key, task, graph)
        return node.substitute(names, key=names[key]) if isinstance(node, GraphNode) else node

    def new_layer(name: str, layer: Mapping[Any, Any]) -> Mapping[Any, Any]:
        if not endings[name]:
            return layer
        return {names[key]: renamed(key, task) for key, task in layer.items()}

    new_graph = HighLevelGraph(
        {
            _new_name(name, endings[name]): new_layer(name, layer)
            for name, layer in graph.layers.items()
        },
        {
            _new_name(name, endings[name]): {_new_name(each, endings[each]) for each in below}
            for name, below in graph.dependencies.items()
        },
    )
    return new_graph, names


def _ending(label: Label, call: str) -> str:
    from dask.base import tokenize

    return str(tokenize(call, sorted(label))) if label else ""


def _new_name(name: Any, ending: str) -> Any:
    """Return the name of a layer, or the key of a task, with ``ending`` added."""
    if not ending:
        return name
    if isinstance(name, tuple):
        return (_new_name(name[0], ending), *name[1:])
    return f"{name}-{ending}"
