"""Runs calls in a process that lacks some packages, and returns what each raised."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """
import json, sys

class Without:
    '''A finder of modules to which the packages are not installed.'''

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

PACKAGES, CALLS = json.loads(sys.argv[1])
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

import numpy as np
import xarray as xr

import aioxarray

ds = xr.Dataset({"v": ("x", np.arange(3.0))})
raised = {}
for name, call in CALLS.items():
    try:
        eval(call)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        raised[name] = [kinds, str(error), getattr(error, "__notes__", [])]
print(json.dumps(raised))
"""


@dataclass(frozen=True)
class Raised:
    """An error: the names of its types, what it says, and its notes."""

    kinds: list[str]
    text: str
    notes: list[str]


def raised_without(
    packages: Sequence[str], calls: Mapping[str, str], folder: Path
) -> dict[str, Raised]:
    """Evaluate ``calls``, expressions of Python, where ``packages`` cannot be imported.

    They are made in ``folder``, and know ``xr``, ``aioxarray`` and a dataset ``ds``.
    """
    given = json.dumps([list(packages), dict(calls)])
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, given],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    raised = json.loads(ended.stdout.splitlines()[-1])
    return {name: Raised(*each) for name, each in raised.items()}
