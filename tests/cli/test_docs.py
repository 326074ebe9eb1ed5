"""The examples of the page on the command line run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.helpers import Commands, grid

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
URL = "https://data.example.org/era5.zarr"


def examples() -> list[list[str]]:
    """Return the arguments of each example; those of completion have a test of their own."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [
        shlex.split(line)[1:] for line in lines if line.startswith("aioxarray ") and "|" not in line
    ]


def test_every_command_has_an_example() -> None:
    assert {"info", "copy", "bench"} <= {each[0] for each in examples()}


@pytest.mark.parametrize("arguments", examples(), ids=" ".join)
def test_examples(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Commands
) -> None:
    monkeypatch.chdir(tmp_path)
    grid(40).to_zarr("era5.zarr")
    # The same data, without a network.
    places = {URL: "era5.zarr", "s3://bucket/part.zarr": "part.zarr"}
    run.succeed(*(places.get(each, each) for each in arguments))
