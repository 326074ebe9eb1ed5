"""The signatures and the common notes of functions that open or load as those of xarray do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

_COMMON = """

    The arguments, errors and result are those of `xarray.{name}`.
    {ours}

    Notes
    -----
    *Requests:* the metadata of all variables and groups; then, together, the first and last
    chunk of each time coordinate, which decoding needs, and the coordinates that become indexes
    (none with ``create_default_indexes=False``; those of more than 64 chunks one round trip
    later). All count towards the setting ``concurrency``. Consolidated metadata takes one round
    trip, other metadata two for each level of groups.

    *Order:* variables and groups are in the order that xarray gives, whichever answer comes first.

    *Memory:* {memory}

    *Cancelling:* on an error, a timeout or a cancellation the requests in flight are cancelled
    and awaited, including zarr's own, and nothing stays open. A read by HDF5 or netCDF-C in a
    worker thread is awaited and the file closed; a file of another format that is read in a
    worker thread (GRIB) is closed as soon as the read ends.

    *Event loops:* asyncio or Trio; opening happens in a worker thread.
"""

_TIMEOUT = """\
``timeout`` (not in xarray, keyword only) is the number of seconds after which the call raises
    TimeoutError, including the wait for its turn. The error says what the call was waiting for."""
_OF_LOAD = """\
``concurrency``, ``timeout``, ``progress`` and ``max_bytes`` (not in xarray, keyword only) are
    those of `load_async`; the first two apply to opening and loading together. Opening makes its
    requests, and loads the indexes, before ``max_bytes`` is checked."""
_LAZY = """\
the metadata and the index coordinates. Data stays lazy and reads itself asynchronously:
    xarray's own ``load`` and ``load_async`` on it go through aioxarray."""
_IN_MEMORY = """\
all data, plus what `load_async` holds while it loads."""


def like(
    function: Callable[P, Any],
) -> Callable[
    [Callable[..., Coroutine[Any, Any, R]]],
    Callable[P, Coroutine[Any, Any, R]],
]:
    """Give a coroutine function the signature of xarray's function and the common notes.

    The type of its result is that of the coroutine: not all of xarray's functions declare one.
    """

    def decorate(
        coroutine: Callable[..., Coroutine[Any, Any, R]],
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        coroutine.__signature__ = _with_keywords_of(coroutine, function)  # type: ignore[attr-defined]
        loads = function.__name__.startswith("load_")
        coroutine.__doc__ = f"{coroutine.__doc__}" + _COMMON.format(
            name=function.__name__,
            ours=_OF_LOAD if loads else _TIMEOUT,
            memory=_IN_MEMORY if loads else _LAZY,
        )
        return cast("Callable[P, Coroutine[Any, Any, R]]", coroutine)

    return decorate


def _with_keywords_of(
    coroutine: Callable[..., Any], function: Callable[..., Any]
) -> inspect.Signature:
    """Return the signature of ``function`` with the keyword arguments of ``coroutine`` added."""
    signature = inspect.signature(function)
    listed = list(signature.parameters.values())
    added = [
        parameter
        for name, parameter in inspect.signature(coroutine).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in signature.parameters
    ]
    rest = [each for each in listed if each.kind is each.VAR_KEYWORD]
    return signature.replace(parameters=[*listed[: len(listed) - len(rest)], *added, *rest])
