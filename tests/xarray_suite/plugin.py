"""A pytest plugin that runs xarray's own suites of backends, plainly or with aioxarray.

A full suite, plainly and in the ways of aioxarray, from the root of this repository::

    python -m pytest -p tests.xarray_suite.plugin -c tests/xarray_suite/suite.ini --rootdir . \
        --pyargs xarray.tests.test_backends -k Zarr [--loaded-by-aioxarray|…]

With ``--loaded-by-aioxarray`` xarray's ``load``, ``load_async`` and ``compute`` are aioxarray's
(`aioxarray.install`), and the suite's comparisons get their objects loaded by `aioxarray.compute`.
With ``--opened-by-aioxarray`` xarray's engines for Zarr and netCDF4 are those that aioxarray opens
with, under the names that the suite asks for. With ``--saved-by-aioxarray`` ``to_zarr`` is
`aioxarray.to_zarr`. A test in which a load by aioxarray blocks the
caller's loop fails. Coroutine tests, which xarray marks ``asyncio``, run here without a further
plugin.
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
ENGINES = ("zarr", "netcdf4", "h5netcdf")
MARKERS = ("asyncio", "flaky", "network", "skip_if_param", "skip_with_dask_array", "mypy")
# The names under which the suite compares a loaded or lazy object with another.
COMPARISONS = ("assert_allclose", "assert_equal", "assert_identical")
XARRAY = (xr.Variable, xr.DataArray, xr.Dataset, xr.DataTree)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aioxarray")
    group.addoption("--loaded-by-aioxarray", action="store_true", help="load through aioxarray")
    group.addoption("--opened-by-aioxarray", action="store_true", help="open with engine 'aio'")
    group.addoption("--saved-by-aioxarray", action="store_true", help="save through aioxarray")
    group.addoption("--outcomes", type=Path, help="write a JSON file of outcomes by test")
    group.addoption("--only", type=Path, help="run the tests that this JSON file lists")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: of xarray's suite")
    config.pluginmanager.register(Outcomes(config.getoption("outcomes")))
    if config.getoption("loaded_by_aioxarray"):
        config.pluginmanager.register(LoadedByAioxarray())
    if config.getoption("opened_by_aioxarray"):
        config.pluginmanager.register(OpenedByAioxarray())
    if config.getoption("saved_by_aioxarray"):
        config.pluginmanager.register(SavedByAioxarray())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (path := config.getoption("only")) is not None:
        only = set(json.loads(path.read_text(encoding="utf-8")))
        items[:] = [item for item in items if _name(item.nodeid) in only]


def _name(nodeid: str) -> str:
    """Return what names a test within its module."""
    return nodeid.partition("::")[2]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


class Outcomes:
    """Writes how each test ended, and how often aioxarray did what it is there for."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._outcomes: dict[str, str] = {}
        self._done = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _name(report.nodeid)
        before = self._outcomes.get(name)
        if report.when == "call" or report.outcome != "passed":
            outcome: str = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            # An error in the tear-down counts, and follows a call that passed.
            self._outcomes[name] = "failed" if before == "failed" else outcome
        if report.when == "teardown":
            self._done += sum(int(str(n)) for key, n in report.user_properties if key == "done")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._path is not None and not hasattr(session.config, "workerinput"):
            found = {"outcomes": self._outcomes, "done": self._done}
            self._path.write_text(json.dumps(found), encoding="utf-8")


class LoadedByAioxarray:
    """Loads every object of the suite through aioxarray."""

    def __init__(self) -> None:
        # Not above: the plain run is one without aioxarray.
        import aioxarray
        from tests.blocking import blocking_calls

        self._compute = aioxarray.compute
        self._watching = blocking_calls
        self._loaded = 0
        aioxarray.install()

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
        # Lazy variables that were loaded.
        item.user_properties.append(("done", self._loaded))
        self._loaded = 0

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


class OpenedByAioxarray:
    """Opens everything of the suite with the engines of aioxarray."""

    def __init__(self) -> None:
        from aioxarray._xarray.opening.engine import engine_of

        self._opened = 0
        # The table in which xarray looks for its own engines.
        engines = xr.backends.common.BACKEND_ENTRYPOINTS
        for name in ENGINES:
            module, _ = engines[name]
            engines[name] = (module, self._counting(engine_of(name)))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        # Datasets, trees and dicts of groups that were opened.
        item.user_properties.append(("done", self._opened))
        self._opened = 0

    def _counting(self, engine: Any) -> Any:
        plugin = self

        class Counting(engine):  # type: ignore[misc]
            def _open(self, *args: Any, **options: Any) -> Any:
                plugin._opened += 1
                return super()._open(*args, **options)

            def guess_can_open(self, filename_or_obj: Any) -> bool:
                # The suite also opens files without naming an engine.
                return bool(self.inner.guess_can_open(filename_or_obj))

        return Counting


class SavedByAioxarray:
    """Saves every object of the suite through aioxarray."""

    def __init__(self) -> None:
        import aioxarray

        self._saved = 0
        for cls in (xr.Dataset, xr.DataArray, xr.DataTree):
            cls.to_zarr = self._saving(cls.to_zarr, aioxarray.to_zarr)  # type: ignore[method-assign]

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        # Datasets, arrays and trees that were saved.
        item.user_properties.append(("done", self._saved))
        self._saved = 0

    def _saving(self, theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(theirs)

        @functools.wraps(theirs)
        def to_zarr(*args: Any, **kwargs: Any) -> Any:
            # By name: the classes of xarray differ in the order of their arguments.
            given = signature.bind(*args, **kwargs).arguments
            self._saved += 1
            return ours(given.pop("self"), **given.pop("kwargs", {}), **given)

        return to_zarr


def _lazy_count(obj: Any) -> int:
    if isinstance(obj, xr.Variable):
        in_memory: bool = obj._in_memory
        return 0 if in_memory else 1
    if isinstance(obj, xr.DataArray):
        return sum(map(_lazy_count, [obj.variable, *obj.coords.variables.values()]))
    nodes = obj.subtree if isinstance(obj, xr.DataTree) else [obj]
    return sum(_lazy_count(variable) for node in nodes for variable in node.variables.values())
