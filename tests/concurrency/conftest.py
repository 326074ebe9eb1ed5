"""Fixtures of the tests of concurrency: after each test nothing is left, and nothing blocked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.blocking import blocking_calls
from tests.concurrency.helpers import assert_idle, tasks_on_io_loop


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test after which places are taken, or tasks run on the I/O loop."""
    before = tasks_on_io_loop()
    yield
    assert_idle(before)


@pytest.fixture(autouse=True)
def caller_stays_free(nothing_left: None) -> Iterator[None]:
    """Fail a test in which aioxarray blocked the caller's loop."""
    with blocking_calls() as found:
        yield
    if found:
        pytest.fail(f"{len(found)} blocking calls; the first: {found[0]}")
