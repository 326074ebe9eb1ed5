"""Forks processes that save to a store in a directory and die at their k-th write or deletion."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

root = Path(__file__).parents[2]
sys.path.insert(0, str(root))

import dask.array  # noqa: E402, F401 - once, and not in each fork
from zarr.storage import LocalStore  # noqa: E402

import aioxarray  # noqa: E402
from aioxarray.testing import FaultyStore, Request  # noqa: E402
from tests.saving.helpers import sample, tree  # noqa: E402

SAVES: dict[str, Callable[[Any], object]] = {
    "new": lambda store: aioxarray.to_zarr(tree(), store),
    "append": lambda store: aioxarray.to_zarr(sample(), store, append_dim="time"),
    "resume": lambda store: aioxarray.to_zarr(sample(), store, resume=True),
    "replace": lambda store: aioxarray.to_zarr(sample(8), store, mode="w"),
}


def save(how: str, directory: Path, k: int) -> None:
    """Save to the store in ``directory``; end this process at write ``k``, if there is one."""
    writes = itertools.count()

    def die(index: int, request: Request) -> BaseException | None:
        if request.method in ("set", "delete", "delete_dir") and next(writes) == k:
            os._exit(9)
        return None

    SAVES[how](FaultyStore(LocalStore(directory), die))


def in_child(work: object) -> int:
    """Call ``work`` in a fork, which has no threads yet, and return how it ended."""
    child = os.fork()
    if child == 0:
        work()  # type: ignore[operator]
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, how: str) -> None:
    """Make a store for each k."""
    before = folder / "before"
    encoding = {"a": {"chunks": (4, 5)}}
    if how in ("new", "resume"):
        before.mkdir()
    else:
        assert in_child(lambda: sample().to_zarr(before, encoding=encoding)) == 0
    for k in range(100):
        directory = folder / f"{k:02}.zarr"
        shutil.copytree(before, directory)
        if in_child(lambda: save(how, directory, k)) == 0:  # noqa: B023
            return


main(Path(sys.argv[1]), sys.argv[2])
