"""Fixtures and settings of every test."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from aioxarray.config import config
from tests import budgets, matrices
from tests.blocking import blocking_calls
from tests.loops import LOOPS

# Servers of tests stall until they are told to go on, here and in subprocesses. The tests of silent
# requests set it again.
os.environ["AIOXARRAY_STALL_S"] = "None"
config.set(stall_s=None)

# Retries follow at once: a test of their schedule replaces the clock.
os.environ["AIOXARRAY_RETRY__BACKOFF_S"] = "0.001"
config.set({"retry.backoff_s": 0.001})

# Without a deadline: machines of CI stall now and then. In CI the same examples each time, so
# that a change does not fail for what was wrong before it.
hypothesis.settings.register_profile("local", max_examples=60, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=3000, deadline=None)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local")
)

# A shell starts its background jobs with interrupts ignored, and processes inherit that. Tests of
# interrupts would wait for what never comes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the tests of properties, which hypothesis runs many times, and wide matrices."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.slow)
    matrices.mark_rest(items)


def pytest_collection_finish() -> None:
    """Keep all that was imported and collected out of each later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The loop of a test marked ``anyio``; `tests.loops.every_loop` runs it on each loop."""
    return LOOPS["asyncio"]


@pytest.fixture(autouse=True)
def caller_stays_free() -> Iterator[None]:
    """Fail a test in which aioxarray blocked the caller's loop."""
    with blocking_calls() as found:
        yield
    if found:
        pytest.fail(f"{len(found)} blocking calls; the first: {found[0]}")


@pytest.fixture(autouse=True)
def nothing_stays_in_use() -> Iterator[None]:
    """Wait, after a test, for the end of requests that it gave up; fail it if they do not end.

    Otherwise a later test would find their places taken.
    """
    yield
    if budgets.in_use():
        try:
            asyncio.run(budgets.until_free())
        except TimeoutError:
            pytest.fail(f"left behind: {budgets.in_use()}")
