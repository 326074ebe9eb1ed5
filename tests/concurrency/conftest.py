"""Fixtures of the tests of concurrency: after each test nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.concurrency.helpers import assert_idle, tasks_on_io_loop


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test after which places are taken, or tasks run on the I/O loop."""
    before = tasks_on_io_loop()
    yield
    assert_idle(before)
