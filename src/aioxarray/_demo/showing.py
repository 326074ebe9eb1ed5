"""The demo's run and its table."""

from __future__ import annotations

import math
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

import aioxarray
from aioxarray._demo import remote, terrain
from aioxarray._demo.extent import describe, extents
from aioxarray._demo.measuring import Measured, Way, best, check_same, loading, opening
from aioxarray._demo.timeline import Load, write_page, write_picture
from aioxarray._runtime.system.cores import usable_cores
from aioxarray._zarr.stores.printable import printable, without_secrets
from aioxarray.config import Concurrency, request_limit
from aioxarray.testing import ObjectServer, RequestLog

__all__ = ["DemoError", "run"]

WIDTH = 100


class DemoError(Exception):
    """The demo cannot run; the message is a single line."""


@dataclass(frozen=True)
class Options:
    """Options of the demo.

    Attributes
    ----------
    url
        The user's own Zarr; None: data that the demo stores itself.
    latency_ms
        Latency that the demo's own server adds to each request.
    concurrency
        As for `aioxarray.load`.
    quick
        Little data, and one run each: to check that the demo works, not to measure.
    page, picture
        Files to write: the requests of all loads on a page like that of a trace, and how many
        blocking loads have in flight. Only for the demo's own data, since its server logs them.
    """

    url: str | None = None
    latency_ms: float = 50.0
    concurrency: Concurrency | None = None
    quick: bool = False
    page: Path | None = None
    picture: Path | None = None


def run(options: Options) -> None:
    """Run the demo and print its table.

    Raises
    ------
    DemoError
        If something it needs is not installed, or the URL cannot be opened.
    """
    limit = request_limit(options.concurrency)
    at_most = "unlimited requests" if limit == math.inf else f"concurrency={limit}"
    print(
        f"aioxarray {aioxarray.__version__} ({at_most}), xarray {xr.__version__}, "
        f"zarr {zarr.__version__}, Python {platform.python_version()}, {usable_cores()} cores"
    )
    with warnings.catch_warnings():
        # Warnings about stores and data types that no specification covers yet.
        warnings.simplefilter("ignore")
        if options.url is None:
            _on_own_server(options)
        else:
            _on_url(options.url, options)
    print("Try the same on your own data: python -m aioxarray demo URL   (http, s3, gs or a path)")


def _on_own_server(options: Options) -> None:
    missing = remote.missing(("matplotlib", "fsspec", "aiohttp"))
    if missing:
        raise DemoError(
            f"the demo needs more packages ({', '.join(missing)}): pip install 'aioxarray[demo]'"
        )
    sizes = terrain.TINY if options.quick else terrain.Sizes()
    loads: list[Load] = []
    with ObjectServer(latency_s=options.latency_ms / 1000, process=True) as server:
        print(f"A server on this machine, {options.latency_ms:g} ms for each request, serves Zarr:")
        print("terrain around the Jacksboro fault, Tennessee, from an elevation grid.")
        _print_header(counted=True)
        for name, data in terrain.stored(sizes).items():
            for key, value in data.items():
                server.put(f"{name}/{key}", value)
            url = f"{server.url}/{name}"
            function, given = remote.opener(url)
            opened = _print_opening(opening(url, function, **given), server.log)
            extent = describe(opened[0])
            lengths = {f"{name}/{key}": len(value) for key, value in data.items()}
            for way, measured in _print_loading(opened, server.log, options):
                loads.append(Load(name.removesuffix(".zarr"), extent, way, measured, lengths))
    print(
        "\nRequests, and the most in flight at once, are counted at the server. Stall: how long "
        "the caller's\nevent loop could do nothing else, at worst. Ratio: plain xarray's "
        "seconds over the row's.\nAll values are identical to plain xarray's."
    )
    for path, write in ((options.page, write_page), (options.picture, write_picture)):
        if path is not None:
            write(path, loads)
            print(f"Written: {path}")


def _on_url(url: str, options: Options) -> None:
    missing = remote.missing(remote.needs(url))
    if missing:
        packages = " ".join(missing)
        raise DemoError(f"reading {printable(url)} needs more packages: pip install {packages}")
    try:
        function, given = remote.opener(url)
    except Exception as error:
        remote.end_requests()
        raise DemoError(f"cannot open {printable(url)} as a Zarr group: {_told(error)}") from error
    _print_header(counted=False)
    opened = _print_opening(opening(url, function, **given), None)
    parts = [remote.sample(one) for one in opened]
    if parts[0].text:
        print(f"Read of it is {parts[0].text}, and nothing else:\n{describe(parts[0].obj)}")
    _print_loading([part.obj for part in parts], None, options)
    print(
        "\nStall: how long the caller's event loop could do nothing else, at worst. Ratio: plain "
        "xarray's\nseconds over the row's. The first reader may also warm a server's caches: "
        "repeat to be sure.\nAll values are identical to plain xarray's."
    )


def _print_opening(ways: list[Way], log: RequestLog | None) -> list[Any]:
    """Return the object that each way opened; raise if one fails."""
    plain, opened = None, []
    for way in ways:
        measured, result = best(way, None, log, runs=1)
        if measured.error is not None:
            remote.end_requests()
            raise DemoError(f"{way.call} failed: {_told(measured.error)}") from measured.error
        if plain is None:
            if not extents(result):
                raise DemoError(f"there is no data in what {way.call} opened")
            plain = measured
            print(f"\n{describe(result)}")
        opened.append(result)
        _print_row(way, measured, plain)
    return opened


def _print_loading(
    opened: list[Any], log: RequestLog | None, options: Options
) -> list[tuple[Way, Measured]]:
    """Load plain xarray's object in each way, and compare aioxarray's objects with it.

    Returns the ways that succeeded.
    """
    plain, expected = None, None
    succeeded = []
    for way in loading(opened[0], options.concurrency):
        measured, result = best(way, opened[0], log, runs=1 if options.quick else 2)
        if plain is None:
            plain, expected = measured, result
        elif measured.error is None and expected is not None:
            _check(way.call, result, expected)
        _print_row(way, measured, plain)
        if measured.error is None:
            succeeded.append((way, measured))
    for ours in opened[1:] if expected is not None else ():
        _check("aioxarray's opening", aioxarray.load(ours), expected)
    return succeeded


def _check(call: str, result: Any, expected: Any) -> None:
    try:
        check_same(result, expected)
    except AssertionError as error:
        raise DemoError(f"{call} gave different values: {error}") from error


def _print_header(counted: bool) -> None:
    counts = ("requests", "in flight") if counted else ()
    _print_cells("", "", "seconds", *counts, "stall ms", "ratio")


def _print_row(way: Way, measured: Measured, plain: Measured | None) -> None:
    if measured.error is not None:
        _print_cells(way.library, way.call, "failed")
        text = f"            {_told(measured.error)}"
        print(text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}...")
        return
    ratio = ""
    if plain is not None and plain.error is None:
        ratio = f"{plain.seconds / measured.seconds:.1f}x"
    served = measured.served
    counts = () if served is None else (len(served.requests), served.most_in_flight)
    _print_cells(
        way.library,
        way.call,
        f"{measured.seconds:.2f}",
        *map(str, counts),
        f"{measured.stall_ms:.0f}",
        ratio,
    )


def _print_cells(library: str, call: str, *numbers: str) -> None:
    cells = "".join(f"{number:>10}" for number in numbers)
    print(f"  {library:<10}{call:<38}{cells}".rstrip())


def _told(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = without_secrets(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
