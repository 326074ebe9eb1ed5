"""Plans of loads as text, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Container, Sequence
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
    parts = [] if opaque and not known else [f"{most}{counted(requests, 'request')}"]
    most = "" if all(each.bytes_are_exact for each in known) else "at most "
    trips = max((each.round_trips or 0 for each in known), default=0)
    if requests:
        parts.append(counted(trips, "round trip"))
        parts.append(f"{most}{size_text(fetched)} fetched")
    parts.append(f"{size_text(wanted)} wanted")
    if plan.memory is not None:
        parts.append(f"{size_text(plan.memory)} of memory besides the result")
    if opaque:
        parts.append(f"{counted(opaque, 'variable')} opaque")
    return ", ".join(parts)


def as_text(plan: LoadPlan) -> str:
    """Return ``plan`` as text: the sums, a table, the ways, and advice."""
    rows = _rows(plan)
    lines = [headline(plan)]
    lines += ["", *lined_up([_HEADINGS, *rows], _TEXTS)] if rows else []
    lines += ["", *_notes(plan)] if _notes(plan) else []
    return "\n".join(lines)


def lined_up(rows: Sequence[Sequence[str]], texts: Container[int]) -> list[str]:
    """Return ``rows`` as lines with columns of equal width; those in ``texts`` are on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def as_html(plan: LoadPlan) -> str:
    """Return ``plan`` as HTML; see `html_table`."""
    return html_table(headline(plan), _HEADINGS, _rows(plan), _TEXTS, _notes(plan))


def html_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Container[int],
    notes: Sequence[str],
) -> str:
    """Return HTML that needs nothing else, in the colours of the page around it.

    It has a title, a table of ``rows``, and a list of notes. The columns in ``texts`` are on the
    left; the others have numbers.
    """
    cell = "padding:0.2em 0.8em;border-bottom:1px solid color-mix(in srgb,currentColor 20%,#0000);"
    digits = f"{cell}text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap"
    text = f"{cell}text-align:left"

    def line(row: Sequence[str], tag: str) -> str:
        cells = [
            f'<{tag} style="{text if column in texts else digits}">{html.escape(value)}</{tag}>'
            for column, value in enumerate(row)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    table = ""
    if rows:
        body = "".join(line(row, "td") for row in rows)
        table = (
            '<table style="border-collapse:collapse;color:inherit;background:none">'
            f"<thead>{line(headings, 'th')}</thead><tbody>{body}</tbody></table>"
        )
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    listed = f'<ul style="margin:0.6em 0;padding-left:1.2em">{items}</ul>' if items else ""
    return (
        '<div style="color:inherit;background:none;overflow-x:auto">'
        f"<p><strong>{html.escape(title)}</strong></p>{table}{listed}</div>"
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
        number(variable.chunks),
        number(variable.requests, most),
        number(variable.ranges, most if variable.ranges else ""),
        size(variable.bytes_wanted),
        size(variable.bytes_fetched, most_bytes),
        "" if over_read is None else f"{most_bytes}{over_read:,.1f}",
        number(variable.round_trips),
        size(variable.memory),
        variable.way,
    )


def number(count: int | None, most: str = "") -> str:
    """Return a count as text, after ``most`` ("≤ " or nothing); "opaque" for None."""
    return _OPAQUE if count is None else f"{most}{count:,}"


def size(count: int | None, most: str = "") -> str:
    """Return a number of bytes as text, as `number` does."""
    return _OPAQUE if count is None else f"{most}{size_text(count)}"


def connection_text(latency: float, bandwidth: float) -> str:
    """Return the connection for which a time is estimated, in words."""
    return f"{1e3 * latency:.3g} ms for each request and {size_text(int(bandwidth))} a second"


def counted(count: int, name: str) -> str:
    """Return a count with the name of what is counted, in the singular or plural."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _notes(plan: LoadPlan) -> list[str]:
    """Return lines about the variables that are not shown, the ways, and advice."""
    read = [each for each in plan.variables if each.way != "memory"]
    reasons = dict.fromkeys(f"{each.way}: {each.reason}" for each in _shown(plan))
    notes = list(reasons)
    if hidden := len(read) - len(_shown(plan)):
        notes.append(f"{counted(hidden, 'further variable')} with no more requests each")
    if in_memory := len(plan.variables) - len(read):
        notes.append(f"{counted(in_memory, 'variable')} in memory already")
    if shared := sum(each.shared for each in plan.variables):
        notes.append(f"{counted(shared, 'chunk')} cached, or fetched by another read")
    return notes + [f"advice: {text}" for text in plan.advice]
