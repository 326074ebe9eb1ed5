"""Latencies of the object server follow a distribution, the same in every run."""

from __future__ import annotations

import statistics
import urllib.request
from collections.abc import Callable
from functools import partial

import pytest

from aioxarray.testing import Exponential, Mixed, ObjectServer
from aioxarray.testing.latency import Latency, latency_from_json, latency_to_json, sampler


def drawn(latency: Latency, count: int = 1000) -> list[float]:
    draw = sampler(latency)
    return [draw() for _ in range(count)]


def test_exponential() -> None:
    values = drawn(Exponential(0.05))
    assert 0.045 < statistics.mean(values) < 0.055
    assert 0.045 < statistics.stdev(values) < 0.055
    assert drawn(Exponential(0.05)) == values != drawn(Exponential(0.05, seed=1))
    assert drawn(Exponential(0), 3) == [0, 0, 0]


def test_a_share_is_slow() -> None:
    mixed = Mixed(0.01, 2.0, share=0.05)
    values = drawn(mixed, 10_000)
    assert set(values) == {0.01, 2.0}
    assert 450 < values.count(2.0) < 550
    assert drawn(mixed, 10_000) == values != drawn(Mixed(0.01, 2.0, 0.05, seed=1), 10_000)
    assert set(drawn(Mixed(0.01, 2.0, share=0))) == {0.01}


def test_seconds_and_functions() -> None:
    assert drawn(0.5, 2) == [0.5, 0.5]
    assert drawn(iter([1.0, 2.0]).__next__, 2) == [1.0, 2.0]


@pytest.mark.parametrize("latency", [0.25, Exponential(0.1, 3), Mixed(0.1, 2.0, 0.01, 4)])
def test_it_can_be_passed_to_another_process(latency: Latency) -> None:
    assert latency_from_json(latency_to_json(latency)) == latency


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Exponential, -1), "mean_s must not be negative; got -1"),
        (partial(Mixed, 0, -2, 0.1), "slow_s must not be negative; got -2"),
        (partial(Mixed, 0, 2, 1.5), "share must be between 0 and 1; got 1.5"),
        (partial(sampler, -0.5), "latency_s must not be negative; got -0.5"),
    ],
)
def test_a_latency_that_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_server_draws_the_latency_of_each_answer() -> None:
    left = [0.0, 0.001, 0.002]
    with ObjectServer(latency_s=left.pop) as server:
        server.put("a", b"x")
        for _ in range(3):
            urllib.request.urlopen(f"{server.url}/a").close()
        assert left == []
        server.latency_s = Exponential(0.001)
        urllib.request.urlopen(f"{server.url}/a").close()


def test_a_server_in_another_process_has_the_distribution() -> None:
    with ObjectServer(latency_s=Mixed(0, 3600, share=0), process=True) as server:
        server.put("a", b"x")
        urllib.request.urlopen(f"{server.url}/a").close()
        server.latency_s = Mixed(0, 3600, share=1)
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(f"{server.url}/a", timeout=0.05)
        with pytest.raises(TypeError, match="a server in another process cannot call a function"):
            server.latency_s = float
