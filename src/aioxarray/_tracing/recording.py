"""A recording: the records of a trace up to one moment, and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from aioxarray._zarr.stores.observing.records import (
        BroughtRecord,
        CallRecord,
        DecodeRecord,
        RequestRecord,
    )


@dataclass(frozen=True)
class Recording:
    """The records of a trace up to one moment.

    Attributes
    ----------
    begun, ended
        When the trace began and ended, on the clock of the records.
    wall_begun
        When it began, in seconds since 1970.
    requests, decodes, calls
        The records, in the order in which they began; those of calls, in which they ended.
    shared_count
        How many reads have waited for a part that another read was fetching.
    dropped
        How many older records of requests were dropped.
    brought
        The records of chunks for which no request was made.
    """

    begun: float
    ended: float
    wall_begun: float
    requests: Sequence[RequestRecord]
    decodes: Sequence[DecodeRecord]
    calls: Sequence[CallRecord]
    shared_count: int
    dropped: int
    brought: Sequence[BroughtRecord] = ()

    @property
    def seconds(self) -> float:
        """How long the trace has lasted."""
        return self.ended - self.begun

    def irregular(self) -> dict[str, int]:
        """Return the numbers of requests that were repeated or did not succeed, but for zeros."""
        reasons = Counter(each.reason for each in self.requests)
        outcomes = Counter(each.outcome for each in self.requests)
        numbers = {
            "retries": reasons["retry"],
            "for silent ones": reasons["silence"],
            "hedges": reasons["hedge"],
            "failed": outcomes["failed"],
            "cancelled": outcomes["cancelled"],
        }
        return {name: number for name, number in numbers.items() if number}

    def request_table(self) -> pd.DataFrame:
        """Return a row for each request; see `aioxarray.tracing.Trace.requests`."""
        rows = self.requests
        places = [each.place for each in rows]
        return pd.DataFrame(
            {
                "start": [each.begun - self.begun for each in rows],
                "end": [each.ended - self.begun for each in rows],
                "queued_s": [each.begun - each.asked for each in rows],
                "transfer_s": [each.ended - each.begun for each in rows],
                "bytes": [each.nbytes for each in rows],
                "kind": [each.kind for each in rows],
                "phase": [each.phase for each in rows],
                "group": [group for group, _ in places],
                "variable": [name for _, name in places],
                "key": [each.key for each in rows],
                "range": [each.range for each in rows],
                "attempt": [each.attempt for each in rows],
                "reason": [each.reason for each in rows],
                "outcome": [each.outcome for each in rows],
                "error": [each.error or "" for each in rows],
                "store": [each.store for each in rows],
            }
        )

    def decode_table(self) -> pd.DataFrame:
        """Return a row for each step of decoding; see `aioxarray.tracing.Trace.decodes`."""
        rows = self.decodes
        places = [each.place for each in rows]
        return pd.DataFrame(
            {
                "start": [each.begun - self.begun for each in rows],
                "end": [each.ended - self.begun for each in rows],
                "decode_s": [each.ended - each.begun for each in rows],
                "chunks": [each.chunks for each in rows],
                "bytes": [each.nbytes for each in rows],
                "group": [group for group, _ in places],
                "variable": [name for _, name in places],
                "key": [each.key for each in rows],
            }
        )


def most_at_once(intervals: Iterable[tuple[float, float]]) -> int:
    """Return how many of the intervals, from a begin to an end, overlap at most."""
    steps = sorted(
        step for begun, ended in intervals for step in ((begun, 1), (max(begun, ended), -1))
    )
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def most_in_a_row(intervals: Iterable[tuple[float, float]]) -> int:
    """Return the length of the longest chain of intervals that each begin after the one before."""
    count, until = 0, float("-inf")
    for begun, ended in sorted(intervals, key=lambda each: each[1]):
        if begun >= until:
            count += 1
            until = ended
    return count


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the seconds in which at least one of the intervals is open."""
    total, until = 0.0, float("-inf")
    for begun, ended in sorted(intervals):
        total += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return total
