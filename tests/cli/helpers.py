"""Running commands: in this process, and in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

import aioxarray
from aioxarray.cli import main

if TYPE_CHECKING:
    import pytest


class Ended(NamedTuple):
    """The end of a command."""

    exit_code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The output, which is JSON without NaN."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.output, parse_constant=refuse)


class Commands:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ended:
        try:
            exit_code = main(list(map(str, arguments)))
        except SystemExit as ended:
            exit_code = int(str(ended.code))
        return Ended(exit_code, *self._capsys.readouterr())

    def succeed(self, *arguments: object) -> Ended:
        """Run a command that must succeed."""
        ended = self(*arguments)
        assert ended.exit_code == 0, ended.errors
        return ended

    def refuse(self, *arguments: object) -> str:
        """Run a command that must refuse its input; return what it says in its only line."""
        ended = self(*arguments)
        assert ended.exit_code == 2, ended
        assert ended.output == ""
        (line,) = ended.errors.splitlines()
        assert "Traceback" not in line
        return line


def environment() -> dict[str, str]:
    """Return the environment of a process that imports this package."""
    return {**os.environ, "PYTHONPATH": str(Path(aioxarray.__file__).parents[1])}


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "aioxarray", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), text=True, **pipes | options)


def grid(steps: int = 10, first: float = 0.0) -> xr.Dataset:
    """Fields on a grid with falling latitudes, and longitudes that rise from ``first`` on."""
    rng = np.random.default_rng(3)
    dims = ("time", "lat", "lon")
    start = np.datetime64("2024-01-28", "ns")
    return xr.Dataset(
        {
            "t2m": (dims, rng.normal(size=(steps, 19, 36)).astype("f4"), {"units": "K"}),
            "rain": (dims, rng.integers(0, 99, size=(steps, 19, 36)).astype("i2")),
            "mask": (dims[1:], rng.integers(0, 2, size=(19, 36)).astype("i1")),
        },
        {
            "time": start + np.arange(steps) * np.timedelta64(1, "D"),
            "lat": np.linspace(90, -90, 19),
            "lon": first + np.arange(0, 360, 10.0),
        },
        {"title": "grid"},
    )
