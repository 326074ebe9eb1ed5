"""A server that loads windows of a remote Zarr keeps working while much goes wrong."""

from __future__ import annotations

import pytest

from benchmarks.soak.__main__ import main


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_soak_of_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "60", "--clients", "40", "--without-peer"]) == 0, capsys.readouterr()
