"""``aioxarray copy``: a labelled part of data to Zarr or netCDF, resumable."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._copying.copier import Copy, TargetError
from aioxarray._copying.encoding import CHANGEABLE, FORMATS, Compression, Format, Layout
from aioxarray._copying.targets import LocalTarget, target_of
from aioxarray._xarray.explaining.rendering import connection_text, counted
from aioxarray._xarray.lazy.sizes import size_text
from aioxarray.cli import arguments as kinds
from aioxarray.cli import selecting, sources
from aioxarray.cli.failures import CommandError, InputError, one_line
from aioxarray.cli.selecting import Selection
from aioxarray.cli.sources import Source
from aioxarray.explaining import LoadPlan, explain

if TYPE_CHECKING:
    import xarray as xr

_NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf")


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "copy",
        help="copy a labelled part of data to Zarr or netCDF, resumable and in bounded memory",
        description="Copies a part of data to Zarr or netCDF, in bounded memory. The same command "
        "resumes a copy that was interrupted. Nothing opens at DEST before all is written.",
    )
    sources.add_arguments(parser, "SRC")
    parser.add_argument("dest", metavar="DEST", help="a path, or a URL for Zarr")
    selecting.add_arguments(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="the format (default: netcdf4 if DEST ends in .nc, otherwise zarr3)",
    )
    parser.add_argument(
        "--chunks",
        type=_chunks,
        default={},
        metavar="DIM=N[,DIM=N...]",
        help="lengths of the chunks along dimensions (default: those of the source)",
    )
    parser.add_argument(
        "--compress",
        type=_compression,
        metavar="CODEC[:LEVEL]",
        help="none, zstd or gzip; netCDF knows gzip (default: as the source, if the format can)",
    )
    parser.add_argument(
        "--encoding",
        type=kinds.json_object,
        default={},
        metavar="JSON",
        help="encodings of variables, where they differ from the source: "
        '\'{"t2m": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -32768}}\'',
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what is at DEST, once the copy is complete if it is local; discard an "
        "unfinished copy of something else",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be read and written, and end"
    )
    parser.add_argument(
        "--concurrency",
        type=kinds.concurrency,
        metavar="N",
        help="maximum number of requests in flight (default: the setting)",
    )
    parser.add_argument(
        "--dest-options",
        type=kinds.json_object,
        metavar="JSON",
        help="options for the client of DEST's store",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Make the copy, or say what it would take."""
    selection = Selection.of(arguments)
    source = Source.of(arguments)
    with source.dataset() as (dataset, _):
        if not dataset.variables:
            raise InputError(
                f"{source.name} has no variables here: `aioxarray info` shows its groups, and "
                "--group chooses one"
            )
        part = selection.of_dataset(dataset)
        copy = _copy(arguments, source, selection, part)
        try:
            if arguments.dry_run:
                _tell_plan(copy, copy.check(), as_json=arguments.json)
            else:
                _make(copy, as_json=arguments.json)
        except TargetError as error:
            raise InputError(str(error)) from error


def _copy(
    arguments: argparse.Namespace, source: Source, selection: Selection, part: xr.Dataset
) -> Copy:
    form = arguments.format or _format(arguments.dest)
    target = target_of(arguments.dest, arguments.dest_options)
    if isinstance(target, LocalTarget):
        if not target.path.parent.is_dir():
            raise InputError(f"there is no folder {target.path.parent} to copy to")
        if isinstance(same := target_of(source.location, None), LocalTarget) and (
            same.path == target.path
        ):
            raise InputError(f"{target.name} would be copied to itself")
    elif form == "netcdf4":
        raise InputError("netCDF is written to local files: give a path, or --format zarr3")
    if form == "netcdf4":
        _check_netcdf(arguments.compress)
    for name in arguments.chunks:
        if name not in part.sizes:
            names = ", ".join(map(str, part.sizes))
            raise InputError(f"--chunks: {name!r} is no dimension of the copy; there are {names}")
    _check_encoding(arguments.encoding, part)
    origin = {"source": source.name, "group": source.group, "selection": selection.to_dict()}
    if source.snapshot is not None:
        # A copy goes on only from the same commit.
        origin["snapshot"] = source.snapshot
    return Copy(
        part,
        target,
        Layout(form, arguments.chunks, arguments.compress, arguments.encoding),
        origin,
        overwrite=arguments.overwrite,
        concurrency=arguments.concurrency,
    )


def _check_encoding(encoding: dict[str, Any], part: xr.Dataset) -> None:
    for name, own in encoding.items():
        if name not in part.variables:
            names = ", ".join(map(str, part.variables))
            raise InputError(f"--encoding: {name!r} is no variable of the copy; there are {names}")
        if not isinstance(own, dict):
            raise InputError(f"--encoding: {name!r} takes a JSON object, not {json.dumps(own)}")
        for key, value in own.items():
            if key not in CHANGEABLE:
                raise InputError(
                    f"--encoding: {key!r} of {name!r} must be one of {', '.join(CHANGEABLE)} "
                    "(--compress sets the codec)"
                )
            if value is not None:
                _check_value(name, key, value, part[name].ndim)


def _check_value(name: str, key: str, value: Any, ndim: int) -> None:
    told = f"--encoding: {key!r} of {name!r}"
    if key == "dtype":
        try:
            np.dtype(value)
        except TypeError:
            raise InputError(f"{told} is no data type: {json.dumps(value)}") from None
    elif key in ("scale_factor", "add_offset"):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"{told} must be a number, not {json.dumps(value)}")
    elif key == "chunks" and not (
        isinstance(value, list)
        and len(value) == ndim
        and all(type(each) is int and each > 0 for each in value)
    ):
        raise InputError(f"{told} takes {ndim} lengths from 1 on, not {json.dumps(value)}")


def _format(location: str) -> Format:
    return "netcdf4" if location.lower().endswith(_NETCDF_SUFFIXES) else "zarr3"


def _check_netcdf(compression: Compression | None) -> None:
    if compression is not None and compression.name == "zstd":
        raise InputError("--compress: netCDF files are compressed with gzip, not zstd")
    try:
        import dask.array  # noqa: F401
    except ImportError:
        raise InputError(
            "netCDF files are written with dask, to hold few chunks in memory: "
            "pip install 'aioxarray[dask,netcdf]'"
        ) from None


def _make(copy: Copy, *, as_json: bool) -> None:
    begun = time.monotonic()
    with _Bar() as bar:
        try:
            before = copy.make(bar.show)
        except TargetError:
            raise
        except KeyboardInterrupt:
            bar.end()
            sys.stderr.write("aioxarray: interrupted; the same command resumes the copy\n")
            raise
        except Exception as error:
            raise CommandError(
                f"cannot copy to {copy.target.name}: {one_line(error)} (what is written stays: the "
                "same command resumes the copy)"
            ) from error
    seconds = time.monotonic() - begun
    if as_json:
        done = {
            "dest": copy.target.name,
            "bytes": int(copy.dataset.nbytes),
            "resumed_blocks": before,
            "seconds": seconds,
        }
        print(json.dumps(done, indent=2))
        return
    resumed = f", resumed after {counted(before, 'block')}" if before else ""
    size = size_text(int(copy.dataset.nbytes))
    print(f"{copy.target.name}: {size} in {seconds:.3g} s{resumed}")


def _tell_plan(copy: Copy, blocks: int, *, as_json: bool) -> None:
    plan = explain(copy.dataset)
    estimate = plan.estimate()
    if as_json:
        document = {
            "dest": copy.target.name,
            "bytes": int(copy.dataset.nbytes),
            "requests": plan.requests,
            "bytes_fetched": plan.bytes_fetched,
            "bytes_are_exact": plan.bytes_are_exact,
            "seconds": estimate,
            "resumed_blocks": blocks,
            "variables": {
                name: {"decoded": reason is not None, "reason": reason}
                for name, reason in copy.ways().items()
            },
        }
        print(json.dumps(document, indent=2))
        return
    print(f"{copy.target.name}: {size_text(int(copy.dataset.nbytes))} before compression")
    print(f"to be read: {_reads(plan)}")
    if estimate is not None:
        print(f"it takes {estimate:.3g} s or more at {connection_text(*plan.connection)}")
    for name, reason in copy.ways().items():
        way = "chunks as they are stored" if reason is None else f"decoded: {reason}"
        print(f"  {name}: {way}")
    if blocks:
        print(f"an unfinished copy would be resumed: {counted(blocks, 'block')} are there")


def _reads(plan: LoadPlan) -> str:
    if plan.requests is None or plan.bytes_fetched is None:
        return f"{size_text(plan.bytes_wanted or 0)}, by requests that the library does not tell"
    most = "" if plan.bytes_are_exact else "at most "
    return f"{counted(plan.requests, 'request')}, {most}{size_text(plan.bytes_fetched)}"


class _Bar:
    """A line on the terminal with the bytes that are done, and the time left.

    It shows nothing if standard error is not a terminal.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._shows = sys.stderr.isatty()
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._width = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are there."""
        if not self._shows:
            return
        text = self.text(done, total)
        sys.stderr.write(f"\r{text.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(text)

    def text(self, done: int, total: int) -> str:
        """Return the line."""
        now = self._clock()
        if self._first is None:
            # Blocks that an earlier run had written tell nothing about the speed.
            self._first = (done, now)
        new, seconds = done - self._first[0], now - self._first[1]
        text = f"{done / max(total, 1):4.0%}  {size_text(done)} of {size_text(total)}"
        if new and seconds > 0:
            rate = new / seconds
            text += f"  {size_text(int(rate))}/s  {_duration((total - done) / rate)} left"
        return text

    def end(self) -> None:
        """Clear the line."""
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()
            self._width = 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _chunks(text: str) -> dict[str, int]:
    chunks = {}
    for part in text.split(","):
        name, _, length = part.partition("=")
        if not (name and length.isdecimal() and int(length) > 0):
            raise argparse.ArgumentTypeError(
                f"must be DIM=N, such as time=24,lat=180; got {text!r}"
            )
        chunks[name] = int(length)
    return chunks


def _compression(text: str) -> Compression:
    try:
        return Compression.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
