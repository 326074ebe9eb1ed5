"""The requests of the demo's loads, as its server has logged them, on a time axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, SuffixByteRequest

from aioxarray._demo.measuring import Measured, Way
from aioxarray._tracing.page import page
from aioxarray._tracing.plotting import COLORS, draw_in_flight, new_figure
from aioxarray._tracing.recording import Recording
from aioxarray._zarr.stores.observing.observers import part_of, range_text
from aioxarray._zarr.stores.observing.records import RequestRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aioxarray._zarr.stores.request import Kind
    from aioxarray.testing import Request

_KINDS: Mapping[str, Kind] = {"GET": "get", "HEAD": "exists", "LIST": "list"}
# Between two loads on the page.
_GAP_S = 0.1


@dataclass(frozen=True)
class Load:
    """A load by one of the ways.

    Attributes
    ----------
    name, extent
        The name of the data, and its size in words.
    way, measured
        The way, and its shortest run.
    sizes
        The length of each object of the server, by key.
    """

    name: str
    extent: str
    way: Way
    measured: Measured
    sizes: Mapping[str, int]

    def records(self, start: float) -> Iterator[RequestRecord]:
        """Yield its requests, as those of a load that begins at ``start``."""
        served = self.measured.served
        if served is None:
            return
        later = start - self.measured.began_s
        lane = f"{self.name}: {self.way.library} {self.way.call}"
        pairs = zip(served.requests, served.times, strict=True)
        for number, (request, (begun, ended)) in enumerate(pairs):
            part = None if request.byte_range is None else part_of(request.byte_range)
            yield _LaneRecord(
                number=number,
                asked=later + begun,
                begun=later + begun,
                ended=later + (begun if ended is None else ended),
                kind=_KINDS.get(request.method, "get"),
                attempt=1,
                reason="first",
                store=self.name,
                key=request.key,
                nbytes=self._length(request),
                range="" if part is None else range_text(part),
                error="",
                aim="loaded",
                label=lane,
            )

    def _length(self, request: Request) -> int:
        size = self.sizes.get(request.key, 0) if request.method == "GET" else 0
        match request.byte_range:
            case RangeByteRequest(start=start, end=end):
                return min(size, end) - min(size, start)
            case SuffixByteRequest(suffix=suffix):
                return min(size, suffix)
        return size


class _LaneRecord(RequestRecord):
    """A record that the page shows in a row of its load, not of its variable."""

    @property
    def place(self) -> tuple[str, str]:
        return "", self.label or ""


def write_page(path: Path, loads: Sequence[Load]) -> None:
    """Write the page of a trace in which the loads follow each other."""
    records: list[RequestRecord] = []
    start = 0.0
    for load in loads:
        records += load.records(start)
        start += load.measured.seconds + _GAP_S
    begun = loads[0].measured.began_s if loads else 0.0
    recording = Recording(0.0, max(start - _GAP_S, 0.0), begun, records, (), (), 0, 0)
    text = "Loads by plain xarray and by aioxarray, one after the other, as logged by the server."
    path.write_text(page(recording, text), "utf-8")


def write_picture(path: Path, loads: Sequence[Load]) -> None:
    """Draw for each data how many requests of the blocking loads are in flight over time."""
    pairs = [pair for pair in map(list, _by_name(loads)) if len(pair) > 1]
    figure = new_figure((9.0, 0.6 + 1.45 * len(pairs)))
    rows = figure.subplots(len(pairs), sharex=True, squeeze=False)[:, 0]
    for axes, (plain, ours) in zip(rows, pairs, strict=True):
        axes.set_title(plain.extent, loc="left", fontsize="medium")
        _draw(axes, plain, COLORS["decode"], "plain xarray")
        _draw(axes, ours, COLORS["data"], "aioxarray")
        axes.legend(loc="upper right", frameon=False)
        axes.set_ylabel("in flight")
        axes.set_ylim(0)
    rows[-1].set_xlim(0)
    rows[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=130)


def _by_name(loads: Sequence[Load]) -> Iterator[Iterator[Load]]:
    """Yield the blocking loads of each data, plain xarray's first."""
    blocking = [load for load in loads if not load.way.call.startswith("await ")]
    for name in dict.fromkeys(load.name for load in loads):
        yield (load for load in blocking if load.name == name)


def _draw(axes: Axes, load: Load, color: str, library: str) -> None:
    records = list(load.records(0.0))
    label = f"{library}: {load.way.call}, {load.measured.seconds:.2f} s"
    draw_in_flight(axes, records, 0.0, color, label)
