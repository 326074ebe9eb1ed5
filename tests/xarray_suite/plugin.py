"""A pytest plugin that runs xarray's own Zarr backend suite, plainly or through aioxarray.

The full suite, without and with aioxarray, from the root of this repository::

    python -m pytest -p tests.xarray_suite.plugin -c tests/xarray_suite/suite.ini --rootdir . \
        --pyargs xarray.tests.test_backends -k Zarr
    python -m pytest -p tests.xarray_suite.plugin -c tests/xarray_suite/suite.ini --rootdir . \
        --pyargs xarray.tests.test_backends -k Zarr --through-aioxarray

With ``--through-aioxarray`` xarray's ``load``, ``load_async`` and ``compute`` are aioxarray's
(`aioxarray.install`), ``to_zarr`` is `aioxarray.to_zarr`, and the suite's comparisons get their
objects loaded by `aioxarray.compute`. A test in which aioxarray blocks the caller's loop fails.
Coroutine tests, which xarray marks ``asyncio``, run here without a further plugin.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

SUITE = "xarray.tests.test_backends"
MARKERS = ("asyncio", "flaky", "network", "skip_if_param", "skip_with_dask_array", "mypy")
# The names under which the suite compares a loaded or lazy object with another.
COMPARISONS = ("assert_allclose", "assert_equal", "assert_identical")
XARRAY = (xr.Variable, xr.DataArray, xr.Dataset, xr.DataTree)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aioxarray")
    group.addoption(
        "--through-aioxarray", action="store_true", help="load and save through aioxarray"
    )
    group.addoption("--outcomes", type=Path, help="write a JSON file of outcomes by test")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: of xarray's suite")
    config.pluginmanager.register(Outcomes(config.getoption("outcomes")))
    if config.getoption("through_aioxarray"):
        config.pluginmanager.register(ThroughAioxarray())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


class Outcomes:
    """Writes how each test ended, how many lazy variables were loaded and how often was saved."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._outcomes: dict[str, str] = {}
        self._counts = {"loaded": 0, "saved": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        before = self._outcomes.get(name)
        if report.when == "call" or report.outcome != "passed":
            outcome: str = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            # An error in the tear-down counts, and follows a call that passed.
            self._outcomes[name] = "failed" if before == "failed" else outcome
        if report.when == "teardown":
            for key, number in report.user_properties:
                self._counts[key] += int(str(number))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._path is not None and not hasattr(session.config, "workerinput"):
            found = {"outcomes": self._outcomes, **self._counts}
            self._path.write_text(json.dumps(found), encoding="utf-8")


class ThroughAioxarray:
    """Loads and saves every object of the suite through aioxarray."""

    def __init__(self) -> None:
        # Not above: the plain run is one without aioxarray.
        import aioxarray
        from tests.blocking import blocking_calls

        self._compute = aioxarray.compute
        self._watching = blocking_calls
        self._loaded = 0
        self._saved = 0
        aioxarray.install()
        for cls in (xr.Dataset, xr.DataArray, xr.DataTree):
            saving = self._saving(cls.to_zarr, aioxarray.to_zarr)
            setattr(cls, "to_zarr", saving)  # noqa: B010 - mypy knows methods as fixed

    def _saving(self, theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(theirs)

        @functools.wraps(theirs)
        def to_zarr(*args: Any, **kwargs: Any) -> Any:
            # By name: the classes of xarray differ in the order of their arguments.
            given = signature.bind(*args, **kwargs).arguments
            self._saved += 1
            return ours(given.pop("self"), **given.pop("kwargs", {}), **given)

        return to_zarr

    def pytest_collection_finish(self) -> None:
        suite = importlib.import_module(SUITE)
        for name in COMPARISONS:
            setattr(suite, name, self._of_loaded(getattr(suite, name)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        with self._watching() as found:
            result = yield
        assert not found, found[0]
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        item.user_properties.append(("loaded", self._loaded))
        item.user_properties.append(("saved", self._saved))
        self._loaded = self._saved = 0

    def _of_loaded(self, comparison: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(comparison)
        def compare(*args: Any, **kwargs: Any) -> Any:
            return comparison(*map(self._load, args), **kwargs)

        return compare

    def _load(self, argument: Any) -> Any:
        # Only what is lazy: what is in memory stays the very object that the test passed.
        if not isinstance(argument, XARRAY) or not (lazy := _lazy_count(argument)):
            return argument
        loaded = self._compute(argument)
        assert _lazy_count(loaded) == 0
        self._loaded += lazy
        return loaded


def _lazy_count(obj: Any) -> int:
    if isinstance(obj, xr.Variable):
        in_memory: bool = obj._in_memory
        return 0 if in_memory else 1
    if isinstance(obj, xr.DataArray):
        return sum(map(_lazy_count, [obj.variable, *obj.coords.variables.values()]))
    nodes = obj.subtree if isinstance(obj, xr.DataTree) else [obj]
    return sum(_lazy_count(variable) for node in nodes for variable in node.variables.values())
