"""``python -m tests.notebooks``: run the notebooks of the documentation, and store their output.

The times of the cells change from run to run, and are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def execute(path: Path, folder: Path, timeout_s: int = 100) -> Any:
    """Run a notebook in ``folder`` with this Python, and return it with its output.

    A cell that takes longer than ``timeout_s`` seconds, or raises, is an error.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        startup_timeout=60,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()
    notebook.metadata = nbformat.NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def main() -> int:
    """Run all notebooks where they lie."""
    for path in NOTEBOOKS:
        nbformat.write(execute(path, path.parent), path)
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
