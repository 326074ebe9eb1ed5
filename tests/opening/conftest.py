"""Fixtures of the tests of opening: after each test nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aioxarray._runtime.loops import run_blocking
from tests.concurrency.helpers import assert_idle, tasks_on_io_loop


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test after which places are taken, or tasks run on the I/O loop."""
    before = tasks_on_io_loop()
    yield
    assert_idle(before)


async def _nothing() -> None:
    pass


@pytest.fixture(autouse=True, scope="session")
def io_loop_runs() -> None:
    """Start the I/O loop, so that no test counts its thread as one of its own."""
    run_blocking(_nothing)
