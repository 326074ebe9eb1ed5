"""Users' scripts in `tests/typing` under mypy and pyright: types that hold, mistakes refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aioxarray

SCRIPTS = Path(__file__).parent / "typing"
SOURCES = Path(aioxarray.__file__).parents[1]

# Errors by file and line.
Places = dict[tuple[str, int], str]

pytestmark = pytest.mark.slow


def expected() -> Places:
    """Return mypy's code of the error that a comment announces, by its place."""
    return {
        (path.name, number): found[1]
        for path in SCRIPTS.glob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (found := re.search(r"# error: ([\w-]+)$", line))
    }


def output_of(*command: str, cwd: Path, **variables: str) -> str:
    """Return the output of a type checker; its exit status says that there are errors."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_mypy_knows_the_types(tmp_path: Path) -> None:
    # The errors of libraries without types are not those of the scripts.
    options = ("--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}")
    scripts = sorted(map(str, SCRIPTS.glob("*.py")))
    text = output_of("mypy", *options, *scripts, cwd=tmp_path, MYPYPATH=str(SOURCES))
    found = re.findall(r"(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", text, re.MULTILINE)
    assert {(name, int(line)): code for name, line, code in found} == expected(), text


def test_pyright_knows_the_types(tmp_path: Path) -> None:
    settings = {
        "include": [str(SCRIPTS)],
        "extraPaths": [str(SOURCES)],
        "typeCheckingMode": "standard",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    options = ("--outputjson", "--level", "error", "--pythonpath", sys.executable)
    text = output_of("basedpyright", *options, cwd=tmp_path)
    found = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in json.loads(text)["generalDiagnostics"]
    }
    assert found == expected().keys(), text
