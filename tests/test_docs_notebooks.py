"""The notebooks of the documentation run, and their stored output is of the code that they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks import NOTEBOOKS, execute


def outputs(notebook: Any) -> list[tuple[str, list[str]]]:
    """Return each cell's code, and the kinds of output that it has."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kinds = {kind for out in cell.outputs for kind in out.get("data", {"text": ""})}
            found.append((cell.source, sorted(kinds)))
    return found


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_stored(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    executed = execute(path, tmp_path)
    assert outputs(executed) == outputs(stored), "run: python -m tests.notebooks"
    streams = [
        out.name for cell in executed.cells for out in cell.get("outputs", ()) if "name" in out
    ]
    assert "stderr" not in streams
