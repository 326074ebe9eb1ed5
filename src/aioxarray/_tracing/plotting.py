"""Pictures of recordings, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aioxarray._tracing.summary import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aioxarray._tracing.recording import Recording
    from aioxarray._zarr.stores.observing.records import RequestRecord

# The colors of the page, in the order of the legend.
COLORS = {
    "metadata": "#7b52c7",
    "index": "#0b8a7d",
    "data": "#2a6fdb",
    "write": "#b86a00",
    "decode": "#7d8b9c",
    "failed": "#cf222e",
    "cancelled": "#b03a86",
}
# More variables would have unreadable names.
_NAMED = 30
_WIDTH_IN = 9.0
# The heights of the timeline: of a variable, and of the least and the most in all.
_ROW_IN, _LEAST_IN, _MOST_IN = 0.3, 1.2, 8.0


def plot(recording: Recording) -> Figure:
    """Return a figure of the requests of each variable over time, and of those in flight."""
    names: dict[str, int] = {}
    for name in (*map(name_of, recording.requests), *map(name_of, recording.decodes)):
        names.setdefault(name, len(names))
    tall = min(_MOST_IN, max(_LEAST_IN, _ROW_IN * len(names)))
    figure = new_figure((_WIDTH_IN, tall + 2.2))
    lanes, flights = figure.subplots(2, sharex=True, height_ratios=[tall, 1.1])
    _draw_lanes(lanes, recording, names)
    draw_in_flight(flights, recording.requests, recording.begun, COLORS["data"])
    flights.set_ylim(0)
    flights.set_ylabel("in flight")
    flights.set_xlim(0, recording.seconds or 1)
    flights.set_xlabel("seconds")
    return figure


def new_figure(inches: tuple[float, float]) -> Figure:
    """Return an empty figure of so many inches."""
    try:
        # Without pyplot, which would keep the figure and choose a window system.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot() draws with matplotlib, which is not installed: pip install matplotlib, or "
            "write a page with to_html(path)"
        ) from error
    return Figure(inches, layout="constrained")


def _draw_lanes(axes: Axes, recording: Recording, names: Mapping[str, int]) -> None:
    """Draw a row for each variable, in which what overlaps is translucent."""
    spans: dict[str, list[tuple[float, float, float]]] = {}
    for request in recording.requests:
        start = request.begun - recording.begun
        spans.setdefault(_kind_of(request), []).append(
            (start, request.ended - request.begun, names[name_of(request)])
        )
    for decode in recording.decodes:
        start = decode.begun - recording.begun
        spans.setdefault("decode", []).append(
            (start, decode.ended - decode.begun, names[name_of(decode)])
        )
    _bars(axes, {kind: spans[kind] for kind in COLORS if kind in spans})
    if len(names) <= _NAMED:
        axes.set_yticks(range(len(names)), list(names))
    else:
        axes.set_ylabel(f"{len(names)} variables")
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if spans:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=7, frameon=False)


def _bars(axes: Axes, spans: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    for kind, each in spans.items():
        starts, widths, rows = zip(*each, strict=True)
        axes.barh(rows, widths, 0.8, starts, color=COLORS[kind], alpha=0.5, label=kind, linewidth=0)


def draw_in_flight(
    axes: Axes, requests: Sequence[RequestRecord], zero: float, color: str, label: str = ""
) -> None:
    """Draw how many of ``requests`` are in flight, at seconds after ``zero``."""
    steps = sorted(
        step for each in requests for step in ((each.begun, 1), (max(each.begun, each.ended), -1))
    )
    times, counts = [0.0], [0]
    for when, step in steps:
        times.append(when - zero)
        counts.append(counts[-1] + step)
    axes.fill_between(
        times, counts, step="post", color=color, alpha=0.55, linewidth=0, label=label or None
    )


def _kind_of(request: RequestRecord) -> str:
    return request.phase if request.outcome == "done" else request.outcome
