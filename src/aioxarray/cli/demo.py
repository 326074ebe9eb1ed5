"""``aioxarray demo``: its arguments; `aioxarray._demo` is the demo itself."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import aioxarray
from aioxarray.cli import arguments as kinds
from aioxarray.cli.failures import CommandError


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    demo: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="compare opening and loading with plain xarray, on a server with latency",
        description="Opens and loads Zarr with plain xarray and with aioxarray, checks that both "
        "give the same values, and prints the times. It needs: pip install 'aioxarray[demo]'.",
    )
    demo.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help="your own Zarr dataset or tree: http(s)://, s3:// or gs:// (public data), or a path; "
        "about 64 MB of it are read, several times. Default: terrain data from a server that the "
        "demo starts",
    )
    demo.add_argument(
        "--latency-ms",
        type=_latency,
        default=50.0,
        metavar="MS",
        help="latency that this server adds to each request (default: %(default)g)",
    )
    demo.add_argument(
        "--concurrency",
        type=kinds.concurrency,
        metavar="N",
        help="maximum number of aioxarray's store requests in flight (default: the setting, "
        f"{aioxarray.config.get('concurrency')})",
    )
    demo.add_argument(
        "--quick", action="store_true", help="little data and one run each, to check that it works"
    )
    demo.add_argument(
        "--page",
        type=_file,
        metavar="FILE",
        help="write the requests of all loads, as the demo's server has logged them, to an HTML "
        "page with a timeline",
    )
    demo.add_argument(
        "--picture",
        type=_file,
        metavar="FILE",
        help="draw how many requests of the blocking loads are in flight over time (.png or .svg)",
    )
    demo.set_defaults(run=partial(run, demo))


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Run the demo."""
    if arguments.url is not None and (arguments.page or arguments.picture):
        parser.error("--page and --picture need the demo's own server, which logs all requests")
    # Not imported at the top: the other commands do not need it.
    from aioxarray._demo import DemoError, Options
    from aioxarray._demo import run as run_demo

    options = Options(
        url=arguments.url,
        latency_ms=arguments.latency_ms,
        concurrency=arguments.concurrency,
        quick=arguments.quick,
        page=arguments.page,
        picture=arguments.picture,
    )
    try:
        run_demo(options)
    except DemoError as error:
        raise CommandError(str(error)) from error


def _file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory")
    return path


def _latency(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"must be from 0 to 10000, got {text!r}")
    return value
