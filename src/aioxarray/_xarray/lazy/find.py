"""Finding the variables of xarray objects, and of lists, tuples and dicts of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr


@dataclass(frozen=True, slots=True)
class Found:
    """A variable, and where it was found.

    Attributes
    ----------
    variable
        The variable.
    label
        Names it, and its place, in error messages.
    path
        The same in short, as in "t2m", "/group/t2m", or "[0] t2m" for one in a list.
    """

    variable: xr.Variable
    label: str
    path: str


def find_variables(obj: Any) -> list[Found]:
    """Return all variables of ``obj``, without duplicates.

    Raises
    ------
    TypeError
        If something in ``obj`` is neither an xarray object nor a list, tuple or dict.
    """
    return list(each_variable(obj))


def each_variable(obj: Any) -> Iterator[Found]:
    """Yield the variables of ``obj``; see `find_variables`."""
    seen: set[int] = set()
    for place, leaf in _leaves(obj, "obj"):
        for name, variable, group in _variables(leaf):
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            where = "".join(
                [
                    "" if name is None else f" {name!r}",
                    "" if group in (None, "/") else f" of group {group!r}",
                    "" if place == "obj" else f" in {place}",
                ]
            )
            yield Found(variable, f"variable{where}", _path(name, group, place))


def _path(name: Hashable, group: str | None, place: str) -> str:
    within = "" if group is None else f"{group.rstrip('/')}/"
    before = "" if place == "obj" else f"{place.removeprefix('obj')} "
    return f"{before}{within}{'' if name is None else name}".rstrip()


def _variables(obj: Any) -> Iterator[tuple[Hashable, xr.Variable, str | None]]:
    if isinstance(obj, xr.Variable):
        yield None, obj, None
    elif isinstance(obj, xr.DataArray):
        yield obj.name, obj.variable, None
        yield from _named(obj.coords.variables)
    elif isinstance(obj, xr.Dataset):
        yield from _named(obj.variables)
    else:
        for path, node in obj.subtree_with_keys:
            # Inherited coordinates are variables of the parent, which yields them itself.
            for name, variable in list(node.variables.items()):
                yield name, variable, "/" if path == "." else f"/{path}"


def _named(
    variables: Mapping[Any, xr.Variable],
) -> Iterator[tuple[Hashable, xr.Variable, str | None]]:
    # A list, because other code may change the object between two steps.
    for name, variable in list(variables.items()):
        yield name, variable, None


def _leaves(obj: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, xr.Variable | xr.DataArray | xr.Dataset | xr.DataTree):
        yield place, obj
    elif isinstance(obj, list | tuple):
        for index, item in enumerate(obj):
            yield from _leaves(item, f"{place}[{index}]")
    elif isinstance(obj, dict):
        for key, item in obj.items():
            yield from _leaves(item, f"{place}[{key!r}]")
    else:
        raise TypeError(
            f"{place} is {_kind(obj)}; expected a Variable, DataArray, Dataset or DataTree of "
            "xarray, or a list, tuple or dict of them"
        )


def _kind(obj: Any) -> str:
    kind = type(obj)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"of type {module}{kind.__qualname__}"


def shallow_copy(obj: Any) -> Any:
    """Return a copy of ``obj`` with new variables that share the data of the original."""
    return _map(obj, lambda leaf: leaf.copy(deep=False))


def _map(obj: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(obj, dict):
        return _like(obj, {key: _map(item, function) for key, item in obj.items()})
    if isinstance(obj, list | tuple):
        return _like(obj, [_map(item, function) for item in obj])
    return function(obj)


def _like(original: Any, items: Any) -> Any:
    if type(original) in (list, dict):
        return items
    if isinstance(original, tuple):
        kind = type(original)
        # A named tuple takes its items as separate arguments.
        return kind(*items) if hasattr(original, "_fields") else kind(items)
    # A copy keeps other attributes of a subclass, such as the factory of a defaultdict.
    new = copy.copy(original)
    if isinstance(new, dict):
        new.update(items)
    else:
        new[:] = items
    return new
