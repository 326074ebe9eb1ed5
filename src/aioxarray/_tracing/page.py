"""The page of a recording: one HTML file that makes no request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from aioxarray._tracing.recording import Recording, most_at_once
from aioxarray._tracing.summary import bytes_text, name_of

# The first of them is the usual one, which the page need not emphasize.
_OUTCOMES = ("done", "failed", "cancelled")


def page(recording: Recording, verdict: str = "") -> str:
    """Return the page; ``verdict`` is a sentence for its head."""
    template = files("aioxarray._tracing").joinpath("page.html").read_text("utf-8")
    text = json.dumps(_data(recording, verdict), separators=(",", ":"))
    # Keys may contain anything, also the end of a script element.
    return template.replace("@@DATA@@", text.replace("<", "\\u003c"))


class _Names:
    """Numbers for names that are repeated."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.numbers = {name: number for number, name in enumerate(known)}

    def of(self, values: Iterable[str]) -> list[int]:
        numbers = self.numbers
        return [numbers.setdefault(value, len(numbers)) for value in values]


def _data(recording: Recording, verdict: str) -> dict[str, Any]:
    requests, decodes, begun = recording.requests, recording.decodes, recording.begun
    variables, phases, kinds, reasons = _Names(), _Names(), _Names(), _Names()
    outcomes, errors, stores = _Names(_OUTCOMES), _Names([""]), _Names()
    when = datetime.fromtimestamp(recording.wall_begun).astimezone()
    columns: dict[str, list[Any]] = {
        "start": [_us(each.begun - begun) for each in requests],
        "us": [_us(each.ended - each.begun) for each in requests],
        "queued": [_us(each.begun - each.asked) for each in requests],
        "bytes": [each.nbytes for each in requests],
        "variable": variables.of(map(name_of, requests)),
        "phase": phases.of(each.phase for each in requests),
        "kind": kinds.of(each.kind for each in requests),
        "attempt": [each.attempt for each in requests],
        "reason": reasons.of(each.reason for each in requests),
        "outcome": outcomes.of(each.outcome for each in requests),
        "error": errors.of(each.error or "" for each in requests),
        "store": stores.of(each.store for each in requests),
        "key": [each.key for each in requests],
        "range": [each.range for each in requests],
    }
    decode_columns = {
        "start": [_us(each.begun - begun) for each in decodes],
        "us": [_us(each.ended - each.begun) for each in decodes],
        "chunks": [each.chunks for each in decodes],
        "bytes": [each.nbytes for each in decodes],
        "variable": variables.of(map(name_of, decodes)),
        "key": [each.key for each in decodes],
    }
    names = {
        "variables": variables,
        "phases": phases,
        "kinds": kinds,
        "reasons": reasons,
        "outcomes": outcomes,
        "errors": errors,
        "stores": stores,
    }
    return {
        "when": when.isoformat(" ", "seconds"),
        "verdict": verdict,
        "us": max(_us(recording.seconds), max(columns["start"], default=0)),
        "totals": _totals(recording),
        "names": {name: list(each.numbers) for name, each in names.items()},
        "requests": columns,
        "decodes": decode_columns,
    }


def _us(seconds: float) -> int:
    return round(1e6 * seconds)


def _totals(recording: Recording) -> list[tuple[str, str]]:
    """Return the numbers at the head of the page, each with its name."""
    requests = recording.requests
    at_once = most_at_once((each.begun, each.ended) for each in requests)
    numbers = {
        "requests": len(requests),
        "at most in flight": at_once,
        **recording.irregular(),
        "shared chunks": recording.shared_count,
        "decoded chunks": sum(each.chunks for each in recording.decodes),
        "older, dropped": recording.dropped,
    }
    always = ("requests", "at most in flight")
    totals = [(name, str(n)) for name, n in numbers.items() if n or name in always]
    nbytes = sum(each.nbytes for each in requests)
    seconds = f"{recording.seconds:.3f} s"
    return [totals[0], ("bytes", bytes_text(nbytes)), ("time", seconds), *totals[1:]]
