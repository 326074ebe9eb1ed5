"""The verdict on a recording: what the time was spent on, if that is clear."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aioxarray._tracing.recording import covered, most_at_once
from aioxarray._tracing.summary import bytes_text

if TYPE_CHECKING:
    from aioxarray._tracing.recording import Recording
    from aioxarray._zarr.stores.observing.records import CallRecord, DecodeRecord, RequestRecord

Bottleneck = Literal[
    "latency",
    "bandwidth",
    "decoding",
    "your code",
    "the server refuses",
    "concurrency",
    "opening",
    "unclear",
]

# The share of the time that makes something the bottleneck.
_MOST = 0.6
# The share of the capacity of the decoding threads.
_BUSY = 0.7
# The share of requests that are refused.
_REFUSED = 0.1
_REFUSALS = frozenset({"HTTP 429", "HTTP 503", "SlowDown", "TooManyRequests", "Throttling"})
# Small answers show how long every request has to wait; a few of them are enough.
_SMALL_BYTES = 16_000
_FEW = 3
# Requests that take so many times as long as small ones wait for their bytes; those that take less
# than the second number, for the answer to begin. Between these it is unclear.
_LONGER = 3.0
_SIMILAR = 1.7


@dataclass(frozen=True)
class Verdict:
    """The bottleneck of the recorded work.

    Attributes
    ----------
    bottleneck
        "latency", "bandwidth", "decoding", "your code", "the server refuses", "concurrency",
        "opening" or "unclear".
    evidence
        The numbers that show it.
    advice
        A sentence that says what helps.
    """

    bottleneck: Bottleneck
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"Bottleneck: {self.bottleneck}. {self.evidence} {self.advice}".rstrip()


def judge(recording: Recording, thread_count: int) -> Verdict:
    """Return the verdict; ``thread_count`` is the number of decoding threads."""
    requests, decodes, seconds = recording.requests, recording.decodes, recording.seconds
    if not requests and not decodes:
        return Verdict("unclear", "Nothing was recorded.", "")
    refused = [each for each in requests if each.error in _REFUSALS]
    if len(refused) >= max(_FEW, _REFUSED * len(requests)):
        return Verdict(
            "the server refuses",
            f"{len(refused)} of {len(requests)} requests were refused ({refused[0].error}).",
            'Lower the limit, or let it be found with config.set(concurrency="auto").',
        )
    moving = [each for each in requests if each.phase in ("data", "write") and each.error == ""]
    opens = [each for each in recording.calls if each.aim == "opened"]
    in_flight = _covered(requests) / seconds
    outside = 1 - _covered([*requests, *decodes, *recording.calls]) / seconds
    # A load that goes on meanwhile may be slow by itself.
    others = [each for each in recording.calls if each.aim != "opened"]
    opening = (_covered(recording.calls) - _covered(others)) / seconds
    decoding = sum(each.ended - each.begun for each in decodes) / (seconds * thread_count)
    if outside >= _MOST:
        return Verdict(
            "your code",
            f"In {outside:.0%} of {seconds:.2f} s, no call of aioxarray was under way.",
            "Look for computation, or a blocked event loop, between the calls.",
        )
    if opening >= _MOST:
        return _of_opens(opens, requests, opening, seconds)
    if decoding >= _BUSY:
        return Verdict(
            "decoding",
            f"The decoding threads ({thread_count}) were busy in {decoding:.0%} of the time.",
            "Use a codec that decodes faster, or more cores.",
        )
    if moving and in_flight >= _MOST and (found := _of_requests(requests, moving)) is not None:
        return found
    return Verdict(
        "unclear",
        f"Requests were in flight {in_flight:.0%} of the time, opens took {opening:.0%}, the "
        f"decoding threads were busy in {decoding:.0%}, and {outside:.0%} was outside of calls.",
        "The summary and the page show more.",
    )


def _covered(records: Iterable[RequestRecord | DecodeRecord | CallRecord]) -> float:
    """Return the seconds in which at least one of the records is open."""
    return covered((each.begun, each.ended) for each in records)


def _of_opens(
    opens: Sequence[CallRecord], requests: Sequence[RequestRecord], share: float, seconds: float
) -> Verdict:
    """Return the verdict that opens take most of the time."""
    asked = [each for each in requests if each.aim == "opened"]
    waiting = _covered(asked) / _covered(opens)
    noun = "open" if len(opens) == 1 else "opens"
    return Verdict(
        "opening",
        f"{len(opens)} {noun} with {len(asked)} requests took {share:.0%} of {seconds:.2f} s; "
        f"requests were in flight for {waiting:.0%} of that.",
        "Consolidate the metadata, and keep what is open instead of opening it again."
        if waiting >= _MOST
        else "Keep what is open instead of opening it again, or open fewer variables.",
    )


def _of_requests(
    requests: Sequence[RequestRecord], moving: Sequence[RequestRecord]
) -> Verdict | None:
    """Return whether the requests ``moving`` wait for answers or for bytes; None if unclear."""
    small = [
        each.ended - each.begun
        for each in requests
        if each.error == "" and each.nbytes <= _SMALL_BYTES
    ]
    if len(small) < _FEW:
        return None
    least = statistics.median(sorted(small)[: max(_FEW, len(small) // 2)])
    usual = statistics.median(each.ended - each.begun for each in moving)
    span = _covered(moving)
    if usual >= _LONGER * least:
        nbytes = sum(each.nbytes for each in moving)
        if statistics.median(each.nbytes for each in moving) <= _SMALL_BYTES:
            return None
        return Verdict(
            "bandwidth",
            f"{bytes_text(nbytes)} arrived at {bytes_text(nbytes / span)}/s; a request took "
            f"{1e3 * usual:.0f} ms, a small one {1e3 * least:.0f} ms.",
            "Read less, or data that is compressed better, or from a server that is closer.",
        )
    if usual > _SIMILAR * least:
        return None
    most = most_at_once((each.begun, each.ended) for each in moving)
    mean = sum(each.ended - each.begun for each in moving) / span
    waves = f"{len(moving)} requests took {1e3 * usual:.0f} ms each"
    if len(moving) >= 4 * most and mean >= 0.8 * most:
        return Verdict(
            "concurrency",
            f"{waves}, as small ones do; {most} were in flight all the time.",
            "Raise the limit: config.set(concurrency=…).",
        )
    return Verdict(
        "latency",
        f"{waves}, as small ones do, and {mean:.0f} were in flight on average.",
        "Load more at once, or use larger chunks or shards.",
    )
