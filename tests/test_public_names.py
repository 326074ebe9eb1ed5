"""The public names: all that the design lists, each with its twin, each with its answers.

A docstring says which requests are made, in which order results come, how much memory is held,
what cancelling does and what is raised, if only by naming the function that says so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import xarray as xr

import aioxarray
import aioxarray.testing
from aioxarray.accessors import AioAccessor

VERBS = {
    "compute",
    "explain_open",
    "load",
    "load_dataarray",
    "load_dataset",
    "load_datatree",
    "open_dataarray",
    "open_dataset",
    "open_datatree",
    "open_groups",
    "open_mfdataset",
    "open_zarr",
    "to_netcdf",
    "to_zarr",
}
OTHERS = {
    "ArrayChangedError",
    "Batches",
    "Blocks",
    "CodecPipeline",
    "ForkError",
    "Installation",
    "LoadPlan",
    "OpenPhase",
    "OpenPlan",
    "Overloaded",
    "Statistics",
    "Stream",
    "TooLargeError",
    "Trace",
    "VariablePlan",
    "aio",
    "blocks",
    "config",
    "explain",
    "install",
    "statistics",
    "stream",
    "trace",
}
# The design has these too; each moves up when it is built.
PLANNED_VERBS: set[str] = set()
PLANNED_OTHERS: set[str] = set()


def with_twins(names: set[str]) -> set[str]:
    return names | {f"{name}_async" for name in names}


PUBLIC: dict[str, Any] = {name: getattr(aioxarray, name) for name in aioxarray.__all__}
COROUTINES = sorted(name for name in PUBLIC if name.endswith("_async"))
DEFINED = [name for name in vars(AioAccessor) if not name.startswith("_")]
METHODS = sorted(DEFINED)


def doc(obj: Any) -> str:
    return inspect.getdoc(obj) or ""


def sections(text: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by their titles; "" is what stands before."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented(text: str) -> list[str]:
    """Return the parameters that a docstring documents."""
    section = re.sub(r",\s*\n\s*", ", ", sections(text).get("Parameters", ""))
    lines = re.findall(r"^(\S[^\n]*)$", section, re.MULTILINE)
    names = [name for line in lines for name in line.partition(" : ")[0].split(", ")]
    return [name.strip(" *") for name in names]


# xarray's None gives dask arrays; here None, when it is given, means none.
OTHER_DEFAULTS = {("open_mfdataset_async", "chunks")}


# --- names ---------------------------------------------------------------------------------------


def test_the_public_names_are_those_of_the_design() -> None:
    there = set(aioxarray.__all__)
    built = with_twins(VERBS) | OTHERS
    assert built - there == set()
    assert there - built - with_twins(PLANNED_VERBS) - PLANNED_OTHERS == set()
    assert len(aioxarray.__all__) == len(there)


@pytest.mark.parametrize("module", [aioxarray, aioxarray.testing], ids=lambda m: m.__name__)
def test_all_lists_what_is_there(module: ModuleType) -> None:
    for name in module.__all__:
        assert hasattr(module, name)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert public == set(module.__all__)


def test_dir_shows_public_names_only() -> None:
    names = {name for name in dir(aioxarray) if not name.startswith("__")}
    assert names == {*aioxarray.__all__, "errors"}
    assert all(hasattr(aioxarray, name) for name in dir(aioxarray))


@pytest.mark.parametrize(
    "obj", [xr.Dataset(), xr.DataArray(0), xr.DataTree()], ids=lambda obj: type(obj).__name__
)
def test_the_accessor_shows_its_methods(obj: Any) -> None:
    accessor = aioxarray.aio(obj)
    assert accessor is obj.aio
    assert repr(accessor) == f"<aioxarray for a {type(obj).__name__}: {', '.join(DEFINED)}>"


def test_other_objects_have_no_accessor() -> None:
    with pytest.raises(TypeError, match=r"only a Dataset, .* not Variable"):
        aioxarray.aio(xr.Variable("x", [1]))  # type: ignore[type-var]


@pytest.mark.parametrize("name", COROUTINES)
def test_each_coroutine_has_its_blocking_twin(name: str) -> None:
    coroutine, twin = PUBLIC[name], PUBLIC[name.removesuffix("_async")]
    assert inspect.iscoroutinefunction(coroutine)
    assert not inspect.iscoroutinefunction(twin)
    assert inspect.signature(coroutine) == inspect.signature(twin)
    for function, expected in ((coroutine, name), (twin, name.removesuffix("_async"))):
        assert function.__name__ == function.__qualname__ == expected
        assert function.__module__.startswith("aioxarray.")
    assert f"`{name}`" in doc(twin)


@pytest.mark.parametrize("name", COROUTINES)
def test_xarrays_functions_keep_xarrays_arguments(name: str) -> None:
    theirs = getattr(xr, name.removesuffix("_async"), None)
    if theirs is None or name in ("load_async", "compute_async"):
        return
    plain, ours = (inspect.signature(each).parameters for each in (theirs, PUBLIC[name]))
    takes_more = any(each.kind is each.VAR_KEYWORD for each in ours.values())
    for parameter in plain.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.name not in ours:
            assert takes_more
            continue
        if (name, parameter.name) not in OTHER_DEFAULTS:
            assert ours[parameter.name].default == parameter.default
        # Given by position it is the same one, or an error.
        if ours[parameter.name].kind is not parameter.KEYWORD_ONLY:
            assert list(ours).index(parameter.name) == list(plain).index(parameter.name)
    # What is ours can be given by its name only, so that xarray may add to its own.
    for parameter in ours.values():
        assert parameter.name in plain or parameter.kind in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_KEYWORD,
        )


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_are_the_functions_with_the_object_first(name: str) -> None:
    function, method = PUBLIC[name], getattr(AioAccessor, name)
    _, *rest = inspect.signature(function).parameters.values()
    _, *ours = inspect.signature(method).parameters.values()
    if ours and ours[-1].kind is inspect.Parameter.VAR_KEYWORD:
        # It hands on what else it is given.
        ours, rest = ours[:-1], rest[: len(ours) - 1]
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in rest
    ]
    assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(function)
    assert f"`aioxarray.{name}`" in doc(method)


def test_the_verbs_that_take_an_object_are_methods_too() -> None:
    of_objects = {
        name for name in PUBLIC if re.fullmatch("(load|compute|explain|to_.*)(_async)?", name)
    }
    assert set(METHODS) == of_objects
    for cls in (xr.Dataset, xr.DataArray, xr.DataTree):
        assert cls.aio is AioAccessor  # type: ignore[union-attr]


# --- docstrings ----------------------------------------------------------------------------------

ANSWERS = {
    "requests": r"\brequests\b",
    "order": r"\border\b",
    "memory": r"\bmemory\b",
    "cancelling": r"\bcancelling\b",
    "errors": r"\berrors\b|^Raises$",
}


@pytest.mark.parametrize("question", ANSWERS)
@pytest.mark.parametrize("name", sorted(set(PUBLIC) & with_twins(VERBS | PLANNED_VERBS)))
def test_each_docstring_answers(name: str, question: str) -> None:
    assert re.search(ANSWERS[question], doc(PUBLIC[name]), re.IGNORECASE | re.MULTILINE)


@pytest.mark.parametrize("name", sorted(name for name in PUBLIC if callable(PUBLIC[name])))
def test_each_docstring_begins_with_a_sentence(name: str) -> None:
    summary, _, _ = doc(PUBLIC[name]).partition("\n\n")
    assert re.fullmatch(r"[A-Za-z].*\.", summary, re.DOTALL)


def functions() -> dict[str, Callable[..., Any]]:
    """All public functions and methods."""
    found: dict[str, Callable[..., Any]] = {
        name: value for name, value in PUBLIC.items() if inspect.isfunction(value)
    }
    # The methods of others (zarr's pipeline) are documented there.
    classes = {
        name: value
        for name, value in PUBLIC.items()
        if inspect.isclass(value) and value.__bases__ == (object,)
    }
    classes["AioAccessor"] = AioAccessor
    for owner, cls in classes.items():
        for name, value in vars(cls).items():
            if not name.startswith("_") and inspect.isfunction(value):
                found[f"{owner}.{name}"] = value
    found["DataTree.load_async"] = getattr(xr.DataTree, "load_async")  # noqa: B009
    return found


@pytest.mark.parametrize("name", functions())
def test_no_argument_is_documented_that_does_not_exist(name: str) -> None:
    function = functions()[name]
    assert doc(function)
    parameters = set(inspect.signature(function).parameters)
    named = documented(doc(function))
    assert set(named) - parameters == set()
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", functions())
def test_every_argument_of_ours_is_documented(name: str) -> None:
    function, text = functions()[name], doc(functions()[name])
    parameters = set(inspect.signature(function).parameters) - {"self"}
    if "Parameters" in sections(text):
        assert parameters - set(documented(text)) == set()
        return
    # Otherwise it says whose arguments they are.
    referred = re.search(
        r"(?:arguments|Parameters).* are\s+those of `([\w.]+)`|See `([\w.]+)`", text
    )
    if parameters and referred is None:
        raise AssertionError(f"{name} does not say what {sorted(parameters)} are")
    if referred is not None:
        theirs = (referred[1] or referred[2]).split(".")
        other = getattr(xr if theirs[0] == "xarray" else aioxarray, theirs[-1])
        for each in parameters - set(inspect.signature(other).parameters) - {"options"}:
            assert f"``{each}" in text
