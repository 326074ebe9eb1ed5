"""xarray's own Zarr backend suite: nothing fails through aioxarray that passes without it.

The suite (`xarray/tests/test_backends.py`, in xarray's wheel) is run twice, side by side, in
processes of their own; `plugin` says how, and how to run all of it by hand. Here runs what reads
by a path of its own: one class for each kind of test, that on a dict as the store, in Zarr v2 and
v3. Left out are the classes that inherit the same tests for another store (a directory, which
also takes longest; the same without consolidated metadata; the same with ``write_empty``), and a
test with thousands of files. ``AIOXARRAY_XARRAY_SUITE=full`` runs those too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("AIOXARRAY_XARRAY_SUITE") == "full"
SELECTED = "Zarr" if FULL else "Zarr and not (Directory or WriteEmpty or NoConsol or manyfiles)"
TIMEOUT_S = 1500 if FULL else 500

NOT_COMPARED = (
    # It loads one object five times at once and wants five reads of each variable. aioxarray reads
    # elsewhere than on the caller's loop, so the first may have ended before the last begins, which
    # then finds the data there. The values, the test's other half, are compared all over the suite.
    "test_concurrent_load_multiple_objects",
    # It counts what xarray itself requests, request for request. Ours are in tests/saving.
    "TestInstrumentedZarrStore",
)


@dataclass(frozen=True)
class Run:
    """How the tests of one run ended."""

    outcomes: dict[str, str]
    loaded: int
    saved: int

    def ended(self, outcome: str) -> set[str]:
        return {
            test
            for test, each in self.outcomes.items()
            if each == outcome and not any(name in test for name in NOT_COMPARED)
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The suite without and with aioxarray."""
    directory = tmp_path_factory.mktemp("xarray-suite")
    options: dict[str, list[str]] = {"plain": [], "ours": ["--through-aioxarray"]}
    processes = {name: _start(directory / name, extra) for name, extra in options.items()}
    try:
        for process in processes.values():
            process.wait(TIMEOUT_S)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    plain, ours = (_result(directory / name, process) for name, process in processes.items())
    return plain, ours


def _start(directory: Path, options: list[str]) -> subprocess.Popen[bytes]:
    directory.mkdir()
    package = importlib.util.find_spec("aioxarray")
    assert package is not None
    assert package.origin is not None
    paths = [str(ROOT), str(Path(package.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "tests.xarray_suite.plugin"]
    command += ["-c", str(Path(__file__).with_name("suite.ini")), "--rootdir", str(directory)]
    command += ["--basetemp", str(directory / "tmp"), "--outcomes", str(directory / "outcomes")]
    command += ["--pyargs", "xarray.tests.test_backends", "-q", "--tb=short", "-k", SELECTED]
    with (directory / "output").open("wb") as output:
        return subprocess.Popen(
            command + options,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _result(directory: Path, process: subprocess.Popen[bytes]) -> Run:
    output = (directory / "output").read_text(encoding="utf-8", errors="replace")
    # 1: tests failed, which is for the tests below to judge.
    assert process.returncode in (0, 1), output[-5000:]
    return Run(**json.loads((directory / "outcomes").read_text(encoding="utf-8")))


# The first of these tests waits for both runs.
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)


def test_what_passes_plainly_passes_through_aioxarray(runs: tuple[Run, Run]) -> None:
    plain, ours = runs
    assert set(ours.outcomes) == set(plain.outcomes)
    assert sorted(plain.ended("passed") - ours.ended("passed")) == []
    assert sorted(ours.ended("failed") - plain.ended("failed")) == []


def test_the_suite_ran_and_its_data_was_saved_and_loaded_by_aioxarray(
    runs: tuple[Run, Run],
) -> None:
    plain, ours = runs
    assert len(ours.ended("passed")) > 350
    assert len(ours.ended("failed")) < 30
    assert ours.loaded > 800
    assert ours.saved > 800
    assert (plain.loaded, plain.saved) == (0, 0)
