"""Verdicts: each bottleneck is found where it is one, and nothing is guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

import aioxarray
from aioxarray._tracing.recording import Recording, covered, most_at_once
from aioxarray._tracing.verdicts import judge
from aioxarray._zarr.stores.observing.records import CallRecord, DecodeRecord, RequestRecord
from aioxarray.testing import RecordingStore
from tests.concurrency.test_requests import sample
from tests.samples import stored

THREADS = 2
LARGE, SMALL = 1_000_000, 500


def request(begun: float, seconds: float, **values: Any) -> RequestRecord:
    usual: dict[str, Any] = {
        "key": "v/c/0",
        "kind": "get",
        "attempt": 1,
        "reason": "first",
        "store": "s3://bucket",
        "range": "",
        "nbytes": LARGE,
        "error": "",
        "aim": "loaded",
        "label": None,
    }
    usual.update(values)
    return RequestRecord(0, begun, begun, begun + seconds, **usual)


def opening(seconds: float, *, requests: int = 4) -> list[RequestRecord]:
    """Return requests for metadata, all at once."""
    small = {"key": "v/zarr.json", "nbytes": SMALL, "aim": "opened"}
    return [request(0.0, seconds, **small) for _ in range(requests)]


def recording(
    requests: Sequence[RequestRecord],
    *,
    decodes: Sequence[DecodeRecord] = (),
    opened: float = 0.0,
    loaded: float = 0.0,
    seconds: float = 1.0,
) -> Recording:
    """Return a recording of an open and a load that follows it, which last so many seconds."""
    calls = [CallRecord("opened", 0.0, opened), CallRecord("loaded", opened, opened + loaded)]
    return Recording(0.0, seconds, 0.0, requests, decodes, calls, 0, 0)


def waves(count: int, width: int, seconds: float, start: float) -> list[RequestRecord]:
    """Return ``count`` requests, of which ``width`` are in flight all the time."""
    return [request(start + n // width * seconds, seconds) for n in range(count)]


RECORDINGS = {
    "latency": recording(
        [*opening(0.2), *waves(40, 40, 0.22, 0.3)], opened=0.3, loaded=0.25, seconds=0.6
    ),
    "bandwidth": recording([*opening(0.02), *waves(8, 8, 0.8, 0.1)], opened=0.1, loaded=0.9),
    "concurrency": recording(
        [*opening(0.05), *waves(56, 4, 0.0625, 0.125)], opened=0.1, loaded=0.9
    ),
    "decoding": recording(
        opening(0.02),
        decodes=[DecodeRecord(n, "v/c/0", None, 1, 9, 0.1, 0.95) for n in range(THREADS)],
        opened=0.1,
        loaded=0.9,
    ),
    "your code": recording([*opening(0.02), request(0.1, 0.1)], opened=0.1, loaded=0.1),
    "the server refuses": recording(
        [*waves(20, 20, 0.9, 0.1), *(request(0.1, 0.05, error="HTTP 503", nbytes=0),) * 5],
        loaded=1.0,
    ),
    "opening": recording([*opening(0.7, requests=30), request(0.8, 0.1)], opened=0.75, loaded=0.2),
}
# An open may take long with few requests: many variables, or a slow index.
SLOW_OPEN = recording(
    [*opening(0.1, requests=3), *waves(40, 40, 0.05, 0.9)], opened=0.86, loaded=0.1
)
UNCLEAR = {
    "nothing": recording([]),
    "no small answer to compare with": recording(waves(8, 8, 0.9, 0.0), loaded=1.0),
    "neither short nor long": recording(
        [*opening(0.1), *waves(8, 4, 0.25, 0.1)], opened=0.1, loaded=0.9, seconds=0.65
    ),
    "a bit of everything": recording(
        [*opening(0.2), *waves(8, 8, 0.25, 0.3)],
        decodes=[DecodeRecord(0, "v/c/0", None, 1, 9, 0.55, 0.75)],
        opened=0.3,
        loaded=0.45,
    ),
    "small data that takes long": recording(
        [*opening(0.01), *(request(0.1, 0.8, nbytes=SMALL) for _ in range(3))],
        opened=0.1,
        loaded=0.9,
    ),
    "cancelled": recording(
        [*opening(0.02), *(request(0.1, 0.8, error=None, nbytes=0) for _ in range(9))],
        opened=0.1,
        loaded=0.9,
    ),
}


@pytest.mark.parametrize("bottleneck", RECORDINGS)
def test_bottlenecks_are_named(bottleneck: str) -> None:
    verdict = judge(RECORDINGS[bottleneck], THREADS)
    assert verdict.bottleneck == bottleneck
    assert any(character.isdigit() for character in verdict.evidence)
    assert verdict.advice.endswith(".")
    assert str(verdict) == f"Bottleneck: {bottleneck}. {verdict.evidence} {verdict.advice}"


@pytest.mark.parametrize("case", UNCLEAR)
def test_nothing_is_guessed(case: str) -> None:
    assert judge(UNCLEAR[case], THREADS).bottleneck == "unclear"


def test_an_open_with_few_requests_is_named() -> None:
    verdict = judge(SLOW_OPEN, THREADS)
    assert verdict.bottleneck == "opening"
    assert verdict.evidence == (
        "1 open with 3 requests took 86% of 1.00 s; requests were in flight for 12% of that."
    )
    assert "fewer variables" in verdict.advice


def test_an_open_beside_a_load_is_not_to_blame() -> None:
    beside = [*SLOW_OPEN.calls, CallRecord("loaded", 0.0, 0.9)]
    assert judge(dataclasses.replace(SLOW_OPEN, calls=beside), THREADS).bottleneck == "unclear"


def test_the_numbers_are_those_of_the_recording() -> None:
    verdict = judge(RECORDINGS["bandwidth"], THREADS)
    assert verdict.evidence.startswith("8.0 MB arrived at 10.0 MB/s; a request took 800 ms")
    verdict = judge(RECORDINGS["concurrency"], THREADS)
    assert verdict.evidence.startswith("56 requests took 62 ms each")
    assert "4 were in flight" in verdict.evidence


def test_calls_are_recorded_once() -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(sample())))
    with aioxarray.trace() as t:
        aioxarray.load(ds)
        store: Any = stored(sample())
        aioxarray.open_zarr(store)
        # Its load is a part of the call.
        aioxarray.load_dataset(store, engine="zarr")
    assert [each.aim for each in t._recording().calls] == ["loaded", "opened", "loaded"]
    assert t.verdict().bottleneck


@pytest.mark.parametrize(
    ("intervals", "seconds", "most"),
    [
        ([], 0.0, 0),
        ([(0.0, 1.0), (1.0, 2.0)], 2.0, 1),
        ([(0.0, 2.0), (0.5, 1.0), (3.0, 4.0)], 3.0, 2),
    ],
)
def test_intervals(intervals: list[tuple[float, float]], seconds: float, most: int) -> None:
    assert covered(intervals) == seconds
    assert most_at_once(intervals) == most
