"""The summary of a recording, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from aioxarray._tracing.recording import most_at_once

if TYPE_CHECKING:
    from aioxarray._tracing.recording import Recording
    from aioxarray._zarr.stores.observing.records import DecodeRecord, RequestRecord

# More variables are added up.
_LISTED = 20
_HEADER = ("requests", "bytes", "queued", "transfer", "decode")
_PHASES = ("metadata", "index", "data", "write")


def summarize(recording: Recording) -> str:
    """Return the totals, and those of each phase and of each variable."""
    requests = recording.requests
    lines = [_totals(recording)]
    at_once = most_at_once((each.begun, each.ended) for each in requests)
    lines.append(f"at most {at_once} in flight; {recording.shared_count} shared chunks")
    if recording.dropped:
        lines.append(f"{recording.dropped} older requests were dropped, and are not counted")
    if not requests and not recording.decodes:
        return "\n".join(lines)
    phases = {phase: _Row() for phase in _PHASES}
    for each in requests:
        phases[each.phase].add(each)
    _add_decodes(recording.decodes, lambda _: phases["data"])
    lines += ["", *_table("phase", [(name, row) for name, row in phases.items() if row.count])]
    variables: dict[str, _Row] = {}
    for each in requests:
        variables.setdefault(name_of(each), _Row()).add(each)
    _add_decodes(recording.decodes, lambda each: variables.setdefault(name_of(each), _Row()))
    lines += ["", *_table("variable", _largest(variables))]
    return "\n".join(lines)


def bytes_text(nbytes: float) -> str:
    """Return a number of bytes as "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


class _Row:
    """The sums over some requests and their decoding."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0
        self.queued_s = 0.0
        self.transfer_s = 0.0
        self.decode_s = 0.0

    def add(self, each: RequestRecord) -> None:
        self.count += 1
        self.nbytes += each.nbytes
        self.queued_s += each.begun - each.asked
        self.transfer_s += each.ended - each.begun

    def merge(self, other: _Row) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def texts(self) -> list[str]:
        seconds = (self.queued_s, self.transfer_s, self.decode_s)
        return [str(self.count), bytes_text(self.nbytes), *(f"{each:.3f} s" for each in seconds)]


def _totals(recording: Recording) -> str:
    requests = recording.requests
    nbytes = bytes_text(sum(each.nbytes for each in requests))
    more = ", ".join(f"{name}: {count}" for name, count in recording.irregular().items())
    noun = "request" if len(requests) == 1 else "requests"
    text = f"{len(requests)} {noun}, {nbytes}, in {recording.seconds:.3f} s"
    return f"{text} ({more})" if more else text


def name_of(each: RequestRecord | DecodeRecord) -> str:
    """Return the path of the variable or group that a record is of; "(unknown)" if unknown."""
    group, name = each.place
    return f"{group.rstrip('/')}/{name}".strip("/") or (group or "(unknown)")


def _add_decodes(decodes: Iterable[DecodeRecord], row_of: Callable[[DecodeRecord], _Row]) -> None:
    for each in decodes:
        row_of(each).decode_s += each.ended - each.begun


def _largest(variables: dict[str, _Row]) -> list[tuple[str, _Row]]:
    """Return the rows by descending count; those beyond the number that is listed as one."""
    rows = sorted(variables.items(), key=lambda item: (-item[1].count, item[0]))
    if len(rows) <= _LISTED + 1:
        return rows
    rest = _Row()
    for _, row in rows[_LISTED:]:
        rest.merge(row)
    return [*rows[:_LISTED], (f"{len(rows) - _LISTED} others", rest)]


def _table(title: str, rows: list[tuple[str, _Row]]) -> list[str]:
    cells = [[title, *_HEADER], *([name, *row.texts()] for name, row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            each.rjust(width) if place else each.ljust(width)
            for place, (each, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
