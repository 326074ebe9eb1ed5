"""The plan of a load beside the requests that a trace recorded, and why they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from aioxarray._tracing.recording import most_in_a_row
from aioxarray._xarray.explaining.rendering import counted, html_table, lined_up, number, size
from aioxarray._zarr.stores.observing.records import place_of

if TYPE_CHECKING:
    from aioxarray._tracing.recording import Recording
    from aioxarray._xarray.explaining.load_plan import LoadPlan, VariablePlan
    from aioxarray._zarr.stores.observing.records import BroughtRecord, RequestRecord

REASONS = {
    "cached": "in the cache by then",
    "shared": "fetched by another read at that time",
    "together": "neighbours in a shard, fetched with one request",
    "not made": "the load failed, was cancelled, or read less",
    "gone": "for chunks that the cache or another read had when the plan was made",
    "in parts": "for the rest of shards, of which other chunks were there",
    "retries": "made again after a failure",
    "silent": "made again because a request was silent",
    "hedges": "made again because a request was slow",
    "others": "made by other calls",
}
"""Why there were more or fewer requests than planned; the first four mean fewer."""

_MADE_AGAIN = {"retry": "retries", "silence": "silent", "hedge": "hedges"}
_HEADINGS = (
    "variable",
    "planned",
    "made",
    "bytes planned",
    "bytes fetched",
    "trips planned",
    "in a row",
    "why",
)
_TEXTS = (0, 7)


@dataclass(frozen=True)
class VariableComparison:
    """The planned and the recorded requests of one variable.

    Attributes
    ----------
    name : str
        The name of the variable, as in its plan.
    planned_requests, planned_bytes, planned_round_trips : int or None
        The counts of the plan; None if they are opaque.
    requests, bytes : int
        The requests that were made, and the bytes that they brought.
    in_a_row : int
        The most requests of which each was asked for after the one before had ended. It is that
        of the plan, unless requests waited for others because of the limits, or were made again.
    failed, cancelled : int
        Those of the requests that ended so.
    reasons : dict of str to int
        The number of requests more (positive) or fewer (negative) by reason; see `REASONS`. They
        add up to the difference if the planned requests are known.
    """

    name: str
    planned_requests: int | None
    requests: int
    planned_bytes: int | None
    bytes: int
    planned_round_trips: int | None
    in_a_row: int
    failed: int
    cancelled: int
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A plan beside what a trace recorded, from `Trace.compare`.

    Attributes
    ----------
    variables : tuple of VariableComparison
        Those variables of the plan for which requests were planned or made.
    total : VariableComparison
        The sums.
    elsewhere : dict of str to int
        The recorded requests that are for none of these variables, by phase: "metadata", "index",
        "data" or "write".
    dropped : int
        Requests that the trace no longer has. They seem not to have been made.
    """

    variables: tuple[VariableComparison, ...]
    total: VariableComparison
    elsewhere: dict[str, int]
    dropped: int

    def table(self) -> pd.DataFrame:
        """Return a table with a row for each variable, and a column for each reason."""
        rows = [_row(each) for each in self.variables]
        table = pd.DataFrame(rows, columns=list(_row(self.total))).set_index("name")
        return table.astype("Int64")

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as dicts, lists, texts and numbers, ready for JSON."""
        return {
            "total": vars(self.total),
            "variables": [vars(each) for each in self.variables],
            "elsewhere": self.elsewhere,
            "dropped": self.dropped,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._headline()}>"

    def __str__(self) -> str:
        lines = [self._headline()]
        if self.variables:
            lines += ["", *lined_up([_HEADINGS, *map(_cells, self.variables)], _TEXTS)]
        return "\n".join([*lines, *([""] if self._notes() else []), *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(
            self._headline(), _HEADINGS, list(map(_cells, self.variables)), _TEXTS, self._notes()
        )

    def _headline(self) -> str:
        total = self.total
        return (
            f"{number(total.planned_requests)} requests planned, {number(total.requests)} made; "
            f"{size(total.planned_bytes)} planned, {size(total.bytes)} fetched"
        )

    def _notes(self) -> list[str]:
        total = self.total
        notes = [f"{reason}: {REASONS[reason]}" for reason in total.reasons]
        if total.failed or total.cancelled:
            notes.append(f"{total.failed:,} requests failed, {total.cancelled:,} were cancelled")
        notes += [
            f"{counted(count, 'request')} of the phase {phase!r} beside those of the plan"
            for phase, count in self.elsewhere.items()
        ]
        if self.dropped:
            notes.append(
                f"{counted(self.dropped, 'older request')} dropped from the trace, which therefore "
                "seem not to have been made: trace(most=…) keeps more"
            )
        return notes


def compare(plan: LoadPlan, recording: Recording) -> Comparison:
    """Return ``plan`` beside ``recording``."""
    found = _Found(plan.variables)
    requests: dict[int, list[RequestRecord]] = {}
    elsewhere: Counter[str] = Counter()
    for record in recording.requests:
        index = None
        if record.phase == "data":
            index = found.variable(record.store, record.key, record.label)
        if index is None:
            elsewhere[record.phase] += 1
        else:
            requests.setdefault(index, []).append(record)
    brought: dict[int, list[BroughtRecord]] = {}
    for part in recording.brought:
        index = found.variable(None, part.key, part.label)
        if index is not None:
            brought.setdefault(index, []).append(part)
    compared = [
        _compared(each, requests.get(index, []), brought.get(index, []))
        for index, each in enumerate(plan.variables)
        if each.requests != 0 or index in requests or index in brought
    ]
    mine = [record for each in requests.values() for record in each]
    return Comparison(
        tuple(compared), _total(plan, compared, mine), dict(elsewhere), recording.dropped
    )


class _Found:
    """The variables of a plan by the Zarr arrays that they are read from."""

    def __init__(self, variables: Sequence[VariablePlan]) -> None:
        self._variables = variables
        self._by_path: dict[str, list[int]] = {}
        for index, each in enumerate(variables):
            for _, path in each.arrays:
                self._by_path.setdefault(path, []).append(index)

    def variable(self, store: str | None, key: str, label: str | None) -> int | None:
        """Return the index of the variable that the value at ``key`` is for; None if unknown."""
        group, name = place_of(key, None)
        path = f"{group}/{name}".strip("/")
        indexes = self._by_path.get(path, ())
        if store is not None:
            indexes = [at for at in indexes if (store, path) in self._variables[at].arrays]
        for index in indexes:
            if self._variables[index].label == label:
                return index
        return indexes[0] if indexes else None


def _compared(
    planned: VariablePlan, records: Sequence[RequestRecord], brought: Sequence[BroughtRecord]
) -> VariableComparison:
    outcomes = Counter(each.outcome for each in records)
    return VariableComparison(
        planned.name,
        planned.requests,
        len(records),
        planned.bytes_fetched,
        sum(each.nbytes for each in records),
        planned.round_trips,
        most_in_a_row((each.asked, each.ended) for each in records),
        outcomes["failed"],
        outcomes["cancelled"],
        _reasons(planned, records, Counter(each.source for each in brought)),
    )


def _reasons(
    planned: VariablePlan, records: Sequence[RequestRecord], brought: Mapping[str, int]
) -> dict[str, int]:
    """Return the requests more or fewer than planned by reason."""
    made: Counter[str] = Counter(each.reason for each in records)
    numbers = dict.fromkeys(REASONS, 0)
    for reason, name in _MADE_AGAIN.items():
        numbers[name] = made[reason]
    if planned.requests is not None:
        numbers |= _differences(planned, planned.requests, made["first"], brought)
    return {name: count for name, count in numbers.items() if count}


def _differences(
    planned: VariablePlan, expected: int, made: int, brought: Mapping[str, int]
) -> dict[str, int]:
    """Return why so many first attempts were ``made`` where the plan ``expected`` others."""
    # The plan left out the chunks that were cached or in flight when it was made.
    known = planned.shared
    numbers = {}
    for source in ("cached", "shared"):
        count = brought.get(source, 0)
        numbers[source] = -max(0, count - known)
        known = max(0, known - count)
        if planned.shards:
            # A chunk of a shard need not have a request of its own.
            numbers[source] = -min(-numbers[source], max(0, expected - made))
        expected += numbers[source]
    more = made - expected
    if more < 0:
        numbers["not made" if planned.requests_are_exact else "together"] = more
    elif planned.shards and any(brought.values()):
        numbers["in parts"] = more
    else:
        numbers["gone"] = min(known, more)
        # One call makes no first attempt twice.
        numbers["others"] = more - numbers["gone"]
    return numbers


def _total(
    plan: LoadPlan, compared: Sequence[VariableComparison], records: Iterable[RequestRecord]
) -> VariableComparison:
    reasons: Counter[str] = Counter()
    for each in compared:
        reasons.update(each.reasons)
    return VariableComparison(
        "total",
        plan.requests,
        sum(each.requests for each in compared),
        plan.bytes_fetched,
        sum(each.bytes for each in compared),
        plan.round_trips,
        most_in_a_row((each.asked, each.ended) for each in records),
        sum(each.failed for each in compared),
        sum(each.cancelled for each in compared),
        {name: reasons[name] for name in REASONS if reasons[name]},
    )


def _row(each: VariableComparison) -> dict[str, Any]:
    numbers = {name: value for name, value in vars(each).items() if name != "reasons"}
    return {**numbers, **{name: each.reasons.get(name, 0) for name in REASONS}}


def _cells(each: VariableComparison) -> tuple[str, ...]:
    return (
        each.name,
        number(each.planned_requests),
        number(each.requests),
        size(each.planned_bytes),
        size(each.bytes),
        number(each.planned_round_trips),
        number(each.in_a_row),
        ", ".join(f"{abs(count):,} {reason}" for reason, count in each.reasons.items()),
    )
