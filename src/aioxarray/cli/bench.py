"""``aioxarray bench``: the requests and bytes a second that a store gives at many in flight.

Whole chunks (or shards) of a variable are loaded with one limit on requests in flight after the
other, and each limit reads others, so that a cache of the server does not favour the last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioxarray
from aioxarray._xarray.explaining.rendering import lined_up
from aioxarray._xarray.lazy.sizes import size_text
from aioxarray.cli import arguments as kinds
from aioxarray.cli import sources
from aioxarray.cli.failures import CommandError, InputError, one_line
from aioxarray.cli.sources import Source
from aioxarray.config import config
from aioxarray.errors import AioxarrayError, TimedOutError, did_you_mean
from aioxarray.explaining import explain

if TYPE_CHECKING:
    import xarray as xr

LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The numbers of requests in flight that are measured."""

# The values of a level are in memory at once.
_MOST_BYTES = 256 << 20
# Fewer requests show little.
_FEWEST = 8
# As fast as this share of the fastest is fast enough: more in flight only burdens the server.
_ENOUGH = 0.9
_BAR = 30


@dataclass(frozen=True)
class Measured:
    """The rates of a store with a number of requests in flight.

    Attributes
    ----------
    in_flight
        The limit on requests in flight.
    requests, bytes
        The requests made, and the bytes that came, before decoding.
    seconds
        The time from the first request to the last answer.
    median_s
        The time of a request.
    """

    in_flight: int
    requests: int
    bytes: int
    seconds: float
    median_s: float

    @property
    def requests_per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds

    def to_dict(self) -> dict[str, float]:
        """Return all figures by name."""
        rates = {"requests_per_s": self.requests_per_s, "bytes_per_s": self.bytes_per_s}
        return asdict(self) | rates


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure what a Zarr store gives at 1 to 256 requests in flight",
        description="Loads chunks of a variable with 1 to 256 requests in flight, shows requests "
        "and bytes a second, and recommends a setting. It needs data in Zarr.",
    )
    sources.add_arguments(parser)
    parser.add_argument("--var", metavar="NAME", help="the variable (default: that of most chunks)")
    parser.add_argument(
        "--requests",
        type=kinds.positive,
        default=600,
        metavar="N",
        help="the most requests for chunks in all (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=kinds.seconds,
        default=60.0,
        metavar="S",
        help="the most seconds in all, without the open (default: %(default)g)",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw a picture (with matplotlib)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print what was measured."""
    if arguments.plot is not None:
        _check_picture(arguments.plot)
    source = Source.of(arguments)
    with source.dataset() as (dataset, _):
        chosen = _chosen(dataset, arguments.var)
        measured, ended = _measure(chosen, arguments.requests, arguments.seconds)
    if not measured:
        raise CommandError(f"nothing could be measured: {ended}")
    if arguments.plot is not None:
        _plot(measured, source.name, arguments.plot)
    best, reason = recommendation(measured)
    if arguments.json:
        document = {
            "source": source.name,
            "variable": str(chosen.name),
            "levels": [each.to_dict() for each in measured],
            "concurrency": best,
            "ended": ended,
        }
        print(json.dumps(document, indent=2))
        return
    print(f"{source.name}: chunks of {chosen.name}\n")
    print("\n".join(_table(measured)))
    if ended:
        print(f"\nended early: {ended}")
    print(f"\nconcurrency={best}: {reason}")


def _chosen(dataset: xr.Dataset, name: str | None) -> xr.DataArray:
    """Return the variable to read."""
    if name is not None and name not in dataset.variables:
        hint = did_you_mean(name, list(map(str, dataset.variables)))
        raise InputError(f"--var: there is no variable {name!r}{hint}")
    names = dataset.variables if name is None else [name]
    counts = {
        each: math.prod(map(len, _edges(dataset[each])))
        for each in names
        if explain(dataset[each].variable).requests
    }
    if not counts:
        raise InputError(
            "there is no variable of which single chunks are requested: bench reads Zarr"
            if name is None
            else f"--var: chunks of {name!r} are not requested one by one: bench reads Zarr"
        )
    return dataset[max(counts, key=counts.__getitem__)]


def _edges(array: xr.DataArray) -> list[range]:
    """Return the starts of the chunks along each axis, or those of the shards."""
    encoding = array.encoding
    lengths = encoding.get("shards") or encoding.get("chunks") or array.shape
    return [range(0, size, max(step, 1)) for size, step in zip(array.shape, lengths, strict=True)]


def _chunks(array: xr.DataArray) -> Iterator[xr.DataArray]:
    """Yield the chunks, again and again, without their coordinates."""
    bare = array.reset_coords(drop=True).drop_vars(list(array.coords))
    edges = _edges(bare)
    while True:
        for starts in itertools.product(*edges):
            pieces = zip(bare.dims, starts, edges, strict=True)
            yield bare.isel({dim: slice(at, at + axis.step) for dim, at, axis in pieces})


def shares(most: int, chunk_bytes: int) -> dict[int, int]:
    """Return how many chunks each level reads: ``most`` in all.

    Levels that could not fill their places are left out.
    """
    fits = max(1, _MOST_BYTES // max(chunk_bytes, 1))
    least: dict[int, int] = {}
    for level in LEVELS:
        count = min(max(level, _FEWEST), fits, most - sum(least.values()))
        if count < level:
            break
        least[level] = count
    times = most / sum(least.values())
    return {level: min(int(count * times), fits) for level, count in least.items()}


def _measure(array: xr.DataArray, most: int, seconds: float) -> tuple[list[Measured], str]:
    """Return what was measured, and why it ended early; "" if it did not."""
    chunks = _chunks(array)
    size = next(_chunks(array)).nbytes
    deadline = time.monotonic() + seconds
    measured: list[Measured] = []
    # Every chunk is requested, and no request twice.
    with config.set({"cache": 0, "hedge": False}):
        for level, count in shares(most, size).items():
            part = list(itertools.islice(chunks, count))
            left = deadline - time.monotonic()
            if left <= 0:
                return measured, f"{seconds:g} seconds have passed"
            try:
                measured.append(_level(part, level, left))
            except TimedOutError:
                return measured, f"{seconds:g} seconds have passed"
            except AioxarrayError as error:
                return measured, f"with {level} in flight, {one_line(error)}"
    return measured, ""


def _level(part: list[xr.DataArray], level: int, seconds: float) -> Measured:
    with aioxarray.trace(scope="block") as t:
        aioxarray.compute(part, concurrency=level, timeout=seconds)
    requests = t.requests
    took = float(requests["end"].max() - requests["start"].min())
    return Measured(
        level,
        len(requests),
        int(requests["bytes"].sum()),
        max(took, 1e-6),
        float(requests["transfer_s"].median()),
    )


def recommendation(measured: Sequence[Measured]) -> tuple[int, str]:
    """Return the setting ``concurrency`` that serves this store best, and why."""
    fastest = max(measured, key=lambda each: each.bytes_per_s)
    enough = next(each for each in measured if each.bytes_per_s >= _ENOUGH * fastest.bytes_per_s)
    rate = size_text(int(enough.bytes_per_s))
    if enough is measured[-1] and len(measured) > 1:
        return enough.in_flight, f"{rate}/s, and more in flight may bring more"
    return (
        enough.in_flight,
        f"{rate}/s, {enough.bytes_per_s / fastest.bytes_per_s:.0%} of the most that was measured",
    )


def _table(measured: Sequence[Measured]) -> list[str]:
    most = max(each.bytes_per_s for each in measured)
    rows = [("in flight", "requests", "requests/s", "bytes/s", "median", "")]
    for each in measured:
        rows.append(
            (
                str(each.in_flight),
                str(each.requests),
                f"{each.requests_per_s:,.0f}",
                size_text(int(each.bytes_per_s)),
                f"{each.median_s * 1000:,.1f} ms",
                "█" * round(_BAR * each.bytes_per_s / most),
            )
        )
    return lined_up(rows, texts=(5,))


def _check_picture(path: str) -> None:
    """Refuse a picture that cannot be drawn, before anything is measured."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise InputError("--plot draws with matplotlib: pip install matplotlib") from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in known:
        raise InputError(
            f"--plot: FILE must end in one of {', '.join(sorted(known))}; got {path!r}"
        )
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--plot: there is no folder {Path(path).absolute().parent}")


def _plot(measured: Sequence[Measured], name: str, path: str) -> None:
    """Draw the bytes a second, and the time of a request, over the requests in flight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    levels = [each.in_flight for each in measured]
    axes.plot(levels, [each.bytes_per_s / 1e6 for each in measured], "o-", color="C0")
    axes.yaxis.label.set_color("C0")
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.set(xlabel="requests in flight", ylabel="MB/s", title=name)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(levels, [each.median_s * 1000 for each in measured], "s--", color="C1")
    other.set_ylabel("median time of a request, ms", color="C1")
    other.set_ylim(bottom=0)
    figure.savefig(path)
