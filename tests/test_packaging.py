"""The wheel: its contents, and its installation in a new environment.

Packages come from the registry that pip is set to use. With EACH_EXTRA=1 in the environment, the
wheel is also installed with each extra, and with all of them, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# The others are for developers.
EXTRAS = sorted(PROJECT["optional-dependencies"].keys() - {"bench", "dev", "dist", "docs", "test"})

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_sources_and_nothing_else(wheel: Path) -> None:
    sources = ROOT / "src"
    expected = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    assert names - about == expected
    assert "aioxarray/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in about)


# Values in memory, saved and loaded again: it needs no extra.
USE = """
import warnings
import aioxarray, xarray
from zarr.storage import MemoryStore

warnings.simplefilter("ignore")
store = MemoryStore()
aioxarray.to_zarr(xarray.Dataset({"a": ("x", [1, 2, 3])}), store)
print(aioxarray.__file__, aioxarray.load(aioxarray.open_zarr(store)).a.values.tolist())
"""


INSTALLED = ["", *([*EXTRAS, ",".join(EXTRAS)] if os.environ.get("EACH_EXTRA") else ())]


@pytest.mark.parametrize("extra", INSTALLED)
def test_it_is_installed_with_extras(wheel: Path, tmp_path: Path, extra: str) -> None:
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # -I: none of the variables of this process, such as PYTHONPATH, apply.
    pip = (python, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", f"{wheel}[{extra}]" if extra else wheel)
    run(*pip, "check")
    place, values = run(python, "-I", "-c", USE).split(maxsplit=1)
    assert Path(place).is_relative_to(tmp_path)
    assert values.strip() == "[1, 2, 3]"
    run(python.with_name("aioxarray"), "--help")
