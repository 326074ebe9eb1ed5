"""Plans of loads as text, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aioxarray._xarray.lazy.sizes import size_text

if TYPE_CHECKING:
    from aioxarray._xarray.explaining.load_plan import LoadPlan, VariablePlan

# The most variables that text and HTML show: those with the most requests.
_SHOWN = 40
_OPAQUE = "opaque"
_HEADINGS = (
    "variable",
    "chunks",
    "requests",
    "ranges",
    "wanted",
    "fetched",
    "over-read",
    "round trips",
    "memory",
    "way",
)
# The columns with texts; the others have numbers.
_TEXTS = (0, 9)


def headline(plan: LoadPlan) -> str:
    """Return the sums of ``plan`` in one line."""
    known = [each for each in plan.variables if each.requests is not None]
    opaque = len(plan.variables) - len(known)
    requests = sum(each.requests or 0 for each in known)
    fetched = sum(each.bytes_fetched or 0 for each in known)
    wanted = sum(each.bytes_wanted or 0 for each in plan.variables)
    most = "" if all(each.requests_are_exact for each in known) else "at most "
    parts = [] if opaque and not known else [f"{most}{_counted(requests, 'request')}"]
    most = "" if all(each.bytes_are_exact for each in known) else "at most "
    trips = max((each.round_trips or 0 for each in known), default=0)
    if requests:
        parts.append(_counted(trips, "round trip"))
        parts.append(f"{most}{size_text(fetched)} fetched")
    parts.append(f"{size_text(wanted)} wanted")
    if plan.memory is not None:
        parts.append(f"{size_text(plan.memory)} of memory besides the result")
    if opaque:
        parts.append(f"{_counted(opaque, 'variable')} opaque")
    return ", ".join(parts)


def as_text(plan: LoadPlan) -> str:
    """Return ``plan`` as text: the sums, a table, the ways, and advice."""
    rows = [_HEADINGS, *_rows(plan)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [headline(plan)]
    if len(rows) > 1:
        lines.append("")
        for row in rows:
            cells = zip(row, widths, range(len(row)), strict=True)
            padded = [
                cell.ljust(width) if column in _TEXTS else cell.rjust(width)
                for cell, width, column in cells
            ]
            lines.append("  ".join(padded).rstrip())
    lines += ["", *_notes(plan)] if _notes(plan) else []
    return "\n".join(lines)


def as_html(plan: LoadPlan) -> str:
    """Return ``plan`` as HTML that needs nothing else, in the colours of the page around it."""
    cell = "padding:0.2em 0.8em;border-bottom:1px solid color-mix(in srgb,currentColor 20%,#0000);"
    number = f"{cell}text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap"
    text = f"{cell}text-align:left"

    def line(row: Sequence[str], tag: str) -> str:
        cells = [
            f'<{tag} style="{text if column in _TEXTS else number}">{html.escape(value)}</{tag}>'
            for column, value in enumerate(row)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    rows = _rows(plan)
    table = ""
    if rows:
        body = "".join(line(row, "td") for row in rows)
        table = (
            '<table style="border-collapse:collapse;color:inherit;background:none">'
            f"<thead>{line(_HEADINGS, 'th')}</thead><tbody>{body}</tbody></table>"
        )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(plan))
    listed = f'<ul style="margin:0.6em 0;padding-left:1.2em">{notes}</ul>' if notes else ""
    return (
        '<div style="color:inherit;background:none;overflow-x:auto">'
        f"<p><strong>{html.escape(headline(plan))}</strong></p>{table}{listed}</div>"
    )


def _rows(plan: LoadPlan) -> list[tuple[str, ...]]:
    return [_row(each) for each in _shown(plan)]


def _shown(plan: LoadPlan) -> list[VariablePlan]:
    read = [each for each in plan.variables if each.way != "memory"]
    if len(read) <= _SHOWN:
        return read
    chosen = sorted(range(len(read)), key=lambda index: -(read[index].requests or 0))[:_SHOWN]
    return [read[index] for index in sorted(chosen)]


def _row(variable: VariablePlan) -> tuple[str, ...]:
    most = "" if variable.requests_are_exact else "≤ "
    most_bytes = "" if variable.bytes_are_exact else "≤ "
    over_read = variable.over_read
    return (
        variable.name,
        _number(variable.chunks),
        _number(variable.requests, most),
        _number(variable.ranges, most if variable.ranges else ""),
        _size(variable.bytes_wanted),
        _size(variable.bytes_fetched, most_bytes),
        "" if over_read is None else f"{most_bytes}{over_read:,.1f}",
        _number(variable.round_trips),
        _size(variable.memory),
        variable.way,
    )


def _number(count: int | None, most: str = "") -> str:
    return _OPAQUE if count is None else f"{most}{count:,}"


def _size(count: int | None, most: str = "") -> str:
    return _OPAQUE if count is None else f"{most}{size_text(count)}"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _notes(plan: LoadPlan) -> list[str]:
    """Return lines about the variables that are not shown, the ways, and advice."""
    read = [each for each in plan.variables if each.way != "memory"]
    reasons = dict.fromkeys(f"{each.way}: {each.reason}" for each in _shown(plan))
    notes = list(reasons)
    if hidden := len(read) - len(_shown(plan)):
        notes.append(f"{_counted(hidden, 'further variable')} with no more requests each")
    if in_memory := len(plan.variables) - len(read):
        notes.append(f"{_counted(in_memory, 'variable')} in memory already")
    if shared := sum(each.shared for each in plan.variables):
        notes.append(f"{_counted(shared, 'chunk')} cached, or fetched by another read")
    return notes + [f"advice: {text}" for text in plan.advice]
