"""Fixtures that every test may use."""

from __future__ import annotations

from typing import Any

import pytest

from tests.loops import LOOPS


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The loop of a test marked ``anyio``; `tests.loops.every_loop` runs it on each loop."""
    return LOOPS["asyncio"]
