"""Measurement and comparison of different ways to open and load the same object."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import xarray as xr

import aioxarray
from aioxarray.config import Concurrency
from aioxarray.loading import load, load_async
from aioxarray.testing import LogSnapshot, RequestLog, StallMonitor


@dataclass(frozen=True)
class Way:
    """A way to open or load an object: the library, the call as text, and a function.

    ``run`` returns the object or an awaitable of it. Either way it is called on an event loop,
    as in a notebook or a server.
    """

    library: str
    call: str
    run: Callable[[Any], Any]


@dataclass(frozen=True)
class Measured:
    """Result of measuring one way.

    Attributes
    ----------
    seconds
        From the call to the loaded object.
    stall_ms
        The longest time for which the caller's event loop was blocked.
    began_s
        When it began, in seconds since 1970.
    served
        Its requests, as the demo's server has logged them; None for any other server.
    error
        The error, if the way failed.
    """

    seconds: float
    stall_ms: float
    began_s: float
    served: LogSnapshot | None = None
    error: Exception | None = None


def opening(url: str, function: Callable[..., Any], **options: Any) -> list[Way]:
    """Return the ways to open ``url``, plain xarray's first; their ``run`` ignores its argument.

    ``function`` is xarray's, with its ``options``. aioxarray needs only those options that the
    URL's scheme needs.
    """
    # The options for the scheme are too long for the table.
    given = "".join(f", {n}={v!r}" for n, v in options.items() if n != "storage_options")
    name = f"{function.__name__}_async"
    for_scheme = {n: v for n, v in options.items() if n == "storage_options"}
    ours = getattr(aioxarray, name)
    return [
        Way("xarray", f"{function.__name__}(url{given})", lambda _: function(url, **options)),
        Way("aioxarray", f"await {name}(url)", lambda _: ours(url, **for_scheme)),
    ]


def loading(obj: xr.Dataset | xr.DataTree, concurrency: Concurrency | None) -> list[Way]:
    """Return the ways to load ``obj``, plain xarray's blocking one first."""
    name = "tree" if isinstance(obj, xr.DataTree) else "ds"
    return [
        Way("xarray", f"{name}.load()", lambda obj: obj.load()),
        Way("xarray", f"await {name}.load_async()", _plain_load_async),
        Way("aioxarray", f"load({name})", lambda obj: load(obj, concurrency=concurrency)),
        Way(
            "aioxarray",
            f"await load_async({name})",
            lambda obj: load_async(obj, concurrency=concurrency),
        ),
    ]


def _plain_load_async(obj: xr.Dataset | xr.DataTree) -> Awaitable[Any]:
    if isinstance(obj, xr.DataTree):
        # DataTree.load_async exists only because aioxarray was imported.
        raise AttributeError("xarray's DataTree has no load_async (importing aioxarray adds one)")
    return obj.load_async()


def best(way: Way, lazy: Any, log: RequestLog | None, runs: int) -> tuple[Measured, Any]:
    """Measure ``way`` on copies of ``lazy``; return the shortest run, and the last result.

    Each run has its own event loop. A way that fails is not tried again.
    """
    measured, result = asyncio.run(_measure(way, _copy(lazy), log))
    for _ in range(runs - 1):
        if measured.error is None:
            again, result = asyncio.run(_measure(way, _copy(lazy), log))
            measured = min(measured, again, key=lambda one: one.seconds)
    return measured, result


def _copy(lazy: Any) -> Any:
    # A copy shares the lazy data, but not what is loaded later.
    return None if lazy is None else lazy.copy(deep=False)


async def _measure(way: Way, obj: Any, log: RequestLog | None) -> tuple[Measured, Any]:
    if log is not None:
        log.clear()
    result, error = None, None
    async with StallMonitor() as stalls:
        began_s = time.time()
        start = perf_counter()
        try:
            result = way.run(obj)
            if inspect.isawaitable(result):
                result = await result
        except Exception as raised:  # noqa: BLE001 - whatever a library raises is its result
            error = raised
        seconds = perf_counter() - start
    served = None if log is None else log.snapshot()
    return Measured(seconds, stalls.worst_s * 1000, began_s, served, error), result


def check_same(ours: xr.Dataset | xr.DataTree, plain: xr.Dataset | xr.DataTree) -> None:
    """Raise AssertionError unless values, names, attributes and types are the same."""
    if isinstance(plain, xr.DataTree):
        assert isinstance(ours, xr.DataTree)
        xr.testing.assert_identical(ours, plain)
        for node in plain.subtree:
            _check_types(ours[node.path].to_dataset(), node.to_dataset())
    else:
        assert isinstance(ours, xr.Dataset)
        xr.testing.assert_identical(ours, plain)
        _check_types(ours, plain)


def _check_types(ours: xr.Dataset, plain: xr.Dataset) -> None:
    for name, variable in plain.variables.items():
        if ours.variables[name].dtype != variable.dtype:
            raise AssertionError(
                f"{name}: {ours.variables[name].dtype} in place of {variable.dtype}"
            )
