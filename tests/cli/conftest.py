"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aioxarray.testing import ObjectServer
from tests.cli.helpers import Commands


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Commands:
    """Runs commands in this process."""
    return Commands(capsys)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    """A server without objects."""
    with ObjectServer() as server:
        yield server
