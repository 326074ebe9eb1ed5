"""Fixtures of the tests of opening: after each test nothing is left, and nothing blocked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr import reading
from tests.blocking import blocking_calls
from tests.concurrency.helpers import tasks_on_io_loop


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test after which places are taken, or tasks run on the I/O loop."""
    before = tasks_on_io_loop()
    yield
    for budget in (reading.requests, reading.memory, reading.threads, reading.fetching):
        assert budget.in_use == 0
        assert not budget._shares
    assert tasks_on_io_loop() <= before


@pytest.fixture(autouse=True)
def caller_stays_free(nothing_left: None) -> Iterator[None]:
    """Fail a test in which aioxarray blocked the caller's loop."""
    with blocking_calls() as found:
        yield
    if found:
        pytest.fail(f"{len(found)} blocking calls; the first: {found[0]}")


async def _nothing() -> None:
    pass


@pytest.fixture(autouse=True, scope="session")
def io_loop_runs() -> None:
    """Start the I/O loop, so that no test counts its thread as one of its own."""
    run_blocking(_nothing)
