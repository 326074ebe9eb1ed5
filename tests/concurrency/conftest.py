"""Fixtures of the tests of concurrency: servers, and that after each test nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aioxarray._runtime.loops import run_blocking
from tests.concurrency.clients import served
from tests.concurrency.helpers import assert_idle, tasks_on_io_loop
from tests.concurrency.sessions import close_all


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test after which places are taken, or tasks run on the I/O loop."""
    before = tasks_on_io_loop()
    yield
    assert_idle(before)


@pytest.fixture(autouse=True)
def no_session_stays() -> Iterator[None]:
    """Close the sessions of stores that were given to `closed_later`."""
    yield
    run_blocking(close_all)


@pytest.fixture(scope="session")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of servers that have the same data, by clients."""
    with served(tmp_path_factory.mktemp("root")) as ports:
        yield ports
