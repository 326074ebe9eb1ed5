"""Runs a suite of xarray's in processes of its own, with aioxarray and, to compare, without."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("AIOXARRAY_XARRAY_SUITE") == "full"
TIMEOUT_S = 1500 if FULL else 500


@dataclass(frozen=True)
class Run:
    """How the tests of one run ended, and how often aioxarray did what it was there for."""

    outcomes: dict[str, str]
    done: int

    def ended(self, *outcomes: str) -> set[str]:
        """Return the tests that ended so."""
        return {test for test, each in self.outcomes.items() if each in outcomes}


@dataclass(frozen=True)
class Suite:
    """A part of xarray's tests.

    Attributes
    ----------
    module
        Where in xarray it is.
    selected
        pytest's expression (``-k``) for what of it runs.
    option
        What the plugin does with it: ``--loaded-by-aioxarray``, say.
    left_out
        Parts of the names of tests that do not count; each caller gives the reason.
    """

    module: str
    selected: str
    option: str
    left_out: tuple[str, ...] = ()

    def run(self, directory: Path) -> tuple[Run, set[str]]:
        """Run it with aioxarray; return that, and the tests that pass only without.

        Those that do not pass are run again without. That gives what two whole runs would, in
        half the time.
        """
        ours = self._run(directory / "ours", [self.option])
        missed = directory / "missed"
        missed.write_text(json.dumps(sorted(ours.outcomes.keys() - ours.ended("passed"))), "utf-8")
        plain = self._run(directory / "plain", ["--only", str(missed)])
        assert plain.done == 0
        passed = plain.ended("passed")
        return ours, {test for test in passed if not any(part in test for part in self.left_out)}

    def _run(self, directory: Path, options: Sequence[str]) -> Run:
        directory.mkdir(parents=True)
        package = importlib.util.find_spec("aioxarray")
        assert package is not None
        assert package.origin is not None
        paths = [str(ROOT), str(Path(package.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
        outcomes, output = directory / "outcomes", directory / "output"
        command = [sys.executable, "-m", "pytest", "-p", "tests.xarray_suite.plugin"]
        command += ["-c", str(Path(__file__).with_name("suite.ini")), "--rootdir", str(directory)]
        command += ["--basetemp", str(directory / "tmp"), "--outcomes", str(outcomes)]
        command += ["--pyargs", self.module, "-q", "--tb=short", "-k", self.selected, *options]
        with output.open("wb") as file:
            ended = subprocess.run(
                command,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
            )
        # 1: tests failed, which the caller judges; 5: there were none to run.
        said = output.read_text(encoding="utf-8", errors="replace")
        assert ended.returncode in (0, 1, 5), said[-5000:]
        return Run(**json.loads(outcomes.read_text(encoding="utf-8")))
